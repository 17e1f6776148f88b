"""Variable depth: a random number of layers in each training step, or another number in evaluation.

It needs layers that repeat: a deeper network reads the same parameter sets again.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


def uniform(num_layers: int) -> np.ndarray:
    """1 to 2 L - 1 layers, all equally likely; the mean is L."""
    return np.full(2 * num_layers - 1, 1 / (2 * num_layers - 1))


def poisson(num_layers: int) -> np.ndarray:
    """1 layer plus a Poisson number with mean L - 1, cut at 2 L - 1 layers in all; the mean is slightly below L."""
    mean = num_layers - 1
    logs = np.array([k * math.log(mean or 1) - math.lgamma(k + 1) for k in range(2 * num_layers - 1)])
    weights = np.exp(logs - logs.max())
    return weights / weights.sum()


DEPTH_SAMPLING: dict[str, Callable[[int], np.ndarray] | None] = {
    "fixed": None,  # always L
    "uniform": uniform,
    "poisson": poisson,
}
"""Name -> function from L to the probabilities of 1, 2, ..., 2 L - 1 layers."""


LAYERS_KEY = 0x1A7E55
"""Separates the key of the number of layers from the other keys of a step."""


def layers_of_step(sampling: str, key: Array, num_layers: int, rows: int) -> dict[str, Array]:
    """Draw the number of layers of a step: `num_layers` [rows], int32, the same in all rows; nothing if it is fixed."""
    probabilities = DEPTH_SAMPLING[sampling]
    if probabilities is None:
        return {}
    p = probabilities(num_layers)
    numbers = np.arange(1, len(p) + 1, dtype=np.int32)
    return {"num_layers": jnp.full(rows, jax.random.choice(jax.random.fold_in(key, LAYERS_KEY), numbers, p=p))}


def max_layers(sampling: str, num_layers: int) -> int:
    """The largest number of layers that can be drawn."""
    probabilities = DEPTH_SAMPLING[sampling]
    return num_layers if probabilities is None else len(probabilities(num_layers))
