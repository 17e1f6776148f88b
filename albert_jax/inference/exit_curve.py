"""How much accuracy early exit costs, and how much time it saves, on the dev data of a fine-tuned run."""

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from tqdm import tqdm

from albert_jax.config import InputError, read_json
from albert_jax.data.batches import eval_batches
from albert_jax.exchange.load import load
from albert_jax.finetuning import family, files
from albert_jax.finetuning.classification import Classification
from albert_jax.finetuning.run import load_config
from albert_jax.finetuning.tasks import TASKS
from albert_jax.inference.early_exit import CRITERIA, EarlyExit, check_model, classify_early
from albert_jax.reports.tables import markdown_table, metric_label, value_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POINTS = 5
"""Number of thresholds per criterion."""
TIMED_RUNS = 3
"""How often each setting is timed; the table has the median."""
ALL_LAYERS = "all layers, compiled together"
"""The first line: the usual forward pass, without exits."""


def measure(run_dir: Path, batch_size: int) -> list[dict[str, Any]]:
    """Evaluate a fine-tuned run with all criteria, each with several thresholds.

    Thresholds are quantiles of the criterion's values over all examples and layers, so that they fit every model.

    Args:
      run_dir: a run of `albert-jax finetune` whose task is a classification; its dev data must still exist.
      batch_size: rows per batch.

    Returns:
      For each setting: `criterion` and `threshold` (None for the usual forward pass), `layers`, the mean number of layers,
      `metrics` of the dev data, and `seconds`, the median time for all dev examples.

    Raises:
      InputError: the folder is not such a run, or its data cannot be read.
    """
    config_file = run_dir / "config.json"
    if not config_file.is_file() or read_json(config_file).get("job") != "finetune":
        raise InputError(f"{run_dir}: not the folder of a fine-tuned run (albert-jax finetune)")
    config = load_config(str(config_file))
    task = TASKS[config.data.task]
    model, params, tokenizer = load(run_dir)
    check_model(model)
    if not isinstance(task, Classification):
        raise InputError(f"{run_dir}: early exit needs a task of classes of texts, not {config.data.task}")
    splits = family.read_splits(task, files.find(config.data, task.splits), config.data)
    split = next(split for name, split in splits.items() if name.startswith("dev"))
    rows = task.rows(split, tokenizer, config.data)
    batches = list(eval_batches(rows, batch_size, config.data.max_seq_length))
    step = jax.jit(lambda batch: task.outputs(model.apply, params, batch, config.data)["probabilities"])
    depth = model.config.num_hidden_layers

    def run(early_exit: EarlyExit | None) -> tuple[np.ndarray, np.ndarray]:
        probabilities, layers = np.zeros((len(rows), len(model.labels))), np.full(len(rows), depth)
        for numbers, batch in batches:
            if early_exit is None:
                probabilities[numbers] = jax.device_get(step(batch))[: len(numbers)]
            else:
                both = classify_early(model, params, batch, early_exit)
                probabilities[numbers], layers[numbers] = (array[: len(numbers)] for array in both)
        return probabilities, layers

    values: dict[str, list[np.ndarray]] = {}
    for _, batch in batches:
        classify_early(model, params, batch, EarlyExit("layers", depth), values)
    settings: list[EarlyExit | None] = [None, *(EarlyExit("layers", layers) for layers in range(1, depth + 1))]
    for criterion in values:
        quantiles = np.quantile(np.concatenate(values[criterion]), (np.arange(POINTS) + 1) / (POINTS + 1))
        settings += [EarlyExit(criterion, float(f"{threshold:.3g}")) for threshold in quantiles]
    results = []
    for early_exit in tqdm(settings, unit="setting", disable=None):
        probabilities, layers = run(early_exit)  # compiles
        seconds = []
        for _ in range(TIMED_RUNS):
            begin = time.perf_counter()
            run(early_exit)
            seconds.append(time.perf_counter() - begin)
        score = task.score(split, rows, [{"probabilities": row} for row in probabilities])
        results.append(
            {
                "criterion": early_exit and early_exit.criterion,
                "threshold": early_exit and early_exit.threshold,
                "layers": float(layers.mean()),
                "metrics": score.metrics,
                "seconds": statistics.median(seconds),
            }
        )
    return results


def exit_table(results: Sequence[dict[str, Any]]) -> str:
    """The results of `measure` in Markdown; times are relative to the first line."""
    metrics = list(results[0]["metrics"])
    header = ["leaves when", "mean layers", *map(metric_label, metrics), "seconds", "time"]
    lines = [
        [
            ALL_LAYERS if one["criterion"] is None else rule(one["criterion"], one["threshold"]),
            f"{one['layers']:.2f}",
            *(value_text(name, one["metrics"][name]) for name in metrics),
            f"{one['seconds']:.2f}",
            f"{one['seconds'] / results[0]['seconds']:.2f}",
        ]
        for one in results
    ]
    return markdown_table(header, lines)


def rule(criterion: str, threshold: float) -> str:
    """When a text leaves, in words."""
    return f"layers = {threshold:g}" if criterion == "layers" else f"{criterion} <= {threshold:g}"


def draw_exits(results: Sequence[dict[str, Any]], metric: str) -> "Figure":
    """A metric against the mean number of layers, and against time, one line per criterion."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    full = results[0]
    for axes, name, label in zip(
        figure.subplots(1, 2, sharey=True), ("layers", "seconds"), ("mean number of layers", "time (s)"), strict=True
    ):
        for criterion in CRITERIA:
            points = sorted((one[name], one["metrics"][metric]) for one in results if one["criterion"] == criterion)
            style = "s--" if criterion == "layers" else "o-"
            label_of_line = "the same number for all" if criterion == "layers" else criterion
            axes.plot(*zip(*points, strict=True), style, ms=3, lw=1.2, label=label_of_line)
        axes.plot(full[name], full["metrics"][metric], "k*", ms=9, label=ALL_LAYERS)
        axes.set(xlabel=label)
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.axes[0].set_ylabel(metric_label(metric))
    return figure
