"""QQP: do two questions ask the same thing?  Accuracy and F1.

    albert-jax finetune experiments/finetune/qqp.py --init-from albert/albert-base-v2 --data.dir glue/QQP \
        --data.malformed skip

Recipe: Table 14 of the paper.  Some lines of the QQP files are malformed and are skipped.  Table 14 has encoder
dropout 0.1, for v1 checkpoints; v2 checkpoints are fine-tuned without.  Expected (dev): xxlarge 92.2 (paper, Table
9).
Not yet run with released weights; experiments/LOG.md lists the runs so far.
"""

from albert_jax.finetuning import AlbertConfig, ClassificationData, FinetuneConfig, OptimConfig, TrainConfig

config = FinetuneConfig(
    run_dir="runs/qqp",
    model=AlbertConfig(),
    data=ClassificationData(task="qqp", max_seq_length=512),
    optim=OptimConfig(optimizer="adamw", learning_rate=5e-5, num_warmup_steps=1000),
    train=TrainConfig(num_train_steps=14_000, global_batch_size=128, eval_every=1000, checkpoint_every=1000),
)
