"""Optimizers and learning-rate schedules.

An optimizer is a dataclass in `OPTIMIZERS`: its fields are its settings with their defaults, its method `transformation` is
the update rule.  A schedule is an entry of `SCHEDULES`.

Leaves that stack several parameter sets are passed to the optimizer one set at a time (`per_set`), so that it treats each set
as a separate tensor.  With one trust ratio for a whole stack, LAMB would be a different algorithm.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jax import Array

from albert_jax.config import InputError, check_fields, choice, variant
from albert_jax.training.paths import Path, path_names
from albert_jax.training.tying import Ties, tied

Schedule = Callable[[Any], Array]
EvalParams = Callable[[Any, Any], Any]


def decay_mask(params: Any) -> Any:
    """Which parameters weight decay and LAMB's trust ratio apply to: matrices, but not LayerNorms, biases and gains.

    `params` holds one parameter set in each leaf.
    """
    return jax.tree.map(lambda leaf: leaf.ndim >= 2, params)


def is_hidden_kernel(path: Path) -> bool:
    """Whether a parameter is the kernel of a hidden layer: of the encoder, or of a dense layer of a head, not of a classifier."""
    return "kernel" in path and any(name in ("encoder", "pooler") or name.endswith("dense") for name in path)


class UpdateRule(Protocol):
    """An entry of `OPTIMIZERS`: a frozen dataclass whose fields are numbers.

    If the parameters to evaluate differ from the trained ones, such as an average, the rule also has the method
    `eval_params(opt_state, params) -> params`.
    """

    has_trust_ratio: ClassVar[bool]
    """Whether each update is scaled by the norm of its parameter, so that the paper's learning rates apply."""

    def transformation(self, schedule: Schedule) -> optax.GradientTransformation:
        """The update rule, learning rate included."""


@dataclass(frozen=True)
class AdamSettings:
    """The settings of the optimizers of the Adam family."""

    beta1: float = 0.9
    """Decay rate of the running mean of the gradients."""
    beta2: float = 0.999
    """Decay rate of the running mean of the squared gradients."""
    epsilon: float = 1e-6
    """Added to the square root in the denominator."""
    weight_decay: float = 0.01
    """Applies to matrices, not to LayerNorms, biases and gains."""

    has_trust_ratio: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_settings(self)


class Lamb(AdamSettings):
    """LAMB as released with ALBERT: no bias correction (google-research/albert lamb_optimizer.py)."""

    has_trust_ratio = True

    def transformation(self, schedule: Schedule) -> optax.GradientTransformation:
        """The update rule."""
        return optax.chain(
            scale_by_released_adam(self.beta1, self.beta2, self.epsilon),
            optax.add_decayed_weights(self.weight_decay, decay_mask),
            optax.masked(optax.scale_by_trust_ratio(), decay_mask),
            optax.scale_by_learning_rate(schedule),
        )


class AdamW(AdamSettings):
    """AdamW of optax, with bias correction.

    The released fine-tuning code lacks it, so that training on small data sets diverges (Mosbach et al. 2021).
    """

    def transformation(self, schedule: Schedule) -> optax.GradientTransformation:
        """The update rule."""
        betas = self.beta1, self.beta2
        return optax.adamw(schedule, *betas, self.epsilon, weight_decay=self.weight_decay, mask=decay_mask)


class OptaxLamb(AdamSettings):
    """LAMB of optax, with bias correction."""

    has_trust_ratio = True

    def transformation(self, schedule: Schedule) -> optax.GradientTransformation:
        """The update rule."""
        betas = self.beta1, self.beta2
        return optax.lamb(schedule, *betas, self.epsilon, weight_decay=self.weight_decay, mask=decay_mask)


@dataclass(frozen=True)
class Lion:
    """Lion: the sign of an interpolated momentum (Chen et al., arXiv 2302.06675)."""

    beta1: float = 0.9
    """Weight of the momentum in the update."""
    beta2: float = 0.99
    """Decay rate of the momentum."""
    weight_decay: float = 0.01
    """Applies to matrices, not to LayerNorms, biases and gains."""
    has_trust_ratio: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_settings(self)

    def transformation(self, schedule: Schedule) -> optax.GradientTransformation:
        """The update rule."""
        return optax.lion(schedule, self.beta1, self.beta2, weight_decay=self.weight_decay, mask=decay_mask)


@dataclass(frozen=True)
class Muon:
    """Muon for the kernels of hidden layers (https://kellerjordan.github.io/posts/muon), AdamW for all other parameters.

    Updates of kernels are scaled so that their root mean square is 0.2 for every shape, as AdamW's is in practice (Liu et al.,
    arXiv 2502.16982, section 2.2).
    """

    beta: float = 0.95
    """Decay rate of the momentum of kernels, with Nesterov's correction."""
    adam_learning_rate_ratio: float = 1.0
    """Learning rate of all other parameters, as a multiple of `learning_rate`."""
    adam_beta1: float = 0.9
    """AdamW's decay rate of the running mean of the gradients."""
    adam_beta2: float = 0.98
    """AdamW's decay rate of the running mean of the squared gradients."""
    epsilon: float = 1e-8
    """Added to AdamW's square root, and to the norm that Muon divides by."""
    weight_decay: float = 0.01
    """Applies to matrices, not to LayerNorms, biases and gains."""
    has_trust_ratio: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_settings(self)

    def transformation(self, schedule: Schedule) -> optax.GradientTransformation:
        """The update rule."""
        muon = optax.contrib.muon(
            schedule, beta=self.beta, eps=self.epsilon, weight_decay=self.weight_decay, consistent_rms=0.2
        )
        adamw = optax.adamw(
            lambda step: self.adam_learning_rate_ratio * schedule(step),
            self.adam_beta1,
            self.adam_beta2,
            self.epsilon,
            weight_decay=self.weight_decay,
            mask=decay_mask,
        )

        def labels(params: Any) -> Any:
            return jax.tree_util.tree_map_with_path(
                lambda path, _: "muon" if is_hidden_kernel(path_names(path)) else "adamw", params
            )

        return optax.partition({"muon": muon, "adamw": adamw}, labels)


OPTIMIZERS: dict[str, type[UpdateRule]] = {
    "lamb": Lamb,
    "adamw": AdamW,
    "optax_lamb": OptaxLamb,
    "lion": Lion,
    "muon": Muon,
}
"""Name -> update rule with its settings."""

SCHEDULES: dict[str, Callable[[Any], Any]] = {
    "linear": lambda progress: 1 - progress,
    "cosine": lambda progress: 0.5 * (1 + jnp.cos(jnp.pi * progress)),
    "constant": lambda progress: 1.0,
}
"""Name -> function from the completed fraction of the run to the fraction of the peak learning rate."""


def check_settings(rule: Any) -> None:
    """Check the settings of an update rule: betas in [0, 1), epsilon > 0, everything else >= 0.

    Raises:
      InputError: names the setting.
    """
    check_fields(rule)
    for field in fields(rule):
        value = getattr(rule, field.name)
        if "beta" in field.name and not 0 <= value < 1:
            raise InputError(f"{field.name} must be in [0, 1), got {value}")
        in_range = value > 0 if field.name == "epsilon" else value >= 0
        if not (math.isfinite(value) and in_range):
            raise InputError(
                f"{field.name} must be finite and {'>' if field.name == 'epsilon' else '>='} 0, got {value}"
            )


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer and its learning rate.  The defaults are the paper's, for pretraining at batch size 4096."""

    optimizer: Any = variant("lamb", OPTIMIZERS)
    """The update rule with its settings.  lamb is the released one; the others are optax's."""
    learning_rate: float = 0.00176
    """Peak learning rate.  For smaller batches scale it by sqrt(batch size / 4096)."""
    schedule: str = choice("linear", SCHEDULES)
    """Learning rate after the warmup: linear and cosine decay to 0 at the last step."""
    num_warmup_steps: int = 3125
    """Steps of linear warmup."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this global norm."""
    skip_spikes: float = 0.0
    """Skip updates whose gradient norm exceeds this multiple of its running mean.  0: never."""

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("learning_rate", "max_grad_norm"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"{name} must be finite and > 0, got {value}")
        if self.num_warmup_steps < 0:
            raise InputError(f"num_warmup_steps must be >= 0, got {self.num_warmup_steps}")
        if self.skip_spikes != 0 and not (math.isfinite(self.skip_spikes) and self.skip_spikes > 1):
            raise InputError(f"skip_spikes must be 0 or above 1, got {self.skip_spikes}")


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


def make_schedule(config: OptimConfig, num_train_steps: int) -> Schedule:
    """Return the function from step (0, 1, ...) to learning rate.

    As released, the decay counts from step 0, so at the end of the warmup the rate drops from its peak to the value of the
    decay at that step (google-research/albert optimization.py).
    """

    def schedule(step: Any) -> Array:
        step = jnp.asarray(step, jnp.float32)
        decayed = SCHEDULES[config.schedule](jnp.clip(step / num_train_steps, 0, 1))
        warmup = step / max(config.num_warmup_steps, 1)
        return config.learning_rate * jnp.where(step < config.num_warmup_steps, warmup, decayed)

    return schedule


class SpikeState(NamedTuple):
    """The state of `skip_spikes`.  `inner` is the state of the wrapped transformation."""

    mean_norm: Array
    """Running mean of the global gradient norm.  A spike enters it clipped to the threshold."""
    seen: Array
    """int32: number of updates so far."""
    skipped: Array
    """1.0 if the last update was skipped, else 0.0."""
    inner: Any


NORM_DECAY = 0.99
"""Decay rate of the running mean of norms."""

FIRST_NORMS = 100
"""Number of updates before any is skipped: early norms fall fast, and their mean is not reliable yet."""


def skip_spikes(inner: optax.GradientTransformation, factor: float) -> optax.GradientTransformation:
    """Wrap `inner`: if the global gradient norm exceeds `factor` x its running mean, the update is 0 and `inner` unchanged.

    The norm is compared, not the loss, because one hard batch moves the loss.  A norm that is not finite is not skipped, so
    that the run stops.
    """

    def init(params: Any) -> SpikeState:
        return SpikeState(jnp.float32(0), jnp.int32(0), jnp.float32(0), inner.init(params))

    def update(grads: Any, state: SpikeState, params: Any = None) -> tuple[Any, SpikeState]:
        norm = optax.tree.norm(grads)
        threshold = factor * state.mean_norm
        spike = (state.seen >= FIRST_NORMS) & (norm > threshold) & jnp.isfinite(norm)
        updates, inner_state = inner.update(grads, state.inner, params)

        def unless_spike(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda a, b: jnp.where(spike, b, a), new, old)

        weight = jnp.maximum(1 - NORM_DECAY, 1 / (state.seen + 1.0))  # at first a plain mean
        # A spike enters as the threshold, so that the mean follows if norms stay high.
        mean = state.mean_norm + weight * (jnp.where(spike, threshold, norm) - state.mean_norm)
        new_state = SpikeState(mean, state.seen + 1, spike.astype(jnp.float32), unless_spike(inner_state, state.inner))
        return unless_spike(updates, jax.tree.map(jnp.zeros_like, updates)), new_state

    return optax.GradientTransformation(init, update)


def trained_params(opt_state: Any, params: Any) -> Any:
    """The parameters that are evaluated by default: the trained ones."""
    return params


class Optimizer(NamedTuple):
    """A gradient transformation, its schedule for the log, and the parameters to evaluate."""

    transformation: optax.GradientTransformation
    schedule: Schedule
    eval_params: EvalParams = trained_params
    """(opt_state, params) -> the parameters to evaluate, to save as the best, and to load; by default the trained ones."""

    def skipped(self, opt_state: Any) -> Array | None:
        """1.0 if the last update was skipped as a spike, else 0.0; None if updates are never skipped."""
        return opt_state.skipped if isinstance(opt_state, SpikeState) else None


def make_optimizer(
    config: OptimConfig, num_train_steps: int, is_stacked: Callable[[Path], bool], ties: Ties | None = None
) -> Optimizer:
    """Clip by global norm, then apply the update rule to one parameter set at a time.

    Args:
      config: the optimizer and its settings.
      num_train_steps: length of the schedule.
      is_stacked: path -> whether that leaf stacks several parameter sets along its first axis.
      ties: sets that are equal during a part of the run.
    """
    rule, schedule = config.optimizer, make_schedule(config, num_train_steps)
    clip = optax.clip_by_global_norm(config.max_grad_norm)
    sets = per_set(rule.transformation(schedule), is_stacked)
    transformation = optax.chain(*(tied(clip, sets, ties) if ties else (clip, sets)))
    if config.skip_spikes:
        transformation = skip_spikes(transformation, config.skip_spikes)
    if not hasattr(rule, "eval_params"):
        return Optimizer(transformation, schedule)

    def eval_params(opt_state: Any, params: Any) -> Any:
        _, rule_state = opt_state.inner if isinstance(opt_state, SpikeState) else opt_state
        rule_state = rule_state[0] if ties else rule_state
        return stack_sets(rule.eval_params(rule_state, unstack_sets(params, is_stacked)), params)

    return Optimizer(transformation, schedule, eval_params)


def per_set(inner: optax.GradientTransformation, is_stacked: Callable[[Path], bool]) -> optax.GradientTransformation:
    """Apply `inner` to each parameter set of a stacked leaf separately."""

    def init(params: Any) -> Any:
        return inner.init(unstack_sets(params, is_stacked))

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        rows, param_rows = unstack_sets(grads, is_stacked), unstack_sets(params, is_stacked)
        updates, state = inner.update(rows, state, param_rows)
        return stack_sets(updates, grads), state

    return optax.GradientTransformation(init, update)


def unstack_sets(tree: Any, is_stacked: Callable[[Path], bool]) -> Any:
    """Replace each stacked leaf by the tuple of its rows."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: tuple(leaf) if is_stacked(path_names(path)) else leaf, tree
    )


def stack_sets(tree: Any, like: Any) -> Any:
    """Undo `unstack_sets`; `like` is any tree with the stacked structure."""
    return jax.tree.map(lambda _, rows: jnp.stack(rows) if isinstance(rows, tuple) else rows, like, tree)
