"""Which sentence objective teaches what: none, next-sentence prediction, or sentence order?  Each is scored on all of them.

    albert-jax ablate experiments/ablations/sentence_objective.py --scale tiny --seeds 3

Paper (Table 5, section 4.6): a model trained on NSP solves NSP (90.5 %) and no SOP (52.0 %); one trained on SOP solves SOP
(86.5 %) and much of NSP (78.9 %), and is better downstream by 1.1 and 0.9 points.  The row without one scores both with a
sentence head that was never trained.  The masked-LM score of a row is of pairs as it trains on.
Ours: at `tiny`, a coin on both in all rows (experiments/LOG.md).
"""

from albert_jax.ablation import Ablation, Row


def trained_on(kind: str, mlm: float, nsp: float, sop: float, average: float) -> Row:
    paper = {"parameters (M)": 12, "MLM": mlm, "SOP": sop, "NSP": nsp, "average": average}
    return Row({"objective.sentence_objective": kind}, paper)


ablation = Ablation(
    rows={
        "SOP": trained_on("sop", 54.0, 78.9, 86.5, 80.1),
        "NSP": trained_on("nsp", 54.5, 90.5, 52.0, 79.2),
        "none": trained_on("none", 54.9, 52.4, 53.3, 79.0),
    },
)
