"""When during a run should layers be shared?

    albert-jax ablate experiments/ablations/delayed_sharing.py --scale tiny --seeds 5 --tune optim.learning_rate=2e-3,5e-3,1e-2

Not in the paper.  Each row is one run with one learning rate schedule, unlike those of unsharing.py.  While layers are tied, they
compute and learn as one shared layer.
Results: at `tiny` (three seeds, tuned rates, so no claim; held-out masked-LM loss, against not shared, 95 % confidence interval),
shared for 25 % +0.057 [+0.020, +0.094], for 50 % +0.117 [+0.110, +0.124], for 75 % +0.205 [+0.174, +0.237], always +0.253 [+0.201,
+0.304]; shared after 50 % +0.244 [+0.170, +0.318] (LOG 2026-11-28).
"""

from albert_jax.ablation import Ablation, Row


def tied(start: float, end: float) -> Row:
    return Row({"model.sharing": "none", "tying.sharing": "all", "tying.start": start, "tying.end": end})


ablation = Ablation(
    rows={
        "shared": Row({"model.sharing": "all"}),
        "shared for 25 %": tied(0.0, 0.25),
        "shared for 50 %": tied(0.0, 0.5),
        "shared for 75 %": tied(0.0, 0.75),
        "shared after 50 %": tied(0.5, 1.0),
        "not shared": Row({"model.sharing": "none"}),
    },
)
