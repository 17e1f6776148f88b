"""When should a run share its layers, and when not?

    albert-jax ablate experiments/ablations/delayed_sharing.py --scale tiny --seeds 5 --tune optim.learning_rate=2e-3,5e-3,1e-2

Not in the paper.  Each row is one run with one learning rate schedule, unlike those of unsharing.py.  While layers are tied, they
compute and learn as one shared layer.
Results: not run yet.
"""

from albert_jax.ablation import Ablation, Row, at

STEPS = {"tiny": 2000, "small": 2000, "paper": 125_000}


def tied(start: float = 0.0, end: float = 0.0) -> Row:
    fields = {
        f"tying.{name}": at(**{scale: round(share * steps) for scale, steps in STEPS.items()})
        for name, share in (("start", start), ("end", end))
    }
    return Row({"model.sharing": "none", "tying.sharing": "all"} | fields)


ablation = Ablation(
    rows={
        "shared": Row({"model.sharing": "all"}),
        "shared for 25 %": tied(end=0.25),
        "shared for 50 %": tied(end=0.5),
        "shared for 75 %": tied(end=0.75),
        "shared after 50 %": tied(start=0.5),
        "not shared": Row({"model.sharing": "none"}),
    },
)
