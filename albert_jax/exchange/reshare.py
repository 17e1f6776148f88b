"""Change how the layers of a model share parameters, and how many there are.

For warm starts, for ablations, and for formats that lack a sharing strategy.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from albert_jax.exchange.weights import Weights
from albert_jax.model.albert import AlbertConfig
from albert_jax.model.sharing import PARTS, STRATEGIES, Sets

MAY_CHANGE_IN_CONVERSION = ("sharing", "num_hidden_groups", "num_hidden_layers", "hidden_act")
"""The fields of `AlbertConfig` that a conversion may change."""


def reshare(weights: Weights, **changes: Any) -> Weights:
    """Change fields of the model, those of `MAY_CHANGE_IN_CONVERSION`.

    A new parameter set is the mean of the old sets that its layers read.  Where they all read the same one it is an exact
    copy, so unsharing keeps the outputs.  Layer i of L' layers is a copy of layer i * L // L' of the old L: growing
    repeats each layer, and reducing 12 layers to 6 keeps every second one.

    Raises:
      InputError: a combination that `AlbertConfig` refuses.
    """
    old = weights.model.config
    strategy = STRATEGIES.get(changes.get("sharing", old.sharing))
    if strategy and not strategy.takes_groups:
        changes = {"num_hidden_groups": 1} | changes
    new = dataclasses.replace(old, **changes)
    if new == old:
        return weights
    source_layers = [i * old.num_hidden_layers // new.num_hidden_layers for i in range(new.num_hidden_layers)]
    blocks = blocks_of(source_layers, old)
    old_sets = {part: tuple(sets[block] for block in blocks) for part, sets in old.layer_sets.items()}
    return _gather(weights, new, old_sets)


def follow(weights: Weights, groups_of_layers: Sets) -> Weights:
    """The same parameters, with layer i reading parameter group `groups_of_layers[i]`, under the strategy that says so.

    Google's and Hugging Face's code compute the group of a layer in floating point, and round wrongly for some numbers of
    layers and groups.  Our strategies use integers; if none of them matches, each layer gets its own copy of its group.
    """
    old = weights.model.config
    blocks = blocks_of(groups_of_layers, old)
    for name, strategy in STRATEGIES.items():
        groups = old.num_hidden_groups if strategy.takes_groups else 1
        config = dataclasses.replace(old, sharing=name, num_hidden_groups=groups)
        if set(config.layer_sets.values()) == {blocks}:
            return weights.with_config(config)
    note = f"layers read groups {list(groups_of_layers)} by the source's formula; stored unshared to keep that"
    unshared = dataclasses.replace(old, sharing="none", num_hidden_groups=1)
    weights = _gather(weights, unshared, dict.fromkeys(PARTS, blocks))
    return dataclasses.replace(weights, notes=[*weights.notes, note])


def blocks_of(layers: Sequence[int], config: AlbertConfig) -> Sets:
    """The numbers of the blocks of some layers, or of the parameter sets of some groups."""
    return tuple(layer * config.inner_group_num + j for layer in layers for j in range(config.inner_group_num))


def _gather(weights: Weights, new: AlbertConfig, old_sets: dict[str, Sets]) -> Weights:
    """The parameters of `new`, where block b of a part used to read set `old_sets[part][b]`."""
    encoder = dict(weights.params["encoder"])
    for part, new_sets in new.layer_sets.items():
        sources: list[list[int]] = [[] for _ in range(max(new_sets) + 1)]
        for number, old in zip(new_sets, old_sets[part], strict=True):
            sources[number].append(old)

        def gather(leaf: np.ndarray, sources: list[list[int]] = sources) -> np.ndarray:
            gathered = np.empty((len(sources), *leaf.shape[1:]), leaf.dtype)
            for number, old in enumerate(sources):
                same = len(set(old)) == 1
                gathered[number] = leaf[old[0]] if same else np.mean(leaf[old], axis=0, dtype=np.float64)
            return gathered

        encoder[part] = jax.tree.map(gather, encoder[part])
    return weights.with_config(new, params=weights.params | {"encoder": encoder})
