"""The network against a plain numpy oracle, the paper's parameter counts, and equivalences of sharing, looping and dropout.

Every docstring names a break that was put into the package and turned the test red.
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
from scipy.special import erf
from scipy.stats import truncnorm

from albert_jax.config import InputError
from albert_jax.model.albert import PRESETS, AlbertConfig, dropout
from albert_jax.model.heads import AlbertForPreTraining, flops_per_token, init_params, num_params
from albert_jax.model.sharing import is_stacked, layer_sets

TINY: dict[str, Any] = dict(
    vocab_size=60, embedding_size=8, hidden_size=24, num_attention_heads=3, intermediate_size=40
)
TINY |= dict(num_hidden_layers=4, max_position_embeddings=16)
DROPOUT: dict[str, Any] = dict(hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.3)

# Name -> (config, which parameter set each block's attention reads, which its ffn reads), written by hand for L = 4.
STRATEGIES: dict[str, tuple[dict[str, Any], list[int], list[int]]] = {
    "all": ({}, [0, 0, 0, 0], [0, 0, 0, 0]),
    "none": ({"sharing": "none"}, [0, 1, 2, 3], [0, 1, 2, 3]),
    "attention": ({"sharing": "attention"}, [0, 0, 0, 0], [0, 1, 2, 3]),
    "ffn": ({"sharing": "ffn"}, [0, 1, 2, 3], [0, 0, 0, 0]),
    "groups": ({"sharing": "groups", "num_hidden_groups": 2}, [0, 0, 1, 1], [0, 0, 1, 1]),
    "inner": ({"inner_group_num": 2, "sharing": "ffn"}, [0, 1, 2, 3, 4, 5, 6, 7], [0, 1, 0, 1, 0, 1, 0, 1]),
}
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # compiles 3 times faster


@pytest.fixture(autouse=True)
def exact_matmuls() -> Iterator[None]:
    """So that 1e-5 also holds where the default matmul of float32 rounds its inputs (TF32, TPU)."""
    with jax.default_matmul_precision("highest"):
        yield


def tiny(**changes: Any) -> AlbertConfig:
    return AlbertConfig(**TINY | changes)


def random_params(config: AlbertConfig, spread: float = 0.2) -> dict:
    """Parameters in which nothing is 0, 1 or equal to another, so that no term can be left out unnoticed."""
    random = np.random.default_rng(1)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        return np.asarray(spread * random.normal(size=leaf.shape) + (path[-1].key == "scale"), np.float32)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(lambda: init_params(config, jax.random.key(0))))


def inputs(config: AlbertConfig) -> dict[str, Any]:
    """Three rows of ten: two segments each, the second and third padded, four predictions in any order."""
    place = np.arange(10)[None]
    return {
        "input_ids": np.random.default_rng(2).integers(0, config.vocab_size, (3, 10)),
        "attention_mask": (place < np.array([[10], [7], [5]])).astype(int),
        "token_type_ids": (place >= np.array([[4], [6], [2]])).astype(int),
        "masked_lm_positions": np.array([[9, 0, 3, 3], [1, 6, 2, 0], [4, 2, 1, 0]]),
    }


def forward(config: AlbertConfig, params: dict, batch: dict, keys: Any = None, **flags: bool) -> dict[str, jax.Array]:
    model = AlbertForPreTraining(config)
    return jit(lambda p, b, k: model.apply({"params": p}, **b, dropout_keys=k, **flags))(params, batch, keys)


def loss(config: AlbertConfig, params: dict, keys: Any = None) -> jax.Array:
    """A scalar that weighs every output differently: LayerNorm makes plain sums blind."""
    out = AlbertForPreTraining(config).apply({"params": params}, **inputs(config), dropout_keys=keys)
    seen = [out[name].astype(jnp.float32).ravel() for name in ("last_hidden_state", "prediction_logits", "sop_logits")]
    return sum((jnp.vdot(x, jnp.cos(jnp.arange(x.size))) for x in seen), start=jnp.zeros(()))


@functools.cache
def value_and_gradient(config: AlbertConfig, with_dropout: bool = False) -> Any:
    keys = jax.random.split(jax.random.key(3), 3) if with_dropout else None
    return jit(jax.value_and_grad(lambda params: loss(config, params, keys)))(random_params(config))


def assert_same_gradient(found: tuple[Any, Any], wanted: tuple[Any, Any]) -> None:
    """The tolerance is of the whole tree's norm: the true gradient of the key bias is 0 (softmax is shift invariant)."""
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-5)
    norm = math.sqrt(sum(float(jnp.sum(x * x)) for x in jax.tree.leaves(wanted[1])))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=2e-6 * norm), found[1], wanted[1])


# The oracle: google-research/albert modeling.py and run_pretraining.py once more, in numpy and float64.

ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "gelu_new": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "gelu": lambda x: 0.5 * x * (1 + erf(x / math.sqrt(2))),
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
    word, segment, position = (
        p["embeddings"][f"{name}_embeddings"]["embedding"] for name in ("word", "token_type", "position")
    )
    x = norm(p["embeddings"]["LayerNorm"], word[batch["input_ids"]] + segment[batch["token_type_ids"]] + position[:10])
    if config.embedding_size != config.hidden_size:
        x = affine(p["encoder"]["embedding_hidden_mapping_in"], x)
    states, attentions, width = [x], [], config.hidden_size // config.num_attention_heads
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
        x = norm(
            ffn["LayerNorm"], x + affine(ffn["output"], ACTIVATIONS[config.hidden_act](affine(ffn["intermediate"], x)))
        )
        states, attentions = [*states, x], [*attentions, weights]
    out = {"hidden_states": np.stack(states[:: config.inner_group_num]), "attentions": np.stack(attentions)}
    return {"last_hidden_state": x} | out | oracle_heads(config, p, x, batch["masked_lm_positions"])


MORE = {"E-equals-H": {"embedding_size": 24}, "erf": {"hidden_act": "gelu"}, "relu": {"hidden_act": "relu"}}
FORWARD = STRATEGIES | {name: (change, [0] * 4, [0] * 4) for name, change in MORE.items()}


@pytest.mark.parametrize("name", FORWARD)
def test_forward_agrees_with_the_oracle(name: str) -> None:
    """Fails if scores are divided by D instead of sqrt(D), if the FFN's residual is dropped, if "gelu" is the tanh form."""
    changes, *sets = FORWARD[name]
    config = tiny(**changes)
    params, batch = random_params(config), inputs(config)
    found = forward(config, params, batch, output_hidden_states=True, output_attentions=True)
    wanted = oracle(config, sets, params, batch)
    assert found.keys() == wanted.keys()
    assert found["hidden_states"].shape == (5, 3, 10, 24)
    assert found["attentions"].shape == (4 * config.inner_group_num, 3, 3, 10, 10)
    for output, value in wanted.items():
        np.testing.assert_allclose(found[output], value, rtol=1e-5, atol=1e-5, err_msg=output)


def test_defaults_and_padding_alone() -> None:
    """Fails if the default mask is zeros, the default positions the first only, the mask minus infinity (NaN)."""
    params, batch = random_params(tiny()), inputs(tiny())
    full = {"attention_mask": np.ones((3, 10), int), "token_type_ids": np.zeros((3, 10), int)}
    full["masked_lm_positions"] = np.tile(np.arange(10), (3, 1))
    short, long = forward(tiny(), params, {"input_ids": batch["input_ids"]}), forward(tiny(), params, batch | full)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-5), short, long)
    empty = forward(tiny(), params, batch | {"attention_mask": np.zeros((3, 10), int)})
    assert all(np.isfinite(value).all() for value in empty.values())


def count(config: AlbertConfig, *without: str) -> int:
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    return sum(leaf.size for name, part in shapes.items() if name not in without for leaf in jax.tree.leaves(part))


HEADS = ("predictions", "sop_classifier")
COUNTS = {  # with heads; encoder and pooler; encoder; encoder and pooler where no layer shares
    "base": (11_813_810, 11_683_584, 11_092_992, 89_650_176),
    "large": (17_847_474, 17_683_968, 16_634_368, 307_397_120),
    "xlarge": (59_021_490, 58_724_864, 54_528_512, 1_216_965_120),
    "xxlarge": (223_158_450, 222_595_584, 205_814_272, 2_437_773_824),
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts_of_the_released_models(name: str) -> None:
    """Fails if the MLM decoder is not tied to the word table, or the shared layer is stored L times."""
    config, twin = PRESETS[name], dataclasses.replace(PRESETS[name], sharing="none")
    found = (num_params(config), count(config, *HEADS), count(config, *HEADS, "pooler"), count(twin, *HEADS))
    assert found == COUNTS[name]


# Sharing -> {E: millions}, as printed in Tables 3 and 4.
TABLES: dict[Any, dict[int, int]] = {
    "none": {64: 87, 128: 89, 256: 93, 768: 108},
    "all": {64: 10, 128: 12, 256: 16, 768: 31},
}
TABLES |= {"attention": {128: 64, 768: 83}, "ffn": {128: 38, 768: 57}}


@pytest.mark.parametrize("sharing", TABLES)
def test_parameter_counts_of_the_paper(sharing: Any) -> None:
    """The paper counts the pooler in the rows that share anything and leaves it out of 'not-shared', the heads never; so
    rounding to millions gives every printed number of Tables 3 and 4.  Fails if 'attention' and 'ffn' are exchanged.
    """
    without = (*HEADS, "pooler") if sharing == "none" else HEADS
    for size, millions in TABLES[sharing].items():
        config = dataclasses.replace(PRESETS["base"], sharing=sharing, embedding_size=size)
        assert round(count(config, *without) / 1e6) == millions


def test_layer_sets() -> None:
    """Fails with the released float formula, int(i / L * G), Hugging Face's, int(i / (L / G)), and inner sets j * G + s."""
    for layers, groups in [(18, 14), (22, 22), (46, 23), (4, 3), (12, 1)]:
        by_search = tuple(max(g for g in range(groups) if g * layers <= i * groups) for i in range(layers))
        assert layer_sets("groups", layers, groups, 1) == {"attention": by_search, "ffn": by_search}
    assert layer_sets("groups", 4, 2, 2)["ffn"] == (0, 1, 0, 1, 2, 3, 2, 3)
    assert layer_sets("attention", 2, 1, 3) == {"attention": (0, 1, 2) * 2, "ffn": (0, 1, 2, 3, 4, 5)}


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name != "none"])
def test_sharing_is_tying(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every strategy equals 'none' with its rows tied, and a set's gradient is the sum of its rows' gradients.

    Fails if the gradient of a shared set is that of one layer, or sets are laid out in another order than here.
    """
    changes, *sets = STRATEGIES[name]
    config = tiny(**changes)
    params = random_params(config)

    def by_row(tree: dict, change: Callable[[Any, np.ndarray], Any]) -> dict:
        encoder = dict(tree["encoder"])
        for part, ids in zip(("attention", "ffn"), sets, strict=True):
            encoder[part] = jax.tree.map(lambda leaf, ids=np.array(ids): change(leaf, ids), encoder[part])
        return tree | {"encoder": encoder}

    twin = dataclasses.replace(config, sharing="none", num_hidden_groups=1)
    tied = jit(jax.value_and_grad(functools.partial(loss, twin)))(by_row(params, lambda leaf, ids: leaf[ids]))
    summed = by_row(tied[1], lambda g, ids: np.stack([g[ids == one].sum(0) for one in range(max(ids) + 1)]))
    assert_same_gradient(value_and_gradient(config), (tied[0], summed))


@pytest.mark.parametrize("changes", [{"scan_unroll": 4}, {"remat": "dots"}, {"remat": "full"}], ids=str)
def test_unrolling_and_recomputing_change_nothing(changes: dict[str, Any]) -> None:
    """With dropout, values and gradients.  Fails if rematerialised blocks get other dropout, or unrolling loses a block."""
    assert_same_gradient(
        value_and_gradient(tiny(**DROPOUT, **changes), True), value_and_gradient(tiny(**DROPOUT), True)
    )


def equations(jaxpr: Any) -> Iterator[Any]:
    """All equations of a jaxpr and of those inside it."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def gradient_equations(config: AlbertConfig) -> list[Any]:
    return list(equations(jax.make_jaxpr(jax.grad(functools.partial(loss, config)))(random_params(config))))


def test_remat_recomputes() -> None:
    """The more is recomputed, the more matmuls stand in the gradient.  Fails if `remat` is ignored or 'dots' saves nothing."""
    found = [[e.primitive.name for e in gradient_equations(tiny(remat=remat))] for remat in ("none", "dots", "full")]
    matmuls = [names.count("dot_general") for names in found]
    assert matmuls[0] < matmuls[1] < matmuls[2]


def test_bfloat16_keeps_gradients_and_norms_in_float32() -> None:
    """The shared layer's gradient adds up over L layers in the carry of the backward scan: in float32.

    Fails if parameters are cast before the scan, if softmax or LayerNorm runs in bfloat16, if `dtype` is ignored.
    """
    config = tiny(dtype="bfloat16")
    found, wanted = (forward(c, random_params(c), inputs(c)) for c in (config, tiny()))
    assert [str(found[name].dtype) for name in ("last_hidden_state", "prediction_logits")] == ["bfloat16", "float32"]
    for name, value in wanted.items():  # loose: 8 bits, values of size 1
        np.testing.assert_allclose(found[name].astype(jnp.float32), value, atol=0.15, err_msg=name)
    every = gradient_equations(config)
    scans = [e for e in every if e.primitive.name == "scan"]
    (backward,) = (e for e in scans if e.params["reverse"])
    first = backward.params["num_consts"]
    carry = [
        str(v.aval.dtype)
        for v in backward.invars[first : first + backward.params["num_carry"]]
        if v.aval.shape[0] >= 24
    ]
    assert carry.count("float32") == len(carry) >= 6 + 10  # six kernels, and as many biases, scales and norms' biases
    inside = {(e.primitive.name, str(e.invars[0].aval.dtype)) for s in scans for e in equations(s.params["jaxpr"])}
    assert {kind for kind in inside if kind[0] in ("exp", "rsqrt", "dot_general")} == {
        ("exp", "float32"),
        ("rsqrt", "float32"),
        ("dot_general", "bfloat16"),
    }
