"""Tuning: try several values of optimizer settings in every row, and select each row's best."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from albert_jax.ablation.manifest import LOCK, Plan, PlannedRow, load_plan
from albert_jax.config import InputError, flat, from_dict, override, read_json, to_dict
from albert_jax.pretraining.run import PretrainConfig
from albert_jax.reports.tuning_runs import grid_points, tuning_loss
from albert_jax.training import run_folder


def read_grid(options: Sequence[str]) -> dict[str, list[str]]:
    """Read the options `--tune FIELD=VALUE,VALUE`: field -> the texts of its values.

    Only settings of the optimizer can be tuned, because they change neither the model nor the data nor the cost of a step.
    If a row sets the field itself, the selected value overrides it.

    Raises:
      InputError: an option is malformed.
    """
    grid: dict[str, list[str]] = {}
    for option in options:
        name, _, text = option.partition("=")
        name, values = name.strip().removeprefix("--").replace("-", "_"), [value.strip() for value in text.split(",")]
        if len(values) < 2:
            raise InputError(f"--tune {option}: expected FIELD=VALUE,VALUE such as optim.learning_rate=2e-3,5e-3,1e-2")
        if name in grid:
            raise InputError(f"--tune {name} is given twice; list all values in one option")
        if not name.startswith("optim."):
            raise InputError(
                f"--tune {name}: only numbers of the section optim can be tuned; make rows of other fields"
            )
        grid[name] = values
    return grid


def row_grid(texts: Mapping[str, Sequence[str]], label: str, config: PretrainConfig) -> dict[str, list[float]]:
    """Convert the values of a grid to the types of their fields, and check every combination in a row.

    Raises:
      InputError: the row has no such field, such as one of a different optimizer; or a value is invalid.
    """
    grid: dict[str, list[float]] = {}
    try:
        for name, values in texts.items():
            grid[name] = [_value(config, name, text) for text in values]
            if len(set(grid[name])) < len(values):
                raise InputError(f"{name}: a value is listed twice")
        for point in grid_points(grid):
            from_dict(PretrainConfig, override(to_dict(config), point))
    except InputError as error:
        raise InputError(f"--tune: row '{label}': {error}") from None
    return grid


def _value(config: PretrainConfig, name: str, text: str) -> float:
    value = flat(to_dict(from_dict(PretrainConfig, override(to_dict(config), {name: text})))).get(name)
    if not isinstance(value, int | float):
        raise InputError(f"{name}: only numbers can be tuned; make rows of other fields")
    return value


def select(run_dir: str, label: str) -> Plan:
    """Select the values of a row with the lowest held-out MLM loss, if all its tuning runs have ended.

    The selection is stored in `ablation.json` and never changes.  A diverged run counts as worst; if all diverged, nothing is
    selected.  A run that failed otherwise has not ended: the next launch tries it again.

    Returns:
      The stored plan.
    """
    with run_folder.file_lock(Path(run_dir), LOCK, wait=True):
        plan = load_plan(run_dir)
        row = plan.row(label)
        points = grid_points(row.grid)
        losses = [tuning_loss(Path(plan.run_config(row, point).run_dir)) for point in points]
        ended = [loss for loss in losses if loss is not None]
        if row.tuned or len(ended) < len(points) or min(ended, default=math.inf) == math.inf:
            return plan
        tuned = replace(row, tuned=points[ended.index(min(ended))])
        plan = replace(plan, rows=tuple(tuned if one.label == label else one for one in plan.rows))
        plan.save()
        return plan


def check_selected(plan: Plan, row: PlannedRow) -> str:
    """Say why a row cannot run yet; empty if it can.

    Raises:
      InputError: all tuning runs of the row diverged.
    """
    if not row.grid or row.tuned:
        return ""
    losses = {
        (folder := Path(plan.run_config(row, point).run_dir)): tuning_loss(folder) for point in grid_points(row.grid)
    }
    if all(loss == math.inf for loss in losses.values()):
        error = read_json(next(iter(losses)) / run_folder.FAILURE)["error"]
        raise InputError(f"all tuning runs diverged; the first: {error}")
    unfinished = [folder for folder, loss in losses.items() if loss is None]
    # The list is empty if a different launch has just ended the last run; the next run of the row then selects.
    where = f" ({unfinished[0]})" if unfinished else ""
    return f"the tuning of '{row.label}' is not finished{where}"
