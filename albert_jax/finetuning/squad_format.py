"""Questions in SQuAD's format and its variants: nested as in SQuAD, or one question per record as on the hub."""

import hashlib
import logging
import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from albert_jax.config import InputError
from albert_jax.finetuning.files import Source, TaskDataConfig
from albert_jax.finetuning.readers import Record, records

log = logging.getLogger(__name__)

NOWHERE = -1
"""The position of an answer that is not in its context."""


class Example(NamedTuple):
    """One question."""

    id: str
    question: str
    context: str
    answers: tuple[tuple[str, int], ...]
    """Text and first character of each; empty if there is no answer."""
    is_labeled: bool
    """Whether the file has answers."""


def questions(source: Source, config: TaskDataConfig) -> Iterator[Example]:
    """The questions of a split; at the end, logs how many ids were generated and how many answers were searched for.

    Raises:
      InputError: a record is in another format.
    """
    generated: Counter[str] = Counter()
    misplaced: list[str] = []
    unplaced = 0
    for where, record in records(source, config):
        place = "its first question"
        try:
            for qa, context in _nested(record):
                question, given = qa["question"], _answers(qa)
                answers = tuple(find(context, text, start) for text, start in given)
                id_ = _id(qa, question, context, generated)
                starts = [(start, at) for (_, start), (_, at) in zip(given, answers, strict=True) if at != NOWHERE]
                unplaced += any(start is None for start, _ in starts)
                if any(start not in (None, at) for start, at in starts):
                    misplaced.append(id_)
                is_labeled = qa.get("answers") is not None
                yield Example(id_, question, context, () if qa.get("is_impossible") else answers, is_labeled)
                place = f"the question after {id_}"
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            problem = f"no '{error.args[0]}'" if isinstance(error, KeyError) else "a field has the wrong type"
            raise InputError(f"{where}: {place} is not in SQuAD's format: {problem}") from None
    if generated:
        log.info("%s: %d questions have no id; ids are generated from their texts", source.split, generated.total())
    if unplaced:
        message = "%s: answers of %d questions have no position; their first occurrence is used"
        log.info(message, source.split, unplaced)
    if misplaced:
        message = "%s: answers of %d questions are not at their position, the first: %s; the nearest occurrence is used"
        log.warning(message, source.split, len(misplaced), misplaced[0])


def _nested(record: Record, context: Any = None) -> Iterator[tuple[Record, str]]:
    """The questions in a file, an article or a paragraph with their contexts; or the record itself."""
    context = record.get("context", context)
    for level in ("data", "paragraphs", "qas"):
        if level in record:
            for inner in record[level]:
                yield from _nested(inner, context)
            return
    if context is None:
        raise KeyError("context")
    if not isinstance(context, str) or not isinstance(record["question"], str):
        raise TypeError
    yield record, context


def _answers(qa: Record) -> list[tuple[str, int | None]]:
    """Text of each answer, and its position if the file has it."""
    answers = qa.get("answers") or []
    if isinstance(answers, dict) and not isinstance(answers.get("text"), str):  # lists by field, as on the hub
        answers = [dict(zip(answers, values, strict=True)) for values in zip(*answers.values(), strict=True)]
    answers = [answers] if isinstance(answers, (str, dict)) else answers
    pairs = [
        (answer, None) if isinstance(answer, str) else (answer["text"], answer.get("answer_start"))
        for answer in answers
    ]
    if not all(isinstance(text, str) for text, _ in pairs):
        raise TypeError
    return [(text, None if start is None else _whole(start)) for text, start in pairs]


def _whole(number: Any) -> int:
    """A whole number, also if it was saved as text or with decimals."""
    value = float(number) if isinstance(number, (int, float, str)) and not isinstance(number, bool) else math.nan
    if not value.is_integer():
        raise TypeError
    return int(value)


def _id(qa: Record, question: str, context: str, generated: Counter[str]) -> str:
    """The id as text; without one, the hash of question and context, with a number if it is not the first."""
    id_ = qa.get("id", qa.get("qid"))
    if id_ is None or id_ == "":
        digest = hashlib.sha256(f"{context}\0{question}".encode()).hexdigest()[:16]
        generated[digest] += 1
        return digest if generated[digest] == 1 else f"{digest}-{generated[digest]}"
    if not isinstance(id_, (str, int)) or isinstance(id_, bool):
        raise TypeError
    return str(id_)


def find(context: str, answer: str, start: int | None) -> tuple[str, int]:
    """An answer and its position: as given, or the nearest occurrence, of whole words if there are any."""
    if start is not None and start >= 0 and context.startswith(answer, start):
        return answer, start
    for text in (answer, answer.strip()):
        found = [match.start() for match in re.finditer(f"(?={re.escape(text)})", context)]
        whole = [
            at for at in found if not context[at - 1 : at].isalnum() and not context[at + len(text) :][:1].isalnum()
        ]
        if found:
            return text, min(whole or found, key=lambda at: abs(at - (start or 0)))
    return answer, NOWHERE
