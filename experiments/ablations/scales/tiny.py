"""The scale `tiny` of the ablations: two CPU cores, minutes per row, on the documentation that ships with Python.

    albert-jax ablate experiments/ablations/sharing.py --scale tiny --seeds 5
    albert-jax pretrain experiments/ablations/scales/tiny.py        trains the scale without a table

The network is narrow, so that it is small for its text and sharing parameters can cost something.  With Muon, masks of single pieces
and sequences of 32 tokens, a run leaves the second plateau (docs/when-albert-does-not-learn.md) after a third of its steps.  With
64 tokens, many runs are still on the second plateau at the end.  Sentence order needs longer segments, so sentence_objective.py
has its own network and 64 tokens.
"""

from albert_jax.data.sources import DataConfig
from albert_jax.model.albert import AlbertConfig
from albert_jax.pretraining.objective import ObjectiveConfig
from albert_jax.pretraining.run import PretrainConfig
from albert_jax.training.loop import TrainConfig
from albert_jax.training.optim import OptimConfig

config = PretrainConfig(
    run_dir="runs/scale-tiny",
    model=AlbertConfig(
        vocab_size=1000,
        embedding_size=32,
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=256,
        max_position_embeddings=64,
        initializer_range=0.07,  # 0.02 x sqrt(768 / H)
        scan_unroll=4,
        remat="none",
    ),
    data=DataConfig(source="python-docs", eval_fraction=0.1),
    objective=ObjectiveConfig(
        max_seq_length=32, max_predictions_per_seq=10, masked_lm_prob=0.3, ngram=1, do_whole_word_mask=False
    ),
    optim=OptimConfig(optimizer="muon", learning_rate=0.005, num_warmup_steps=120),
    train=TrainConfig(num_train_steps=2000, global_batch_size=64, log_every=50, eval_every=500, checkpoint_every=1000),
    eval_draws=2,
)
