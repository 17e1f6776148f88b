"""Checkpoints: Orbax behind one module, with a fingerprint of every array, since Orbax loads flipped bits without a word."""

import copy
import functools
import gc
import logging
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax import Array

from albert_jax.config import InputError, require

log = logging.getLogger(__name__)

T = TypeVar("T")

META = "meta"
STATE = "state"


class Checkpoints:
    """The checkpoints of one run: `folder/<step>/`, written in the background, the newest `keep` of them kept."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder.absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        for step in _steps(self.folder):
            if not _complete(self.folder / str(step)):
                _quarantine(self.folder / str(step), "no commit marker")
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(self.folder, options=options)
        self._fingerprint = jax.jit(fingerprint)

    def save(self, step: int, state: Any, progress: dict[str, Any]) -> None:
        """Begins to write `state`; returns when the arrays may be changed, not when the files are complete.

        `progress` are numbers of the run that are no part of its state, such as seconds spent.
        """
        marks = dict(zip(leaf_names(state), jax.device_get(self._fingerprint(state)).tolist(), strict=True))
        meta = {
            "step": step,
            "progress": copy.deepcopy(progress),  # it is written later, by another thread
            "fingerprints": marks,
        }
        args = {STATE: ocp.args.StandardSave(state), META: ocp.args.JsonSave(meta)}
        saved = self._manager.save(step, args=ocp.args.Composite(**args))
        if not saved:  # Orbax says nothing else of a step that is there already or lies below the latest
            raise RuntimeError(
                f"{self.folder}: checkpoint {step} was not written; latest is {self._manager.latest_step()}"
            )

    def latest_step(self) -> int | None:
        """The newest complete step."""
        return max(_steps(self.folder), default=None)

    def restore(self, target: Any) -> tuple[Any, dict[str, Any]] | None:
        """The newest state that is whole, on the shardings of `target`, and its `progress`; None if there is no checkpoint.

        A damaged checkpoint is passed over, and set aside as `<step>.quarantined` once an earlier one is found to be whole.

        Raises:
          InputError: there are checkpoints, and none of them is whole.
        """
        damaged: list[tuple[int, str]] = []
        for step in sorted(_steps(self.folder), reverse=True):
            found, reason = _attempt(functools.partial(self._read, step, target))
            if found is None:
                damaged.append((step, reason))
                continue
            for bad, why in damaged:
                _quarantine(self.folder / str(bad), why)
            self._manager.reload()
            return found
        told = "; ".join(f"{step}: {reason}" for step, reason in damaged)
        require(
            not damaged,
            f"{self.folder}: none of the checkpoints can be read ({told}); start afresh in another --run-dir",
        )
        return None

    def _read(self, step: int, target: Any) -> tuple[Any, dict[str, Any]]:
        args = {STATE: ocp.args.StandardRestore(target), META: ocp.args.JsonRestore()}
        found = self._manager.restore(step, args=ocp.args.Composite(**args))
        _verify(found[STATE], found[META]["fingerprints"])
        return found[STATE], found[META]["progress"]

    def read_progress(self, step: int) -> dict[str, Any]:
        """The `progress` alone that was saved with a step."""
        args = ocp.args.Composite(**{META: ocp.args.JsonRestore()})
        return self._manager.restore(step, args=args)[META]["progress"]

    def discard_from(self, step: int) -> None:
        """Deletes a step and those after it: a run that was resumed before them, and went another way, takes their place."""
        self.wait()
        for later in [number for number in _steps(self.folder) if number >= step]:
            self._manager.delete(later)

    def set_aside(self, step: int, reason: str) -> None:
        """Renames a step that is damaged, and says so."""
        _quarantine(self.folder / str(step), reason)
        self._manager.reload()

    def wait(self) -> None:
        """Returns when everything that was begun is on disk; raises what went wrong in the background."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, then lets go of threads and files."""
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
            found, reason = _attempt(functools.partial(self._checkpoints.read_progress, self.step))
            if found is None:
                self._checkpoints.set_aside(self.step, reason)
                self.step = None
            self.metrics = found or {}

    def offer(self, step: int, select: str, params: Any, metrics: dict[str, float]) -> None:
        """Keeps the parameters if the metric `select` is larger than at all evaluations before."""
        if self.step is not None and not metrics[select] > self.metrics[select]:
            return
        self._checkpoints.discard_from(step)
        self.step, self.metrics = step, dict(metrics)
        self._checkpoints.save(step, {"params": params}, self.metrics)
        self._checkpoints.wait()  # on disk before the run's checkpoint of this step is: a resumed run evaluates it no more

    def close(self) -> None:
        """Lets go of threads and files."""
        self._checkpoints.close()


def holds_any(folder: Path) -> bool:
    """Whether there is a complete checkpoint in a folder: not what a killed process left behind."""
    return any(_complete(folder / str(step)) for step in _steps(folder))


def restore_params(folder: Path, target: Any) -> Any:
    """The parameters alone of the newest checkpoint in `folder` that is whole, on the shardings of `target`.

    Those passed over are told, and left where they are: the run may be somebody else's, or be writing.

    Raises:
      InputError: no whole checkpoint, or other parameters than wanted (the first difference is named).
    """
    folder = folder.absolute()
    steps = sorted(_steps(folder), reverse=True)
    require(bool(steps), f"{folder}: no checkpoint there")
    damaged: list[tuple[int, str]] = []
    for step in steps:
        params, reason = _attempt(functools.partial(_read_params, folder / str(step), target))
        if params is None:
            damaged.append((step, reason))
            continue
        for bad, why in damaged:
            log.warning("%s: passing over checkpoint %d (%s), using %d", folder, bad, why, step)
        return params
    told = "; ".join(f"{step}: {reason}" for step, reason in damaged)
    raise InputError(f"{folder}: none of the checkpoints can be read ({told})")


def _read_params(path: Path, target: Any) -> Any:
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
    _verify({"params": params}, {name: mark for name, mark in marks.items() if name.startswith("params/")})
    return params


def fingerprint(tree: Any) -> Array:
    """[leaves, 2] uint32: two sums over each array's bits, weighted by odd numbers that depend on the place.

    It is the same on any number of devices, and no single flipped bit or pair of swapped values leaves it unchanged.
    """

    def one(leaf: Array) -> Array:
        if leaf.dtype.itemsize != 4:
            raise TypeError(f"fingerprints are of 4-byte arrays, got {leaf.dtype}")
        bits = jax.lax.bitcast_convert_type(leaf, jnp.uint32).ravel()
        place = jnp.arange(bits.size, dtype=jnp.uint32)
        weights = [(place * jnp.uint32(factor)) ^ (place >> 15) for factor in (2654435769, 2246822519)]
        return jnp.stack([jnp.sum(bits * (weight | 1), dtype=jnp.uint32) for weight in weights])

    return jnp.stack([one(jnp.asarray(leaf)) for leaf in jax.tree.leaves(tree)])


def leaf_names(tree: Any) -> list[str]:
    """The path of each leaf, as `params/encoder/ffn/output/kernel`."""
    return [
        jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree_util.tree_leaves_with_path(tree)
    ]


def _verify(tree: Any, marks: dict[str, list[int]]) -> None:
    found = dict(zip(leaf_names(tree), jax.device_get(fingerprint(tree)).tolist(), strict=True))
    for name, mark in found.items():
        if marks.get(name) != mark:
            raise ValueError(f"fingerprint mismatch in {name}")


def _steps(folder: Path) -> list[int]:
    return [int(path.name) for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []


def _complete(path: Path) -> bool:
    return all((path / name).exists() for name in ("_CHECKPOINT_METADATA", STATE, f"{META}/metadata"))


def _attempt(read: Callable[[], T]) -> tuple[T | None, str]:
    """What `read` gives, or None and why the checkpoint is damaged, in one line.

    Where one array cannot be read, Orbax drops the reads of the others as they are: each would print a page, some as late
    as when the process ends.
    """
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    after = hook
    asyncio_log = logging.getLogger("asyncio")
    asyncio_log.addFilter(_no)
    try:
        with warnings.catch_warnings(action="ignore"):
            try:
                return read(), ""
            except Exception as error:  # damaged files end in a bare Exception of Orbax's, too
                disk = isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
                if disk or isinstance(error, InputError):
                    raise  # the disk fails, or the user is wrong: not the checkpoint
                reason = next((line for line in str(error).splitlines() if line), type(error).__name__)[:200]
            after = functools.partial(_unless_late, hook)
            for _ in range(5):
                gc.collect()
                time.sleep(0.1)
            return None, reason
    finally:
        asyncio_log.removeFilter(_no)
        sys.unraisablehook = after


def _unless_late(hook: Callable[[Any], Any], told: Any) -> None:
    if "Event loop is closed" not in str(told.exc_value):
        hook(told)


def _no(record: logging.LogRecord) -> bool:
    return False


def _quarantine(path: Path, reason: str) -> None:
    aside = path.with_name(f"{path.name}.quarantined")
    number = 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.quarantined-{number}")
    path.rename(aside)
    log.warning("skipping checkpoint %s (%s); it is kept as %s", path.name, reason, aside.name)
