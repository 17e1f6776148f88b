"""Optimisers and learning-rate schedules.

A new optimiser is a new entry of `OPTIMIZERS`, a new schedule one of `SCHEDULES`.  Parameters stored with a leading axis of
sets are handed to the optimiser one set at a time, so whatever it does "per tensor" is per layer, as in an unstacked model.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from albert_jax.config import check_fields, require

Path = tuple[str, ...]
Schedule = Callable[[Any], Array]


@dataclass(frozen=True)
class OptimConfig:
    """The update rule; the defaults are the paper's pretraining at batch 4096."""

    optimizer: str = "lamb"
    """lamb: as released (no bias correction); adamw and optax_lamb: optax's."""
    learning_rate: float = 0.00176
    """Peak; scale it by sqrt(batch / 4096) for smaller batches."""
    schedule: str = "linear"
    """After the warm-up: to 0 at the last step, or unchanged."""
    num_warmup_steps: int = 3125
    """Steps of linear warm-up."""
    beta1: float = 0.9
    """Decay of the gradient's mean."""
    beta2: float = 0.999
    """Decay of the gradient's square."""
    epsilon: float = 1e-6
    """Added to the square root."""
    weight_decay: float = 0.01
    """Of everything but LayerNorm and biases."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this global norm."""
    skip_spikes: float = 0.0
    """Leave out updates whose gradient norm is more than so many times its running mean; 0: none."""

    def __post_init__(self) -> None:
        check_fields(self)
        require(
            math.isfinite(self.learning_rate) and self.learning_rate > 0,
            f"learning_rate must be finite and > 0, got {self.learning_rate}",
        )
        require(self.optimizer in OPTIMIZERS, f"optimizer: one of {', '.join(OPTIMIZERS)}, got {self.optimizer!r}")
        require(self.schedule in SCHEDULES, f"schedule: one of {', '.join(SCHEDULES)}, got {self.schedule!r}")
        require(self.num_warmup_steps >= 0, f"num_warmup_steps must be >= 0, got {self.num_warmup_steps}")
        for name in ("beta1", "beta2"):
            require(0 <= getattr(self, name) < 1, f"{name} must be in [0, 1), got {getattr(self, name)}")
        for name in ("epsilon", "max_grad_norm"):
            value = getattr(self, name)
            require(math.isfinite(value) and value > 0, f"{name} must be finite and > 0, got {value}")
        require(
            math.isfinite(self.weight_decay) and self.weight_decay >= 0,
            f"weight_decay must be >= 0, got {self.weight_decay}",
        )
        right = self.skip_spikes == 0 or (math.isfinite(self.skip_spikes) and self.skip_spikes > 1)
        require(right, f"skip_spikes must be 0 or above 1, got {self.skip_spikes}")


def decays(path: Path) -> bool:
    """Whether weight decay, and LAMB's trust ratio, apply to a parameter: not to LayerNorm and biases."""
    return "LayerNorm" not in path and "bias" not in path


def scale_by_released_adam(beta1: float, beta2: float, epsilon: float) -> optax.GradientTransformation:
    """Adam's direction without bias correction (google-research/albert optimization.py and lamb_optimizer.py)."""

    def init(params: Any) -> optax.ScaleByAdamState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return optax.ScaleByAdamState(count=jnp.zeros([], jnp.int32), mu=zeros, nu=jax.tree.map(jnp.zeros_like, params))

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, optax.ScaleByAdamState]:
        mu = jax.tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, state.mu, grads)
        nu = jax.tree.map(lambda v, g: beta2 * v + (1 - beta2) * g * g, state.nu, grads)
        direction = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + epsilon), mu, nu)
        return direction, optax.ScaleByAdamState(count=state.count + 1, mu=mu, nu=nu)

    return optax.GradientTransformation(init, update)


def decay_mask(params: Any) -> Any:
    """The tree of `decays` over the paths of `params`."""
    return jax.tree_util.tree_map_with_path(lambda path, _: decays(names(path)), params)


def names(path: Any) -> Path:
    """A JAX key path as strings."""
    return tuple(jax.tree_util.keystr(path, simple=True, separator="/").split("/"))


def _lamb(config: OptimConfig, schedule: Schedule) -> optax.GradientTransformation:
    return optax.chain(
        scale_by_released_adam(config.beta1, config.beta2, config.epsilon),
        optax.add_decayed_weights(config.weight_decay, decay_mask),
        optax.masked(optax.scale_by_trust_ratio(), decay_mask),
        optax.scale_by_learning_rate(schedule),
    )


def _adamw(config: OptimConfig, schedule: Schedule) -> optax.GradientTransformation:
    return optax.adamw(
        schedule, config.beta1, config.beta2, config.epsilon, weight_decay=config.weight_decay, mask=decay_mask
    )


def _optax_lamb(config: OptimConfig, schedule: Schedule) -> optax.GradientTransformation:
    return optax.lamb(
        schedule, config.beta1, config.beta2, config.epsilon, weight_decay=config.weight_decay, mask=decay_mask
    )


OPTIMIZERS = {"lamb": _lamb, "adamw": _adamw, "optax_lamb": _optax_lamb}
"""Name -> (config, schedule) -> transformation."""

SCHEDULES: dict[str, Callable[[Any], Any]] = {
    "linear": lambda progress: 1 - progress,
    "cosine": lambda progress: 0.5 * (1 + jnp.cos(jnp.pi * progress)),
    "constant": lambda progress: 1.0,
}
"""Name -> share of the peak as a function of the share of the run that is done."""


def make_schedule(config: OptimConfig, num_train_steps: int) -> Schedule:
    """The learning rate of update `step`, from 0.  As released, the decay counts from step 0, so that the rate falls at the
    end of the warm-up from its peak to where the decay stands (google-research/albert optimization.py).
    """

    def schedule(step: Any) -> Array:
        step = jnp.asarray(step, jnp.float32)
        decayed = SCHEDULES[config.schedule](jnp.clip(step / num_train_steps, 0, 1))
        warming = step / max(config.num_warmup_steps, 1)
        return config.learning_rate * jnp.where(step < config.num_warmup_steps, warming, decayed)

    return schedule


class SpikeState(NamedTuple):
    """What `without_spikes` keeps beside the state of the transformation in it."""

    mean_norm: Array
    """Running mean of the gradients' global norm, spikes counted as the largest that are none."""
    seen: Array
    """int32: the norms in it."""
    skipped: Array
    """1.0 where the last update was left out, else 0.0."""
    inner: Any


NORM_DECAY = 0.99
"""Of the running mean of norms."""

FIRST_NORMS = 100
"""Updates before any is left out: until then the mean says little, and norms fall fast."""


def without_spikes(inner: optax.GradientTransformation, factor: float) -> optax.GradientTransformation:
    """`inner`, but an update whose global norm is above `factor` times the running mean is 0, and changes nothing in `inner`.

    A norm that is not finite is no spike: the run has to stop.
    """

    def init(params: Any) -> SpikeState:
        return SpikeState(jnp.float32(0), jnp.int32(0), jnp.float32(0), inner.init(params))

    def update(grads: Any, state: SpikeState, params: Any = None) -> tuple[Any, SpikeState]:
        norm = optax.tree.norm(grads)
        spike = (state.seen >= FIRST_NORMS) & (norm > factor * state.mean_norm) & jnp.isfinite(norm)
        updates, changed = inner.update(grads, state.inner, params)

        def unless(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda a, b: jnp.where(spike, b, a), new, old)

        share = jnp.maximum(1 - NORM_DECAY, 1 / (state.seen + 1.0))  # the plain mean, as long as that is of few
        # A spike counts as the largest norm that is none: if norms stay high, the mean comes after them.
        counted = jnp.where(spike, factor * state.mean_norm, norm)
        mean = state.mean_norm + share * (counted - state.mean_norm)
        kept = SpikeState(mean, state.seen + 1, spike.astype(jnp.float32), unless(changed, state.inner))
        return unless(updates, jax.tree.map(jnp.zeros_like, updates)), kept

    return optax.GradientTransformation(init, update)


class Optimizer(NamedTuple):
    """A gradient transformation and the schedule in it, for the log."""

    transformation: optax.GradientTransformation
    schedule: Schedule

    def skipped(self, opt_state: Any) -> Array | None:
        """1.0 where the last update was left out as a spike, else 0.0; None where none ever is."""
        return opt_state.skipped if isinstance(opt_state, SpikeState) else None


def make_optimizer(config: OptimConfig, num_train_steps: int, is_stacked: Callable[[Path], bool]) -> Optimizer:
    """Clipping by global norm, then the optimiser, one parameter set at a time where `is_stacked` says a leaf holds several."""
    schedule = make_schedule(config, num_train_steps)
    inner = OPTIMIZERS[config.optimizer](config, schedule)
    chain = optax.chain(optax.clip_by_global_norm(config.max_grad_norm), per_set(inner, is_stacked))
    return Optimizer(without_spikes(chain, config.skip_spikes) if config.skip_spikes else chain, schedule)


def per_set(inner: optax.GradientTransformation, is_stacked: Callable[[Path], bool]) -> optax.GradientTransformation:
    """`inner` over the rows of stacked leaves instead of the leaves: norms are a layer's, not all layers' together."""

    def unstack(tree: Any) -> Any:
        def rows(path: Any, leaf: Array) -> Any:
            return tuple(leaf) if is_stacked(names(path)) else leaf

        return jax.tree_util.tree_map_with_path(rows, tree)

    def init(params: Any) -> Any:
        return inner.init(unstack(params))

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = inner.update(unstack(grads), state, unstack(params))
        stacked = jax.tree.map(lambda _, rows: jnp.stack(rows) if isinstance(rows, tuple) else rows, grads, updates)
        return stacked, state

    return optax.GradientTransformation(init, update)
