"""The folder of a run: its configuration, its log, its summary; opened again by the same command, refused to another."""

import importlib.metadata
import json
import logging
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from albert_jax.config import check_writable, differences, from_dict, read_json, require, to_dict

log = logging.getLogger(__name__)

PACKAGES = ("albert_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "sentencepiece")


FREE = ("run_dir", "data.cache_dir", "train.platform", "train.keep_checkpoints")
"""Fields that may change between launches of a run: they say where it runs, not what it is."""


def check(run_dir: Path, job: str, config: Any) -> None:
    """Refuses a folder that cannot be written to or that another configuration owns, before any work; writes nothing.

    Raises:
      InputError: as said; the differences are named.
    """
    check_writable(run_dir, "--run-dir")
    path = run_dir / "config.json"
    if not path.exists():
        return
    stored = read_json(path)
    require(
        {"job", "config", "fingerprints", "versions"} <= stored.keys(),
        f"{path} is not of a run; give another --run-dir",
    )
    # Through the dataclasses, so that a field that is newer than the run counts as its default.
    before = placeless(to_dict(from_dict(type(config), stored["config"])))
    changed = [line for line in differences(before, placeless(to_dict(config))) if not line.startswith(FREE)]
    require(
        not changed and stored["job"] == job,
        f"--run-dir {run_dir} belongs to another configuration ({'; '.join(changed) or stored['job']}); give another, "
        f"with {'--init-from' if hasattr(config, 'init_from') else '--init'} {run_dir} if it is to start from these weights",
    )


def placeless(config: dict[str, Any]) -> dict[str, Any]:
    """A run's configuration with what it starts from named as seen from the run's folder, where it lies beside or in it.

    So a folder of runs that belong together can be moved, or named in another way.
    """
    beside = f"{Path(config['run_dir']).parent}/"
    return config | {
        key: config[key].removeprefix(beside)
        for key in ("init_from", "init")
        if key in config and config["run_dir"].count("/")
    }


def claim(
    run_dir: Path,
    job: str,
    config: dict[str, Any],
    fingerprints: dict[str, str],
    heads: Sequence[str] = (),
    labels: Sequence[str] = (),
) -> None:
    """Writes `config.json`, or checks that the one there was written for the same data.

    Args:
      run_dir: the folder, made if it is not there.
      job: the subcommand.
      config: the resolved configuration, as nested dicts.
      fingerprints: of what the run reads: data and vocabulary.
      heads, labels: of the model, where it is not pretraining's.

    Raises:
      InputError: the data changed since.
    """
    path = run_dir / "config.json"
    versions = {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}
    if not path.exists():
        run_dir.mkdir(parents=True, exist_ok=True)
        table = {"job": job, "config": config, "fingerprints": fingerprints, "versions": versions}
        write_json(path, table | ({"heads": list(heads), "labels": list(labels)} if heads else {}))
        return
    stored = read_json(path)
    changed = differences(stored["fingerprints"], fingerprints)
    require(
        not changed,
        f"--run-dir {run_dir}: the data changed since this run began ({'; '.join(changed)}); bring the old data back or give another --run-dir",
    )
    newer = differences(stored["versions"], versions)
    if newer:
        log.warning("resuming with other versions, so not bit for bit: %s", "; ".join(newer))


class MetricsLog:
    """`metrics.jsonl`, one line a record, and TensorBoard; cut back to the step that a run resumes from."""

    def __init__(self, run_dir: Path, start: int) -> None:
        from tensorboardX import SummaryWriter

        path = run_dir / "metrics.jsonl"
        kept = [line for line in path.read_text().splitlines() if _step(line) <= start] if path.exists() else []
        replace(path, "".join(f"{line}\n" for line in kept))
        self.evaluated = {json.loads(line)["step"] for line in kept if '"eval/' in line}
        """Steps whose evaluation is in the log."""
        self._file = path.open("a", buffering=1)
        self._board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=start + 1, flush_secs=30)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Appends `{"step": step, **values}`."""
        self._file.write(json.dumps({"step": step} | {name: float(value) for name, value in values.items()}) + "\n")
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes and closes both."""
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
