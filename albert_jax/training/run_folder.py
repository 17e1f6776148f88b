"""The folder of a run: its configuration, its log, its summary; opened again by the same command, refused to another."""

import contextlib
import fcntl
import importlib.metadata
import json
import logging
import os
import platform
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from albert_jax.config import check_writable, differences, from_dict, read_json, require, to_dict

log = logging.getLogger(__name__)

PACKAGES = ("albert_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "sentencepiece")


MAY_CHANGE_ON_RESUME = (
    "run_dir",
    "data.cache_dir",
    "mesh",
    "train.platform",
    "train.keep_checkpoints",
    "train.keep_every",
    "train.watchdog_seconds",
)
"""Fields that may change between launches of a run: they say where it runs, not what it is."""


def check(run_dir: Path, job: str, config: Any) -> None:
    """Refuses a folder that cannot be written to or that another configuration owns, before any work; writes nothing.

    Raises:
      InputError: as said; the differences are named.
    """
    check_writable(run_dir, "--run-dir")
    for path in _records(run_dir, to_dict(config)):
        if not path.exists():
            continue
        stored = read_json(path)
        require(
            {"job", "config", "fingerprints", "versions"} <= stored.keys(),
            f"{path} is not of a run; give another --run-dir",
        )
        # Through the dataclasses, so that a field that is newer than the run counts as its default.
        before = placeless(to_dict(from_dict(type(config), stored["config"])))
        changed = [
            line
            for line in differences(before, placeless(to_dict(config)))
            if not line.startswith(MAY_CHANGE_ON_RESUME)
        ]
        given = "--run-dir" if path.parent == run_dir else "--train.checkpoint-dir"
        way = f"give another, with --init-from {run_dir} if it is to start from these weights"
        require(
            not changed and stored["job"] == job,
            f"{given} {path.parent} belongs to another configuration ({'; '.join(changed) or stored['job']}); {way}",
        )


def _records(run_dir: Path, config: dict[str, Any]) -> list[Any]:
    """Where a run's `config.json` stands: in its folder, and beside its checkpoints where these are elsewhere."""
    elsewhere = config["train"]["checkpoint_dir"]
    return [run_dir / "config.json"] + ([epath.Path(elsewhere).expanduser() / "config.json"] if elsewhere else [])


def placeless(config: dict[str, Any]) -> dict[str, Any]:
    """A run's configuration with what it starts from named as seen from the run's folder, where it lies beside or in it.

    So a folder of runs that belong together can be moved, or named in another way.
    """
    beside = f"{Path(config['run_dir']).parent}/"
    if "/" not in config["run_dir"]:
        return config
    return config | {"init_from": config["init_from"].removeprefix(beside)}


def claim(
    run_dir: Path,
    job: str,
    config: dict[str, Any],
    fingerprints: dict[str, str],
    model_facts: Mapping[str, Sequence[str]],
    allow_data_change: bool = False,
) -> None:
    """Writes `config.json`, or checks that the one there was written for the same data.

    Args:
      run_dir: the folder, made if it is not there.
      job: the subcommand.
      config: the resolved configuration, as nested dicts.
      fingerprints: of what the run reads: data and vocabulary.
      model_facts: what is needed to load the model beside its configuration, such as the names of its heads.
      allow_data_change: go on with other data than before, and keep on record that it changed.

    Raises:
      InputError: the data changed since, and that is not allowed.
    """
    versions = {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}
    for path in _records(run_dir, config):
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            table = {"job": job, "config": config, "fingerprints": fingerprints, "versions": versions}
            write_json(path, table | dict(model_facts))
            continue
        stored = read_json(path)
        changed = differences(stored["fingerprints"], fingerprints)
        told = f"{path.parent}: the data changed since this run began ({'; '.join(changed)})"
        require(
            not changed or allow_data_change,
            f"{told}; bring the old data back, give another --run-dir, or go on with --allow-data-change",
        )
        if changed:
            log.warning(
                "%s, which is allowed, and has to be until the next checkpoint: no longer a function of data and seed",
                told,
            )
            before = [*stored.get("data_changes", []), stored["fingerprints"]]
            write_json(path, stored | {"fingerprints": fingerprints, "data_changes": before})
        newer = differences(stored["versions"], versions)
        if newer:
            log.warning("resuming with other versions, so not bit for bit: %s", "; ".join(newer))


@contextlib.contextmanager
def held(folder: Path, name: str = "lock", wait: bool = False) -> Iterator[bool]:
    """Whether this process has the file `name` in a folder for itself, until the block is left; the system lets go of it when a
    process dies.  The file says who has it: host, process and since when.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / name).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        except OSError as error:  # a file system without locks
            log.warning("%s: no lock (%s); see to it that no other job runs in it", folder, error.strerror)
            yield True
            return
        file.truncate(0)
        file.write(f"{socket.gethostname()}:{os.getpid()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        file.flush()
        yield True


@contextlib.contextmanager
def locked(run_dir: Path, checkpoint_dir: str, wanted: bool = True) -> Iterator[None]:
    """Keeps other jobs off a run folder, and off checkpoints elsewhere that are not in a bucket, until the block is left.

    Raises:
      InputError: another job has one of them; which job.
    """
    elsewhere = [Path(checkpoint_dir).expanduser()] if checkpoint_dir and "://" not in checkpoint_dir else []
    with contextlib.ExitStack() as stack:
        for folder in [run_dir, *elsewhere] if wanted else []:  # else another process of the same run has them
            mine = stack.enter_context(held(folder))
            told = f"{folder}: held by {(folder / 'lock').read_text()}; wait for it, or give another --run-dir"
            require(mine, told)
        yield


class MetricsLog:
    """`metrics.jsonl`, one line a record, and TensorBoard; cut back to the step that a run resumes from.

    Only one process of a run `writes`; the others read what is in it.
    """

    def __init__(self, run_dir: Path, start: int, writes: bool = True) -> None:
        path = run_dir / "metrics.jsonl"
        kept = [line for line in path.read_text().splitlines() if _step(line) <= start] if path.exists() else []
        self.evaluated = {json.loads(line)["step"] for line in kept if '"eval/' in line}
        """Steps whose evaluation is in the log."""
        self._writes, self._full = writes, False
        if not writes:
            return
        from tensorboardX import SummaryWriter

        replace(path, "".join(f"{line}\n" for line in kept))
        self._file = path.open("a", buffering=1)
        self._board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=start + 1, flush_secs=30)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Appends `{"step": step, **values}`.  On a full disk the record is lost, which is told once."""
        if not self._writes:
            return
        try:
            self._file.write(json.dumps({"step": step} | {name: float(value) for name, value in values.items()}) + "\n")
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
        except OSError as error:
            if not self._full:
                log.warning("%s: no more records are kept (%s); training goes on", self._file.name, error.strerror)
            self._full = True

    def close(self) -> None:
        """Flushes and closes both."""
        if self._writes:
            with contextlib.suppress(OSError):
                self._file.close()
                self._board.close()


def read_metrics(run_dir: Path) -> list[dict[str, float]]:
    """The records of `metrics.jsonl`; a last line that a crash cut off is left out."""
    path = run_dir / "metrics.jsonl"
    require(path.exists(), f"{path}: no such file; is {run_dir} a run folder?")
    return [json.loads(line) for line in path.read_text().splitlines() if _step(line) < float("inf")]


def write_json(path: Path, value: Any) -> None:
    """Writes JSON whole or not at all."""
    replace(path, json.dumps(value, indent=2) + "\n")


def replace(path: Path, text: str) -> None:
    """Replaces a file's text whole or not at all."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)


def _step(line: str) -> float:
    """The step of a record; infinity for a line that a crash cut off."""
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return float("inf")
