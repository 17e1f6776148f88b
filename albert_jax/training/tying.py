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

from albert_jax.training.paths import Path, path_names

Groups = tuple[int, ...]


class Ties(NamedTuple):
    """Which parameter sets are tied, and when."""

    groups: Mapping[Path, Groups]
    """Path of a stacked parameter -> the group of each of its sets.  While tied, the sets of a group are equal."""
    start: int
    """The first tied update, counted from 0.  Like the learning rate, it does not count skipped updates."""
    end: int
    """The first update that is no longer tied."""


def tie_fresh(ties: Ties, params: Any) -> Any:
    """If tying starts at update 0, copy the first set of each group to the others.  Their mean would have too small a variance."""
    if ties.start > 0:
        return params
    return _changed(ties, lambda groups, leaf: leaf[np.array([groups.index(group) for group in groups])], params)


def tie_trained(ties: Ties, params: Any) -> Any:
    """If tying starts at update 0, set all sets of a group to their mean; for parameters that were trained before."""
    if ties.start > 0:
        return params
    return _changed(ties, lambda groups, leaf: _sum(groups, leaf) / _copies(groups, leaf), params)


def tied(
    clip: optax.GradientTransformation, rule: optax.GradientTransformation, ties: Ties
) -> tuple[optax.GradientTransformation, optax.GradientTransformation]:
    """Wrap `clip` and `rule`, which run one after the other, so that they treat tied sets as one shared set.

    The gradient of a shared set is the sum over its n copies.  Each copy gets this sum; while norms are computed it is
    divided by sqrt(n), so that the n copies have the norm of one.  After the update, every copy is set to the mean of the copies,
    because their moments may differ if they were once separate.
    """
    before = _while_tied(ties, lambda groups, grad, _: _sum(groups, grad) / jnp.sqrt(_copies(groups, grad)))
    after = _while_tied(ties, lambda groups, grad, _: grad * jnp.sqrt(_copies(groups, grad)))
    mean = _while_tied(
        ties, lambda groups, update, param: _sum(groups, param + update) / _copies(groups, param) - param
    )
    return optax.chain(before, clip, after), optax.chain(rule, mean)


def _while_tied(ties: Ties, change: Callable[[Groups, Array, Array], Array]) -> optax.GradientTransformation:
    """Apply `change(groups, update, parameter)` to each stacked parameter while tied.  The state is the number of updates."""

    def update(updates: Any, count: Array, params: Any = None) -> tuple[Any, Array]:
        on = (count >= ties.start) & (count < ties.end)
        changed = _changed(ties, change, updates, params)
        return jax.tree.map(lambda new, old: jnp.where(on, new, old), changed, updates), count + 1

    return optax.GradientTransformation(lambda params: jnp.int32(0), update)


def _changed(ties: Ties, change: Callable[..., Array], *trees: Any) -> Any:
    """Apply `change(groups, *leaves)` to the parameters in `ties.groups`."""

    def leaf(key: Any, first: Array, *others: Array) -> Array:
        groups = ties.groups.get(path_names(key))
        return first if groups is None else change(groups, first, *others)

    return jax.tree_util.tree_map_with_path(leaf, *trees)


def _sum(groups: Groups, leaf: Array) -> Array:
    """For each set, the sum over the sets of its group."""
    ids = np.array(groups)
    return jax.ops.segment_sum(leaf, ids, num_segments=len(groups))[ids]


def _copies(groups: Groups, leaf: Array) -> Array:
    """For each set, the number of sets in its group, with the axes of `leaf`."""
    counts = np.bincount(groups)[np.array(groups)]
    return jnp.asarray(counts, leaf.dtype).reshape(-1, *(1,) * (leaf.ndim - 1))
