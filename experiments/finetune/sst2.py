"""SST-2: is a sentence of a film review positive or negative?  Accuracy.

    albert-jax finetune experiments/finetune/sst2.py --init-from albert/albert-base-v2 --data.dir glue/SST-2

Recipe: Table 14 of the paper.  Expected (dev): base v2 92.9, large v2 94.9, xlarge v2 95.4, xxlarge v2 96.8
(google-research/albert, README).
Not yet run with released weights; experiments/LOG.md lists the runs so far.
"""

from albert_jax.finetuning import AlbertConfig, ClassificationData, FinetuneConfig, OptimConfig, TrainConfig

config = FinetuneConfig(
    run_dir="runs/sst2",
    model=AlbertConfig(),
    data=ClassificationData(task="sst2", max_seq_length=512),
    optim=OptimConfig(optimizer="adamw", learning_rate=1e-5, num_warmup_steps=1256),
    train=TrainConfig(num_train_steps=20_935, global_batch_size=32, eval_every=500, checkpoint_every=500),
)
