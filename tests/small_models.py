"""Small models and comparisons that several test files use."""

from typing import Any

import jax
import numpy as np

from albert_jax.data.tokenizer import Tokenizer
from albert_jax.data.tokenizer_files import open_tokenizer
from albert_jax.model.albert import AlbertConfig
from albert_jax.model.heads import PRETRAINING, Albert, param_shapes
from albert_jax.model.sharing import is_stacked
from albert_jax.model.tree import leaves, nested

from .conftest import GOLDEN_TOKENIZER

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
"""The first pieces of a WordPiece vocabulary."""

Loaded = tuple[Albert, Any, Tokenizer]
SMALL: dict[str, Any] = dict(
    vocab_size=40, embedding_size=8, hidden_size=16, num_hidden_layers=4, num_attention_heads=2
)
SMALL |= dict(intermediate_size=24, max_position_embeddings=16)
TEXT = "the cat sat on the mat, in 2010, a hat and a rat ran to the other man: no one can eat that, not the ants, not a nation of them"


def random_model(heads: tuple[str, ...] = PRETRAINING, labels: tuple[str, ...] = ()) -> Loaded:
    """Random weights, large enough that no two answers are near each other."""
    config = AlbertConfig(
        vocab_size=500,
        embedding_size=16,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=80,
    )
    model, random = Albert(config, heads, labels), np.random.default_rng(3)
    params = jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(np.float32) * 0.3, param_shapes(model))
    return model, params, open_tokenizer(GOLDEN_TOKENIZER / "spiece.model")


def one_set_shapes(model: Albert) -> dict[str, Any]:
    """The shapes of the parameters without the axis of parameter sets, as optimizers see them."""
    shapes = leaves(param_shapes(model)).items()
    return nested({path: jax.ShapeDtypeStruct(x.shape[is_stacked(path) :], x.dtype) for path, x in shapes})


def assert_same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Bit for bit, names included."""
    arrays = leaves(found)
    assert list(arrays) == list(leaves(wanted))
    for path, value in leaves(wanted).items():
        assert np.array_equal(arrays[path], value), path


def assert_near(case: str, found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    """To 1e-5; prints the largest differences, as experiments/LOG.md has them."""
    differences = {name: float(np.abs(found[name].reshape(wanted[name].shape) - wanted[name]).max()) for name in wanted}
    print(f"| {case} | {', '.join(f'{name} {value:.1e}' for name, value in sorted(differences.items()))} |")
    assert max(differences.values()) <= 1e-5, differences
