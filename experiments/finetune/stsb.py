"""STS-B: how similar are two sentences, from 0 to 5?  Pearson and Spearman correlation.

    albert-jax finetune experiments/finetune/stsb.py --init-from albert/albert-base-v2 --data.dir glue/STS-B

Recipe: Table 14 of the paper.  The paper starts from a model fine-tuned on MNLI: --init-from runs/mnli.  Expected
(dev): xxlarge 93.0 (paper, Table 9).
Not yet run with released weights; experiments/LOG.md lists the runs so far.
"""

from albert_jax.finetuning import AlbertConfig, ClassificationData, FinetuneConfig, OptimConfig, TrainConfig

config = FinetuneConfig(
    run_dir="runs/stsb",
    model=AlbertConfig(),
    data=ClassificationData(task="stsb", max_seq_length=512),
    optim=OptimConfig(optimizer="adamw", learning_rate=2e-5, num_warmup_steps=214),
    train=TrainConfig(num_train_steps=3598, global_batch_size=16, eval_every=200, checkpoint_every=200),
)
