"""The released data algorithm in slow, plain Python: what `albert_jax.objectives` is held against.

google-research/albert create_pretraining_data.py, one instance a sequence.  Two things are ours: the short length is drawn
for each sequence (there: once a document), and two sentences are used at least (there: a lone one gets a random partner).
"""

import random
from collections.abc import Sequence
from typing import NamedTuple

MASK_SHARE, KEEP_SHARE = 0.8, 0.5  # [MASK], else half stays and half becomes any piece


class Instance(NamedTuple):
    """[CLS] A [SEP] B [SEP] without padding."""

    tokens: list[int]
    """Before masking."""
    hidden: list[int]
    """After masking."""
    positions: list[int]
    """Of the predicted pieces, ascending."""
    a_length: int
    label: int
    """1 = swapped."""


class Settings(NamedTuple):
    """What the released flags and vocabulary say."""

    starts_word: Sequence[bool]
    cls_id: int
    sep_id: int
    mask_id: int
    max_seq_length: int
    max_predictions: int
    masked_lm_prob: float = 0.15
    ngram: int = 3
    favor_shorter_ngram: bool = True
    short_seq_prob: float = 0.1


def truncate_seq_pair(a: list[int], b: list[int], room: int, rng: random.Random) -> None:
    """Pops one token at a time from the longer (B on a tie), from its front or back."""
    while len(a) + len(b) > room:
        longer = a if len(a) > len(b) else b
        if rng.random() < 0.5:
            del longer[0]
        else:
            longer.pop()


def pair(sentences: list[list[int]], settings: Settings, rng: random.Random) -> tuple[list[int], list[int], int]:
    """Two segments of a sequence, cut to fit, and 1 if they are swapped."""
    room = settings.max_seq_length - 3
    target = rng.randint(2, room) if rng.random() < settings.short_seq_prob else room
    chunk: list[list[int]] = []
    for sentence in sentences:
        if len(chunk) >= 2 and sum(map(len, chunk)) >= target:
            break
        chunk.append(sentence)
    a_end = rng.randint(1, len(chunk) - 1)
    a = [token for sentence in chunk[:a_end] for token in sentence]
    b = [token for sentence in chunk[a_end:] for token in sentence]
    label = int(rng.random() < 0.5)
    if label:
        a, b = b, a
    truncate_seq_pair(a, b, room, rng)
    return a, b, label


def choose(tokens: list[int], settings: Settings, wanted: int, rng: random.Random) -> list[int]:
    """Positions to predict, ascending.  As released, an n-gram may cross [SEP], and a B that starts inside a word goes
    with the last word of A: special tokens are passed over, not breaks.
    """
    words: list[list[int]] = []
    for position, token in enumerate(tokens):
        if token in (settings.cls_id, settings.sep_id):
            continue
        if words and not settings.starts_word[token]:
            words[-1].append(position)
        else:
            words.append([position])
    share = [1 / n for n in range(1, settings.ngram + 1)]
    if not settings.favor_shorter_ngram:
        share.reverse()
    ngrams = [
        [sum(words[first : first + n], []) for n in range(1, settings.ngram + 1) if first + n <= len(words)]
        for first in range(len(words))
    ]
    rng.shuffle(ngrams)
    covered: set[int] = set()
    for by_size in ngrams:
        if len(covered) >= wanted:
            break
        n = rng.choices(range(len(by_size)), share[: len(by_size)])[0]
        while n > 0 and len(covered) + len(by_size[n]) > wanted:
            n -= 1
        if len(covered) + len(by_size[n]) <= wanted and covered.isdisjoint(by_size[n]):
            covered.update(by_size[n])
    return sorted(covered)


def budget(length: int, masked_lm_prob: float, max_predictions: int) -> int:
    """Pieces to predict of `length` tokens, [CLS] and [SEP] counted."""
    return min(max_predictions, max(1, int(round(length * masked_lm_prob))))


def instance(sentences: list[list[int]], settings: Settings, rng: random.Random) -> Instance:
    """One instance of a sequence."""
    a, b, label = pair(sentences, settings, rng)
    tokens = [settings.cls_id, *a, settings.sep_id, *b, settings.sep_id]
    wanted = budget(len(tokens), settings.masked_lm_prob, settings.max_predictions)
    positions = choose(tokens, settings, wanted, rng)
    hidden = list(tokens)
    for position in positions:
        if rng.random() < MASK_SHARE:
            hidden[position] = settings.mask_id
        elif rng.random() >= KEEP_SHARE:
            hidden[position] = rng.randrange(len(settings.starts_word))
    return Instance(tokens, hidden, positions, len(a), label)


def words(instance: Instance, starts_word: Sequence[bool]) -> list[list[int]]:
    """Positions of each word; a segment's first piece starts one, even in the middle of a word."""
    found: list[list[int]] = []
    last = len(instance.tokens) - 1
    for first, end in ((1, 1 + instance.a_length), (2 + instance.a_length, last)):
        for position in range(first, end):
            if position == first or starts_word[instance.tokens[position]]:
                found.append([position])
            else:
                found[-1].append(position)
    return found
