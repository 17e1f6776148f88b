"""Sentence objectives: two segments from a row of sentences, and their label, such as "swapped".

A new sentence objective is an entry of `SENTENCE_OBJECTIVES`.  Except `other_rows`, everything here works on one row with
static shapes; `objective.draw` vmaps it over the batch.

Shapes: C capacity of a row, S sequence length, M = S - 3: the tokens of an input without [CLS] and two [SEP].
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from albert_jax.model.heads import SENTENCE_CLASSES


class Sequence(NamedTuple):
    """One row of a batch: complete sentences of one document."""

    tokens: Array
    """[C] token ids."""
    sentence: Array
    """[C] index of each token's sentence; -1 after the end."""


class Segment(NamedTuple):
    """A range of a row's tokens."""

    start: Array
    length: Array


class Pair(NamedTuple):
    """The segments of [CLS] A [SEP] B [SEP] and their label."""

    tokens: Array
    """[C], or [2 C] if the objective also uses a row of a different document: the tokens of both rows."""
    a: Segment
    b: Segment
    label: Array
    """Index into `SentenceObjective.classes`."""
    has_weight: Array
    """bool: False if not every class was possible (one sentence has no order, a batch with one document has no negatives);
    such rows get weight 0."""


class SentenceObjective(NamedTuple):
    """An entry of `SENTENCE_OBJECTIVES`."""

    make_pair: Callable[[Array, Sequence, Sequence, Array], Pair]
    """(key, row, row of a different document, number of tokens of `row` to use) -> Pair."""
    classes: tuple[str, ...] = ()
    """Name of each label; empty if there is no sentence loss."""

    @property
    def needs_pairs(self) -> bool:
        """Whether documents of one sentence cannot be used."""
        return bool(self.classes)

    @property
    def chance(self) -> float:
        """Accuracy of guessing."""
        return 1 / len(self.classes)


def in_order(key: Array, row: Sequence, other: Sequence, end: Array) -> Pair:
    """B always follows A; it is empty if the row has one sentence."""
    a, b = _cut(key, row, end)
    return Pair(row.tokens, a, b, jnp.int32(0), jnp.max(row.sentence) > 0)


def sop(key: Array, row: Sequence, other: Sequence, end: Array) -> Pair:
    """Sentence-order prediction: consecutive segments, swapped with probability 1/2 (paper, section 3.1).

    Both segments come from one document.  The released code pairs a single sentence with one of a random document and labels
    the pair as swapped, which teaches topics, not order.
    """
    cut_key, swap_key = jax.random.split(key)
    pair = in_order(cut_key, row, other, end)
    swap = jax.random.bernoulli(swap_key)
    a, b = _select(swap, pair.b, pair.a), _select(swap, pair.a, pair.b)
    return pair._replace(a=a, b=b, label=swap.astype(jnp.int32))


def nsp(key: Array, row: Sequence, other: Sequence, end: Array) -> Pair:
    """Next-sentence prediction, as in BERT: with probability 1/2, B starts at a random sentence of a different document."""
    cut_key, swap_key, start_key = jax.random.split(key, 3)
    pair = in_order(cut_key, row, other, end)
    possible = jnp.max(other.sentence) >= 0
    negative = jax.random.bernoulli(swap_key) & possible
    b = _select(negative, _segment_of_other(start_key, row, other), pair.b)
    tokens = jnp.concatenate([row.tokens, other.tokens])
    return Pair(tokens, pair.a, b, negative.astype(jnp.int32), possible & pair.has_weight)


def sso(key: Array, row: Sequence, other: Sequence, end: Array) -> Pair:
    """Sentence structural objective: B follows A, A follows B, or they come from different documents (arXiv 1908.04577)."""
    cut_key, class_key, start_key = jax.random.split(key, 3)
    pair = in_order(cut_key, row, other, end)
    possible = jnp.max(other.sentence) >= 0
    label = jax.random.randint(class_key, (), 0, jnp.where(possible, 3, 2))
    b = _select(label == 2, _segment_of_other(start_key, row, other), pair.b)
    a, b = _select(label == 1, b, pair.a), _select(label == 1, pair.a, b)
    return Pair(jnp.concatenate([row.tokens, other.tokens]), a, b, label, possible & pair.has_weight)


SENTENCE_OBJECTIVES: dict[str, SentenceObjective] = {
    "sop": SentenceObjective(sop, SENTENCE_CLASSES),
    "nsp": SentenceObjective(nsp, ("in order", "different document")),
    "sso": SentenceObjective(sso, ("in order", "swapped", "different document")),
    "none": SentenceObjective(in_order),  # masked LM only (paper, Table 5)
}
"""Name -> sentence objective.  Metrics are called `{name}_loss` and `{name}_accuracy`."""


def _select(condition: Array, x: Segment, y: Segment) -> Segment:
    return Segment(jnp.where(condition, x.start, y.start), jnp.where(condition, x.length, y.length))


def _segment_of_other(key: Array, row: Sequence, other: Sequence) -> Segment:
    """The end of `other`, from a random sentence on, as a segment of the tokens of both rows (`row` first)."""
    first_sentence = jax.random.randint(key, (), 0, jnp.max(other.sentence) + 1)
    start = jnp.sum((other.sentence >= 0) & (other.sentence < first_sentence))
    return Segment(row.tokens.shape[0] + start, jnp.sum(other.sentence >= first_sentence))


def other_rows(key: Array, document: Array) -> tuple[Array, Array]:
    """For each row, the index of a random row of a different document [B], and whether there is one [B]."""
    different = document[:, None] != document[None, :]
    score = jnp.where(different & (document >= 0)[None, :], jax.random.uniform(key, different.shape), -1.0)
    return jnp.argmax(score, axis=1), jnp.max(score, axis=1) >= 0


def used_length(key: Array, row: Sequence, room: int, short_seq_prob: float) -> Array:
    """Number of tokens of the row to use: all, or with probability `short_seq_prob` the sentences that reach a random length.

    The random length is uniform in [2, M].  At least two sentences are used.  The released code draws a length for each
    document, this code for each row.
    """
    short_key, target_key = jax.random.split(key)
    short = jax.random.bernoulli(short_key, float(short_seq_prob))
    target = jnp.where(short, jax.random.randint(target_key, (), 2, room + 1), row.tokens.shape[0])
    sentence_at_target = row.sentence[jnp.minimum(target, row.tokens.shape[0]) - 1]
    last_sentence = jnp.maximum(sentence_at_target, 1)
    is_token = row.sentence >= 0
    # sentence_at_target is -1 if the row is shorter than the target.
    return jnp.where(sentence_at_target >= 0, jnp.sum(is_token & (row.sentence <= last_sentence)), jnp.sum(is_token))


def _cut(key: Array, row: Sequence, end: Array) -> tuple[Segment, Segment]:
    """Split the first `end` tokens of the row at a random sentence."""
    position = jnp.arange(row.tokens.shape[0])
    count = jnp.max(jnp.where(position < end, row.sentence, -1)) + 1
    first_of_b = jax.random.randint(key, (), 1, jnp.maximum(count, 2))
    length = jnp.sum((row.sentence >= 0) & (row.sentence < first_of_b) & (position < end))
    return Segment(jnp.zeros_like(length), length), Segment(length, end - length)


def truncate(key: Array, a: Segment, b: Segment, room: int, max_removed: int) -> tuple[Segment, Segment]:
    """Truncate the segments, so that both together have at most `room` tokens.

    The result is distributed as if tokens were removed one at a time from the longer segment (B on a tie), from its front
    or back with probability 1/2 (google-research/albert create_pretraining_data.py, truncate_seq_pair).

    Args:
      key: random key.
      a, b: the segments.
      room: M.
      max_removed: static bound on the number of tokens removed from one segment.
    """
    excess = jnp.maximum(a.length + b.length - room, 0)
    gap = jnp.abs(a.length - b.length)
    until_equal = jnp.minimum(excess, gap)  # removed from the longer segment only
    alternating = excess - until_equal  # then from both in turn, B first
    a_longer = a.length > b.length
    removed_a = jnp.where(a_longer, until_equal, 0) + alternating // 2
    removed_b = jnp.where(a_longer, 0, until_equal) + (alternating + 1) // 2

    def cut(key: Array, segment: Segment, removed: Array) -> Segment:
        front = jnp.sum(jax.random.bernoulli(key, shape=(max_removed,)) & (jnp.arange(max_removed) < removed))
        return Segment(segment.start + front, segment.length - removed)

    key_a, key_b = jax.random.split(key)
    return cut(key_a, a, removed_a), cut(key_b, b, removed_b)


def assemble(pair: Pair, length: int, cls_id: int, sep_id: int, pad_id: int) -> tuple[Array, Array, Array]:
    """Write [CLS] A [SEP] B [SEP] and padding: input_ids [S], attention_mask [S], token_type_ids [S]."""
    position = jnp.arange(length)
    a_end = 1 + pair.a.length
    b_start, b_end = a_end + 1, a_end + 1 + pair.b.length
    in_a = (position >= 1) & (position < a_end)
    in_b = (position >= b_start) & (position < b_end)
    source = jnp.where(in_a, pair.a.start + position - 1, pair.b.start + position - b_start)
    ids = jnp.where(in_a | in_b, pair.tokens[jnp.clip(source, 0, pair.tokens.shape[0] - 1)], pad_id)
    ids = jnp.where(position == 0, cls_id, jnp.where((position == a_end) | (position == b_end), sep_id, ids))
    return ids, (position <= b_end).astype(jnp.int32), ((position >= b_start) & (position <= b_end)).astype(jnp.int32)
