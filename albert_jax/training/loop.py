"""The train loop around the pure step (`step.py`): resume, log, evaluate, save, stop.  Every job uses it."""

import contextlib
import logging
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax import Array

from albert_jax.config import InputError, check_fields, choice, first_line
from albert_jax.training import partition, processes
from albert_jax.training.checkpoint import Best, Checkpoints
from albert_jax.training.optim import Optimizer
from albert_jax.training.partition import Layout
from albert_jax.training.progress import Meter
from albert_jax.training.step import (
    TRAIN_PARAMS,
    Params,
    TrainState,
    Workload,
    as_argument,
    checkpoint_target,
    from_checkpoint,
    make_eval_params,
    make_init,
    make_step,
    memory,
    shardings,
    state_shapes,
    to_checkpoint,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainConfig:
    """The length of a run, its batch, and how often it logs, evaluates and saves."""

    num_train_steps: int = 125_000
    """Number of updates."""
    global_batch_size: int = 4096
    """B: sequences per update, over all devices."""
    gradient_accumulation: int = 1
    """Micro-batches per update, for batches that do not fit into memory."""
    seed: int = 0
    """Seed of the parameters, data order, masks and dropout."""
    log_every: int = 100
    """Steps between log lines; their values are means over these steps."""
    eval_every: int = 5000
    """Steps between evaluations; a run always ends with one."""
    checkpoint_every: int = 5000
    """Steps between checkpoints; a run always ends with one."""
    keep_checkpoints: int = 3
    """Number of newest checkpoints to keep."""
    keep_every: int = 0
    """Checkpoints whose step is a multiple of this are kept permanently; 0: none."""
    checkpoint_dir: str = ""
    """Folder of the run's checkpoints, such as gs://bucket/run; empty: 'checkpoints' in the run folder."""
    watchdog_seconds: int = 1800
    """With several processes: one that completes no step for this long prints its stacks and ends the run; 0: never."""
    eval_batch_size: int = 64
    """Sequences per evaluation batch, over all devices."""
    platform: str = choice("any", ("any", "cpu", "gpu", "tpu"))
    """Refuse to start on a different platform."""

    def __post_init__(self) -> None:
        check_fields(self)
        minimum = {"seed": 0, "keep_every": 0, "watchdog_seconds": 0}
        for name, value in vars(self).items():
            if isinstance(value, int) and value < minimum.get(name, 1):
                raise InputError(f"{name} must be at least {minimum.get(name, 1)}, got {value}")
        if self.seed >= 2**32:
            raise InputError(f"seed must be below 2**32, got {self.seed}")
        folder = self.checkpoint_dir
        if folder and "://" not in folder and not folder.startswith(("/", "~")):
            raise InputError(f"checkpoint_dir must be an absolute path or the address of a bucket, got {folder!r}")


class Interrupted(Exception):
    """A process received SIGINT or SIGTERM.  The state is saved, and all processes stop after the same step."""

    def __init__(self, signum: int, step: int) -> None:
        super().__init__(
            f"stopped by {signal.Signals(signum).name} and saved after step {step}; rerun the command to resume"
        )
        self.code = 0 if signum == signal.SIGTERM else 128 + signum
        """Exit code.  0 for SIGTERM: a preempted job that saved has succeeded."""


def run(
    config: TrainConfig,
    workload: Workload,
    optimizer: Optimizer,
    layout: Layout,
    run_dir: Path,
    *,
    initial: Callable[[], Params] | None = None,
    fingerprints: Mapping[str, str] | None = None,
    allow_data_change: bool = False,
) -> tuple[TrainState, dict[str, Any]]:
    """Train in `run_dir` until `num_train_steps`.

    The run starts from its newest intact checkpoint; without one, from the parameters `initial()` if given, else from
    `workload.init`.  Each iteration takes a batch, does a step, logs, and, when due, evaluates and saves.

    Args:
      config: length, batch and intervals.
      workload: model, data and loss.
      optimizer: the update rule.
      layout: the devices, and how the state is sharded.
      run_dir: the run folder, shared by all processes (unless `checkpoint_dir` is set and `workload.select` is empty).
      initial: returns parameters to start from, on the host or any device.
      fingerprints: of the data, stored with each checkpoint.
      allow_data_change: resume from a checkpoint with different fingerprints.

    Returns:
      The last state; and a summary: its evaluation, `Meter.summary`, `parameters` (their number), and, if the workload selects
      by a metric, `best`: the step and metrics of the best evaluation.

    Raises:
      InputError: the loss is not finite (that step is not saved), a step does not fit into memory, or the disk is full.
      Interrupted: some process received a signal; the state is saved.
    """
    mesh = layout.mesh
    seed = as_argument(config.seed, mesh)
    shapes = state_shapes(workload, optimizer, layout)
    step_fn = make_step(workload, optimizer, layout, config.gradient_accumulation)
    eval_params = make_eval_params(optimizer, shapes)
    with contextlib.ExitStack() as stack:
        folder = checkpoint_folder(config, run_dir)
        checkpoints = stack.enter_context(
            closing(Checkpoints(folder, config.keep_checkpoints, config.keep_every, fingerprints))
        )
        watchdog = stack.enter_context(closing(processes.Watchdog(config.watchdog_seconds)))

        restored = checkpoints.restore(checkpoint_target(optimizer, shapes), allow_data_change)
        if restored is not None:
            state, progress = from_checkpoint(restored[0]), restored[1]
            log.info("resuming after step %d", int(state.step))
        else:
            with explain_out_of_memory(config, mesh.size):
                state, progress = make_init(workload, optimizer, layout)(seed), {}
            if initial is not None:
                state = state._replace(params=jax.device_put(initial(), shardings(shapes.params)))
        start = int(state.step)
        if start < config.num_train_steps:
            stores_both = TRAIN_PARAMS in checkpoint_target(optimizer, shapes)  # trained and averaged parameters
            checkpoints.check_space([shapes, shapes.params] if stores_both else shapes)
        meter = stack.enter_context(closing(Meter(config, run_dir, start, progress, workload.flops_per_token, mesh)))
        best = stack.enter_context(closing(Best(run_dir / "best"))) if workload.select else None

        def evaluate(step: int) -> dict[str, Any]:
            watchdog.feed()
            params = eval_params(state)
            with explain_out_of_memory(config, mesh.size, "an evaluation"):
                evaluation: dict[str, Any] = workload.evaluate(params)
            watchdog.feed()
            if step not in meter.log.evaluated:
                meter.evaluation(step, evaluation)
            if best is not None:
                best.offer(step, workload.select, params, evaluation["eval"])
            return evaluation

        signals = stack.enter_context(processes.caught_signals())
        due = start > 0 and start % config.eval_every == 0
        # A signal stopped the run before its evaluation.
        if due and processes.everywhere(start not in meter.log.evaluated):
            evaluate(start)
        compiled: dict[Any, Any] = {}  # by shapes of the batch
        signal_arrays: dict[int, Array] = {}
        batches = partition.prefetch(mesh, workload.batches(start))
        for step in range(start + 1, config.num_train_steps + 1):
            watchdog.feed()
            batch = next(batches)
            signum = signals[0] if signals else 0
            if signum not in signal_arrays:
                signal_arrays[signum] = partition.device_values(mesh, signum)
            arguments = (batch, seed, signal_arrays[signum])
            shape = tuple(sorted((name, rows.shape) for name, rows in batch.items()))
            with explain_out_of_memory(config, mesh.size, "a step", compiled.get(shape)):
                if shape not in compiled:
                    with meter.paused():
                        compiled[shape] = step_fn.lower(state, *arguments).compile()
                        meter.compiled(compiled[shape])
                        watchdog.feed()
                with jax.transfer_guard("disallow"):
                    state, metrics = compiled[shape](state, *arguments)
                meter.add(step, metrics, batch)
            stop, last = meter.signal, step == config.num_train_steps
            if step % config.eval_every == 0 and not (last or stop):
                with meter.paused():
                    evaluate(step)
            if step % config.checkpoint_every == 0 or last or stop:
                with meter.paused():
                    checkpoints.save(step, to_checkpoint(state, eval_params(state)), meter.state())
                    watchdog.feed()
            if stop and not last:
                checkpoints.finish(step)
                raise Interrupted(stop, step)
        checkpoints.finish(config.num_train_steps)
        summary = evaluate(config.num_train_steps) | meter.summary()
        if best is not None:
            summary["best"] = {"step": best.step} | best.metrics
    return state, summary | {"parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params))}


def checkpoint_folder(config: TrainConfig, run_dir: Path) -> str:
    """The folder of a run's checkpoints."""
    return config.checkpoint_dir or str(run_dir / "checkpoints")


@contextlib.contextmanager
def explain_out_of_memory(
    config: TrainConfig, num_devices: int, what: str = "a step", compiled: Any = None
) -> Iterator[None]:
    """Turn XLA's out-of-memory error of a step or an evaluation into one that says what to change.

    Raises:
      InputError: with the compiler's figures, if `compiled` is given.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "Out of memory" not in str(error):
            raise
        needed = f": the compiled step needs {memory(compiled) / 1e9:.2f} GB per device" if compiled is not None else ""
        limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
        available = f" of {limit / 1e9:.2f} GB" if limit else ""
        rows = config.global_batch_size // num_devices
        larger = [k for k in range(config.gradient_accumulation + 1, rows + 1) if rows % k == 0]
        if what == "an evaluation":
            remedies = [f"lower --train.eval-batch-size {config.eval_batch_size}"]
        else:
            remedies = [
                "save less for the backward pass (--model.remat dots or full)",
                "lower --train.global-batch-size",
            ]
            if larger:
                remedies.insert(0, f"use gradient accumulation (--train.gradient-accumulation {larger[0]})")
        reason = first_line(error).removeprefix("RESOURCE_EXHAUSTED: ")
        raise InputError(f"out of memory for {what}{needed}{available} ({reason}); {', or '.join(remedies)}") from None
