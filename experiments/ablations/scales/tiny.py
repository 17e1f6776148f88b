"""The scale `tiny` of the ablations: two CPU cores, minutes per row, on the documentation that ships with Python.

    albert-jax ablate experiments/ablations/sharing.py --scale tiny --seeds 3
    albert-jax pretrain experiments/ablations/scales/tiny.py        trains the scale without a table

It has twelve layers, because 2, 3, 4 and 6 groups divide them, and is small otherwise.  After its 500 steps (a minute and a
half) these models are just leaving the unigram plateau; --train.num-train-steps 2000 separates rows better.
"""

from albert_jax.data.sources import DataConfig
from albert_jax.model.albert import AlbertConfig
from albert_jax.pretraining.objective import ObjectiveConfig
from albert_jax.pretraining.run import PretrainConfig
from albert_jax.training.loop import TrainConfig
from albert_jax.training.optim import OptimConfig

config = PretrainConfig(
    run_dir="runs/tiny",
    model=AlbertConfig(
        vocab_size=1000,
        embedding_size=32,
        hidden_size=64,
        num_hidden_layers=12,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=64,
        scan_unroll=12,
    ),
    data=DataConfig(source="python-docs", eval_fraction=0.1),
    objective=ObjectiveConfig(max_seq_length=64, max_predictions_per_seq=10),
    optim=OptimConfig(optimizer="adamw", learning_rate=0.002, num_warmup_steps=50),
    train=TrainConfig(num_train_steps=500, global_batch_size=32, log_every=50, eval_every=100, checkpoint_every=250),
    max_eval_steps=20,
)
