"""The same layers under another sharing, depth or rule: for warm starts, ablations, and formats that lack a strategy."""

import dataclasses
from typing import Any

import jax
import numpy as np

from albert_jax.exchange.weights import Weights
from albert_jax.model.albert import AlbertConfig
from albert_jax.model.heads import Albert
from albert_jax.model.sharing import PARTS, Sets, layer_sets

CHANGES = ("sharing", "num_hidden_groups", "num_hidden_layers", "hidden_act")
"""What a conversion may change of a model."""


def reshare(weights: Weights, **changes: Any) -> Weights:
    """The model with other `CHANGES`.

    A new parameter set is the mean of the old sets that its layers read; where they read one, it is that one, bit for
    bit, so unsharing leaves the network as it was.  Layer i of a deeper or shallower network is the old layer i * L // L':
    growing repeats each layer, cutting 12 to 6 keeps every other one.

    Raises:
      InputError: a combination that `AlbertConfig` refuses.
    """
    old = weights.model.config
    if changes.get("sharing", "groups") != "groups":
        changes = {"num_hidden_groups": 1} | changes
    new = dataclasses.replace(old, **changes)
    if new == old:
        return weights
    kept = _blocks([i * old.num_hidden_layers // new.num_hidden_layers for i in range(new.num_hidden_layers)], old)
    before = {part: tuple(sets[block] for block in kept) for part, sets in _sets(old).items()}
    return _gather(weights, new, before)


def follow(weights: Weights, rule: Sets) -> Weights:
    """The network whose layer i reads group `rule[i]`; by copying, where that is not what our integers give.

    Both released formulas are in floating point, and wrong for some numbers of layers and groups.
    """
    config = weights.model.config
    blocks = _blocks(list(rule), config)
    if all(blocks == sets for sets in _sets(config).values()):
        return weights
    note = f"layers read groups {list(rule)}, by the source's formula; stored unshared to keep that"
    new = dataclasses.replace(config, sharing="none", num_hidden_groups=1)
    weights = _gather(weights, new, dict.fromkeys(PARTS, blocks))
    return dataclasses.replace(weights, notes=[*weights.notes, note])


def _sets(config: AlbertConfig) -> dict[str, Sets]:
    return layer_sets(config.sharing, config.num_hidden_layers, config.num_hidden_groups, config.inner_group_num)


def _blocks(layers: list[int], config: AlbertConfig) -> Sets:
    return tuple(layer * config.inner_group_num + j for layer in layers for j in range(config.inner_group_num))


def _gather(weights: Weights, new: AlbertConfig, before: dict[str, Sets]) -> Weights:
    """The parameters of `new`, whose block b of a part was set `before[part][b]`."""
    encoder = dict(weights.params["encoder"])
    for part, after in _sets(new).items():
        uses: list[list[int]] = [[] for _ in range(max(after) + 1)]
        for row, old in zip(after, before[part], strict=True):
            uses[row].append(old)

        def gather(leaf: np.ndarray, uses: list[list[int]] = uses) -> np.ndarray:
            made = np.empty((len(uses), *leaf.shape[1:]), leaf.dtype)
            for row, old in enumerate(uses):
                made[row] = leaf[old[0]] if len(set(old)) == 1 else np.mean(leaf[old], axis=0, dtype=np.float64)
            return made

        encoder[part] = jax.tree.map(gather, encoder[part])
    model = Albert(new, weights.model.heads, weights.model.labels)
    return dataclasses.replace(weights, model=model, params=weights.params | {"encoder": encoder})
