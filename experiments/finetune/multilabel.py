"""Your own texts with any number of labels each: .jsonl or .parquet with lists, or cells such as "sport,politics".  Micro and macro F1.

    albert-jax finetune experiments/finetune/multilabel.py --init-from runs/base --data.train-file train.jsonl \
        --data.dev-file dev.jsonl --data.label-column labels

For each label the model predicts yes or no (sigmoid, threshold 0.5).  --data.label-separator separates the labels of a cell (default: a comma).
Not yet run with released weights; experiments/LOG.md lists the runs so far.
"""

from albert_jax.finetuning import AlbertConfig, FinetuneConfig, MultiLabelData, OptimConfig, TrainConfig

config = FinetuneConfig(
    run_dir="runs/multilabel",
    model=AlbertConfig(),
    data=MultiLabelData(task="multilabel", max_seq_length=256),
    optim=OptimConfig(optimizer="adamw", learning_rate=2e-5, num_warmup_steps=100),
    train=TrainConfig(num_train_steps=1000, global_batch_size=32, eval_every=100, checkpoint_every=100),
)
