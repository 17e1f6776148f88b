"""Padded batches of rows of unequal lengths.

A training batch holds rows of similar length and is padded to one of a few widths.  So there is little padding, and there are
few compilations.  Batch k depends only on the rows, the seed and k.  Fine-tuning uses `train_batches` and `eval_batches`;
pretraining with length buckets uses `length_buckets` (see `loader.py`).
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from typing import Any, Protocol

import numpy as np

from albert_jax.config import InputError

WIDTHS = (16, 32, 48, 64, 96, 128, 192, 256, 320, 384, 448)
"""Padded widths in addition to the maximum length.  Each width needs one compilation."""

POOL = 32
"""Number of batches in a pool.  The rows of a pool are sorted by length, so that its batches hold rows of similar length."""

Row = Mapping[str, Any]
"""Name -> array or numpy scalar."""


class Rows(Protocol):
    """Random access to rows.  The last axis of every array is the token axis; scalars have none."""

    @property
    def lengths(self) -> np.ndarray:
        """[rows]: number of tokens of each row; for a row with several inputs, of the longest one."""

    def __len__(self) -> int: ...

    def __getitem__(self, item: int) -> Row: ...


def check_enough_rows(rows: Sized, global_batch_size: int) -> None:
    """Raise `InputError` if the training rows do not fill one batch."""
    if len(rows) < global_batch_size:
        raise InputError(
            f"train.global_batch_size is {global_batch_size}, but there are only {len(rows)} training examples; "
            "lower the batch size or add data"
        )


def collate(rows: Sequence[Row], batch_size: int, width: int) -> dict[str, np.ndarray]:
    """Pad rows with zeros to `width` tokens, and add empty rows up to `batch_size`.

    Rows without an `attention_mask` get one: 1 at every token of `input_ids`.
    """
    rows = [{"attention_mask": np.ones_like(row["input_ids"])} | dict(row) for row in rows]
    batch = {}
    for name, first in rows[0].items():
        values = [row[name] for row in rows]
        if first.ndim == 0:
            shape: tuple[int, ...] = (batch_size,)
        else:
            outer_sizes = [max(value.shape[axis] for value in values) for axis in range(first.ndim - 1)]
            shape = (batch_size, *outer_sizes, width)
        batch[name] = np.zeros(shape, first.dtype)
        for number, value in enumerate(values):
            used: tuple[Any, ...] = (number, *map(slice, value.shape))
            batch[name][used] = value
    return batch


def padded_width(longest: int, max_seq_length: int) -> int:
    """The width of a batch whose longest row has `longest` tokens."""
    return next((width for width in WIDTHS if longest <= width < max_seq_length), max_seq_length)


def epoch_batches(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> np.ndarray:
    """[batches, B]: row numbers of the batches of one epoch.

    Drops the rows that do not fill a batch, different ones in every epoch.
    """
    random = np.random.default_rng((seed, epoch))
    count = len(lengths) // batch_size
    order = random.permutation(len(lengths))[: count * batch_size]
    pools = [order[start : start + POOL * batch_size] for start in range(0, len(order), POOL * batch_size)]
    by_length = [pool[np.argsort(lengths[pool], kind="stable")].reshape(-1, batch_size) for pool in pools]
    return random.permutation(np.concatenate(by_length))


def length_buckets(
    lengths: np.ndarray, batch_size: int, max_seq_length: int, seed: int
) -> Callable[[int], tuple[np.ndarray, int]]:
    """Return the function from the number of a batch to its row numbers [B] and its padded width."""
    batches_per_epoch = len(lengths) // batch_size

    @functools.lru_cache(maxsize=1)
    def batches_of(epoch: int) -> np.ndarray:
        return epoch_batches(lengths, batch_size, seed, epoch)

    def rows_and_width(number: int) -> tuple[np.ndarray, int]:
        epoch, place = divmod(number, batches_per_epoch)
        rows = batches_of(epoch)[place]
        return rows, padded_width(int(lengths[rows].max()), max_seq_length)

    return rows_and_width


def train_batches(
    rows: Rows,
    batch_size: int,
    max_seq_length: int,
    seed: int,
    start: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """This process's rows of batches start, start + 1, ... without end.  All processes pad to the same width."""
    buckets = length_buckets(rows.lengths, batch_size, max_seq_length, seed)
    rows_per_process = batch_size // process_count
    first = process_index * rows_per_process
    for number in itertools.count(start):
        numbers, width = buckets(number)
        local = numbers[first : first + rows_per_process].tolist()
        yield collate([rows[i] for i in local], rows_per_process, width)


def eval_batches(
    rows: Rows, batch_size: int, max_seq_length: int
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Row numbers and batch, with every row once and the longest first.  Empty rows fill up the last batch; their `weights` are 0."""
    order = np.argsort(-rows.lengths, kind="stable")
    for start in range(0, len(order), batch_size):
        numbers = order[start : start + batch_size]
        width = padded_width(int(rows.lengths[numbers].max()), max_seq_length)
        yield numbers, collate([rows[i] for i in numbers.tolist()], batch_size, width)
