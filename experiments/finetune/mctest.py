"""MCTest: which of four options answers a question on a children's story?  Accuracy, mc160 and mc500.

    albert-jax finetune experiments/finetune/mctest.py --init-from albert/albert-base-v2 --data.dir mctest

The paper has no recipe for MCTest; this is RACE's with fewer steps.  A model fine-tuned on RACE is a good start:
--init-from runs/race.
Not yet run with released weights; experiments/LOG.md lists the runs so far.
"""

from albert_jax.finetuning import AlbertConfig, FinetuneConfig, MultipleChoiceData, OptimConfig, TrainConfig

config = FinetuneConfig(
    run_dir="runs/mctest",
    model=AlbertConfig(),
    data=MultipleChoiceData(task="mctest", max_seq_length=512),
    optim=OptimConfig(optimizer="adamw", learning_rate=1e-5, num_warmup_steps=100),
    train=TrainConfig(num_train_steps=1000, global_batch_size=32, eval_every=100, checkpoint_every=100),
)
