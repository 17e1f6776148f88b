"""Does dropout help or hurt masked language modeling?

    albert-jax ablate experiments/ablations/dropout.py --scale tiny --seeds 5

Paper (Table 8, section 4.8): after a million steps, the largest model is better without dropout (90.7 against 90.4), because
it does not overfit.  The rows with only attention or only hidden dropout are not in the paper.
Results: not run yet.
"""

from albert_jax.ablation import Ablation, Row

HIDDEN, ATTENTION = "model.hidden_dropout_prob", "model.attention_probs_dropout_prob"

ablation = Ablation(
    rows={
        "without": Row({HIDDEN: 0.0, ATTENTION: 0.0}, {"parameters (M)": 235, "average": 90.7}),
        "with 0.1": Row({HIDDEN: 0.1, ATTENTION: 0.1}, {"parameters (M)": 235, "average": 90.4}),
        "hidden 0.1 alone": Row({HIDDEN: 0.1, ATTENTION: 0.0}),
        "attention 0.1 alone": Row({HIDDEN: 0.0, ATTENTION: 0.1}),
    },
    base={
        "paper": {  # xxlarge
            "model.hidden_size": 4096,
            "model.num_attention_heads": 64,
            "model.intermediate_size": 16384,
            "train.num_train_steps": 1_000_000,
        }
    },
)
