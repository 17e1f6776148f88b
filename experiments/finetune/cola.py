"""CoLA: is a sentence grammatical English?  Matthews correlation.

    albert-jax finetune experiments/finetune/cola.py --init-from albert/albert-base-v2 --data.dir glue/CoLA

Recipe: Table 14 of the paper.  Expected (dev): xxlarge 71.4 (paper, Table 9).
Not yet run with released weights; experiments/LOG.md lists the runs so far.
"""

from albert_jax.finetuning import AlbertConfig, ClassificationData, FinetuneConfig, OptimConfig, TrainConfig

config = FinetuneConfig(
    run_dir="runs/cola",
    model=AlbertConfig(),
    data=ClassificationData(task="cola", max_seq_length=512),
    optim=OptimConfig(optimizer="adamw", learning_rate=1e-5, num_warmup_steps=320),
    train=TrainConfig(num_train_steps=5336, global_batch_size=16, eval_every=200, checkpoint_every=200),
)
