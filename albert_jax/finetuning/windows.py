"""Contexts longer than the input, read in overlapping windows; answers are located by characters."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from albert_jax.data.batches import Row
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.finetuning.family import LazyRows


class Context(NamedTuple):
    """A tokenized context."""

    text: str
    ids: np.ndarray
    ranges: np.ndarray
    """[tokens, 2]: characters [start, end) of each token."""


class Window(NamedTuple):
    """One input: a question and a part of its context."""

    example: int
    question: np.ndarray
    context: Context
    start: int
    """The window's first token in the context."""
    size: int
    best: np.ndarray
    """[size] bool: no other window has more context around this token."""
    answer: tuple[int, int] | None
    """First and last token of the answer in the context; None if it is not in this window."""


@dataclass(frozen=True)
class WindowRows(LazyRows[Window]):
    """The rows of some windows."""

    config: Any
    """The task's `QuestionAnsweringData`."""


def window_row(tokenizer: Tokenizer, window: Window) -> Row:
    """`[CLS] question [SEP] window [SEP]`; without an answer, `start` and `end` are the position of [CLS]."""
    row = tokenizer.join(window.question, window.context.ids[window.start : window.start + window.size])
    answer_mask, best = np.zeros_like(row["input_ids"]), np.zeros_like(row["input_ids"])
    first = len(window.question) + 2
    answer_mask[first : first + window.size] = 1
    best[first : first + window.size] = window.best
    start, end = (0, 0) if window.answer is None else (at - window.start + first for at in window.answer)
    labels = {"start": np.int32(start), "end": np.int32(end), "weights": np.float32(1)}
    return row | {"answer_mask": answer_mask, "best": best} | labels


def windows(example: int, question: np.ndarray, context: Context, room: int, stride: int) -> Iterator[Window]:
    """The windows of a context: each has at most `room` tokens and starts `stride` tokens after the one before."""
    total = len(context.ids)
    starts = [0]
    while starts[-1] + room < total:
        starts.append(starts[-1] + min(room, stride))
    sizes = [min(room, total - start) for start in starts]
    at = np.arange(total)
    # google-research/albert squad_utils.py, _check_is_max_context: the shorter side counts; ties go to the longer window.
    scores = np.full((len(starts), total), -np.inf)
    for number, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        inside = slice(start, start + size)
        scores[number, inside] = np.minimum(at[inside] - start, start + size - 1 - at[inside]) + 0.01 * size
    owner = scores.argmax(0) if total else np.zeros(0, int)
    for number, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        yield Window(example, question, context, start, size, owner[start : start + size] == number, None)


def locate(context: Context, answer: str, start: int) -> tuple[int, int] | None:
    """First and last token of an answer that begins at character `start`.

    None if the context does not have the answer there, or no token covers it.
    """
    end = start + len(answer)
    if not answer.strip() or context.text[start:end] != answer:
        return None
    tokens = np.flatnonzero((context.ranges[:, 0] < end) & (context.ranges[:, 1] > start))
    return (int(tokens[0]), int(tokens[-1])) if len(tokens) else None


def tokenize(tokenizer: Tokenizer, text: str) -> Context:
    """Tokenize a context, with the characters of each token."""
    ids, ranges = tokenizer.encode_with_offsets(text)
    return Context(text, np.array(ids, np.int32), np.array(ranges, np.int32).reshape(-1, 2))
