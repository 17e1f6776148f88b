"""Checkpoints with Orbax: atomic, written in the background, verified when read.  A full disk costs checkpoints, not the run.

We use Orbax's `CheckpointManager` (v0), because v1 is still experimental.  Orbax takes a bare folder with a number for a
step, and loads flipped bits silently; this module handles both.  No other file uses Orbax's interface.

Checkpoints are read by Orbax's handlers, not by its manager.  The manager has barriers: a process that cannot read its part
would leave the others waiting at one.
"""

import contextlib
import copy
import errno
import functools
import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from albert_jax.config import InputError, differences, first_line
from albert_jax.training import processes
from albert_jax.training.integrity import attempt, crc32, fingerprints, leaf_names, mismatch, silence_orbax

log = logging.getLogger(__name__)

DISK_FULL = ("No space left on device", "File too large", "Disk quota exceeded", "RESOURCE_EXHAUSTED")
"""Substrings by which we recognize a full disk in errors from any layer; the first match is reported."""

MAX_FAILURES = 3
"""The run ends after this many failed writes in a row, full disks not counted."""

META = "meta"
STATE = "state"


class Checkpoints:
    """The checkpoints of one run: `folder/<step>/`, written in the background.

    All processes of a run create, save and restore them together, in a folder that all of them see.

    Args:
      folder: a path, or a bucket's address (gs://bucket/run).
      keep: the number of newest checkpoints to keep.
      keep_every: checkpoints whose step is a multiple of this are kept permanently; 0: none.
      data: fingerprints of the data that the run reads, by name.
    """

    def __init__(
        self, folder: str | Path, keep: int, keep_every: int = 0, data: Mapping[str, str] | None = None
    ) -> None:
        self.folder = _absolute(folder)
        self.keep, self.data = keep, dict(data or {})
        self.lost: dict[int, str] = {}
        """Steps that could not be written, and why; cleared when a later step is written."""
        self._writing: int | None = None
        self._failures = 0  # in a row, full disks not counted
        silence_orbax()
        self.folder.mkdir(parents=True, exist_ok=True)
        if processes.is_main():
            for step in _steps(self.folder):
                if not _is_complete(self.folder / str(step)):
                    _quarantine(self.folder / str(step), "no commit marker")
        processes.meet("incomplete checkpoints quarantined")
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, keep_period=keep_every or None, cleanup_tmp_directories=True
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def save(self, step: int, state: Any, progress: dict[str, Any]) -> None:
        """Start to write a checkpoint.  On return the arrays may be changed; the files may be incomplete until `wait`.

        If the disk is full, the checkpoint is lost and a warning is logged.

        Args:
          step: larger than all saved steps.
          state: a tree of arrays.
          progress: numbers that are not part of the state, such as the seconds of training; JSON.
        """
        self.wait()
        meta = {
            "step": step,
            "progress": copy.deepcopy(progress),  # another thread writes it later
            "shapes": {name: list(leaf.shape) for name, leaf in _leaves(state).items()},
            "fingerprints": fingerprints(state),
            "data": self.data,
        }
        meta["crc32"] = crc32(meta)
        free, needed = self._free_bytes(), _num_bytes(state)
        if not processes.everywhere(free >= needed):
            self._lose(step, f"it needs {needed / 1e9:.2g} GB, {free / 1e9:.2g} GB are free")
            return
        args = {STATE: ocp.args.StandardSave(state), META: ocp.args.JsonSave(meta)}
        self._writing = step
        try:
            saved = self._manager.save(step, args=ocp.args.Composite(**args))
        except (OSError, ValueError, RuntimeError) as error:
            self._handle_failure(error)
            return
        if not saved:  # all that Orbax reports if the step exists, or is below the latest
            latest = self._manager.latest_step()
            raise RuntimeError(f"{self.folder}: checkpoint {step} was not written; the latest is {latest}")

    def check_space(self, state: Any) -> None:
        """Check that the disk has room for the checkpoints that are kept, and one more.

        Raises:
          InputError: gives the bytes that are needed and free.
        """
        count = max(self.keep + 1 - len(_steps(self.folder)), 1)
        needed, free = count * _num_bytes(state), self._free_bytes()
        if free < needed:
            raise InputError(
                f"{self.folder}: {count} checkpoints of {_num_bytes(state) / 1e9:.2g} GB need {needed / 1e9:.2g} GB, but "
                f"{free / 1e9:.2g} GB are free; make room, or pass --train.keep-checkpoints 1 or --train.checkpoint-dir"
            )

    def _free_bytes(self) -> float:
        return shutil.disk_usage(self.folder).free if _is_local(self.folder) else float("inf")

    def _handle_failure(self, error: Exception) -> None:
        """Give up the checkpoint that is being written, or raise the error after `MAX_FAILURES` of them."""
        step, self._writing = self._writing, None
        disk_full = next((text for text in DISK_FULL if text in str(error)), "")
        if not disk_full and isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            disk_full = os.strerror(error.errno)
        self._failures += not disk_full
        if step is None or self._failures >= MAX_FAILURES:
            raise error
        self._lose(step, disk_full or first_line(error)[:200])

    def _lose(self, step: int, reason: str) -> None:
        self.lost[step] = reason
        log.warning("%s: checkpoint %d was not written (%s); training continues", self.folder, step, reason)
        if processes.is_main():
            for partial in self.folder.glob(f"{step}.orbax-checkpoint-tmp*"):
                partial.rmtree(missing_ok=True)
        self._manager.reload()

    def finish(self, step: int) -> None:
        """Wait until `step`, the last one saved, is on disk.

        Raises:
          InputError: it could not be written.
        """
        self.wait()
        if step in self.lost:
            latest = self.latest_step()
            position = f"from step {latest}" if latest is not None else "from the beginning"
            raise InputError(
                f"{self.folder}: checkpoint {step} could not be written ({self.lost[step]}); make room and rerun the "
                f"command to resume {position}"
            )

    def latest_step(self) -> int | None:
        """The newest complete step."""
        return max(_steps(self.folder), default=None)

    def restore(self, target: Any, allow_data_change: bool = False) -> tuple[Any, dict[str, Any]] | None:
        """Read the newest intact checkpoint, and quarantine newer, corrupted ones as `<step>.quarantined`.

        Args:
          target: the shape and sharding of each array to read; a part of what was saved.
          allow_data_change: accept a checkpoint of a run on different data.

        Returns:
          The arrays, and the `progress` that was saved with them; None if there is no checkpoint.

        Raises:
          InputError: all checkpoints are corrupted; or the newest intact one was trained on different data.
        """
        if not _steps(self.folder):
            return None
        step, state, meta, corrupted = _read_newest_intact(self.folder, target, _steps(self.folder), together=True)
        self.quarantine(corrupted)
        changed = differences(meta["data"], self.data) if meta["data"] and self.data else []
        if changed and not allow_data_change:
            raise InputError(
                f"{self.folder}: checkpoint {step} was trained on different data ({'; '.join(changed)}); restore the old "
                "data, or pass --allow-data-change"
            )
        return state, meta["progress"]

    def discard_from(self, step: int) -> None:
        """Delete this step and all later ones, which a run that resumed from an earlier step replaces."""
        self.wait()
        later = [number for number in _steps(self.folder) if number >= step]
        processes.meet("steps listed")  # before process 0 deletes one
        for number in later:
            self._manager.delete(number)

    def quarantine(self, reasons: dict[int, str]) -> None:
        """Rename corrupted steps and log why."""
        if processes.is_main():
            for step, reason in reasons.items():
                _quarantine(self.folder / str(step), reason)
        processes.meet("corrupted checkpoints quarantined")
        self._manager.reload()

    def wait(self) -> None:
        """Wait until the checkpoint that is being written is on disk or lost.

        Raises:
          Exception: writing failed `MAX_FAILURES` times in a row, not because of a full disk.
        """
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError, RuntimeError) as error:
            self._handle_failure(error)
        if self._writing is not None:
            self._writing, self._failures = None, 0
            self.lost.clear()

    def close(self) -> None:
        """Wait, then release threads and files."""
        self.wait()
        self._manager.close()


class Best:
    """The parameters of a run's best evaluation, in a separate folder beside its checkpoints.

    They are stored with their metrics.  So a run that is killed before its next checkpoint ends like an uninterrupted one.
    """

    def __init__(self, folder: Path) -> None:
        self._checkpoints = Checkpoints(folder, keep=1)
        self.step: int | None = self._checkpoints.latest_step()
        """The step of the best evaluation; None before the first evaluation."""
        self.metrics: dict[str, float] = {}
        if self.step is None:
            return
        meta, reason = attempt(functools.partial(_read_meta, self._checkpoints.folder / str(self.step)))
        if meta is None:
            self._checkpoints.quarantine({self.step: reason})
            self.step = None
        else:
            self.metrics = meta["progress"]

    def offer(self, step: int, select: str, params: Any, metrics: dict[str, float]) -> None:
        """Store the parameters if the metric `select` is larger than at all earlier evaluations."""
        if self.step is not None and not metrics[select] > self.metrics[select]:
            return
        self._checkpoints.discard_from(step)
        self._checkpoints.save(step, {"params": params}, metrics)
        # On disk before the run's checkpoint of this step: a resumed run does not evaluate the step again.
        self._checkpoints.wait()
        if step not in self._checkpoints.lost:
            self.step, self.metrics = step, dict(metrics)

    def close(self) -> None:
        """Release threads and files."""
        self._checkpoints.close()


def newest_step(folder: str | Path) -> int | None:
    """The newest complete checkpoint in a folder, if any; a partial one of a killed process does not count."""
    path = _absolute(folder)
    return max((step for step in _steps(path) if _is_complete(path / str(step))), default=None)


def has_checkpoint(folder: str | Path) -> bool:
    """Whether a folder contains a complete checkpoint."""
    return newest_step(folder) is not None


def restore_params(folder: str | Path, target: Any, step: int | None = None) -> Any:
    """Read the parameters of the newest intact checkpoint in `folder`, or of the one at `step`.

    Corrupted checkpoints are logged and not renamed, since the run may belong to somebody else or be in progress.

    Args:
      folder: a path, or a bucket's address.
      target: the shape and sharding of each parameter.
      step: None for the newest intact checkpoint.

    Raises:
      InputError: no checkpoint is intact, there is none at `step`, or a parameter's shape differs from `target`.
    """
    path = _absolute(folder)
    if not _steps(path):
        raise InputError(f"{folder}: no checkpoint in this folder")
    if step is not None and step not in _steps(path):
        raise InputError(
            f"{folder}: no checkpoint at step {step}; there are {', '.join(map(str, sorted(_steps(path))))}"
        )
    steps = _steps(path) if step is None else [step]
    newest, tree, _, corrupted = _read_newest_intact(path, {"params": target}, steps, together=False)
    for bad, reason in corrupted.items():
        log.warning("%s: checkpoint %d is corrupted (%s); using checkpoint %d instead", folder, bad, reason, newest)
    return tree["params"]


def _read_newest_intact(
    folder: epath.Path, target: Any, steps: list[int], together: bool
) -> tuple[int, Any, dict[str, Any], dict[int, str]]:
    """The newest intact one of `steps`, its arrays and metadata, and why newer steps were passed over.

    If `together`, all processes read, and they agree on the step.
    """
    corrupted: dict[int, str] = {}
    for step in sorted(steps, reverse=True):
        read, reason = attempt(functools.partial(_read, folder / str(step), target))
        if together and not processes.everywhere(read is not None):
            read, reason = None, reason or "another process cannot read it"
        if read is not None:
            # All processes compute it together if arrays are sharded, so only after each has read its part.
            reason = mismatch(read[0], read[1]["fingerprints"])
        if read is not None and not reason:
            return step, *read, corrupted
        corrupted[step] = reason
    reasons = "; ".join(f"{step}: {reason}" for step, reason in corrupted.items())
    raise InputError(f"{folder}: all checkpoints are corrupted ({reasons}); use a different run folder")


def _read(path: epath.Path, target: Any) -> tuple[Any, dict[str, Any]]:
    """The arrays that `target` names, and the metadata.  The fingerprints are not checked yet."""
    meta = _read_meta(path)
    if "shapes" not in meta:
        raise InputError(f"{path} was written by an earlier version, which this one cannot read; use that version")
    shapes = {name: list(leaf.shape) for name, leaf in _leaves(target).items()}
    parts = {name.partition("/")[0] for name in shapes}
    stored = {name: shape for name, shape in meta["shapes"].items() if name.partition("/")[0] in parts}
    for name in sorted(shapes.keys() | stored.keys()):
        if stored.get(name) != shapes.get(name):
            raise InputError(
                f"{path}: {name} has shape {stored.get(name)}, but the model expects {shapes.get(name)}; use the model "
                "settings of the run that wrote it"
            )
    restore_args = ocp.checkpoint_utils.construct_restore_args(target)
    args = ocp.args.PyTreeRestore(item=target, restore_args=restore_args, partial_restore=True)
    with contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
        return handler.restore(path / STATE, args=args), meta


def _read_meta(path: epath.Path) -> dict[str, Any]:
    if not _is_complete(path):
        raise ValueError("no commit marker")
    meta = json.loads((path / META / "metadata").read_text())
    if meta.pop("crc32") != crc32(meta):
        raise ValueError(f"checksum mismatch in {META}")
    return meta


def _leaves(tree: Any) -> dict[str, Any]:
    return dict(zip(leaf_names(tree), jax.tree.leaves(tree), strict=True))


def _num_bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _absolute(folder: str | Path) -> epath.Path:
    path = epath.Path(folder)
    return epath.Path(Path(folder).expanduser().absolute()) if _is_local(path) else path


def _is_local(path: epath.Path) -> bool:
    return "://" not in os.fspath(path)


def _steps(folder: epath.Path) -> list[int]:
    return [int(path.name) for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []


def _is_complete(path: epath.Path) -> bool:
    needed = ["_CHECKPOINT_METADATA", STATE, f"{META}/metadata"]
    if not _is_local(path):  # a bucket cannot rename a complete folder, so Orbax adds this file to it last
        needed.append("commit_success.txt")
    return all((path / name).exists() for name in needed)


def _quarantine(path: epath.Path, reason: str) -> None:
    target = path.with_name(f"{path.name}.quarantined")
    number = 1
    while target.exists():
        number += 1
        target = path.with_name(f"{path.name}.quarantined-{number}")
    path.rename(target)
    log.warning("checkpoint %s is corrupted (%s); renamed to %s", path, reason, target.name)
