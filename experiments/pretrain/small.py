"""A small ALBERT on a few tens of millions of tokens: one accelerator, half an hour.

    albert-jax pretrain experiments/pretrain/small.py --data.source 'corpus/*.jsonl.gz' --data.vocab spiece.model

Size: 7.5 M parameters, 240 MFLOP per token.  20,000 steps of 32,768 positions are 0.66 G tokens (about 25 epochs of 26.7 M tokens)
and 0.16 EFLOP: 25 minutes at 105 TFLOP/s (estimate; 13 % of an H100's rate in a large matrix product).
Learning rate: the paper's 0.00176 at batch size 4096, scaled by sqrt(256 / 4096).
Measured: 200 steps on a CPU (experiments/LOG.md).
"""

from albert_jax.pretraining import AlbertConfig, DataConfig, ObjectiveConfig, OptimConfig, PretrainConfig, TrainConfig

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
    optim=OptimConfig(learning_rate=4.4e-4, num_warmup_steps=1000),
    train=TrainConfig(
        num_train_steps=20_000,
        global_batch_size=256,
        log_every=100,
        eval_every=2000,
        checkpoint_every=2000,
    ),
)
