"""Checkpoints: Orbax behind one module, which sees damage, full disks and other processes."""

import contextlib
import copy
import errno
import functools
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from albert_jax.config import InputError, differences, require
from albert_jax.training import processes
from albert_jax.training.integrity import attempt, crc32, differing, fingerprint, hush, leaf_names

log = logging.getLogger(__name__)

FULL = ("No space left on device", "File too large", "Disk quota exceeded", "RESOURCE_EXHAUSTED")
"""What stands in the errors of a full disk, whichever layer they come from: the first that is found is told."""

MOST_LOST = 3
"""Checkpoints in a row that cannot be written, for another reason than a full disk, before the run is ended."""

META = "meta"
STATE = "state"


class Checkpoints:
    """The checkpoints of one run: `folder/<step>/`, written in the background, the newest `keep` of them kept.

    All processes of a run make, save and restore them together, in a folder that all see.

    Args:
      folder: a path, or a bucket's address (gs://bucket/run), as Orbax takes them.
      keep: how many of the newest are kept.
      keep_every: those of steps that this divides are kept for good; 0: none are.
      fingerprints: of the data that the run reads.
    """

    def __init__(
        self, folder: str | Path, keep: int, keep_every: int = 0, fingerprints: Mapping[str, str] | None = None
    ) -> None:
        self.folder = place(folder)
        self.keep, self.fingerprints = keep, dict(fingerprints or {})
        self.folder.mkdir(parents=True, exist_ok=True)
        if processes.is_main():
            for step in _steps(self.folder):
                if not _complete(self.folder / str(step)):
                    _quarantine(self.folder / str(step), "no commit marker")
        processes.meet("checkpoints looked through")
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, keep_period=keep_every or None, cleanup_tmp_directories=True
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)
        self._fingerprint = jax.jit(fingerprint)
        hush()
        self._writing: int | None = None
        self._failures = 0  # in a row, but for full disks
        self.lost: dict[int, str] = {}
        """Steps that could not be written, and why; until a later one is."""

    def save(self, step: int, state: Any, progress: dict[str, Any]) -> None:
        """Begins to write `state`; returns when the arrays may be changed, not when the files are complete.

        Without room on the disk the checkpoint is lost, which is told, and nothing else is.

        `progress` are numbers of the run that are no part of its state, such as seconds spent.
        """
        self.wait()
        marks = dict(zip(leaf_names(state), jax.device_get(self._fingerprint(state)).tolist(), strict=True))
        meta = {
            "step": step,
            "progress": copy.deepcopy(progress),  # it is written later, by another thread
            "fingerprints": marks,
            "data": self.fingerprints,
        }
        meta["crc32"] = crc32(meta)
        free, need = self._free(), size(state)
        if not processes.everywhere(free >= need):
            self._lose(step, f"it needs {need / 1e9:.2g} GB, {free / 1e9:.2g} GB are free")
            return
        args = {STATE: ocp.args.StandardSave(state), META: ocp.args.JsonSave(meta)}
        self._writing = step
        try:
            saved = self._manager.save(step, args=ocp.args.Composite(**args))
        except (OSError, ValueError, RuntimeError) as error:
            self._failed(error)
            return
        if not saved:  # Orbax says nothing else of a step that is there already or lies below the latest
            raise RuntimeError(
                f"{self.folder}: checkpoint {step} was not written; latest is {self._manager.latest_step()}"
            )

    def check_space(self, state: Any) -> None:
        """Refuses to begin where the disk has no room for the checkpoints that are kept, and one more.

        Raises:
          InputError: with both numbers.
        """
        wanted = max(self.keep + 1 - len(_steps(self.folder)), 1)
        need, free = wanted * size(state), self._free()
        told = f"{self.folder}: {wanted} checkpoints of {size(state) / 1e9:.2g} GB need {need / 1e9:.2g} GB, {free / 1e9:.2g} GB are free"
        require(free >= need, f"{told}; make room, or pass --train.keep-checkpoints 1 or --train.checkpoint-dir")

    def _free(self) -> float:
        """Bytes; of a bucket there are always enough."""
        return shutil.disk_usage(self.folder).free if _local(self.folder) else float("inf")

    def _failed(self, error: Exception) -> None:
        """Takes what went wrong with the step that is being written.  A full disk may have room again; anything else that loses
        several steps in a row is raised.
        """
        step, self._writing = self._writing, None
        text = str(error)
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
        full = full or any(sign in text for sign in FULL)
        self._failures += not full
        if step is None or self._failures >= MOST_LOST:
            raise error
        first = (text.splitlines() or [type(error).__name__])[0]
        self._lose(step, next((sign for sign in FULL if sign in text), first)[:200])

    def _lose(self, step: int, reason: str) -> None:
        self.lost[step] = reason
        log.warning("%s: checkpoint %d is lost (%s); training goes on", self.folder, step, reason)
        if processes.is_main():
            for left in self.folder.glob(f"{step}.orbax-checkpoint-tmp*"):
                left.rmtree(missing_ok=True)
        self._manager.reload()

    def finish(self, step: int) -> None:
        """Returns when `step`, the last that was saved, is on disk.

        Raises:
          InputError: it could not be written.
        """
        self.wait()
        if step in self.lost:
            last = self.latest_step()
            after = f"goes on after step {last}" if last is not None else "begins again"
            raise InputError(
                f"{self.folder}: checkpoint {step} could not be written ({self.lost[step]}); make room: the same command {after}"
            )

    def latest_step(self) -> int | None:
        """The newest complete step."""
        return max(_steps(self.folder), default=None)

    def restore(self, target: Any, allow_data_change: bool = False) -> tuple[Any, dict[str, Any]] | None:
        """The newest state that is whole, on the shardings of `target`, and its `progress`; None if there is no checkpoint.

        A damaged checkpoint is passed over, and set aside as `<step>.quarantined` once an earlier one is found to be whole.

        Raises:
          InputError: there are checkpoints, and none of them is whole; or the newest was trained on other data.
        """
        damaged: list[tuple[int, str]] = []
        for step in sorted(_steps(self.folder), reverse=True):
            found, reason = attempt(functools.partial(self._read, step, target))
            if processes.everywhere(found is not None) and found is not None:
                # Only now, by all processes together: where arrays are cut, each has a part of what is added up.
                reason = differing(found[0], found[1]["fingerprints"])
            else:
                reason = reason or "another process cannot read it"
            if reason or found is None:
                damaged.append((step, reason))
                continue
            self.set_aside(damaged)
            state, meta = found
            before = meta.get("data", {})  # a checkpoint may be older than this
            changed = differences(before, self.fingerprints) if before and self.fingerprints else []
            told = f"{self.folder}: checkpoint {step} was trained on other data ({'; '.join(changed)})"
            require(not changed or allow_data_change, f"{told}; bring it back, or say --allow-data-change")
            return state, meta["progress"]
        told = "; ".join(f"{step}: {reason}" for step, reason in damaged)
        require(
            not damaged,
            f"{self.folder}: none of the checkpoints can be read ({told}); start afresh in another --run-dir",
        )
        return None

    def _read(self, step: int, target: Any) -> tuple[Any, dict[str, Any]]:
        # By handlers alone: the manager has barriers, at which a process would wait for one whose part cannot be read.
        path = self.folder / str(step)
        with contextlib.closing(ocp.StandardCheckpointHandler()) as handler:
            state = handler.restore(path / STATE, args=ocp.args.StandardRestore(target))
        meta = ocp.JsonCheckpointHandler().restore(path / META, args=ocp.args.JsonRestore())
        if "crc32" in meta and meta.pop("crc32") != crc32(meta):  # older checkpoints have none
            raise ValueError(f"checksum mismatch in {META}")
        return state, meta

    def read_progress(self, step: int) -> dict[str, Any]:
        """The `progress` alone that was saved with a step."""
        path = self.folder / str(step) / META
        return ocp.JsonCheckpointHandler().restore(path, args=ocp.args.JsonRestore())["progress"]

    def discard_from(self, step: int) -> None:
        """Deletes a step and those after it: a run that was resumed before them, and went another way, takes their place."""
        self.wait()
        found = [number for number in _steps(self.folder) if number >= step]
        processes.meet("steps listed")  # before anybody deletes one
        for later in found:
            self._manager.delete(later)

    def set_aside(self, damaged: list[tuple[int, str]]) -> None:
        """Renames steps that are damaged, each with its reason, and says so."""
        if processes.is_main():
            for step, reason in damaged:
                _quarantine(self.folder / str(step), reason)
        processes.meet("damaged checkpoints set aside")
        self._manager.reload()

    def wait(self) -> None:
        """Returns when everything that was begun is on disk, or lost; raises what else went wrong in the background."""
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError, RuntimeError) as error:
            self._failed(error)
        if self._writing is not None:
            self._writing, self._failures = None, 0
            self.lost.clear()

    def close(self) -> None:
        """Waits, then lets go of threads and files."""
        self.wait()
        self._manager.close()


class Best:
    """The parameters of a run's best evaluation, in a folder of their own beside its checkpoints."""

    def __init__(self, folder: Path) -> None:
        self._checkpoints = Checkpoints(folder, keep=1)
        self.step: int | None = self._checkpoints.latest_step()
        """The step of that evaluation; None before the first."""
        self.metrics: dict[str, float] = {}
        """What it came to."""
        if self.step is not None:
            found, reason = attempt(functools.partial(self._checkpoints.read_progress, self.step))
            if found is None:
                self._checkpoints.set_aside([(self.step, reason)])
                self.step = None
            self.metrics = found or {}

    def offer(self, step: int, select: str, params: Any, metrics: dict[str, float]) -> None:
        """Keeps the parameters if the metric `select` is larger than at all evaluations before."""
        if self.step is not None and not metrics[select] > self.metrics[select]:
            return
        self._checkpoints.discard_from(step)
        self._checkpoints.save(step, {"params": params}, metrics)
        self._checkpoints.wait()  # on disk before the run's checkpoint of this step is: a resumed run evaluates it no more
        if step not in self._checkpoints.lost:
            self.step, self.metrics = step, dict(metrics)

    def close(self) -> None:
        """Lets go of threads and files."""
        self._checkpoints.close()


def holds_any(folder: str | Path) -> bool:
    """Whether there is a complete checkpoint in a folder: not what a killed process left behind."""
    path = place(folder)
    return any(_complete(path / str(step)) for step in _steps(path))


def restore_params(folder: str | Path, target: Any) -> Any:
    """The parameters alone of the newest checkpoint in `folder` that is whole, on the shardings of `target`.

    Those passed over are told, and left where they are: the run may be somebody else's, or be writing.

    Raises:
      InputError: no whole checkpoint, or other parameters than wanted (the first difference is named).
    """
    path = place(folder)
    steps = sorted(_steps(path), reverse=True)
    require(bool(steps), f"{folder}: no checkpoint there")
    damaged: list[tuple[int, str]] = []
    for step in steps:
        params, reason = attempt(functools.partial(_read_params, path / str(step), target))
        if params is None:
            damaged.append((step, reason))
            continue
        for bad, why in damaged:
            log.warning("%s: passing over checkpoint %d (%s), using %d", folder, bad, why, step)
        return params
    told = "; ".join(f"{step}: {reason}" for step, reason in damaged)
    raise InputError(f"{folder}: none of the checkpoints can be read ({told})")


def _read_params(path: epath.Path, target: Any) -> Any:
    if not _complete(path):
        raise ValueError("no commit marker")
    handlers = {STATE: ocp.PyTreeCheckpointHandler(), META: ocp.JsonCheckpointHandler()}
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler(**handlers)) as reader:
        stored = reader.metadata(path).item_metadata[STATE].tree["params"]
        have = {name: tuple(leaf.shape) for name, leaf in zip(leaf_names(stored), jax.tree.leaves(stored), strict=True)}
        want = {name: tuple(leaf.shape) for name, leaf in zip(leaf_names(target), jax.tree.leaves(target), strict=True)}
        for name in sorted(have.keys() | want.keys()):
            require(
                have.get(name) == want.get(name),
                f"{path}: params/{name} has shape {have.get(name)}, the model wants {want.get(name)}; use the run's own model settings",
            )
        state = ocp.args.PyTreeRestore(
            item={"params": target},
            restore_args={"params": ocp.checkpoint_utils.construct_restore_args(target)},
            partial_restore=True,
        )
        found = reader.restore(path, args=ocp.args.Composite(**{STATE: state, META: ocp.args.JsonRestore()}))
    params, marks = found[STATE]["params"], found[META]["fingerprints"]
    if reason := differing({"params": params}, marks):
        raise ValueError(reason)
    return params


def size(tree: Any) -> int:
    """Bytes of the arrays of a tree, over all devices."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def place(folder: str | Path) -> epath.Path:
    """A folder as Orbax sees it: a path, or a bucket's address."""
    path = epath.Path(folder)
    return epath.Path(Path(folder).expanduser().absolute()) if _local(path) else path


def _local(path: epath.Path) -> bool:
    return "://" not in os.fspath(path)


def _steps(folder: epath.Path) -> list[int]:
    return [int(path.name) for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []


def _complete(path: epath.Path) -> bool:
    needed = ["_CHECKPOINT_METADATA", STATE, f"{META}/metadata"]
    if not _local(path):  # a bucket cannot rename what is whole: Orbax puts a file beside it
        needed.append("commit_success.txt")
    return all((path / name).exists() for name in needed)


def _quarantine(path: epath.Path, reason: str) -> None:
    aside = path.with_name(f"{path.name}.quarantined")
    number = 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.quarantined-{number}")
    path.rename(aside)
    log.warning("skipping checkpoint %s (%s); it is kept as %s", path.name, reason, aside.name)
