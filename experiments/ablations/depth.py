"""How many times should the one layer run, and does a deep model need to start from a shallower one?

    albert-jax ablate experiments/ablations/depth.py --scale tiny --seeds 5

Paper (Table 11, appendix A.1): with the width of ALBERT-large, 1, 3, 6, 12, 24 and 48 layers reach 52.9, 71.2, 77.2, 81.5,
82.1 and 81.8 on average.  Each model starts from the previous one ("3 layers from 1" here), because the deepest do not
converge otherwise (footnote 5); the rows without "from" test that.  The tokens and the time of a row that starts from
another include those of the other.
Results: not run yet.
"""

from albert_jax.ablation import Ablation, Row

AVERAGES = {1: 52.9, 3: 71.2, 6: 77.2, 12: 81.5, 24: 82.1, 48: 81.8}
LARGE = {"model.hidden_size": 1024, "model.num_attention_heads": 16, "model.intermediate_size": 4096}


def layers(count: int) -> dict:
    return {"model.num_hidden_layers": count}


def paper(count: int) -> dict:
    return {"parameters (M)": 18, "average": AVERAGES[count]}


rows = {"1 layer": Row(layers(1), paper(1))}
before = "1 layer"
for count in (3, 6, 12, 24, 48):
    label = f"{count} layers from {before.split()[0]}"
    rows |= {label: Row(layers(count), paper(count), start=before), f"{count} layers": Row(layers(count))}
    before = label

ablation = Ablation(rows=rows, base={"paper": LARGE})
