"""Prepared documents to batches of sequences: indexed, shuffled every epoch, cut by process, read ahead (grain).

A sequence is a run of whole sentences of one document, long enough to fill the model's input.  Batch k is a pure function
of (data, seed, k): a resumed run asks for batch k and gets it, whatever the number of processes.
"""

import dataclasses
import functools
from array import array
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np

from albert_jax.config import require
from albert_jax.data import batches
from albert_jax.data.prepare import Prepared, read_split, save_array
from albert_jax.data.sequences import SPECIAL_TOKENS, capacity, pieces, spans

Batch = dict[str, Any]
"""Name -> numpy array, as `Sequences` names them; batched along a leading axis."""

INDEX_VERSION = 1
"""To be raised with any change of `pieces` or `spans`: indices lie beside prepared data."""


@dataclasses.dataclass(frozen=True)
class Sequences:
    """Random access to the sequences of a split, each a dict of
    tokens [C] int32, zero beyond its end; sentence [C] int32, the number of each token's sentence, -1 beyond the end;
    document int32, the record it comes from.
    """

    documents: Any
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
        document, start, end = self.index[item].tolist()
        record = self.documents[document]
        lengths = pieces(record["sentence_lengths"], self.max_seq_length)
        sentence = np.repeat(np.arange(len(lengths)), lengths)[start:end]
        tokens = np.zeros(capacity(self.max_seq_length), np.int32)
        tokens[: end - start] = record["tokens"][start:end]
        numbers = np.full_like(tokens, -1)
        numbers[: end - start] = sentence - sentence[0]
        return {"tokens": tokens, "sentence": numbers, "document": np.int32(document)}


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
    for number in range(len(documents)):
        for start, end in spans(documents[number]["sentence_lengths"], max_seq_length):
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


def _rows(sequences: Sequences, numbers: np.ndarray, columns: int | None = None) -> Batch:
    """Those of these numbers, [B, ...], cut to so many columns."""
    rows = [sequences[number] for number in numbers.tolist()]
    return {
        "tokens": np.stack([row["tokens"][:columns] for row in rows]),
        "sentence": np.stack([row["sentence"][:columns] for row in rows]),
        "document": np.stack([row["document"] for row in rows]),
    }


def train_batches(
    sequences: Sequences, global_batch_size: int, seed: int, start: int, process_index: int = 0, process_count: int = 1
) -> Iterator[Batch]:
    """This process' rows of the batches start, start + 1, ...; [B / processes, ...], without end, reshuffled every epoch."""
    order = grain.MapDataset.range(len(sequences)).seed(seed).shuffle().repeat()
    # Batched before anything is read: a thread then fetches a batch, not a record, and the order cannot depend on threads.
    numbers = order.batch(global_batch_size // process_count, drop_remainder=True)
    dataset = numbers[start * process_count + process_index :: process_count].map(functools.partial(_rows, sequences))
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)))


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

    def fetch(number: int, _: int) -> Batch:
        epoch, place = divmod(number, count)
        chosen = epoch_plan(epoch)[place]
        columns = capacity(batches.width_of(int(widths[chosen].max()), sequences.max_seq_length))
        return _rows(sequences, chosen[own], columns)

    dataset = grain.MapDataset.source(range(count)).repeat().map_with_index(fetch)[start:]
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)))


def eval_batches(sequences: Sequences, batch_size: int, most: int) -> Iterator[Batch]:
    """At most `most` batches of a split, always the same; the last is filled up with empty rows (sentence = -1 throughout).

    In a fixed random order: neighbours in the split are of one document, and NSP wants others beside them.
    """
    order = np.random.default_rng(0).permutation(len(sequences))
    for start in range(0, min(len(sequences), most * batch_size), batch_size):
        rows = [sequences[i] for i in order[start : start + batch_size].tolist()]
        empty = {
            "tokens": np.zeros_like(rows[0]["tokens"]),
            "sentence": np.full_like(rows[0]["sentence"], -1),
            "document": np.int32(-1),
        }
        rows += [empty] * (batch_size - len(rows))
        yield {name: np.stack([row[name] for row in rows]) for name in empty}
