"""The pure training step and the state that it updates.  It is independent of model, data and objective; every job uses it."""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from albert_jax.training import partition, stacking
from albert_jax.training.optim import Optimizer, trained_params
from albert_jax.training.partition import Layout

Params = Any
Batch = dict[str, Array]

DRAW, UPDATE = "draw", "update"
"""`named_scope` labels of the parts of a step that are not the model, for profiles."""


@dataclass(frozen=True)
class Workload:
    """Model, data and loss, as the train loop sees them.

    Losses and metrics are sums over rows, so that they can be added over micro-batches and devices.
    """

    init: Callable[[Array], Params]
    """key -> parameters."""
    draw: Callable[[Batch, Array], Batch]
    """(global batch, key) -> the examples that the loss reads; runs inside the jitted step."""
    loss: Callable[..., tuple[Array, dict[str, Array]]]
    """(parameters, rows, *frozen) -> loss, and metrics: name -> [2], sum and weight."""
    batches: Callable[[int], Iterator[dict[str, np.ndarray]]]
    """step -> this process' rows of the batches that follow that step, without end."""
    evaluate: Callable[[Params], dict[str, Any]]
    """parameters -> `eval`: metrics on held-out data; `baselines`: name -> the same metrics of a simple predictor; optionally
    `diagnostics`, other values to log, and `examples`, the number of examples that each metric is a mean over."""
    flops_per_token: float
    """Matmul FLOPs of a training step per token."""
    frozen: tuple[Any, ...] = ()
    """More arguments of the loss that never change, such as the parameters of a teacher; every device holds them."""
    final: Callable[[Params], dict[str, Any]] = lambda params: {}
    """parameters -> more entries of the summary, computed once after the last step."""
    warning: Callable[[int, dict[str, Any]], str] = lambda step, evaluation: ""
    """(step, evaluation) -> what to warn of, or an empty string; a run logs the first warning."""
    select: str = ""
    """The metric of `eval` by which the best parameters (largest value) are kept in `best/` of the run folder; empty: none."""


class TrainState(NamedTuple):
    """Everything that changes from step to step."""

    params: Params
    opt_state: Any
    step: Array
    """int32: number of updates."""


def state_shapes(workload: Workload, optimizer: Optimizer, layout: Layout) -> TrainState:
    """The shape and sharding of each array of the state."""
    shapes = jax.eval_shape(
        functools.partial(_initial_state, workload, optimizer), jax.ShapeDtypeStruct((), jnp.uint32)
    )
    return TrainState(*(layout.placed(part, tree) for part, tree in zip(shapes._fields, shapes, strict=True)))


def shardings(shapes: Any) -> Any:
    """The sharding of each array of a tree."""
    return jax.tree.map(lambda x: x.sharding, shapes)


def _initial_state(workload: Workload, optimizer: Optimizer, seed: Array) -> TrainState:
    params = workload.init(jax.random.key(seed))
    return TrainState(params, optimizer.transformation.init(params), jnp.int32(0))


def make_init(workload: Workload, optimizer: Optimizer, layout: Layout) -> Any:
    """The jitted function seed -> initial state.  Each device computes only the part of the state that it stores."""
    out_shardings = shardings(state_shapes(workload, optimizer, layout))
    return jax.jit(functools.partial(_initial_state, workload, optimizer), out_shardings=out_shardings)


def as_argument(seed: int | Sequence[int], mesh: Mesh) -> Array:
    """A seed, or several, as an argument of jitted functions.  As a constant, each seed would need its own compilation."""
    return jax.device_put(np.asarray(seed, np.uint32), partition.replicated(mesh))


def make_step(workload: Workload, optimizer: Optimizer, layout: Layout, micro_batches: int, num_seeds: int = 1) -> Any:
    """The jitted step (state, global batch, seed, signals, *frozen) -> (state, metrics).

    With several seeds, all but `signals` and `frozen` have a leading axis [K] for the seeds: see `stacking.py`.
    It draws the examples once, all-reduces the gradients once, and updates once.  `signals` [devices] is the signal that each
    device's process has received, 0 for none; the metric `signal` is the largest.  So all processes learn of a signal with the
    metrics of the same step, and stop after the same step.
    """
    gradients = partition.summed_gradients(workload.loss, layout, micro_batches)

    def step(
        state: TrainState, batch: Batch, seed: Array, signals: Array, *frozen: Any
    ) -> tuple[TrainState, dict[str, Array]]:
        # Fold 1 separates these keys from the key of the initial parameters.
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 1), state.step)
        with jax.named_scope(DRAW):
            examples = jax.lax.with_sharding_constraint(workload.draw(batch, key), partition.by_rows(layout.mesh))
        grads, loss, metrics = gradients(state.params, examples, *frozen)
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

    state_shardings = shardings(stacking.stacked_shapes(state_shapes(workload, optimizer, layout), num_seeds))
    replicated, by_rows = partition.replicated(layout.mesh), partition.by_rows(layout.mesh)
    return jax.jit(
        stacking.vmapped(step, num_seeds, in_axes=(0, 0, 0, None, *[None] * len(workload.frozen))),
        in_shardings=(
            state_shardings,
            stacking.stacked_sharding(by_rows, num_seeds),
            replicated,
            by_rows,
            *[replicated] * len(workload.frozen),
        ),
        out_shardings=(state_shardings, replicated),
        donate_argnums=0,
    )


def make_eval_params(optimizer: Optimizer, shapes: TrainState) -> Callable[[TrainState], Params]:
    """The function state -> the parameters that are evaluated, kept in `best/`, and loaded from checkpoints."""
    if optimizer.eval_params is trained_params:
        return lambda state: state.params

    def eval_params(state: TrainState) -> Params:
        return optimizer.eval_params(state.opt_state, state.params)

    return jax.jit(eval_params, out_shardings=shardings(shapes.params))


TRAIN_PARAMS = "train_params"
"""Key of `TrainState.params` in a checkpoint whose `params`, which `load` reads, are the optimizer's averages."""


def to_checkpoint(state: TrainState, eval_params: Params) -> dict[str, Any]:
    """The tree that a checkpoint stores."""
    tree = state._asdict()
    return tree if eval_params is state.params else tree | {"params": eval_params, TRAIN_PARAMS: state.params}


def checkpoint_target(optimizer: Optimizer, shapes: TrainState) -> dict[str, Any]:
    """The part of a checkpoint that `from_checkpoint` takes."""
    params = "params" if optimizer.eval_params is trained_params else TRAIN_PARAMS
    return {params: shapes.params, "opt_state": shapes.opt_state, "step": shapes.step}


def from_checkpoint(tree: dict[str, Any]) -> TrainState:
    """The inverse of `to_checkpoint`."""
    params = tree[TRAIN_PARAMS] if TRAIN_PARAMS in tree else tree["params"]
    return TrainState(params, tree["opt_state"], tree["step"])


def memory(step: Any) -> int:
    """Bytes that a compiled step needs on a device (state, batch and temporaries); 0 if the compiler does not report them.

    This is what XLA allocates, not an observed peak: it is the same in every run, and known on a CPU too.
    """
    need = step.memory_analysis()
    if need is None:
        return 0
    parts = need.argument_size_in_bytes, need.output_size_in_bytes, need.temp_size_in_bytes
    return sum(parts) - need.alias_size_in_bytes
