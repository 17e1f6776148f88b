"""The report of one run, or of several seeds of it: curves as a picture, the final metrics as a table."""

import logging
from pathlib import Path
from typing import Any

from albert_jax.config import read_json
from albert_jax.reports.tables import markdown_table, metric_label, number
from albert_jax.training.run_folder import read_metrics

log = logging.getLogger(__name__)


def panels(names: set[str]) -> dict[str, list[str]]:
    """Group the metrics of a log into panels: title -> metrics.

    Each objective has a panel for its loss and one for its accuracy, and variants of a metric such as `f1` and `f1_PER` share
    one.  The training loss comes last.
    """
    groups: dict[str, list[str]] = {}
    for name in sorted(name.removeprefix("eval/") for name in names if name.startswith("eval/")):
        if "threshold" not in name:
            panel = name if name.endswith(("_loss", "_accuracy")) else name.partition("_")[0]
            groups.setdefault(panel, []).append(name)
    return groups | {"loss": ["loss"]}


def plot_curves(run_dir: Path) -> Path:
    """Draw `curves.png`: losses and metrics by step, in training and held out, and the trivial baseline.

    Raises:
      InputError: the folder contains no log.
    """
    from matplotlib.figure import Figure

    records = read_metrics(run_dir)
    baseline = read_json(run_dir / "summary.json")["baseline"] if (run_dir / "summary.json").exists() else {}
    groups = panels({name for record in records for name in record})
    columns = 2 if len(groups) <= 4 else 3
    rows = -(-len(groups) // columns)
    figure = Figure(figsize=(5 * columns, 3.5 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for unused in grid[len(groups) :]:
        unused.remove()
    for axes, (panel, metrics) in zip(grid, groups.items(), strict=False):
        for index, name in enumerate(metrics):
            color = f"C{index}"
            for split, label, style in (("train", "training", "-"), ("eval", "held out", "o--")):
                points = [(r["step"], r[f"{split}/{name}"]) for r in records if f"{split}/{name}" in r]
                if points:
                    steps, values = zip(*points, strict=True)
                    axes.plot(steps, values, style, color=color, ms=4, lw=1.2, label=f"{name}, {label}")
            if name in baseline:
                axes.axhline(baseline[name], color=color, ls=":", lw=1, label=f"{name}, baseline")
        axes.set(xlabel="step", ylabel=metric_label(panel))
        axes.grid(alpha=0.3)
        if axes.lines:  # a log without records has no lines
            axes.legend(fontsize=7)
    figure.suptitle(run_dir.name, fontsize=10)
    path = run_dir / "curves.png"
    figure.savefig(path, dpi=120)
    return path


def summary_table(summary: dict[str, Any]) -> str:
    """Format a run's held-out metrics beside the trivial baseline as Markdown; for fine-tuning, the best and the last."""
    columns = {"model": summary["eval"]}
    if "best" in summary:
        columns = {f"best (step {summary['best']['step']})": summary["best"], "last": summary["eval"]}
    columns["baseline"] = summary["baseline"]
    rows = [[name, *(number(values.get(name)) for values in columns.values())] for name in summary["eval"]]
    for split, metrics in summary.get("test", {}).items():
        rows += [[f"{split}: {name}", number(value), *["-"] * (len(columns) - 1)] for name, value in metrics.items()]
    lines = ["", markdown_table(["held out", *columns], rows), ""]
    if summary.get("degenerate"):
        lines += ["degenerate: the best parameters predict the same class for every input", ""]
    speed = f"{summary['seconds']:.0f} s, {summary['tokens_per_second']:,.0f} tokens/s"
    return "\n".join([*lines, f"{summary['steps']} steps, {summary['tokens']:,.0f} tokens, {speed}"])


def seeds_table(summary: dict[str, Any]) -> str:
    """Format the best checkpoints of several seeds as Markdown: median, mean and standard deviation, best and worst."""
    rows = []
    tables = {"": summary["metrics"]} | {f"{split}: ": metrics for split, metrics in summary["test"].items()}
    for prefix, metrics in tables.items():
        for name, spread in metrics.items():
            mean = f"{number(spread['mean'])} ± {number(spread['std'])}"
            cells = [number(spread["median"]), mean, number(spread["best"]), number(spread["worst"])]
            rows.append([prefix + name, *cells, number(None if prefix else summary["baseline"].get(name))])
    header = [f"{len(summary['seeds'])} seeds", "median", "mean ± std", "best", "worst", "baseline"]
    degenerate = ", ".join(f"seed {seed}" for seed in summary["degenerate"])
    note = f"degenerate, but included: {degenerate}" if degenerate else "none degenerate"
    return "\n".join(
        ["", markdown_table(header, rows), "", f"{note} (of seeds {', '.join(map(str, summary['seeds']))})"]
    )


def finish(run_dir: Path, summary: dict[str, Any], writes: bool) -> None:
    """Draw the curves of a completed run and log its table; only one of several processes `writes` files."""
    if writes:
        plot_curves(run_dir)
    log.info("%s", summary_table(summary))
    log.info("curves, log, checkpoints and summary: %s", run_dir)
