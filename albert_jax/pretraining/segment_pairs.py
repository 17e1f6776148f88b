"""Two segments from a sequence of sentences, and whether the model is to notice: SOP, NSP, or neither.

A new sentence objective is a new entry of `PAIRS`.  Everything here works on one row with static shapes and is vmapped over
the batch by `pretraining.draw`.  C capacity of a sequence, S sequence length, M = S - 3 room beside [CLS] and two [SEP].
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array


class Sequence(NamedTuple):
    """One row of a batch: whole sentences of one document, as `data.loader` makes them."""

    tokens: Array
    """[C] token ids."""
    sentence: Array
    """[C] number of each token's sentence from 0; -1 beyond the end."""


class Segment(NamedTuple):
    """A range of a row's tokens."""

    start: Array
    length: Array


class Pair(NamedTuple):
    """What is to be written as [CLS] A [SEP] B [SEP], and the label."""

    tokens: Array
    """[C], or [2 C]: the row's tokens, then another row's where the objective looks at that."""
    a: Segment
    b: Segment
    label: Array
    """0 = B follows A; 1 = swapped (SOP) or from elsewhere (NSP)."""
    counts: Array
    """bool: whether the label could have been the other; an NSP row without another document could not."""


def in_order(key: Array, row: Sequence, other: Sequence, end: Array) -> Pair:
    """A then B, always: what the MLM-only runs of the paper's Table 5 read."""
    a, b = _cut(key, row, end)
    return Pair(row.tokens, a, b, jnp.int32(0), jnp.bool_(True))


def sop(key: Array, row: Sequence, other: Sequence, end: Array) -> Pair:
    """Sentence-order prediction: A and B are consecutive; half the time they are swapped (paper, section 3.1).

    Both always come from one document.  The released code pairs a document of one sentence with a random one and
    labels that as swapped, which teaches topics, not order.
    """
    cut_key, swap_key = jax.random.split(key)
    pair = in_order(cut_key, row, other, end)
    swap = jax.random.bernoulli(swap_key)
    a, b = (
        Segment(*(jnp.where(swap, y, x) for x, y in zip(p, q, strict=True)))
        for p, q in ((pair.a, pair.b), (pair.b, pair.a))
    )
    return pair._replace(a=a, b=b, label=swap.astype(jnp.int32))


def nsp(key: Array, row: Sequence, other: Sequence, end: Array) -> Pair:
    """Next-sentence prediction, as BERT: half the time B starts at a random sentence of another document."""
    cut_key, swap_key, start_key = jax.random.split(key, 3)
    pair = in_order(cut_key, row, other, end)
    first = jax.random.randint(start_key, (), 0, jnp.max(other.sentence) + 1)
    start = jnp.sum((other.sentence >= 0) & (other.sentence < first))
    foreign = Segment(row.tokens.shape[0] + start, jnp.sum(other.sentence >= first))
    possible = jnp.max(other.sentence) >= 0
    swap = jax.random.bernoulli(swap_key) & possible
    b = Segment(*(jnp.where(swap, y, x) for x, y in zip(pair.b, foreign, strict=True)))
    return Pair(jnp.concatenate([row.tokens, other.tokens]), pair.a, b, swap.astype(jnp.int32), possible)


PAIRS = {"sop": sop, "nsp": nsp, "none": in_order}
"""Name -> (key, row, another document's row, tokens of the row in use) -> Pair."""


def other_rows(key: Array, document: Array) -> tuple[Array, Array]:
    """For each row a random row of another document: indices [B], and whether there is one [B]."""
    different = document[:, None] != document[None, :]
    score = jnp.where(different & (document >= 0)[None, :], jax.random.uniform(key, different.shape), -1.0)
    return jnp.argmax(score, axis=1), jnp.max(score, axis=1) >= 0


def used_length(key: Array, row: Sequence, room: int, short_seq_prob: float) -> Array:
    """How many tokens of the row are used: all, or with `short_seq_prob` the sentences that reach a random length.

    The random length is uniform in [2, M]; two sentences are used at least.
    """
    short_key, target_key = jax.random.split(key)
    short = jax.random.bernoulli(short_key, float(short_seq_prob))
    target = jnp.where(short, jax.random.randint(target_key, (), 2, room + 1), row.tokens.shape[0])
    last = jnp.maximum(row.sentence[jnp.minimum(target, row.tokens.shape[0]) - 1], 1)
    # -1 there: the row is shorter than the target, all of it is used.
    reaches = row.sentence[jnp.minimum(target, row.tokens.shape[0]) - 1] >= 0
    return jnp.where(reaches, jnp.sum((row.sentence >= 0) & (row.sentence <= last)), jnp.sum(row.sentence >= 0))


def _cut(key: Array, row: Sequence, end: Array) -> tuple[Segment, Segment]:
    """The row's first `end` tokens, cut in two at a random sentence."""
    position = jnp.arange(row.tokens.shape[0])
    count = jnp.max(jnp.where(position < end, row.sentence, -1)) + 1
    first_of_b = jax.random.randint(key, (), 1, jnp.maximum(count, 2))
    length = jnp.sum((row.sentence >= 0) & (row.sentence < first_of_b) & (position < end))
    return Segment(jnp.zeros_like(length), length), Segment(length, end - length)


def truncate(key: Array, a: Segment, b: Segment, room: int, most: int) -> tuple[Segment, Segment]:
    """Both segments cut to `room` tokens together, as popping one token at a time from the longer (B on a tie) would,
    from its front or back with equal chance (google-research/albert create_pretraining_data.py, truncate_seq_pair).

    `most` is a static bound on the tokens that one segment loses.
    """
    excess = jnp.maximum(a.length + b.length - room, 0)
    gap = jnp.abs(a.length - b.length)
    level = jnp.minimum(excess, gap)  # from the longer alone, until both are equal
    both = excess - level  # then in turns, B first
    a_longer = a.length > b.length
    from_a = jnp.where(a_longer, level, 0) + both // 2
    from_b = jnp.where(a_longer, 0, level) + (both + 1) // 2

    def cut(key: Array, segment: Segment, lost: Array) -> Segment:
        front = jnp.sum(jax.random.bernoulli(key, shape=(most,)) & (jnp.arange(most) < lost))
        return Segment(segment.start + front, segment.length - lost)

    key_a, key_b = jax.random.split(key)
    return cut(key_a, a, from_a), cut(key_b, b, from_b)


def assemble(pair: Pair, length: int, cls_id: int, sep_id: int, pad_id: int) -> tuple[Array, Array, Array]:
    """[CLS] A [SEP] B [SEP] and padding: input_ids [S], attention_mask [S], token_type_ids [S]."""
    position = jnp.arange(length)
    a_end = 1 + pair.a.length
    b_start, b_end = a_end + 1, a_end + 1 + pair.b.length
    in_a = (position >= 1) & (position < a_end)
    in_b = (position >= b_start) & (position < b_end)
    source = jnp.where(in_a, pair.a.start + position - 1, pair.b.start + position - b_start)
    ids = jnp.where(in_a | in_b, pair.tokens[jnp.clip(source, 0, pair.tokens.shape[0] - 1)], pad_id)
    ids = jnp.where(position == 0, cls_id, jnp.where((position == a_end) | (position == b_end), sep_id, ids))
    return ids, (position <= b_end).astype(jnp.int32), ((position >= b_start) & (position <= b_end)).astype(jnp.int32)
