"""The scale `paper` of the ablations: the setup of the paper's tables (section 4.1), ALBERT-base with 125,000 steps.

    albert-jax pretrain experiments/ablations/scales/paper.py      trains the scale without a table
    albert-jax ablate experiments/ablations/sharing.py --scale paper --dry-run

A row of base processes 262 G tokens in 1.5e20 FLOP, an estimated 4.3 days on one GPU at 400 TFLOP/s.  Not run here.
"""

from albert_jax.data.sources import DataConfig
from albert_jax.model.albert import AlbertConfig
from albert_jax.pretraining.objective import ObjectiveConfig
from albert_jax.pretraining.run import PretrainConfig
from albert_jax.training.loop import TrainConfig
from albert_jax.training.optim import OptimConfig

config = PretrainConfig(
    run_dir="runs/scale-paper",
    model=AlbertConfig(dtype="bfloat16"),
    data=DataConfig(source="corpus/*.jsonl.gz", vocab="spiece.model"),
    objective=ObjectiveConfig(max_seq_length=512, max_predictions_per_seq=77),
    optim=OptimConfig(optimizer="lamb", learning_rate=0.00176, num_warmup_steps=3125),
    train=TrainConfig(num_train_steps=125_000, global_batch_size=4096, eval_every=5000, checkpoint_every=5000),
)
