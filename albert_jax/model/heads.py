"""The whole model: the encoder and what stands on it.  A new head is an entry of `HEADS`."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from albert_jax.config import require
from albert_jax.model.albert import (
    SITES_PER_BLOCK,
    AlbertConfig,
    Embeddings,
    Encoder,
    Outputs,
    activation,
    dense,
    dropout,
    initializer,
    layer_norm,
)
from albert_jax.model.sharing import is_stacked
from albert_jax.model.tree import leaves


class MaskedLMHead(nn.Module):
    """[B, P, H] -> logits [B, P, V] in float32, through E and the word table (google-research/albert run_pretraining.py)."""

    config: AlbertConfig

    @nn.compact
    def __call__(self, hidden: Array, table: Array) -> Array:
        config = self.config
        x = activation(config, dense(config, config.embedding_size, "dense")(hidden))
        x = layer_norm(config, x)
        logits = jnp.einsum("bpe,ve->bpv", x, table.astype(x.dtype), preferred_element_type=jnp.float32)
        return logits + self.param("bias", nn.initializers.zeros, (config.vocab_size,))


class AnswerClassHead(nn.Module):
    """Start, end given the start, and whether there is an answer (google-research/albert squad_utils.py, after XLNet).

    Without `start_positions` the ends are those of the best starts, `ANSWER_BEAM` of each.
    """

    config: AlbertConfig

    @nn.compact
    def __call__(self, hidden: Array, inputs: "Inputs") -> Outputs:
        config = self.config
        hidden = hidden.astype(jnp.float32)
        place = jnp.arange(hidden.shape[1])
        allowed = (inputs.answer_mask == 1) | (place == 0)  # [CLS] stands for no answer
        start_logits = jnp.where(allowed, _linear(config, hidden, 1, "start_logits")[..., 0], NO_ANSWER_HERE)
        end_hidden = nn.Dense(config.hidden_size, kernel_init=initializer(config), name="end_dense")
        end_norm = nn.LayerNorm(epsilon=config.layer_norm_eps, name="LayerNorm")
        end_linear = nn.Dense(1, kernel_init=initializer(config), name="end_logits")

        def ends(index: Array) -> Array:
            """[B, K] starts -> [B, K, S] logits of the ends."""
            starts = jnp.take_along_axis(hidden, index[..., None], axis=1)
            shape = (*index.shape, *hidden.shape[1:])
            both = [jnp.broadcast_to(hidden[:, None], shape), jnp.broadcast_to(starts[:, :, None], shape)]
            x = end_linear(end_norm(jnp.tanh(end_hidden(jnp.concatenate(both, axis=-1)))))[..., 0]
            return jnp.where(allowed[:, None], x, NO_ANSWER_HERE)

        outputs = {"start_logits": start_logits}
        if inputs.start_positions is not None:
            outputs["end_logits"] = ends(inputs.start_positions[:, None])[:, 0]
        else:
            beam = min(ANSWER_BEAM, hidden.shape[1])
            start_top, index = jax.lax.top_k(jax.nn.log_softmax(start_logits), beam)
            end_top, end_index = jax.lax.top_k(jax.nn.log_softmax(ends(index)), beam)
            outputs |= {
                "start_top_log_probs": start_top,
                "start_top_index": index,
                "end_top_log_probs": end_top,
                "end_top_index": end_index,
            }
        where = jnp.einsum("bs,bsh->bh", jax.nn.softmax(start_logits), hidden)
        x = _linear(config, jnp.concatenate([where, hidden[:, 0]], axis=-1), config.hidden_size, "answer_dense")
        x = _dropped(config, jnp.tanh(x), inputs)
        x = nn.Dense(1, use_bias=False, kernel_init=initializer(config), name="answer_class")(x)
        return outputs | {"answer_class_logits": x[:, 0]}


NO_ANSWER_HERE = -1e30
"""The logit of a place where no answer may begin or end."""

ANSWER_BEAM = 5
"""Starts, and ends of each, that `AnswerClassHead` looks at (squad_utils.py, start_n_top and end_n_top)."""


class Inputs(NamedTuple):
    """What a head may read beside the outputs that stand before it."""

    table: Array
    """[V, E]: the word embeddings."""
    masked_lm_positions: Array | None
    dropout_keys: Array | None
    num_labels: int
    answer_mask: Array
    """[B, S]: 1 where an answer may begin or end."""
    start_positions: Array | None


def _pooler(config: AlbertConfig, outputs: Outputs, inputs: Inputs) -> Outputs:
    first = outputs["last_hidden_state"][:, 0]
    return {"pooler_output": jnp.tanh(dense(config, config.hidden_size, "pooler")(first))}


def _predictions(config: AlbertConfig, outputs: Outputs, inputs: Inputs) -> Outputs:
    hidden = outputs["last_hidden_state"]
    if inputs.masked_lm_positions is not None:
        hidden = jnp.take_along_axis(hidden, inputs.masked_lm_positions[..., None], axis=1)
    return {"prediction_logits": MaskedLMHead(config, name="predictions")(hidden, inputs.table)}


def _linear(config: AlbertConfig, x: Array, features: int, name: str) -> Array:
    return nn.Dense(features, kernel_init=initializer(config), name=name)(x.astype(jnp.float32))


def _sop_classifier(config: AlbertConfig, outputs: Outputs, inputs: Inputs) -> Outputs:
    return {"sop_logits": _linear(config, outputs["pooler_output"], 2, "sop_classifier")}


def _dropped(config: AlbertConfig, x: Array, inputs: Inputs) -> Array:
    site = 1 + SITES_PER_BLOCK * config.depth  # behind the encoder's
    return dropout(x, inputs.dropout_keys, site, config.classifier_dropout_prob)


def _classifier(config: AlbertConfig, outputs: Outputs, inputs: Inputs) -> Outputs:
    pooled = _dropped(config, outputs["pooler_output"], inputs)
    return {"logits": _linear(config, pooled, inputs.num_labels, "classifier")}


def _token_classifier(config: AlbertConfig, outputs: Outputs, inputs: Inputs) -> Outputs:
    hidden = _dropped(config, outputs["last_hidden_state"], inputs)
    return {"logits": _linear(config, hidden, inputs.num_labels, "token_classifier")}


def _choice_classifier(config: AlbertConfig, outputs: Outputs, inputs: Inputs) -> Outputs:
    pooled = _dropped(config, outputs["pooler_output"], inputs)
    return {"logits": _linear(config, pooled, 1, "choice_classifier")[:, 0]}


def _qa_outputs(config: AlbertConfig, outputs: Outputs, inputs: Inputs) -> Outputs:
    start, end = jnp.moveaxis(_linear(config, outputs["last_hidden_state"], 2, "qa_outputs"), -1, 0)
    return {"start_logits": start, "end_logits": end}


def _answer_class(config: AlbertConfig, outputs: Outputs, inputs: Inputs) -> Outputs:
    return AnswerClassHead(config, name="answer_class")(outputs["last_hidden_state"], inputs)


HEADS: dict[str, Callable[[AlbertConfig, Outputs, Inputs], Outputs]] = {
    "pooler": _pooler,  # pooler_output [B, H]: tanh of a dense layer on the first token
    "predictions": _predictions,  # prediction_logits [B, P, V]
    "sop_classifier": _sop_classifier,  # sop_logits [B, 2], 0 = in order, 1 = swapped
    "classifier": _classifier,  # logits [B, labels] of a text or a pair of texts
    "token_classifier": _token_classifier,  # logits [B, S, labels]
    "choice_classifier": _choice_classifier,  # logits [B], the score of one choice a row
    "qa_outputs": _qa_outputs,  # start_logits, end_logits [B, S]
    "answer_class": _answer_class,  # SQuAD 2.0's: start_logits [B, S], end_logits or the best of both, answer_class_logits [B]
}
"""What may stand on the encoder, by the name of its parameters, in the order in which they are called."""

POOLED = ("sop_classifier", "classifier", "choice_classifier")
"""The heads that read `pooler_output`."""

PRETRAINING = ("pooler", "predictions", "sop_classifier")
"""The heads of pretraining."""


class Albert(nn.Module):
    """`apply({"params": params}, input_ids)` -> dict of arrays, in Hugging Face's names.

    Args:
      input_ids: [B, S] token ids.
      attention_mask: [B, S], 1 = attend; everything by default.
      token_type_ids: [B, S] segment of each token; 0 by default.
      masked_lm_positions: [B, P] where to predict; every position by default.
      answer_mask: [B, S], 1 where an answer may begin or end, for the head `answer_class`; everywhere by default.
      start_positions: [B] where the answer begins, for the same head in training.
      dropout_keys: [B] random keys, one a row, or None for no dropout.
      output_hidden_states, output_attentions: also return `hidden_states` [L + 1, B, S, H] (the first is the
        embedding's) and `attentions` [L * inner_group_num, B, N, S, S].
      gather_set: gathers one set of sharded parameters, see `albert.Encoder`.

    Returns:
      `last_hidden_state` [B, S, H] and what `heads` add (`HEADS` says what); in pretraining `pooler_output` [B, H],
      `prediction_logits` [B, P, V] and `sop_logits` [B, 2].
    """

    config: AlbertConfig
    heads: tuple[str, ...] = PRETRAINING
    """Names of `HEADS`.  A checkpoint that was saved without one of its heads is a model without it."""
    labels: tuple[str, ...] = ()
    """Names of the classes, where a head classifies."""

    def __post_init__(self) -> None:
        for head in self.heads:
            require(head in HEADS, f"heads: one of {', '.join(HEADS)}, got {head!r}")
            require("pooler" in self.heads or head not in POOLED, f"heads: {head} reads the pooler, which is missing")
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        input_ids: Array,
        attention_mask: Array | None = None,
        token_type_ids: Array | None = None,
        masked_lm_positions: Array | None = None,
        dropout_keys: Array | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        answer_mask: Array | None = None,
        start_positions: Array | None = None,
        gather_set: Callable[..., Any] | None = None,
    ) -> Outputs:
        config = self.config
        if attention_mask is None:
            attention_mask = jnp.ones_like(input_ids)
        if token_type_ids is None:
            token_type_ids = jnp.zeros_like(input_ids)
        x, table = Embeddings(config, name="embeddings")(input_ids, token_type_ids, dropout_keys)
        collect = output_hidden_states or output_attentions
        hidden, collected = Encoder(config, name="encoder")(x, attention_mask, dropout_keys, collect, gather_set)
        outputs = {"last_hidden_state": hidden}
        allowed = attention_mask if answer_mask is None else answer_mask
        inputs = Inputs(table, masked_lm_positions, dropout_keys, len(self.labels), allowed, start_positions)
        for name, head in HEADS.items():
            if name in self.heads:
                outputs |= head(config, outputs, inputs)
        if output_hidden_states:
            outputs["hidden_states"] = collected["hidden_states"]
        if output_attentions:
            outputs["attentions"] = collected["attentions"]
        return outputs


def init_params(model: Albert, key: Array) -> dict:
    """Fresh parameters, a nested dict of float32 arrays; parts of the encoder carry the leading axis G."""
    return model.init(key, jnp.zeros((1, 1), jnp.int32))["params"]


@functools.cache
def param_shapes(model: Albert) -> dict:
    """`init_params` as shapes alone, without making an array."""
    return jax.eval_shape(lambda: init_params(model, jax.random.key(0)))


def stacked_shapes(model: Albert) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Path -> shape [G, ...] of the parameters that stack G parameter sets."""
    return {path: leaf.shape for path, leaf in leaves(param_shapes(model)).items() if is_stacked(path)}


def num_params(model: Albert) -> int:
    """Parameters of a model, heads included, without building it."""
    return sum(leaf.size for leaf in jax.tree.leaves(param_shapes(model)))


def flops_per_token(config: AlbertConfig, length: int, predictions: int) -> float:
    """Matmul FLOPs of one training step for each token of sequences of `length` with `predictions` MLM positions.

    Forward times 3, two for each multiply-add; recomputation, padding and the optimiser do not count.  The shared block
    counts L times: 6 x parameters would be wrong by about L.
    """
    h, e = config.hidden_size, config.embedding_size
    encoder = config.depth * (8 * h * h + 4 * h * config.intermediate_size + 4 * length * h)
    mapping = 2 * e * h if config.maps_embeddings else 0
    masked_lm = predictions * (2 * h * e + 2 * e * config.vocab_size) / length
    pooler_and_pair = (2 * h * h + 4 * h) / length
    return 3 * (encoder + mapping + masked_lm + pooler_and_pair)
