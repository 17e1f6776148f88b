"""ARC: which of the options answers a science question from school?  Accuracy, easy or challenge.

    albert-jax finetune experiments/finetune/arc.py --init-from albert/albert-base-v2 \
        --data.dir ARC-V1-Feb2018-2/ARC-Challenge

Files: *Train.jsonl, *Dev.jsonl and *Test.jsonl as published, or the .parquet files of the hub.  OpenBookQA has the same
format.  The input is `[CLS] question [SEP] option [SEP]`; `predict` takes the question as passage and an empty question.
The paper has no recipe for ARC; this is RACE's with fewer steps.  A model fine-tuned on RACE is a good start:
--init-from runs/race.
Not yet run with released weights; experiments/LOG.md lists the runs so far.
"""

from albert_jax.finetuning import AlbertConfig, FinetuneConfig, MultipleChoiceData, OptimConfig, TrainConfig

config = FinetuneConfig(
    run_dir="runs/arc",
    model=AlbertConfig(),
    data=MultipleChoiceData(task="arc", max_seq_length=128),
    optim=OptimConfig(optimizer="adamw", learning_rate=1e-5, num_warmup_steps=80),
    train=TrainConfig(num_train_steps=800, global_batch_size=16, eval_every=80, checkpoint_every=80),
)
