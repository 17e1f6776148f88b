"""The tuning runs of an ablation table: their folders, losses and table."""

import contextlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from albert_jax.config import read_json
from albert_jax.reports.tables import markdown_table
from albert_jax.training.run_folder import FAILURE

Values = dict[str, float]
"""Field -> value."""
Grid = Mapping[str, Sequence[float]]
"""Field -> the values to try."""


def grid_points(grid: Grid) -> list[Values]:
    """All combinations of the values of a grid; none if the grid has no fields."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())] if grid else []


def short_name(field: str) -> str:
    """The last part of a dotted field."""
    return field.rpartition(".")[2]


def values_text(values: Values) -> str:
    """Values in a few words: `learning_rate 0.001`."""
    return ", ".join(f"{short_name(field)} {value:g}" for field, value in values.items())


def folder_name(values: Values) -> str:
    """The folder of a tuning run, in its row's folder."""
    return "-".join(["tune", *(f"{short_name(field)}-{value}" for field, value in values.items())])


def tuning_loss(folder: Path) -> float | None:
    """The last held-out MLM loss of a tuning run; infinity if it diverged, None if it has not ended."""
    if (folder / "summary.json").exists():
        return read_json(folder / "summary.json")["eval"]["mlm_loss"]
    with contextlib.suppress(FileNotFoundError):  # a new attempt removes the file
        if json.loads((folder / FAILURE).read_text())["diverged"]:
            return math.inf
    return None


def tuning_table(table: Path, plan: Mapping[str, Any]) -> str:
    """Format the losses of a table's tuning runs as Markdown; the selected values are bold.

    Args:
      table: the table's folder.
      plan: the content of its `ablation.json`.

    Returns:
      An empty string if nothing was tuned.
    """
    rows = [row for row in plan["rows"] if row.get("grid")]
    if not rows:
        return ""
    points = [point for row in rows for point in grid_points(row["grid"])]
    columns = list(
        dict.fromkeys(map(values_text, sorted(points, key=lambda point: (list(point), list(point.values())))))
    )
    lines, failures = [], []
    for row in rows:
        cells = dict.fromkeys(columns, "")
        for point in grid_points(row["grid"]):
            folder = table / row["folder"] / folder_name(point)
            loss = tuning_loss(folder)
            text = "" if loss is None else "diverged" if loss == math.inf else f"{loss:.3f}"
            if (folder / FAILURE).exists():
                text = text or "failed"
                failures.append(f"{text}: {row['label']}, {values_text(point)}: {read_json(folder / FAILURE)['error']}")
            cells[values_text(point)] = f"**{text}**" if point == row["tuned"] else text
        lines.append([row["label"], *cells.values()])
    edges = [
        f"{row['label']} ({values_text({field: value})})"
        for row in rows
        for field, value in row["tuned"].items()
        if value in (min(row["grid"][field]), max(row["grid"][field]))
    ]
    parts = ["Tuning: held-out MLM loss of runs that are not counted; the selected values are bold."]
    parts.append(markdown_table(["", *columns], lines))
    if edges:
        parts.append(f"Selected at the edge of the grid, so a wider grid may give a better value: {'; '.join(edges)}.")
    if failures:
        parts.append("\n".join(failures))
    return "\n\n".join(parts)
