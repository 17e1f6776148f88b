"""Sentences in CoNLL columns: one word per line with its tag, a blank line after each sentence.

The columns of words and tags are detected from the first lines of a file, because files differ: CoNLL-2003 has the word
first and the tag last, GermEval and CoNLL-U number the words, CoNLL-2012 begins with the document.
"""

import itertools
import logging
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from albert_jax.config import InputError
from albert_jax.finetuning.files import TaskDataConfig
from albert_jax.finetuning.metrics import split_tag
from albert_jax.finetuning.readers import text_lines

log = logging.getLogger(__name__)

NUMBER = re.compile(r"\d+\.?")
"""The number of a word."""
NO_WORD = re.compile(r"\d+[-.]\d+")
"""The number of a contraction (1-2) or an omitted word (1.1) in CoNLL-U."""
NUMBERS = re.compile(r"-?\d+([-.,:]\d*)?")
"""A cell of a column of numbers, such as the first character of each word."""
DIGIT = re.compile(r"\d")
PLACEHOLDER = re.compile(r"[\d_*-]*")
"""A cell of a column that holds no tags."""
DOCUMENT = "-DOCSTART-"
COMMENT = re.compile(r"#(\s|$|(begin|end) document\b)")
"""Beginning of a comment.  `#begin document` is CoNLL-2012's."""
HEADER = (
    ("token", "tokens", "word", "words", "form", "text"),
    ("tag", "tags", "label", "labels", "ner", "ner_tag", "ner_tags", "entity", "pos", "upos"),
)
"""Usual names of the columns of words and of tags."""
WORD_ADVICE = "name the column of the words with --data.word-column"
SAMPLE = 1000
"""Number of lines from which the columns are detected."""


class Sentence(NamedTuple):
    """Words, and their tags as in the file."""

    where: str
    """`file:line` of the first word."""
    words: list[str]
    tags: list[str]
    """Empty if the file has none."""


class Columns(NamedTuple):
    """The layout of a file.  Columns count from 0."""

    width: int
    """Number of columns."""
    number: int | None
    """The column that numbers the words."""
    word: int
    tag: int | None
    """None if the file has no tags."""
    tags: frozenset[str]
    """Tags in the first lines."""


def sentences(
    path: Path, config: TaskDataConfig, word_column: str, tag_column: str, hidden: bool = False
) -> Iterator[Sentence]:
    """The sentences of a file.

    Args:
      word_column, tag_column: numbers of columns, from 1; empty: detect them.
      hidden: the file may have no column of this number for the tags.

    Raises:
      InputError: the columns cannot be detected; a line has other columns; a word or a tag is missing.
    """
    located = text_lines(path, config)
    sample = list(itertools.islice(located, SAMPLE))
    columns = detect(sample, word_column, tag_column, hidden)
    sentence = Sentence("", [], [])
    comments = 0
    is_first = True
    for where, line in itertools.chain(sample, located):
        cells = cells_of(line)
        if not cells:
            if sentence.words:
                yield sentence
            sentence = Sentence("", [], [])
            continue
        if cells[0] == DOCUMENT:
            continue
        if cells[0].startswith("#") and _is_comment(line, cells, columns):
            comments += 1
            continue
        if len(cells) != columns.width:
            expected = f"expected {columns.width} columns, as in the lines before"
            advice = "; a comment begins with '# '" if cells[0].startswith("#") else ""
            raise InputError(f"{where}: {expected}, found {len(cells)}{advice}")
        if is_first and _is_header(cells, columns):
            log.info("%s: the header line is skipped", where)
            is_first = False
            continue
        is_first = False
        if columns.number is not None and not NUMBER.fullmatch(cells[columns.number]):
            if NO_WORD.fullmatch(cells[columns.number]):
                continue  # CoNLL-U: the parts of a contraction follow as words, an omitted word is not in the text
            raise InputError(f"{where}: {cells[columns.number]!r} is not the number of a word, as in the lines before")
        if not cells[columns.word]:
            raise InputError(f"{where}: no word in column {columns.word + 1}")
        if not sentence.words:
            sentence = Sentence(where, [], [])
        sentence.words.append(cells[columns.word])
        if columns.tag is not None:
            if not cells[columns.tag]:
                raise InputError(f"{where}: no tag in column {columns.tag + 1}")
            sentence.tags.append(cells[columns.tag])
    if sentence.words:
        yield sentence
    if comments:
        log.info("%s: %d comment lines", path, comments)


def cells_of(line: str) -> list[str]:
    """The cells of a line: between tabs if it has any, else between spaces.  A no-break space is part of a word.

    Empty cells at the end do not count.
    """
    if not line.strip():
        return []
    line = line.rstrip(" \t")
    return [cell.strip(" ") for cell in line.split("\t")] if "\t" in line else re.split(" +", line.strip(" "))


def _is_comment(line: str, cells: Sequence[str], columns: Columns) -> bool:
    """Whether a line that begins with # is a comment, and not the word # or a hashtag."""
    is_comment = COMMENT.match(line.lstrip())
    if columns.number == 0 or (is_comment and len(cells) != columns.width):
        return True
    if not is_comment or columns.tag is None:
        return False
    return cells[columns.tag] not in columns.tags and not is_tag(cells[columns.tag])


def _is_header(cells: Sequence[str], columns: Columns) -> bool:
    """Whether a line has names of columns, such as Token and Tag."""
    if columns.tag is None:
        return False
    return all(cells[at].lower() in names for at, names in zip((columns.word, columns.tag), HEADER, strict=True))


def detect(sample: Iterable[tuple[str, str]], word_column: str, tag_column: str, hidden: bool = False) -> Columns:
    """The columns of a file, from its first lines.

    The words are in the first column that holds neither tags nor numbers nor ids with digits.  The tags are in the last column.
    If the words are numbered and several columns can hold tags, `tag_column` must name one.

    Raises:
      InputError: there is no column of words or tags, or several are possible.
    """
    rows = [(where, cells) for where, line in sample if (cells := cells_of(line)) and cells[0] != DOCUMENT]
    rows = [row for row in rows if not row[1][0].startswith("#")] or rows
    if not rows:
        return Columns(1, None, 0, None, frozenset())
    where = rows[0][0]
    count = Counter(len(cells) for _, cells in rows).most_common(1)[0][0]
    values = list(zip(*(cells for _, cells in rows if len(cells) == count), strict=True))
    without_tags = hidden and tag_column.isdecimal() and int(tag_column) > count
    named = _column(where, "word_column", word_column, count)
    tag = None if without_tags else _column(where, "tag_column", tag_column, count)
    numbers, numbered, tagged, ids = (
        [number for number, column in enumerate(values) if mostly(condition, column)]
        for condition in (NUMBERS.fullmatch, NUMBER.fullmatch, is_tag, DIGIT.search)
    )
    free = [number for number in range(count) if number not in (tag, *numbers, *tagged)]
    free = [number for number in free if number not in ids] or free  # chemical names may be the only words
    word = named
    if word is None:
        if not free and numbers:
            problem = f"{where}: column {numbers[0] + 1} holds numbers, and no other column holds words"
            raise InputError(f"{problem}; {WORD_ADVICE}")
        word = free[0] if free else 0
    index = next((number for number in numbered if number < word), None)
    if tag is None and not without_tags:
        others = [number for number in range(count) if number not in (word, *numbers)]
        others = others or [number for number in numbers if number > word]
        tag = _tag_column(where, values, others, word, is_numbered=index is not None)
    if named is None and len(values[word]) > 1 == len(set(values[word])) and set(free) - {word, tag}:
        raise InputError(f"{where}: column {word + 1} holds only {values[word][0]!r}; {WORD_ADVICE}")
    return Columns(count, index, word, tag, frozenset() if tag is None else frozenset(values[tag]))


def is_tag(text: str) -> bool:
    """Whether a text is O or a tag with a prefix."""
    return bool(split_tag(text)[0])


def mostly(condition: Callable[[str], Any], values: Collection[str]) -> bool:
    """Whether the condition holds for more than half of the values.  Not all, because a file may have a malformed line."""
    return sum(bool(condition(value)) for value in values) * 2 > len(values)


def _column(where: str, option: str, value: str, count: int) -> int | None:
    """The column that the configuration names, from 0."""
    if value and not (value.isdecimal() and 1 <= int(value) <= count):
        raise InputError(f"{where}: data.{option} {value!r} is not a column; give a number from 1 to {count}")
    return int(value) - 1 if value else None


def _tag_column(
    where: str, values: Sequence[tuple[str, ...]], others: list[int], word: int, is_numbered: bool
) -> int | None:
    """The column of the tags among the `others`; None if there are none."""
    advice = "name the column of the tags with --data.tag-column"
    tagged = [number for number in others if mostly(is_tag, values[number])]
    candidates = tagged or others
    if is_numbered and len(candidates) > 1:
        columns = ", ".join(str(number + 1) for number in candidates)
        raise InputError(f"{where}: several columns can hold the tags ({columns}); {advice}")
    if candidates and not tagged:
        column = values[candidates[-1]]
        if mostly(PLACEHOLDER.fullmatch, column) or len(set(column)) > len(set(values[word])):
            raise InputError(f"{where}: the last column ({column[0]!r}) does not hold tags; {advice}")
    return candidates[-1] if candidates else None
