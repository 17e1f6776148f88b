"""RTE: does one text follow from another?  Accuracy.

    albert-jax finetune experiments/finetune/rte.py --init-from albert/albert-base-v2 --data.dir glue/RTE

Recipe: the paper's Table 14.  The paper starts from a model fine-tuned on MNLI: --init-from runs/mnli.  Table 14 has dropout
0.1 in the encoder, which is v1's; v2 checkpoints learn without.  Expected (dev): xxlarge 89.2 (paper, Table 9).
Not run here with released weights; see experiments/LOG.md for what was.
"""

from albert_jax.finetuning import AlbertConfig, ClassificationData, FinetuneConfig, OptimConfig, TrainConfig

config = FinetuneConfig(
    run_dir="runs/rte",
    model=AlbertConfig(),
    data=ClassificationData(task="rte", max_seq_length=512),
    optim=OptimConfig(optimizer="adamw", learning_rate=3e-5, num_warmup_steps=200),
    train=TrainConfig(num_train_steps=800, global_batch_size=32, eval_every=100, checkpoint_every=100),
)
