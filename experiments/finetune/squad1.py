"""SQuAD 1.1: where in a paragraph is the answer to a question?  Exact match and F1.

    albert-jax finetune experiments/finetune/squad1.py --init-from albert/albert-base-v2 --data.dir squad

Recipe: Table 14 of the paper.  For other files in SQuAD's format, use --data.train-file and --data.dev-file.
Expected (dev, F1/EM): base v2 90.2/83.2, large v2 91.8/85.2, xlarge v2 92.9/86.4, xxlarge v2 94.6/89.1
(google-research/albert, README).
Not yet run with released weights; experiments/LOG.md lists the runs so far.
"""

from albert_jax.finetuning import AlbertConfig, FinetuneConfig, OptimConfig, QuestionAnsweringData, TrainConfig

config = FinetuneConfig(
    run_dir="runs/squad1",
    model=AlbertConfig(),
    data=QuestionAnsweringData(task="squad1", max_seq_length=384),
    optim=OptimConfig(optimizer="adamw", learning_rate=5e-5, num_warmup_steps=365),
    train=TrainConfig(num_train_steps=3649, global_batch_size=48, eval_every=500, checkpoint_every=500),
)
