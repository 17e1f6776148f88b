"""The whole pretraining model: encoder, pooler, masked-LM head and sentence-order head."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from albert_jax.model.albert import (
    ACTIVATIONS,
    AlbertConfig,
    Embeddings,
    Encoder,
    Outputs,
    dense,
    initializer,
    layer_norm,
)


class MaskedLMHead(nn.Module):
    """[B, P, H] -> logits [B, P, V] in float32, through E and the word table (google-research/albert run_pretraining.py)."""

    config: AlbertConfig

    @nn.compact
    def __call__(self, hidden: Array, table: Array) -> Array:
        config = self.config
        x = ACTIVATIONS[config.hidden_act](dense(config, config.embedding_size, "dense")(hidden))
        x = layer_norm(config, x)
        logits = jnp.einsum("bpe,ve->bpv", x, table.astype(x.dtype), preferred_element_type=jnp.float32)
        return logits + self.param("bias", nn.initializers.zeros, (config.vocab_size,))


class AlbertForPreTraining(nn.Module):
    """`apply({"params": params}, input_ids)` -> dict of arrays, in Hugging Face's names.

    Args:
      input_ids: [B, S] token ids.
      attention_mask: [B, S], 1 = attend; everything by default.
      token_type_ids: [B, S] segment of each token; 0 by default.
      masked_lm_positions: [B, P] where to predict; every position by default.
      dropout_keys: [B] random keys, one a row, or None for no dropout.
      output_hidden_states, output_attentions: also return `hidden_states` [L + 1, B, S, H] (the first is the
        embedding's) and `attentions` [L * inner_group_num, B, N, S, S].

    Returns:
      `last_hidden_state` [B, S, H], `pooler_output` [B, H], `prediction_logits` [B, P, V], `sop_logits` [B, 2]
      (0 = in order, 1 = swapped).
    """

    config: AlbertConfig

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
    ) -> Outputs:
        config = self.config
        if attention_mask is None:
            attention_mask = jnp.ones_like(input_ids)
        if token_type_ids is None:
            token_type_ids = jnp.zeros_like(input_ids)
        # [B, 1, 1, S]: -10000 rather than minus infinity, as released, so that a row of padding alone gives no NaN.
        bias = (1.0 - attention_mask[:, None, None, :].astype(jnp.float32)) * -10000.0
        x, table = Embeddings(config, name="embeddings")(input_ids, token_type_ids, dropout_keys)
        collect = output_hidden_states or output_attentions
        hidden, collected = Encoder(config, name="encoder")(x, bias, dropout_keys, collect)
        pooled = jnp.tanh(dense(config, config.hidden_size, "pooler")(hidden[:, 0]))

        gathered = hidden
        if masked_lm_positions is not None:
            gathered = jnp.take_along_axis(hidden, masked_lm_positions[..., None], axis=1)
        sop = nn.Dense(2, kernel_init=initializer(config), name="sop_classifier")(pooled.astype(jnp.float32))
        outputs = {
            "last_hidden_state": hidden,
            "pooler_output": pooled,
            "prediction_logits": MaskedLMHead(config, name="predictions")(gathered, table),
            "sop_logits": sop,
        }
        if output_hidden_states:
            outputs["hidden_states"] = collected["hidden_states"]
        if output_attentions:
            outputs["attentions"] = collected["attentions"]
        return outputs


def init_params(config: AlbertConfig, key: Array) -> dict:
    """Fresh parameters, a nested dict of float32 arrays; parts of the encoder carry the leading axis G."""
    return AlbertForPreTraining(config).init(key, jnp.zeros((1, 1), jnp.int32))["params"]


def num_params(config: AlbertConfig) -> int:
    """Parameters of the pretraining model, heads included, without building it."""
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def flops_per_token(config: AlbertConfig, length: int, predictions: int) -> float:
    """Matmul FLOPs of one training step for each token of sequences of `length` with `predictions` MLM positions.

    Forward times 3, two for each multiply-add; recomputation, padding and the optimiser do not count.  The shared block
    counts L times: 6 x parameters would be wrong by about L.
    """
    h, e = config.hidden_size, config.embedding_size
    depth = config.num_hidden_layers * config.inner_group_num
    encoder = depth * (8 * h * h + 4 * h * config.intermediate_size + 4 * length * h)
    mapping = 2 * e * h if e != h else 0
    masked_lm = predictions * (2 * h * e + 2 * e * config.vocab_size) / length
    pooler_and_pair = (2 * h * h + 4 * h) / length
    return 3 * (encoder + mapping + masked_lm + pooler_and_pair)
