"""How a document is divided into sequences: whole sentences, until the model's input is full.  Works on lengths only."""

from collections.abc import Iterator

import numpy as np

SPECIAL_TOKENS = 3
"""[CLS] and two [SEP]."""


def capacity(max_seq_length: int) -> int:
    """C: the largest number of tokens of a sequence before it is paired and truncated.

    A sequence ends with the sentence that fills the input; `split_long_sentences` limits a sentence to half an input.
    """
    room = max_seq_length - SPECIAL_TOKENS
    return room + room // 2


def split_long_sentences(sentence_lengths: np.ndarray, max_seq_length: int) -> np.ndarray:
    """Sentence lengths after splitting each sentence that is longer than half an input.

    So the length of a sequence is bounded, and a full sequence has at least two sentences, enough for a pair.
    """
    limit = (max_seq_length - SPECIAL_TOKENS) // 2
    parts = -(-sentence_lengths // limit)
    if parts.max(initial=1) == 1:
        return sentence_lengths
    lengths = np.repeat(limit, parts.sum())
    lengths[np.cumsum(parts) - 1] = sentence_lengths - (parts - 1) * limit
    return lengths


def sequence_ranges(
    sentence_lengths: np.ndarray, max_seq_length: int, single_sentences: bool = False
) -> Iterator[tuple[int, int]]:
    """Token ranges [start, end) of a document's sequences: sentences are added until the input is full.

    A single sentence that remains at the end cannot make a pair and is left out.  The released code
    (create_pretraining_data.py) pairs it with a sentence of a different document and labels the pair as swapped.

    Args:
      sentence_lengths: of the document.
      max_seq_length: S.
      single_sentences: whether a document of one sentence is a sequence.
    """
    ends = np.concatenate([[0], np.cumsum(split_long_sentences(sentence_lengths, max_seq_length))])
    first = 0
    while first < len(ends) - 1:
        last = int(np.searchsorted(ends, ends[first] + max_seq_length - SPECIAL_TOKENS))
        last = min(last, len(ends) - 1)
        if last - first >= 2 or (single_sentences and len(ends) == 2):
            yield int(ends[first]), int(ends[last])
        first = last
