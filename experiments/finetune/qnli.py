"""QNLI: does a sentence answer a question?  Accuracy.

    albert-jax finetune experiments/finetune/qnli.py --init-from albert/albert-base-v2 --data.dir glue/QNLI

Recipe: Table 14 of the paper.  Expected (dev): xxlarge 95.3 (paper, Table 9).
Not yet run with released weights; experiments/LOG.md lists the runs so far.
"""

from albert_jax.finetuning import AlbertConfig, ClassificationData, FinetuneConfig, OptimConfig, TrainConfig

config = FinetuneConfig(
    run_dir="runs/qnli",
    model=AlbertConfig(),
    data=ClassificationData(task="qnli", max_seq_length=512),
    optim=OptimConfig(optimizer="adamw", learning_rate=1e-5, num_warmup_steps=1986),
    train=TrainConfig(num_train_steps=33_112, global_batch_size=32, eval_every=1000, checkpoint_every=1000),
)
