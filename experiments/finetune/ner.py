"""Named entities in CoNLL columns, in any usual scheme: precision, recall and F1 of entities.

    albert-jax finetune experiments/finetune/ner.py --init-from albert/albert-base-v2 --data.dir conll2003

Files: *train*; *dev*, *valid* or *testa*; *testb* or *test*; or name them with --data.train-file and so on.  The word
is in the first column and the tag in the last; numbers of words are skipped.  --data.word-column and --data.tag-column
name other columns: `--data.tag-column 3` reads the outer entities of GermEval.  .json, .jsonl and .parquet files have a
sentence per record.  The paper has no recipe for NER; this is BERT's.
Not yet run with released weights; experiments/LOG.md lists the runs so far.
"""

from albert_jax.finetuning import AlbertConfig, FinetuneConfig, OptimConfig, TokenClassificationData, TrainConfig

config = FinetuneConfig(
    run_dir="runs/ner",
    model=AlbertConfig(),
    data=TokenClassificationData(task="ner", max_seq_length=256),
    optim=OptimConfig(optimizer="adamw", learning_rate=3e-5, num_warmup_steps=150),
    train=TrainConfig(num_train_steps=1500, global_batch_size=32, eval_every=150, checkpoint_every=150),
)
