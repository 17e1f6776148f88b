"""MNLI: does one sentence follow from another, contradict it, or neither?  Accuracy, matched and mismatched.

    albert-jax finetune experiments/finetune/mnli.py --init-from albert/albert-base-v2 --data.dir glue/MNLI

Recipe: Table 14 of the paper.  If diagnostic.tsv is in the folder, predictions for it are written to AX.tsv.
Expected (dev): base v2 84.6, large v2 86.5, xlarge v2 87.9, xxlarge v2 90.6 (google-research/albert, README).
Not yet run with released weights; experiments/LOG.md lists the runs so far.
"""

from albert_jax.finetuning import AlbertConfig, ClassificationData, FinetuneConfig, OptimConfig, TrainConfig

config = FinetuneConfig(
    run_dir="runs/mnli",
    model=AlbertConfig(),
    data=ClassificationData(task="mnli", max_seq_length=512),
    optim=OptimConfig(optimizer="adamw", learning_rate=3e-5, num_warmup_steps=1000),
    train=TrainConfig(num_train_steps=10_000, global_batch_size=128, eval_every=500, checkpoint_every=500),
)
