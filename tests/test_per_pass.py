"""Per-pass parameters of shared layers: equivalences for every combination of sharing pattern and variant.

Docstrings name the deliberate breaks that were tried and made the test fail.
"""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from albert_jax.config import InputError
from albert_jax.exchange import huggingface
from albert_jax.exchange.load import read
from albert_jax.exchange.reshare import merge, reshare
from albert_jax.exchange.weights import Weights
from albert_jax.model.albert import AlbertConfig
from albert_jax.model.encoder import Encoder
from albert_jax.model.heads import Albert, init_params, num_params, param_shapes
from albert_jax.model.per_pass import PER_PASS, Lora
from albert_jax.model.sharing import STRATEGIES
from albert_jax.model.tree import leaves

from .small_models import SMALL, assert_near, assert_same
from .weight_files import outputs, random_weights

TABLES: dict[str, dict[str, Any]] = {
    "table": {"sharing": "0,1,1,0"},
    "two tables": {"sharing": "attention=0,0,0,0;ffn=0,1,2,2"},
}
PATTERNS = TABLES | {
    name: {"sharing": name, "num_hidden_groups": 2 if strategy.takes_groups else 1}
    for name, strategy in STRATEGIES.items()
}
VARIANTS: dict[str, dict[str, Any]] = {name: {"per_pass": name} for name in PER_PASS}
VARIANTS |= {"lora of ffn": {"per_pass": Lora(rank=2, parts="ffn")}}
EXTRAS: dict[str, dict[str, Any]] = {"inject": {"inject": True}, "layer weights": {"layer_weights": True}}
COMBINATIONS = list(itertools.product(PATTERNS, VARIANTS | EXTRAS))
# Every pattern with two variants, and every variant with two patterns; the rest is in the long form.
SOME = [
    pytest.param(
        pattern,
        variant,
        marks=() if pattern in ("all", "two tables") or variant in ("norm", "lora") else pytest.mark.long,
    )
    for pattern, variant in COMBINATIONS
]
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def config(pattern: str = "all", variant: str = "none", **changes: Any) -> AlbertConfig:
    return AlbertConfig(**SMALL | PATTERNS[pattern] | (VARIANTS | EXTRAS)[variant] | changes)


def random_params(config: AlbertConfig) -> dict[str, Any]:
    random = np.random.default_rng(1)
    shapes = param_shapes(Albert(config, heads=()))
    ones = ("scale", "gain")
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: (0.3 * random.normal(size=leaf.shape) + (path[-1].key in ones)).astype(np.float32), shapes
    )


@functools.cache
def compiled(config: AlbertConfig) -> Any:
    """(parameters) -> a scalar that depends on every output of the encoder, and its gradient."""
    random = np.random.default_rng(2)
    ids, weights = random.integers(0, config.vocab_size, (2, 9)), random.normal(size=(2, 9, config.hidden_size))

    def loss(params: Any) -> jax.Array:
        outputs: Any = Albert(config, heads=()).apply({"params": params}, ids)
        return jnp.vdot(outputs["last_hidden_state"], weights)

    return jit(jax.value_and_grad(loss))


def untied(config: AlbertConfig, params: dict[str, Any]) -> dict[str, Any]:
    """The parameters of the unshared twin: each block has its own copy."""
    encoder = dict(params["encoder"])
    for part, ids in config.layer_sets.items():
        encoder[part] = jax.tree.map(lambda leaf, ids=ids: leaf[np.array(ids)], encoder[part])
    return params | {"encoder": encoder}


def summed(config: AlbertConfig, gradient: dict[str, Any]) -> dict[str, Any]:
    """The sum of the gradients of all blocks that read a set."""
    encoder = dict(gradient["encoder"])
    for part, ids in config.layer_sets.items():
        rows = [np.flatnonzero(np.array(ids) == number) for number in range(max(ids) + 1)]
        encoder[part] = jax.tree.map(lambda leaf, rows=rows: np.stack([leaf[r].sum(0) for r in rows]), encoder[part])
    return gradient | {"encoder": encoder}


def assert_close(actual: Any, expected: Any) -> None:
    norm = np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(expected)))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=3e-6 * norm), actual, expected)


@pytest.mark.parametrize(("pattern", "variant"), SOME)
def test_gradient_of_a_set_is_the_sum_over_its_passes(pattern: str, variant: str) -> None:
    """The value equals that of the unshared twin with tied copies.  Fails if a gradient is that of one pass.

    That each pass reads its own parameters is tested by merging.
    """
    shared, params = config(pattern, variant), random_params(config(pattern, variant))
    twin = dataclasses.replace(shared, sharing="none", num_hidden_groups=1)
    value, gradient = compiled(shared)(params)
    twin_value, twin_gradient = compiled(twin)(untied(shared, params))
    np.testing.assert_allclose(value, twin_value, rtol=1e-5)
    assert_close(gradient, summed(shared, twin_gradient))


@functools.cache
def initial(config: AlbertConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """The initial parameters, and the outputs of the encoder with them."""
    model = Albert(config, heads=())
    params = jit(functools.partial(init_params, model))(jax.random.key(0))
    return params, outputs(Weights(model, params))


@pytest.mark.parametrize("variant", [*list(VARIANTS)[1:], *EXTRAS])
def test_variants_start_as_albert(variant: str) -> None:
    """At initialization, outputs equal ALBERT's bit for bit, and so do the parameters that both have.

    Fails if LoRA's B started at random, or if a variant changed the random numbers of the other parameters.
    """
    (albert, albert_outputs), (varied, varied_outputs) = initial(config("middle")), initial(config("middle", variant))
    expected = leaves(albert)
    common = {path: leaf for path, leaf in leaves(varied).items() if path in expected}
    assert len(common) >= len(expected) - 4  # without LayerNorms, if passes have their own
    assert all(np.array_equal(leaf, expected[path]) for path, leaf in common.items())
    assert_same(varied_outputs, albert_outputs)


@pytest.mark.parametrize("variant", [*list(VARIANTS)[1:], *EXTRAS])
def test_every_parameter_of_a_pass_matters(variant: str) -> None:
    """Fails if a pass ignored its own parameters."""
    varied = config("all", variant)
    gradient = compiled(varied)(random_params(varied))[1]["encoder"]["per_pass"]
    for leaf in jax.tree.leaves(gradient):
        used = np.tril(np.ones_like(leaf)) > 0 if variant == "layer weights" else np.ones_like(leaf) > 0
        assert (leaf[used] != 0).all()
        assert (leaf[~used] == 0).all()


def sets(pattern: str) -> list[int]:
    return [max(ids) + 1 for ids in config(pattern).layer_sets.values()]


@pytest.mark.parametrize(("pattern", "variant"), COMBINATIONS)
def test_number_of_parameters(pattern: str, variant: str) -> None:
    """By formula.  Fails if a parameter set kept the LayerNorms of its passes."""
    varied, layers = config(pattern, variant), 4
    h, f, r = varied.hidden_size, varied.intermediate_size, 4
    attention, ffn = (
        number * size for number, size in zip(sets(pattern), (4 * h * (h + 1), 2 * h * f + h + f), strict=True)
    )
    norms = 2 * h * sum(sets(pattern))
    own = {
        "none": 0,
        "norm": 2 * layers * 2 * h - norms,
        "scale": 2 * layers,
        "embedding": layers * h,
        "lora": layers * r * (4 * 2 * h + 2 * (h + f)),
        "lora of ffn": layers * 2 * 2 * (h + f),
        "inject": layers,
        "layer weights": layers * layers,
    }
    rest = num_params(Albert(varied)) - attention - ffn - norms
    assert rest - own[variant] == num_params(Albert(config())) - 4 * h * (h + 1) - 2 * h * f - h - f - 4 * h


@pytest.mark.parametrize(
    "variant", ["norm", "lora", *(pytest.param(v, marks=pytest.mark.long) for v in ("scale", "embedding", "inject"))]
)
@pytest.mark.parametrize("changes", [{"scan_unroll": 4}, {"remat": "none"}], ids=str)
def test_unrolling_and_saving_change_nothing(variant: str, changes: dict[str, Any]) -> None:
    """Fails if unrolled passes read parameters in another order."""
    varied = config("all", variant)
    params = random_params(varied)
    other = compiled(dataclasses.replace(varied, **changes))(params)
    np.testing.assert_allclose(other[0], compiled(varied)(params)[0], rtol=1e-5)
    assert_close(other[1], compiled(varied)(params)[1])


@pytest.mark.parametrize("variant", EXTRAS)
def test_passes_one_by_one(variant: str) -> None:
    """An encoder of one layer, called four times, with the sums written out.  Fails if a sum missed a state or a gain."""
    varied = config("table", variant)
    params = random_params(varied)
    passes = params["encoder"]["per_pass"]
    one = AlbertConfig(**SMALL | {"num_hidden_layers": 1})
    start = np.random.default_rng(3).normal(size=(2, 5, one.embedding_size)).astype(np.float32)
    mask = np.ones((2, 5), np.float32)
    mapping = params["encoder"]["embedding_hidden_mapping_in"]
    identity = {"kernel": np.eye(16, dtype=np.float32), "bias": np.zeros(16, np.float32)}
    wide = dataclasses.replace(one, embedding_size=16, always_map_embeddings=True)
    states = [start @ mapping["kernel"] + mapping["bias"]]
    for number, one_set in enumerate(varied.layer_sets["ffn"]):
        if variant == "inject":
            x = states[-1] + passes["inject"][number] * states[0]
        else:
            x = sum(passes["layer_weights"][number, j] * states[j] for j in range(number + 1))
        parts = {
            part: jax.tree.map(lambda leaf, one_set=one_set: leaf[[one_set]], params["encoder"][part])
            for part in ("attention", "ffn")
        }
        block = {"params": parts | {"embedding_hidden_mapping_in": identity}}
        states.append(np.asarray(Encoder(wide).apply(block, x, mask, None, False)[0]))
    actual: Any = Encoder(varied).apply({"params": params["encoder"]}, start, mask, None, False)
    np.testing.assert_allclose(actual[0], states[-1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", list(VARIANTS)[1:])
@pytest.mark.parametrize("pattern", ["all", "two tables"])
def test_merged_and_exported(variant: str, pattern: str, tmp_path: Any) -> None:
    """Layers without variant compute the same, and so does the exported folder.  Fails if the embedding of a pass missed the
    residual, or the gain missed a bias."""
    weights = random_weights(**PATTERNS[pattern], **VARIANTS[variant])
    expected = outputs(weights)
    merged = merge(weights)
    assert merged.model.config == config("none", "none", **{"sharing": "none"})
    assert_near(f"merged {variant}", outputs(merged), expected)
    _, notes = huggingface.write(weights, tmp_path)
    assert any("is merged into the layers, which are written as 4 groups" in note for note in notes)
    assert_near(f"exported {variant}", outputs(read(tmp_path).weights), expected)


@pytest.mark.parametrize("variant", EXTRAS)
def test_what_cannot_be_exported(variant: str, tmp_path: Any) -> None:
    with pytest.raises(
        InputError, match=r"^model\.\w+ cannot be merged into layers, so the model cannot be exported to"
    ):
        huggingface.write(random_weights(**EXTRAS[variant]), tmp_path)


def test_unshared_layers_become_lora() -> None:
    """Full rank keeps the outputs; the error of each kernel is that of its truncated SVD, for both initializations.

    Fails if LoRA was fitted to the kernel instead of the difference.
    """
    unshared = random_weights(sharing="none")
    full = reshare(unshared, sharing="all", per_pass=Lora(rank=16))
    kernels = ("attention", "query", "kernel"), ("ffn", "intermediate", "kernel")
    restored = merge(full).params["encoder"]
    for part, name, leaf in kernels:
        np.testing.assert_allclose(restored[part][name][leaf], unshared.params["encoder"][part][name][leaf], atol=1e-5)
    for initialization in ("average", "stepwise"):
        shared = reshare(unshared, initialization, sharing="all").params["encoder"]
        errors = []
        for rank in (1, 4):
            lora = reshare(unshared, initialization, sharing="all", per_pass=Lora(rank=rank))
            for part, name, leaf in kernels:
                target = unshared.params["encoder"][part][name][leaf]
                error = np.linalg.norm(merge(lora).params["encoder"][part][name][leaf] - target)
                tails = np.linalg.svd(target - shared[part][name][leaf], compute_uv=False)[:, rank:]
                np.testing.assert_allclose(error, np.linalg.norm(tails), rtol=1e-4)
                errors.append(error)
        assert errors[2] < errors[0]
    same = reshare(random_weights(), per_pass="lora").params["encoder"]["per_pass"]["attention"]["query"]
    assert not same["lora_b"].any()  # as at initialization, where layers do not differ
    first = unshared.params["encoder"]["ffn"]["output"]["kernel"]
    two = reshare(unshared, "stepwise", sharing="cycle", num_hidden_groups=2).params["encoder"]["ffn"]["output"][
        "kernel"
    ]
    assert np.array_equal(two, first[[0, 3]])  # the first and the last layer
    relabeled = reshare(random_weights(sharing="0,1,1,0"), "stepwise", sharing="1,0,0,1").params["encoder"]
    assert np.array_equal(
        relabeled["ffn"]["output"]["bias"],
        random_weights(sharing="0,1,1,0").params["encoder"]["ffn"]["output"]["bias"][::-1],
    )
    inner = random_weights(sharing="none", inner_group_num=2)
    halves = reshare(inner, "stepwise", sharing="all").params["encoder"]["ffn"]["output"]["bias"]
    assert np.array_equal(halves, inner.params["encoder"]["ffn"]["output"]["bias"][[0, 7]])
    with pytest.raises(InputError, match="initialization: unknown value 'lower'; choose one of average, stepwise"):
        reshare(unshared, "lower", sharing="all")


def test_own_norms_are_copied() -> None:
    """Fails if the LayerNorms of the passes were averaged."""
    unshared = random_weights(sharing="none")
    weights = reshare(unshared, sharing="all", per_pass="norm")
    assert_same(
        weights.params["encoder"]["per_pass"]["ffn"]["LayerNorm"], unshared.params["encoder"]["ffn"]["LayerNorm"]
    )
    assert "LayerNorm" not in weights.params["encoder"]["ffn"]
    deeper = reshare(weights, num_hidden_layers=8, sharing="none", per_pass="none")
    norms = deeper.params["encoder"]["ffn"]["LayerNorm"]["scale"]
    assert np.array_equal(norms, np.repeat(unshared.params["encoder"]["ffn"]["LayerNorm"]["scale"], 2, axis=0))
    with pytest.raises(
        InputError, match="num_hidden_layers: the model has per-pass parameters for 4 layers; to change"
    ):
        reshare(weights, num_hidden_layers=8)
    unshared_again = reshare(weights, sharing="none")
    assert unshared_again.model.config.per_pass == weights.model.config.per_pass
    assert_near("unshared with own LayerNorms", outputs(unshared_again), outputs(weights))
    injected = random_weights(inject=True)
    assert_near("unshared with inject", outputs(reshare(injected, sharing="none")), outputs(injected))


def test_changed_layers_have_a_fixed_depth(tmp_path: Any) -> None:
    """A network trained with random depths can be exported, unshared and given LoRA.  Fails if it keeps depth_sampling."""
    weights = random_weights(sharing="cycle", num_hidden_groups=2, depth_sampling="uniform")
    expected = outputs(weights)
    for changed in (reshare(weights, sharing="none"), reshare(weights, per_pass="lora")):
        assert changed.model.config.depth_sampling == "fixed"
        assert any("depth_sampling was 'uniform'" in note for note in changed.notes)
        assert_near("changed", outputs(changed), expected)
    huggingface.write(weights, tmp_path)
    assert_near("exported", outputs(read(tmp_path).weights), expected)


@pytest.mark.parametrize("variant", ["embedding", *EXTRAS])
def test_gradients_in_bfloat16(variant: str) -> None:
    """Of per-pass parameters, relative to float32.  Fails if the gains of `inject` or `layer_weights` are cast to bfloat16."""
    exact = config("all", variant, vocab_size=200, hidden_size=32, max_position_embeddings=64)
    half = dataclasses.replace(exact, dtype="bfloat16")
    params = random_params(exact)
    ids = np.random.default_rng(4).integers(0, 200, (32, 64))
    weights = np.random.default_rng(5).normal(size=(32, 64, 32))

    def gradient(config: AlbertConfig) -> np.ndarray:
        def loss(params: Any) -> jax.Array:
            outputs: Any = Albert(config, heads=()).apply({"params": params}, ids)
            return jnp.vdot(outputs["last_hidden_state"].astype(jnp.float32), weights)

        leaves = jax.tree.leaves(jit(jax.grad(loss))(params)["encoder"]["per_pass"])
        return np.concatenate([np.ravel(leaf) for leaf in leaves])

    expected = gradient(exact)
    assert np.linalg.norm(gradient(half) - expected) < 0.1 * np.linalg.norm(expected)


def test_recomputed_passes_have_barriers() -> None:
    """Fails without barriers in passes that are not in a loop: XLA then merges recomputed values with those of the forward pass."""
    config = AlbertConfig(**SMALL, layer_weights=True)
    assert compiled(config).lower(random_params(config)).as_text().count("optimization_barrier") >= 4


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"sharing": "0,2,2,2"}, "sharing '0,2,2,2': no layer reads set 1 of attention; number the sets 0, 1, 2, ..."),
    ({"sharing": "0,1"}, "sharing '0,1': expected one number per layer (num_hidden_layers 4), got 2"),
    (
        {"sharing": "attention=0,0,0,0;ffn=0,1"},
        "sharing 'attention=0,0,0,0;ffn=0,1': expected one number per layer for ffn (num_hidden_layers 4), got 2",
    ),
    ({"sharing": "0,1,a,1"}, "sharing '0,1,a,1': expected the numbers of sets, separated by commas, got '0,1,a,1'"),
    ({"sharing": "attention=0,0,0,0"}, "sharing 'attention=0,0,0,0': the sets of ffn are missing; add ';ffn=...'"),
    (
        {"sharing": "attention=0,0,0,0;mlp=0,0,0,0"},
        "sharing 'attention=0,0,0,0;mlp=0,0,0,0': expected attention=SETS and",
    ),
    ({"sharing": 0}, "sharing: expected str, got 0"),
    (
        {"sharing": "some"},
        "sharing: unknown value 'some'; choose one of all, attention, ffn, none, groups, cycle, cycle-rev",
    ),
    ({"sharing": "0,1,0,1", "num_hidden_groups": 2}, "num_hidden_groups 2 needs sharing to be one of groups, "),
    (
        {"sharing": "middle", "num_hidden_groups": 3},
        "num_hidden_groups 3 is too large for sharing 'middle' with num_hidden_layers 4",
    ),
    ({"per_pass": "adapter"}, "per_pass: unknown value 'adapter'; choose one of none, norm, scale, embedding, lora"),
    (
        {"per_pass": Lora(rank=17)},
        "per_pass.rank must be in [1, 16], the smallest side of a kernel, got 17; rank 0 is ",
    ),
    ({"per_pass": Lora(rank=0)}, "per_pass.rank must be in [1, 16], the smallest side of a kernel, got 0; rank 0 is "),
]


@pytest.mark.parametrize(("changes", "message"), MISTAKES, ids=[message[:40] for _, message in MISTAKES])
def test_mistakes_are_errors_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        AlbertConfig(**SMALL | changes)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
