"""CommonsenseQA: which of five options answers a question of common sense?  Accuracy.

    albert-jax finetune experiments/finetune/commonsense_qa.py --init-from albert/albert-base-v2 --data.dir commonsense_qa

Files: train_rand_split.jsonl, dev_rand_split.jsonl and test_rand_split_no_answers.jsonl as published, or the .parquet
files of the hub.  The input is `[CLS] question [SEP] option [SEP]`; `predict` takes the question as passage and an empty
question.  The paper has no recipe for CommonsenseQA; this is about BERT's, five epochs.
Not yet run with released weights; experiments/LOG.md lists the runs so far.
"""

from albert_jax.finetuning import AlbertConfig, FinetuneConfig, MultipleChoiceData, OptimConfig, TrainConfig

config = FinetuneConfig(
    run_dir="runs/commonsense_qa",
    model=AlbertConfig(),
    data=MultipleChoiceData(task="commonsense_qa", max_seq_length=80),
    optim=OptimConfig(optimizer="adamw", learning_rate=1e-5, num_warmup_steps=300),
    train=TrainConfig(num_train_steps=3000, global_batch_size=16, eval_every=300, checkpoint_every=300),
)
