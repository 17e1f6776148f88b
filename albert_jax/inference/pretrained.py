"""Predictions of a pretrained model: masked words, sentence order, embeddings and generated text.

Every function takes `model, params, tokenizer` as `albert_jax.load` returns them.
"""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from tqdm import tqdm

from albert_jax.config import InputError
from albert_jax.data.tokenizer import MASK, Tokenizer
from albert_jax.model.heads import Albert

log = logging.getLogger(__name__)

Loaded = tuple[Albert, Any, Tokenizer]
"""What `albert_jax.load` returns."""

BATCH_SIZE = 32
LENGTH_MULTIPLE = 64
"""Sequence lengths are rounded up to a multiple of this, so that few shapes are compiled."""
MASKS_MULTIPLE = 8
"""The same for the number of masked positions."""


def fill_mask(
    model: Albert, params: Any, tokenizer: Tokenizer, texts: str | Sequence[str], top_k: int = 5
) -> list[list[list[dict[str, Any]]]]:
    """The `top_k` most probable pieces at each [MASK] of each text, the best first.

    Returns:
      For each text, for each [MASK], a list of `{"token", "id", "probability"}`.

    Raises:
      InputError: a text has no [MASK], or has one beyond the longest input; the model has no masked-LM head.
    """
    check_head(model, "predictions")
    texts = as_list(texts)
    if not 1 <= top_k <= tokenizer.vocab_size:
        raise InputError(f"top_k must be in [1, {tokenizer.vocab_size}], got {top_k}")
    num_masks = [text.count(MASK) for text in texts]
    if 0 in num_masks:
        number = num_masks.index(0)
        raise InputError(f"text {number + 1} has no [MASK]: {texts[number][:60]!r}")
    answers = []
    for inputs, numbers in _batches(model, tokenizer, texts):
        masked = inputs["input_ids"] == tokenizer.mask_id
        positions = np.argsort(~masked, axis=1, kind="stable")[:, : max(num_masks)]
        probabilities, ids = jax.device_get(_top_pieces(model, top_k, tokenizer.vocab_size, params, inputs, positions))
        for row, number in enumerate(numbers):
            if masked[row].sum() < num_masks[number]:
                longest = model.config.max_position_embeddings
                raise InputError(f"text {number + 1}: a [MASK] lies beyond {longest} tokens")
            answers.append(
                [
                    [
                        {"token": token, "id": int(i), "probability": float(p)}
                        for token, i, p in zip(
                            tokenizer.pieces(ids[row, n]), ids[row, n], probabilities[row, n], strict=True
                        )
                    ]
                    for n in range(num_masks[number])
                ]
            )
    return answers


def sentence_order(
    model: Albert, params: Any, tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]]
) -> list[dict[str, float]]:
    """For each pair of texts, the probability of each class of the sentence head, such as `in_order` and `swapped`.

    Raises:
      InputError: the model has no sentence head.
    """
    check_head(model, "sop_classifier")
    for number, pair in enumerate(pairs, 1):
        if isinstance(pair, str) or len(pair) != 2:
            raise InputError(
                f"pair {number}: expected two texts, got {pair!r:.60}; write one pair as [(first, second)]"
            )
    names = order_names(model)
    answers = []
    for inputs, numbers in _batches(model, tokenizer, [a for a, _ in pairs], [b for _, b in pairs]):
        rows = jax.device_get(jax.nn.softmax(_output(model, "sop_logits", params, inputs)))
        answers += [dict(zip(names, row.tolist(), strict=True)) for row in rows[: len(numbers)]]
    return answers


def order_names(model: Albert) -> tuple[str, ...]:
    """The classes of the sentence head, as answers name them."""
    return tuple(name.replace(" ", "_") for name in model.sentence_classes)


def mask_names(count: int) -> list[str]:
    """`[MASK]`, or `[MASK] 1`, `[MASK] 2`, ... if a text has several."""
    return [MASK] if count == 1 else [f"{MASK} {number}" for number in range(1, count + 1)]


def embed(
    model: Albert,
    params: Any,
    tokenizer: Tokenizer,
    texts: str | Sequence[str],
    pooling: Literal["mean", "pooler"] = "mean",
) -> np.ndarray:
    """One vector per text, float32 [texts, H]: the mean of the last hidden states, or the output of the pooler.

    Raises:
      InputError: `pooling` is "pooler" and the model has no pooler.
    """
    texts = as_list(texts)
    if pooling not in ("mean", "pooler"):
        raise InputError(f"pooling: unknown value {pooling!r}; choose one of mean, pooler")
    if pooling == "pooler":
        check_head(model, "pooler")
    name = "last_hidden_state" if pooling == "mean" else "pooler_output"
    vectors = [np.zeros((0, model.config.hidden_size), np.float32)]
    for inputs, numbers in _batches(model, tokenizer, texts):
        rows = _output(model, name, params, inputs).astype(jnp.float32)
        if pooling == "mean":
            weights = jnp.asarray(inputs["attention_mask"], jnp.float32)[..., None]
            rows = (rows * weights).sum(1) / jnp.maximum(weights.sum(1), 1)
        vectors.append(jax.device_get(rows)[: len(numbers)])
    return np.concatenate(vectors)


def generate(
    model: Albert,
    params: Any,
    tokenizer: Tokenizer,
    text: str,
    *,
    length: int = 0,
    temperature: float = 1.0,
    seed: int = 0,
) -> dict[str, Any]:
    """Append `length` masks to a text, then fill every [MASK] by iterated unmasking.

    In each turn a piece is sampled for every remaining mask, and the one that the model considers most probable is kept
    (after Ghazvininejad et al. 2019, "Mask-Predict", with one mask per turn and no re-masking).

    Args:
      model, params, tokenizer: as returned by `albert_jax.load`.
      text: input text; the result is lower-cased if the vocabulary is.
      length: number of pieces to append.
      temperature: sampling temperature; 0 takes the most probable piece.
      seed: the same seed gives the same text.

    Returns:
      `text`; `filled`, the new pieces in the order of their positions; `order`, the turn in which each was filled.

    Raises:
      InputError: there is no [MASK] and no `length`, the text is too long, or the model has no masked-LM head.
    """
    check_head(model, "predictions")
    longest = model.config.max_position_embeddings
    if not 0 <= temperature < math.inf:
        raise InputError(f"temperature must be finite and >= 0, got {temperature}")
    if not 0 <= length <= longest:
        raise InputError(f"length must be in [0, {longest}], the longest input of the model, got {length}")
    if not 0 <= seed < 2**32:
        raise InputError(f"seed must be in [0, 2**32), got {seed}")
    inputs = tokenizer(text + MASK * length, pad_to_multiple_of=min(LENGTH_MULTIPLE, longest))
    size = int(inputs["attention_mask"].sum())
    if size > longest:
        raise InputError(f"the text has {size} tokens including masks; the model takes {longest}")
    inputs = {name: value[:, :longest] for name, value in inputs.items()}
    ids = inputs["input_ids"].copy()
    positions = np.flatnonzero(ids[0] == tokenizer.mask_id)
    if len(positions) == 0:
        raise InputError("the text has no [MASK] to fill; add one, or give --length to continue the text")
    padded = np.pad(positions, (0, -len(positions) % MASKS_MULTIPLE), mode="edge")
    is_open = np.arange(len(padded)) < len(positions)
    order = np.zeros(len(padded), int)
    for turn in range(1, len(positions) + 1):
        key = jax.random.fold_in(jax.random.key(seed), turn)
        index, piece = jax.device_get(
            _next_piece(
                model,
                (*tokenizer.special_ids, *range(tokenizer.vocab_size, model.config.vocab_size)),
                params,
                inputs | {"input_ids": ids.copy()},
                padded[None],
                is_open.copy(),
                key,
                np.float32(temperature),
            )
        )
        ids[0, padded[index]], is_open[index], order[index] = piece, False, turn
    return {
        "text": tokenizer.decode(ids[0, :size]),
        "filled": tokenizer.pieces(ids[0, positions]),
        "order": order[: len(positions)].tolist(),
    }


def check_head(model: Albert, *heads: str) -> None:
    """Raise InputError unless the model has one of `heads`."""
    if not set(heads) & set(model.heads):
        present = ", ".join(model.heads) or "none"
        raise InputError(f"this needs a model with the head {' or '.join(heads)}; heads of this model: {present}")


def as_list(texts: str | Sequence[str]) -> list[str]:
    """A list of texts; a single text becomes a list of one."""
    return [texts] if isinstance(texts, str) else list(texts)


def apply(model: Albert, params: Any, inputs: Mapping[str, Any], **options: Any) -> dict[str, Array]:
    """The outputs of a model; call it inside jit."""
    outputs: Any = model.apply({"params": params}, **inputs, **options)
    return outputs


@partial(jax.jit, static_argnames=("model", "name"))
def _output(model: Albert, name: str, params: Any, inputs: dict[str, Array]) -> Array:
    return apply(model, params, inputs)[name]


@partial(jax.jit, static_argnames=("model", "top_k", "vocab_size"))
def _top_pieces(
    model: Albert, top_k: int, vocab_size: int, params: Any, inputs: dict[str, Array], positions: Array
) -> Any:
    """The highest probabilities and their ids, each [B, P, top_k], at `positions` [B, P]."""
    logits = apply(model, params, inputs, masked_lm_positions=positions)["prediction_logits"][..., :vocab_size]
    return jax.lax.top_k(jax.nn.softmax(logits), top_k)


@partial(jax.jit, static_argnames=("model", "excluded_ids"))
def _next_piece(
    model: Albert,
    excluded_ids: tuple[int, ...],
    params: Any,
    inputs: dict[str, Array],
    positions: Array,
    is_open: Array,
    key: Array,
    temperature: Array,
) -> tuple[Array, Array]:
    """Which of `positions` [1, P] to fill next, as an index, and the id of its piece."""
    logits = apply(model, params, inputs, masked_lm_positions=positions)["prediction_logits"][0]
    logits = logits.at[:, jnp.array(excluded_ids)].set(-jnp.inf)
    noise = jax.random.gumbel(key, logits.shape) * temperature
    pieces = jnp.argmax(logits + noise, axis=-1)
    confidence = jnp.take_along_axis(jax.nn.log_softmax(logits), pieces[:, None], axis=-1)[:, 0]
    index = jnp.argmax(jnp.where(is_open, confidence, -jnp.inf))
    return index, pieces[index]


def _batches(
    model: Albert, tokenizer: Tokenizer, texts: Sequence[str], pairs: Sequence[str] | None = None
) -> Iterator[tuple[dict[str, np.ndarray], range]]:
    """Batches of few different shapes, with the numbers of their texts; the last batch is padded with empty texts."""
    longest = model.config.max_position_embeddings
    size = min(BATCH_SIZE, len(texts))
    num_full = 0
    starts = range(0, len(texts), BATCH_SIZE)
    for start in tqdm(starts, unit="batch", disable=None if len(starts) > 1 else True):
        numbers = range(start, min(start + BATCH_SIZE, len(texts)))
        padding = [""] * (size - len(numbers))
        columns = [[column[i] for i in numbers] + padding for column in (texts, pairs) if column is not None]
        inputs = tokenizer(*columns, max_length=longest, pad_to_multiple_of=LENGTH_MULTIPLE)
        inputs = {name: value[:, :longest] for name, value in inputs.items()}
        num_full += int((inputs["attention_mask"].sum(1) == longest).sum())
        yield inputs, numbers
    if num_full:
        message = "%d of %d texts fill all %d tokens of the model's input; the ends of longer texts are ignored"
        log.warning(message, num_full, len(texts), longest)
