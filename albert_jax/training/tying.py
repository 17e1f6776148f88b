"""Tie parameter sets during a part of a run: they compute and learn as one shared set, then separately, or the reverse.

The arrays keep their shapes, so a run that shares or unshares at some step is one run, with one log, and resumes like any other.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

Path = tuple[str, ...]


class Ties(NamedTuple):
    """Which parameter sets are tied, and when."""

    groups: Mapping[Path, tuple[int, ...]]
    """Path of a stacked parameter -> the group of each of its sets.  While tied, the sets of a group are equal."""
    start: int
    """The first tied update, counted from 0."""
    end: int
    """The first update that is no longer tied."""


def tie_initial(ties: Ties, params: Any) -> Any:
    """All sets of a group become copies of its first, if ties hold from the beginning.  A mean would have too small a variance."""
    if ties.start > 0:
        return params
    return _changed(ties, lambda groups, leaf: leaf[np.array([groups.index(group) for group in groups])], params)


def tied(
    clip: optax.GradientTransformation, rule: optax.GradientTransformation, ties: Ties
) -> tuple[optax.GradientTransformation, optax.GradientTransformation]:
    """Wrap `clip` and `rule`, which run one after the other, so that they treat tied sets as one shared set.

    The gradient of a shared set is the sum over its n copies.  Each copy gets this sum; while norms are computed it is
    divided by sqrt(n), so that the n copies have the norm of one.  The copies' updates then lead to the mean of what they would
    become separately, because their moments can differ if they were once separate.
    """
    before = _while_tied(ties, lambda groups, grad, _: _sum(groups, grad) / jnp.sqrt(_copies(groups, grad)))
    after = _while_tied(ties, lambda groups, grad, _: grad * jnp.sqrt(_copies(groups, grad)))
    mean = _while_tied(
        ties, lambda groups, update, param: _sum(groups, param + update) / _copies(groups, param) - param
    )
    return optax.chain(before, clip, after), optax.chain(rule, mean)


def _while_tied(ties: Ties, change: Callable[[tuple[int, ...], Array, Array], Array]) -> optax.GradientTransformation:
    """Apply `change(groups, update, parameter)` to each stacked parameter while ties hold.  The state is the number of updates."""

    def update(updates: Any, count: Array, params: Any = None) -> tuple[Any, Array]:
        on = (count >= ties.start) & (count < ties.end)
        changed = _changed(ties, change, updates, params)
        return jax.tree.map(lambda new, old: jnp.where(on, new, old), changed, updates), count + 1

    return optax.GradientTransformation(lambda params: jnp.int32(0), update)


def _changed(ties: Ties, change: Callable[..., Array], *trees: Any) -> Any:
    """Apply `change(groups, *leaves)` to the parameters in `ties.groups`."""

    def leaf(key: Any, first: Array, *others: Array) -> Array:
        groups = ties.groups.get(tuple(jax.tree_util.keystr(key, simple=True, separator="/").split("/")))
        return first if groups is None else change(groups, first, *others)

    return jax.tree_util.tree_map_with_path(leaf, *trees)


def _sum(groups: tuple[int, ...], leaf: Array) -> Array:
    """For each set, the sum over the sets of its group."""
    ids = np.array(groups)
    return jax.ops.segment_sum(leaf, ids, num_segments=len(groups))[ids]


def _copies(groups: tuple[int, ...], leaf: Array) -> Array:
    """For each set, the number of sets in its group, with the axes of `leaf`."""
    counts = np.bincount(groups)[np.array(groups)]
    return jnp.asarray(counts, leaf.dtype).reshape(-1, *(1,) * (leaf.ndim - 1))
