"""Rows of unequal length to padded batches of few shapes: shuffled every epoch for training, in order of length to evaluate.

For data that fits in memory as tokens, as fine-tuning's does; `plan` and `width_of` are pretraining's, too.
Batch k is a pure function of (rows, seed, k).
"""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from albert_jax.config import require

WIDTHS = (16, 32, 48, 64, 96, 128, 192, 256, 320, 384, 448)
"""Widths that batches are padded to, beside the longest that is allowed: each is one compilation."""

POOL = 32
"""Batches whose rows are sorted by length together: neighbours in length share a batch, and little is padding."""

Row = Mapping[str, Any]
"""Name -> array or numpy scalar."""


class Rows(Protocol):
    """Random access to rows: dicts of arrays; the last axis of every array with axes is that of tokens."""

    @property
    def lengths(self) -> np.ndarray:
        """[rows]: tokens of each; a row of several inputs counts its longest."""

    def __len__(self) -> int: ...

    def __getitem__(self, item: int) -> Row: ...


def collate(rows: list[Row], batch_size: int, width: int) -> dict[str, np.ndarray]:
    """One batch: rows padded with zeros to `width` tokens, and with empty rows, whose `weights` are 0, to `batch_size`.

    `attention_mask` is added where rows have none: 1 at every token of `input_ids`.
    """
    named = [{"attention_mask": np.ones_like(row["input_ids"])} | dict(row) for row in rows]
    batch = {}
    for name, first in named[0].items():
        if first.ndim == 0:
            whole = np.zeros(batch_size, first.dtype)
            whole[: len(rows)] = [row[name] for row in named]
        else:
            outer = [max(row[name].shape[axis] for row in named) for axis in range(first.ndim - 1)]
            whole = np.zeros((batch_size, *outer, width), first.dtype)
            for place, row in zip(whole, named, strict=False):
                place[tuple(slice(size) for size in row[name].shape)] = row[name]
        batch[name] = whole
    return batch


def width_of(longest: int, max_seq_length: int) -> int:
    """The width of a batch whose longest row has `longest` tokens."""
    return next((width for width in WIDTHS if longest <= width < max_seq_length), max_seq_length)


def plan(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> np.ndarray:
    """[batches, B]: the rows of an epoch's batches.  Less than a batch is left over, other rows in every epoch."""
    random = np.random.default_rng((seed, epoch))
    count = len(lengths) // batch_size
    order = random.permutation(len(lengths))[: count * batch_size]
    pools = [order[start : start + POOL * batch_size] for start in range(0, len(order), POOL * batch_size)]
    by_length = [pool[np.argsort(lengths[pool], kind="stable")].reshape(-1, batch_size) for pool in pools]
    return random.permutation(np.concatenate(by_length))


def check_batch(rows: Rows, batch_size: int) -> None:
    """Refuses data of less than a batch.

    Raises:
      InputError: with both numbers.
    """
    told = f"the training data has {len(rows)} rows, train.global_batch_size needs {batch_size}; make it smaller"
    require(len(rows) >= batch_size, told)


def train_batches(
    rows: Rows,
    batch_size: int,
    max_seq_length: int,
    seed: int,
    start: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """This process' rows of the batches start, start + 1, ..., without end; all processes pad to the same width."""
    count = len(rows) // batch_size
    share = batch_size // process_count
    epoch, number = divmod(start, count)
    while True:
        for chosen in plan(rows.lengths, batch_size, seed, epoch)[number:]:
            width = width_of(int(rows.lengths[chosen].max()), max_seq_length)
            own = chosen[process_index * share : (process_index + 1) * share].tolist()
            yield collate([rows[i] for i in own], share, width)
        epoch, number = epoch + 1, 0


def eval_batches(
    rows: Rows, batch_size: int, max_seq_length: int
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Every row once, by length, the longest first: the rows' numbers, and the batch, filled up with empty rows."""
    order = np.argsort(-rows.lengths, kind="stable")
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        width = width_of(int(rows.lengths[chosen].max()), max_seq_length)
        yield chosen, collate([rows[i] for i in chosen.tolist()], batch_size, width)
