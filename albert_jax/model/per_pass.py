"""Parameters that differ between the passes of a shared layer.

ALBERT uses the same parameters in every pass.  A variant adds a few parameters to each pass.  At initialization, the outputs equal
ALBERT's bit for bit.  A new variant is a dataclass in `PER_PASS`; its fields are its settings.

The parameters of all passes are stacked: `encoder/per_pass` has the leading axis [L * inner_group_num].
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from albert_jax.config import InputError, check_fields, choice
from albert_jax.model.sharing import PARTS

if TYPE_CHECKING:
    from albert_jax.model.albert import AlbertConfig

Block = dict[str, Any]
"""Part -> parameters of one parameter set."""
PassParams = dict[str, Any]
"""The parameters that one pass has for itself."""

RESIDUAL_BRANCHES = {"attention": "dense", "ffn": "output"}
"""Part -> its last dense layer, whose output is added to the residual."""


@dataclass(frozen=True)
class PassVariant:
    """What every variant implements.  The methods here are those of a variant without parameters."""

    own_modules: ClassVar[tuple[str, ...]] = ()
    """Modules of a part that parameter sets do not have, because each pass has its own."""

    def __post_init__(self) -> None:
        check_fields(self)

    def check(self, config: "AlbertConfig") -> None:
        """Raise `InputError` if the settings do not fit the network."""

    def init(self, config: "AlbertConfig", key: Array) -> PassParams:
        """The initial parameters of one pass."""
        return {}

    def enter(self, params: PassParams, x: Array) -> Array:
        """The input of a pass, [B, S, H], given the output of the pass before."""
        return x

    def block(self, params: PassParams, block: Block) -> Block:
        """The parameters that a pass computes with, given those of its parameter sets."""
        return block

    def merge(self, params: PassParams, block: Block) -> Block:
        """The parameters of a layer without variant that computes the same as this pass; for export."""
        return self.block(params, block)

    def fit(self, config: "AlbertConfig", block: Block, target: Block) -> PassParams:
        """The parameters of a pass that is to resemble a layer with the parameters `target`; by default the initial ones."""
        return jax.tree.map(np.asarray, self.init(config, jax.random.key(0)))


class NoVariant(PassVariant):
    """All passes that read a parameter set compute the same, as in ALBERT."""


class OwnLayerNorms(PassVariant):
    """Each pass has its own LayerNorms."""

    own_modules = ("LayerNorm",)

    def init(self, config: "AlbertConfig", key: Array) -> PassParams:
        norm = {"scale": jnp.ones(config.hidden_size), "bias": jnp.zeros(config.hidden_size)}
        return {part: {"LayerNorm": norm} for part in PARTS}

    def block(self, params: PassParams, block: Block) -> Block:
        return {part: block[part] | params[part] for part in PARTS}

    def fit(self, config: "AlbertConfig", block: Block, target: Block) -> PassParams:
        return {part: {"LayerNorm": target[part]["LayerNorm"]} for part in PARTS}


class ResidualGains(PassVariant):
    """Each pass multiplies the outputs of attention and of the feed-forward layer by learned gains before the residual sum."""

    def init(self, config: "AlbertConfig", key: Array) -> PassParams:
        return {part: {"gain": jnp.ones(())} for part in PARTS}

    def block(self, params: PassParams, block: Block) -> Block:
        def scaled(part: str) -> Any:
            gain, last = params[part]["gain"], RESIDUAL_BRANCHES[part]
            return block[part] | {last: jax.tree.map(lambda leaf: leaf * gain, block[part][last])}

        return {part: scaled(part) for part in PARTS}


class PassEmbedding(PassVariant):
    """Each pass adds a learned vector [H] to its input, as the Universal Transformer adds the time step (arXiv 1807.03819)."""

    def init(self, config: "AlbertConfig", key: Array) -> PassParams:
        return {"embedding": jnp.zeros(config.hidden_size)}

    def enter(self, params: PassParams, x: Array) -> Array:
        return (x.astype(jnp.float32) + params["embedding"]).astype(x.dtype)  # in float32, for the gradient

    def merge(self, params: PassParams, block: Block) -> Block:
        """The vector reaches query, key, value and the residual, and so the biases of these and of the last dense layer."""
        attention, vector = dict(block["attention"]), params["embedding"]
        for name in ("query", "key", "value"):
            kernel, bias = attention[name]["kernel"], attention[name]["bias"]
            attention[name] = {"kernel": kernel, "bias": bias + vector @ kernel}
        attention["dense"] = attention["dense"] | {"bias": attention["dense"]["bias"] + vector}
        return block | {"attention": attention}


@dataclass(frozen=True)
class Lora(PassVariant):
    """Each pass adds a product of two matrices A [K, r] and B [r, M] to each kernel [K, M] (arXiv 2410.20672).

    B starts at zero.
    """

    rank: int = 4
    """r: rank of the added matrix; each pass has r (K + M) parameters for each kernel."""
    parts: str = choice("both", ("both", *PARTS))
    """The parts of a layer that get LoRA."""

    def check(self, config: "AlbertConfig") -> None:
        largest = min(shape[i] for shape in self.kernels(config).values() for i in (0, 1))
        if not 1 <= self.rank <= largest:
            raise InputError(
                f"per_pass.rank must be in [1, {largest}], the smallest side of a kernel, got {self.rank}; "
                "rank 0 is per_pass none, and full rank is sharing none"
            )

    def kernels(self, config: "AlbertConfig") -> dict[tuple[str, str], tuple[int, int]]:
        """(part, module) -> shape [K, M] of each kernel that varies."""
        h, f = config.hidden_size, config.intermediate_size
        shapes = {("attention", name): (h, h) for name in ("query", "key", "value", "dense")}
        shapes |= {("ffn", "intermediate"): (h, f), ("ffn", "output"): (f, h)}
        return {place: shape for place, shape in shapes.items() if self.parts in ("both", place[0])}

    def init(self, config: "AlbertConfig", key: Array) -> PassParams:
        random = nn.initializers.truncated_normal(config.initializer_range)
        params: PassParams = {}
        for number, ((part, name), (k, m)) in enumerate(self.kernels(config).items()):
            a = random(jax.random.fold_in(key, number), (k, self.rank))
            params.setdefault(part, {})[name] = {"lora_a": a, "lora_b": jnp.zeros((self.rank, m))}
        return params

    def block(self, params: PassParams, block: Block) -> Block:
        def summed(part: str, name: str) -> Any:
            module, lora = block[part][name], params[part][name]
            return module | {"kernel": module["kernel"] + lora["lora_a"] @ lora["lora_b"]}

        parts = [part for part in PARTS if part in params]
        return block | {part: block[part] | {name: summed(part, name) for name in params[part]} for part in parts}

    def fit(self, config: "AlbertConfig", block: Block, target: Block) -> PassParams:
        """The first r terms of the singular value decomposition of each difference.

        As in arXiv 2410.20672, the singular values are on the side of the output, so that B is 0 if there is no difference.
        """
        params: PassParams = {}
        for part, name in self.kernels(config):
            difference = np.float64(target[part][name]["kernel"]) - np.float64(block[part][name]["kernel"])
            u, s, v = np.linalg.svd(difference, full_matrices=False)
            lora = {"lora_a": u[:, : self.rank], "lora_b": s[: self.rank, None] * v[: self.rank]}
            params.setdefault(part, {})[name] = {key: value.astype(np.float32) for key, value in lora.items()}
        return params


PER_PASS: dict[str, type[PassVariant]] = {
    "none": NoVariant,  # ALBERT
    "norm": OwnLayerNorms,
    "scale": ResidualGains,
    "embedding": PassEmbedding,
    "lora": Lora,
}
"""Name -> what differs between passes."""


def injected(x: Array, embedded: Array, gain: Array) -> Array:
    """x [B, S, H] plus the output of the embeddings times a gain, in float32: the gradient of a gain is one sum over the batch."""
    return (x.astype(jnp.float32) + gain * embedded.astype(jnp.float32)).astype(x.dtype)


def init_passes(config: "AlbertConfig", key: Array) -> dict[str, Any]:
    """The initial per-pass parameters [L * inner_group_num, ...]: those of the variant, `inject` and `layer_weights`."""
    depth = config.depth
    params = jax.vmap(functools.partial(config.per_pass.init, config))(jax.random.split(key, depth))
    if config.inject:
        params["inject"] = jnp.zeros(depth)
    if config.layer_weights:
        params["layer_weights"] = jnp.eye(depth)
    return params


def weighted_passes(
    block: Callable[..., tuple[Array, dict[str, Array]]], x: Array, inputs: Any, weights: Array
) -> tuple[Array, dict[str, Array]]:
    """As `jax.lax.scan(block, x, inputs)`, but the input of pass i is the sum of states j <= i with `weights[i, j]`.

    State 0 is x, state j the output of pass j.  Not a scan, which would copy all states in each iteration.  Sums are in
    float32, because the gradient of a weight is one sum over the batch.
    """
    states, outputs = [x], list[dict[str, Array]]()
    for i in range(len(weights)):
        terms = [weights[i, j] * states[j].astype(jnp.float32) for j in range(i + 1)]
        mixed = functools.reduce(jnp.add, terms)
        state, output = block(mixed.astype(x.dtype), jax.tree.map(lambda leaf, i=i: leaf[i], inputs))
        states, outputs = [*states, state], [*outputs, output]
    return states[-1], jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs)
