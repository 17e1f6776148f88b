"""Rows of tables in text, for pretraining text and for fine-tuning tasks."""

import csv
import re
from collections import deque
from collections.abc import Iterator

from albert_jax.config import InputError
from albert_jax.data.lines import MAX_LINE_BYTES

Row = tuple[str, list[str] | InputError]
"""`file:line` of the row's first line, and the cells or why they cannot be read."""

DELIMITERS = ",;\t|"
"""Characters that separate the cells of .csv."""


def csv_rows(lines: Iterator[tuple[str, str]]) -> Iterator[Row]:
    """The rows of .csv, quoted as in RFC 4180, without empty lines.

    The delimiter is the one that is most frequent outside of quotes in the first line that is not blank.  After a row
    with malformed quotes, reading resumes at the line after its first.

    Args:
      lines: `file:line` and text of each line.
    """
    again = deque([next((item for item in lines if item[1].strip()), ("", ""))])
    delimiter = max(DELIMITERS, key=re.sub('"[^"]*("|$)', "", again[0][1]).count)
    row: list[tuple[str, str]] = []

    def texts() -> Iterator[str]:
        while (item := again.popleft() if again else next(lines, None)) is not None:
            row.append(item)
            yield item[1] + "\n"

    csv.field_size_limit(MAX_LINE_BYTES)
    while True:
        try:
            for cells in csv.reader(texts(), strict=True, delimiter=delimiter):
                if cells:
                    yield row[0][0], cells
                row.clear()
            return
        except csv.Error as error:
            where, first = row[0]
            advice = "convert line ends of CR alone to LF" if "\r" in first else "correct the quotes"
            again.extendleft(reversed(row[1:]))
            row.clear()
            yield where, InputError(f"{where}: not CSV: {error}; {advice}")


def tsv_rows(lines: Iterator[tuple[str, str]]) -> Iterator[Row]:
    """The rows of .tsv, in which quotes are plain characters, as in GLUE's files."""
    return ((where, line.split("\t")) for where, line in lines)
