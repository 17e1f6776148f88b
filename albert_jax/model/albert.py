"""The configuration, the factorized embeddings and the block: attention and feed-forward.

The computation follows arXiv 1909.11942, section 3, and google-research/albert modeling.py.  `encoder.py` runs the block L times,
`sharing.py` decides which layers share parameters, `heads.py` what is predicted, `training/partition.py` on which devices arrays are.

Shapes: B batch, S sequence, E embedding_size, H hidden_size, F intermediate_size, N heads, D = H / N, V vocab_size,
L layers, G parameter sets of a part, P predicted positions.
"""

import math
from dataclasses import dataclass, fields
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from albert_jax.config import InputError, check_fields, choice, variant
from albert_jax.model import products
from albert_jax.model.depth import DEPTH_SAMPLING
from albert_jax.model.per_pass import PER_PASS, NoVariant
from albert_jax.model.products import CONTEXT, DROPOUT_MASK, POLICIES, SCORES, cudnn_attention, einsum, named
from albert_jax.model.sharing import STRATEGIES, TABLE_EXAMPLE, Sets, layer_sets

Outputs = dict[str, Array]

ACTIVATIONS = {
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),  # what the released code calls "gelu": the tanh form
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),  # the erf form, as Hugging Face reads "gelu"
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "linear": lambda x: x,
}

MAX_DEPTH = 10_000
"""Largest number of blocks.  A larger number is a mistake or comes from a corrupted file."""

MAX_SIZE = 2**24
"""Largest value of any size.  A larger value is a mistake or comes from a corrupted file."""


@dataclass(frozen=True)
class AlbertConfig:
    """The network.  Names are those of the released `albert_config.json`; the defaults are those of ALBERT-base v2."""

    vocab_size: int = 30000
    """V: size of the vocabulary."""
    embedding_size: int = 128
    """E: width of the token embeddings.  A dense layer maps them to hidden_size unless the two are equal."""
    always_map_embeddings: bool = False
    """Map the embeddings even if E = H, as Hugging Face does.  The released code does not."""
    hidden_size: int = 768
    """H: width of the layers."""
    num_hidden_layers: int = 12
    """L: number of layers."""
    num_attention_heads: int = 12
    """N: number of heads, each of size hidden_size / N."""
    intermediate_size: int = 3072
    """F: width of the feed-forward layer."""
    sharing: str = choice("all", STRATEGIES, or_else=TABLE_EXAMPLE)
    """Which layers share parameters (paper, Table 4).  all: all layers; attention, ffn: all layers, but only this part; none: no layers; groups: runs of consecutive layers; cycle: every G-th layer; cycle-reversed: cycles, of which the last runs backwards; middle: all but the first and the last layer, in cycles of G."""
    num_hidden_groups: int = 1
    """G: number of parameter sets, for the sharing strategies that use it; middle has two more."""
    per_pass: Any = variant("none", PER_PASS)
    """Parameters that each pass of a shared layer has for itself.  norm: LayerNorms; scale: gains of the two residual branches; embedding: a vector that is added to its input; lora: a low-rank matrix added to each kernel."""
    inject: bool = False
    """Add the output of the embeddings to the input of each pass, times a learned gain that starts at 0."""
    layer_weights: bool = False
    """The input of each pass is a learned weighted sum of the outputs of all passes before (after ELC-BERT, arXiv 2311.02265, without its softmax).  At first, the last output has weight 1 and all others 0."""
    inner_group_num: int = 1
    """Number of blocks in each layer, with separate parameters.  L times this number of blocks run."""
    depth_sampling: str = choice("fixed", DEPTH_SAMPLING)
    """Number of layers in each step of pretraining.  fixed: L; uniform: 1 to 2 L - 1; poisson: about L.  Evaluation uses L."""
    hidden_act: str = choice("gelu_new", ACTIVATIONS)
    """gelu_new is the tanh approximation (released as "gelu"), gelu the exact erf form."""
    hidden_dropout_prob: float = 0.0
    """Dropout of embeddings, attention output and feed-forward output.  v1: 0.1, except xxlarge."""
    attention_probs_dropout_prob: float = 0.0
    """Dropout of the attention weights."""
    classifier_dropout_prob: float = 0.1
    """Dropout before a fine-tuned classifier.  The released fine-tuning code always uses 0.1."""
    max_position_embeddings: int = 512
    """Maximum sequence length."""
    type_vocab_size: int = 2
    """Number of segment types."""
    initializer_range: float = 0.02
    """Standard deviation of the truncated normal that initializes kernels and embeddings."""
    layer_norm_eps: float = 1e-12
    """Added to the variance in LayerNorm."""
    dtype: str = choice("float32", ("float32", "bfloat16"))
    """Compute dtype.  Parameters, their gradients, LayerNorm and softmax stay in float32."""
    remat: str = choice("elementwise", POLICIES)
    """What the backward pass recomputes.  none: nothing; elementwise: all but matrix products and dropout masks; dots: also attention's products; full: the block."""
    scan_unroll: int = 1
    """Number of blocks in one iteration of the layer loop.  1 compiles fastest; on a GPU, unrolling all blocks is 10 % faster."""
    attention_implementation: str = choice("xla", ("xla", "cudnn"))
    """cudnn: fused attention on NVIDIA GPUs, in bfloat16, without attention dropout, for masks that only pad on the right."""
    fused_kernels: bool = False
    """On NVIDIA GPUs, kernels of Pallas for bias, residual and LayerNorm of both parts of a layer, and for bias and activation.  Needs hidden_dropout_prob 0.  Ignored on other devices."""

    def __post_init__(self) -> None:
        check_fields(self)
        for name in (field.name for field in fields(self) if field.type is int):
            if not 1 <= getattr(self, name) <= MAX_SIZE:
                raise InputError(f"{name} must be in [1, {MAX_SIZE}], got {getattr(self, name)}")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout_prob"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        for name in ("initializer_range", "layer_norm_eps"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"{name} must be finite and > 0, got {value}")
        heads, groups = self.num_attention_heads, self.num_hidden_groups
        if self.hidden_size % heads != 0:
            raise InputError(f"hidden_size {self.hidden_size} is not divisible by num_attention_heads {heads}")
        if self.depth > MAX_DEPTH:
            raise InputError(f"num_hidden_layers x inner_group_num is {self.depth}, more than {MAX_DEPTH}")
        strategy = STRATEGIES.get(self.sharing)
        if groups > 1 and not (strategy and strategy.takes_groups):
            names = ", ".join(name for name, strategy in STRATEGIES.items() if strategy.takes_groups)
            raise InputError(f"num_hidden_groups {groups} needs sharing to be one of {names}; it is {self.sharing!r}")
        if groups > self.num_hidden_layers:
            raise InputError(f"num_hidden_groups {groups} exceeds num_hidden_layers {self.num_hidden_layers}")
        sets = self.layer_sets  # raises if `sharing` is no strategy and no valid table
        if groups > 1 and sets == layer_sets(self.sharing, self.num_hidden_layers, groups - 1, self.inner_group_num):
            raise InputError(
                f"num_hidden_groups {groups} is too large for sharing {self.sharing!r} with num_hidden_layers "
                f"{self.num_hidden_layers}"
            )
        self.per_pass.check(self)
        if self.depth_sampling != "fixed":
            self.check_repeats(f"depth_sampling {self.depth_sampling!r}")
            if 2 * self.depth > MAX_DEPTH:
                raise InputError(
                    f"depth_sampling {self.depth_sampling!r} draws up to {2 * self.depth} blocks, more than {MAX_DEPTH}"
                )
        fusible = self.dtype == "bfloat16" and self.attention_probs_dropout_prob == 0
        if self.attention_implementation == "cudnn" and not fusible:
            raise InputError(
                "attention_implementation 'cudnn' needs dtype 'bfloat16' and attention_probs_dropout_prob 0"
            )
        if self.fused_kernels and self.hidden_dropout_prob != 0:
            raise InputError(f"fused_kernels needs hidden_dropout_prob 0, got {self.hidden_dropout_prob}")
        if self.fused_kernels and self.hidden_act == "gelu":
            # Pallas's Triton has no erfc.
            raise InputError("fused_kernels does not support hidden_act 'gelu'; set fused_kernels to false")

    @property
    def maps_embeddings(self) -> bool:
        """Whether the network has an `embedding_hidden_mapping_in`."""
        return self.always_map_embeddings or self.embedding_size != self.hidden_size

    @property
    def depth(self) -> int:
        """Number of blocks that run: L * inner_group_num."""
        return self.num_hidden_layers * self.inner_group_num

    def check_repeats(self, field: str) -> None:
        """Raise `InputError` unless a deeper network reads the same parameter sets again, so that the depth can change."""
        repeats = (
            self.per_pass == NoVariant() and not (self.inject or self.layer_weights) and self.sharing in STRATEGIES
        )
        if repeats:
            deeper = layer_sets(self.sharing, 2 * self.num_hidden_layers, self.num_hidden_groups, self.inner_group_num)
            repeats = all(
                deeper[part][: self.depth] == sets and max(deeper[part]) == max(sets)
                for part, sets in self.layer_sets.items()
            )
        if not repeats:
            raise InputError(
                f"{field} needs layers that repeat: sharing all or cycle, per_pass none, no inject and no layer_weights"
            )

    @property
    def layer_sets(self) -> dict[str, Sets]:
        """The parameter set that each block reads, for each part of a layer."""
        return layer_sets(self.sharing, self.num_hidden_layers, self.num_hidden_groups, self.inner_group_num)


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
"""The released models.  v2 has no dropout; v1 has 0.1, except xxlarge."""


def dropout(x: Array, keys: Array | None, site: Array | int, rate: float) -> Array:
    """Apply dropout to x [B, ...] with one key per row, so that a row's mask depends on neither other rows nor the sharding.

    Args:
      x: activations.
      keys: [B] random keys, or None for no dropout.
      site: number of this use of dropout in the network; it is folded into the keys, so that masks differ.
      rate: probability of a zero.
    """
    if keys is None or rate == 0:
        return x
    keep = jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, site), 1 - rate, x.shape[1:]))(keys)
    keep = named(keep, DROPOUT_MASK)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


def initializer(config: AlbertConfig) -> nn.initializers.Initializer:
    """The initializer of kernels and embeddings: a normal truncated at two standard deviations, as tf.truncated_normal."""
    return nn.initializers.truncated_normal(config.initializer_range)


class Dense(nn.Module):
    """Dense layer [..., K] -> [..., M].  Parameters are float32 and cast where they are used: gradients are summed in float32."""

    config: AlbertConfig
    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        dtype = jnp.dtype(self.config.dtype)
        kernel, bias = _dense_params(self, x)
        return products.dense(x.astype(dtype), kernel.astype(dtype), bias.astype(dtype))


class Product(nn.Module):
    """`Dense` for a kernel that adds the bias: [..., K] -> the product [..., M] and the bias [M] in float32."""

    config: AlbertConfig
    features: int

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        dtype = jnp.dtype(self.config.dtype)
        kernel, bias = _dense_params(self, x)
        return products.dense(x.astype(dtype), kernel.astype(dtype), jnp.zeros(self.features, dtype)), bias


def _dense_params(module: Dense | Product, x: Array) -> tuple[Array, Array]:
    kernel = module.param("kernel", initializer(module.config), (x.shape[-1], module.features))
    return kernel, module.param("bias", nn.initializers.zeros, (module.features,))


class AddLayerNorm(nn.Module):
    """LayerNorm of x + (product + bias) in one kernel, with the parameters of `nn.LayerNorm`."""

    config: AlbertConfig

    @nn.compact
    def __call__(self, x: Array, product: Array, bias: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones, bias.shape)
        shift = self.param("bias", nn.initializers.zeros, bias.shape)
        from albert_jax.model import fused  # only where it is used, because JAX will remove Pallas's Triton

        return fused.add_layer_norm(x, product, bias, scale, shift, self.config.layer_norm_eps)


def dense(config: AlbertConfig, features: int, name: str) -> Dense:
    """Make a dense layer; call it inside a module's compact method."""
    return Dense(config, features, name=name)


def layer_norm(config: AlbertConfig, x: Array) -> Array:
    """LayerNorm in float32, returned in x's dtype; call it inside a module's compact method."""
    norm = nn.LayerNorm(epsilon=config.layer_norm_eps, dtype=jnp.float32, use_fast_variance=False, name="LayerNorm")
    with jax.named_scope("LayerNorm"):
        return norm(x.astype(jnp.float32)).astype(x.dtype)


def activation(config: AlbertConfig, x: Array) -> Array:
    """Apply `hidden_act` in float32, because in bfloat16 each of its operations would round; return x's dtype."""

    def in_float32(x: Array) -> Array:
        return ACTIVATIONS[config.hidden_act](x.astype(jnp.float32)).astype(x.dtype)

    # Recomputed in the backward pass with any remat policy: XLA would save GELU's float32 tanh, twice the size of x.
    return in_float32(x) if x.dtype == jnp.float32 else jax.checkpoint(in_float32)(x)


def uses_kernels(config: AlbertConfig) -> bool:
    """Whether the kernels of `fused.py` replace XLA's."""
    return config.fused_kernels and jax.default_backend() == "gpu"


def dense_and_activation(config: AlbertConfig, x: Array, features: int, name: str) -> Array:
    """Activation of a dense layer; call it inside a module's compact method."""
    if uses_kernels(config):
        from albert_jax.model import fused  # as in AddLayerNorm

        return fused.add_activate(*Product(config, features, name=name)(x), ACTIVATIONS[config.hidden_act])
    return activation(config, dense(config, features, name)(x))


def dense_and_layer_norm(
    config: AlbertConfig, x: Array, residual: Array, name: str, keys: Array | None, site: Array | int
) -> Array:
    """LayerNorm of residual + dropout(dense layer of x); call it inside a module's compact method."""
    if uses_kernels(config):
        return AddLayerNorm(config, name="LayerNorm")(residual, *Product(config, config.hidden_size, name=name)(x))
    y = dense(config, config.hidden_size, name)(x)
    return layer_norm(config, residual + dropout(y, keys, site, config.hidden_dropout_prob))


class Embeddings(nn.Module):
    """Sum of word, position and segment embeddings [B, S, E]; also returns the word embeddings [V, E] for the MLM head."""

    config: AlbertConfig

    @nn.compact
    def __call__(
        self,
        input_ids: Array | None,
        token_type_ids: Array,
        dropout_keys: Array | None,
        inputs_embeds: Array | None = None,
        position_ids: Array | None = None,
    ) -> tuple[Array, Array]:
        config, length = self.config, token_type_ids.shape[1]
        if length > config.max_position_embeddings:
            raise ValueError(f"sequence length {length} > max_position_embeddings {config.max_position_embeddings}")

        def table(name: str, rows: int) -> nn.Embed:
            return nn.Embed(rows, config.embedding_size, embedding_init=initializer(config), name=name)

        words = table("word_embeddings", config.vocab_size)
        positions = table("position_embeddings", config.max_position_embeddings)
        segments = table("token_type_embeddings", config.type_vocab_size)
        pieces = words(input_ids) if inputs_embeds is None else inputs_embeds
        places = jnp.arange(length)[None] if position_ids is None else position_ids
        x = pieces + segments(token_type_ids) + positions(places)
        x = dropout(layer_norm(config, x), dropout_keys, 0, config.hidden_dropout_prob)
        return x, words.embedding


class Attention(nn.Module):
    """Multi-head self-attention with residual and LayerNorm: [B, S, H] -> [B, S, H] and the weights [B, N, S, S].

    cuDNN does not return the weights (None); if `with_weights`, XLA computes attention instead.  Query, key and value are
    separate products, since one fused product is no faster (both 9.4 ms on two CPU cores).
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
            # -10000 as released, not minus infinity, so that a row with only padding does not give NaN.
            bias = (1.0 - mask[:, None, None, :].astype(jnp.float32)) * -10000.0
            weights = jax.nn.softmax(scores + bias).astype(x.dtype)
            dropped = dropout(weights, keys, site, config.attention_probs_dropout_prob)
            context = einsum("bnqk,bknd->bqnd", dropped, value, CONTEXT).astype(x.dtype)
        return dense_and_layer_norm(config, context.reshape(x.shape), x, "dense", keys, site + 1), weights


class FeedForward(nn.Module):
    """Two dense layers with residual and LayerNorm: [B, S, H] -> [B, S, F] -> [B, S, H]."""

    config: AlbertConfig

    @nn.compact
    def __call__(self, x: Array, keys: Array | None, site: Array | int) -> Array:
        config = self.config
        y = dense_and_activation(config, x, config.intermediate_size, "intermediate")
        return dense_and_layer_norm(config, y, x, "output", keys, site)
