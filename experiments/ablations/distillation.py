"""Does a network with shared layers learn more from a teacher without sharing?

    albert-jax ablate experiments/ablations/distillation.py --scale tiny --seeds 5 --tune optim.learning_rate=2e-3,5e-3,1e-2

Not in the paper.  Each student learns from the finished run of its teacher with the same seed, so a teacher's tokens and time come
in addition.  In the last two rows, teacher and student have the same sharing, so the gain does not come from a difference between them.
Results: at `tiny`, 2,000 more steps help more than a teacher that was trained for 2,000 steps (held-out masked-LM loss, 95 %
confidence interval; tuned rates; three seeds, so no claim).  4,000 steps without a teacher (--train.num-train-steps 4000) minus 2,000
steps taught by not shared: shared -0.086 [-0.157, -0.015], not shared -0.182 [-0.213, -0.151].  Rows of 2,000 steps minus shared: shared
taught by not shared -0.318 [-0.399, -0.237], hidden states too -0.316 [-0.402, -0.230], taught by shared -0.223 [-0.300, -0.146]; not
shared -0.253 [-0.304, -0.201], taught by not shared -0.429 [-0.529, -0.328] (LOG 2026-11-29).
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
