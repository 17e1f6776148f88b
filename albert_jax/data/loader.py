"""Pretraining batches from prepared documents: shuffled every epoch, divided among processes, read ahead.

A sequence is a run of complete sentences of one document, long enough to fill the model's input.  Batch k depends only on
the data, the seed and k, so a resumed run reads the same batches, whatever the number of processes.
"""

import dataclasses
import sys
from array import array
from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np
from grain.experimental import index_shuffle

from albert_jax.config import InputError
from albert_jax.data.batches import length_buckets
from albert_jax.data.prepare import Prepared, read_split, save_array
from albert_jax.data.records import Records
from albert_jax.data.sequences import SPECIAL_TOKENS, capacity, sequence_ranges, split_long_sentences

Batch = dict[str, Any]
"""Name -> numpy array, with the names of `Sequences` and a leading batch axis."""

INDEX_VERSION = 1
"""Increase it with any change of `sequences.py`, because indices are stored beside prepared data."""

EMPTY_ROW = {"tokens": 0, "sentence": -1, "document": -1}
"""Values of the rows that fill up the last evaluation batch."""


@dataclasses.dataclass(frozen=True)
class Sequences:
    """Random access to the sequences of a split.

    Each is a dict of `tokens` [C] int32, 0 after its end; `sentence` [C] int32, the index of each token's sentence, -1 after
    the end; and `document` int32, the number of its record.
    """

    documents: Records
    index: np.ndarray
    """[sequences, 3] uint32: number of the record, start and end of the tokens."""
    max_seq_length: int

    def __len__(self) -> int:
        return len(self.index)

    @property
    def widths(self) -> np.ndarray:
        """[sequences]: length of the row that holds the sequence and its special tokens, at most `max_seq_length`."""
        tokens = self.index[:, 2] - self.index[:, 1]
        return np.minimum(tokens + SPECIAL_TOKENS, self.max_seq_length)

    def __getitem__(self, item: int) -> Batch:
        return {name: rows[0] for name, rows in self.batch(np.array([item])).items()}

    def batch(self, numbers: np.ndarray, columns: int | None = None) -> Batch:
        """The sequences with these numbers [B], as arrays with `columns` columns (default C), enough for the longest."""
        documents, starts, ends = np.asarray(self.index[numbers], np.int64).T
        records = [self.documents[number] for number in documents.tolist()]
        rows = zip(records, starts.tolist(), ends.tolist(), strict=True)
        tokens = np.zeros((len(numbers), columns or capacity(self.max_seq_length)), np.int32)
        used = np.arange(tokens.shape[1]) < (ends - starts)[:, None]
        tokens[used] = np.concatenate([record["tokens"][start:end] for record, start, end in rows])
        # The documents are concatenated, so that each numpy function is called once per batch.
        offsets = np.cumsum([0, *(len(record["tokens"]) for record in records[:-1])])
        lengths = np.concatenate([record["sentence_lengths"] for record in records])
        lengths = split_long_sentences(lengths, self.max_seq_length)
        sentence_ends = np.cumsum(lengths)
        first, last = np.searchsorted(sentence_ends, offsets + np.stack([starts, ends]), side="right").tolist()
        sentence = np.full_like(tokens, -1)
        sentence[used] = np.concatenate(
            [np.repeat(np.arange(b - a), lengths[a:b]) for a, b in zip(first, last, strict=True)]
        )
        return {"tokens": tokens, "sentence": sentence, "document": documents.astype(np.int32)}


def open_split(prepared: Prepared, split: str, max_seq_length: int, single_sentences: bool = False) -> Sequences:
    """The sequences of `train` or `heldout`; see `sequence_ranges`.

    The index (12 bytes per sequence) is computed once for each length and stored beside the data.
    """
    documents = read_split(prepared, split)
    kind = "-single" if single_sentences else ""
    path = prepared.folder / f"sequences-{INDEX_VERSION}-{split}-{max_seq_length}{kind}.npy"
    if path.exists():
        return Sequences(documents, np.load(path, mmap_mode="r"), max_seq_length)
    rows = array("I")
    for number, record in enumerate(documents):
        for start, end in sequence_ranges(record["sentence_lengths"], max_seq_length, single_sentences):
            rows.extend((number, start, end))
    if not rows:
        raise InputError(
            f"{prepared.folder}: 0 of {len(documents)} documents of '{split}' have two sentences, so no pair can be made; "
            "check that the source does not hold one sentence per document, or train with sentence_objective none"
        )
    index = np.array(rows, np.uint32).reshape(-1, 3)
    save_array(path, index)
    return Sequences(documents, index, max_seq_length)


def train_batches(
    sequences: Sequences, global_batch_size: int, seed: int, start: int, process_index: int = 0, process_count: int = 1
) -> Iterator[Batch]:
    """This process's rows [B / processes, ...] of batches start, start + 1, ... without end; shuffled anew every epoch."""
    count, rows_per_process = len(sequences), global_batch_size // process_count
    # The order of grain's `.seed(seed).shuffle().repeat()`, without its chain of datasets, which would take most of the time.
    first_seed = int(np.random.SeedSequence([seed, 1]).generate_state(1)[0])

    def shuffled(position: int) -> int:
        epoch, within = divmod(position, count)
        return index_shuffle(within, max_index=count - 1, seed=(first_seed + epoch) % 2**32, rounds=4)

    def fetch(number: int) -> Batch:
        first = (number * process_count + process_index) * rows_per_process
        return sequences.batch(np.array([shuffled(position) for position in range(first, first + rows_per_process)]))

    return _read_ahead(fetch, start)


def bucketed_batches(
    sequences: Sequences, global_batch_size: int, seed: int, start: int, process_index: int = 0, process_count: int = 1
) -> Iterator[Batch]:
    """Like `train_batches`, but a batch holds sequences of similar length and only the columns that the longest needs.

    The number of columns is `capacity(width)` for one of `batches.WIDTHS` or `max_seq_length`, and the same in all
    processes.  Short documents are not packed into one row: each row needs its own [CLS] for the sentence head, and
    attention must not cross documents.  The cost is one compilation per width, and a number of tokens that differs by step.
    """
    rows_per_process = global_batch_size // process_count
    rows = slice(process_index * rows_per_process, (process_index + 1) * rows_per_process)
    buckets = length_buckets(sequences.widths, global_batch_size, sequences.max_seq_length, seed)

    def fetch(number: int) -> Batch:
        numbers, width = buckets(number)
        return sequences.batch(numbers[rows], capacity(width))

    return _read_ahead(fetch, start)


def _read_ahead(fetch: Callable[[int], Batch], start: int) -> Iterator[Batch]:
    """`fetch(start)`, `fetch(start + 1)`, ... in order, a few batches ahead."""
    dataset = grain.MapDataset.range(start, sys.maxsize).map(fetch)
    # More threads would only wait for Python's global lock.
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)))


def eval_batches(sequences: Sequences, batch_size: int, max_batches: int) -> Iterator[Batch]:
    """At most `max_batches` batches of a split, the same in every call; empty rows fill up the last one.

    The order is random but fixed: neighboring sequences often come from one document, and NSP needs different documents in a
    batch.
    """
    order = np.random.default_rng(0).permutation(len(sequences))
    for start in range(0, min(len(sequences), max_batches * batch_size), batch_size):
        batch = {}
        for name, rows in sequences.batch(order[start : start + batch_size]).items():
            batch[name] = np.full((batch_size, *rows.shape[1:]), EMPTY_ROW[name], np.int32)
            batch[name][: len(rows)] = rows
        yield batch
