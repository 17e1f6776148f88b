"""Which layers should share, if there are only one, two or three sets of parameters?

    albert-jax ablate experiments/ablations/patterns.py --scale tiny --seeds 5 --tune optim.learning_rate=2e-3,5e-3,1e-2

Not in the paper, which has consecutive groups only.  Cycles are from Takase and Kiyono (arXiv 2104.06022), `middle` is from
Mixture-of-Recursions (arXiv 2507.10524).  All rows have the same depth and FLOPs; rows with the same number of sets also have the
same number of parameters.
Results: at `tiny`, only the losses of three groups and of not shared differ measurably from that of 1 set (tuned rates, five seeds;
held-out masked-LM loss minus 1 set, 95 % confidence interval).  2 sets: groups -0.075 [-0.332, +0.181], cycle -0.051 [-0.288,
+0.187], cycle reversed -0.122 [-0.292, +0.048].  3 sets: groups -0.252 [-0.395, -0.109], cycle -0.128 [-0.260, +0.003], cycle
reversed -0.175 [-0.384, +0.033], middle -0.186 [-0.377, +0.004].  Not shared -0.366 [-0.502, -0.230] (LOG 2026-11-29).
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
