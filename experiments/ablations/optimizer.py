"""Which optimizer learns best at which batch size: LAMB as released, LAMB of optax, AdamW, or Muon?

    albert-jax ablate experiments/ablations/optimizer.py --scale tiny --seeds 5 --rows 'batch x 1' \
        --tune optim.learning_rate=5e-4,1e-3,2e-3,5e-3,1e-2

Not in the paper, which uses LAMB with batches of 4096.  All rows see the same number of tokens.  --tune selects each row's learning
rate; without it, rates grow with the square root of the batch size.  With batch x 1 at the scale `paper`, LAMB
uses the paper's rate and AdamW RoBERTa's.  All other rates are guesses, so use --tune.
Results: at `tiny` (batch x 1, five seeds, held-out masked-LM loss), Muon at 0.005 reaches 3.724 ± 0.093, AdamW at 0.004 4.087 ± 0.170 and
LAMB as released at 0.01 4.621 ± 0.454; one of five LAMB runs stays at the unigram loss of 5.294 (experiments/LOG.md).
"""

from albert_jax.ablation import Ablation, Row, at

BATCHES = {"tiny": 64, "small": 512, "paper": 4096}
RATES = {
    "lamb": {"tiny": 0.005, "small": 0.005, "paper": 0.00176},
    "optax_lamb": {"tiny": 0.005, "small": 0.005, "paper": 0.00176},
    "adamw": {"tiny": 0.001, "small": 0.001, "paper": 6e-4},
    "muon": {"tiny": 0.005, "small": 0.005, "paper": 0.002},
}
NAMES = {"lamb": "LAMB as released", "optax_lamb": "LAMB of optax", "adamw": "AdamW", "muon": "Muon"}


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
