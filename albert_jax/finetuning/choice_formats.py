"""Questions with options, in the formats of several data sets: RACE, MCTest, SWAG, ARC, CommonsenseQA and similar ones."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from albert_jax.config import InputError
from albert_jax.finetuning import readers
from albert_jax.finetuning.columns import normalized
from albert_jax.finetuning.files import Source, TaskDataConfig, answers_file
from albert_jax.finetuning.readers import Record

LETTERS = "ABCDEFGHIJ"
LEVELS = ("middle", "high")
"""RACE's parts."""

PASSAGE = ("article", "passage", "context", "sent1", "ctx_a", "premise")
QUESTION = ("question", "question_stem", "stem", "sent2", "ctx_b")
OPTIONS = ("options", "choices", "endings")
OPTION = re.compile(r"(?:ending|option|choice|answer)_?(\d+|[a-j])", re.IGNORECASE)
"""A column with one option, such as SWAG's."""
ANSWERS = {"answerKey": 1, "answer": 0, "label": 0}
"""Field with the answer -> the number of the first option, if the answer is a number and the options' labels are not.

ARC counts from 1, SWAG and most data sets on the hub from 0.
"""


class Example(NamedTuple):
    """One question."""

    id: str
    passage: str
    question: str
    options: tuple[str, ...]
    answer: int | None
    part: str
    """Part of the data set; accuracy is also reported for each part."""

    @property
    def is_labeled(self) -> bool:
        """Whether the answer is known."""
        return self.answer is not None


def questions(source: Source, config: TaskDataConfig) -> Iterator[Example]:
    """The questions of a split.

    Raises:
      InputError: a record is in none of the formats, or its answer is not one of the options.
    """
    tables = tuple(path for path in source.paths if readers.file_kind(path) == "tsv")
    for path in tables:
        yield from _mctest(path, config)
    per_passage: Counter[str] = Counter()
    rest = replace(source, paths=tuple(path for path in source.paths if path not in tables))
    for where, record in readers.records(rest, config):
        try:
            yield from _passage(where, record) if "questions" in record else [_question(where, record, per_passage)]
        except (KeyError, TypeError, AttributeError) as error:
            problem = f"no '{error.args[0]}'" if isinstance(error, KeyError) else "a field has the wrong type"
            if "questions" in record or "article" in record:
                fields = "RACE's format (article, questions, options, answers)"
            else:
                fields = "a known format (question, options or choices or ending0 ..., answer or answerKey or label)"
            raise InputError(f"{where}: not in {fields}: {problem}") from None


def _passage(where: str, record: Record) -> Iterator[Example]:
    """A passage with its questions: a file of RACE, a JSON line, or a TFDS record."""
    name = str(record.get("id") or record.get("example_id") or where)
    questions, options = record["questions"], record["options"]
    answers = record.get("answers") or [None] * len(questions)
    if not len(questions) == len(options) == len(answers):
        sizes = f"{len(questions)} questions, {len(options)} lists of options, {len(answers)} answers"
        raise InputError(f"{where}: {sizes}; their numbers must be equal")
    for number, (question, choices, answer) in enumerate(zip(questions, options, answers, strict=True)):
        texts, labels = _options(where, choices)
        position = _position(where, answer, texts, labels, 0)
        yield _example(f"{name}.{number}", where, record["article"], question, texts, position, _level(name, where))


def _question(where: str, record: Record, per_passage: Counter[str]) -> Example:
    """One question in a record.

    Args:
      per_passage: number of questions so far of each passage.  On the hub, those of a passage have one `example_id`.
    """
    name = record.get("id")
    if "example_id" in record:
        passage_id = str(record["example_id"])
        name = f"{passage_id}.{per_passage[passage_id]}"
        per_passage[passage_id] += 1
    name = str(where if name in (None, "") else name)
    question = record
    if isinstance(record.get("question"), dict):  # ARC and CommonsenseQA, as published: stem and choices in `question`
        question = record["question"]
    text = _first(question, QUESTION)
    passage = next((record[field] for field in PASSAGE if field in record), None)
    if passage is None:  # the question takes the place of the passage, an option that of the question
        passage, text = text, ""
    field = next((field for field in ANSWERS if field in record), "label")
    first_number = ANSWERS[field]
    columns = {match[1].upper(): name for name in record if (match := OPTION.fullmatch(name))}
    if not columns and {"A", "B"} <= record.keys() and not any(field in question for field in OPTIONS):
        columns = {letter: letter for letter in LETTERS if letter in record}
    options: Sequence[Any]
    labels: Sequence[Any] = []
    if columns and all(map(str.isdecimal, columns)):
        options = [record[columns[number]] for number in sorted(columns, key=int)]
        first_number = min(map(int, columns)) if field == "answer" else first_number
    elif columns:
        options, labels = _options(where, {letter: record[name] for letter, name in columns.items()})
    else:
        options, labels = _options(where, _first(question, OPTIONS))
    position = _position(where, record.get(field), options, labels, first_number)
    return _example(
        name, where, passage, text, options, position, _level(name, where) if "article" in record else "all"
    )


def _first(record: Record, fields: Sequence[str]) -> Any:
    """The value of the first field that exists."""
    return record[next((field for field in fields if field in record), fields[0])]


def _options(where: str, options: Any) -> tuple[Sequence[Any], Sequence[Any]]:
    """The texts of the options, and their labels if the file has any."""
    labels: Sequence[Any] = []
    if isinstance(options, dict) and options and all(len(key) == 1 for key in options):  # by letter
        options, labels = [options[key] for key in sorted(options)], sorted(options)
    elif isinstance(options, dict):  # lists by field, as on the hub
        options, labels = options["text"], options.get("label", [])
    if not isinstance(options, (list, tuple)):
        raise InputError(f"{where}: the options are {options!r:.40}; expected a list of texts")
    if options and all(isinstance(option, dict) for option in options):
        labels = [option["label"] for option in options if "label" in option]
        options = [option["text"] for option in options]
    return options, labels


def _position(where: str, answer: Any, options: Sequence[Any], labels: Sequence[Any], first_number: int) -> int | None:
    """The position of the answer, given as a label, a letter, a number or the text of an option; None if it is hidden.

    Args:
      labels: empty: letters.
      first_number: the number of the first option, if the labels are letters.

    Raises:
      InputError: the answer is no option, or is the text of one and the number of a different one.
    """
    text = "" if answer is None else normalized(str(answer)).upper()
    if text in ("", "-1"):
        return None
    names = [str(label).strip().upper() for label in labels or LETTERS[: len(options)]]
    letters = list(LETTERS[: len(names)])
    numbers = [str(number) for number in range(first_number, first_number + len(names))]
    known = (names, letters) if any(map(str.isdecimal, names)) else (names, letters, numbers)
    position = next((row.index(text) for row in known if text in row), None)
    if (isinstance(answer, str) or position is None) and options.count(str(answer)) == 1:
        by_text = options.index(str(answer))
        if position not in (None, by_text):
            raise InputError(
                f"{where}: answer {answer!r} is an option and the number of a different one; give its letter"
            )
        position = by_text
    if position is None:
        raise InputError(f"{where}: answer {answer!r} is not one of {', '.join(names)}")
    return position


def _level(name: str, where: str) -> str:
    """RACE's part, from the id or the folder (of a TFDS data set, its configuration)."""
    return next((level for text in (name, Path(where).parent.name) for level in LEVELS if level in text), "all")


def _mctest(path: Path, config: TaskDataConfig) -> Iterator[Example]:
    """MCTest: each line has a story and four questions; the .ans file has a line of four letters per story."""
    answers_path, stories = answers_file(path), list(readers.text_lines(path, config))
    answers: list[list[str | None]] = [[None] * 4 for _ in stories]
    if answers_path.is_file():
        answers = [list(line.split()) for _, line in readers.text_lines(answers_path, config)]
    if len(answers) != len(stories):
        raise InputError(f"{answers_path}: {len(answers)} lines, but {path} has {len(stories)}; they must be equal")
    for number, ((where, line), letters) in enumerate(zip(stories, answers, strict=True), 1):
        cells = line.split("\t")
        if len(cells) != 23:
            raise InputError(
                f"{where}: expected 23 columns (id, properties, story, 4 x (question, 4 options)), found {len(cells)}"
            )
        if len(letters) != 4:
            raise InputError(f"{answers_path}:{number}: expected 4 answers, found {len(letters)}")
        story = cells[2].replace("\\newline", "\n").replace("\\tab", "\t")
        for at, letter in enumerate(letters):
            question, *options = cells[3 + 5 * at : 8 + 5 * at]
            question = question.removeprefix("one: ").removeprefix("multiple: ")
            position = _position(where, letter, options, [], 0)
            yield _example(f"{cells[0]}.{at}", where, story, question, options, position, path.name.split(".")[0])


def _example(id_: str, where: str, passage: Any, question: Any, options: Any, answer: int | None, part: str) -> Example:
    """One question, checked; TypeError if a text is not a string."""
    if not all(isinstance(text, str) for text in [passage, question, *options]):
        raise TypeError
    if not 2 <= len(options) <= len(LETTERS):
        raise InputError(f"{where}: expected 2 to {len(LETTERS)} options, found {len(options)}")
    return Example(id_, passage, question, tuple(options), answer, part)
