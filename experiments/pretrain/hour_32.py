"""The first of two phases on two CPU cores, one hour together: 32 tokens, until attention looks at neighbors.

    albert-jax pretrain experiments/pretrain/hour_32.py --data.source 'corpus/*.jsonl.gz'

hour_128.py is the second phase.  With 128 tokens from the start, the run pauses on the second plateau
(docs/when-albert-does-not-learn.md); with 32, it left the plateau after 550 steps.  32 tokens are too few for sentence order.
"""

from albert_jax.pretraining import AlbertConfig, DataConfig, ObjectiveConfig, OptimConfig, PretrainConfig, TrainConfig

config = PretrainConfig(
    run_dir="runs/hour_32",
    model=AlbertConfig(
        vocab_size=8000,
        embedding_size=128,
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=1024,
        max_position_embeddings=32,  # hour_128 repeats them
        initializer_range=0.035,  # 0.02 x sqrt(768 / H)
        scan_unroll=4,
        remat="none",
        dtype="bfloat16",
    ),
    data=DataConfig(source="corpus/*.jsonl.gz", eval_fraction=0.01),
    objective=ObjectiveConfig(max_seq_length=32, max_predictions_per_seq=10, masked_lm_prob=0.3, ngram=1),
    optim=OptimConfig(optimizer="muon", learning_rate=0.005, schedule="constant", num_warmup_steps=200),
    train=TrainConfig(num_train_steps=1500, global_batch_size=128, log_every=50, eval_every=500, checkpoint_every=500),
)
