"""What the loop reads of its steps: means for the log, speed, memory; and the step at which a run has to stop."""

import contextlib
import logging
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from albert_jax.config import InputError
from albert_jax.training import partition
from albert_jax.training.run_folder import MetricsLog
from albert_jax.training.step import Batch, memory

log = logging.getLogger(__name__)


class Meter:
    """Reads metrics one step late, averages them, measures speed, writes the log, and stops at a loss that is not finite."""

    def __init__(
        self,
        run_dir: Path,
        steps: int,
        log_every: int,
        batch_size: int,
        flops_per_token: float,
        peak: float | None,
        metrics_log: MetricsLog,
        progress: dict[str, Any],
        bar: Any,
    ) -> None:
        self.run_dir, self.steps, self.log_every, self.batch_size = run_dir, steps, log_every, batch_size
        self.flops_per_token, self.peak, self.log, self.bar = flops_per_token, peak, metrics_log, bar
        self.signal = 0
        """The signal that a process had got when the last step that was read began; in all processes at the same step."""
        self.pending: tuple[int, dict[str, Any], Batch] | None = None
        self.window_tokens = self.window_steps = 0.0
        self.begun: float | None = None  # of the window; None until the first, compiling, step is over
        # Over all launches of the run: tokens seen; tokens and seconds of the steps that were timed; the most memory.
        kept = ("tokens", "timed_tokens", "seconds", "memory", "skipped_updates")
        self.progress = {name: progress.get(name, 0.0) for name in kept}
        self.sums = {name: np.array(total) for name, total in progress.get("sums", {}).items()}  # of the window so far

    def compiled(self, step: Any) -> None:
        """Takes what a compiled step needs of memory."""
        self.progress["memory"] = max(self.progress["memory"], float(memory(step)))

    def add(self, step: int, metrics: dict[str, Any], batch: Batch) -> None:
        """Takes step's metrics, which may not be there yet, and reads those of the step before."""
        previous, self.pending = self.pending, (step, metrics, batch)
        self._read(previous)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Reads what is pending, so that nothing follows a step that failed, and leaves the block out of the speed."""
        previous, self.pending = self.pending, None
        self._read(previous)
        before = time.perf_counter()
        yield
        if self.begun is not None:
            self.begun += time.perf_counter() - before

    def _read(self, pending: tuple[int, dict[str, Any], Batch] | None) -> None:
        if pending is None:
            return
        step, metrics, batch = pending
        values = {name: value.astype(np.float64) for name, value in jax.device_get(metrics).items()}
        norms = values.pop("grad_norms")
        self.signal = max(self.signal, int(values.pop("signal")))
        if not all(math.isfinite(values[name][0]) for name in ("loss", "grad_norm")):
            raise InputError(self._dumped(step, values, norms, batch))
        self.progress["skipped_updates"] += float(values.pop("skipped", np.float64(0)))
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0) + value
        self.progress["tokens"] += values["tokens"][0]
        if self.begun is None:
            self.begun = time.perf_counter()
        else:
            self.window_tokens += values["tokens"][0]
            self.window_steps += 1
        if step % self.log_every == 0 or step == self.steps:
            self._write(step)

    def _dumped(self, step: int, values: dict[str, Any], norms: np.ndarray, batch: Batch) -> str:
        """Writes what is known of a step that went wrong; what the user reads."""
        process = f"-process-{jax.process_index()}" if jax.process_count() > 1 else ""
        dump = self.run_dir / f"nonfinite-step-{step}{process}.npz"
        arrays: dict[str, Any] = {name: value[0] for name, value in values.items()} | partition.local_rows(batch)
        where = f"its batch and the norm of each gradient are in {dump}"
        try:
            self.run_dir.mkdir(parents=True, exist_ok=True)  # which is another host's, where checkpoints are elsewhere
            np.savez(dump, step=step, grad_norms=norms, **arrays)
        except OSError as error:
            where = f"its batch could not be kept ({error.strerror})"
        return (
            f"step {step}: loss is {values['loss'][0]:g}, gradient norm {values['grad_norm'][0]:g}; {where}; earlier checkpoints are kept; lower --optim.learning-rate, lengthen the warm-up, or look "
            "for ids beyond the vocabulary"
        )

    def _write(self, step: int) -> None:
        elapsed = time.perf_counter() - (self.begun or 0)
        names = sorted(
            self.sums.keys() - {"tokens"}, key=lambda name: (name != "loss", name)
        )  # the loss where eyes go first
        means = {name: self.sums[name][0] / self.sums[name][1] for name in names if self.sums[name][1] > 0}
        line = {f"train/{name}": float(value) for name, value in means.items()}
        if self.progress["skipped_updates"]:
            line["train/skipped_updates"] = self.progress["skipped_updates"]  # so far, not in the window
        if self.window_steps:
            speed = {
                "tokens_per_second": self.window_tokens / elapsed,
                "sequences_per_second": self.window_steps * self.batch_size / elapsed,
            }
            if self.peak is not None:
                speed["mfu"] = speed["tokens_per_second"] * self.flops_per_token / self.peak
            line |= {f"speed/{name}": value for name, value in speed.items()}
            self.progress["timed_tokens"] += self.window_tokens
            self.progress["seconds"] += elapsed
        self.log.write(step, line)
        say(
            f"step {step}/{self.steps}  "
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
        FLOPs a token, bytes that XLA sets aside on a device for a step (state, batch and temporaries), and updates skipped.
        """
        seconds = self.progress["seconds"]
        return {
            "steps": self.steps,
            "tokens": self.progress["tokens"],
            "seconds": seconds,
            "tokens_per_second": self.progress["timed_tokens"] / seconds if seconds else 0.0,
            "flops_per_token": self.flops_per_token,
            "memory": self.progress["memory"],
            "skipped_updates": self.progress["skipped_updates"],
        }


def say(line: str) -> None:
    """A line of the log, above the progress bar if there is one."""
    with tqdm.external_write_mode(file=sys.stderr):
        log.info(line)


def say_evaluation(metrics_log: MetricsLog, step: int, evaluation: dict[str, dict[str, float]]) -> None:
    """One evaluation in the log."""
    metrics_log.write(step, {f"eval/{name}": value for name, value in evaluation["eval"].items()})
    say(f"step {step}  eval  " + "  ".join(f"{name} {value:.4g}" for name, value in evaluation["eval"].items()))
