"""The train loop: one pure step and the loop around it.  It knows neither model, data nor objective; every job uses it."""

import contextlib
import functools
import logging
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from tqdm import tqdm

from albert_jax import partition, processes
from albert_jax.checkpoint import Best, Checkpoints
from albert_jax.config import InputError, check_types, require
from albert_jax.meter import Meter, memory, say_evaluation
from albert_jax.optim import Optimizer
from albert_jax.partition import Layout
from albert_jax.run_folder import MetricsLog

log = logging.getLogger(__name__)

Params = Any
Batch = dict[str, Array]


@dataclass(frozen=True)
class TrainConfig:
    """How long, how much at once, and how often something is done beside training."""

    num_train_steps: int = 125_000
    """Updates."""
    global_batch_size: int = 4096
    """B: sequences an update, over all devices."""
    gradient_accumulation: int = 1
    """Micro-batches an update is added up from; for batches that do not fit."""
    seed: int = 0
    """Of parameters, data order, masks and dropout."""
    log_every: int = 100
    """Steps between lines of the log; values are means over them."""
    eval_every: int = 5000
    """Steps between evaluations; there is always one at the end."""
    checkpoint_every: int = 5000
    """Steps between checkpoints; there is always one at the end."""
    keep_checkpoints: int = 3
    """The newest ones are kept."""
    keep_every: int = 0
    """Checkpoints of steps that this divides are kept for good; 0: none are."""
    checkpoint_dir: str = ""
    """Folder of the run's checkpoints, such as gs://bucket/run; empty: 'checkpoints' in the run folder."""
    watchdog_seconds: int = 1800
    """Of several processes, one that has made no step for so long is ended with its stacks shown; 0: never."""
    eval_batch_size: int = 64
    """Sequences an evaluation batch, over all devices."""
    platform: Literal["any", "cpu", "gpu", "tpu"] = "any"
    """Refuse to start on anything else."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in (
            "num_train_steps",
            "global_batch_size",
            "gradient_accumulation",
            "log_every",
            "eval_every",
            "checkpoint_every",
            "keep_checkpoints",
            "eval_batch_size",
        ):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("keep_every", "watchdog_seconds"):
            require(getattr(self, name) >= 0, f"{name} must be at least 0, got {getattr(self, name)}")
        placed = not self.checkpoint_dir or "://" in self.checkpoint_dir or self.checkpoint_dir.startswith(("/", "~"))
        require(placed, f"checkpoint_dir must be absolute, or a bucket's address, got {self.checkpoint_dir!r}")
        require(0 <= self.seed < 2**32, f"seed must be in [0, 2**32), got {self.seed}")


@dataclass(frozen=True)
class Task:
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


class Interrupted(Exception):
    """SIGINT or SIGTERM arrived, at whichever process; the state is saved, and all processes stop after the same step."""

    def __init__(self, signum: int, step: int) -> None:
        super().__init__(
            f"stopped by {signal.Signals(signum).name} after step {step}; saved: the same command goes on from there"
        )
        self.code = 0 if signum == signal.SIGTERM else 128 + signum
        """Of the process: whoever sends SIGTERM asked for just this."""


def state_shapes(task: Task, optimizer: Optimizer, layout: Layout) -> TrainState:
    """The shape and sharding of each array of the state."""
    made = jax.eval_shape(functools.partial(_fresh, task, optimizer), jax.ShapeDtypeStruct((), jnp.uint32))
    return TrainState(*(layout.placed(part, tree) for part, tree in zip(made._fields, made, strict=True)))


def _fresh(task: Task, optimizer: Optimizer, seed: Array) -> TrainState:
    params = task.init(jax.random.key(seed))
    return TrainState(params, optimizer.transformation.init(params), jnp.int32(0))


def make_init(task: Task, optimizer: Optimizer, layout: Layout) -> Any:
    """The jitted seed -> fresh state, made on the devices where it stays: none ever holds more of it than its part."""
    shardings = jax.tree.map(lambda x: x.sharding, state_shapes(task, optimizer, layout))
    return jax.jit(functools.partial(_fresh, task, optimizer), out_shardings=shardings)


def as_argument(seed: int, mesh: Mesh) -> Array:
    """A seed as jitted functions take it: as a constant in them, every seed would be another program to compile."""
    return jax.device_put(np.uint32(seed), partition.replicated(mesh))


def make_step(task: Task, optimizer: Optimizer, layout: Layout, micro_batches: int) -> Any:
    """The jitted step (state, global batch, seed, signals) -> (state, metrics): one draw, gradients summed once, one update.

    `signals` [devices] are the signals that the devices' processes have got, 0 for none; the metric `signal` is the largest.
    """
    gradients = partition.summed_gradients(task.loss, layout, micro_batches)

    def step(state: TrainState, batch: Batch, seed: Array, signals: Array) -> tuple[TrainState, dict[str, Array]]:
        # A fold apart from the key that made the parameters.
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 1), state.step)
        examples = jax.lax.with_sharding_constraint(task.draw(batch, key), partition.by_rows(layout.mesh))
        grads, loss, metrics = gradients(state.params, examples)
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


def run(
    config: TrainConfig,
    task: Task,
    optimizer: Optimizer,
    layout: Layout,
    run_dir: Path,
    initial: Callable[[], Params] | None = None,
    fingerprints: Mapping[str, str] | None = None,
    allow_data_change: bool = False,
) -> tuple[TrainState, dict[str, Any]]:
    """Trains in `run_dir` until `num_train_steps`, from its newest checkpoint if it has one.

    A run starts from, in this order: its own newest checkpoint; `initial()`, parameters from elsewhere; `task.init`.
    The order within a step: next batch, step, log, evaluate, checkpoint; an evaluation ends the run.

    Args:
      config, task, optimizer, layout: what is trained, and where.
      run_dir: the run folder, which all processes share (but where `checkpoint_dir` is, and no task selects).
      initial: whole parameters, on the host or any device.
      fingerprints: of what is read, stored with each checkpoint.
      allow_data_change: go on from a checkpoint that has other fingerprints, which is refused else.

    Returns:
      The last state; its evaluation with `Meter.summary`, `parameters`, and `best`, the best evaluation's metrics and step,
      where the task selects by one.

    Raises:
      InputError: the loss is not finite; nothing of that step is saved.  No memory for a step; no room for checkpoints.
      Interrupted: a signal came, to whichever process; the state is saved.
    """
    mesh, shapes = layout.mesh, state_shapes(task, optimizer, layout)
    seed = as_argument(config.seed, mesh)
    with contextlib.ExitStack() as stack:
        folder = checkpoint_folder(config, run_dir)
        checkpoints = Checkpoints(folder, config.keep_checkpoints, config.keep_every, fingerprints)
        stack.callback(checkpoints.close)
        watchdog = processes.Watchdog(config.watchdog_seconds)
        stack.callback(watchdog.close)
        found = checkpoints.restore(shapes, allow_data_change)
        if found is not None:
            state, progress = found
            log.info("resuming after step %d", int(state.step))
        else:
            with fitting(config, mesh.size):
                state, progress = make_init(task, optimizer, layout)(seed), {}
            if initial is not None:
                shardings = jax.tree.map(lambda x: x.sharding, shapes.params)
                state = state._replace(params=jax.device_put(initial(), shardings))
        start = int(state.step)
        if start < config.num_train_steps:
            checkpoints.check_space(shapes)
        step_fn = make_step(task, optimizer, layout, config.gradient_accumulation)
        batches = partition.prefetch(mesh, task.batches(start))
        metrics_log = MetricsLog(run_dir, start, processes.is_main())
        stack.callback(metrics_log.close)
        shown = sys.stderr.isatty() and processes.is_main()
        bar = stack.enter_context(tqdm(total=config.num_train_steps, initial=start, unit=" steps", disable=not shown))
        meter = Meter(
            run_dir,
            config.num_train_steps,
            config.log_every,
            config.global_batch_size,
            task.flops_per_token,
            partition.peak_flops(mesh),
            metrics_log,
            progress,
            bar,
        )
        best = Best(run_dir / "best") if task.select else None
        if best is not None:
            stack.callback(best.close)

        def evaluate(step: int) -> dict[str, Any]:
            watchdog.feed()
            with fitting(config, mesh.size, "an evaluation"):
                evaluation: dict[str, Any] = task.evaluate(state.params)
            watchdog.feed()
            if step not in metrics_log.evaluated:
                say_evaluation(metrics_log, step, evaluation)
            if best is not None:
                best.offer(step, task.select, state.params, evaluation["eval"])
            return evaluation

        compiled: dict[Any, Any] = {}
        flags: dict[int, Array] = {}
        signals = stack.enter_context(processes.caught_signals())
        due = start > 0 and start % config.eval_every == 0
        if due and processes.everywhere(start not in metrics_log.evaluated):  # a signal came before it
            evaluate(start)
        for step in range(start + 1, config.num_train_steps + 1):
            watchdog.feed()
            batch = next(batches)
            shape = tuple(sorted((name, rows.shape) for name, rows in batch.items()))
            signum = signals[0] if signals else 0
            if signum not in flags:
                flags[signum] = partition.of_each_device(mesh, signum)
            arguments = (batch, seed, flags[signum])
            with fitting(config, mesh.size, "a step", compiled.get(shape)):
                if shape not in compiled:
                    with meter.paused():
                        compiled[shape] = step_fn.lower(state, *arguments).compile()
                        meter.compiled(compiled[shape])
                        watchdog.feed()
                with jax.transfer_guard("disallow"):
                    state, metrics = compiled[shape](state, *arguments)
                meter.add(step, metrics, batch)  # reads the step before this one: the device never waits
            stop, last = meter.signal, step == config.num_train_steps
            if step % config.eval_every == 0 and not (last or stop):
                with meter.paused():
                    evaluate(step)
            if step % config.checkpoint_every == 0 or last or stop:
                with meter.paused():
                    checkpoints.save(step, state, meter.state())
                    watchdog.feed()
            if stop and not last:
                checkpoints.finish(step)
                raise Interrupted(stop, step)
            bar.update()
        checkpoints.finish(config.num_train_steps)
        evaluation = evaluate(config.num_train_steps)
        if best is not None:
            evaluation |= {"best": {"step": best.step} | best.metrics}
    size = {"parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params))}
    return state, evaluation | meter.summary() | size


def checkpoint_folder(config: TrainConfig, run_dir: Path) -> str:
    """Where a run's checkpoints are."""
    return config.checkpoint_dir or str(run_dir / "checkpoints")


@contextlib.contextmanager
def fitting(config: TrainConfig, devices: int, what: str = "a step", compiled: Any = None) -> Iterator[None]:
    """Says of a step, or an evaluation, that does not fit into memory what to change, with the compiler's figures.

    Raises:
      InputError: as said.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        text = str(error)
        if "RESOURCE_EXHAUSTED" not in text and "Out of memory" not in text:
            raise
        told = text.splitlines()[0].removeprefix("RESOURCE_EXHAUSTED: ")
        need = f": by the compiler it takes {memory(compiled) / 1e9:.2f} GB a device" if compiled is not None else ""
        limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
        have = f" of {limit / 1e9:.2f} GB" if limit else ""
        rows = config.global_batch_size // devices
        parts = [k for k in range(config.gradient_accumulation + 1, rows + 1) if rows % k == 0]
        ways = (
            [f"add the batch of {config.global_batch_size} up from parts (--train.gradient-accumulation {parts[0]})"]
            if parts
            else []
        )
        ways += ["keep less (--model.remat dots, or full)", "lower --train.global-batch-size"]
        if what == "an evaluation":
            ways = [f"lower --train.eval-batch-size {config.eval_batch_size}"]
        raise InputError(f"out of memory for {what}{need}{have} ({told}); {', '.join(ways)}") from None
