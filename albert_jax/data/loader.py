"""Prepared documents to batches of sequences: indexed, shuffled every epoch, cut by process, read ahead (grain).

A sequence is a run of whole sentences of one document, long enough to fill the model's input.  Batch k is a pure function
of (data, seed, k): a resumed run asks for batch k and gets it, whatever the number of processes.
"""

import dataclasses
from array import array
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np

from albert_jax.config import require
from albert_jax.data.prepare import Prepared, read_split, save_array

Batch = dict[str, Any]
"""Name -> numpy array, as `Sequences` names them; batched along a leading axis."""

SPECIAL_TOKENS = 3
"""[CLS] and two [SEP]."""


INDEX_VERSION = 1
"""To be raised with any change of `pieces` or `spans`: indices lie beside prepared data."""


def capacity(max_seq_length: int) -> int:
    """C: the most tokens a sequence can have before pairing cuts it to fit: every piece is at most half an input long."""
    room = max_seq_length - SPECIAL_TOKENS
    return room + room // 2


def pieces(sentence_lengths: np.ndarray, max_seq_length: int) -> np.ndarray:
    """Sentence lengths with every sentence longer than half an input cut up, so that a full sequence has two pieces at least."""
    limit = (max_seq_length - SPECIAL_TOKENS) // 2
    cuts = -(-sentence_lengths // limit)
    if cuts.max(initial=1) == 1:
        return sentence_lengths
    cut = np.repeat(limit, cuts.sum())
    cut[np.cumsum(cuts) - 1] = sentence_lengths - (cuts - 1) * limit
    return cut


def spans(sentence_lengths: np.ndarray, max_seq_length: int) -> Iterator[tuple[int, int]]:
    """The token ranges [start, end) of a document's sequences: sentences are added until the input is full or none is left.

    A remainder of one sentence makes no pair and is left out.  (google-research/albert create_pretraining_data.py, which
    pairs such a sentence with another document's and labels it as swapped.)
    """
    ends = np.concatenate([[0], np.cumsum(pieces(sentence_lengths, max_seq_length))])
    first = 0
    while first < len(ends) - 1:
        last = int(np.searchsorted(ends, ends[first] + max_seq_length - SPECIAL_TOKENS))
        last = min(last, len(ends) - 1)
        if last - first >= 2:
            yield int(ends[first]), int(ends[last])
        first = last


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


def train_batches(
    sequences: Sequences, global_batch_size: int, seed: int, start: int, process_index: int = 0, process_count: int = 1
) -> Iterator[Batch]:
    """This process' rows of the batches start, start + 1, ...; [B / processes, ...], without end, reshuffled every epoch."""
    dataset = grain.MapDataset.source(sequences).seed(seed).shuffle().repeat()
    # Batched before anything is read ahead: a thread then fetches a batch, not a record, and the order cannot depend on threads.
    dataset = dataset.batch(global_batch_size // process_count, drop_remainder=True)[
        start * process_count + process_index :: process_count
    ]
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
