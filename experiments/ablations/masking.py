"""What share of the pieces should be masked, and in which units?

    albert-jax ablate experiments/ablations/masking.py --scale tiny --seeds 5

Not in the paper, which masks 15 % in spans of up to three whole words and does not say what that gains.  All rows are evaluated
with that masking, whatever they train on.
Results: at `tiny` (five seeds, held-out masked-LM loss, against 15 % up to 3 words, 95 % confidence interval), single words -0.208
[-0.281, -0.135] nats, up to 2 words -0.137, 30 % -0.146, 40 % -0.111, 20 % -0.087; single pieces cannot be distinguished
(experiments/LOG.md).
"""

from albert_jax.ablation import Ablation, Row, at

PAPER = {"objective.masked_lm_prob": 0.15, "objective.ngram": 3, "objective.do_whole_word_mask": True}


def rate(percent: int) -> Row:
    predictions = {
        scale: -(-length * percent // 100) for scale, length in {"tiny": 32, "small": 32, "paper": 512}.items()
    }
    return Row({"objective.masked_lm_prob": percent / 100, "objective.max_predictions_per_seq": at(**predictions)})


ablation = Ablation(
    rows={
        "15 %, up to 3 words": Row({"objective.ngram": 3}),
        "15 %, up to 2 words": Row({"objective.ngram": 2}),
        "15 %, single words": Row({"objective.ngram": 1}),
        "15 %, single pieces": Row({"objective.ngram": 1, "objective.do_whole_word_mask": False}),
        "20 %": rate(20),
        "30 %": rate(30),
        "40 %": rate(40),
    },
    base={
        scale: PAPER | {"objective.max_predictions_per_seq": count} for scale, count in {"tiny": 5, "small": 5}.items()
    },
)
