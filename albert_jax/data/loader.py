"""Prepared documents to batches of sequences: indexed, shuffled every epoch, cut by process, read ahead (grain).

A sequence is a run of whole sentences of one document, long enough to fill the model's input.  Batch k is a pure function
of (data, seed, k): a resumed run asks for batch k and gets it, whatever the number of processes.
"""

import dataclasses
import functools
import sys
from array import array
from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np
from grain.experimental import index_shuffle

from albert_jax.config import require
from albert_jax.data import batches
from albert_jax.data.prepare import Prepared, read_split, save_array
from albert_jax.data.records import Records
from albert_jax.data.sequences import SPECIAL_TOKENS, capacity, pieces, spans

Batch = dict[str, Any]
"""Name -> numpy array, as `Sequences` names them; batched along a leading axis."""

INDEX_VERSION = 1
"""To be raised with any change of `pieces` or `spans`: indices lie beside prepared data."""

EMPTY = {"tokens": 0, "sentence": -1, "document": -1}
"""What fills up a batch of too few sequences."""


@dataclasses.dataclass(frozen=True)
class Sequences:
    """Random access to the sequences of a split, each a dict of
    tokens [C] int32, zero beyond its end; sentence [C] int32, the number of each token's sentence, -1 beyond the end;
    document int32, the record it comes from.
    """

    documents: Records
    index: np.ndarray
    """[sequences, 3] uint32: document, first token, end."""
    max_seq_length: int

    def __len__(self) -> int:
        return len(self.index)

    @property
    def widths(self) -> np.ndarray:
        """[sequences]: what each needs of a row's length, at most `max_seq_length`."""
        tokens = self.index[:, 2] - self.index[:, 1]
        return np.minimum(tokens + SPECIAL_TOKENS, self.max_seq_length)

    def __getitem__(self, item: int) -> Batch:
        return {name: rows[0] for name, rows in self.batch(np.array([item])).items()}

    def batch(self, numbers: np.ndarray, columns: int | None = None) -> Batch:
        """Those of these numbers, [B, ...], cut to so many columns, none of whose tokens is beyond them."""
        documents, starts, ends = np.asarray(self.index[numbers], np.int64).T
        records = [self.documents[number] for number in documents.tolist()]
        rows = zip(records, starts.tolist(), ends.tolist(), strict=True)
        tokens = np.zeros((len(numbers), columns or capacity(self.max_seq_length)), np.int32)
        used = np.arange(tokens.shape[1]) < (ends - starts)[:, None]
        tokens[used] = np.concatenate([record["tokens"][start:end] for record, start, end in rows])
        # The documents one after another, for numpy's calls are what costs.
        before = np.cumsum([0, *(len(record["tokens"]) for record in records[:-1])])
        lengths = pieces(np.concatenate([record["sentence_lengths"] for record in records]), self.max_seq_length)
        first, last = np.searchsorted(np.cumsum(lengths), before + np.stack([starts, ends]), side="right").tolist()
        sentence = np.full_like(tokens, -1)
        sentence[used] = np.concatenate(
            [np.repeat(np.arange(b - a), lengths[a:b]) for a, b in zip(first, last, strict=True)]
        )
        return {"tokens": tokens, "sentence": sentence, "document": documents.astype(np.int32)}


def open_split(prepared: Prepared, split: str, max_seq_length: int) -> Sequences:
    """The sequences of `train` or `heldout`.  The index, 12 bytes a sequence, is made once a length and kept beside the data.

    Raises:
      InputError: no document of the split has two sentences, or a shard is damaged.
    """
    documents = read_split(prepared, split)
    path = prepared.folder / f"sequences-{INDEX_VERSION}-{split}-{max_seq_length}.npy"
    if path.exists():
        return Sequences(documents, np.load(path, mmap_mode="r"), max_seq_length)
    rows = array("I")
    for number, record in enumerate(documents):
        for start, end in spans(record["sentence_lengths"], max_seq_length):
            rows.extend((number, start, end))
    require(
        len(rows) > 0,
        f"0 of {len(documents)} documents of '{split}' have two sentences; no pair can be made: is each sentence a document of its own?",
    )
    index = np.array(rows, np.uint32).reshape(-1, 3)
    save_array(path, index)
    return Sequences(documents, index, max_seq_length)


def check_batch(sequences: Sequences, global_batch_size: int) -> None:
    """Refuses data of less than a batch.

    Raises:
      InputError: with both numbers.
    """
    require(
        len(sequences) >= global_batch_size,
        f"the data has {len(sequences)} sequences, train.global_batch_size needs {global_batch_size}; make it smaller or the data larger",
    )


def train_batches(
    sequences: Sequences, global_batch_size: int, seed: int, start: int, process_index: int = 0, process_count: int = 1
) -> Iterator[Batch]:
    """This process' rows of the batches start, start + 1, ...; [B / processes, ...], without end, reshuffled every epoch."""
    count, share = len(sequences), global_batch_size // process_count
    first_seed = int(np.random.SeedSequence([seed, 1]).generate_state(1)[0])  # grain's own `seed(seed).shuffle()`

    def shuffled(place: int) -> int:
        epoch, within = divmod(place, count)
        return index_shuffle(within, max_index=count - 1, seed=(first_seed + epoch) % 2**32, rounds=4)

    def fetch(number: int) -> Batch:
        own = (number * process_count + process_index) * share
        return sequences.batch(np.array([shuffled(place) for place in range(own, own + share)]))

    return _ahead(fetch, start)


def bucketed_batches(
    sequences: Sequences, global_batch_size: int, seed: int, start: int, process_index: int = 0, process_count: int = 1
) -> Iterator[Batch]:
    """As `train_batches`, but those of a batch are of nearly the same length, and have the columns that the longest needs:
    `capacity` of one of `batches.WIDTHS`, or of `max_seq_length`; the same in all processes.
    """
    widths, share = sequences.widths, global_batch_size // process_count
    count = len(sequences) // global_batch_size
    own = slice(process_index * share, (process_index + 1) * share)

    @functools.lru_cache(maxsize=1)
    def epoch_plan(epoch: int) -> np.ndarray:
        return batches.plan(widths, global_batch_size, seed, epoch)

    def fetch(number: int) -> Batch:
        epoch, place = divmod(number, count)
        chosen = epoch_plan(epoch)[place]
        columns = capacity(batches.width_of(int(widths[chosen].max()), sequences.max_seq_length))
        return sequences.batch(chosen[own], columns)

    return _ahead(fetch, start)


def _ahead(fetch: Callable[[int], Batch], start: int) -> Iterator[Batch]:
    """`fetch` of start, start + 1, ..., in this order, some batches ahead."""
    dataset = grain.MapDataset.range(start, sys.maxsize).map(fetch)
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)))


def eval_batches(sequences: Sequences, batch_size: int, most: int) -> Iterator[Batch]:
    """At most `most` batches of a split, always the same; the last is filled up with empty rows (sentence = -1 throughout).

    In a fixed random order: neighbours in the split are of one document, and NSP wants others beside them.
    """
    order = np.random.default_rng(0).permutation(len(sequences))
    for start in range(0, min(len(sequences), most * batch_size), batch_size):
        batch = {}
        for name, rows in sequences.batch(order[start : start + batch_size]).items():
            batch[name] = np.full((batch_size, *rows.shape[1:]), EMPTY[name], np.int32)
            batch[name][: len(rows)] = rows
        yield batch
