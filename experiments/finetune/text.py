"""Your own texts and classes: .csv, .tsv (no quotes), .jsonl, .json or .parquet.  Accuracy and macro F1.

    albert-jax finetune experiments/finetune/text.py --init-from runs/base --data.train-file train.csv \
        --data.dev-file dev.csv

--data.text-column, --data.label-column and --data.text-pair-column name the columns (default: text, label, none).
The classes are those of the training file.  --data.encoding cp1252 reads files that are not in UTF-8, --data.malformed skip
skips and counts lines that cannot be read.
Not yet run with released weights; experiments/LOG.md lists the runs so far.
"""

from albert_jax.finetuning import AlbertConfig, ClassificationData, FinetuneConfig, OptimConfig, TrainConfig

config = FinetuneConfig(
    run_dir="runs/text",
    model=AlbertConfig(),
    data=ClassificationData(task="text", max_seq_length=256),
    optim=OptimConfig(optimizer="adamw", learning_rate=2e-5, num_warmup_steps=100),
    train=TrainConfig(num_train_steps=1000, global_batch_size=32, eval_every=100, checkpoint_every=100),
)
