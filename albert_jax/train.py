"""The train loop: one pure step and the loop around it.  It knows neither model, data nor objective; every job uses it."""

import contextlib
import functools
import logging
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from tqdm import tqdm

from albert_jax import partition
from albert_jax.checkpoint import Best, Checkpoints
from albert_jax.config import InputError, check_types, require
from albert_jax.optim import Optimizer
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
    """SIGINT or SIGTERM arrived; the state is saved."""

    def __init__(self, signum: int, step: int) -> None:
        super().__init__(
            f"stopped by {signal.Signals(signum).name} after step {step}; saved: the same command goes on from there"
        )
        self.signum = signum


def init_state(task: Task, optimizer: Optimizer, mesh: Mesh, seed: int) -> tuple[Callable[[], TrainState], TrainState]:
    """A function that makes a fresh state on the devices where it stays, and the shapes and shardings of that state."""

    def make(seed: Array) -> TrainState:
        params = task.init(jax.random.key(seed))
        return TrainState(params, optimizer.transformation.init(params), jnp.int32(0))

    everywhere = partition.replicated(mesh)
    number = as_argument(seed, mesh)
    made = jax.eval_shape(make, number)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), made)
    return functools.partial(jax.jit(make, out_shardings=everywhere), number), shapes


def as_argument(seed: int, mesh: Mesh) -> Array:
    """A seed as jitted functions take it: as a constant in them, every seed would be another program to compile."""
    return jax.device_put(np.uint32(seed), partition.replicated(mesh))


def make_step(task: Task, optimizer: Optimizer, mesh: Mesh, config: TrainConfig) -> Any:
    """The jitted step (state, global batch, seed) -> (state, metrics): one draw, gradients with one all-reduce, one update."""
    gradients = partition.summed_gradients(task.loss, mesh, config.gradient_accumulation)

    def step(state: TrainState, batch: Batch, seed: Array) -> tuple[TrainState, dict[str, Array]]:
        # A fold apart from the key that made the parameters.
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 1), state.step)
        examples = jax.lax.with_sharding_constraint(task.draw(batch, key), partition.by_rows(mesh))
        grads, loss, metrics = gradients(state.params, examples)
        norm = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads)))
        updates, opt_state = optimizer.transformation.update(grads, state.opt_state, state.params)
        params = jax.tree.map(jnp.add, state.params, updates)
        rate = optimizer.schedule(state.step)
        metrics |= {
            name: jnp.stack([x, jnp.ones_like(x)])
            for name, x in (("loss", loss), ("grad_norm", norm), ("learning_rate", rate))
        }
        return TrainState(params, opt_state, state.step + 1), metrics

    everywhere = partition.replicated(mesh)
    arguments = (everywhere, partition.by_rows(mesh), everywhere)
    return jax.jit(step, in_shardings=arguments, out_shardings=everywhere, donate_argnums=0)


def run(
    config: TrainConfig,
    task: Task,
    optimizer: Optimizer,
    mesh: Mesh,
    run_dir: Path,
    initial: Callable[[], Params] | None = None,
) -> tuple[TrainState, dict[str, Any]]:
    """Trains in `run_dir` until `num_train_steps`, from its newest checkpoint if it has one.

    A run starts from, in this order: its own newest checkpoint; `initial()`, parameters from elsewhere; `task.init`.
    The order within a step: next batch, step, log, evaluate, checkpoint; an evaluation ends the run.

    Returns:
      The last state; its evaluation with `Meter.summary`, `parameters`, and `best`, the best evaluation's metrics and step,
      where the task selects by one.

    Raises:
      InputError: the loss is not finite; nothing of that step is saved.
      Interrupted: a signal came; the state is saved.
    """
    make, shapes = init_state(task, optimizer, mesh, config.seed)
    with contextlib.ExitStack() as stack:
        checkpoints = Checkpoints(run_dir / "checkpoints", config.keep_checkpoints)
        stack.callback(checkpoints.close)
        found = checkpoints.restore(shapes)
        if found is not None:
            state, progress = found
            log.info("resuming after step %d", int(state.step))
        else:
            state, progress = make(), {}
            if initial is not None:
                state = state._replace(params=initial())
        start = int(state.step)
        step_fn, seed = make_step(task, optimizer, mesh, config), as_argument(config.seed, mesh)
        batches = partition.prefetch(mesh, task.batches(start))
        metrics_log = MetricsLog(run_dir, start)
        stack.callback(metrics_log.close)
        bar = stack.enter_context(
            tqdm(total=config.num_train_steps, initial=start, unit=" steps", disable=not sys.stderr.isatty())
        )
        meter = Meter(config, task, mesh, metrics_log, progress, bar)
        best = Best(run_dir / "best") if task.select else None
        if best is not None:
            stack.callback(best.close)

        def evaluate(step: int) -> dict[str, Any]:
            evaluation: dict[str, Any] = task.evaluate(state.params)
            if step not in metrics_log.evaluated:
                log_evaluation(metrics_log, step, evaluation)
            if best is not None:
                best.offer(step, task.select, state.params, evaluation["eval"])
            return evaluation

        compiled: dict[Any, Any] = {}
        signals = stack.enter_context(caught_signals())
        if start and start % config.eval_every == 0 and start not in metrics_log.evaluated:  # a signal came before it
            evaluate(start)
        for step in range(start + 1, config.num_train_steps + 1):
            batch = next(batches)
            shape = tuple(sorted((name, rows.shape) for name, rows in batch.items()))
            if shape not in compiled:
                with meter.paused(run_dir):
                    compiled[shape] = step_fn.lower(state, batch, seed).compile()
                    meter.compiled(compiled[shape])
            with jax.transfer_guard("disallow"):
                state, metrics = compiled[shape](state, batch, seed)
            meter.add(step, metrics, batch, run_dir)  # reads the step before this one: the device never waits
            stop, last = signals[:1], step == config.num_train_steps
            if step % config.eval_every == 0 and not (last or stop):
                with meter.paused(run_dir):
                    evaluate(step)
            if step % config.checkpoint_every == 0 or last or stop:
                with meter.paused(run_dir):
                    checkpoints.save(step, state, meter.state())
            if stop:
                checkpoints.wait()
                raise Interrupted(stop[0], step)
            bar.update()
        checkpoints.wait()
        evaluation = evaluate(config.num_train_steps)
        if best is not None:
            evaluation |= {"best": {"step": best.step} | best.metrics}
    size = {"parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params))}
    return state, evaluation | meter.summary() | size


def log_evaluation(metrics_log: MetricsLog, step: int, evaluation: dict[str, dict[str, float]]) -> None:
    """One evaluation in the log."""
    metrics_log.write(step, {f"eval/{name}": value for name, value in evaluation["eval"].items()})
    say(f"step {step}  eval  " + "  ".join(f"{name} {value:.4g}" for name, value in evaluation["eval"].items()))


class Meter:
    """Reads metrics one step late, averages them, measures speed, writes the log, and stops at a loss that is not finite."""

    def __init__(
        self, config: TrainConfig, task: Task, mesh: Mesh, metrics_log: MetricsLog, progress: dict[str, Any], bar: Any
    ) -> None:
        self.config, self.task, self.log = config, task, metrics_log
        self.peak = partition.peak_flops(mesh)
        self.bar = bar
        self.pending: tuple[int, dict[str, Array], Batch] | None = None
        self.window_tokens = self.window_steps = 0.0
        self.begun: float | None = None  # of the window; None until the first, compiling, step is over
        # Over all launches of the run: tokens seen; tokens and seconds of the steps that were timed; the most memory.
        self.progress = {name: progress.get(name, 0.0) for name in ("tokens", "timed_tokens", "seconds", "memory")}
        self.sums = {name: np.array(total) for name, total in progress.get("sums", {}).items()}  # of the window so far

    def compiled(self, step: Any) -> None:
        """Takes what a compiled step needs of memory."""
        need = step.memory_analysis()
        if need is not None:
            parts = need.argument_size_in_bytes, need.output_size_in_bytes, need.temp_size_in_bytes
            self.progress["memory"] = max(self.progress["memory"], float(sum(parts) - need.alias_size_in_bytes))

    def add(self, step: int, metrics: dict[str, Array], batch: Batch, run_dir: Path) -> None:
        """Takes step's metrics, which may not be there yet, and reads those of the step before."""
        previous, self.pending = self.pending, (step, metrics, batch)
        self._read(previous, run_dir)

    @contextlib.contextmanager
    def paused(self, run_dir: Path) -> Iterator[None]:
        """Reads what is pending, so that nothing follows a step that failed, and leaves the block out of the speed."""
        previous, self.pending = self.pending, None
        self._read(previous, run_dir)
        before = time.perf_counter()
        yield
        if self.begun is not None:
            self.begun += time.perf_counter() - before

    def _read(self, pending: tuple[int, dict[str, Array], Batch] | None, run_dir: Path) -> None:
        if pending is None:
            return
        step, metrics, batch = pending
        values = {name: value.astype(np.float64) for name, value in jax.device_get(metrics).items()}
        if not all(math.isfinite(values[name][0]) for name in ("loss", "grad_norm")):
            dump = run_dir / f"nonfinite-step-{step}.npz"
            arrays: dict[str, Any] = jax.device_get(batch)
            np.savez(dump, step=step, **arrays)
            raise InputError(
                f"step {step}: loss is {values['loss'][0]:g}, gradient norm {values['grad_norm'][0]:g}; its batch is in {dump}; earlier "
                "checkpoints are kept; lower --optim.learning-rate, lengthen the warm-up, or look for ids beyond the vocabulary"
            )
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0) + value
        self.progress["tokens"] += values["tokens"][0]
        if self.begun is None:
            self.begun = time.perf_counter()
        else:
            self.window_tokens += values["tokens"][0]
            self.window_steps += 1
        if step % self.config.log_every == 0 or step == self.config.num_train_steps:
            self._write(step)

    def _write(self, step: int) -> None:
        elapsed = time.perf_counter() - (self.begun or 0)
        names = sorted(
            self.sums.keys() - {"tokens"}, key=lambda name: (name != "loss", name)
        )  # the loss where eyes go first
        means = {name: self.sums[name][0] / self.sums[name][1] for name in names if self.sums[name][1] > 0}
        line = {f"train/{name}": float(value) for name, value in means.items()}
        if self.window_steps:
            speed = {
                "tokens_per_second": self.window_tokens / elapsed,
                "sequences_per_second": self.window_steps * self.config.global_batch_size / elapsed,
            }
            if self.peak is not None:
                speed["mfu"] = speed["tokens_per_second"] * self.task.flops_per_token / self.peak
            line |= {f"speed/{name}": value for name, value in speed.items()}
            self.progress["timed_tokens"] += self.window_tokens
            self.progress["seconds"] += elapsed
        self.log.write(step, line)
        say(
            f"step {step}/{self.config.num_train_steps}  "
            + "  ".join(f"{name.split('/')[1]} {value:.4g}" for name, value in line.items())
        )
        self.bar.set_postfix(loss=f"{means['loss']:.3f}", refresh=False)
        self.sums, self.window_tokens, self.window_steps = {}, 0.0, 0.0
        self.begun = time.perf_counter()

    def state(self) -> dict[str, Any]:
        """What a resumed run goes on counting from; for JSON."""
        return self.progress | {"sums": {name: total.tolist() for name, total in self.sums.items()}}

    def summary(self) -> dict[str, float]:
        """Of the whole run: updates, tokens seen, seconds of training (compilation, evaluation and saving left out), matmul
        FLOPs a token, and bytes that XLA sets aside on a device for a step: state, batch and temporaries.
        """
        seconds = self.progress["seconds"]
        return {
            "steps": self.config.num_train_steps,
            "tokens": self.progress["tokens"],
            "seconds": seconds,
            "tokens_per_second": self.progress["timed_tokens"] / seconds if seconds else 0.0,
            "flops_per_token": self.task.flops_per_token,
            "memory": self.progress["memory"],
        }


def say(line: str) -> None:
    """A line of the log, above the progress bar if there is one."""
    with tqdm.external_write_mode(file=sys.stderr):
        log.info(line)


@contextlib.contextmanager
def caught_signals() -> Iterator[list[int]]:
    """Signals received, for the loop to look at between steps; the second one ends the process at once."""
    received: list[int] = []

    def handle(signum: int, frame: Any) -> None:
        if received:
            os._exit(128 + signum)
        received.append(signum)
        os.write(2, b"\nsaving after this step; once more to exit at once\n")

    before = {signum: signal.signal(signum, handle) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
