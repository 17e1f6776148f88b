"""Damage to checkpoints, and how it is noticed: Orbax loads flipped bits without a word, and tells of others by the page."""

import functools
import gc
import json
import logging
import sys
import time
import warnings
import zlib
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array

from albert_jax.config import InputError

T = TypeVar("T")


def fingerprint(tree: Any) -> Array:
    """[leaves, 2] uint32: two sums over each array's bits, weighted by odd numbers that depend on the place.

    It is the same on any number of devices, and no single flipped bit or pair of swapped values leaves it unchanged.
    """

    def one(leaf: Array) -> Array:
        if leaf.dtype.itemsize != 4:
            raise TypeError(f"fingerprints are of 4-byte arrays, got {leaf.dtype}")
        bits = jax.lax.bitcast_convert_type(leaf, jnp.uint32)
        # The place in the flattened array, without flattening it: cut over devices, it would be brought together for that.
        place, stride = jnp.zeros(bits.shape, jnp.uint32), 1
        for axis in reversed(range(bits.ndim)):
            place += jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * jnp.uint32(stride)
            stride = stride * bits.shape[axis] % 2**32
        weights = [(place * jnp.uint32(factor)) ^ (place >> 15) for factor in (2654435769, 2246822519)]
        return jnp.stack([jnp.sum(bits * (weight | 1), dtype=jnp.uint32) for weight in weights])

    return jnp.stack([one(jnp.asarray(leaf)) for leaf in jax.tree.leaves(tree)])


def leaf_names(tree: Any) -> list[str]:
    """The path of each leaf, as `params/encoder/ffn/output/kernel`."""
    return [
        jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree_util.tree_leaves_with_path(tree)
    ]


def differing(tree: Any, marks: dict[str, list[int]]) -> str:
    """Why a tree's arrays are not those whose fingerprints are in `marks`, by name; empty: they are."""
    found = dict(zip(leaf_names(tree), jax.device_get(jax.jit(fingerprint)(tree)).tolist(), strict=True))
    return next((f"fingerprint mismatch in {name}" for name, mark in found.items() if marks.get(name) != mark), "")


def crc32(meta: dict[str, Any]) -> int:
    """Of a table as JSON."""
    return zlib.crc32(json.dumps(meta, sort_keys=True).encode())


def attempt(read: Callable[[], T]) -> tuple[T | None, str]:
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


@functools.cache
def hush() -> None:
    """Where an array cannot be written, Orbax's threads print a page for every array; `Checkpoints` tells it once."""

    def told(record: logging.LogRecord) -> bool:
        late = "never retrieved" in str(record.msg) and "write_fragment" in record.getMessage()
        trace = record.exc_info[2] if record.exc_info else None
        return not late and (trace is None or "orbax" not in trace.tb_frame.f_code.co_filename)

    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(told)
    sys.unraisablehook = functools.partial(_unless_late, sys.unraisablehook)


def _no(record: logging.LogRecord) -> bool:
    return False
