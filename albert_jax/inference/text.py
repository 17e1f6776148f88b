"""What a model says of text: masked words, sentence order, vectors, and text of its own.

Every task takes `(model, params, tokenizer)` as `exchange.load` returns them.
"""

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from tqdm import tqdm

from albert_jax.config import require
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.model.heads import Albert

log = logging.getLogger(__name__)

BATCH_SIZE = 32
BUCKET = 64
"""Lengths are rounded up to a multiple of this, so that few shapes are compiled."""


def fill_mask(
    model: Albert, params: Any, tokenizer: Tokenizer, texts: str | Sequence[str], top_k: int = 5
) -> list[list[list[dict[str, Any]]]]:
    """The `top_k` most probable pieces at each [MASK] of each text: `{"token", "id", "probability"}`, the best first.

    Raises:
      InputError: a text without [MASK], or with one beyond the longest input; a model without a masked-LM head.
    """
    _needs(model, "predictions", "fill-mask")
    texts = _several(texts)
    require(1 <= top_k <= tokenizer.vocab_size, f"top_k must be in [1, {tokenizer.vocab_size}], got {top_k}")
    for number, text in enumerate(texts, 1):
        require("[MASK]" in text, f"text {number} has no [MASK]: {text[:60]!r}")
    most = max((text.count("[MASK]") for text in texts), default=1)
    found = []
    for inputs, chosen in _batches(model, tokenizer, texts):
        masked = inputs["input_ids"] == tokenizer.mask_id
        for row, number in zip(masked, chosen, strict=False):
            lost = int(row.sum()) < texts[number].count("[MASK]")
            require(not lost, f"text {number + 1}: a [MASK] lies beyond {model.config.max_position_embeddings} tokens")
        positions = np.argsort(~masked, axis=1, kind="stable")[:, :most]
        probabilities, ids = jax.device_get(_top(model, top_k)(params, inputs, positions))
        for row in range(len(chosen)):
            found.append(
                [
                    [
                        {"token": tokenizer.pieces([i])[0], "id": int(i), "probability": float(p)}
                        for i, p in zip(ids[row, place], probabilities[row, place], strict=True)
                    ]
                    for place in range(int(masked[row].sum()))
                ]
            )
    return found


def sentence_order(
    model: Albert, params: Any, tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]]
) -> list[dict[str, float]]:
    """For each pair of texts, the probabilities that they are `in_order` and `swapped`.

    Raises:
      InputError: a model without a sentence-order head.
    """
    _needs(model, "sop_classifier", "sentence-order")
    for number, pair in enumerate(pairs, 1):
        is_pair = not isinstance(pair, str) and len(pair) == 2
        require(is_pair, f"pair {number}: expected two texts, got {pair!r:.60}; one pair is [(first, second)]")
    apply = _apply(model, ("sop_logits",))
    found = []
    for inputs, chosen in _batches(model, tokenizer, [a for a, _ in pairs], [b for _, b in pairs]):
        rows = jax.device_get(jax.nn.softmax(apply(params, inputs)["sop_logits"]))[: len(chosen)]
        found += [{"in_order": float(row[0]), "swapped": float(row[1])} for row in rows]
    return found


def embed(
    model: Albert,
    params: Any,
    tokenizer: Tokenizer,
    texts: str | Sequence[str],
    pooling: Literal["mean", "pooler"] = "mean",
) -> np.ndarray:
    """A vector a text, float32 [texts, H]: the mean of the last hidden states, or the pooler's output.

    Raises:
      InputError: a model without a pooler, where it is asked for.
    """
    texts = _several(texts)
    require(pooling in ("mean", "pooler"), f"pooling: one of 'mean', 'pooler', got {pooling!r}")
    if pooling == "pooler":
        _needs(model, "pooler", "pooled embeddings")
    name = "last_hidden_state" if pooling == "mean" else "pooler_output"
    apply = _apply(model, (name,))
    found = []
    for inputs, chosen in _batches(model, tokenizer, texts):
        rows = apply(params, inputs)[name].astype(jnp.float32)
        if pooling == "mean":
            weights = jnp.asarray(inputs["attention_mask"], jnp.float32)[..., None]
            rows = (rows * weights).sum(1) / jnp.maximum(weights.sum(1), 1)
        found.append(jax.device_get(rows)[: len(chosen)])
    return np.concatenate(found) if found else np.zeros((0, model.config.hidden_size), np.float32)


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
    """Fills every [MASK] of a text, and `length` more that continue it, one after another by iterated unmasking.

    At each turn a piece is sampled for every mask that is left, and the one that the model gives most probability is
    kept (after Ghazvininejad et al. 2019, "Mask-Predict", one mask a turn and without taking back).

    Args:
      model, params, tokenizer: as `load` returns them.
      text: small letters come out; special pieces are never sampled.
      length: pieces to continue by.
      temperature: of sampling; 0 takes the most probable piece.
      seed: the same seed gives the same text.

    Returns:
      `text`, the whole; `filled`, the pieces in their places' order; `order`, the turn in which each was filled.

    Raises:
      InputError: no [MASK] and no `length`; more than the longest input; a model without a masked-LM head.
    """
    _needs(model, "predictions", "generate")
    require(0 <= temperature < float("inf"), f"temperature must be finite and >= 0, got {temperature}")
    most = model.config.max_position_embeddings
    require(0 <= length <= most, f"length must be in [0, {most}], what the model takes, got {length}")
    require(0 <= seed < 2**32, f"seed must be in [0, 2**32), got {seed}")
    inputs = tokenizer(text + "[MASK]" * length, pad_to_multiple_of=min(BUCKET, most))
    size = int(inputs["attention_mask"].sum())
    require(size <= most, f"the text has {size} tokens with its masks, the model takes {most}")
    inputs = {name: value[:, :most] for name, value in inputs.items()}
    places = np.flatnonzero(inputs["input_ids"][0] == tokenizer.mask_id)
    require(len(places) > 0, "the text has no [MASK] to fill; or give --length to continue it")
    room = np.pad(places, (0, -len(places) % 8), mode="edge")  # few shapes to compile
    step = _unmask(model, tokenizer.special_ids)
    ids, is_open = inputs["input_ids"], np.arange(len(room)) < len(places)
    order = np.zeros(len(room), int)
    for turn in range(1, len(places) + 1):
        key = jax.random.fold_in(jax.random.key(seed), turn)
        place, piece = jax.device_get(
            step(params, inputs | {"input_ids": ids}, room[None], is_open, key, np.float32(temperature))
        )
        ids, is_open = ids.copy(), is_open.copy()
        ids[0, room[place]], is_open[place], order[place] = piece, False, turn
    filled = ids[0, places]
    return {
        "text": tokenizer.decode(ids[0, : int(inputs["attention_mask"].sum())]),
        "filled": tokenizer.pieces(filled),
        "order": order[: len(places)].tolist(),
    }


@functools.cache
def _apply(model: Albert, names: tuple[str, ...]) -> Callable[..., dict[str, Array]]:
    apply: Any = model.apply
    return jax.jit(lambda params, inputs: {name: apply({"params": params}, **inputs)[name] for name in names})


@functools.cache
def _top(model: Albert, top_k: int) -> Callable[..., Any]:
    apply: Any = model.apply

    def top(params: Any, inputs: dict[str, Array], positions: Array) -> Any:
        logits = apply({"params": params}, **inputs, masked_lm_positions=positions)["prediction_logits"]
        return jax.lax.top_k(jax.nn.softmax(logits), top_k)

    return jax.jit(top)


@functools.cache
def _unmask(model: Albert, never: tuple[int, ...]) -> Callable[..., Any]:
    """The place, of `positions` [1, P], that is filled next, and by which piece."""
    apply: Any = model.apply

    def step(
        params: Any, inputs: dict[str, Array], positions: Array, is_open: Array, key: Array, temperature: Array
    ) -> Any:
        logits = apply({"params": params}, **inputs, masked_lm_positions=positions)["prediction_logits"][0]
        logits = logits.at[:, jnp.array(never)].set(-jnp.inf)
        noise = jax.random.gumbel(key, logits.shape) * temperature
        pieces = jnp.argmax(logits + noise, axis=-1)
        sure = jnp.take_along_axis(jax.nn.log_softmax(logits), pieces[:, None], axis=-1)[:, 0]
        place = jnp.argmax(jnp.where(is_open, sure, -jnp.inf))
        return place, pieces[place]

    return jax.jit(step)


def _several(texts: str | Sequence[str]) -> Sequence[str]:
    return [texts] if isinstance(texts, str) else texts


def _needs(model: Albert, head: str, task: str) -> None:
    have = ", ".join(model.heads) or "none"
    require(head in model.heads, f"{task} needs the head {head}; this model's heads: {have}")


def _batches(
    model: Albert, tokenizer: Tokenizer, texts: Sequence[str], pairs: Sequence[str] | None = None
) -> Iterator[tuple[dict[str, np.ndarray], list[int]]]:
    """Inputs of a few shapes, and which texts they are; rows beyond those are padding."""
    most = model.config.max_position_embeddings
    size = min(BATCH_SIZE, len(texts))
    cut = 0
    for start in tqdm(
        range(0, len(texts), BATCH_SIZE), unit="batch", disable=None if len(texts) > BATCH_SIZE else True
    ):
        chosen = list(range(start, min(start + BATCH_SIZE, len(texts))))
        some = [texts[i] for i in chosen] + [""] * (size - len(chosen))
        others = None if pairs is None else [pairs[i] for i in chosen] + [""] * (size - len(chosen))
        inputs = tokenizer(some, others, max_length=most, pad_to_multiple_of=BUCKET)
        inputs = {name: value[:, :most] for name, value in inputs.items()}
        cut += int((inputs["attention_mask"].sum(1) == most).sum())
        yield inputs, chosen
    if cut:
        log.warning(
            "%d of %d texts fill all %d tokens that the model takes; longer ones lost their end", cut, len(texts), most
        )
