"""RACE: which of four options answers a question on a passage?  Accuracy, middle and high.

    albert-jax finetune experiments/finetune/race.py --init-from albert/albert-base-v2 --data.dir RACE

Recipe: Table 14 of the paper, with the learning rate that google-research/albert recommends for v2 checkpoints.
Table 14 has 2e-5 and encoder dropout 0.1, with which v2 diverges.  --data.level middle or high uses a part of the
data. Expected (test): base v2 66.8, large v2 75.2, xlarge v2 80.7, xxlarge v2 86.8 (google-research/albert, README).
Not yet run with released weights; experiments/LOG.md lists the runs so far.
"""

from albert_jax.finetuning import AlbertConfig, FinetuneConfig, MultipleChoiceData, OptimConfig, TrainConfig

config = FinetuneConfig(
    run_dir="runs/race",
    model=AlbertConfig(),
    data=MultipleChoiceData(task="race", max_seq_length=512),
    optim=OptimConfig(optimizer="adamw", learning_rate=1e-5, num_warmup_steps=1000),
    train=TrainConfig(num_train_steps=12_000, global_batch_size=32, eval_every=1000, checkpoint_every=1000),
)
