"""A small ALBERT on a few tens of millions of tokens: one accelerator, ten minutes.

    albert-jax pretrain experiments/pretrain/small.py --data.source 'corpus/*.jsonl.gz' --data.vocab spiece.model

Size: 7.5 M parameters, 240 MFLOP per token.  8,000 steps of 32,768 positions are 0.26 G tokens (about 10 epochs of 26.7 M tokens)
and 63 PFLOP: 10 minutes at 105 TFLOP/s (estimate; 13 % of an H100's rate in a large matrix product).
Recipe: that of tiny.py with the paper's masking.  Not run here; if it stays on a plateau, see docs/when-albert-does-not-learn.md.  A first
phase with 32 tokens may avoid the second plateau (not run at this size):

    albert-jax pretrain experiments/pretrain/small.py --data.source 'corpus/*.jsonl.gz' --data.vocab spiece.model \
        --run-dir runs/small-32 --model.max-position-embeddings 32 --objective.max-seq-length 32 \
        --objective.max-predictions-per-seq 5 --train.global-batch-size 1024 --train.num-train-steps 1000 --optim.schedule constant
    albert-jax pretrain experiments/pretrain/small.py --data.source 'corpus/*.jsonl.gz' --data.vocab spiece.model \
        --init-from runs/small-32 --train.seed 1
"""

from albert_jax.pretraining import AlbertConfig, DataConfig, ObjectiveConfig, OptimConfig, PretrainConfig, TrainConfig

config = PretrainConfig(
    run_dir="runs/small",
    model=AlbertConfig(
        hidden_size=512,
        num_hidden_layers=12,
        num_attention_heads=8,
        intermediate_size=2048,
        initializer_range=0.025,  # 0.02 x sqrt(768 / H)
        dtype="bfloat16",
    ),
    data=DataConfig(source="corpus/*.jsonl.gz", vocab="spiece.model"),
    objective=ObjectiveConfig(max_seq_length=128, max_predictions_per_seq=20),
    optim=OptimConfig(optimizer="muon", learning_rate=0.005, num_warmup_steps=500),
    train=TrainConfig(
        num_train_steps=8000,
        global_batch_size=256,
        log_every=100,
        eval_every=1000,
        checkpoint_every=1000,
    ),
)
