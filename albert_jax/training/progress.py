"""What a run reports while it trains: averaged metrics, speed and memory, in the log, `metrics.jsonl` and the progress bar."""

from __future__ import annotations

import contextlib
import logging
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from tqdm import tqdm

from albert_jax.config import InputError
from albert_jax.training import partition, processes
from albert_jax.training.devices import peak_flops
from albert_jax.training.loggers import Loggers
from albert_jax.training.run_folder import MetricsLog
from albert_jax.training.step import Batch, memory

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from albert_jax.training.loop import TrainConfig

log = logging.getLogger(__name__)

TOTALS = ("tokens", "timed_tokens", "seconds", "memory", "skipped_updates")
"""Over all launches of a run: tokens seen; tokens and seconds of timed steps; bytes of the largest step; skipped updates."""


class Diverged(InputError):
    """A loss or a gradient is not finite."""


class Meter:
    """Reads each step's metrics one step late, so that the device never waits, and reports their means and the speed.

    Args:
      config: of the run.
      run_dir: where `metrics.jsonl` is written.
      start: the step that the run resumes from.
      progress: `state()` of the checkpoint that the run resumes from; empty at step 0.
      flops_per_token: matmul FLOPs of a training step per token.
      mesh: the devices, for their peak FLOP/s.
      loggers: get what `metrics.jsonl` gets.
      number, num_seeds: the index of the run, and how many runs the program trains.  Each run is charged an equal share of
        the time, so that tokens per second and MFU are those of the device, and the seconds of all runs add up.
    """

    def __init__(
        self,
        config: TrainConfig,
        run_dir: Path,
        start: int,
        progress: dict[str, Any],
        flops_per_token: float,
        mesh: Mesh,
        loggers: Loggers,
        number: int = 0,
        num_seeds: int = 1,
    ) -> None:
        self.config, self.run_dir, self.flops_per_token = config, run_dir, flops_per_token
        self.number, self.num_seeds = number, num_seeds
        self.peak = peak_flops(mesh)
        self.log = MetricsLog(run_dir, start, processes.is_main())
        self.loggers = loggers
        loggers.start(start)
        interactive = sys.stderr.isatty() and processes.is_main() and number == 0
        self.bar = tqdm(total=config.num_train_steps, initial=start, unit=" steps", disable=not interactive)
        self.signal = 0
        """The signal that some process had received when the last step that was read began; the same in all processes."""
        self.pending: tuple[int, dict[str, Any], Batch] | None = None
        self.window_tokens = self.window_steps = 0.0
        self.window_start: float | None = None  # None until the first step, which compiles, is over
        self.totals = {name: progress.get(name, 0.0) for name in TOTALS}
        self.warned = progress.get("warned", False)
        self.sums = {name: np.array(total) for name, total in progress.get("sums", {}).items()}  # of the current window

    def close(self) -> None:
        """Close the log and the progress bar."""
        self.log.close()
        self.bar.close()

    def compiled(self, step: Any) -> None:
        """Record the memory of a compiled step."""
        self.totals["memory"] = max(self.totals["memory"], float(memory(step)))

    def add(self, step: int, metrics: dict[str, Any], batch: Batch) -> None:
        """Take the metrics of a step that may still be running, and read those of the step before."""
        previous, self.pending = self.pending, (step, metrics, batch)
        self._read(previous)
        self.bar.update()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Read the pending metrics, so that nothing follows a failed step, and exclude the block from the speed."""
        previous, self.pending = self.pending, None
        self._read(previous)
        before = time.perf_counter()
        yield
        if self.window_start is not None:
            self.window_start += time.perf_counter() - before

    def evaluation(self, step: int, evaluation: dict[str, dict[str, float]]) -> None:
        """Log an evaluation.

        Raises:
          Diverged: a held-out loss is not finite.
        """
        metrics = evaluation["eval"]
        for name, value in metrics.items():
            if name.endswith("loss") and not math.isfinite(value):
                raise Diverged(f"step {step}: the held-out {name} is {value:g}; lower --optim.learning-rate")
        parts = {"eval": metrics, "diagnostics": evaluation.get("diagnostics", {})}
        self._write(step, {f"{part}/{name}": value for part, values in parts.items() for name, value in values.items()})
        self._print(f"step {step}  eval  " + "  ".join(f"{name} {value:.4g}" for name, value in metrics.items()))

    def warn(self, message: str) -> None:
        """Log the first warning of the run; do nothing if the message is empty."""
        if message and not self.warned:
            self._print(message, logging.WARNING)
            self.warned = True

    def state(self) -> dict[str, Any]:
        """What a checkpoint stores, so that a resumed run continues to count; JSON."""
        return self.totals | {
            "warned": self.warned,
            "sums": {name: total.tolist() for name, total in self.sums.items()},
        }

    def summary(self) -> dict[str, float]:
        """Totals of the run over all launches; `seconds` excludes compilation, evaluation and saving."""
        totals = dict(self.totals)
        timed_tokens, seconds = totals.pop("timed_tokens"), totals["seconds"]
        return (
            totals
            | {
                "steps": self.config.num_train_steps,
                "tokens_per_second": timed_tokens / seconds if seconds else 0.0,
                "flops_per_token": self.flops_per_token,
            }
            | ({"parallel_seeds": self.num_seeds} if self.num_seeds > 1 else {})
        )

    def _read(self, pending: tuple[int, dict[str, Any], Batch] | None) -> None:
        if pending is None:
            return
        step, metrics, batch = pending
        # Each array is fetched once: JAX caches what it has fetched, so the other runs of the program read that.
        host = jax.device_get(metrics).items()
        values = {name: (x if self.num_seeds == 1 else x[self.number]).astype(np.float64) for name, x in host}
        norms = values.pop("grad_norms")
        self.signal = max(self.signal, int(values.pop("signal")))
        if not all(math.isfinite(values[name][0]) for name in ("loss", "grad_norm")):
            raise Diverged(
                f"step {step}: loss is {values['loss'][0]:g}, gradient norm {values['grad_norm'][0]:g}; "
                f"{self._dump(step, values, norms, batch)}; earlier checkpoints are kept; lower --optim.learning-rate, "
                "lengthen the warmup, or look for ids beyond the vocabulary"
            )
        self.totals["skipped_updates"] += float(values.pop("skipped", np.float64(0)))
        self.totals["tokens"] += values["tokens"][0]
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0) + value
        if self.window_start is None:
            self.window_start = time.perf_counter()
        else:
            self.window_tokens += values["tokens"][0]
            self.window_steps += 1
        if step % self.config.log_every == 0 or step == self.config.num_train_steps:
            self._end_window(step)

    def _dump(self, step: int, values: dict[str, Any], norms: np.ndarray, batch: Batch) -> str:
        """Save what is needed to find out why a step went wrong; return where it is."""
        process = f"-process-{jax.process_index()}" if jax.process_count() > 1 else ""
        path = self.run_dir / f"nonfinite-step-{step}{process}.npz"
        if self.num_seeds > 1:
            batch = {name: rows[self.number] for name, rows in batch.items()}
        arrays: dict[str, Any] = {name: value[0] for name, value in values.items()} | partition.local_rows(batch)
        try:
            self.run_dir.mkdir(parents=True, exist_ok=True)  # with checkpoint_dir, only process 0 may have this folder
            np.savez(path, step=step, grad_norms=norms, **arrays)
        except OSError as error:
            return f"its batch could not be saved ({error.strerror})"
        return f"its batch and the norm of each gradient are in {path}"

    def _end_window(self, step: int) -> None:
        elapsed = (time.perf_counter() - (self.window_start or 0)) / self.num_seeds
        means = {name: total / weight for name, (total, weight) in self.sums.items() if weight > 0 and name != "tokens"}
        loss = means.pop("loss")
        line = {"train/loss": float(loss)} | {f"train/{name}": float(means[name]) for name in sorted(means)}
        if self.totals["skipped_updates"]:
            line["train/skipped_updates"] = self.totals["skipped_updates"]  # of the whole run, not of the window
        if self.window_steps:
            tokens_per_second = self.window_tokens / elapsed
            line["speed/tokens_per_second"] = tokens_per_second
            line["speed/sequences_per_second"] = self.window_steps * self.config.global_batch_size / elapsed
            if self.peak is not None:
                line["speed/mfu"] = tokens_per_second * self.flops_per_token / self.peak
            self.totals["timed_tokens"] += self.window_tokens
            self.totals["seconds"] += elapsed
        self._write(step, line)
        values = "  ".join(f"{name.split('/')[1]} {value:.4g}" for name, value in line.items())
        self._print(f"step {step}/{self.config.num_train_steps}  {values}")
        self.bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        self.sums, self.window_tokens, self.window_steps = {}, 0.0, 0.0
        self.window_start = time.perf_counter()

    def _write(self, step: int, values: dict[str, float]) -> None:
        self.log.write(step, values)
        self.loggers.log(step, values)

    def _print(self, line: str, level: int = logging.INFO) -> None:
        with tqdm.external_write_mode(file=sys.stderr):  # above the progress bar
            log.log(level, "%s%s", f"{self.run_dir.name}  " if self.num_seeds > 1 else "", line)
