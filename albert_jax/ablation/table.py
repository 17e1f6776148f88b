"""The definition of an ablation table: a Python file that sets `ablation = Ablation(...)`, beside a folder `scales`.

A scale is a pretraining experiment; a row is a set of fields that it changes.
"""

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from albert_jax.config import InputError, run_file


class At(dict[str, Any]):
    """A value that depends on the scale; see `at`."""


def at(**values: Any) -> At:
    """A row's value at each scale: `at(tiny=32, small=128, paper=128)`."""
    return At(values)


@dataclass(frozen=True)
class Row:
    """A row of a table."""

    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Field -> value, or a value per scale (`at`)."""
    paper: Mapping[str, float] = field(default_factory=dict)
    """What the paper prints for this row: column -> value, such as `parameters (M)` or `average` (percent)."""
    start: str = ""
    """Label of an earlier row.  Training starts from its final parameters, adapted to this row's sharing and depth."""
    teacher: str = ""
    """Label of an earlier row, whose final parameters are the teacher (`distillation.teacher`) of the same seed."""
    share: float = 1.0
    """The share of the budget that this row gets, in (0, 1]."""

    def __str__(self) -> str:
        """The row in one line, for `--help`."""
        texts = [f"{name} = {value}" for name, value in self.overrides.items()]
        texts += [f"starts from '{self.start}'"] if self.start else []
        texts += [f"learns from '{self.teacher}'"] if self.teacher else []
        texts += [f"{self.share:g} of the budget"] if self.share != 1 else []
        return ", ".join(texts)


@dataclass(frozen=True)
class Ablation:
    """A table.  Budgets compare all rows with the first."""

    rows: Mapping[str, Row]
    """Label -> row."""
    base: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Scale -> fields of all rows that differ from the scale's experiment."""


RESERVED = {
    "train.num_train_steps": "the budget decides the steps; use 'share' for a part of it",
    "train.seed": "all rows have the same seeds",
    "run_dir": "it follows from the label",
    "init_from": "use 'start' to start from a row",
    "distillation.teacher": "use 'teacher' to learn from a row",
}
"""Fields that rows cannot set, and why."""


def slug(label: str) -> str:
    """The folder name of a row."""
    return re.sub(r"[^a-z0-9.]+", "-", label.lower()).strip("-")


def read_table(path: str) -> tuple[str, Ablation]:
    """Read a table's file; return its question (the first line of the docstring) and the table.

    Raises:
      InputError: the file does not exist or does not define a valid table.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file; see experiments/ablations/ for tables")
    table = run_file(path).get("ablation")
    if not isinstance(table, Ablation):
        raise InputError(f"{path}: must set 'ablation' to an Ablation")
    scales = scale_names(path)
    if not scales:
        raise InputError(f"{path}: no folder 'scales' beside it; copy or link experiments/ablations/scales")
    for name in table.base:
        if name not in scales:
            raise InputError(f"{path}: base: unknown scale '{name}'; choose one of {', '.join(scales)}")
    rows = table.rows
    if not (isinstance(rows, Mapping) and rows and all(isinstance(row, Row) for row in rows.values())):
        raise InputError(f"{path}: 'rows' must map labels to Row(...), with at least one row")
    labels: dict[str, str] = {}
    for label, row in rows.items():
        _check_row(path, label, row, labels)
        labels[slug(label)] = label
    return docstring(path).splitlines()[0], table


def _check_row(path: str, label: str, row: Row, earlier: Mapping[str, str]) -> None:
    """Check a row; `earlier` maps the slugs of the rows above to their labels."""
    name = slug(label)
    if not name:
        raise InputError(f"{path}: row '{label}': the label must contain a letter or digit")
    if name in earlier:
        raise InputError(f"{path}: rows '{earlier[name]}' and '{label}' have the same folder name '{name}'; rename one")
    if row.start and row.start not in earlier.values():
        raise InputError(f"{path}: row '{label}' starts from '{row.start}', which is not a row above it")
    if row.teacher and row.teacher not in earlier.values():
        raise InputError(f"{path}: row '{label}' learns from '{row.teacher}', which is not a row above it")
    if not 0 < row.share <= 1:
        raise InputError(f"{path}: row '{label}': share must be in (0, 1], got {row.share}")
    for field_name, reason in RESERVED.items():
        if field_name in row.overrides:
            raise InputError(f"{path}: row '{label}' sets {field_name}: {reason}")
    if not row.teacher and (settings := [key for key in row.overrides if key.startswith("distillation.")]):
        raise InputError(f"{path}: row '{label}' sets {settings[0]}, but has no teacher")


def scale_names(path: str) -> list[str]:
    """The scales of a table."""
    return sorted(file.stem for file in (Path(path).parent / "scales").glob("*.py"))


def docstring(path: str) -> str:
    """The docstring of a table's file, or the file's name if there is none."""
    return ast.get_docstring(ast.parse(Path(path).read_text())) or Path(path).stem


def table_help(path: str) -> str:
    """A table's docstring, rows and scales, for `--help`."""
    _, table = read_table(path)
    rows = [f"  {label}: {row}" for label, row in table.rows.items()]
    return "\n".join([docstring(path), "", "rows:", *rows, "", f"scales: {', '.join(scale_names(path))}"])
