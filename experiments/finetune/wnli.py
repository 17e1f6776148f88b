"""WNLI: what does a pronoun refer to?  Accuracy.

    albert-jax finetune experiments/finetune/wnli.py --init-from albert/albert-base-v2 --data.dir glue/WNLI

Recipe: Table 14 of the paper.  Few models beat the most frequent class.  Table 14 has encoder dropout 0.1, for v1
checkpoints; v2 checkpoints are fine-tuned without.  The paper reports only an ensemble on the test set (91.8).
Not yet run with released weights; experiments/LOG.md lists the runs so far.
"""

from albert_jax.finetuning import AlbertConfig, ClassificationData, FinetuneConfig, OptimConfig, TrainConfig

config = FinetuneConfig(
    run_dir="runs/wnli",
    model=AlbertConfig(),
    data=ClassificationData(task="wnli", max_seq_length=512),
    optim=OptimConfig(optimizer="adamw", learning_rate=2e-5, num_warmup_steps=250),
    train=TrainConfig(num_train_steps=2000, global_batch_size=16, eval_every=100, checkpoint_every=100),
)
