"""The pure training step and the state that it changes.  It knows neither model, data nor objective; every job uses it."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from albert_jax.training import partition
from albert_jax.training.optim import Optimizer
from albert_jax.training.partition import Layout

Params = Any
Batch = dict[str, Array]

DRAW, UPDATE = "draw", "update"
"""What a profile calls the parts of a step that are not the model."""


@dataclass(frozen=True)
class Workload:
    """What is trained.  Losses and metrics are sums over rows, so that they add up over micro-batches and devices."""

    init: Callable[[Array], Params]
    """key -> parameters."""
    draw: Callable[[Batch, Array], Batch]
    """(global batch, key) -> the examples that the loss reads; runs inside the jitted step."""
    loss: Callable[[Params, Batch], tuple[Array, dict[str, Array]]]
    """(params, rows) -> loss, metrics: name -> [2], sum and weight."""
    batches: Callable[[int], Iterator[dict[str, np.ndarray]]]
    """step -> this process' rows of the batches of that step and those after it, without end."""
    evaluate: Callable[[Params], dict[str, dict[str, float]]]
    """parameters -> `eval`, metrics on held-out data, and `baseline`, what needs no model."""
    flops_per_token: float
    """Matmul FLOPs of a training step for each token."""
    select: str = ""
    """The metric of `eval`, larger being better, whose best parameters are kept in the run folder's `best/`; empty: none."""


class TrainState(NamedTuple):
    """Everything that changes from step to step; all of it is in a checkpoint."""

    params: Params
    opt_state: Any
    step: Array
    """int32: updates done."""


def state_shapes(task: Workload, optimizer: Optimizer, layout: Layout) -> TrainState:
    """The shape and sharding of each array of the state."""
    made = jax.eval_shape(functools.partial(_fresh, task, optimizer), jax.ShapeDtypeStruct((), jnp.uint32))
    return TrainState(*(layout.placed(part, tree) for part, tree in zip(made._fields, made, strict=True)))


def _fresh(task: Workload, optimizer: Optimizer, seed: Array) -> TrainState:
    params = task.init(jax.random.key(seed))
    return TrainState(params, optimizer.transformation.init(params), jnp.int32(0))


def make_init(task: Workload, optimizer: Optimizer, layout: Layout) -> Any:
    """The jitted seed -> fresh state, made on the devices where it stays: none ever holds more of it than its part."""
    shardings = jax.tree.map(lambda x: x.sharding, state_shapes(task, optimizer, layout))
    return jax.jit(functools.partial(_fresh, task, optimizer), out_shardings=shardings)


def as_argument(seed: int, mesh: Mesh) -> Array:
    """A seed as jitted functions take it: as a constant in them, every seed would be another program to compile."""
    return jax.device_put(np.uint32(seed), partition.replicated(mesh))


def make_step(task: Workload, optimizer: Optimizer, layout: Layout, micro_batches: int) -> Any:
    """The jitted step (state, global batch, seed, signals) -> (state, metrics): one draw, gradients summed once, one update.

    `signals` [devices] are the signals that the devices' processes have got, 0 for none; the metric `signal` is the largest.
    """
    gradients = partition.summed_gradients(task.loss, layout, micro_batches)

    def step(state: TrainState, batch: Batch, seed: Array, signals: Array) -> tuple[TrainState, dict[str, Array]]:
        # A fold apart from the key that made the parameters.
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 1), state.step)
        with jax.named_scope(DRAW):
            examples = jax.lax.with_sharding_constraint(task.draw(batch, key), partition.by_rows(layout.mesh))
        grads, loss, metrics = gradients(state.params, examples)
        with jax.named_scope(UPDATE):
            squares = jnp.stack([jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads)])
            norm = jnp.sqrt(sum(squares))
            updates, opt_state = optimizer.transformation.update(grads, state.opt_state, state.params)
            params = jax.tree.map(jnp.add, state.params, updates)
        rate = optimizer.schedule(state.step)
        metrics |= {
            name: jnp.stack([x, jnp.ones_like(x)])
            for name, x in (("loss", loss), ("grad_norm", norm), ("learning_rate", rate))
        }
        metrics |= {"grad_norms": jnp.sqrt(squares), "signal": jnp.max(signals)}
        if (skipped := optimizer.skipped(opt_state)) is not None:
            metrics["skipped"] = skipped
        return TrainState(params, opt_state, state.step + 1), metrics

    shardings = jax.tree.map(lambda x: x.sharding, state_shapes(task, optimizer, layout))
    everywhere, rows = partition.replicated(layout.mesh), partition.by_rows(layout.mesh)
    return jax.jit(
        step,
        in_shardings=(shardings, rows, everywhere, rows),
        out_shardings=(shardings, everywhere),
        donate_argnums=0,
    )


def memory(step: Any) -> int:
    """Bytes that a compiled step needs on a device: state, batch and temporaries; 0 where the compiler does not say."""
    need = step.memory_analysis()
    if need is None:
        return 0
    parts = need.argument_size_in_bytes, need.output_size_in_bytes, need.temp_size_in_bytes
    return sum(parts) - need.alias_size_in_bytes
