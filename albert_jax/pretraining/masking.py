"""n-gram whole-word masking of one row, on device with static shapes.

The algorithm is create_masked_lm_predictions of google-research/albert create_pretraining_data.py.  An n-gram of whole words
starts at every word.  The n-grams are visited in random order.  Each draws its n, is shortened to the remaining budget, and
is selected unless it overlaps a selected one.  Two things differ: an n-gram never crosses the [SEP] between the segments,
and a row gets new masks in every epoch.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

MASKED, RANDOM = 0.8, 0.1
"""Probabilities that a predicted piece becomes [MASK] or a random piece; otherwise it is unchanged (BERT)."""


class Masked(NamedTuple):
    """A masked row and its labels."""

    input_ids: Array
    """[S]."""
    positions: Array
    """[P], ascending; 0 where unused."""
    labels: Array
    """[P] the original pieces; 0 where unused."""
    weights: Array
    """[P] float32, 1 where used."""


def prediction_budget(real_length: Array, max_length: int, masked_lm_prob: float, max_predictions: int) -> Array:
    """Number of pieces to predict in a row of `real_length` <= `max_length` tokens, [CLS] and [SEP] included.

    It is looked up in a table computed in Python, because float32 products round differently for lengths such as 190.
    """
    table = [min(max_predictions, max(1, round(length * masked_lm_prob))) for length in range(max_length + 1)]
    return jnp.array(table, jnp.int32)[real_length]


def choose(
    key: Array, word_start: Array, segment: Array, budget: Array, max_budget: int, ngram: int, favor_shorter_ngram: bool
) -> Array:
    """Choose the pieces to predict, [S] bool: `budget` of them, or fewer if no more words fit.

    The loop has a fixed number of iterations.  Each selects the n-gram that the released algorithm would select next.  A while
    loop would end earlier, but under data parallelism XLA puts an all-reduce into its condition.

    Args:
      key: random key.
      word_start: [S] bool, whether a piece starts a word.
      segment: [S] segment of each piece; -1 for pieces that must not be masked ([CLS], [SEP], padding).
      budget: number of pieces to choose.
      max_budget: static bound on `budget`.
      ngram: maximum number of words in an n-gram.
      favor_shorter_ngram: p(n) is proportional to 1 / n; otherwise to 1 / (ngram + 1 - n).
    """
    length = word_start.shape[0]
    order_key, n_key = jax.random.split(key)
    position = jnp.arange(length)
    maskable = segment >= 0
    new_segment = maskable & (segment != jnp.concatenate([jnp.full((1,), -1, segment.dtype), segment[:-1]]))
    start = maskable & (word_start | new_segment)

    # next_break[i]: the first position after i where a word starts or the segment ends.  Applied n times, it ends an n-gram.
    is_break = start | ~maskable
    upcoming = jax.lax.cummin(jnp.where(is_break, position, length), reverse=True)
    next_break = jnp.concatenate([upcoming[1:], jnp.full((1,), length)])
    ends, valid, word_end = [], [], position
    for _ in range(ngram):
        index = jnp.minimum(word_end, length - 1)
        inside = (word_end < length) & start[index] & (segment[index] == segment)
        word_end = jnp.where(inside, next_break[index], word_end)
        ends.append(word_end)
        valid.append(inside)
    end = jnp.stack(ends)  # [n, S]: end of the n-gram of 1, 2, ... words that starts here
    available = jnp.stack(valid)

    weight = 1.0 / jnp.arange(1, ngram + 1)
    weight = weight if favor_shorter_ngram else weight[::-1]
    drawn_n = jax.random.categorical(n_key, jnp.where(available, jnp.log(weight)[:, None], -jnp.inf), axis=0)
    order = jax.random.uniform(order_key, (length,))
    sizes = end - position

    def select_next(_: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        chosen, free, visited, remaining = state
        fits = (sizes <= remaining) & available & (jnp.arange(ngram)[:, None] <= drawn_n)
        n = ngram - 1 - jnp.argmax(fits[::-1], axis=0)  # the largest n that fits, at most the drawn one
        candidate = start & fits.any(axis=0) & jnp.take_along_axis(free, n[None], axis=0)[0] & (order > visited)
        best = jnp.argmin(jnp.where(candidate, order, 2.0))
        first, last = best, end[n[best], best]
        selected = candidate[best] & (remaining > 0)
        chosen = chosen | (selected & (position >= first) & (position < last))
        free = free & ~((position < last) & (end > first))
        # A skipped word is not visited again, even if its n-gram, shortened to a smaller budget, would no longer overlap.
        visited = jnp.where(selected, order[best], visited)
        remaining = jnp.where(selected, remaining - (last - first), remaining)
        return chosen, free, visited, remaining

    state = (jnp.zeros(length, bool), available, jnp.float32(-1), budget)
    return jax.lax.fori_loop(0, max_budget, select_next, state)[0]


def hide(key: Array, input_ids: Array, chosen: Array, max_predictions: int, mask_id: int, vocab_size: int) -> Masked:
    """Mask the chosen pieces of input_ids [S]: independently, 80 % become [MASK], 10 % a random piece, 10 % are unchanged."""
    fate_key, random_key = jax.random.split(key)
    fate = jax.random.uniform(fate_key, input_ids.shape)
    random_piece = jax.random.randint(random_key, input_ids.shape, 0, vocab_size)
    hidden = jnp.where(fate < MASKED, mask_id, jnp.where(fate < MASKED + RANDOM, random_piece, input_ids))
    (positions,) = jnp.nonzero(chosen, size=max_predictions, fill_value=0)
    used = jnp.arange(max_predictions) < jnp.sum(chosen)
    labels = jnp.where(used, input_ids[positions], 0)
    return Masked(jnp.where(chosen, hidden, input_ids), positions, labels, used.astype(jnp.float32))
