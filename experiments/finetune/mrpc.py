"""MRPC: do two sentences have the same meaning?  Accuracy and F1.

    albert-jax finetune experiments/finetune/mrpc.py --init-from albert/albert-base-v2 --data.dir glue/MRPC

Recipe: Table 14 of the paper.  The paper starts from a model fine-tuned on MNLI: --init-from runs/mnli.  Expected
(dev): xxlarge 90.9 (paper, Table 9).
Not yet run with released weights; experiments/LOG.md lists the runs so far.
"""

from albert_jax.finetuning import AlbertConfig, ClassificationData, FinetuneConfig, OptimConfig, TrainConfig

config = FinetuneConfig(
    run_dir="runs/mrpc",
    model=AlbertConfig(),
    data=ClassificationData(task="mrpc", max_seq_length=512),
    optim=OptimConfig(optimizer="adamw", learning_rate=2e-5, num_warmup_steps=200),
    train=TrainConfig(num_train_steps=800, global_batch_size=32, eval_every=100, checkpoint_every=100),
)
