"""RTE: does one text follow from another?  Accuracy.

    albert-jax finetune experiments/finetune/rte.py --init-from albert/albert-base-v2 --data.dir glue/RTE

Recipe: Table 14 of the paper.  The paper starts from a model fine-tuned on MNLI: --init-from runs/mnli.  Table 14 has
encoder dropout 0.1, for v1 checkpoints; v2 checkpoints are fine-tuned without.  Expected (dev): xxlarge 89.2 (paper,
Table 9).
Not yet run with released weights; experiments/LOG.md lists the runs so far.
"""

from albert_jax.finetuning import AlbertConfig, ClassificationData, FinetuneConfig, OptimConfig, TrainConfig

config = FinetuneConfig(
    run_dir="runs/rte",
    model=AlbertConfig(),
    data=ClassificationData(task="rte", max_seq_length=512),
    optim=OptimConfig(optimizer="adamw", learning_rate=3e-5, num_warmup_steps=200),
    train=TrainConfig(num_train_steps=800, global_batch_size=32, eval_every=100, checkpoint_every=100),
)
