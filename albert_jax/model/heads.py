"""The model: the encoder with its heads.  A new head is an entry of `HEADS`."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from albert_jax.config import InputError
from albert_jax.model.albert import (
    AlbertConfig,
    Embeddings,
    Outputs,
    dense,
    dense_and_activation,
    dropout,
    initializer,
    layer_norm,
)
from albert_jax.model.encoder import SITES_PER_BLOCK, Encoder
from albert_jax.model.sharing import is_stacked
from albert_jax.model.tree import leaves


class MaskedLMHead(nn.Module):
    """[B, P, H] -> float32 logits [B, P, V]; the decoder is tied to the word embeddings (google-research/albert run_pretraining.py)."""

    config: AlbertConfig

    @nn.compact
    def __call__(self, hidden: Array, word_embeddings: Array) -> Array:
        config = self.config
        x = layer_norm(config, dense_and_activation(config, hidden, config.embedding_size, "dense"))
        logits = jnp.einsum("bpe,ve->bpv", x, word_embeddings.astype(x.dtype), preferred_element_type=jnp.float32)
        return logits + self.param("bias", nn.initializers.zeros, (config.vocab_size,))


class AnswerClassHead(nn.Module):
    """Predict the start, the end given the start, and whether there is an answer (google-research/albert squad_utils.py).

    It is not exported: transformers has no class for it.

    Without `start_positions` it returns the `ANSWER_BEAM` best starts, and for each the `ANSWER_BEAM` best ends.
    """

    config: AlbertConfig

    @nn.compact
    def __call__(self, hidden: Array, inputs: "Inputs") -> Outputs:
        config = self.config
        hidden = hidden.astype(jnp.float32)
        position = jnp.arange(hidden.shape[1])
        allowed = (inputs.answer_mask == 1) | (position == 0)  # [CLS] means no answer
        start_logits = jnp.where(allowed, _linear(config, hidden, 1, "start_logits")[..., 0], NOT_ALLOWED)
        end_hidden = nn.Dense(config.hidden_size, kernel_init=initializer(config), name="end_dense")
        end_norm = nn.LayerNorm(epsilon=config.layer_norm_eps, name="LayerNorm")
        end_linear = nn.Dense(1, kernel_init=initializer(config), name="end_logits")

        def ends(index: Array) -> Array:
            """Logits of the ends [B, K, S] for K starts [B, K]."""
            starts = jnp.take_along_axis(hidden, index[..., None], axis=1)
            shape = (*index.shape, *hidden.shape[1:])
            both = [jnp.broadcast_to(hidden[:, None], shape), jnp.broadcast_to(starts[:, :, None], shape)]
            x = end_linear(end_norm(jnp.tanh(end_hidden(jnp.concatenate(both, axis=-1)))))[..., 0]
            return jnp.where(allowed[:, None], x, NOT_ALLOWED)

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
        start_hidden = jnp.einsum("bs,bsh->bh", jax.nn.softmax(start_logits), hidden)
        x = _linear(config, jnp.concatenate([start_hidden, hidden[:, 0]], axis=-1), config.hidden_size, "answer_dense")
        x = _dropped(config, jnp.tanh(x), inputs)
        x = nn.Dense(1, use_bias=False, kernel_init=initializer(config), name="answer_class")(x)
        return outputs | {"answer_class_logits": x[:, 0]}


NOT_ALLOWED = -1e30
"""Logit of a position where no answer may start or end."""

ANSWER_BEAM = 5
"""Number of starts, and of ends for each (squad_utils.py, start_n_top and end_n_top)."""


class Inputs(NamedTuple):
    """The inputs of a head besides the outputs of the encoder and of earlier heads."""

    word_embeddings: Array
    """[V, E]."""
    masked_lm_positions: Array | None
    dropout_keys: Array | None
    num_labels: int
    num_sentence_classes: int
    answer_mask: Array
    """[B, S]: 1 where an answer may start or end."""
    start_positions: Array | None


def _pooler(config: AlbertConfig, outputs: Outputs, inputs: Inputs) -> Outputs:
    first = outputs["last_hidden_state"][:, 0]
    return {"pooler_output": jnp.tanh(dense(config, config.hidden_size, "pooler")(first))}


def _predictions(config: AlbertConfig, outputs: Outputs, inputs: Inputs) -> Outputs:
    hidden = outputs["last_hidden_state"]
    if inputs.masked_lm_positions is not None:
        hidden = jnp.take_along_axis(hidden, inputs.masked_lm_positions[..., None], axis=1)
    return {"prediction_logits": MaskedLMHead(config, name="predictions")(hidden, inputs.word_embeddings)}


def _linear(config: AlbertConfig, x: Array, features: int, name: str) -> Array:
    return nn.Dense(features, kernel_init=initializer(config), name=name)(x.astype(jnp.float32))


def _sop_classifier(config: AlbertConfig, outputs: Outputs, inputs: Inputs) -> Outputs:
    return {"sop_logits": _linear(config, outputs["pooler_output"], inputs.num_sentence_classes, "sop_classifier")}


def _dropped(config: AlbertConfig, x: Array, inputs: Inputs) -> Array:
    site = 1 + SITES_PER_BLOCK * config.depth  # the first after the encoder's sites
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
    "sop_classifier": _sop_classifier,  # sop_logits [B, sentence_classes]
    "classifier": _classifier,  # logits [B, labels] of a text or a pair of texts
    "token_classifier": _token_classifier,  # logits [B, S, labels]
    "choice_classifier": _choice_classifier,  # logits [B], one choice per row
    "qa_outputs": _qa_outputs,  # start_logits, end_logits [B, S]
    "answer_class": _answer_class,  # SQuAD 2.0: start_logits [B, S], end_logits or the best starts and ends, answer_class_logits [B]
}
"""Name of the parameters -> head, in the order in which heads are called."""

POOLED = ("sop_classifier", "classifier", "choice_classifier")
"""The heads that read `pooler_output`."""

PRETRAINING = ("pooler", "predictions", "sop_classifier")
"""The heads of pretraining."""

SENTENCE_CLASSES = ("in order", "swapped")
"""The classes of the released sentence head."""


class Albert(nn.Module):
    """`apply({"params": params}, input_ids)` -> dict of arrays, with Hugging Face's names.

    Args:
      input_ids: [B, S] token ids; None with `inputs_embeds`.
      attention_mask: [B, S], 1 = attend, 0 = padding; by default all ones.
      token_type_ids: [B, S] segment of each token; by default all zeros.
      masked_lm_positions: [B, P] positions to predict; by default every position.
      answer_mask: [B, S], 1 where an answer may start or end, for the head `answer_class`; by default `attention_mask`.
      start_positions: [B] starts of the answers, for the head `answer_class` in training.
      dropout_keys: [B] random keys, or None for no dropout.
      output_hidden_states, output_attentions: also return `hidden_states` [L + 1, B, S, H] (the first is the encoder's
        input) and `attentions` [L * inner_group_num, B, N, S, S].
      inputs_embeds: [B, S, E], instead of the embeddings of token ids.
      position_ids: [B, S] or [1, S] position of each token; by default 0, 1, 2, ...
      last_hidden_state: [B, S, H], such as an entry of `hidden_states`; the heads read it, and the encoder does not run.
      num_layers: int32, the number of layers to run (see `AlbertConfig.depth_sampling`); by default num_hidden_layers.
      gather_set: gathers one set of sharded parameters, see `encoder.Encoder`.

    Returns:
      `last_hidden_state` [B, S, H] and the outputs of the heads (see `HEADS`); in pretraining `pooler_output` [B, H],
      `prediction_logits` [B, P, V] and `sop_logits` [B, sentence classes].

    Raises:
      InputError: an id is outside its table.  Inside `jit` ids are unknown: such an id then reads NaN or another row.
    """

    config: AlbertConfig
    heads: tuple[str, ...] = PRETRAINING
    """Keys of `HEADS`.  A model has only the heads its checkpoint has tensors for; missing heads are never initialized silently."""
    labels: tuple[str, ...] = ()
    """Names of the classes of a fine-tuned classifier."""
    sentence_classes: tuple[str, ...] = SENTENCE_CLASSES
    """Names of the classes of the sentence head."""
    multi_label: bool = False
    """Whether a text can have any number of labels: probabilities are then sigmoids of the logits of `classifier`."""

    def __post_init__(self) -> None:
        for head in self.heads:
            if head not in HEADS:
                raise InputError(f"heads: unknown value {head!r}; choose one of {', '.join(HEADS)}")
            if head in POOLED and "pooler" not in self.heads:
                raise InputError(f"heads: {head} reads the output of the pooler, which is missing")
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        input_ids: Array | None = None,
        attention_mask: Array | None = None,
        token_type_ids: Array | None = None,
        masked_lm_positions: Array | None = None,
        dropout_keys: Array | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        answer_mask: Array | None = None,
        start_positions: Array | None = None,
        gather_set: Callable[..., Any] | None = None,
        num_layers: Array | None = None,
        last_hidden_state: Array | None = None,
        inputs_embeds: Array | None = None,
        position_ids: Array | None = None,
    ) -> Outputs:
        config = self.config
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        given: Any = input_ids if inputs_embeds is None else inputs_embeds
        shape = given.shape[:2]
        if attention_mask is None:
            attention_mask = jnp.ones(shape, jnp.int32)
        if token_type_ids is None:
            token_type_ids = jnp.zeros(shape, jnp.int32)
        check_ids(config, input_ids=input_ids, token_type_ids=token_type_ids, position_ids=position_ids)
        embeddings = Embeddings(config, name="embeddings")
        x, word_embeddings = embeddings(input_ids, token_type_ids, dropout_keys, inputs_embeds, position_ids)
        collect = output_hidden_states or output_attentions
        if last_hidden_state is None:
            encoder = Encoder(config, name="encoder")
            hidden, collected = encoder(x, attention_mask, dropout_keys, collect, gather_set, num_layers)
        elif collect:
            raise ValueError("last_hidden_state cannot be combined with output_hidden_states or output_attentions")
        else:
            hidden = last_hidden_state
        outputs = {"last_hidden_state": hidden}
        allowed = attention_mask if answer_mask is None else answer_mask
        num_classes = len(self.labels), len(self.sentence_classes)
        inputs = Inputs(word_embeddings, masked_lm_positions, dropout_keys, *num_classes, allowed, start_positions)
        for name, head in HEADS.items():
            if name in self.heads:
                outputs |= head(config, outputs, inputs)
        if output_hidden_states:
            outputs["hidden_states"] = collected["hidden_states"]
        if output_attentions:
            outputs["attentions"] = collected["attentions"]
        return outputs


def check_ids(config: AlbertConfig, **inputs: Any) -> None:
    """Raise `InputError` if `input_ids`, `token_type_ids` or `position_ids` are outside their tables; skips unknown values."""
    sizes = {
        "input_ids": ("vocab_size", config.vocab_size),
        "token_type_ids": ("type_vocab_size", config.type_vocab_size),
        "position_ids": ("max_position_embeddings", config.max_position_embeddings),
    }
    for name, (field, size) in sizes.items():
        ids = inputs.get(name)
        if ids is None or isinstance(ids, jax.core.Tracer) or not np.size(ids):
            continue
        ids = np.asarray(ids)
        if ids.min() < 0 or ids.max() >= size:
            wrong = ids[(ids < 0) | (ids >= size)].flat[0]
            raise InputError(f"{name}: {wrong} is not in [0, {size}) ({field})")


def init_params(model: Albert, key: Array) -> dict:
    """Initialize the parameters: a nested dict of float32 arrays.  Parts of the encoder have the leading axis G."""
    return model.init(key, jnp.zeros((1, 1), jnp.int32))["params"]


@functools.cache
def param_shapes(model: Albert) -> dict:
    """The shapes of `init_params`, without allocating arrays."""
    return jax.eval_shape(lambda: init_params(model, jax.random.key(0)))


def stacked_shapes(model: Albert) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Path -> shape [G, ...] of the parameters that stack G parameter sets."""
    return {path: leaf.shape for path, leaf in leaves(param_shapes(model)).items() if is_stacked(path)}


def num_params(model: Albert) -> int:
    """Number of parameters, heads included."""
    return sum(leaf.size for leaf in jax.tree.leaves(param_shapes(model)))


def flops_per_token(config: AlbertConfig, length: int, predictions: int) -> float:
    """Matmul FLOPs of one training step per token of sequences of `length` with `predictions` MLM positions.

    3 x the forward pass, with 2 FLOPs per multiply-add; without recomputation and the optimizer.  The shared block counts L
    times, so 6 x parameters would be too low by about a factor L.
    """
    h, e = config.hidden_size, config.embedding_size
    encoder = config.depth * (8 * h * h + 4 * h * config.intermediate_size + 4 * length * h)
    mapping = 2 * e * h if config.maps_embeddings else 0
    masked_lm = predictions * (2 * h * e + 2 * e * config.vocab_size) / length
    sentence = (2 * h * h + 4 * h) / length
    return 3 * (encoder + mapping + masked_lm + sentence)
