"""What does sharing parameters cost, and which part of a layer causes it?

    albert-jax ablate experiments/ablations/sharing.py --scale tiny --seeds 5

Paper (Table 4, section 4.5): sharing everything costs 1.5 points on average with E = 128 and 2.5 with E = 768.  Sharing only
attention costs nothing with E = 128 (+0.1); most of the loss comes from the feed-forward part.  The rows with groups are
not in the paper, which only says that more groups are better and larger.
Results: at `tiny` (five seeds, held-out masked-LM loss, against not-shared, 95 % confidence interval), all-shared +0.251 [+0.221,
+0.280] nats, shared-FFN +0.171 [+0.117, +0.225], shared-attention +0.058 [+0.019, +0.097].  Sharing the feed-forward part causes most of
the cost, as in the paper.  3 groups cannot be distinguished from not-shared (+0.027 [-0.047, +0.102]); 2 groups cannot be
distinguished from all-shared or from not-shared, because one seed was still on the second plateau.  No row learns sentence order from 32
tokens.  The rows with E = H have not run (experiments/LOG.md).
"""

from albert_jax.ablation import Ablation, Row, at

small = {"model.embedding_size": at(tiny=32, small=64, paper=128)}
wide = {"model.embedding_size": at(tiny=64, small=256, paper=768)}  # E = H


def shared(how: str, embedding: dict, millions: int, average: float) -> Row:
    return Row({"model.sharing": how} | embedding, {"parameters (M)": millions, "average": average})


def groups(count: int) -> Row:
    return Row({"model.sharing": "groups", "model.num_hidden_groups": count} | small)


ablation = Ablation(
    rows={
        "all-shared": shared("all", small, 12, 80.1),
        "shared-attention": shared("attention", small, 64, 81.7),
        "shared-FFN": shared("ffn", small, 38, 80.2),
        "not-shared": shared("none", small, 89, 81.6),
        "all-shared, E = H": shared("all", wide, 31, 79.8),
        "shared-attention, E = H": shared("attention", wide, 83, 81.6),
        "shared-FFN, E = H": shared("ffn", wide, 57, 79.5),
        "not-shared, E = H": shared("none", wide, 108, 82.3),
        "2 groups": groups(2),
        "3 groups": groups(3),
    },
)
