"""The second of two phases: ALBERT-base, the last 10 % of the steps with 512 tokens, from the parameters of phase_128.py.

    albert-jax pretrain experiments/pretrain/phase_128.py --data.source 'corpus/*.jsonl.gz' --data.vocab spiece.model
    albert-jax pretrain experiments/pretrain/phase_512.py --data.source 'corpus/*.jsonl.gz' --data.vocab spiece.model

Only the parameters come from the first phase; its 128 position embeddings are repeated to 512, as in Longformer (arXiv 2004.05150).
LAMB's moments start at zero and the learning rate is warmed up again, as in You et al. (arXiv 1904.00962).  BERT uses one schedule for
both phases: its second phase starts at a tenth of the peak learning rate.
The seed differs from the first phase's; otherwise this phase would begin with the same order of data.
Estimate by albert-jax plan: 570 MFLOP per token, 26 G tokens, 1.5e19 FLOP, 1.3 h on 8 H100 at 40 %; both phases together are 31 %
of base.py's FLOPs.

Any size:
    albert-jax pretrain experiments/pretrain/xxlarge.py --run-dir runs/xxlarge-128 --train.num-train-steps 112500 \
        --model.max-position-embeddings 128 --objective.max-seq-length 128 --objective.max-predictions-per-seq 20
    albert-jax pretrain experiments/pretrain/xxlarge.py --run-dir runs/xxlarge-512 --train.num-train-steps 12500 \
        --init-from runs/xxlarge-128 --optim.num-warmup-steps 1250 --train.seed 1
Not run here.
"""

from albert_jax.pretraining import AlbertConfig, DataConfig, ObjectiveConfig, OptimConfig, PretrainConfig, TrainConfig

config = PretrainConfig(
    run_dir="runs/phase_512",
    model=AlbertConfig(dtype="bfloat16"),
    data=DataConfig(source="corpus/*.jsonl.gz", vocab="spiece.model"),
    objective=ObjectiveConfig(max_seq_length=512, max_predictions_per_seq=77),
    optim=OptimConfig(optimizer="lamb", learning_rate=0.00176, num_warmup_steps=1250),
    train=TrainConfig(
        num_train_steps=12_500,
        global_batch_size=4096,
        gradient_accumulation=8,
        seed=1,
        eval_every=2500,
        checkpoint_every=2500,
    ),
    init_from="runs/phase_128",
)
