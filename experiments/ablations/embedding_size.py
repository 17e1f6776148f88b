"""How wide should token embeddings be, with shared and with unshared layers?

    albert-jax ablate experiments/ablations/embedding_size.py --scale tiny --seeds 5

Paper (Table 3, section 4.4): without sharing, wider is slightly better (81.3 to 82.3); with sharing, E = 128 is best (80.1,
against 79.8 with E = 768).  The paper's sizes are 64, 128, 256 and 768 with H = 768; the scale `tiny` has 16, 32, 48 and 64
with H = 64, and `small` 32, 64, 128 and 256 with H = 256.
Results: at `tiny` (five seeds, held-out masked-LM loss), wider is better in every step, by 1.02 nats from E = 16 to E = H = 64 with
all layers shared (4.303 to 3.286) and by 1.05 without sharing (4.177 to 3.123); sharing costs 0.16 to 0.25 nats at E = 32 to 64.
"""

from albert_jax.ablation import Ablation, Row, at

SIZES = {
    "smallest E": at(tiny=16, small=32, paper=64),
    "small E": at(tiny=32, small=64, paper=128),
    "medium E": at(tiny=48, small=128, paper=256),
    "E = H": at(tiny=64, small=256, paper=768),
}
PAPER = {  # parameters in millions, average; by size as above
    "all": [(10, 79.0), (12, 80.1), (16, 79.6), (31, 79.8)],
    "none": [(87, 81.3), (89, 81.7), (93, 81.8), (108, 82.3)],
}
NAMES = {"all": "all-shared", "none": "not-shared"}

ablation = Ablation(
    rows={
        f"{NAMES[sharing]}, {name}": Row(
            {"model.sharing": sharing, "model.embedding_size": size}, {"parameters (M)": millions, "average": average}
        )
        for sharing, printed in PAPER.items()
        for (name, size), (millions, average) in zip(SIZES.items(), printed, strict=True)
    },
)
