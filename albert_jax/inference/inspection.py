"""A look inside: attention maps, and how far each layer moves its input (the paper's Figure 1); as arrays and as pictures."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from albert_jax.config import require
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.model.heads import Albert

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def attention_maps(
    model: Albert, params: Any, tokenizer: Tokenizer, text: str, text_pair: str | None = None
) -> tuple[np.ndarray, list[str]]:
    """Who attends to whom in one text or pair of texts: weights [L * inner_group_num, N, S, S], and the S pieces.

    `maps[layer, head, i, j]` is how much piece i takes from piece j; rows add up to 1.

    Raises:
      InputError: as `tokenizer.encode`.
    """
    inputs = tokenizer(text, text_pair, max_length=model.config.max_position_embeddings)
    attentions = _attentions(model)(params, inputs)
    return np.asarray(attentions[:, 0], np.float32), tokenizer.pieces(inputs["input_ids"][0])


@functools.cache
def _attentions(model: Albert) -> Callable[..., jax.Array]:
    apply: Any = model.apply
    return jax.jit(lambda params, inputs: apply({"params": params}, **inputs, output_attentions=True)["attentions"])


def layer_distances(model: Albert, params: Any, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """How far each layer moves its input (paper, Figure 1): means over the tokens that are not padding, each [L].

    Args:
      model, params: as `load` returns them.
      inputs: what the tokenizer gives for some texts; means over many are smoother.  Without an `attention_mask`
        nothing is padding.

    Returns:
      `l2`, the distance between a layer's input and its output; `cosine`, their similarity; `degrees`, the angle.
    """
    mask = {"attention_mask": np.ones_like(inputs["input_ids"])}
    return jax.device_get(_distances(model)(params, mask | dict(inputs)))


@functools.cache
def _distances(model: Albert) -> Callable[..., dict[str, jax.Array]]:
    apply: Any = model.apply

    def distances(params: Any, inputs: dict[str, jax.Array]) -> dict[str, jax.Array]:
        states = apply({"params": params}, **inputs, output_hidden_states=True)["hidden_states"]
        before, after = states[:-1].astype(jnp.float32), states[1:].astype(jnp.float32)
        l2 = jnp.linalg.norm(after - before, axis=-1)
        norms = jnp.linalg.norm(after, axis=-1) * jnp.linalg.norm(before, axis=-1)
        cosine = jnp.clip((before * after).sum(-1) / norms, -1, 1)
        weights = inputs["attention_mask"][None] / inputs["attention_mask"].sum()
        found = {"l2": l2, "cosine": cosine, "degrees": jnp.degrees(jnp.arccos(cosine))}
        return {name: (value * weights).sum((1, 2)) for name, value in found.items()}

    return jax.jit(distances)


def draw_attention(
    maps: np.ndarray, pieces: Sequence[str], layers: Sequence[int] | None = None, heads: Sequence[int] | None = None
) -> "Figure":
    """A picture of `attention_maps`: a row a layer, a column a head; all of them, or those that are named.

    Pieces stand at the axes where there are few maps.  Dark is 1.

    Raises:
      InputError: a layer or head that is not there.
    """
    from matplotlib.figure import Figure

    layers = range(maps.shape[0]) if layers is None else layers
    heads = range(maps.shape[1]) if heads is None else heads
    require(len(layers) > 0 and len(heads) > 0, "layers and heads: name at least one of each")
    for name, chosen, count in (("layers", layers, maps.shape[0]), ("heads", heads, maps.shape[1])):
        for number in chosen:
            require(0 <= number < count, f"{name}: {number} is not in [0, {count})")
    named = len(layers) * len(heads) <= 4
    size = 0.8 + 0.22 * len(pieces) if named else 1.0
    figure = Figure(figsize=(size * len(heads) + 0.6, size * len(layers) + 0.6), layout="constrained")
    grid = figure.subplots(len(layers), len(heads), squeeze=False)
    for row, layer in zip(grid, layers, strict=True):
        for axes, head in zip(row, heads, strict=True):
            axes.imshow(maps[layer, head], cmap="Blues", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
            if named:
                axes.set_xticks(range(len(pieces)), pieces, rotation=90, fontsize=8)
                axes.set_yticks(range(len(pieces)), pieces, fontsize=8)
            if named or layer == layers[0]:
                axes.set_title(f"layer {layer + 1}, head {head + 1}" if named else f"{head + 1}", fontsize=8)
            if not named and head == heads[0]:
                axes.set_ylabel(f"{layer + 1}", fontsize=8, rotation=0, va="center", labelpad=10)
    if not named:
        figure.supxlabel("head", fontsize=9)
        figure.supylabel("layer", fontsize=9)
    return figure


def draw_layer_distances(distances: Mapping[str, Mapping[str, np.ndarray]]) -> "Figure":
    """The paper's Figure 1 of one or several models: name -> what `layer_distances` gives.

    Raises:
      InputError: no names, as where the table of one model is given alone.
    """
    named = all(isinstance(found, Mapping) for found in distances.values())
    require(named, "distances: give them a name each, as in {'tiny': layer_distances(...)}")
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    panels = {"l2": "L2 distance", "degrees": "angle (degrees)"}
    for axes, (key, label) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        for name, found in distances.items():
            axes.plot(range(1, len(found[key]) + 1), found[key], "o-", ms=3, lw=1.2, label=name)
        axes.set(xlabel="layer", ylabel=f"{label} of input and output", ylim=(0, None))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure
