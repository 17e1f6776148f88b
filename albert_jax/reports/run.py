"""What a run came to, for people: curves as a picture, the last numbers as a table."""

import logging
from pathlib import Path
from typing import Any

from albert_jax.config import read_json
from albert_jax.reports.tables import number
from albert_jax.training.run_folder import read_metrics

log = logging.getLogger(__name__)

PRETRAINING_PANELS: dict[str, tuple[str, ...]] = {
    "loss (nats)": ("mlm_loss", "loss"),
    "masked-LM accuracy": ("mlm_accuracy",),
    "sentence loss (nats)": ("sop_loss", "nsp_loss"),
    "sentence accuracy": ("sop_accuracy", "nsp_accuracy"),
}
"""Axis label -> the metrics in that panel."""


def panels(records: list[dict[str, float]]) -> dict[str, tuple[str, ...]]:
    """The panels for a run's log: pretraining's, or the training loss and a panel for each kind of dev metric."""
    names = {name for record in records for name in record}
    if "train/mlm_loss" in names:
        return PRETRAINING_PANELS
    found: dict[str, tuple[str, ...]] = {"training loss": ("loss",)}
    for name in sorted(name.removeprefix("eval/") for name in names if name.startswith("eval/")):
        if "threshold" not in name:
            kind = name.split("_")[0]  # f1 with f1_PER, accuracy_matched with accuracy_mismatched
            found[kind] = (*found.get(kind, ()), name)
    return found


def plot_curves(run_dir: Path) -> Path:
    """Draws `curves.png`: losses and metrics by step, in training and held out, with what needs no model.

    Raises:
      InputError: no log there.
    """
    from matplotlib.figure import Figure

    records = read_metrics(run_dir)
    summary = read_json(run_dir / "summary.json") if (run_dir / "summary.json").exists() else {}
    drawn = panels(records)
    lines = -(-len(drawn) // 2)
    figure = Figure(figsize=(10, 3.5 * lines), layout="constrained")
    grid = figure.subplots(lines, 2, squeeze=False).flatten()
    for axes in grid[len(drawn) :]:
        axes.remove()
    for axes, (label, metrics) in zip(grid, drawn.items(), strict=False):
        for index, name in enumerate(metrics):
            color = f"C{index}"
            for split, style in (("train", "-"), ("eval", "o--")):
                points = [(r["step"], r[f"{split}/{name}"]) for r in records if f"{split}/{name}" in r]
                if points:
                    axes.plot(
                        *zip(*points, strict=True),
                        style,
                        color=color,
                        ms=4,
                        lw=1.2,
                        label=f"{name} ({'held out' if split == 'eval' else split})",
                    )
            if name in summary.get("baseline", {}):
                axes.axhline(summary["baseline"][name], color=color, ls=":", lw=1, label=f"{name} (no model)")
        axes.set(xlabel="step", ylabel=label)
        axes.grid(alpha=0.3)
        if axes.lines:  # a log may be lost with its host
            axes.legend(fontsize=7)
    figure.suptitle(run_dir.name, fontsize=10)
    path = run_dir / "curves.png"
    figure.savefig(path, dpi=120)
    return path


def table(summary: dict[str, Any]) -> str:
    """The held-out metrics beside those that need no model, as Markdown; of fine-tuning the best and the last."""
    columns = {"model": summary["eval"]}
    if "best" in summary:
        columns = {f"best (step {summary['best']['step']})": summary["best"], "last": summary["eval"]}
    columns["no model"] = summary["baseline"]
    rows = [f"| {' | '.join(['held out', *columns])} |", "|---" * (len(columns) + 1) + "|"]
    for name in summary["eval"]:
        rows.append(f"| {' | '.join([name, *(number(values.get(name)) for values in columns.values())])} |")
    for split, metrics in summary.get("test", {}).items():
        rows += [
            f"| {split}: {name} | {number(value)} |" + " - |" * (len(columns) - 1) for name, value in metrics.items()
        ]
    speed = f"{summary['steps']} steps, {summary['tokens']:,.0f} tokens, {summary['seconds']:.0f} s, {summary['tokens_per_second']:,.0f} tokens/s"
    degenerate = ["", "degenerate: the best parameters predict the same of everything"] * summary.get(
        "degenerate", False
    )
    return "\n".join(["", *rows, *degenerate, "", speed])


def seeds_table(summary: dict[str, Any]) -> str:
    """The best checkpoints of several seeds: median, mean and standard deviation, best and worst, as Markdown."""
    count, failed = len(summary["seeds"]), summary["degenerate"]
    rows = [f"| {count} seeds | median | mean ± std | best | worst | no model |", "|---|---|---|---|---|---|"]
    tables = {"": summary["metrics"]} | {f"{split}: ": metrics for split, metrics in summary["test"].items()}
    for prefix, metrics in tables.items():
        for name, spread in metrics.items():
            mean = f"{number(spread['mean'])} ± {number(spread['std'])}"
            cells = [number(spread["median"]), mean, number(spread["best"]), number(spread["worst"])]
            base = None if prefix else summary["baseline"].get(name)
            rows.append(f"| {' | '.join([prefix + name, *cells, number(base)])} |")
    told = (
        f"degenerate, and counted above: {', '.join(f'seed {seed}' for seed in failed)}"
        if failed
        else "none degenerate"
    )
    return "\n".join(["", *rows, "", f"{told} (of seeds {', '.join(map(str, summary['seeds']))})"])


def finish(run_dir: Path, summary: dict[str, Any], writes: bool) -> None:
    """Draw the curves of a completed run and log its table; only one of several processes `writes` files."""
    if writes:
        plot_curves(run_dir)
    log.info("%s", table(summary))
    log.info("curves, log, checkpoints and summary: %s", run_dir)
