"""A table of experiments as data: a file that sets `ablation = Ablation(...)`, with a folder `scales` beside it.

A scale is a pretraining experiment, a row the fields that it changes of it.
"""

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from albert_jax.config import InputError, require, run_file


@dataclass(frozen=True)
class At:
    """A value that differs by scale; `at` makes it."""

    values: Mapping[str, Any]


def at(**values: Any) -> At:
    """A row's value at each scale: `at(tiny=32, small=128, paper=128)`."""
    return At(values)


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Field -> value, or what `at` gives."""
    paper: Mapping[str, float] = field(default_factory=dict)
    """What the paper prints of this row, by column: `parameters (M)`, `MLM`, `SOP`, `NSP`, `average` and others (percent)."""
    start: str = ""
    """The row above whose finished parameters this one starts from, shared and repeated as this one needs them."""
    share: float = 1.0
    """Of the budget."""


@dataclass(frozen=True)
class Ablation:
    """A table.  The first row is the one that budgets compare with."""

    rows: Mapping[str, Row]
    """Label -> row."""
    base: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Scale -> fields of all rows, where the table is not of the scale's own model."""


NOT_A_ROWS = {
    "train.num_train_steps": "its steps come from the budget; 'share' gives it a part of it",
    "train.seed": "all rows have the same",
    "run_dir": "it is made of the label",
    "init_from": "'start' names a row to start from",
}
"""Fields that rows may not set, and why."""


def slug(label: str) -> str:
    """A label as the name of a folder."""
    return re.sub(r"[^a-z0-9.]+", "-", label.lower()).strip("-")


def read_table(path: str) -> tuple[str, Ablation]:
    """The question (first line of the docstring) and the table of an experiment file.

    Raises:
      InputError: no such file, or it sets no `ablation`.
    """
    require(Path(path).is_file(), f"{path}: no such table; those that come along are in experiments/ablations/")
    found = run_file(path).get("ablation")
    if not isinstance(found, Ablation):
        raise InputError(f"{path}: it must set 'ablation' to an Ablation")
    rows, sizes = found.rows, scales(path)
    proper = isinstance(rows, Mapping) and rows and all(isinstance(row, Row) for row in rows.values())
    require(bool(proper), f"{path}: 'rows' must be a table of label -> Row(...), with one row at least")
    require(bool(sizes), f"{path}: no scales beside it; copy or link experiments/ablations/scales to where it is")
    for name in found.base:
        require(name in sizes, f"{path}: base: no scale '{name}'; there are {', '.join(sizes)}")
    slugs: dict[str, str] = {}
    for label in rows:
        other = slugs.setdefault(slug(label), label)
        told = f"{path}: rows '{other}' and '{label}' would share a folder; letters and digits of labels must differ"
        require(other == label and slug(label) != "", told)
    doc = ast.get_docstring(ast.parse(Path(path).read_text())) or Path(path).stem
    for label, row in found.rows.items():
        earlier = list(found.rows)[: list(found.rows).index(label)]
        require(
            row.start in ("", *earlier), f"{path}: row '{label}' starts from '{row.start}', which is no row above it"
        )
        require(0 < row.share <= 1, f"{path}: row '{label}': share must be in (0, 1], got {row.share}")
        for name, way in NOT_A_ROWS.items():
            require(name not in row.overrides, f"{path}: row '{label}' sets {name}: {way}")
    return doc.splitlines()[0], found


def scales(path: str) -> list[str]:
    """The scales that a table can be run at."""
    return sorted(file.stem for file in (Path(path).parent / "scales").glob("*.py"))


def explain(path: str) -> str:
    """What a table asks, its rows and the scales it can be run at; for `--help`."""
    question, table = read_table(path)
    lines = [f"  {label}: {_overrides(row)}" for label, row in table.rows.items()]
    doc = ast.get_docstring(ast.parse(Path(path).read_text())) or question
    told = (
        "Any field of the scale's experiment can be overridden, for all rows; albert-jax ablate --help has the options."
    )
    return "\n".join([doc, "", "rows:", *lines, "", f"scales: {', '.join(scales(path))}", told])


def _overrides(row: Row) -> str:
    values = {
        key: " | ".join(f"{scale} {one}" for scale, one in value.values.items()) if isinstance(value, At) else value
        for key, value in row.overrides.items()
    }
    texts = [f"{key} = {value}" for key, value in values.items()]
    texts += [f"starts from '{row.start}'"] * bool(row.start) + [f"{row.share:g} of the budget"] * (row.share != 1)
    return ", ".join(texts)
