"""Change how the layers of a model share parameters, their per-pass parameters, and how many layers there are.

For warm starts, for ablations, and for formats that lack a sharing strategy.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from albert_jax.config import InputError, check_choice
from albert_jax.exchange.weights import Weights
from albert_jax.model.albert import AlbertConfig
from albert_jax.model.per_pass import Block
from albert_jax.model.sharing import PARTS, PASSES, STRATEGIES, Sets, layer_sets, table

MAY_CHANGE_IN_CONVERSION = ("sharing", "num_hidden_groups", "num_hidden_layers", "per_pass", "hidden_act")
"""The fields of `AlbertConfig` that a conversion may change."""

INITIALIZATIONS = ("average", "stepwise")
"""How a parameter set is made from the layers that read it: their mean, or one of them, such that the chosen layers are at about
equal distances (arXiv 2410.20672)."""


def reshare(weights: Weights, initialization: str = "average", **changes: Any) -> Weights:
    """Change fields of the model, those of `MAY_CHANGE_IN_CONVERSION`.

    A new parameter set is the mean of the old sets that its layers read.  Where they all read the same one it is an exact
    copy, so unsharing keeps the outputs.  Layer i of L' layers is a copy of layer i * L // L' of the old L: growing
    repeats each layer, and reducing 12 layers to 6 keeps every second one.

    Per-pass parameters are kept if variant and depth stay the same.  If the variant changes, the old one is merged into the layers;
    of the new one, `norm` and `lora` are fitted to the differences between the layers and their parameter set, the others
    start as ALBERT.

    Args:
      weights: the model.
      initialization: one of `INITIALIZATIONS`, for parameter sets that several different layers read.
      changes: the new values.

    Raises:
      InputError: a combination that `AlbertConfig` refuses, or per-pass parameters that can be neither kept nor merged.
    """
    check_choice("initialization", initialization, INITIALIZATIONS)
    old = weights.model.config
    strategy = STRATEGIES.get(changes.get("sharing", old.sharing))
    if not (strategy and strategy.takes_groups):
        changes = {"num_hidden_groups": 1} | changes
    fixed = dataclasses.replace(old, depth_sampling="fixed")
    new = dataclasses.replace(fixed, **changes)
    if (new.layer_sets, new.per_pass) == (old.layer_sets, old.per_pass):
        new = dataclasses.replace(old, **changes)
        return weights if new == old else weights.with_config(new)
    if old.depth_sampling != "fixed":
        note = f"depth_sampling was {old.depth_sampling!r} and is now 'fixed', because the layers have changed"
        weights = dataclasses.replace(weights.with_config(fixed), notes=[*weights.notes, note])
    if new.per_pass != old.per_pass:
        weights = merge(weights)
    elif PASSES in weights.params["encoder"] and new.depth != old.depth:
        raise InputError(
            f"num_hidden_layers: the model has per-pass parameters for {old.num_hidden_layers} layers; to change the depth, "
            "also set per_pass to none (models with inject or layer_weights cannot change)"
        )
    old = weights.model.config
    source_layers = [i * old.num_hidden_layers // new.num_hidden_layers for i in range(new.num_hidden_layers)]
    blocks = blocks_of(source_layers, old)
    old_sets = {part: tuple(sets[block] for block in blocks) for part, sets in old.layer_sets.items()}
    if new.per_pass == old.per_pass:
        return _gather(weights, new, old_sets, initialization)
    without_variant = dataclasses.replace(new, per_pass="none")
    return _fit(_gather(weights, without_variant, old_sets, initialization), new, weights, old_sets)


def merge(weights: Weights) -> Weights:
    """A network that computes the same, without per-pass parameters: each layer reads its own set.

    A model without per-pass parameters is returned as it is.

    Raises:
      InputError: `inject` or `layer_weights`, which layers without per-pass parameters cannot compute.
    """
    config, encoder = weights.model.config, dict(weights.params["encoder"])
    if PASSES not in encoder:
        return weights
    if config.inject or config.layer_weights:
        name = "inject" if config.inject else "layer_weights"
        raise InputError(
            f"model.{name} cannot be merged into layers, so the model cannot be exported to Hugging Face, nor change its per_pass"
        )
    passes = encoder.pop(PASSES)
    blocks = [
        config.per_pass.merge(_row(passes, i), _block(encoder, config.layer_sets, i)) for i in range(config.depth)
    ]
    encoder |= _stacked(blocks)
    unshared = dataclasses.replace(config, sharing="none", num_hidden_groups=1, per_pass="none")
    return weights.with_config(unshared, params=weights.params | {"encoder": encoder})


def _fit(shared: Weights, new: AlbertConfig, weights: Weights, old_sets: dict[str, Sets]) -> Weights:
    """Add the parameters of `new.per_pass` to `shared`, such that its blocks resemble those of `weights`."""
    encoder, source = dict(shared.params["encoder"]), weights.params["encoder"]
    passes = [
        new.per_pass.fit(new, _block(encoder, new.layer_sets, i), _block(source, old_sets, i)) for i in range(new.depth)
    ]
    for part in PARTS:
        encoder[part] = {name: leaves for name, leaves in encoder[part].items() if name not in new.per_pass.own_modules}
    encoder[PASSES] = _stacked(passes)
    return shared.with_config(new, params=shared.params | {"encoder": encoder})


def _row(tree: Any, number: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[number], tree)


def _block(encoder: dict[str, Any], sets: dict[str, Sets], number: int) -> Block:
    """The parameters of one block."""
    return {part: _row(encoder[part], sets[part][number]) for part in PARTS}


def _stacked(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf, np.float32) for leaf in leaves]), *trees)


def follow(weights: Weights, groups_of_layers: Sets) -> Weights:
    """The same parameters, with layer i reading parameter group `groups_of_layers[i]`.

    Google's and Hugging Face's code compute the group of a layer in floating point, and round wrongly for some numbers of
    layers and groups.  Our strategies use integers; if none of them matches, the sharing is a table.
    """
    old = weights.model.config
    blocks = blocks_of(groups_of_layers, old)
    for name, strategy in STRATEGIES.items():
        groups = old.num_hidden_groups if strategy.takes_groups else 1
        if set(layer_sets(name, old.num_hidden_layers, groups, old.inner_group_num).values()) == {blocks}:
            return weights.with_config(dataclasses.replace(old, sharing=name, num_hidden_groups=groups))
    used = sorted(set(groups_of_layers))
    sharing = table(tuple(used.index(group) for group in groups_of_layers))
    note = f"layers read groups {list(groups_of_layers)} by the source's formula: sharing {sharing}"
    new = dataclasses.replace(old, sharing=sharing, num_hidden_groups=1)
    weights = _gather(weights, new, dict.fromkeys(PARTS, blocks))
    return dataclasses.replace(weights, notes=[*weights.notes, note])


def blocks_of(layers: Sequence[int], config: AlbertConfig) -> Sets:
    """The numbers of the blocks of some layers, or of the parameter sets of some groups."""
    return tuple(layer * config.inner_group_num + j for layer in layers for j in range(config.inner_group_num))


def _gather(weights: Weights, new: AlbertConfig, old_sets: dict[str, Sets], initialization: str = "average") -> Weights:
    """The parameters of `new`, where block b of a part used to read set `old_sets[part][b]`."""
    encoder = dict(weights.params["encoder"])
    for part, new_sets in new.layer_sets.items():
        sources: list[list[int]] = [[] for _ in range(max(new_sets) + 1)]
        for number, old in zip(new_sets, old_sets[part], strict=True):
            sources[number].append(old)
        if initialization == "stepwise":
            steps = np.linspace(0, len(new_sets) - 1, len(sources))
            for number, step in enumerate(steps):  # of the blocks that read the set, the one nearest to its step
                readers = [block for block, one_set in enumerate(new_sets) if one_set == number]
                nearest = readers[int(np.argmin(np.abs(np.array(readers) - step)))]
                sources[number] = [old_sets[part][nearest]]

        def gather(leaf: np.ndarray, sources: list[list[int]] = sources) -> np.ndarray:
            gathered = np.empty((len(sources), *leaf.shape[1:]), leaf.dtype)
            for number, old in enumerate(sources):
                same = len(set(old)) == 1
                gathered[number] = leaf[old[0]] if same else np.mean(leaf[old], axis=0, dtype=np.float64)
            return gathered

        encoder[part] = jax.tree.map(gather, encoder[part])
    return weights.with_config(new, params=weights.params | {"encoder": encoder})
