"""The released data algorithm in slow, plain Python, for comparison with `albert_jax.pretraining`; and text for both.

The source is google-research/albert create_pretraining_data.py, with one instance per sequence.  Two things differ: a short
length is drawn for each sequence, not for each document, and at least two sentences are used, whereas the released code pairs
a single sentence with a random one.
"""

import itertools
import random
from collections import Counter
from typing import Any, NamedTuple

import numpy as np

from albert_jax.data import loader
from albert_jax.data.sequences import sequence_ranges
from albert_jax.pretraining.objective import ObjectiveConfig

Rows = dict[str, np.ndarray]

PAD, CLS, SEP, MASK, FIRST = 0, 2, 3, 4, 5
STARTS_WORD = np.random.default_rng(0).random(2**20) < 0.75  # the released vocabulary: 23,242 of 30,000
STARTS = STARTS_WORD.tolist()

MASK_SHARE, KEEP_SHARE = 0.8, 0.5  # [MASK]; of the rest, half is unchanged and half becomes a random piece


class Instance(NamedTuple):
    """[CLS] A [SEP] B [SEP] without padding."""

    tokens: list[int]
    """Before masking."""
    hidden: list[int]
    """After masking."""
    positions: list[int]
    """Positions of the predicted pieces, ascending."""
    a_length: int
    label: int
    """1 = swapped."""


def truncate_seq_pair(a: list[int], b: list[int], room: int, rng: random.Random) -> None:
    """Remove one token at a time from the longer segment (B on a tie), from its front or back."""
    while len(a) + len(b) > room:
        longer = a if len(a) > len(b) else b
        if rng.random() < 0.5:
            del longer[0]
        else:
            longer.pop()


def pair(sentences: list[list[int]], config: ObjectiveConfig, rng: random.Random) -> tuple[list[int], list[int], int]:
    """Two segments of a sequence, cut to fit, and 1 if they are swapped."""
    room = config.max_seq_length - 3
    target = rng.randint(2, room) if rng.random() < config.short_seq_prob else room
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


def choose(tokens: list[int], config: ObjectiveConfig, budget: int, rng: random.Random) -> list[int]:
    """Positions to predict, ascending.

    As in the released code, special tokens do not end an n-gram or a word: an n-gram may cross [SEP], and if B starts inside a
    word, its first piece continues the last word of A.
    """
    words: list[list[int]] = []
    for position, token in enumerate(tokens):
        if token in (CLS, SEP):
            continue
        if words and not STARTS[token]:
            words[-1].append(position)
        else:
            words.append([position])
    share = [1 / n for n in range(1, config.ngram + 1)]
    if not config.favor_shorter_ngram:
        share.reverse()
    ngrams = [
        [
            list(itertools.chain(*words[first : first + n]))
            for n in range(1, config.ngram + 1)
            if first + n <= len(words)
        ]
        for first in range(len(words))
    ]
    rng.shuffle(ngrams)
    covered: set[int] = set()
    for by_size in ngrams:
        if len(covered) >= budget:
            break
        n = rng.choices(range(len(by_size)), share[: len(by_size)])[0]
        while n > 0 and len(covered) + len(by_size[n]) > budget:
            n -= 1
        if len(covered) + len(by_size[n]) <= budget and covered.isdisjoint(by_size[n]):
            covered.update(by_size[n])
    return sorted(covered)


def budget(length: int, masked_lm_prob: float, max_predictions: int) -> int:
    """Number of pieces to predict in `length` tokens, [CLS] and [SEP] included."""
    return min(max_predictions, max(1, round(length * masked_lm_prob)))


def instance(sentences: list[list[int]], config: ObjectiveConfig, rng: random.Random) -> Instance:
    """One instance of a sequence."""
    a, b, label = pair(sentences, config, rng)
    tokens = [CLS, *a, SEP, *b, SEP]
    num_predictions = budget(len(tokens), config.masked_lm_prob, config.max_predictions_per_seq)
    positions = choose(tokens, config, num_predictions, rng)
    hidden = list(tokens)
    for position in positions:
        if rng.random() < MASK_SHARE:
            hidden[position] = MASK
        elif rng.random() >= KEEP_SHARE:
            hidden[position] = rng.randrange(len(STARTS))
    return Instance(tokens, hidden, positions, len(a), label)


def words(instance: Instance) -> list[list[int]]:
    """Positions of each word.  The first piece of a segment always starts a word."""
    result: list[list[int]] = []
    last = len(instance.tokens) - 1
    for first, end in ((1, 1 + instance.a_length), (2 + instance.a_length, last)):
        for position in range(first, end):
            if position == first or STARTS[instance.tokens[position]]:
                result.append([position])
            else:
                result[-1].append(position)
    return result


def text_sequences(count: int, max_seq_length: int, seed: int = 0, vocab_size: int = 2**20) -> loader.Sequences:
    """Synthetic sequences.  Tokens count up, so that a token identifies its position; sentences start with a word."""
    rng = np.random.default_rng(seed)
    records: list[Rows] = []
    index: list[tuple[int, int, int]] = []
    used = 0
    while len(index) < count:
        ends = np.cumsum(2 + rng.geometric(0.07, rng.integers(2, 30)))
        tokens = FIRST + (used + np.arange(ends[-1])) % (vocab_size - FIRST)
        word_ends = [end for end in ends[:-1] if STARTS_WORD[tokens[end]]]
        lengths = np.diff([0, *word_ends, ends[-1]])
        index += [(len(records), *span) for span in sequence_ranges(lengths, max_seq_length)]
        records.append({"tokens": tokens, "sentence_lengths": lengths})
        used += ends[-1]
    return loader.Sequences(records, np.array(index[:count], np.uint32), max_seq_length)


def text(count: int, max_seq_length: int, seed: int = 0, vocab_size: int = 2**20) -> Rows:
    """A batch of all `text_sequences`."""
    rows = list(map(text_sequences(count, max_seq_length, seed, vocab_size).__getitem__, range(count)))
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def instances(examples: Rows) -> list[Instance]:
    """Convert drawn examples to instances, and check the invariants of every row."""
    result = []
    for row in range(len(examples["input_ids"])):
        weights = examples["masked_lm_weights"][row]
        length, used = int(examples["attention_mask"][row].sum()), int(weights.sum())
        hidden, types = examples["input_ids"][row].tolist(), examples["token_type_ids"][row].tolist()
        positions, labels = (examples[f"masked_lm_{name}"][row].tolist() for name in ("positions", "labels"))
        unused = [0] * (len(weights) - used)
        padding = [0] * (len(hidden) - length)
        assert examples["attention_mask"][row].tolist() == [1] * length + padding
        assert weights.tolist() == [1] * used + unused
        assert positions[used:] == labels[used:] == unused
        tokens = list(hidden)
        for position, label in zip(positions[:used], labels[:used], strict=True):
            tokens[position] = label
        a_end, b_end = (i for i, token in enumerate(tokens) if token == SEP)
        assert tokens[0] == CLS
        assert b_end == length - 1
        assert tokens[length:] == padding
        assert types == [0] * (a_end + 1) + [1] * (b_end - a_end) + padding
        assert np.all(np.diff(positions[:used]) > 0)
        assert not {0, a_end, *range(b_end, len(tokens))}.intersection(positions[:used])
        label = int(examples["sentence_labels"][row])
        result.append(Instance(tokens[:length], hidden[:length], positions[:used], a_end - 1, label))
    return result


def sentences(rows: Rows, row: int) -> list[list[int]]:
    number = rows["sentence"][row]
    return [rows["tokens"][row][number == i].tolist() for i in range(number.max() + 1)]


def shares(values: Any, keys: Any) -> np.ndarray:
    counts = Counter(values)
    assert set(counts) <= set(keys)
    return np.array([counts[key] for key in keys]) / counts.total()


def mask_statistics(instances: list[Instance]) -> dict[str, np.ndarray]:
    """Relative frequencies, to compare the masks of the device with those of `instance`."""
    runs, fates, places = [], [], []
    for one in instances:
        masked = set(one.positions)
        # Of each word: False, or 1 + the segment in which it is masked.
        masked_segments = [masked.issuperset(word) and 1 + (word[0] > one.a_length) for word in words(one)]
        runs += [min(len(list(run)), 7) for is_masked, run in itertools.groupby(masked_segments) if is_masked]
        for position in one.positions:
            before, after = one.tokens[position], one.hidden[position]
            fates.append("mask" if after == MASK else "same" if after == before else "random")
            places.append(position // 16)
    counts = [len(one.positions) for one in instances]
    tokens = sum(len(one.tokens) for one in instances)
    assert tokens > 10**5
    return {
        "masked share": np.array(sum(counts) / tokens),
        "words in a run of masked words": shares(runs, range(1, 8)),
        "mask, random, same": shares(fates, ("mask", "random", "same")),
        "position": shares(places, range(8)),
        "predictions": shares((count // 4 for count in counts), range(6)),
    }
