"""Which optimizer learns best at which batch size: LAMB as released, LAMB of optax, or AdamW?

    albert-jax ablate experiments/ablations/optimizer.py --scale tiny --seeds 3

Not in the paper, which uses LAMB with batches of 4096.  All rows see the same number of tokens, and learning rates grow with the
square root of the batch size.  At the scale's own batch size, the rates are: at `paper`, the paper's for LAMB and RoBERTa's for
AdamW; at `small`, the same scaled down; at `tiny`, the best of two or three that were tried (experiments/LOG.md).
Results: not run yet.
"""

from albert_jax.ablation import Ablation, Row, at

BATCHES = {"tiny": 32, "small": 256, "paper": 4096}
RATES = {
    "lamb": {"tiny": 0.01, "small": 4.4e-4, "paper": 0.00176},
    "optax_lamb": {"tiny": 0.01, "small": 4.4e-4, "paper": 0.00176},
    "adamw": {"tiny": 0.002, "small": 3e-4, "paper": 6e-4},
}
NAMES = {"lamb": "LAMB as released", "optax_lamb": "LAMB of optax", "adamw": "AdamW"}


def at_batch(optimizer: str, factor: float) -> Row:
    return Row(
        {
            "optim.optimizer": optimizer,
            "optim.learning_rate": at(**{scale: rate * factor**0.5 for scale, rate in RATES[optimizer].items()}),
            "train.global_batch_size": at(**{scale: int(batch * factor) for scale, batch in BATCHES.items()}),
        }
    )


ablation = Ablation(
    rows={
        f"{NAMES[optimizer]}, batch x {factor:g}": at_batch(optimizer, factor)
        for optimizer in RATES
        for factor in (1, 0.25, 4)
    },
)
