"""The ALBERT encoder: factorised embeddings, one block, and the loop that runs it L times.

Decides the network's mathematics (arXiv 1909.11942 section 3; google-research/albert modeling.py).  Does not decide which
layers share parameters (`sharing.py`), what is predicted (`heads.py`) or where arrays live (`partition.py`).

Shapes: B batch, S sequence, E embedding_size, H hidden_size, F intermediate_size, N heads, D = H / N, V vocab_size,
L layers, G parameter sets of a part, P predicted positions.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from albert_jax.config import check_fields, choice, require
from albert_jax.model import products
from albert_jax.model.products import CONTEXT, KEPT, POLICIES, SCORES, cudnn_attention, einsum, named
from albert_jax.model.sharing import STRATEGIES, layer_sets

Outputs = dict[str, Array]

ACTIVATIONS = {
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),  # what the released code calls "gelu": the tanh form
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),  # the erf form, as Hugging Face reads "gelu"
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "linear": lambda x: x,
}

MAX_DEPTH = 10_000
"""Blocks; a deeper network is a damaged file."""

MAX_SIZE = 2**24
"""Of any one size: 32-bit indices hold products of two of them only so far, and a larger one is a mistake."""


@dataclass(frozen=True)
class AlbertConfig:
    """The network, in the names of the released `albert_config.json`.  The defaults are ALBERT-base v2."""

    vocab_size: int = 30000
    """V: pieces of the vocabulary."""
    embedding_size: int = 128
    """E: width of the token embeddings; mapped to hidden_size unless equal to it."""
    always_map_embeddings: bool = False
    """Map them even where E = H, as Hugging Face does and the released code does not."""
    hidden_size: int = 768
    """H: width of the layers."""
    num_hidden_layers: int = 12
    """L: how often the block runs."""
    num_attention_heads: int = 12
    """N: heads of hidden_size / N each."""
    intermediate_size: int = 3072
    """F: width inside the feed-forward part."""
    sharing: str = choice("all", STRATEGIES)
    """Which parts all layers share (paper, Table 4); 'groups' shares within num_hidden_groups runs of layers."""
    num_hidden_groups: int = 1
    """Parameter sets with sharing 'groups'."""
    inner_group_num: int = 1
    """Blocks, each with its own parameters, in every layer: the effective depth is L times this."""
    hidden_act: str = choice("gelu_new", ACTIVATIONS)
    """gelu_new is the tanh form (released as "gelu"), gelu the erf form."""
    hidden_dropout_prob: float = 0.0
    """Dropout of embeddings, attention output and feed-forward output (v1: 0.1 but for xxlarge)."""
    attention_probs_dropout_prob: float = 0.0
    """Dropout of the attention weights."""
    classifier_dropout_prob: float = 0.1
    """Dropout before a fine-tuned classifier (the released fine-tuning code: 0.1 whatever the model's)."""
    max_position_embeddings: int = 512
    """Longest sequence."""
    type_vocab_size: int = 2
    """Segments."""
    initializer_range: float = 0.02
    """Standard deviation of the truncated normal that kernels and embeddings start from."""
    layer_norm_eps: float = 1e-12
    """Added to the variance in LayerNorm."""
    dtype: str = choice("float32", ("float32", "bfloat16"))
    """What layers compute in.  Parameters, their gradients, LayerNorm and softmax stay float32."""
    remat: str = choice("elementwise", POLICIES)
    """What backward recomputes: nothing; what lies between matrix products; also attention's products; the whole block."""
    scan_unroll: int = 1
    """Blocks unrolled in one iteration of the layer loop."""
    attention_implementation: str = choice("xla", ("xla", "cudnn"))
    """cudnn: fused, on NVIDIA GPUs, in bfloat16, without dropout of its weights, for masks that only pad on the right."""

    def __post_init__(self) -> None:
        check_fields(self)
        sizes = [field.name for field in fields(self) if field.type is int]
        for name in sizes:
            require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
            require(getattr(self, name) <= MAX_SIZE, f"{name} must be at most {MAX_SIZE}, got {getattr(self, name)}")
        require(
            self.hidden_size % self.num_attention_heads == 0,
            f"hidden_size {self.hidden_size} is not divisible by num_attention_heads {self.num_attention_heads}",
        )
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout_prob"):
            require(0 <= getattr(self, name) < 1, f"{name} must be in [0, 1), got {getattr(self, name)}")
        for name in ("initializer_range", "layer_norm_eps"):
            value = getattr(self, name)
            require(math.isfinite(value) and value > 0, f"{name} must be finite and > 0, got {value}")
        kind = self.attention_implementation
        fusible = self.dtype == "bfloat16" and self.attention_probs_dropout_prob == 0
        require(
            kind == "xla" or fusible,
            "attention_implementation 'cudnn' needs dtype 'bfloat16' and attention_probs_dropout_prob 0",
        )
        require(self.depth <= MAX_DEPTH, f"num_hidden_layers x inner_group_num is {self.depth}, more than {MAX_DEPTH}")
        require(
            self.num_hidden_groups == 1 or self.sharing == "groups",
            f"num_hidden_groups {self.num_hidden_groups} needs sharing 'groups', not {self.sharing!r}",
        )
        require(
            self.num_hidden_groups <= self.num_hidden_layers,
            f"num_hidden_groups {self.num_hidden_groups} exceeds num_hidden_layers {self.num_hidden_layers}",
        )

    @property
    def maps_embeddings(self) -> bool:
        """Whether there is an `embedding_hidden_mapping_in`."""
        return self.always_map_embeddings or self.embedding_size != self.hidden_size

    @property
    def depth(self) -> int:
        """Blocks run: L * inner_group_num."""
        return self.num_hidden_layers * self.inner_group_num


_V1: dict[str, Any] = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
_LARGE: dict[str, Any] = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16)
# 16 heads as in the released config; the paper's H / 64 would be 32.
_XLARGE: dict[str, Any] = dict(hidden_size=2048, intermediate_size=8192, num_hidden_layers=24, num_attention_heads=16)
_XXLARGE: dict[str, Any] = dict(hidden_size=4096, intermediate_size=16384, num_hidden_layers=12, num_attention_heads=64)

PRESETS = {
    "base": AlbertConfig(),
    "large": AlbertConfig(**_LARGE),
    "xlarge": AlbertConfig(**_XLARGE),
    "xxlarge": AlbertConfig(**_XXLARGE),
    "base-v1": AlbertConfig(**_V1),
    "large-v1": AlbertConfig(**_LARGE, **_V1),
    "xlarge-v1": AlbertConfig(**_XLARGE, **_V1),
    "xxlarge-v1": AlbertConfig(**_XXLARGE),
}
"""The released models.  v2 trains without dropout; v1 with 0.1, but for xxlarge."""


def dropout(x: Array, keys: Array | None, site: Array | int, rate: float) -> Array:
    """Dropout of x [B, ...] by one key a row, so that a row's mask depends on neither its neighbours nor the sharding.

    `keys` [B] or None for no dropout; `site` numbers the places in the network that draw from the same keys.
    """
    if keys is None or rate == 0:
        return x
    keep = jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, site), 1 - rate, x.shape[1:]))(keys)
    keep = named(keep, KEPT)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


def initializer(config: AlbertConfig) -> nn.initializers.Initializer:
    """Truncated at two deviations, as tf.truncated_normal; of kernels and embeddings."""
    return nn.initializers.truncated_normal(config.initializer_range)


class Dense(nn.Module):
    """[..., K] -> [..., M].  Parameters in float32, cast to the compute dtype where they are used: gradients add up in float32."""

    config: AlbertConfig
    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        dtype = jnp.dtype(self.config.dtype)
        kernel = self.param("kernel", initializer(self.config), (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return products.dense(x.astype(dtype), kernel.astype(dtype), bias.astype(dtype))


def dense(config: AlbertConfig, features: int, name: str) -> Dense:
    """To be called inside a module's compact method."""
    return Dense(config, features, name=name)


def layer_norm(config: AlbertConfig, x: Array) -> Array:
    """LayerNorm in float32, returned in x's dtype.  To be called inside a module's compact method."""
    norm = nn.LayerNorm(epsilon=config.layer_norm_eps, dtype=jnp.float32, use_fast_variance=False, name="LayerNorm")
    with jax.named_scope("LayerNorm"):
        return norm(x.astype(jnp.float32)).astype(x.dtype)


def activation(config: AlbertConfig, x: Array) -> Array:
    """`hidden_act` in float32, returned in x's dtype: in bfloat16 each of its operations would round."""

    def wide(x: Array) -> Array:
        return ACTIVATIONS[config.hidden_act](x.astype(jnp.float32)).astype(x.dtype)

    # Backward makes what lies inside again: in float32 it is twice as large as x.
    return wide(x) if x.dtype == jnp.float32 else jax.checkpoint(wide)(x)


class Embeddings(nn.Module):
    """Words, positions and segments -> [B, S, E], and the word table [V, E] that the MLM head reads."""

    config: AlbertConfig

    @nn.compact
    def __call__(self, input_ids: Array, token_type_ids: Array, dropout_keys: Array | None) -> tuple[Array, Array]:
        config, length = self.config, input_ids.shape[1]
        if length > config.max_position_embeddings:
            raise ValueError(f"sequence length {length} > max_position_embeddings {config.max_position_embeddings}")

        def table(name: str, rows: int) -> nn.Embed:
            return nn.Embed(rows, config.embedding_size, embedding_init=initializer(config), name=name)

        words = table("word_embeddings", config.vocab_size)
        positions = table("position_embeddings", config.max_position_embeddings)
        segments = table("token_type_embeddings", config.type_vocab_size)
        x = words(input_ids) + segments(token_type_ids) + positions(jnp.arange(length))[None]
        x = dropout(layer_norm(config, x), dropout_keys, 0, config.hidden_dropout_prob)
        return x, words.embedding


class Attention(nn.Module):
    """Multi-head self-attention with its residual and LayerNorm: [B, S, H] -> [B, S, H] and the weights [B, N, S, S].

    With cuDNN the weights are None; where they, or hidden states, are asked for, XLA computes instead.
    """

    config: AlbertConfig

    @nn.compact
    def __call__(
        self, x: Array, mask: Array, keys: Array | None, site: Array | int, with_weights: bool
    ) -> tuple[Array, Array | None]:
        config = self.config
        heads = config.num_attention_heads

        def split(name: str) -> Array:
            y = dense(config, config.hidden_size, name)(x)
            return y.reshape(*y.shape[:-1], heads, -1)

        query, key, value = split("query"), split("key"), split("value")
        weights = None
        if config.attention_implementation == "cudnn" and not with_weights:
            context = cudnn_attention(query, key, value, mask)
        else:
            scores = einsum("bqnd,bknd->bnqk", query, key, SCORES).astype(jnp.float32) * query.shape[-1] ** -0.5
            # -10000 rather than minus infinity, as released, so that a row of padding alone gives no NaN.
            bias = (1.0 - mask[:, None, None, :].astype(jnp.float32)) * -10000.0
            weights = jax.nn.softmax(scores + bias).astype(x.dtype)
            dropped = dropout(weights, keys, site, config.attention_probs_dropout_prob)
            context = einsum("bnqk,bknd->bqnd", dropped, value, CONTEXT).astype(x.dtype)
        y = dense(config, config.hidden_size, "dense")(context.reshape(x.shape))
        return layer_norm(config, x + dropout(y, keys, site + 1, config.hidden_dropout_prob)), weights


class FeedForward(nn.Module):
    """Two dense layers with their residual and LayerNorm: [B, S, H] -> [B, S, F] -> [B, S, H]."""

    config: AlbertConfig

    @nn.compact
    def __call__(self, x: Array, keys: Array | None, site: Array | int) -> Array:
        config = self.config
        y = activation(config, dense(config, config.intermediate_size, "intermediate")(x))
        y = dense(config, config.hidden_size, "output")(y)
        return layer_norm(config, x + dropout(y, keys, site, config.hidden_dropout_prob))


SITES_PER_BLOCK = 3
"""Dropout sites of a block; site 0 is the embeddings'."""


class Encoder(nn.Module):
    """The block run L times over the parameter sets that `config.sharing` names.

    Parameters of each part always carry a leading axis of its sets, [G, ...], G = 1 when shared, so one tree serves all
    strategies.  A part with one set is a constant of the scan; a part with several is laid out per block and scanned over.

    `gather_set(params of one set, *path)`, if given, is called on each set right before its use.  It all-gathers sharded
    parameters, so that a device never holds all sets at once.
    """

    config: AlbertConfig

    @nn.compact
    def __call__(
        self, x: Array, mask: Array, keys: Array | None, collect: bool, gather_set: Callable[..., Any] | None = None
    ) -> tuple[Array, Outputs]:
        config = self.config
        if config.maps_embeddings:
            x = dense(config, config.hidden_size, "embedding_hidden_mapping_in")(x)
        x = x.astype(config.dtype)
        # Linen modules are leaves only: a module handed to flax's own scan from outside is silently un-shared.
        attention, ffn = Attention(config, parent=None), FeedForward(config, parent=None)
        sets = layer_sets(config.sharing, config.num_hidden_layers, config.num_hidden_groups, config.inner_group_num)

        def init(key: Array, name: str) -> dict[str, Any]:
            some = jnp.zeros((1, 1, config.hidden_size), config.dtype)
            inputs = (some, jnp.ones((1, 1)), None, 0, True) if name == "attention" else (some, None, 0)
            module: nn.Module = attention if name == "attention" else ffn
            return jax.vmap(lambda k: module.init(k, *inputs)["params"])(jax.random.split(key, max(sets[name]) + 1))

        if gather_set is None:
            params = {name: self.param(name, init, name) for name in sets}
        else:  # flax would miss the other devices' parts
            params = {name: self.get_variable("params", name) for name in sets}
        shared, scanned = {}, {}
        for name, ids in sets.items():
            if max(ids) == 0:
                one = jax.tree.map(lambda p: p[0], params[name])
                shared[name] = one if gather_set is None else gather_set(one, "encoder", name)
            elif ids == tuple(range(len(ids))):
                scanned[name] = params[name]
            else:
                scanned[name] = jax.tree.map(lambda p, ids=ids: p[jnp.array(ids)], params[name])

        def block(x: Array, own: tuple[dict[str, Any], Array]) -> tuple[Array, Outputs]:
            own_params, index = own
            if gather_set is not None:
                own_params = {name: gather_set(one, "encoder", name) for name, one in own_params.items()}
            p, site = shared | own_params, 1 + SITES_PER_BLOCK * index
            # Shapes of parameters are asked for where there is no GPU, too.
            with_weights = collect or self.is_initializing()
            y: Any = attention.apply({"params": p["attention"]}, x, mask, keys, site, with_weights)
            z: Any = ffn.apply({"params": p["ffn"]}, y[0], keys, site + 2)
            return z, {"hidden_states": z, "attentions": y[1]} if collect else {}

        if config.remat != "none":
            # Across iterations of a loop XLA finds nothing in common, but within one it would keep what backward is to make again.
            unrolled = config.scan_unroll > 1
            block = jax.checkpoint(block, prevent_cse=unrolled, policy=POLICIES[config.remat])
        first = x
        x, outputs = jax.lax.scan(
            block, x, (scanned, jnp.arange(config.depth)), unroll=min(config.scan_unroll, config.depth)
        )
        if collect:  # hidden states are a layer's, attention weights a block's, as Hugging Face counts them
            ends = outputs["hidden_states"][config.inner_group_num - 1 :: config.inner_group_num]
            outputs["hidden_states"] = jnp.concatenate([first[None], ends])
        return x, outputs
