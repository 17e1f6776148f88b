"""Questions in SQuAD's format and its variants: nested as in SQuAD, or one question per record as on the hub."""

import hashlib
import json
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

IS_IMPOSSIBLE = {"true": True, "1": True, "false": False, "0": False, "none": False, "": False}
"""Values of `is_impossible`, as text in lower case; a table has no other."""
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
                question, given = qa["question"], _answers(qa, context)
                answers = tuple(find(context, text, start) for text, start in given)
                id_ = _id(qa, question, context, generated)
                starts = [(start, at) for (_, start), (_, at) in zip(given, answers, strict=True) if at != NOWHERE]
                unplaced += any(start is None for start, _ in starts)
                if any(start not in (None, at) for start, at in starts):
                    misplaced.append(id_)
                is_labeled = _given(qa) is not None
                yield Example(id_, question, context, () if _is_impossible(qa) else answers, is_labeled)
                place = f"the question after {id_}"
        except InputError as error:
            raise InputError(f"{where}: {place} is not in SQuAD's format: {error}") from None
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
    for field, value in (("context", context), ("question", record["question"])):
        if not isinstance(value, str):
            raise _wrong(field, value, "text")
    yield record, context


def _wrong(field: str, value: Any, expected: str) -> InputError:
    """The error of a field of the wrong type."""
    return InputError(f"{field} is {value!r:.40}; expected {expected}")


def _given(qa: Record) -> Any:
    """The answers as the file has them; None if they are hidden."""
    return qa.get("answers", qa.get("answer"))


def _answers(qa: Record, context: str) -> list[tuple[str, int | None]]:
    """Text of each answer, and its position if the file has it.  A blank text is no answer."""
    answers = _given(qa) or []
    if isinstance(answers, str) and answers.startswith(("{", "[")) and answers not in context:  # a cell of a table
        try:
            answers = json.loads(answers)
        except ValueError:
            raise _wrong("answers", answers, "JSON or plain text") from None
    if isinstance(answers, dict) and not isinstance(answers.get("text"), str):  # lists by field, as on the hub
        answers = [dict(zip(answers, values, strict=True)) for values in zip(*answers.values(), strict=True)]
    if isinstance(answers, str):
        answers = [{"text": answers, "answer_start": qa.get("answer_start")}]
    answers = [answers] if isinstance(answers, dict) else answers
    pairs = [
        (answer, None) if isinstance(answer, str) else (answer["text"], answer.get("answer_start"))
        for answer in answers
    ]
    for text, _ in pairs:
        if not isinstance(text, str):
            raise _wrong("the text of an answer", text, "text")
    return [(text, _start(start)) for text, start in pairs if text.strip()]


def _start(value: Any) -> int | None:
    """A position, also if it was saved as text or with decimals; None if it is missing."""
    if value is None or value == "" or value != value:  # NaN: pandas writes it for missing cells
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not number.is_integer():
        raise _wrong("answer_start", value, "a whole number")
    return int(number)


def _is_impossible(qa: Record) -> bool:
    value = qa.get("is_impossible")
    if (text := str(value).strip().lower().removesuffix(".0")) not in IS_IMPOSSIBLE:
        raise _wrong("is_impossible", value, "true or false")
    return IS_IMPOSSIBLE[text]


def _id(qa: Record, question: str, context: str, generated: Counter[str]) -> str:
    """The id as text; without one, the hash of question and context, with a number if it is not the first."""
    id_ = qa.get("id", qa.get("qid"))
    if id_ is None or id_ == "":
        digest = hashlib.sha256(f"{context}\0{question}".encode()).hexdigest()[:16]
        generated[digest] += 1
        return digest if generated[digest] == 1 else f"{digest}-{generated[digest]}"
    if isinstance(id_, float) and id_.is_integer():
        id_ = int(id_)
    if not isinstance(id_, (str, int)) or isinstance(id_, bool):
        raise _wrong("id", id_, "text or a whole number")
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
