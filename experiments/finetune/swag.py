"""SWAG: which of four endings continues a description of a scene?  Accuracy.

    albert-jax finetune experiments/finetune/swag.py --init-from albert/albert-base-v2 --data.dir swag

Files: train.csv and val.csv as published, or the .parquet files of the hub.  HellaSwag's .jsonl files can be named with
--data.train-file and --data.dev-file.  The paper has no recipe for SWAG; this is BERT's, three epochs.  BERT base has
81.6 on the dev set (BERT paper, Table 4).
Not yet run with released weights; experiments/LOG.md lists the runs so far.
"""

from albert_jax.finetuning import AlbertConfig, FinetuneConfig, MultipleChoiceData, OptimConfig, TrainConfig

config = FinetuneConfig(
    run_dir="runs/swag",
    model=AlbertConfig(),
    data=MultipleChoiceData(task="swag", max_seq_length=80),
    optim=OptimConfig(optimizer="adamw", learning_rate=2e-5, num_warmup_steps=690),
    train=TrainConfig(num_train_steps=6900, global_batch_size=32, eval_every=690, checkpoint_every=690),
)
