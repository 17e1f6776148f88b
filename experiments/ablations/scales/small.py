"""The scale `small` of the ablations: one accelerator, half a minute per run, on tens of millions of tokens of your own text.

    albert-jax pretrain experiments/ablations/scales/small.py      trains the scale without a table
    albert-jax ablate experiments/ablations/sharing.py --scale small --seeds 5 --parallel-seeds \
        --rows all-shared --rows shared-attention --rows shared-FFN --rows not-shared \
        --data.source 'corpus/*.jsonl.gz' --data.vocab spiece.model

It uses the optimizer, the masking and the sequences of 32 tokens of the scale `tiny`; with 128 tokens, a network of this width paused on
the second plateau (docs/when-albert-does-not-learn.md).  The network is four times as wide and has six layers instead of four.  A run
processes 33 M tokens (2,000 steps of 16,384) in 1.1 PFLOP.  These four rows with five seeds take ten minutes on one H100 at
37 TFLOP/s (estimate).  Not run here; neither was --parallel-seeds on a GPU.
"""

from albert_jax.data.sources import DataConfig
from albert_jax.model.albert import AlbertConfig
from albert_jax.pretraining.objective import ObjectiveConfig
from albert_jax.pretraining.run import PretrainConfig
from albert_jax.training.loop import TrainConfig
from albert_jax.training.optim import OptimConfig

config = PretrainConfig(
    run_dir="runs/scale-small",
    model=AlbertConfig(
        embedding_size=64,
        hidden_size=256,
        num_hidden_layers=6,
        num_attention_heads=4,
        intermediate_size=1024,
        initializer_range=0.035,  # 0.02 x sqrt(768 / H)
        dtype="bfloat16",
        scan_unroll=6,
    ),
    data=DataConfig(source="corpus/*.jsonl.gz", vocab="spiece.model"),
    objective=ObjectiveConfig(
        max_seq_length=32, max_predictions_per_seq=10, masked_lm_prob=0.3, ngram=1, do_whole_word_mask=False
    ),
    optim=OptimConfig(optimizer="muon", learning_rate=0.005, num_warmup_steps=120),
    train=TrainConfig(
        num_train_steps=2000, global_batch_size=512, log_every=100, eval_every=500, checkpoint_every=1000
    ),
)
