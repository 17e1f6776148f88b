"""CoLA: is a sentence English?  Matthews correlation.

    albert-jax finetune experiments/finetune/cola.py --init-from albert/albert-base-v2 --data.dir glue/CoLA

Recipe: the paper's Table 14.  Expected (dev): xxlarge 71.4 (paper, Table 9).
Not run here with released weights; see experiments/LOG.md for what was.
"""

from albert_jax.finetuning import AlbertConfig, ClassificationData, FinetuneConfig, OptimConfig, TrainConfig

config = FinetuneConfig(
    run_dir="runs/cola",
    model=AlbertConfig(),
    data=ClassificationData(task="cola", max_seq_length=512),
    optim=OptimConfig(optimizer="adamw", learning_rate=1e-5, num_warmup_steps=320),
    train=TrainConfig(num_train_steps=5336, global_batch_size=16, eval_every=200, checkpoint_every=200),
)
