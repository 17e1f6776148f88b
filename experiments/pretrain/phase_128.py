"""The first of two phases, as in BERT (ALBERT has one): ALBERT-base, 90 % of the steps with 128 tokens.

    albert-jax plan experiments/pretrain/phase_128.py --mesh.data 8
    albert-jax pretrain experiments/pretrain/phase_128.py --data.source 'corpus/*.jsonl.gz' --data.vocab spiece.model

phase_512.py is the second phase; its docstring also shows how to train other sizes in two phases.
Estimate by albert-jax plan: 528 MFLOP per token, 59 G tokens, 3.1e19 FLOP, 2.7 h on 8 H100 at 40 % of 989 TFLOP/s.
15 % of 128 tokens are 19 predictions.  Not run here.
"""

from albert_jax.pretraining import AlbertConfig, DataConfig, ObjectiveConfig, OptimConfig, PretrainConfig, TrainConfig

config = PretrainConfig(
    run_dir="runs/phase_128",
    model=AlbertConfig(max_position_embeddings=128, dtype="bfloat16"),  # phase_512 repeats the positions
    data=DataConfig(source="corpus/*.jsonl.gz", vocab="spiece.model"),
    objective=ObjectiveConfig(max_seq_length=128, max_predictions_per_seq=20),
    optim=OptimConfig(optimizer="lamb", learning_rate=0.00176, num_warmup_steps=3125),
    train=TrainConfig(
        num_train_steps=112_500,
        global_batch_size=4096,
        gradient_accumulation=2,
        eval_every=5000,
        checkpoint_every=5000,
    ),
)
