"""The Pallas kernels equal what XLA computes: alone, in the model, and on several devices."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from albert_jax.config import InputError
from albert_jax.model import albert, fused
from albert_jax.model.albert import ACTIVATIONS, AlbertConfig
from albert_jax.model.heads import Albert, param_shapes
from albert_jax.model.per_pass import PER_PASS

from .small_models import SMALL
from .train_script import train

EPSILON = 1e-12


def plain_add_layer_norm(x: jax.Array, y: jax.Array, y_bias: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    summed = (x + (y + y_bias).astype(y.dtype)).astype(jnp.float32)
    centered = summed - jnp.mean(summed, axis=-1, keepdims=True)
    variance = jnp.mean(centered**2, axis=-1, keepdims=True)
    return (centered / jnp.sqrt(variance + EPSILON) * scale + bias).astype(x.dtype)


def normal(number: int, shape: tuple[int, ...], dtype: str) -> jax.Array:
    return jax.random.normal(jax.random.key(number), shape, dtype)


def assert_same_with_gradients(
    kernel: Callable[..., Any], plain: Callable[..., Any], arguments: list[jax.Array]
) -> None:
    """Outputs and the gradients of all arguments, relative to those of the plain function in float32."""
    dtype = arguments[0].dtype
    gradient = normal(99, arguments[0].shape, dtype.name)
    output, pull = jax.vjp(kernel, *arguments)
    expected_output, expected_pull = jax.vjp(plain, *(x.astype(jnp.float32) for x in arguments))
    values, expected = (output, *pull(gradient)), (expected_output, *expected_pull(gradient.astype(jnp.float32)))
    assert [x.dtype for x in values] == [dtype, *(x.dtype for x in arguments)]
    for value, target in zip(values, expected, strict=True):
        error = jnp.linalg.norm(value.astype(jnp.float32) - target) / jnp.linalg.norm(target)
        assert error < {"float32": 1e-5, "bfloat16": 1e-2}[dtype.name]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(367, 3, 48), (1, 3, 64)], ids=str)
def test_add_layer_norm(shape: tuple[int, ...], dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With sizes that are not multiples of a block, and several blocks for each program.  Fails if a row is read twice or never."""
    monkeypatch.setattr(fused, "PROGRAMS", 3)
    monkeypatch.setattr(fused, "BLOCK", 256)
    arguments = [normal(0, shape, dtype), normal(1, shape, dtype)]
    arguments += [normal(number, shape[-1:], "float32") for number in (2, 3, 4)]
    assert_same_with_gradients(
        lambda *arguments: fused.add_layer_norm(*arguments, EPSILON), plain_add_layer_norm, arguments
    )


@pytest.mark.parametrize("name", ["gelu_new", "relu", "tanh", "linear"])
def test_add_activate(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "PROGRAMS", 3)
    monkeypatch.setattr(fused, "COLUMNS", 32)
    monkeypatch.setattr(fused, "BLOCK", 256)
    activation = ACTIVATIONS[name]

    def plain(x: jax.Array, bias: jax.Array) -> jax.Array:
        return activation((x + bias.astype(x.dtype)).astype(jnp.float32)).astype(x.dtype)

    for dtype in ("float32", "bfloat16"):
        bias = normal(1, (72,), "bfloat16").astype(
            jnp.float32
        )  # rounding it could move x + bias across the kink of ReLU
        arguments = [normal(0, (367, 3, 72), dtype), bias]
        assert_same_with_gradients(lambda x, bias: fused.add_activate(x, bias, activation), plain, arguments)


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models use the kernels although there is no GPU."""
    monkeypatch.setattr(albert, "uses_kernels", lambda config: config.fused_kernels)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(
    "fields",
    [
        {"remat": "none"},
        {"sharing": "0,1,1,0", "scan_unroll": 4},
        {"per_pass": PER_PASS["norm"]()},
        {"per_pass": PER_PASS["scale"](), "remat": "dots"},
    ],
    ids=str,
)
def test_model_with_fused_kernels(fields: dict[str, Any]) -> None:
    """The same parameter tree, outputs and gradients.  Fails if a kernel ignores the parameters of a pass."""
    plain = AlbertConfig(**SMALL, **fields)
    random = np.random.default_rng(1)
    params = jax.tree.map(
        lambda leaf: random.normal(0, 0.3, leaf.shape).astype(np.float32), param_shapes(Albert(plain))
    )
    ids = random.integers(0, plain.vocab_size, (3, 10))
    mask = (np.arange(10) < np.array([[10], [7], [5]])).astype(int)
    positions = np.array([[9, 0, 3], [1, 6, 2], [4, 2, 1]])

    def loss(params: Any, config: AlbertConfig) -> jax.Array:
        outputs: Any = Albert(config).apply(
            {"params": params},
            input_ids=ids,
            attention_mask=mask,
            token_type_ids=jnp.zeros_like(ids),
            masked_lm_positions=positions,
        )
        return jnp.sum(outputs["prediction_logits"] ** 2) + jnp.sum(outputs["sop_logits"] ** 2)

    values = [
        jax.jit(jax.value_and_grad(loss), static_argnums=1)(params, config)
        for config in (plain, dataclasses.replace(plain, fused_kernels=True))
    ]
    largest = max(
        float(np.abs(leaf).max()) for leaf in jax.tree.leaves(values[0])
    )  # some gradients are 0 but for rounding
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-6 * largest), *values)


@pytest.mark.usefixtures("interpreted")
def test_fused_kernels_on_eight_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses and parameters after several steps, with sharded state.  Fails if the sums of a kernel stay on one device."""
    # Pallas's interpreter does not know which of its values vary over the devices.
    monkeypatch.setattr(jax, "shard_map", functools.partial(jax.shard_map, check_vma=False))
    plain, one = (
        train(1, sharing="none", hidden_dropout_prob=0.0),
        train(1, sharing="none", hidden_dropout_prob=0.0, fused_kernels=True),
    )
    eight = train(8, 2, "none", cut="parameters", hidden_dropout_prob=0.0, fused_kernels=True)
    for run in (one, eight):
        np.testing.assert_allclose(run["losses"], plain["losses"], atol=1e-5)
        np.testing.assert_allclose(run["params"], plain["params"], atol=1e-5)


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("width", [768, 4096])
def test_kernels_lower_to_triton(width: int, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if a kernel has an operation that Triton lacks.  Compilation for the GPU is not tested."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    h200 = jax.sharding.AbstractDevice("NVIDIA H200", 132, "cuda")
    x, vector = jax.ShapeDtypeStruct((4, 16, width), dtype), jax.ShapeDtypeStruct((width,), "float32")

    def norm(*arguments: Any) -> jax.Array:
        return fused.add_layer_norm(*arguments, EPSILON).astype(jnp.float32).sum()

    def activate(activation: Any, *arguments: Any) -> jax.Array:
        return fused.add_activate(*arguments, activation).astype(jnp.float32).sum()

    functions: list[Any] = [(jax.grad(norm, argnums=range(5)), (x, x, vector, vector, vector))]
    kinds = ("gelu_new", "relu", "tanh", "linear")
    functions += [
        (jax.grad(functools.partial(activate, ACTIVATIONS[kind]), argnums=(0, 1)), (x, vector)) for kind in kinds
    ]
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((1,), ("data",), abstract_device=h200)):
        for function, arguments in functions:
            assert "triton" in jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_dropout_prob": 0.1}, "fused_kernels needs hidden_dropout_prob 0, got 0.1"),
        ({"hidden_act": "gelu"}, "fused_kernels does not support hidden_act 'gelu'; set fused_kernels to false"),
    ],
)
def test_settings_without_kernels(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        AlbertConfig(**SMALL, fused_kernels=True, **fields)


def test_without_a_gpu_the_field_changes_nothing() -> None:
    """A run of a GPU can be read, evaluated and continued elsewhere."""
    config = AlbertConfig(**SMALL, fused_kernels=True)
    assert not albert.uses_kernels(config)
    plain, same = train(1, hidden_dropout_prob=0.0), train(1, hidden_dropout_prob=0.0, fused_kernels=True)
    np.testing.assert_array_equal(same["losses"], plain["losses"])
