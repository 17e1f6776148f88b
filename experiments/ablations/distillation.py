"""Does a network with shared layers learn more from a teacher without sharing?

    albert-jax ablate experiments/ablations/distillation.py --scale tiny --seeds 5 --tune optim.learning_rate=2e-3,5e-3,1e-2

Not in the paper.  Each student learns from the finished run of its teacher with the same seed, so a teacher's tokens and time come
in addition.  The last two rows have teachers of the same kind: what they gain does not come from unshared layers.
Results: at `tiny`, most of the gain does not need an unshared teacher (tuned rates; three seeds, so no claim; held-out masked-LM loss,
against shared, 95 % confidence interval): shared taught by not shared -0.318 [-0.399, -0.237], hidden states too -0.316 [-0.402,
-0.230], taught by shared -0.223 [-0.300, -0.146]; not shared -0.253 [-0.304, -0.201], taught by not shared -0.429 [-0.529, -0.328]
(LOG 2026-11-29).
"""

from albert_jax.ablation import Ablation, Row

SHARED, NOT_SHARED = {"model.sharing": "all"}, {"model.sharing": "none"}

ablation = Ablation(
    rows={
        "shared": Row(SHARED),
        "not shared": Row(NOT_SHARED),
        "shared, taught by not shared": Row(SHARED, teacher="not shared"),
        "shared, taught by not shared, hidden states too": Row(
            SHARED | {"distillation.hidden_weight": 1.0}, teacher="not shared"
        ),
        "shared, taught by shared": Row(SHARED, teacher="shared"),
        "not shared, taught by not shared": Row(NOT_SHARED, teacher="not shared"),
    },
)
