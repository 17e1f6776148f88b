"""The scale `small` of the ablations: one accelerator, minutes per row, on tens of millions of tokens of your own text.

    albert-jax pretrain experiments/ablations/scales/small.py      trains the scale without a table
    albert-jax ablate experiments/ablations/sharing.py --scale small --seeds 3 \
        --data.source 'corpus/*.jsonl.gz' --data.vocab spiece.model

A row with all layers shared processes 0.16 G tokens (5,000 steps of 32,768) in 40 PFLOP, an estimated 6 minutes at
105 TFLOP/s.  Not run here.
"""

from albert_jax.data.sources import DataConfig
from albert_jax.model.albert import AlbertConfig
from albert_jax.pretraining.objective import ObjectiveConfig
from albert_jax.pretraining.run import PretrainConfig
from albert_jax.training.loop import TrainConfig
from albert_jax.training.optim import OptimConfig

config = PretrainConfig(
    run_dir="runs/small",
    model=AlbertConfig(
        hidden_size=512,
        num_hidden_layers=12,
        num_attention_heads=8,
        intermediate_size=2048,
        dtype="bfloat16",
    ),
    data=DataConfig(source="corpus/*.jsonl.gz", vocab="spiece.model"),
    objective=ObjectiveConfig(max_seq_length=128, max_predictions_per_seq=20),
    optim=OptimConfig(learning_rate=4.4e-4, num_warmup_steps=500),
    train=TrainConfig(
        num_train_steps=5000, global_batch_size=256, log_every=100, eval_every=500, checkpoint_every=1000
    ),
)
