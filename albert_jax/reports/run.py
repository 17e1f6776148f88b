"""The report of one run, or of several seeds of it: curves as a picture, the final metrics as a table."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from albert_jax.config import read_json
from albert_jax.reports.tables import markdown_table, metric_label, number
from albert_jax.training.run_folder import read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

log = logging.getLogger(__name__)


SPLITS = {"train": (", training", "-"), "eval": (", held out", "o--"), "diagnostics": ("", "o-")}
"""Prefix of names in `metrics.jsonl` -> end of the label, line style."""


def panels(names: set[str]) -> dict[str, list[str]]:
    """Group the metrics of a log into panels: title -> metrics.

    Each objective has a panel for its loss and one for its accuracy, and variants of a metric such as `f1` and `f1_PER` share
    one.  The training loss comes last.  Diagnostics of layers share a panel; gains over baselines have none, because the
    panel of the loss shows the baselines.
    """
    groups: dict[str, list[str]] = {}
    for name in sorted(name.removeprefix("eval/") for name in names if name.startswith("eval/")):
        if "threshold" not in name:
            panel = name if name.endswith(("_loss", "_accuracy")) else name.partition("_")[0]
            groups.setdefault(panel, []).append(name)
    for name in sorted((name for name in names if name.startswith("diagnostics/")), key=_natural):
        name = name.removeprefix("diagnostics/")
        if not name.startswith("gain"):
            groups.setdefault(name.partition("_layer_")[0], []).append(name)
    return groups | {"loss": ["loss"]}


def _natural(name: str) -> tuple[str, int]:
    """Sorts layer 10 after layer 9."""
    text, _, layer = name.partition("_layer_")
    return text, int(layer or 0)


def plot_curves(run_dir: Path) -> Path:
    """Draw `curves.png`: losses, metrics and diagnostics by step, in training and held out, and the baselines.

    Raises:
      InputError: the folder contains no log.
    """
    from matplotlib.figure import Figure

    records = read_metrics(run_dir)
    path = run_dir / "summary.json"
    baselines = read_json(path).get("baselines", {}) if path.exists() else {}
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
            for split, (label, style) in SPLITS.items():
                points = [(r["step"], r[f"{split}/{name}"]) for r in records if f"{split}/{name}" in r]
                if points:
                    steps, values = zip(*points, strict=True)
                    axes.plot(steps, values, style, color=color, ms=4, lw=1.2, label=f"{name.replace('_', ' ')}{label}")
            draw_baselines(axes, baselines, name, color)
        axes.set(xlabel="step", ylabel=metric_label(panel))
        axes.grid(alpha=0.3)
        if axes.lines:  # a log without records has no lines
            axes.legend(fontsize=7, ncols=1 + len(axes.lines) // 9)
    figure.suptitle(run_dir.name, fontsize=10)
    figure.savefig(run_dir / "curves.png", dpi=120)
    return run_dir / "curves.png"


def draw_baselines(
    axes: "Axes", baselines: Mapping[str, Mapping[str, float]], metric: str, color: str = "black"
) -> None:
    """Draw each baseline of a metric as a dotted line with its name."""
    axes.margins(y=0.1)  # space for the name of the highest
    for name, metrics in baselines.items():
        if metric in metrics:
            axes.axhline(metrics[metric], color=color, ls=":", lw=1)
            right_end = axes.get_yaxis_transform()  # x: fraction of the width, y: data
            axes.text(
                0.99, metrics[metric], name, transform=right_end, ha="right", va="bottom", fontsize=7, color=color
            )


def plot_depths(run_dir: Path, depths: Mapping[str, Mapping[str, float]], trained: int) -> Path:
    """Draw `depths.png`: the held-out losses and accuracies by the number of layers in evaluation."""
    from matplotlib.figure import Figure

    names = [name for name in next(iter(depths.values())) if name.startswith("mlm")]
    figure = Figure(figsize=(5 * len(names), 3.5), layout="constrained")
    layers = [int(text) for text in depths]
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False).flatten(), names, strict=True):
        axes.plot(layers, [metrics[name] for metrics in depths.values()], "o-")
        axes.axvline(trained, color="black", ls=":", lw=1, label="num_hidden_layers")
        axes.set_xscale("log", base=2)
        axes.set_xticks(layers, map(str, layers))
        axes.set(xlabel="layers in evaluation", ylabel=metric_label(name))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.suptitle(run_dir.name, fontsize=10)
    figure.savefig(run_dir / "depths.png", dpi=120)
    return run_dir / "depths.png"


def heldout_table(summary: dict[str, Any]) -> str:
    """Format held-out metrics beside the baselines as Markdown; for fine-tuning, the best and the last."""
    columns = {"model": summary["eval"]}
    if "best" in summary:
        columns = {f"best (step {summary['best']['step']})": summary["best"], "last": summary["eval"]}
    first, baselines = next(iter(columns.values())), summary.get("baselines", {})
    rows = []
    for name in summary["eval"]:
        beaten = _beaten(name, first[name], baselines, summary.get("examples", {}).get(name))
        cells = [number(values.get(name)) for values in columns.values()]
        rows.append([name, *cells, _values_of_baselines(baselines, name), ", ".join(beaten) or "-"])
    for split, metrics in summary.get("test", {}).items():
        rows += [[f"{split}: {name}", number(value), *["-"] * (len(columns) + 1)] for name, value in metrics.items()]
    return markdown_table(["held out", *columns, "baselines", "beats"], rows)


def summary_table(summary: dict[str, Any]) -> str:
    """Format the summary of a run as Markdown: held-out metrics, other depths, diagnostics and cost."""
    lines = ["", heldout_table(summary), ""]
    if depths := summary.get("depths"):
        names = list(next(iter(depths.values())))
        rows = [[layers, *(number(metrics[name]) for name in names)] for layers, metrics in depths.items()]
        lines += [markdown_table(["layers", *names], rows), ""]
    if "diagnostics" in summary:
        lines += [_diagnostics_sentence(summary["diagnostics"]), ""]
    if summary.get("degenerate"):
        lines += ["degenerate: the best parameters predict the same class for every input", ""]
    speed = f"{summary['seconds']:.0f} s, {summary['tokens_per_second']:,.0f} tokens/s"
    return "\n".join([*lines, f"{summary['steps']} steps, {summary['tokens']:,.0f} tokens, {speed}"])


def _values_of_baselines(baselines: Mapping[str, Mapping[str, float]], metric: str) -> str:
    values = [f"{name} {number(metrics[metric])}" for name, metrics in baselines.items() if metric in metrics]
    return ", ".join(values) or "-"


def _beaten(
    metric: str, value: float, baselines: Mapping[str, Mapping[str, float]], examples: float | None
) -> list[str]:
    """The names of the baselines that a model beats; an accuracy must be higher by two standard errors of the difference.

    All examples are counted as independent, and the two accuracies as well.
    """
    beaten = []
    for name, metrics in baselines.items():
        if metric in metrics:
            baseline, margin = metrics[metric], 0.0
            if examples and metric.endswith("_accuracy"):
                variance = value * (1 - value) + (0 if name == "chance" else baseline * (1 - baseline))
                margin = 2 * (variance / examples) ** 0.5
            if (baseline - value if metric.endswith("_loss") else value - baseline) > margin:
                beaten.append(name)
    return beaten


def _diagnostics_sentence(diagnostics: Mapping[str, float]) -> str:
    entropies = [value for name, value in diagnostics.items() if name.startswith("attention_entropy")]
    return (
        f"cosine similarity of hidden states {diagnostics['hidden_similarity']:.2f} (1: all positions are alike); "
        f"attention entropy / uniform {min(entropies):.2f} to {max(entropies):.2f} over the layers (1: uniform)"
    )


def seeds_table(summary: dict[str, Any]) -> str:
    """Format the best checkpoints of several seeds as Markdown: median, mean and standard deviation, best and worst."""
    rows = []
    tables = {"": summary["metrics"]} | {f"{split}: ": metrics for split, metrics in summary["test"].items()}
    for prefix, metrics in tables.items():
        for name, spread in metrics.items():
            mean = f"{number(spread['mean'])} ± {number(spread['std'])}"
            cells = [number(spread["median"]), mean, number(spread["best"]), number(spread["worst"])]
            rows.append([prefix + name, *cells, _values_of_baselines({} if prefix else summary["baselines"], name)])
    header = [f"{len(summary['seeds'])} seeds", "median", "mean ± std", "best", "worst", "baselines"]
    degenerate = ", ".join(f"seed {seed}" for seed in summary["degenerate"])
    note = f"degenerate, but included: {degenerate}" if degenerate else "none degenerate"
    return "\n".join(
        ["", markdown_table(header, rows), "", f"{note} (of seeds {', '.join(map(str, summary['seeds']))})"]
    )


def finish(run_dir: Path, summary: dict[str, Any], writes: bool) -> list[Path]:
    """Draw the figures of a completed run, log its table, and return the figures; only one of several processes `writes`."""
    figures = []
    if writes:
        figures.append(plot_curves(run_dir))
        if "depths" in summary:
            model = read_json(run_dir / "config.json")["config"]["model"]
            figures.append(plot_depths(run_dir, summary["depths"], model["num_hidden_layers"]))
    log.info("%s", summary_table(summary))
    log.info("curves, log, checkpoints and summary: %s", run_dir)
    return figures
