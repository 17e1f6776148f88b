"""Several runs that differ only in the seed as one program.  Each of their arrays has a leading axis [K] for the K seeds.

One run has no such axis, so that its program stays as it is: with K = 1, these functions return their argument.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec


def vmapped(function: Callable[..., Any], num_seeds: int, in_axes: Any = 0) -> Callable[..., Any]:
    """Map a function of one run over the seeds.  Norms, random keys and counts in it remain those of one run."""
    return function if num_seeds == 1 else jax.vmap(function, in_axes)


def stacked_sharding(sharding: NamedSharding, num_seeds: int) -> NamedSharding:
    """The sharding of K stacked arrays; each device has a part of every run."""
    return sharding if num_seeds == 1 else NamedSharding(sharding.mesh, PartitionSpec(None, *sharding.spec))


def stacked_shapes(shapes: Any, num_seeds: int) -> Any:
    """The shape and sharding of each stacked array, from those of one run."""
    if num_seeds == 1:
        return shapes
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            (num_seeds, *x.shape), x.dtype, sharding=stacked_sharding(x.sharding, num_seeds)
        ),
        shapes,
    )


def stack(trees: Sequence[Any]) -> Any:
    """Stack the states of K runs."""
    if len(trees) == 1:
        return trees[0]
    shardings = jax.tree.map(lambda x: stacked_sharding(x.sharding, len(trees)), trees[0])
    return jax.jit(lambda *runs: jax.tree.map(lambda *leaves: jnp.stack(leaves), *runs), out_shardings=shardings)(
        *trees
    )


def make_take(shapes: Any, num_seeds: int) -> Callable[[Any, int], Any]:
    """Return the function (stacked state, number of the run) -> state of that run.

    Args:
      shapes: shape and sharding of each array of one run.
      num_seeds: K.
    """
    if num_seeds == 1:
        return lambda state, number: state
    shardings = jax.tree.map(lambda x: x.sharding, shapes)

    @functools.partial(jax.jit, out_shardings=shardings)
    def take(state: Any, number: Any) -> Any:
        return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, number, keepdims=False), state)

    return take


def stacked_batches(batches: Sequence[Iterator[dict[str, np.ndarray]]]) -> Iterator[dict[str, np.ndarray]]:
    """Stack the next batch of each run."""
    if len(batches) == 1:
        return batches[0]
    return (
        {name: np.stack([batch[name] for batch in group]) for name in group[0]} for group in zip(*batches, strict=True)
    )
