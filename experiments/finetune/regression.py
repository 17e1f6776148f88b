"""Your own texts and numbers: .csv, .tsv (no quotes) or .jsonl.  Pearson and Spearman correlation.

    albert-jax finetune experiments/finetune/regression.py --init-from runs/base --data.train-file train.csv \
        --data.dev-file dev.csv

--data.text-column, --data.label-column and --data.text-pair-column name the columns (default: text, label, none).
Not yet run with released weights; experiments/LOG.md lists the runs so far.
"""

from albert_jax.finetuning import AlbertConfig, ClassificationData, FinetuneConfig, OptimConfig, TrainConfig

config = FinetuneConfig(
    run_dir="runs/regression",
    model=AlbertConfig(),
    data=ClassificationData(task="regression", max_seq_length=256),
    optim=OptimConfig(optimizer="adamw", learning_rate=2e-5, num_warmup_steps=100),
    train=TrainConfig(num_train_steps=1000, global_batch_size=32, eval_every=100, checkpoint_every=100),
)
