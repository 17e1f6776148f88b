"""Look inside a model: attention maps, and how far each layer moves its input (Figure 1 of the paper), with plots."""

import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from albert_jax.config import InputError
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.inference.pretrained import apply
from albert_jax.model.heads import Albert, check_ids

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def attention_maps(
    model: Albert, params: Any, tokenizer: Tokenizer, text: str, text_pair: str | None = None
) -> tuple[np.ndarray, list[str]]:
    """The attention weights for one text or pair of texts, and its pieces.

    Returns:
      The weights [L * inner_group_num, N, S, S] and the S pieces.  `maps[layer, head, i, j]` is the weight with which piece
      i attends to piece j; rows add up to 1.

    Raises:
      InputError: as `tokenizer.encode`.
    """
    inputs = tokenizer(text, text_pair, max_length=model.config.max_position_embeddings)
    attentions = _attentions(model, params, inputs)
    return np.asarray(attentions[:, 0], np.float32), tokenizer.pieces(inputs["input_ids"][0])


@partial(jax.jit, static_argnames="model")
def _attentions(model: Albert, params: Any, inputs: dict[str, jax.Array]) -> jax.Array:
    return apply(model, params, inputs, output_attentions=True)["attentions"]


def attention_rollout(maps: np.ndarray) -> np.ndarray:
    """How much each piece enters each position after each layer, if only attention moved information.

    Abnar and Zuidema (arXiv 2005.00928), section 3: the mean over heads, half of it replaced by the residual connection, multiplied
    over the layers.

    Args:
      maps: the weights [L, N, S, S] of `attention_maps`.

    Returns:
      Weights [L, S, S]; rows add up to 1.  `draw_attention(rollout[:, None], pieces)` plots them.
    """
    layers = (maps.mean(axis=1) + np.eye(maps.shape[-1])) / 2
    return np.stack(list(itertools.accumulate(layers, lambda before, layer: layer @ before)))


def layer_distances(model: Albert, params: Any, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """How far each layer moves its input (paper, Figure 1), averaged over all tokens except padding.

    Args:
      model, params: as returned by `albert_jax.load`.
      inputs: the tokenizer's output for some texts; more texts give smoother averages.  Without an `attention_mask` there
        is no padding.

    Returns:
      Arrays [L]: `l2`, the distance between the input and the output of a layer; `cosine`, their similarity; `degrees`,
      the angle between them.
    """
    check_ids(model.config, **inputs)
    mask = {"attention_mask": np.ones_like(inputs["input_ids"])}
    return jax.device_get(_distances(model, params, mask | dict(inputs)))


@partial(jax.jit, static_argnames="model")
def _distances(model: Albert, params: Any, inputs: dict[str, jax.Array]) -> dict[str, jax.Array]:
    states = apply(model, params, inputs, output_hidden_states=True)["hidden_states"]
    before, after = states[:-1].astype(jnp.float32), states[1:].astype(jnp.float32)
    l2 = jnp.linalg.norm(after - before, axis=-1)
    norms = jnp.linalg.norm(after, axis=-1) * jnp.linalg.norm(before, axis=-1)
    cosine = jnp.clip((before * after).sum(-1) / norms, -1, 1)
    weights = inputs["attention_mask"][None] / inputs["attention_mask"].sum()
    per_token = {"l2": l2, "cosine": cosine, "degrees": jnp.degrees(jnp.arccos(cosine))}
    return {name: (value * weights).sum((1, 2)) for name, value in per_token.items()}


def draw_attention(
    maps: np.ndarray, pieces: Sequence[str], layers: Sequence[int] | None = None, heads: Sequence[int] | None = None
) -> "Figure":
    """Plot the result of `attention_maps`, one row per layer and one column per head; dark means 1.

    Args:
      maps, pieces: as returned by `attention_maps`.
      layers, heads: numbers from 0; None means all.  With at most four maps, the axes show the pieces.

    Raises:
      InputError: a layer or head does not exist, or none is given.
    """
    from matplotlib.figure import Figure

    layers = range(maps.shape[0]) if layers is None else layers
    heads = range(maps.shape[1]) if heads is None else heads
    for name, numbers, count in (("layers", layers, maps.shape[0]), ("heads", heads, maps.shape[1])):
        if not numbers or not all(0 <= number < count for number in numbers):
            raise InputError(f"{name}: expected one or more numbers in [0, {count}), got {list(numbers)}")
    labeled = len(layers) * len(heads) <= 4
    size = 0.8 + 0.22 * len(pieces) if labeled else 1.0
    figure = Figure(figsize=(size * len(heads) + 0.6, size * len(layers) + 0.6), layout="constrained")
    grid = figure.subplots(len(layers), len(heads), squeeze=False)
    for row, layer in zip(grid, layers, strict=True):
        for axes, head in zip(row, heads, strict=True):
            axes.imshow(maps[layer, head], cmap="Blues", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
            if labeled:
                axes.set_xticks(range(len(pieces)), pieces, rotation=90, fontsize=8)
                axes.set_yticks(range(len(pieces)), pieces, fontsize=8)
                axes.set_title(f"layer {layer + 1}, head {head + 1}", fontsize=8)
    if not labeled:
        for axes, head in zip(grid[0], heads, strict=True):
            axes.set_title(f"{head + 1}", fontsize=8)
        for axes, layer in zip(grid[:, 0], layers, strict=True):
            axes.set_ylabel(f"{layer + 1}", fontsize=8, rotation=0, va="center", labelpad=10)
        figure.supxlabel("head", fontsize=9)
        figure.supylabel("layer", fontsize=9)
    return figure


def draw_layer_distances(distances: Mapping[str, Mapping[str, np.ndarray]]) -> "Figure":
    """Plot Figure 1 of the paper for one or several models.

    Args:
      distances: label -> what `layer_distances` returned for a model.

    Raises:
      InputError: the result for one model is given without a label.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    if not all(isinstance(of_model, Mapping) for of_model in distances.values()):
        raise InputError("distances: give each model a label, as in {'tiny': layer_distances(...)}")
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    panels = {"l2": "L2 distance", "degrees": "angle (degrees)"}
    for axes, (key, title) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        for label, of_model in distances.items():
            axes.plot(range(1, len(of_model[key]) + 1), of_model[key], "o-", ms=3, lw=1.2, label=label)
        axes.set(xlabel="layer", ylabel=f"{title} of input and output", ylim=(0, None))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure
