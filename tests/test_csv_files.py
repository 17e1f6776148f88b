"""Rows of .csv: delimiters, quotes, and where reading resumes after a row that cannot be read."""

from pathlib import Path

import pytest

from albert_jax.config import InputError
from albert_jax.data.csv_files import csv_rows
from albert_jax.data.sources import DataConfig, documents
from albert_jax.finetuning.files import Source, TaskDataConfig
from albert_jax.finetuning.readers import records

ROWS = [["text", "n"], ["a, b", "1"], ["c;\td|", "2"]]


def rows(text: str) -> list[tuple[str, list[str] | InputError]]:
    return list(csv_rows((f"{number}", line) for number, line in enumerate(text.split("\n"), 1)))


@pytest.mark.parametrize("delimiter", ",;\t|")
@pytest.mark.parametrize("start", ["", "\n", " \n\n"])
def test_delimiters(tmp_path: Path, delimiter: str, start: str) -> None:
    """In text for pretraining and for tasks; the first line that is not blank has the names of the columns.

    Fails if the delimiter is searched in the first line, if there is one that tasks do not know, or in quotes.
    """
    text = start + "\n".join(delimiter.join(f'"{cell}"' for cell in row) for row in ROWS)
    assert [cells for _, cells in rows(text)] == ROWS
    path = tmp_path / "a.csv"
    path.write_text(text)
    assert list(documents(DataConfig(str(path)))) == ["a, b", "c;\td|"]
    found = [record for _, record in records(Source("train", (path,)), TaskDataConfig("text"))]
    assert found == [{"text": "a, b", "n": "1"}, {"text": "c;\td|", "n": "2"}]


@pytest.mark.parametrize(
    ("header", "cells"),
    [
        ('"a, b, c";d;e', ["a, b, c", "d", "e"]),
        ('"say ""x, y, z""";d', ['say "x, y, z"', "d"]),
        ("text (a, b)|n|label|x", ["text (a, b)", "n", "label", "x"]),
        ("text", ["text"]),
    ],
)
def test_delimiters_of_headers(header: str, cells: list[str]) -> None:
    """Fails if characters in quotes are counted, or if the first delimiter of the table is preferred to the most frequent."""
    assert rows(header) == [("1", cells)]


def test_malformed_quotes() -> None:
    """Rows are located at their first line.  Fails if the lines of a row that cannot be read are lost with it."""
    text = 'n,text\n1,"a\n\nb"\n2,"c" d\n3,"e\nf" g\n\n4,h\n5,"i\n6,j'
    found = rows(text)
    assert [(where, cells) for where, cells in found if not isinstance(cells, InputError)] == [
        ("1", ["n", "text"]),
        ("2", ["1", "a\n\nb"]),
        ("7", ['f" g']),
        ("9", ["4", "h"]),
        ("11", ["6", "j"]),
    ]
    assert [where for where, cells in found if isinstance(cells, InputError)] == ["5", "6", "10"]
    assert rows("") == []
