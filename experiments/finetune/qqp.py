"""QQP: do two questions ask the same?  Accuracy and F1.

    albert-jax finetune experiments/finetune/qqp.py --init-from albert/albert-base-v2 --data.dir glue/QQP \
        --data.malformed skip

Recipe: the paper's Table 14.  Some lines of its files are broken, hence the last option.  Table 14 has dropout 0.1 in
the encoder, which is v1's; v2 checkpoints learn without.  Expected (dev): xxlarge 92.2 (paper, Table 9).
Not run here with released weights; see experiments/LOG.md for what was.
"""

from albert_jax.finetuning import AlbertConfig, ClassificationData, FinetuneConfig, OptimConfig, TrainConfig

config = FinetuneConfig(
    run_dir="runs/qqp",
    model=AlbertConfig(),
    data=ClassificationData(task="qqp", max_seq_length=512),
    optim=OptimConfig(optimizer="adamw", learning_rate=5e-5, num_warmup_steps=1000),
    train=TrainConfig(num_train_steps=14_000, global_batch_size=128, eval_every=1000, checkpoint_every=1000),
)
