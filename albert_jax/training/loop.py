"""The train loop around the one pure step (`train_step.py`): resume, log, evaluate, save, stop.  Every job uses it."""

import contextlib
import logging
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax import Array
from tqdm import tqdm

from albert_jax.config import InputError, check_fields, choice, require
from albert_jax.training import partition, processes
from albert_jax.training.checkpoint import Best, Checkpoints
from albert_jax.training.devices import peak_flops
from albert_jax.training.optim import Optimizer
from albert_jax.training.partition import Layout
from albert_jax.training.progress import Meter, say_evaluation
from albert_jax.training.run_folder import MetricsLog
from albert_jax.training.step import (
    Params,
    TrainState,
    Workload,
    as_argument,
    make_init,
    make_step,
    memory,
    state_shapes,
)

log = logging.getLogger(__name__)


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
    platform: str = choice("any", ("any", "cpu", "gpu", "tpu"))
    """Refuse to start on anything else."""

    def __post_init__(self) -> None:
        check_fields(self)
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


class Interrupted(Exception):
    """SIGINT or SIGTERM arrived, at whichever process; the state is saved, and all processes stop after the same step."""

    def __init__(self, signum: int, step: int) -> None:
        super().__init__(
            f"stopped by {signal.Signals(signum).name} after step {step}; saved: the same command goes on from there"
        )
        self.code = 0 if signum == signal.SIGTERM else 128 + signum
        """Of the process: whoever sends SIGTERM asked for just this."""


def run(
    config: TrainConfig,
    task: Workload,
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
            peak_flops(mesh),
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
                flags[signum] = partition.device_values(mesh, signum)
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
