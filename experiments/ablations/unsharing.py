"""Can the cheap, shared network be trained first, and unshared for the rest?

    albert-jax ablate experiments/ablations/unsharing.py --scale tiny --seeds 3

Not a table of the paper.  The rows "then" start, for the second half of the budget and with a schedule of their own, from
the network after its first half; "shared, then shared" is the same without unsharing, so that what the fresh schedule does is
not taken for what unsharing does.  Tokens and time of such a row include the first half.
Ours: not run yet.
"""

from albert_jax.ablation import Ablation, Row

ablation = Ablation(
    rows={
        "shared": Row({"model.sharing": "all"}),
        "not shared": Row({"model.sharing": "none"}),
        "shared, first half": Row({"model.sharing": "all"}, share=0.5),
        "shared, then shared": Row({"model.sharing": "all"}, start="shared, first half", share=0.5),
        "shared, then 4 groups": Row(
            {"model.sharing": "groups", "model.num_hidden_groups": 4}, start="shared, first half", share=0.5
        ),
        "shared, then not shared": Row({"model.sharing": "none"}, start="shared, first half", share=0.5),
    },
)
