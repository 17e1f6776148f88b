"""ALBERT-base as in the paper (arXiv 1909.11942, section 4.1), on your own text.

    albert-jax pretrain experiments/pretrain/base.py --data.source 'corpus/*.jsonl.gz' --data.vocab spiece.model

Paper: LAMB at 0.00176, batch size 4096, 125,000 steps, sequences of 512 (10 % are shorter), n-gram masking up to 3; Wikipedia and
BookCorpus, 16 GB; 64 to 512 TPU v3.  That is 262 G tokens and 1.5e20 FLOP: 4.3 days on one GPU at 400 TFLOP/s (estimate).
15 % of 512 tokens are 77 predictions; the 20 of the released command would mask 3.9 %.
For a smaller batch, scale the learning rate: 0.00176 x sqrt(batch size / 4096).  For a batch that does not fit, use
--train.gradient-accumulation: 4 on 8 H100, 41 GB per device (estimate; albert-jax plan shows what fits other devices).

v1 as released has dropout.  v2 has none, 10 M steps and more data (repository; its warmup was not published):
    albert-jax pretrain experiments/pretrain/base.py --model.hidden-dropout-prob 0.1 --model.attention-probs-dropout-prob 0.1
    albert-jax pretrain experiments/pretrain/base.py --train.num-train-steps 10000000

Expected (paper, Table 5, dev): masked-LM accuracy 54.0 %, SOP accuracy 86.5 %.  Not run here.
"""

from albert_jax.pretraining import AlbertConfig, DataConfig, ObjectiveConfig, OptimConfig, PretrainConfig, TrainConfig

config = PretrainConfig(
    run_dir="runs/base",
    model=AlbertConfig(dtype="bfloat16"),
    data=DataConfig(source="corpus/*.jsonl.gz", vocab="spiece.model"),
    objective=ObjectiveConfig(max_seq_length=512, max_predictions_per_seq=77),
    optim=OptimConfig(optimizer="lamb", learning_rate=0.00176, num_warmup_steps=3125),
    train=TrainConfig(num_train_steps=125_000, global_batch_size=4096, eval_every=5000, checkpoint_every=5000),
)
