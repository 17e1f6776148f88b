"""How fast devices are: their data sheets, and a large matrix product timed here."""

import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh


class DataSheet(NamedTuple):
    """Peak speed and memory of one JAX device: a chip, or one core of a TPU v2 or v3."""

    tflops: float
    """Dense bfloat16 (V100: float16) TFLOP/s."""
    memory_gb: float
    """The larger size of cards that are sold in two."""


DATA_SHEETS = {
    "H100": DataSheet(989, 80),
    "H200": DataSheet(989, 141),
    "A100": DataSheet(312, 80),
    "V100": DataSheet(125, 32),
    "L40S": DataSheet(362, 48),
    "L4": DataSheet(121, 24),
    "TPU v2": DataSheet(22.5, 8),
    "TPU v3": DataSheet(61.5, 16),
    "TPU v4": DataSheet(275, 32),
    "TPU v5 lite": DataSheet(197, 16),
    "TPU v5": DataSheet(459, 95),
    "TPU v6": DataSheet(918, 32),
}
"""Device name, a part of JAX's `device_kind` -> its data sheet."""


def peak_flops(mesh: Mesh) -> float | None:
    """Data-sheet FLOP/s of all devices of the mesh together, or None for an unknown device (a CPU)."""
    kind = mesh.devices.flat[0].device_kind
    # The longest name that matches: "TPU v5 lite", not "TPU v5".
    name = max((name for name in DATA_SHEETS if name in kind), key=len, default=None)
    return DATA_SHEETS[name].tflops * 1e12 * mesh.size if name else None


def matmul_flops(dtype: str) -> float:
    """Measure the FLOP/s of all devices in a large matrix product: an upper bound for any training step."""
    # XLA:CPU multiplies bfloat16 in float32 unless the result is float32 too; on a GPU a float32 result costs an eighth.
    size, result = (2048, jnp.float32) if jax.default_backend() == "cpu" else (8192, None)
    # Random numbers, because a GPU multiplies constants faster, on less power.
    matrix = jax.random.normal(jax.random.key(0), (size, size), dtype)
    product = jax.jit(lambda x, y: jnp.matmul(x, y, preferred_element_type=result).astype(dtype))
    return 2.0 * size**3 * jax.device_count() / best_seconds(lambda: product(matrix, matrix))


def best_seconds(call: Callable[[], Array], rounds: int = 5, calls: int = 4) -> float:
    """Seconds per call in the fastest of `rounds` rounds of `calls` calls.  The first call is not timed."""
    call().block_until_ready()
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(calls):
            last = call()
        last.block_until_ready()
        seconds.append((time.perf_counter() - start) / calls)
    return min(seconds)
