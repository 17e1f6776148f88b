"""The folder of a run: its configuration, lock, metrics and summary.  Rerunning the same command resumes the run in it.

Only process 0 writes; the others read what it has written.
"""

import contextlib
import fcntl
import importlib.metadata
import json
import logging
import os
import platform
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from etils import epath

import albert_jax
from albert_jax.config import InputError, check_writable, differences, from_dict, read_json, to_dict

log = logging.getLogger(__name__)

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "sentencepiece")

FAILURE = "failure.json"
"""Why the last attempt of an ablation's run failed, in the run's folder."""

EXAMPLES_FILE = "examples.json"
"""Some held-out examples with predictions, for reports: `caption`, and `rows`, each a dict from column title to text."""

MAY_CHANGE_ON_RESUME = (
    "run_dir",
    "data.cache_dir",
    "mesh",
    "train.platform",
    "train.keep_checkpoints",
    "train.keep_every",
    "train.watchdog_seconds",
    "train.loggers",
)
"""Fields that say where a run is executed and logged, not what it computes."""


def check(run_dir: Path, job: str, config: Any) -> None:
    """Check that a run folder is writable and does not belong to a different configuration.  Writes nothing.

    Raises:
      InputError: names the fields that differ.
    """
    check_writable(run_dir, "--run-dir")
    for path in _config_files(run_dir, to_dict(config)):
        if not path.exists():
            continue
        stored = read_json(path)
        if not {"job", "config", "fingerprints", "versions"} <= stored.keys():
            raise InputError(f"{path} does not belong to a run; give a different --run-dir")
        # Through the dataclass, so that a field that was added after the run began has its default.
        before = without_location(to_dict(from_dict(type(config), stored["config"])))
        changes = differences(before, without_location(to_dict(config)))
        changed = [line for line in changes if not line.startswith(MAY_CHANGE_ON_RESUME)]
        if changed or stored["job"] != job:
            option = "--run-dir" if path.parent == run_dir else "--train.checkpoint-dir"
            raise InputError(
                f"{option} {path.parent} belongs to a different configuration ({'; '.join(changed) or stored['job']}); "
                f"give a different folder; to start from the weights of this run, add --init-from {run_dir}"
            )


def _config_files(run_dir: Path, config: dict[str, Any]) -> list[Any]:
    """Each `config.json` of a run: in its folder, and beside its checkpoints if they are elsewhere.

    The latter protects the checkpoints from other runs even if the run folder is lost.
    """
    checkpoint_dir = config["train"]["checkpoint_dir"]
    return [run_dir / "config.json"] + (
        [epath.Path(checkpoint_dir).expanduser() / "config.json"] if checkpoint_dir else []
    )


def without_location(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration in which an `init_from` beside the run folder is relative to the run folder's parent.

    So a folder of runs that start from each other can be moved.
    """
    if "/" not in config["run_dir"]:
        return config
    return config | {"init_from": config.get("init_from", "").removeprefix(f"{Path(config['run_dir']).parent}/")}


def claim(
    run_dir: Path,
    job: str,
    config: dict[str, Any],
    fingerprints: dict[str, str],
    facts: Mapping[str, Any],
    allow_data_change: bool = False,
) -> None:
    """Write `config.json`, or check that the existing one was written for the same data.

    Args:
      run_dir: the run folder; created if missing.
      job: the subcommand.
      config: the resolved configuration, as nested dicts.
      fingerprints: of the data and the vocabulary.
      facts: more entries, such as the names of the heads, which loading the model needs.
      allow_data_change: accept different data, and record the change.

    Raises:
      InputError: the data changed.
    """
    versions = {"python": platform.python_version(), "albert_jax": albert_jax.__version__}
    versions |= {name: importlib.metadata.version(name) for name in PACKAGES}
    for path in _config_files(run_dir, config):
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            table = {"job": job, "config": config, "fingerprints": fingerprints, "versions": versions}
            write_json(path, table | dict(facts))
            continue
        stored = read_json(path)
        if changed := differences(stored["fingerprints"], fingerprints):
            message = f"{path.parent}: the data changed since this run began ({'; '.join(changed)})"
            if not allow_data_change:
                raise InputError(
                    f"{message}; restore the old data, give a different --run-dir, or continue with --allow-data-change"
                )
            log.warning(
                "%s; continuing because of --allow-data-change (needed until the next checkpoint). This run is no longer "
                "reproducible from data and seed.",
                message,
            )
            before = [*stored.get("data_changes", []), stored["fingerprints"]]
            write_json(path, stored | {"fingerprints": fingerprints, "data_changes": before})
        if changed := differences(stored["versions"], versions):
            log.warning("resuming with different versions, so not bit for bit: %s", "; ".join(changed))


@contextlib.contextmanager
def file_lock(folder: Path, name: str = "lock", wait: bool = False) -> Iterator[bool]:
    """Lock a file in a folder; yields whether this process has the lock.

    The operating system releases the lock when the process dies.  The file contains host, process and time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / name).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        except OSError as error:
            log.warning(
                "%s: the file system has no locks (%s); make sure that no other job uses this folder",
                folder,
                error.strerror,
            )
            yield True
            return
        file.truncate(0)
        file.write(f"{socket.gethostname()}:{os.getpid()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        file.flush()
        yield True


@contextlib.contextmanager
def locked(run_dir: Path, checkpoint_dir: str, enabled: bool = True) -> Iterator[None]:
    """Lock a run folder, and the folder of its checkpoints if it is elsewhere and not a bucket.

    Args:
      run_dir: the run folder.
      checkpoint_dir: `TrainConfig.checkpoint_dir`.
      enabled: False in processes other than process 0, which has the locks of the run.

    Raises:
      InputError: another job has a lock; says which job.
    """
    elsewhere = [Path(checkpoint_dir).expanduser()] if checkpoint_dir and "://" not in checkpoint_dir else []
    with contextlib.ExitStack() as stack:
        for folder in [run_dir, *elsewhere] if enabled else []:
            if not stack.enter_context(file_lock(folder)):
                owner = (folder / "lock").read_text()
                raise InputError(f"{folder}: in use by {owner}; wait for that job, or give a different --run-dir")
        yield


class MetricsLog:
    """`metrics.jsonl`, one record per line; records after the step of resumption are dropped.

    Args:
      run_dir: the run folder.
      start: the step that the run resumes from.
      writes: False in processes other than process 0, which only read the existing records.
    """

    def __init__(self, run_dir: Path, start: int, writes: bool = True) -> None:
        path = run_dir / "metrics.jsonl"
        lines = [line for line in path.read_text().splitlines() if _step(line) <= start] if path.exists() else []
        self.evaluated = {json.loads(line)["step"] for line in lines if '"eval/' in line}
        """Steps whose evaluation is in the log."""
        self._writes, self._full = writes, False
        if not writes:
            return
        write_text(path, "".join(f"{line}\n" for line in lines))
        self._file = path.open("a", buffering=1)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Append `{"step": step, **values}`.  If the disk is full, the record is lost; the first loss is logged."""
        if not self._writes:
            return
        try:
            self._file.write(json.dumps({"step": step} | {name: float(value) for name, value in values.items()}) + "\n")
        except OSError as error:
            if not self._full:
                log.warning("%s: records are lost (%s); training continues", self._file.name, error.strerror)
            self._full = True

    def close(self) -> None:
        """Close the file."""
        if self._writes:
            with contextlib.suppress(OSError):
                self._file.close()


def read_metrics(run_dir: Path) -> list[dict[str, float]]:
    """The records of `metrics.jsonl`, without a last line truncated by a crash."""
    path = run_dir / "metrics.jsonl"
    if not path.exists():
        raise InputError(f"{path}: no such file; is {run_dir} a run folder?")
    return [json.loads(line) for line in path.read_text().splitlines() if _step(line) < float("inf")]


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file atomically."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)


def _step(line: str) -> float:
    """The step of a record; infinity for a line truncated by a crash."""
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return float("inf")
