"""Named entities in CoNLL columns, IOB1, IOB2 or IOBES: precision, recall and F1 of whole entities.

    albert-jax finetune experiments/finetune/ner.py --init-from albert/albert-base-v2 --data.dir conll2003

Files: *train*, *dev* or *valid* or *testa*, *testb* or *test*; else --data.train-file and so on.  The first column is
the word, the last the tag.  The paper has no such recipe; this is BERT's.
Not run here with released weights; see experiments/LOG.md for what was.
"""

from albert_jax.finetuning import AlbertConfig, FinetuneConfig, OptimConfig, TokenClassificationData, TrainConfig

config = FinetuneConfig(
    run_dir="runs/ner",
    model=AlbertConfig(),
    data=TokenClassificationData(task="ner", max_seq_length=256),
    optim=OptimConfig(optimizer="adamw", learning_rate=3e-5, num_warmup_steps=150),
    train=TrainConfig(num_train_steps=1500, global_batch_size=32, eval_every=150, checkpoint_every=150),
)
