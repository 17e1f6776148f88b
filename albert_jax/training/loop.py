"""The train loop around the pure step (`step.py`): resume, log, evaluate, save, stop.  Every job uses it."""

import contextlib
import logging
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from albert_jax.config import InputError, check_fields, choice, first_line
from albert_jax.training import partition, processes
from albert_jax.training.checkpoint import Best, Checkpoints
from albert_jax.training.loggers import Loggers, logger_names
from albert_jax.training.optim import Optimizer
from albert_jax.training.partition import Layout
from albert_jax.training.progress import Meter
from albert_jax.training.stacking import make_take, stack, stacked_batches
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
    loggers: str = "tensorboard"
    """Where metrics go besides metrics.jsonl: tensorboard, wandb, mlflow, or several separated by commas; empty: nowhere."""
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
        logger_names(self.loggers)  # checks `loggers`


class Interrupted(Exception):
    """A process received SIGINT or SIGTERM.  The state is saved, and all processes stop after the same step."""

    def __init__(self, signum: int, step: int) -> None:
        super().__init__(
            f"stopped by {signal.Signals(signum).name} and saved after step {step}; rerun the command to resume"
        )
        self.code = 0 if signum == signal.SIGTERM else 128 + signum
        """Exit code.  0 for SIGTERM: a preempted job that saved has succeeded."""


@dataclass(frozen=True)
class Run:
    """A run, as the train loop sees it."""

    config: TrainConfig
    """Length, batch and intervals."""
    workload: Workload
    """Model, data and loss."""
    run_dir: Path
    """The run folder, shared by all processes (unless `checkpoint_dir` is set and `workload.select` is empty)."""
    initial: Callable[[], Params] | None = None
    """Returns parameters to start from, on the host or any device; None: `workload.init`."""


def train(
    runs: Sequence[Run],
    optimizer: Optimizer,
    layout: Layout,
    *,
    loggers: Sequence[Loggers] = (),
    fingerprints: Mapping[str, str] | None = None,
    allow_data_change: bool = False,
) -> list[tuple[TrainState, dict[str, Any]]]:
    """Train a run, or several runs as one program, until `num_train_steps`.

    A run starts from its newest intact checkpoint; without one, from its initial parameters.  Each iteration takes a batch,
    does a step, logs, and, when due, evaluates and saves.

    Args:
      runs: they differ only in seed, batches, folder and initial parameters.  Each has the batches, log and
        checkpoints that it would have alone, so it can be resumed alone or together with different runs.
      optimizer: the update rule.
      layout: the devices, and how the state is sharded.
      loggers: those of each run, which the caller closes; empty: none.
      fingerprints: of the data, stored with each checkpoint.
      allow_data_change: resume from a checkpoint with different fingerprints.

    Returns:
      For each run, the last state; and a summary: its evaluation, `Meter.summary`, `parameters` (their number), and, if the
      workload selects by a metric, `best`: the step and metrics of the best evaluation.

    Raises:
      InputError: a loss is not finite (that step is not saved), a step does not fit into memory, the disk is full, or the
        newest intact checkpoints of the runs are of different steps.
      Interrupted: some process received a signal; the state is saved.
    """
    mesh, num_seeds = layout.mesh, len(runs)
    config, workload = runs[0].config, runs[0].workload
    shapes = state_shapes(workload, optimizer, layout)
    seeds = as_argument([run.config.seed for run in runs] if num_seeds > 1 else config.seed, mesh)
    step_fn = make_step(workload, optimizer, layout, config.gradient_accumulation, num_seeds)
    eval_params, take = make_eval_params(optimizer, shapes), make_take(shapes, num_seeds)
    frozen = jax.device_put(workload.frozen, partition.replicated(mesh))
    with contextlib.ExitStack() as exits:
        sessions = [_Session(run, fingerprints, exits) for run in runs]
        watchdog = exits.enter_context(closing(processes.Watchdog(config.watchdog_seconds)))
        init = make_init(workload, optimizer, layout)
        with explain_out_of_memory(config, mesh.size):
            state = stack(
                [session.first_state(optimizer, shapes, init, mesh, allow_data_change) for session in sessions]
            )
        start, *others = np.unique(jax.device_get(state.step)).tolist()
        if others:
            raise InputError(
                f"{runs[0].run_dir.parent}: the newest intact checkpoints of the runs are of different steps "
                f"({start} and {others[0]}); train these runs separately"
            )
        if start < config.num_train_steps:
            stores_both = TRAIN_PARAMS in checkpoint_target(optimizer, shapes)  # trained and averaged parameters
            sessions[0].checkpoints.check_space([[shapes, shapes.params] if stores_both else shapes] * num_seeds)
        for number, session in enumerate(sessions):
            session.open_log(start, mesh, loggers[number] if loggers else Loggers(), number, num_seeds)

        def evaluate(step: int) -> list[dict[str, Any]]:
            evaluations = []
            for number, session in enumerate(sessions):
                watchdog.feed()
                with explain_out_of_memory(config, mesh.size, "an evaluation"):
                    evaluations.append(session.evaluate(step, eval_params(take(state, number))))
            watchdog.feed()
            return evaluations

        @contextlib.contextmanager
        def paused() -> Iterator[None]:
            with contextlib.ExitStack() as pauses:
                for session in sessions:
                    pauses.enter_context(session.meter.paused())
                yield

        signals = exits.enter_context(processes.caught_signals())
        due = start > 0 and start % config.eval_every == 0
        # A signal stopped the run before its evaluation.
        if due and processes.everywhere(any(start not in session.meter.log.evaluated for session in sessions)):
            evaluate(start)
        compiled: dict[Any, Any] = {}  # by shapes of the batch
        signal_arrays: dict[int, Array] = {}
        batches = partition.prefetch(
            mesh, stacked_batches([run.workload.batches(start) for run in runs]), num_seeds=num_seeds
        )
        for step in range(start + 1, config.num_train_steps + 1):
            watchdog.feed()
            batch = next(batches)
            signum = signals[0] if signals else 0
            if signum not in signal_arrays:
                signal_arrays[signum] = partition.device_values(mesh, signum)
            arguments = (batch, seeds, signal_arrays[signum], *frozen)
            shape = tuple(sorted((name, rows.shape) for name, rows in batch.items()))
            with explain_out_of_memory(config, mesh.size, "a step", compiled.get(shape)):
                if shape not in compiled:
                    with paused():
                        compiled[shape] = step_fn.lower(state, *arguments).compile()
                        for session in sessions:
                            session.meter.compiled(compiled[shape])
                        watchdog.feed()
                with jax.transfer_guard("disallow"):
                    state, metrics = compiled[shape](state, *arguments)
                for session in sessions:
                    session.meter.add(step, metrics, batch)
            stop, last = sessions[0].meter.signal, step == config.num_train_steps
            if step % config.eval_every == 0 and not (last or stop):
                with paused():
                    evaluate(step)
            if step % config.checkpoint_every == 0 or last or stop:
                with paused():
                    for number, session in enumerate(sessions):
                        session.save(step, run_state := take(state, number), eval_params(run_state))
                        watchdog.feed()
            if stop and not last:
                for session in sessions:
                    session.checkpoints.finish(step)
                raise Interrupted(stop, step)
        for session in sessions:
            session.checkpoints.finish(config.num_train_steps)
        summaries = []
        for number, evaluation in enumerate(evaluate(config.num_train_steps)):
            with explain_out_of_memory(config, mesh.size, "an evaluation"):
                final = runs[number].workload.final(eval_params(take(state, number)))
            summaries.append(evaluation | final | sessions[number].summary())
            watchdog.feed()
    parameters = sum(leaf.size for leaf in jax.tree.leaves(shapes.params))
    return [(take(state, number), summary | {"parameters": parameters}) for number, summary in enumerate(summaries)]


class _Session:
    """The checkpoints, log and best parameters of one run.

    Args:
      run: the run.
      fingerprints: of the data.
      exits: closes the files.
    """

    def __init__(self, run: Run, fingerprints: Mapping[str, str] | None, exits: contextlib.ExitStack) -> None:
        config = run.config
        folder = checkpoint_folder(config, run.run_dir)
        self.run, self.exits = run, exits
        self.checkpoints = exits.enter_context(
            closing(Checkpoints(folder, config.keep_checkpoints, config.keep_every, fingerprints))
        )
        self.progress: dict[str, Any] = {}

    def first_state(
        self, optimizer: Optimizer, shapes: TrainState, init: Callable[..., Any], mesh: Mesh, allow_data_change: bool
    ) -> TrainState:
        """The state of the newest intact checkpoint, or the initial one."""
        restored = self.checkpoints.restore(checkpoint_target(optimizer, shapes), allow_data_change)
        if restored is not None:
            state, self.progress = from_checkpoint(restored[0]), restored[1]
            log.info("resuming after step %d", int(state.step))
            return state
        state = init(as_argument(self.run.config.seed, mesh))
        if self.run.initial is not None:
            state = state._replace(params=jax.device_put(self.run.initial(), shardings(shapes.params)))
        return state

    def open_log(self, start: int, mesh: Mesh, loggers: Loggers, number: int, num_seeds: int) -> None:
        """Open the log, and the best parameters if the workload selects any."""
        run = self.run
        flops = run.workload.flops_per_token
        self.meter = self.exits.enter_context(
            closing(Meter(run.config, run.run_dir, start, self.progress, flops, mesh, loggers, number, num_seeds))
        )
        self.best = self.exits.enter_context(closing(Best(run.run_dir / "best"))) if run.workload.select else None

    def evaluate(self, step: int, params: Params) -> dict[str, Any]:
        """Evaluate, log it, and keep the parameters if they are the best."""
        evaluation: dict[str, Any] = self.run.workload.evaluate(params)
        if step not in self.meter.log.evaluated:
            self.meter.evaluation(step, evaluation)
            self.meter.warn(self.run.workload.warning(step, evaluation))
        if self.best is not None:
            self.best.offer(step, self.run.workload.select, params, evaluation["eval"])
        return evaluation

    def save(self, step: int, state: TrainState, eval_params: Params) -> None:
        """Start to write a checkpoint."""
        self.checkpoints.save(step, to_checkpoint(state, eval_params), self.meter.state())

    def summary(self) -> dict[str, Any]:
        """Totals, and the best evaluation."""
        best = {} if self.best is None else {"best": {"step": self.best.step} | self.best.metrics}
        return self.meter.summary() | best


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
