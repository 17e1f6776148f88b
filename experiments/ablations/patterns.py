"""Which layers should share, if there are only one, two or three sets of parameters?

    albert-jax ablate experiments/ablations/patterns.py --scale tiny --seeds 5 --tune optim.learning_rate=2e-3,5e-3,1e-2

Not in the paper, which has consecutive groups only.  Cycles are from Takase and Kiyono (arXiv 2104.06022), `middle` is from
Mixture-of-Recursions (arXiv 2507.10524).  All rows have the same depth and FLOPs; rows with the same number of sets also have the
same number of parameters.
Results: at `tiny`, patterns with equal parameters can hardly be distinguished (tuned rates; three seeds, so no claim; held-out
masked-LM loss, against 1 set, 95 % confidence interval).  2 sets: groups -0.185 [-0.421, +0.051], cycle -0.155 [-0.304, -0.005], cycle
reversed -0.216 [-0.333, -0.099].  3 sets: groups -0.259 [-0.475, -0.044], cycle -0.148 [-0.318, +0.021], cycle reversed -0.218
[-0.275, -0.160], middle -0.145 [-0.398, +0.107].  Not shared -0.330 [-0.422, -0.238] (LOG 2026-11-29).
"""

from albert_jax.ablation import Ablation, Row


def pattern(sharing: str, groups: int = 1) -> Row:
    return Row({"model.sharing": sharing, "model.num_hidden_groups": groups})


ablation = Ablation(
    rows={
        "1 set": pattern("all"),
        "2 sets: groups": pattern("groups", 2),
        "2 sets: cycle": pattern("cycle", 2),
        "2 sets: cycle reversed": pattern("cycle-reversed", 2),
        "3 sets: groups": pattern("groups", 3),
        "3 sets: cycle": pattern("cycle", 3),
        "3 sets: cycle reversed": pattern("cycle-reversed", 3),
        "3 sets: middle": pattern("middle"),
        "not shared": pattern("none"),
    },
    base={"tiny": {"model.num_hidden_layers": 6, "model.scan_unroll": 6}},
)
