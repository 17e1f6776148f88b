"""Columns of tables: the text of a cell, and the option to name a column that does not exist."""

import difflib
import re
import shlex
from collections.abc import Iterable

from albert_jax.config import InputError
from albert_jax.finetuning.readers import Record

USUAL_NAMES = {
    "text_column": "text sentence content review tweet message comment body document question premise sentence1",
    "text_pair_column": "text_pair text2 sentence2 hypothesis question2 answer context",
    "label_column": "label labels class category target sentiment rating stars score label_text gold_label",
}
"""Field of the configuration -> what its column is usually called, for hints."""


def cell(where: str, record: Record, names: tuple[str, ...], option: str, is_label: bool = False) -> str:
    """The text in the first of the columns that exist; of a missing label, ""."""
    name = next((name for name in names if name in record), None)
    if name is None:
        columns = f"{where}: no column {' or '.join(names)}; the columns are {', '.join(record)}"
        raise InputError(f"{columns}{_hint(option, names[0], record) if option else ''}")
    value = record[name]
    if value is None or value != value:  # NaN: pandas writes it for missing cells
        if is_label:
            return ""
        raise InputError(f"{where}: {name} is None; expected text or a number")
    if (isinstance(value, bool) and not is_label) or not isinstance(value, (str, int, float)):
        raise InputError(f"{where}: {name} is {value!r:.40}; expected text or a number")
    return str(value)


def _hint(option: str, wanted: str, columns: Iterable[str]) -> str:
    """The option that names a column, with the column that is probably meant."""
    by_lower = {column.strip().lower(): column for column in columns}
    usual = ((name, 0.8) for name in USUAL_NAMES[option].split())
    for name, cutoff in ((wanted.lower(), 0.6), *usual):
        if likely := difflib.get_close_matches(name, by_lower, n=1, cutoff=cutoff):
            return f"; name it with --data.{option.replace('_', '-')} {shlex.quote(by_lower[likely[0]])}"
    return f"; name one of them with --data.{option.replace('_', '-')}"


def normalized(label: str) -> str:
    """A class without surrounding spaces, and a whole number without decimals: 1.0 is 1."""
    return re.sub(r"^(-?\d+)\.0+$", r"\1", label.strip())
