"""Figures of runs side by side: metrics during training, and final metrics against size and cost."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from albert_jax.reports.comparison import Comparison, comparison_table, mean_and_std
from albert_jax.reports.paired import paired_differences
from albert_jax.reports.run import draw_baselines
from albert_jax.reports.tables import QUANTITIES, metric_label, scores, value_columns
from albert_jax.training.run_folder import write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_BANDS = 6
"""With more rows, bands would hide each other; the last evaluation has an error bar instead."""

MAX_METRICS = 6
"""Maximum number of metrics in the figure of scores."""

AXES = {"parameters": ("parameters (M)", 1e-6), "flops": ("training FLOPs", 1.0), "seconds": ("training time (s)", 1.0)}
"""Horizontal axes of the figure of scores: value -> label, scale."""


def draw_curves(curves: pd.DataFrame, baselines: Mapping[str, Mapping[str, float]]) -> "Figure | None":
    """Draw the `scores` during training: the mean over a row's seeds, with a band of one standard deviation for a few rows.

    Args:
      curves: see `Comparison`.
      baselines: name -> metrics of a simple predictor, drawn as dotted lines.

    Returns:
      None if nothing was evaluated.
    """
    from matplotlib.figure import Figure

    names = [name.removeprefix("eval/") for name in curves if name.startswith("eval/") and "threshold" not in name]
    metrics = scores(names)
    if not metrics:
        return None
    x, label, scale = ("tokens", "tokens (M), with padding", 1e-6)
    if curves["tokens"].isna().any():
        x, label, scale = ("step", "step", 1)
    styles = _styles(curves)
    height = -(-len(metrics) // 2)
    figure = Figure(figsize=(11, 3.4 * height + 0.3 * len(styles) / 3), layout="constrained")
    grid = figure.subplots(height, 2, squeeze=False).flatten()
    for unused in grid[len(metrics) :]:
        unused.remove()
    for axes, name in zip(grid, metrics, strict=False):
        evaluated = curves.dropna(subset=f"eval/{name}")
        for row, records in evaluated.groupby("row", sort=False):
            points = records.groupby(x)[f"eval/{name}"].agg(["mean", "std"]).fillna(0.0)
            points.index = points.index * scale
            axes.plot(points.index, points["mean"], lw=1.5, ms=4, label=row, **styles[row])
            if len(styles) <= MAX_BANDS:
                low, high = points["mean"] - points["std"], points["mean"] + points["std"]
                axes.fill_between(points.index, low, high, color=styles[row]["color"], alpha=0.15, lw=0)
            else:
                last = points.iloc[-1]
                axes.errorbar(last.name, last["mean"], last["std"], capsize=2, color=styles[row]["color"])
        draw_baselines(axes, baselines, name)
        axes.set(xlabel=label, ylabel=f"{metric_label(name)}, held out")
        axes.grid(alpha=0.3)
    _add_legend(figure, grid[0], len(styles))
    return figure


def draw_scores(runs: pd.DataFrame, baselines: Mapping[str, Mapping[str, float]]) -> "Figure | None":
    """Draw the final metrics, without losses, against parameters, FLOPs and training time, with one standard deviation.

    Args:
      runs: see `load_runs`.
      baselines: name -> metrics of a simple predictor, drawn as dotted lines.

    Returns:
      None if no run is finished.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    metrics = [name for name in value_columns(runs) if name not in QUANTITIES and not name.endswith("_loss")]
    if not metrics:
        return None
    drawn, left_out = metrics[:MAX_METRICS], metrics[MAX_METRICS:]
    rows = mean_and_std(runs).dropna(subset=metrics, how="all")
    columns = {name: axis for name, axis in AXES.items() if name in rows}
    styles = _styles(runs)
    figure = Figure(figsize=(12, 3.2 * len(drawn) + 0.3 * len(rows) / 3), layout="constrained")
    grid = figure.subplots(len(drawn), len(columns), squeeze=False, sharey="row")
    for panels, metric in zip(grid, drawn, strict=True):
        for axes, (name, (label, scale)) in zip(panels, columns.items(), strict=True):
            across = rows[name] * scale
            for row, value in rows[metric].dropna().items():
                std = rows[f"{metric} std"].fillna(0.0)[row]
                axes.errorbar(across[row], value, std, ls="none", ms=5, capsize=2, label=row, **styles[row])
            draw_baselines(axes, baselines, metric)
            axes.set(xlabel=label)
            if across.max() > 3 * across.min() > 0:
                axes.set_xscale("log")
                axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
                axes.xaxis.set_minor_formatter(NullFormatter())
            axes.grid(alpha=0.3)
        panels[0].set_ylabel(f"{metric_label(metric)}, held out")
    if left_out:
        figure.suptitle(f"not drawn: {', '.join(left_out)}", fontsize=8)
    _add_legend(figure, grid[0][0], len(rows))
    return figure


def draw_differences(differences: pd.DataFrame, reference: str) -> "Figure | None":
    """Draw each row's difference from the reference row, with its 95 % confidence interval; gray if the interval contains 0.

    Args:
      differences: see `paired_differences`.
      reference: label of the reference row.

    Returns:
      None if no row has an interval.
    """
    from matplotlib.figure import Figure

    paired = differences.dropna(subset="low")
    if paired.empty:
        return None
    metrics, labels = paired["metric"].unique(), list(paired["row"].unique())
    figure = Figure(figsize=(2 + 3 * len(metrics), 1.2 + 0.3 * len(labels)), layout="constrained")
    grid = figure.subplots(1, len(metrics), squeeze=False, sharey=True)[0]
    for axes, metric in zip(grid, metrics, strict=True):
        for line in paired[paired["metric"] == metric].itertuples():
            color = "C0" if line.distinct else "gray"
            half = line.high - line.difference
            axes.errorbar(line.difference, labels.index(line.row), xerr=half, fmt="o", ms=5, capsize=3, color=color)
        axes.axvline(0, color="black", lw=1)
        axes.set(xlabel=metric_label(metric))
        axes.grid(alpha=0.3)
    grid[0].set_yticks(range(len(labels)), labels)
    grid[0].set_ylim(len(labels) - 0.5, -0.5)
    figure.suptitle(f"difference from '{reference}', with 95 % confidence interval", fontsize=10)
    return figure


def write(comparison: Comparison, folder: Path) -> list[Path]:
    """Write `table.md`, `table.csv` (a line per row), `runs.csv` (a line per run), `differences.csv`, and the figures.

    Returns:
      The tables, and the figures as `.png`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "table.md", comparison_table(comparison) + "\n")
    write_text(folder / "table.csv", mean_and_std(comparison.runs).to_csv())
    differences = paired_differences(comparison.runs, comparison.reference)
    write_text(folder / "differences.csv", differences.to_csv(index=False))
    write_text(folder / "runs.csv", comparison.runs.to_csv(index=False))
    figures = {
        "curves": draw_curves(comparison.curves, comparison.baselines),
        "differences": draw_differences(differences, comparison.reference),
        "scores": draw_scores(comparison.runs, comparison.baselines),
    }
    drawn = {name: figure for name, figure in figures.items() if figure is not None}
    for name, figure in drawn.items():
        for suffix in ("png", "svg"):
            figure.savefig(folder / f"{name}.{suffix}", dpi=150)
    names = ["table.md", "table.csv", "differences.csv", "runs.csv", *(f"{name}.png" for name in drawn)]
    return [folder / name for name in names]


def _styles(table: pd.DataFrame) -> dict[Any, dict[str, Any]]:
    """Row label -> color and marker; the marker changes after ten rows."""
    return {
        row: {"color": f"C{number % 10}", "marker": "os^D"[number // 10 % 4]}
        for number, row in enumerate(table["row"].unique())
    }


def _add_legend(figure: "Figure", axes: "Axes", rows: int) -> None:
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=min(4, rows), fontsize=8)
