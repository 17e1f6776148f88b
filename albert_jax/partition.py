"""Devices: the mesh, where arrays live on it, and gradients over it.  The one place that knows how many there are.

Plain data parallelism: parameters everywhere, the batch cut by rows.  That is right for every shared ALBERT (12 to 223 M
parameters); sharded parameters would be gathered L times a step for one and the same layer.
"""

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from albert_jax.config import InputError, require

DATA = "data"

PEAK_TFLOPS = {
    "H100": 989,
    "H200": 989,
    "A100": 312,
    "V100": 125,
    "L40S": 362,
    "L4": 121,
    "TPU v2": 22.5,
    "TPU v3": 61.5,
    "TPU v4": 275,
    "TPU v5 lite": 197,
    "TPU v5": 459,
    "TPU v6": 918,
}
"""Dense bf16 (V100: fp16) peak of the data sheets, per JAX device, by what stands in its `device_kind`."""


def make_mesh(platform: str) -> Mesh:
    """A mesh of all devices along one axis, `data`.

    Raises:
      InputError: `platform` ('cpu', 'gpu', 'tpu'; 'any' takes what is there) is not what JAX finds.
    """
    try:
        found = jax.default_backend()
    except RuntimeError as error:  # JAX_PLATFORMS names something that is not there
        reason = str(error).splitlines()[0]
        raise InputError(
            f"train.platform {platform!r}: JAX starts no device ({reason}); JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}"
        ) from None
    require(
        platform in ("any", found),
        f"train.platform {platform!r} requested, but JAX found {found!r}; install its jax plugin or pass --train.platform {found}",
    )
    # Auto axes: flax's embedding lookup does not work under explicit ones, which are make_mesh's default.
    return jax.make_mesh((jax.device_count(),), (DATA,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def by_rows(mesh: Mesh) -> NamedSharding:
    """Each device holds its share of the leading axis."""
    return NamedSharding(mesh, PartitionSpec(DATA))


def check_batch(field: str, batch_size: int, gradient_accumulation: int, mesh: Mesh) -> None:
    """Refuses a batch that the devices and micro-batches cannot share evenly.

    Raises:
      InputError: naming all the numbers and the nearest batches that fit.
    """
    parts = mesh.size * gradient_accumulation
    below = max(batch_size // parts, 1) * parts
    require(
        batch_size % parts == 0,
        f"{field} {batch_size} is not divisible by {mesh.size} devices ({jax.process_count()} processes) "
        f"x train.gradient_accumulation {gradient_accumulation}; use {below} or {below + parts}",
    )


def put(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, Array]:
    """This process' rows of a batch as global arrays, cut by rows."""
    return {name: jax.make_array_from_process_local_data(by_rows(mesh), rows) for name, rows in batch.items()}


def prefetch(mesh: Mesh, batches: Iterator[dict[str, np.ndarray]], ahead: int = 2) -> Iterator[dict[str, Array]]:
    """Batches on the devices, `ahead` of them under way."""
    held: list[dict[str, Array]] = []
    for batch in batches:
        held.append(put(mesh, batch))
        if len(held) > ahead:
            yield held.pop(0)
    yield from held


def summed_gradients(loss_fn: Callable[..., Any], mesh: Mesh, micro_batches: int) -> Callable[..., Any]:
    """`(params, examples) -> (gradients, loss, metrics)`, each summed over micro-batches and then, once, over devices.

    `loss_fn(params, examples) -> (loss, metrics)` must add up over rows.  The parameters are marked as varying over the mesh
    before the loops: left to itself, jit puts an all-reduce of the shared layer's gradient into each of its L iterations.
    """

    def local(params: Any, examples: Any) -> Any:
        params = varying(params)

        def add(total: Any, rows: Any) -> tuple[Any, None]:
            (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, rows)
            return jax.tree.map(jnp.add, total, (grads, loss, metrics)), None

        micro = jax.tree.map(lambda x: x.reshape(micro_batches, -1, *x.shape[1:]), examples)
        shapes = jax.eval_shape(loss_fn, params, jax.tree.map(lambda x: x[0], micro))
        zeros = varying(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (params, *shapes)))
        total, _ = jax.lax.scan(add, zeros, micro)
        return jax.lax.psum(total, DATA)

    def varying(tree: Any) -> Any:
        return jax.tree.map(lambda x: jax.lax.pcast(x, DATA, to="varying"), tree)

    return jax.shard_map(local, mesh=mesh, in_specs=(PartitionSpec(), PartitionSpec(DATA)), out_specs=PartitionSpec())


def matmul_flops(dtype: str) -> float:
    """FLOP/s of all devices in a large matrix product, measured now: what no training step exceeds."""
    size = 2048 if jax.default_backend() == "cpu" else 8192
    matrix = jnp.ones((size, size), dtype)
    product = jax.jit(jnp.matmul)
    product(matrix, matrix).block_until_ready()
    begun = time.perf_counter()
    product(matrix, matrix).block_until_ready()
    return 2.0 * size**3 * jax.device_count() / (time.perf_counter() - begun)


def peak_flops(mesh: Mesh) -> float | None:
    """Data-sheet FLOP/s of all devices together, or None where unknown (a CPU)."""
    kind = mesh.devices.flat[0].device_kind
    found = max(
        (name for name in PEAK_TFLOPS if name in kind), key=len, default=None
    )  # the longest: "TPU v5 lite", not "TPU v5"
    return PEAK_TFLOPS[found] * 1e12 * mesh.size if found else None
