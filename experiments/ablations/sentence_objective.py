"""What does a model learn from sentence-order prediction (SOP), from next-sentence prediction (NSP), and from neither?

    albert-jax ablate experiments/ablations/sentence_objective.py --scale tiny --seeds 5

Paper (Table 5, section 4.6): a model trained on NSP solves NSP (90.5 %) but not SOP (52.0 %); one trained on SOP solves SOP
(86.5 %) and much of NSP (78.9 %), and is better on downstream tasks (80.1, against 79.2 with NSP and 79.0 with neither).  All
rows are evaluated on both.  The row "none" is evaluated with an untrained sentence head.  Masked-LM metrics use held-out pairs of the
kind that the row trains on.
Results: at `tiny` (five seeds), a model trained on NSP reaches 74.4 ± 0.9 % on NSP and 49.3 ± 1.2 % on SOP; one trained on
SOP 64.0 ± 1.2 % on SOP and 49.8 ± 1.3 % on NSP.  Without a sentence objective, masked-LM accuracy is highest
(31.8 ± 0.5 %; SOP 25.6 ± 0.7 %, NSP 23.2 ± 1.4 %), measured on each row's own pairs (experiments/LOG.md).
"""

from albert_jax.ablation import Ablation, Row

TINY = {
    "model.vocab_size": 2000,
    "model.embedding_size": 64,
    "model.hidden_size": 128,
    "model.num_hidden_layers": 2,
    "model.num_attention_heads": 4,
    "model.intermediate_size": 512,
    "model.initializer_range": 0.05,
    "model.scan_unroll": 2,
    "objective.max_seq_length": 64,
    "objective.max_predictions_per_seq": 20,
    "objective.do_whole_word_mask": True,
    "train.global_batch_size": 32,
}
"""The network and the sequences of experiments/pretrain/tiny.py: the scale's sequences of 32 tokens are too short for sentence order."""

SMALL = {"objective.max_seq_length": 128, "objective.max_predictions_per_seq": 39, "train.global_batch_size": 128}
"""As many tokens per step as the scale's 512 x 32.  32 tokens are too short for sentence order; with 128 a run may pause on the second plateau."""


def trained_on(kind: str, mlm: float, nsp: float, sop: float, average: float) -> Row:
    paper = {"parameters (M)": 12, "MLM": mlm, "SOP": sop, "NSP": nsp, "average": average}
    return Row({"objective.sentence_objective": kind}, paper)


ablation = Ablation(
    rows={
        "SOP": trained_on("sop", 54.0, 78.9, 86.5, 80.1),
        "NSP": trained_on("nsp", 54.5, 90.5, 52.0, 79.2),
        "none": trained_on("none", 54.9, 52.4, 53.3, 79.0),
    },
    base={"tiny": TINY, "small": SMALL},
)
