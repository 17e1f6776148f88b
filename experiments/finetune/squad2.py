"""SQuAD 2.0: where in a paragraph is the answer to a question, if it has one?  Exact match and F1.

    albert-jax finetune experiments/finetune/squad2.py --init-from albert/albert-base-v2 --data.dir squad

Recipe: Table 14 of the paper.  Uses the head of the released code, which classifies whether there is an answer;
--data.qa-head plain compares with the score of the empty answer instead.  Expected (dev, F1/EM): base v2 82.1/79.3,
large v2 84.9/81.8, xlarge v2 87.9/84.1, xxlarge v2 89.8/86.9 (google-research/albert, README).
Not yet run with released weights; experiments/LOG.md lists the runs so far.
"""

from albert_jax.finetuning import AlbertConfig, FinetuneConfig, OptimConfig, QuestionAnsweringData, TrainConfig

config = FinetuneConfig(
    run_dir="runs/squad2",
    model=AlbertConfig(),
    data=QuestionAnsweringData(task="squad2", max_seq_length=512, qa_head="answer_class"),
    optim=OptimConfig(optimizer="adamw", learning_rate=3e-5, num_warmup_steps=814),
    train=TrainConfig(num_train_steps=8144, global_batch_size=48, eval_every=500, checkpoint_every=500),
)
