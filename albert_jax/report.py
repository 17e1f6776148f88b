"""What a run came to, for people: curves as a picture, the last numbers as a table."""

from pathlib import Path
from typing import Any

from albert_jax.config import read_json
from albert_jax.run_folder import read_metrics

PANELS = {
    "loss (nats)": ("mlm_loss", "loss"),
    "masked-LM accuracy": ("mlm_accuracy",),
    "sentence loss (nats)": ("sop_loss", "nsp_loss"),
    "sentence accuracy": ("sop_accuracy", "nsp_accuracy"),
}
"""Axis label -> the metrics in that panel."""


def plot_curves(run_dir: Path) -> Path:
    """Draws `curves.png`: losses and accuracies by step, in training and held out, with what needs no model.

    Raises:
      InputError: no log there.
    """
    from matplotlib.figure import Figure

    records = read_metrics(run_dir)
    summary = read_json(run_dir / "summary.json") if (run_dir / "summary.json").exists() else {}
    figure = Figure(figsize=(10, 7), layout="constrained")
    for axes, (label, metrics) in zip(figure.subplots(2, 2).flat, PANELS.items(), strict=True):
        for number, name in enumerate(metrics):
            color = f"C{number}"
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
        axes.legend(fontsize=7)
    figure.suptitle(run_dir.name, fontsize=10)
    path = run_dir / "curves.png"
    figure.savefig(path, dpi=120)
    return path


def table(summary: dict[str, Any]) -> str:
    """The held-out metrics beside those that need no model, as Markdown."""
    rows = ["| held out | model | no model |", "|---|---|---|"]
    for name, value in summary["eval"].items():
        base = summary["baseline"].get(name)
        rows.append(f"| {name} | {value:.4f} | {'-' if base is None else f'{base:.4f}'} |")
    speed = f"{summary['steps']} steps, {summary['tokens']:,.0f} tokens, {summary['seconds']:.0f} s, {summary['tokens_per_second']:,.0f} tokens/s"
    return "\n".join(["", *rows, "", speed])
