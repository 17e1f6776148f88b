"""Figures of a comparison: curves with bands over seeds, and scores against parameters, FLOPs and time."""

from typing import TYPE_CHECKING, Any

import numpy as np

from albert_jax.reports.comparison import COLUMNS, Comparison, Line, markdown, runs_csv, table_csv
from albert_jax.training.run_folder import write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PRETRAINING_CURVES = {
    "masked-LM loss (nats)": "mlm_loss",
    "masked-LM accuracy": "mlm_accuracy",
    "SOP accuracy": "sop_accuracy",
    "NSP accuracy": "nsp_accuracy",
}
"""Axis label -> metric, where runs are of pretraining."""

BAND = 0.1
"""Opacity of a band: a dozen of them lie over each other."""

MOST_SCORES = 6
"""Metrics in the figure of scores, from the first."""


def _colors(comparison: Comparison) -> dict[str, Any]:
    from matplotlib import colormaps

    count = len(comparison.lines)
    palette = colormaps["tab10"].colors if count <= 10 else colormaps["tab20"].colors  # type: ignore[attr-defined]
    return {line.label: palette[number % len(palette)] for number, line in enumerate(comparison.lines)}


def draw_curves(comparison: Comparison) -> "Figure | None":
    """Held-out metrics as training goes on: the mean of a row's seeds, and a band of one standard deviation to each side; None without any."""
    from matplotlib.figure import Figure

    names = {name for line in comparison.lines for runs in line.records for r in runs for name in r}
    others = {name: name for name in sorted(n.removeprefix("eval/") for n in names) if f"eval/{name}" in names}
    wanted = PRETRAINING_CURVES if "eval/mlm_loss" in names else others
    drawn = {label: name for label, name in wanted.items() if f"eval/{name}" in names and "threshold" not in name}
    if not drawn:
        return None
    rows = -(-len(drawn) // 2)
    figure = Figure(figsize=(11, 3.4 * rows + 0.3 * len(comparison.lines) / 3), layout="constrained")
    grid = figure.subplots(rows, 2, squeeze=False).flatten()
    for axes in grid[len(drawn) :]:
        axes.remove()
    colors = _colors(comparison)
    for axes, (label, name) in zip(grid, drawn.items(), strict=False):
        for line in comparison.lines:
            steps, mean, std = _points(line, f"eval/{name}")
            if steps.size:
                axes.plot(steps, mean, "o-", ms=3, lw=1.3, color=colors[line.label], label=line.label)
                axes.fill_between(steps, mean - std, mean + std, color=colors[line.label], alpha=BAND, lw=0)
        if name in comparison.baseline:
            axes.axhline(comparison.baseline[name], color="black", ls=":", lw=1, label="no model")
        axes.set(
            xlabel="tokens, padding counted" if wanted is PRETRAINING_CURVES else "step", ylabel=f"{label}, held out"
        )
        axes.grid(alpha=0.3)
    _legend(figure, grid[0], len(comparison.lines))
    return figure


def _points(line: Line, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How far, mean and standard deviation over the runs that have that step."""
    found: dict[float, list[float]] = {}
    for records in line.records:
        for record in records:
            if name in record:
                found.setdefault(record["at"], []).append(record[name])
    steps = sorted(found)
    spread = [np.std(found[step], ddof=1) if len(found[step]) > 1 else 0.0 for step in steps]
    return np.array(steps), np.array([np.mean(found[step]) for step in steps]), np.array(spread)


def draw_scores(comparison: Comparison) -> "Figure | None":
    """The main metrics against parameters, FLOPs and time of training, with one standard deviation; None without a finished run."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    finished = [line for line in comparison.lines if any(line.results)]
    others = [name for name in comparison.columns if name not in COLUMNS]
    main = ("mlm_accuracy", "sop_accuracy", "nsp_accuracy")
    names = [name for name in main if name in comparison.columns] + others
    if not finished or not names:
        return None
    names, left = names[:MOST_SCORES], names[MOST_SCORES:]
    across = {
        "parameters (M)": lambda line: (line.mean("parameters") or 0) / 1e6,
        "training FLOPs": lambda line: line.mean("flops") or 0,
        "training time (s)": lambda line: line.mean("seconds") or 0,
    }
    figure = Figure(figsize=(12, 3.2 * len(names) + 0.3 * len(finished) / 3), layout="constrained")
    grid = figure.subplots(len(names), len(across), squeeze=False, sharey="row")
    colors = _colors(comparison)
    for row, name in zip(grid, names, strict=True):
        for axes, (label, of) in zip(row, across.items(), strict=True):
            for line in finished:
                mean, std = line.mean(name), line.std(name) or 0.0
                if mean is not None:
                    axes.errorbar(
                        of(line), mean, yerr=std, fmt="o", ms=5, capsize=2, color=colors[line.label], label=line.label
                    )
            if name in comparison.baseline:
                axes.axhline(comparison.baseline[name], color="black", ls=":", lw=1, label="no model")
            axes.set(xlabel=label)
            values = [of(line) for line in finished]
            if max(values) > 3 * min(values) > 0:
                axes.set_xscale("log")
                axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
                axes.xaxis.set_minor_formatter(NullFormatter())
            axes.grid(alpha=0.3)
        row[0].set_ylabel(f"{name.replace('_', ' ')}, held out")
    if left:
        figure.suptitle(f"not drawn: {', '.join(left)}", fontsize=8)
    _legend(figure, grid[0][0], len(finished))
    return figure


def _legend(figure: "Figure", axes: "Axes", lines: int) -> None:
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=min(4, lines + 1), fontsize=8)


def write(comparison: Comparison) -> Comparison:
    """Writes `table.md`, `table.csv`, `runs.csv`, `curves` and `scores` (PNG and SVG) into the comparison's folder."""
    folder = comparison.folder
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "table.md", markdown(comparison) + "\n")
    write_text(folder / "table.csv", table_csv(comparison))
    write_text(folder / "runs.csv", runs_csv(comparison))
    for name, figure in (("curves", draw_curves(comparison)), ("scores", draw_scores(comparison))):
        if figure is not None:
            for suffix in ("png", "svg"):
                figure.savefig(folder / f"{name}.{suffix}", dpi=150)
    return comparison
