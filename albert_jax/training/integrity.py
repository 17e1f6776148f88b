"""Detects corrupted checkpoints: Orbax loads flipped bits silently, and logs pages of errors for other corruption."""

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

from albert_jax.config import InputError, first_line

T = TypeVar("T")


def fingerprint(tree: Any) -> Array:
    """[leaves, 2] uint32: two sums over each array's bits, weighted by odd numbers that depend on the position.

    It does not depend on the number of devices.  One flipped bit changes it, and so do two swapped values.
    """

    def leaf_fingerprint(leaf: Array) -> Array:
        if leaf.dtype.itemsize != 4:
            raise TypeError(f"only arrays of 4-byte values have fingerprints, got {leaf.dtype}")
        bits = jax.lax.bitcast_convert_type(leaf, jnp.uint32)
        # The position in the flattened array, computed without flattening, which would all-gather a sharded array.
        position, stride = jnp.zeros(bits.shape, jnp.uint32), 1
        for axis in reversed(range(bits.ndim)):
            position += jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * jnp.uint32(stride)
            stride = stride * bits.shape[axis] % 2**32
        weights = [(position * jnp.uint32(factor)) ^ (position >> 15) for factor in (2654435769, 2246822519)]
        return jnp.stack([jnp.sum(bits * (weight | 1), dtype=jnp.uint32) for weight in weights])

    return jnp.stack([leaf_fingerprint(jnp.asarray(leaf)) for leaf in jax.tree.leaves(tree)])


_jitted_fingerprint = jax.jit(fingerprint)


def fingerprints(tree: Any) -> dict[str, list[int]]:
    """The fingerprint of each array by its path, such as `params/encoder/ffn/output/kernel`."""
    return dict(zip(leaf_names(tree), jax.device_get(_jitted_fingerprint(tree)).tolist(), strict=True))


def leaf_names(tree: Any) -> list[str]:
    """The path of each leaf."""
    return [
        jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree_util.tree_leaves_with_path(tree)
    ]


def mismatch(tree: Any, stored: dict[str, list[int]]) -> str:
    """The first array of a tree whose fingerprint is not the stored one, as a reason; empty if there is none."""
    names = [name for name, value in fingerprints(tree).items() if stored.get(name) != value]
    return f"fingerprint mismatch in {names[0]}" if names else ""


def crc32(table: dict[str, Any]) -> int:
    """The CRC-32 of a table as JSON."""
    return zlib.crc32(json.dumps(table, sort_keys=True).encode())


def attempt(read: Callable[[], T]) -> tuple[T | None, str]:
    """Read a checkpoint.

    Returns:
      The result of `read` and an empty string; or, if the checkpoint is corrupted, None and the reason in one line.

    Raises:
      OSError: the disk fails, which says nothing about the checkpoint.
      InputError: the user asked for something that the checkpoint is not.
    """
    silence_orbax()
    with warnings.catch_warnings(action="ignore"):
        try:
            return read(), ""
        except InputError:
            raise
        except Exception as error:  # Orbax raises even a bare Exception for corrupted files
            if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
                raise
            reason = first_line(error)[:200]
        # If one array cannot be read, Orbax drops the coroutines that read the others: collect them while warnings are off.
        for _ in range(5):
            gc.collect()
            time.sleep(0.1)
        return None, reason


@functools.cache
def silence_orbax() -> None:
    """Drop the pages that Orbax's threads print for each array that cannot be read or written: we report it in one line."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_is_not_from_orbax)
    previous_hook = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        code = getattr(unraisable.object, "cr_code", None)
        dropped_coroutine = code is not None and "orbax" in code.co_filename
        if not dropped_coroutine and "Event loop is closed" not in str(unraisable.exc_value):
            previous_hook(unraisable)

    sys.unraisablehook = hook


def _is_not_from_orbax(record: logging.LogRecord) -> bool:
    trace = record.exc_info[2] if record.exc_info else None
    if record.name == "asyncio" and "never retrieved" in str(record.msg):
        # Nothing else here leaves futures behind.  Some messages name only the storage below Orbax.
        return not any(name in record.getMessage() for name in ("orbax", "write_fragment", "OCDBT", "TensorStore"))
    return trace is None or "orbax" not in trace.tb_frame.f_code.co_filename
