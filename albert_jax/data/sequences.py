"""Where a document is cut into sequences, as numbers alone: whole sentences, long enough together to fill the model's input."""

from collections.abc import Iterator

import numpy as np

SPECIAL_TOKENS = 3
"""[CLS] and two [SEP]."""


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
