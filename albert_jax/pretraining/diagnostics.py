"""Diagnostics of the unigram plateau, on which the model has learned only how frequent each piece is.

There, hidden states of all positions are nearly parallel and attention is nearly uniform (arXiv 2506.13688).
"""

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import Array

from albert_jax.model.heads import Albert

if TYPE_CHECKING:
    from albert_jax.pretraining.run import PretrainConfig

ROWS = 8
"""Number of rows of the first evaluation batch that are diagnosed."""

INPUTS = ("input_ids", "attention_mask", "token_type_ids")

GAINS = {"gain_over_unigram": "unigram", "gain_over_neighbors": "neighbors"}
"""Diagnostic -> baseline.  The diagnostic is the baseline's masked-LM loss minus the model's, in nats."""

PLATEAU = 0.01
"""A run is on the plateau if its loss is less than this fraction below the unigram loss."""

PAGE = "docs/when-albert-does-not-learn.md"
"""Where the documentation says what to do."""


def of_rows(model: Albert, params: Any, rows: dict[str, Array]) -> dict[str, Array]:
    """The diagnostics of some rows, one row at a time: the attention weights of many long rows would need gigabytes.

    Args:
      model, params: with full parameters.
      rows: `INPUTS` [rows, S]; rows with padding only are ignored.

    Returns:
      `hidden_similarity` [] and `attention_entropy` [L], means over the rows.
    """
    config = model.config

    def of_row(row: dict[str, Array]) -> tuple[Array, Array]:
        inputs = [row[name][None] for name in INPUTS]
        outputs: Any = Albert(config, heads=()).apply({"params": params}, *inputs, output_attentions=True)
        mask = row["attention_mask"]
        entropy = attention_entropy(outputs["attentions"][:, 0], mask)
        per_layer = entropy.reshape(config.num_hidden_layers, config.inner_group_num).mean(axis=1)
        return hidden_similarity(outputs["last_hidden_state"][0], mask), per_layer

    similarity, entropy = jax.lax.map(of_row, rows)
    weights = (jnp.sum(rows["attention_mask"], axis=1) > 1).astype(jnp.float32)
    weights /= jnp.sum(weights)
    return {"hidden_similarity": weights @ similarity, "attention_entropy": weights @ entropy}


def hidden_similarity(hidden: Array, mask: Array) -> Array:
    """The mean cosine similarity of the hidden states [S, H] of two different positions of a row, without padding."""
    hidden = hidden.astype(jnp.float32) * mask[:, None]
    units = hidden / jnp.maximum(jnp.linalg.norm(hidden, axis=-1, keepdims=True), 1e-6)
    count = jnp.sum(mask).astype(jnp.float32)
    # The squared norm of the sum is the sum over all ordered pairs; a position with itself has similarity 1.
    return (jnp.sum(jnp.square(jnp.sum(units, axis=0))) - count) / jnp.maximum(count * (count - 1), 1)


def attention_entropy(weights: Array, mask: Array) -> Array:
    """The entropy of attention relative to uniform attention over a row without padding; 1 is uniform.

    Args:
      weights: [layers, N, S, S] attention weights of a row.
      mask: [S].

    Returns:
      [layers]: mean over heads and positions.
    """
    count = jnp.sum(mask).astype(jnp.float32)
    entropy = jnp.sum(jax.scipy.special.entr(weights.astype(jnp.float32)), axis=-1)
    mean = jnp.sum(entropy.mean(axis=1) * mask, axis=-1) / jnp.maximum(count, 1)
    return mean / jnp.log(jnp.maximum(count, 2))


def named(arrays: Mapping[str, Any]) -> dict[str, float]:
    """Name the entries of the result of `of_rows`: `attention_entropy_layer_1` and so on."""
    layers = {f"attention_entropy_layer_{layer}": x for layer, x in enumerate(arrays["attention_entropy"], 1)}
    return {name: float(x) for name, x in ({"hidden_similarity": arrays["hidden_similarity"]} | layers).items()}


def gains(metrics: Mapping[str, float], baselines: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """How far the masked-LM loss is below that of baselines, in nats."""
    return {
        name: baselines[baseline]["mlm_loss"] - metrics["mlm_loss"]
        for name, baseline in GAINS.items()
        if baseline in baselines
    }


def plateau_warning(config: "PretrainConfig", step: int, evaluation: Mapping[str, Any]) -> str:
    """Say what to do if an evaluation is on the unigram plateau; empty if it is not, or the run has just begun.

    Every run begins on the plateau, so evaluations before step max(2 * num_warmup_steps, num_train_steps // 5) are ignored.
    """
    optim, steps = config.optim, config.train.num_train_steps
    loss, unigram = evaluation["eval"]["mlm_loss"], evaluation["baselines"]["unigram"]["mlm_loss"]
    if step < max(2 * optim.num_warmup_steps, steps // 5) or loss < (1 - PLATEAU) * unigram:
        return ""
    uses = max(max(Counter(sets).values()) for sets in config.model.layer_sets.values())
    shared = f"; an update of a shared layer takes effect {uses} times" if uses > 1 else ""
    return (
        f"step {step}: the held-out masked-LM loss {loss:.4f} is not {PLATEAU:.0%} below the unigram loss {unigram:.4f}: so far the "
        f"model only knows how frequent each piece is. If this lasts, start again with a lower --optim.learning-rate (now "
        f"{optim.learning_rate:g}{shared}), or with --optim.optimizer muon; see {PAGE}"
    )
