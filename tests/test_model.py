"""The network against a numpy oracle, the paper's parameter counts, and equivalences of sharing, looping and dropout.

Docstrings name the deliberate breaks that were tried and made the test fail.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from albert_jax.config import InputError
from albert_jax.model import products
from albert_jax.model.albert import PRESETS, AlbertConfig, dropout
from albert_jax.model.heads import Albert, flops_per_token, init_params, num_params, param_shapes
from albert_jax.model.sharing import is_stacked, layer_sets

TINY: dict[str, Any] = dict(vocab_size=60, embedding_size=8, hidden_size=24, num_attention_heads=3)
TINY |= dict(intermediate_size=40, num_hidden_layers=4, max_position_embeddings=16)
DROPOUT: dict[str, Any] = dict(hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.3, num_hidden_layers=2)

# Name -> (config, set that each block's attention reads, set that its ffn reads), written by hand for L = 4.
STRATEGIES: dict[str, tuple[dict[str, Any], list[int], list[int]]] = {
    "all": ({}, [0, 0, 0, 0], [0, 0, 0, 0]),
    "none": ({"sharing": "none"}, [0, 1, 2, 3], [0, 1, 2, 3]),
    "attention": ({"sharing": "attention"}, [0, 0, 0, 0], [0, 1, 2, 3]),
    "ffn": ({"sharing": "ffn"}, [0, 1, 2, 3], [0, 0, 0, 0]),
    "groups": ({"sharing": "groups", "num_hidden_groups": 2}, [0, 0, 1, 1], [0, 0, 1, 1]),
    "cycle": ({"sharing": "cycle", "num_hidden_groups": 2}, [0, 1, 0, 1], [0, 1, 0, 1]),
    "cycle-reversed": ({"sharing": "cycle-reversed", "num_hidden_groups": 2}, [0, 1, 1, 0], [0, 1, 1, 0]),
    "middle": ({"sharing": "middle"}, [0, 1, 1, 2], [0, 1, 1, 2]),
    "table": ({"sharing": "attention=1,0,0,1; ffn = 0,1,2,2"}, [1, 0, 0, 1], [0, 1, 2, 2]),
    "inner": ({"inner_group_num": 2, "sharing": "ffn"}, [0, 1, 2, 3, 4, 5, 6, 7], [0, 1, 0, 1, 0, 1, 0, 1]),
}
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # compiles 3 times faster


def tiny(**changes: Any) -> AlbertConfig:
    return AlbertConfig(**TINY | changes)


def random_params(config: AlbertConfig, spread: float = 0.2) -> dict:
    """Random parameters, no two equal and none 0 or 1, so that every term of the computation matters."""
    random = np.random.default_rng(1)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        return np.asarray(spread * random.normal(size=leaf.shape) + (path[-1].key == "scale"), np.float32)

    return jax.tree_util.tree_map_with_path(draw, param_shapes(Albert(config)))


def inputs(config: AlbertConfig) -> dict[str, Any]:
    """Three rows of ten tokens: two segments each, the second and third padded, four predictions in any order."""
    place = np.arange(10)[None]
    return {
        "input_ids": np.random.default_rng(2).integers(0, config.vocab_size, (3, 10)),
        "attention_mask": (place < np.array([[10], [7], [5]])).astype(int),
        "token_type_ids": (place >= np.array([[4], [6], [2]])).astype(int),
        "masked_lm_positions": np.array([[9, 0, 3, 3], [1, 6, 2, 0], [4, 2, 1, 0]]),
    }


def apply(config: AlbertConfig, params: dict, batch: dict, **options: Any) -> Any:
    return Albert(config).apply({"params": params}, **batch, **options)


def forward(config: AlbertConfig, params: dict, batch: dict, keys: Any = None, **flags: bool) -> dict[str, jax.Array]:
    return jit(lambda p, b, k: apply(config, p, b, dropout_keys=k, **flags))(params, batch, keys)


def loss(config: AlbertConfig, params: dict, keys: Any = None) -> jax.Array:
    """A scalar with a different weight for every output of the encoder, because LayerNorm makes plain sums constant."""
    batch = {name: value for name, value in inputs(config).items() if name != "masked_lm_positions"}
    outputs: Any = Albert(config, heads=()).apply({"params": params}, **batch, dropout_keys=keys)
    hidden = outputs["last_hidden_state"].astype(jnp.float32).ravel()
    return jnp.vdot(hidden, jnp.cos(jnp.arange(hidden.size)))


@functools.cache
def value_and_gradient(config: AlbertConfig) -> Any:
    keys = jax.random.split(jax.random.key(3), 3) if config.hidden_dropout_prob else None
    return jit(jax.value_and_grad(lambda params: loss(config, params, keys)))


def assert_same_gradient(actual: tuple[Any, Any], expected: tuple[Any, Any]) -> None:
    """Compare with a tolerance relative to the norm of the tree, because the gradient of the key bias is 0."""
    np.testing.assert_allclose(actual[0], expected[0], rtol=1e-5)
    norm = math.sqrt(sum(float(jnp.sum(x * x)) for x in jax.tree.leaves(expected[1])))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=2e-6 * norm), actual[1], expected[1])


# The oracle: google-research/albert modeling.py and run_pretraining.py in numpy and float64.

ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "gelu_new": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "gelu": lambda x: 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
    "relu": lambda x: np.maximum(x, 0),
}


def affine(p: dict, x: np.ndarray) -> np.ndarray:
    return x @ p["kernel"] + p["bias"]


def norm(p: dict, x: np.ndarray) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12) * p["scale"] + p["bias"]


def oracle_heads(config: AlbertConfig, p: dict, hidden: np.ndarray, positions: np.ndarray) -> dict[str, np.ndarray]:
    pooled = np.tanh(affine(p["pooler"], hidden[:, 0]))
    gathered = np.stack([row[where] for row, where in zip(hidden, positions, strict=True)])
    x = norm(p["predictions"]["LayerNorm"], ACTIVATIONS[config.hidden_act](affine(p["predictions"]["dense"], gathered)))
    logits = x @ p["embeddings"]["word_embeddings"]["embedding"].T + p["predictions"]["bias"]
    return {"pooler_output": pooled, "prediction_logits": logits, "sop_logits": affine(p["sop_classifier"], pooled)}


def oracle(config: AlbertConfig, sets: list[list[int]], p: dict, batch: dict) -> dict[str, np.ndarray]:
    p = jax.tree.map(np.float64, p)
    word, segment, position = (p["embeddings"][f"{kind}_embeddings"] for kind in ("word", "token_type", "position"))
    x = word["embedding"][batch["input_ids"]] + segment["embedding"][batch["token_type_ids"]]
    x = norm(p["embeddings"]["LayerNorm"], x + position["embedding"][:10])
    if config.embedding_size != config.hidden_size:
        x = affine(p["encoder"]["embedding_hidden_mapping_in"], x)
    states, attentions, width = [x], list[np.ndarray](), config.hidden_size // config.num_attention_heads
    for a, f in zip(*sets, strict=True):
        attention = jax.tree.map(lambda leaf, row=a: leaf[row], p["encoder"]["attention"])
        ffn = jax.tree.map(lambda leaf, row=f: leaf[row], p["encoder"]["ffn"])
        query, key, value = (affine(attention[name], x) for name in ("query", "key", "value"))
        heads = [slice(start, start + width) for start in range(0, config.hidden_size, width)]
        scores = np.stack([query[..., h] @ key[..., h].swapaxes(1, 2) / math.sqrt(width) for h in heads], axis=1)
        scores = np.exp(scores + (1 - batch["attention_mask"][:, None, None]) * -10000.0)
        weights = scores / scores.sum(-1, keepdims=True)
        context = np.concatenate([weights[:, i] @ value[..., h] for i, h in enumerate(heads)], axis=-1)
        x = norm(attention["LayerNorm"], x + affine(attention["dense"], context))
        inner = ACTIVATIONS[config.hidden_act](affine(ffn["intermediate"], x))
        x = norm(ffn["LayerNorm"], x + affine(ffn["output"], inner))
        states, attentions = [*states, x], [*attentions, weights]
    out = {"hidden_states": np.stack(states[:: config.inner_group_num]), "attentions": np.stack(attentions)}
    return {"last_hidden_state": x} | out | oracle_heads(config, p, x, batch["masked_lm_positions"])


MORE = {"E-equals-H": {"embedding_size": 24}, "erf": {"hidden_act": "gelu"}, "relu": {"hidden_act": "relu"}}
FORWARD: dict[str, Any] = STRATEGIES | {name: (change, [0] * 4, [0] * 4) for name, change in MORE.items()}


@pytest.mark.parametrize("name", FORWARD)
def test_forward_agrees_with_the_oracle(name: str) -> None:
    """Fails if scores are divided by D instead of sqrt(D), if the FFN has no residual, or if "gelu" is the tanh form."""
    changes, *sets = FORWARD[name]
    config = tiny(**changes)
    params, batch = random_params(config), inputs(config)
    actual = forward(config, params, batch, output_hidden_states=True, output_attentions=True)
    expected = oracle(config, sets, params, batch)
    assert actual.keys() == expected.keys()
    assert actual["hidden_states"].shape == (5, 3, 10, 24)
    assert actual["attentions"].shape == (4 * config.inner_group_num, 3, 3, 10, 10)
    for output, value in expected.items():
        np.testing.assert_allclose(actual[output], value, rtol=1e-5, atol=1e-5, err_msg=output)


def test_default_inputs_and_rows_with_only_padding() -> None:
    """Fails if the default mask is zeros, if only the first position is predicted, or if the mask is minus infinity (NaN)."""
    params, batch, ones = random_params(tiny()), inputs(tiny()), np.ones((3, 10), int)
    full = batch | {"attention_mask": ones, "token_type_ids": 0 * ones, "masked_lm_positions": np.arange(10) * ones}
    short, long = forward(tiny(), params, {"input_ids": batch["input_ids"]}), forward(tiny(), params, full)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-5), short, long)
    empty = forward(tiny(), params, full | {"attention_mask": 0 * ones})
    assert all(np.isfinite(value).all() for value in empty.values())


def count(config: AlbertConfig, *without: str) -> int:
    shapes = param_shapes(Albert(config))
    return sum(leaf.size for name, part in shapes.items() if name not in without for leaf in jax.tree.leaves(part))


HEADS = ("predictions", "sop_classifier")
COUNTS = {  # with heads; encoder and pooler; encoder; encoder and pooler without sharing
    "base": (11_813_810, 11_683_584, 11_092_992, 89_650_176),
    "large": (17_847_474, 17_683_968, 16_634_368, 307_397_120),
    "xlarge": (59_021_490, 58_724_864, 54_528_512, 1_216_965_120),
    "xxlarge": (223_158_450, 222_595_584, 205_814_272, 2_437_773_824),
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts_of_the_released_models(name: str) -> None:
    """Fails if the MLM decoder is not tied to the word embeddings, or the shared layer is stored L times."""
    config, twin = PRESETS[name], dataclasses.replace(PRESETS[name], sharing="none")
    actual = (num_params(Albert(config)), count(config, *HEADS), count(config, *HEADS, "pooler"), count(twin, *HEADS))
    assert actual == COUNTS[name]


# Sharing -> {E: millions}, as printed in Tables 3 and 4.
TABLES: dict[Any, dict[int, int]] = {"attention": {128: 64, 768: 83}, "ffn": {128: 38, 768: 57}}
TABLES |= {"none": {64: 87, 128: 89, 256: 93, 768: 108}, "all": {64: 10, 128: 12, 256: 16, 768: 31}}


@pytest.mark.parametrize("sharing", TABLES)
def test_parameter_counts_of_the_paper(sharing: Any) -> None:
    """Rounded to millions, all numbers of Tables 3 and 4 agree.  Fails if 'attention' and 'ffn' are swapped.

    The paper counts the pooler except in 'not-shared', and never the heads.
    """
    without = (*HEADS, "pooler") if sharing == "none" else HEADS
    for size, millions in TABLES[sharing].items():
        config = dataclasses.replace(PRESETS["base"], sharing=sharing, embedding_size=size)
        assert round(count(config, *without) / 1e6) == millions


def test_layer_sets() -> None:
    """Fails with the released float formula int(i / L * G), Hugging Face's int(i / (L / G)), or inner sets j * G + s."""
    for layers, groups in [(18, 14), (22, 22), (46, 23), (4, 3), (12, 1)]:
        by_search = tuple(max(g for g in range(groups) if g * layers <= i * groups) for i in range(layers))
        assert layer_sets("groups", layers, groups, 1) == {"attention": by_search, "ffn": by_search}
    assert layer_sets("cycle-reversed", 9, 3, 1)["ffn"] == (0, 1, 2, 0, 1, 2, 2, 1, 0)
    assert layer_sets("cycle-reversed", 5, 3, 1)["ffn"] == (0, 1, 2, 2, 1)
    assert layer_sets("cycle-reversed", 3, 3, 1)["ffn"] == (0, 1, 2)
    assert [layer_sets("middle", layers, 2, 1)["ffn"] for layers in (1, 2, 3)] == [(0,), (0, 1), (0, 1, 2)]
    assert layer_sets("middle", 6, 2, 1)["ffn"] == (0, 1, 2, 1, 2, 3)
    assert layer_sets("groups", 4, 2, 2)["ffn"] == (0, 1, 0, 1, 2, 3, 2, 3)
    assert layer_sets("attention", 2, 1, 3) == {"attention": (0, 1, 2) * 2, "ffn": (0, 1, 2, 3, 4, 5)}


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name != "none"])
def test_sharing_is_tying(name: str) -> None:
    """Every strategy equals 'none' with tied rows, and the gradient of a set is the sum of the gradients of its rows.

    Fails if the gradient of a shared set is that of one layer, or if sets are laid out in a different order.
    """
    changes, *sets = STRATEGIES[name]
    config = tiny(**changes)
    params = random_params(config)

    def by_row(tree: dict, change: Callable[[Any, np.ndarray], Any]) -> dict:
        encoder = dict(tree["encoder"])
        for part, ids in zip(("attention", "ffn"), sets, strict=True):
            encoder[part] = jax.tree.map(lambda leaf, ids=ids: change(leaf, np.array(ids)), encoder[part])
        return tree | {"encoder": encoder}

    twin = dataclasses.replace(config, sharing="none", num_hidden_groups=1)
    tied = value_and_gradient(twin)(by_row(params, lambda leaf, ids: leaf[ids]))
    summed = by_row(tied[1], lambda g, ids: np.stack([g[ids == one].sum(0) for one in range(max(ids) + 1)]))
    assert_same_gradient(value_and_gradient(config)(params), (tied[0], summed))


@pytest.mark.parametrize(
    "changes", [{"scan_unroll": 2}, {"remat": "none"}, {"remat": "dots"}, {"remat": "full"}], ids=str
)
def test_unrolling_and_recomputing_change_nothing(changes: dict[str, Any]) -> None:
    """Values and gradients agree, with dropout.  Fails if recomputed blocks draw new dropout masks, or unrolling skips a block."""
    plain, params = tiny(**DROPOUT), random_params(tiny(**DROPOUT))
    other = dataclasses.replace(plain, **changes)
    assert_same_gradient(value_and_gradient(other)(params), value_and_gradient(plain)(params))


def equations(jaxpr: Any) -> Iterator[Any]:
    """All equations of a jaxpr and of those inside it."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def gradient_equations(config: AlbertConfig) -> list[Any]:
    keys = jax.random.split(jax.random.key(3), 3) if config.hidden_dropout_prob else None
    return list(equations(jax.make_jaxpr(jax.grad(lambda params: loss(config, params, keys)))(random_params(config))))


def test_remat_recomputes() -> None:
    """The more is recomputed, the more operations are in the gradient: products from 'dots' on, random bits only for 'full'.

    Fails if `remat` is ignored, or a policy misses a name.
    """
    remats = ("none", "elementwise", "dots", "full")
    actual = [[e.primitive.name for e in gradient_equations(tiny(**DROPOUT, remat=remat))] for remat in remats]
    products, tanh, bits = ([names.count(n) for names in actual] for n in ("dot_general", "tanh", "random_bits"))
    assert products[0] == products[1] < products[2] < products[3]
    assert tanh[0] < tanh[1] == tanh[2] == tanh[3]
    assert bits[0] == bits[1] == bits[2] < bits[3]


def test_bfloat16_keeps_gradients_and_norms_in_float32() -> None:
    """The shared layer's gradient is summed over L layers in the carry of the backward scan, in float32.

    Fails if parameters are cast before the scan, if softmax or LayerNorm runs in bfloat16, or if `dtype` is ignored.
    """
    config = tiny(dtype="bfloat16")
    actual, expected = (forward(c, random_params(c), inputs(c)) for c in (config, tiny()))
    assert [str(actual[name].dtype) for name in ("last_hidden_state", "prediction_logits")] == ["bfloat16", "float32"]
    for name, value in expected.items():  # loose, because bfloat16 has 8 bits and values are about 1
        np.testing.assert_allclose(actual[name].astype(jnp.float32), value, atol=0.15, err_msg=name)
    scans = [e for e in gradient_equations(config) if e.primitive.name == "scan"]
    (backward,) = (e for e in scans if e.params["reverse"])
    carry = [v.aval for v in backward.outvars]  # with one set, nothing is stacked
    assert [str(v.dtype) for v in carry if v.shape[0] >= 24] == ["float32"] * 16  # the leaves of attention and ffn
    assert [str(v.dtype) for v in carry if v.shape[0] < 24] == ["bfloat16"]  # the gradient of x
    inside = [(e.primitive.name, str(e.invars[0].aval.dtype)) for s in scans for e in equations(s.params["jaxpr"])]
    assert {kind for kind in inside if kind[0] in ("exp", "rsqrt", "tanh")} == {
        (name, "float32") for name in ("exp", "rsqrt", "tanh")
    }
    # Six of a block's eight products are those of dense layers, once forward and twice backward.  On a CPU the gradients of
    # attention's scores and weights are float32, and so are three products with them.
    products = [dtype for name, dtype in inside if name == "dot_general"]
    assert products.count("bfloat16") >= 3 * 6 + 2


SHAPES = [((2, 5, 8), 24), ((1, 7, 8), 8), ((3, 1, 8), 16), ((1, 1, 8), 8), ((4, 8), 8), ((1, 8), 24), ((2, 3, 1), 4)]


@pytest.mark.parametrize(("shape", "features"), SHAPES, ids=str)
def test_bfloat16_products_on_a_cpu(shape: tuple[int, ...], features: int) -> None:
    """Forward and backward agree with float32 up to rounding, in every shape.

    Fails if a gradient has the wrong operand.  XLA:CPU crashes on forms of these products that it does not support.
    """
    keys = jax.random.split(jax.random.key(0), 4)
    operands = [
        jax.random.normal(k, s) for k, s in zip(keys, [shape, (shape[-1], features), (features,)], strict=False)
    ]
    weights = jax.random.normal(keys[3], (*shape[:-1], features))

    def gradients(dtype: Any) -> Any:
        def total(*arguments: jax.Array) -> jax.Array:
            return jnp.vdot(products.dense(*(x.astype(dtype) for x in arguments)).astype(jnp.float32), weights)

        return jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))(*operands)

    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=0.05, atol=0.05 * float(jnp.abs(y).max())),
        gradients(jnp.bfloat16),
        gradients(jnp.float32),
    )


def test_cudnn_gets_sequence_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs agree with XLA's attention at all tokens except padding, and attention weights are returned if requested.

    cuDNN needs a GPU, so XLA computes behind the same function.  Fails if the lengths are missing or wrong.
    """
    attention = jax.nn.dot_product_attention
    implementations = []

    def by_xla(*arguments: Any, implementation: str, **parameters: Any) -> jax.Array:
        implementations.append(implementation)
        return attention(*arguments, **parameters)

    monkeypatch.setattr(jax.nn, "dot_product_attention", by_xla)
    plain = tiny(dtype="bfloat16")
    fused = dataclasses.replace(plain, attention_implementation="cudnn")
    params, batch = random_params(plain), inputs(plain)
    batch["attention_mask"] = jnp.arange(batch["input_ids"].shape[1]) < jnp.array([[3], [99], [7]])
    real = batch["attention_mask"][..., None]
    a, b = (apply(c, params, batch)["last_hidden_state"] for c in (plain, fused))
    assert set(implementations) == {"cudnn"}
    np.testing.assert_allclose(jnp.where(real, a, 0).astype(float), jnp.where(real, b, 0).astype(float), atol=0.1)
    count = len(implementations)
    maps = apply(fused, params, batch, output_attentions=True)["attentions"]
    assert maps.shape[:2] == (4, 3)
    assert len(implementations) == count


def test_without_cudnn() -> None:
    """Parameters can be initialized anywhere; running the model reports the missing cuDNN in one line."""
    config = tiny(dtype="bfloat16", attention_implementation="cudnn")
    assert param_shapes(Albert(config)) == param_shapes(Albert(tiny()))
    with pytest.raises(InputError, match=r"^model.attention_implementation 'cudnn': .*; on this device use 'xla'"):
        apply(config, random_params(config), inputs(config))


def test_rows_are_independent_of_other_rows_and_of_padding() -> None:
    """Outputs of a row are bitwise the same with any other rows, and nearly the same in a wider batch without others.

    Fails if one mask is used for the whole batch, or if padding is attended to.
    """
    config = tiny()
    params, batch = random_params(config), inputs(config)
    batch.pop("masked_lm_positions")
    expected = forward(config, params, batch)["last_hidden_state"]
    for row, length in enumerate(batch["attention_mask"].sum(1)):
        others = {name: value.copy() for name, value in batch.items()}
        rest = np.arange(3) != row
        others["input_ids"][rest] = 3
        others["attention_mask"][rest, 3:] = 0  # also shorter: the mask of the longest row must not apply to all
        assert np.array_equal(forward(config, params, others)["last_hidden_state"][row], expected[row])
        alone = {name: np.pad(value[row : row + 1], ((0, 0), (0, 5))) for name, value in batch.items()}
        actual = forward(config, params, alone)["last_hidden_state"][0, :length]
        np.testing.assert_allclose(actual, expected[row, :length], atol=1e-5)


def test_dropout_depends_only_on_the_key_of_the_row() -> None:
    """The same keys give the same output; heads add no dropout.  Fails if one key serves the batch, or values are not rescaled."""
    config, keys = tiny(**DROPOUT), jax.random.split(jax.random.key(5), 3)
    params, batch = random_params(config), inputs(config)
    outputs, repeated = forward(config, params, batch, keys), forward(config, params, batch, keys)
    jax.tree.map(np.testing.assert_array_equal, outputs, repeated)
    other = forward(config, params, batch, keys.at[0].set(jax.random.key(6)))
    alone = forward(config, params, jax.tree.map(lambda x: x[1:2], batch), keys[1:2])
    heads = oracle_heads(config, params, np.asarray(outputs["last_hidden_state"]), batch["masked_lm_positions"])
    for name, value in outputs.items():
        assert np.abs(other[name][0] - value[0]).max() > 0.01
        np.testing.assert_allclose(other[name][1:], value[1:], rtol=0, atol=1e-5)
        np.testing.assert_allclose(alone[name], value[1:2], rtol=0, atol=1e-5)
        np.testing.assert_allclose(heads.get(name, value), value, rtol=0, atol=1e-5)
    x = jnp.linspace(1, 2, 3000).reshape(3, 1000)
    y = dropout(x, keys, 0, 0.1)
    np.testing.assert_allclose(y, np.where(y == 0, 0, x / 0.9), rtol=1e-6)


def dropout_masks(site: str) -> np.ndarray:
    """The mask of each layer at a dropout site, [L, B * H], read from the signs of the hidden states.

    All parameters are 0 except those that send a huge constant through the site.  After LayerNorm the sign then shows
    whether it was dropped.  With one token and heads of size 1 there is also one attention weight per unit.
    """
    rates = {"hidden_dropout_prob": 0.0 if site == "weights" else 0.4, "attention_probs_dropout_prob": 0.3}
    config = tiny(embedding_size=64, hidden_size=64, num_attention_heads=64, **rates)
    params = jax.tree.map(np.zeros_like, random_params(config))
    attention, ffn = params["encoder"]["attention"], params["encoder"]["ffn"]
    attention["LayerNorm"]["scale"] += 1
    ffn["LayerNorm"]["scale"] += 1
    params["embeddings"]["LayerNorm"]["bias"] += 1
    if site == "weights":
        attention["value"]["bias"] += 1
        attention["dense"]["kernel"] += 1000 * np.eye(64, dtype=np.float32)
    elif site == "attention":
        attention["dense"]["bias"] += 1000
    elif site == "ffn":
        ffn["output"]["bias"] += 1000
    batch, keys = {"input_ids": np.zeros((512, 1), int)}, jax.random.split(jax.random.key(7), 512)
    states = forward(config, params, batch, keys, output_hidden_states=True)["hidden_states"]
    return np.asarray((states[:1] if site == "embeddings" else states[1:]) > 0).reshape(-1, 512 * 64)


def test_every_dropout_site_has_its_own_mask() -> None:
    """After embeddings, attention weights, attention output and FFN (Hugging Face lacks the last), in every layer.

    Fails if `site` is constant over layers, if two sites of a block share a number, or if a site is missing or uses the
    wrong rate.
    """
    rates = {"embeddings": 0.4, "weights": 0.3, "attention": 0.4, "ffn": 0.4}
    masks = {site: dropout_masks(site) for site in rates}
    for site, mask in masks.items():
        np.testing.assert_allclose(mask.mean(1), 1 - rates[site], atol=0.01, err_msg=site)
    every = np.concatenate(list(masks.values()))
    assert len(every) == 1 + 3 * 4
    assert np.abs(np.corrcoef(every) - np.eye(13)).max() < 0.03  # five standard deviations


def test_initialization() -> None:
    """Fails if the truncated normal is rescaled to a standard deviation of 0.02, or if all sets of a part use one key."""
    params = jit(functools.partial(init_params, Albert(tiny(sharing="none", vocab_size=2000))))(jax.random.key(8))
    drawn: list[np.ndarray] = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.tree.map(np.asarray, params)):
        if path[-1].key in ("bias", "scale"):
            np.testing.assert_array_equal(leaf, float(path[-1].key == "scale"))
        else:
            drawn += list(leaf) if is_stacked(tuple(key.key for key in path)) else [leaf]
    assert len(drawn) == 3 + 1 + 4 * 6 + 3  # tables, mapping, four layers of six kernels, pooler and two heads
    values = np.concatenate([leaf.ravel() for leaf in drawn])
    assert 0.0395 < np.abs(values).max() <= 0.04
    variance = 1 - 4 * math.exp(-2) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(2))  # of a normal cut at 2 deviations
    np.testing.assert_allclose(values.std(), 0.02 * math.sqrt(variance), rtol=0.01)
    assert len({leaf.ravel()[:8].tobytes() for leaf in drawn}) == len(drawn)


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"hidden_size": 64, "num_attention_heads": 3}, "hidden_size 64 is not divisible by num_attention_heads 3"),
    ({"hidden_act": "swish"}, "hidden_act: unknown value 'swish'; choose one of gelu_new, gelu, relu, tanh, linear"),
    ({"sharing": "some"}, "sharing: unknown value 'some'; choose one of all, attention, ffn, none, groups, cycle"),
    (
        {"num_hidden_groups": 2},
        "num_hidden_groups 2 needs sharing to be one of groups, cycle, cycle-reversed, middle; it is 'all'",
    ),
    ({"sharing": "groups", "num_hidden_groups": 13}, "num_hidden_groups 13 exceeds num_hidden_layers 12"),
    (
        {"sharing": "middle", "num_hidden_groups": 11},
        "num_hidden_groups 11 is too large for sharing 'middle' with num_",
    ),
    ({"num_hidden_layers": 0}, "num_hidden_layers must be in [1, 16777216], got 0"),
    ({"attention_probs_dropout_prob": math.nan}, "attention_probs_dropout_prob must be in"),
    ({"dtype": "float16"}, "dtype: unknown value 'float16'; choose one of float32, bfloat16"),
    (
        {"attention_implementation": "flash"},
        "attention_implementation: unknown value 'flash'; choose one of xla, cudnn",
    ),
    ({"attention_implementation": "cudnn"}, "attention_implementation 'cudnn' needs dtype 'bfloat16' and attention_"),
    ({"remat": "all"}, "remat: unknown value 'all'; choose one of none, elementwise, dots, full"),
]


@pytest.mark.parametrize(("fields", "message"), MISTAKES, ids=[message.split()[0] for _, message in MISTAKES])
def test_invalid_values_are_refused_in_one_line(fields: dict[str, Any], message: str) -> None:
    """Fails if a check is left out."""
    with pytest.raises(InputError) as error:
        AlbertConfig(**fields)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_sequences_longer_than_the_position_table_are_refused() -> None:
    """Fails without the check: positions beyond the table would give NaN."""
    with pytest.raises(ValueError, match="sequence length 17 > max_position_embeddings 16"):
        forward(tiny(), random_params(tiny()), {"input_ids": np.zeros((1, 17), int)})


TRAINING = {"base": (528.1, 570.4), "large": (1854, 1967), "xlarge": (7329, 7555), "xxlarge": (14579, 14805)}


def test_flops_per_token() -> None:
    """FLOPs agree with a count by hand, and with XLA's count of the forward pass, which adds elementwise work.

    Fails if the attention matrices, or one of the two factors of the MLM head, are left out.
    """
    for name, millions in TRAINING.items():
        actual = [flops_per_token(PRESETS[name], *sizes) / 1e6 for sizes in ((128, 20), (512, 77))]
        np.testing.assert_allclose(actual, millions, rtol=3e-4)
    config = tiny(hidden_size=240, embedding_size=120, intermediate_size=960, max_position_embeddings=64, scan_unroll=4)
    batch = {"input_ids": np.zeros((2, 64), int), "masked_lm_positions": np.zeros((2, 60), int)}
    cost: Any = jax.jit(lambda p: apply(config, p, batch)).lower(random_params(config)).cost_analysis()
    assert 1 < 3 * cost["flops"] / (128 * flops_per_token(config, 64, 60)) < 1.02
