"""Can a model be trained with shared layers first and unshared layers later?

    albert-jax ablate experiments/ablations/unsharing.py --scale tiny --seeds 5

Not in the paper.  The rows with "then" start from the model after the first half of the budget, and train for the second half
with a new learning rate schedule.  "shared, then shared" does not unshare, and so separates the effect of the new schedule from
that of unsharing.  The tokens and the time of these rows include the first half.
Results: not run yet.
"""

from albert_jax.ablation import Ablation, Row

ablation = Ablation(
    rows={
        "shared": Row({"model.sharing": "all"}),
        "not shared": Row({"model.sharing": "none"}),
        "shared, first half": Row({"model.sharing": "all"}, share=0.5),
        "shared, then shared": Row({"model.sharing": "all"}, start="shared, first half", share=0.5),
        "shared, then 2 groups": Row(
            {"model.sharing": "groups", "model.num_hidden_groups": 2}, start="shared, first half", share=0.5
        ),
        "shared, then not shared": Row({"model.sharing": "none"}, start="shared, first half", share=0.5),
    },
)
