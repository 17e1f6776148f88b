"""Can a network that is trained with random numbers of layers run with fewer or more layers than it was trained for?

    albert-jax ablate experiments/ablations/elastic_depth.py --scale tiny --seeds 5 --tune optim.learning_rate=2e-3,5e-3,1e-2

Not in the paper.  All rows share all layers and are evaluated at 0.5, 1, 2 and 4 times their depth.  The mean number of layers in
training is the same, or nearly so for `poisson`.
Results: tiny, 3 seeds, tuned rates (LOG 2026-11-28).  Held-out MLM loss at 2, 4, 8 and 16 layers:
fixed 4.47, 3.67, 5.06, 6.96; uniform 3.84, 3.83, 3.90, 4.19; poisson 3.79, 3.77, 3.87, 4.33.
"""

from albert_jax.ablation import Ablation, Row

ablation = Ablation(
    rows={
        "fixed": Row({"model.depth_sampling": "fixed"}),
        "uniform": Row({"model.depth_sampling": "uniform"}),
        "poisson": Row({"model.depth_sampling": "poisson"}),
    },
    base={scale: {"eval_depths": "0.5,1,2,4"} for scale in ("tiny", "small", "paper")},
)
