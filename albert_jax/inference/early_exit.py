"""Early exit: a text leaves the batch after the layer at which its prediction is certain enough.

The layers run one by one, and after each one the classifier reads the hidden states.  When half of the rows have left, the others
move to a batch of half the size, so that exits save time.  (Entropy as in DeeBERT, arXiv 2004.12993.)
"""

import functools
import math
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from albert_jax.config import InputError, check_choice
from albert_jax.inference.pretrained import apply
from albert_jax.model.albert import Dense, Embeddings
from albert_jax.model.encoder import Encoder
from albert_jax.model.heads import Albert
from albert_jax.model.per_pass import injected
from albert_jax.model.sharing import PASSES

CRITERIA = ("entropy", "change", "layers")


@dataclass(frozen=True)
class EarlyExit:
    """When a text leaves: if `criterion` falls to `threshold`."""

    criterion: str
    """entropy: of the predicted classes, in nats.  change: the distance between the input and the output of the layer, relative to the
    norm of the input; the mean over tokens.  layers: after this number of layers, for comparison."""
    threshold: float

    def __post_init__(self) -> None:
        check_choice("criterion", self.criterion, CRITERIA)
        if not (math.isfinite(self.threshold) and self.threshold >= 0):
            raise InputError(f"threshold must be finite and >= 0, got {self.threshold}")
        if self.criterion == "layers" and (self.threshold < 1 or self.threshold % 1):
            raise InputError(f"layers must be a whole number, at least 1, got {self.threshold:g}")

    def leaves(self, values: np.ndarray, num_layers: int) -> np.ndarray:
        """Which rows leave, [rows] bool, given their values of the criterion after `num_layers` layers."""
        if self.criterion == "layers":
            return np.full(len(values), num_layers >= self.threshold)
        return values <= self.threshold


def read_exit(text: str) -> EarlyExit:
    """Read `CRITERION=THRESHOLD`, such as entropy=0.2.

    Raises:
      InputError: it is not of this form.
    """
    criterion, _, number = text.partition("=")
    try:
        return EarlyExit(criterion, float(number))
    except ValueError as error:  # InputError too
        reason = error if isinstance(error, InputError) else f"{number!r} is not a number"
        raise InputError(f"--early-exit {text}: {reason}; write CRITERION=THRESHOLD, such as entropy=0.2") from None


def check_model(model: Albert) -> None:
    """Raise InputError unless a model can exit early: it classifies texts, and each layer reads only the one before."""
    if "classifier" not in model.heads or len(model.labels) < 2 or model.multi_label:
        raise InputError("early exit needs a model that was fine-tuned to give each text one class")
    if model.config.layer_weights:
        raise InputError("early exit needs layers that read only the layer before; this model has layer_weights")


def classify_early(
    model: Albert,
    params: Any,
    inputs: dict[str, np.ndarray],
    early_exit: EarlyExit,
    values: dict[str, list[np.ndarray]] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Classify a batch.

    Args:
      model, params: as returned by `albert_jax.load`, see `check_model`.
      inputs: `input_ids`, `attention_mask` and `token_type_ids` [B, S].
      early_exit: when rows leave; all leave after the last layer.
      values: if given, the values of entropy and change of all rows are appended to it, layer by layer.

    Returns:
      The probabilities [B, labels], and the number of layers of each row [B]; 0 for a row without tokens.
    """
    arrays = {name: jnp.asarray(inputs[name]) for name in ("input_ids", "attention_mask", "token_type_ids")}
    is_row = np.sum(inputs["attention_mask"], axis=1) > 0  # `collate` fills up batches with empty rows
    rows = np.where(is_row, np.arange(len(is_row)), -1)  # of the batch; -1 where a row has left
    probabilities = np.zeros((len(rows), len(model.labels)), np.float32)
    layers = np.zeros(len(rows), int)
    hidden = embedded = _embed(model, params, arrays)
    for layer in range(model.config.num_hidden_layers):
        hidden, *results = _layer(model, params, np.int32(layer), hidden, embedded, arrays)
        layer_probabilities, entropy, change = jax.device_get(results)
        if values is not None:
            for name, value in (("entropy", entropy), ("change", change)):
                values.setdefault(name, []).append(value[rows >= 0])
        leaving = early_exit.leaves(change if early_exit.criterion == "change" else entropy, layer + 1)
        if layer == model.config.num_hidden_layers - 1:
            leaving = np.ones(len(rows), bool)
        leaving &= rows >= 0
        probabilities[rows[leaving]], layers[rows[leaving]] = layer_probabilities[leaving], layer + 1
        rows = np.where(leaving, -1, rows)
        kept = np.flatnonzero(rows >= 0)
        if len(kept) == 0:
            break
        if 2 * len(kept) <= len(rows):
            size = 2 ** (len(kept) - 1).bit_length()  # few sizes, so few compilations
            chosen = np.pad(kept, (0, size - len(kept)), mode="edge")
            rows = np.where(np.arange(size) < len(kept), rows[chosen], -1)
            hidden, embedded, arrays = _select(chosen, (hidden, embedded, arrays))
    return probabilities, layers


@jax.jit
def _select(chosen: Array, arrays: Any) -> Any:
    return jax.tree.map(lambda array: array[chosen], arrays)


@functools.partial(jax.jit, static_argnames="model")
def _embed(model: Albert, params: Any, inputs: dict[str, Array]) -> Array:
    """The input of the first layer, [B, S, H]."""
    config = model.config
    variables = {"params": params["embeddings"]}
    x: Any = Embeddings(config).apply(variables, inputs["input_ids"], inputs["token_type_ids"], None)
    x = x[0]
    if config.maps_embeddings:
        variables = {"params": params["encoder"]["embedding_hidden_mapping_in"]}
        x = Dense(config, config.hidden_size).apply(variables, x)
    return x.astype(config.dtype)


@functools.partial(jax.jit, static_argnames="model")
def _layer(
    model: Albert, params: Any, layer: Array, hidden: Array, embedded: Array, inputs: dict[str, Array]
) -> tuple[Array, Array, Array, Array]:
    """Run layer number `layer`.

    Returns:
      Its output [B, S, H], the probabilities of the classes [B, labels], their entropy [B], and the relative change [B].
    """
    config, mask = model.config, inputs["attention_mask"]
    one_block = replace(
        config,
        num_hidden_layers=1,
        num_hidden_groups=1,
        inner_group_num=1,
        sharing="all",
        inject=False,
        depth_sampling="fixed",
        # No embedding_hidden_mapping_in: the input has the size of the hidden states.
        embedding_size=config.hidden_size,
        always_map_embeddings=False,
    )
    x = hidden
    for inner in range(config.inner_group_num):
        block = layer * config.inner_group_num + inner
        block_params = {
            part: _row(params["encoder"][part], jnp.array(sets)[block]) for part, sets in config.layer_sets.items()
        }
        if PASSES in params["encoder"]:
            passes = _row(params["encoder"][PASSES], block)
            if config.inject:
                x = injected(x, embedded, passes.pop("inject")[0])
            block_params |= {PASSES: passes} if passes else {}
        output: Any = Encoder(one_block).apply({"params": block_params}, x, mask, None, False)
        x = output[0]
    log_probabilities = jax.nn.log_softmax(apply(model, params, inputs, last_hidden_state=x)["logits"])
    entropy = -jnp.sum(jnp.exp(log_probabilities) * log_probabilities, axis=-1)
    before, after = hidden.astype(jnp.float32), x.astype(jnp.float32)
    moved = jnp.linalg.norm(after - before, axis=-1) / jnp.linalg.norm(before, axis=-1)
    change = jnp.sum(moved * mask, axis=1) / jnp.maximum(jnp.sum(mask, axis=1), 1)
    return x, jnp.exp(log_probabilities), entropy, change


def _row(stacked: Any, index: Array) -> Any:
    """Entry `index` of stacked parameters [G, ...], as a stack of one."""
    return jax.tree.map(lambda leaf: leaf[index][None], stacked)
