"""n-gram whole-word masking, on device, one row at a time with static shapes.

The algorithm is that of google-research/albert create_pretraining_data.py (create_masked_lm_predictions), span for span:
an n-gram of whole words starts at every word; they are visited in random order; each draws its n, is made shorter where
the budget asks for it, and is taken unless it touches one already taken.  Two things differ: an n-gram never crosses the
[SEP] between the segments, and masks are drawn anew each time a sequence is seen.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

MASKED, RANDOM = 0.8, 0.1
"""Shares of the predicted pieces that become [MASK] and a random piece; the rest stay (BERT; drawn for each piece)."""


class Masked(NamedTuple):
    """A row with pieces hidden, and what was there."""

    input_ids: Array
    """[S]."""
    positions: Array
    """[P], ascending; 0 where unused."""
    labels: Array
    """[P] the pieces that stood there; 0 where unused."""
    weights: Array
    """[P] float32, 1 where used."""


def budget(real_length: Array, max_length: int, masked_lm_prob: float, max_predictions: int) -> Array:
    """Pieces to predict in a row of `real_length` tokens, at most `max_length`, [CLS] and [SEP] counted.

    From a table, in Python's arithmetic: products in float32 round the other way for lengths such as 190.
    """
    table = [min(max_predictions, max(1, round(length * masked_lm_prob))) for length in range(max_length + 1)]
    return jnp.array(table, jnp.int32)[real_length]


def choose(
    key: Array, word_start: Array, segment: Array, wanted: Array, most: int, ngram: int, favor_shorter_ngram: bool
) -> Array:
    """Which pieces to predict, [S] bool; `wanted` of them, unless the words' lengths forbid it.

    Args:
      key: random key.
      word_start: [S] bool, where a word begins among the maskable pieces.
      segment: [S] number of each piece's segment; -1 where nothing may be masked ([CLS], [SEP], padding).
      wanted: pieces to choose.
      most: a static bound on `wanted`.
      ngram: most words in a span.
      favor_shorter_ngram: p(n) proportional to 1 / n, or reversed.
    """
    length = word_start.shape[0]
    order_key, n_key = jax.random.split(key)
    position = jnp.arange(length)
    maskable = segment >= 0
    new_segment = maskable & (segment != jnp.concatenate([jnp.full((1,), -1, segment.dtype), segment[:-1]]))
    start = maskable & (word_start | new_segment)

    # next_break[i]: the first position after i where a word begins or the segment ends; applied n times it ends an n-gram.
    is_break = start | ~maskable
    upcoming = jax.lax.cummin(jnp.where(is_break, position, length), reverse=True)
    next_break = jnp.concatenate([upcoming[1:], jnp.full((1,), length)])
    ends, valid, at = [], [], position
    for _ in range(ngram):
        inside = (at < length) & start[jnp.minimum(at, length - 1)] & (segment[jnp.minimum(at, length - 1)] == segment)
        at = jnp.where(inside, next_break[jnp.minimum(at, length - 1)], at)
        ends.append(at)
        valid.append(inside)
    end = jnp.stack(ends)  # [n, S]: where the n-gram of 1, 2, .. words from here ends
    available = jnp.stack(valid)

    share = 1.0 / jnp.arange(1, ngram + 1)
    share = share if favor_shorter_ngram else share[::-1]
    drawn = jax.random.categorical(n_key, jnp.where(available, jnp.log(share)[:, None], -jnp.inf), axis=0)
    order = jax.random.uniform(order_key, (length,))
    sizes = end - position

    def take(_: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        chosen, free, visited, left = state
        fits = (sizes <= left) & available & (jnp.arange(ngram)[:, None] <= drawn)
        n = ngram - 1 - jnp.argmax(fits[::-1], axis=0)  # the longest that fits, not above the drawn one
        can = start & fits.any(axis=0) & jnp.take_along_axis(free, n[None], axis=0)[0] & (order > visited)
        best = jnp.argmin(jnp.where(can, order, 2.0))
        first, last = best, end[n[best], best]
        found = can[best] & (left > 0)
        chosen = chosen | (found & (position >= first) & (position < last))
        free = free & ~((position < last) & (end > first))
        # What was passed over stays passed over: a later, smaller budget must not bring it back.
        visited = jnp.where(found, order[best], visited)
        left = jnp.where(found, left - (last - first), left)
        return chosen, free, visited, left

    # A span has a piece at least.  A while loop would end sooner, but ask all devices at each turn whether to go on.
    state = (jnp.zeros(length, bool), available, jnp.float32(-1), wanted)
    return jax.lax.fori_loop(0, most, take, state)[0]


def hide(key: Array, input_ids: Array, chosen: Array, max_predictions: int, mask_id: int, vocab_size: int) -> Masked:
    """The chosen pieces of input_ids [S] hidden: 80 % [MASK], 10 % any piece, 10 % left, each drawn for itself."""
    fate_key, random_key = jax.random.split(key)
    fate = jax.random.uniform(fate_key, input_ids.shape)
    anything = jax.random.randint(random_key, input_ids.shape, 0, vocab_size)
    hidden = jnp.where(fate < MASKED, mask_id, jnp.where(fate < MASKED + RANDOM, anything, input_ids))
    (positions,) = jnp.nonzero(chosen, size=max_predictions, fill_value=0)
    used = jnp.arange(max_predictions) < jnp.sum(chosen)
    labels = jnp.where(used, input_ids[positions], 0)
    return Masked(jnp.where(chosen, hidden, input_ids), positions, labels, used.astype(jnp.float32))
