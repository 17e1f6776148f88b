"""Tables and numbers as text.  Titles and formats of columns follow from the names of values, so a new metric needs no entry."""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from albert_jax.config import InputError

if TYPE_CHECKING:
    import pandas as pd

CONFIG, TUNED, PAPER = "config: ", "tuned: ", "paper: "
"""Prefixes of columns: fields in which the runs differ, fields whose value was selected by tuning, and what the paper prints."""


class Quantity(NamedTuple):
    """How a value that is not a metric is printed."""

    title: str
    scale: float
    spec: str
    exact: bool = False
    """Whether all seeds give the same value, or nearly so; it is then printed without a standard deviation."""


QUANTITIES = {
    "parameters": Quantity("parameters", 1, ",.0f", exact=True),
    "flops_per_token": Quantity("MFLOP/token", 1e-6, ",.1f", exact=True),
    "tokens": Quantity("tokens (M)", 1e-6, ",.2f", exact=True),
    "flops": Quantity("PFLOP", 1e-15, ",.3g", exact=True),
    "seconds": Quantity("training (s)", 1, ",.0f"),
    "tokens_per_second": Quantity("tokens/s", 1, ",.0f"),
    "step_seconds": Quantity("step (ms)", 1e3, ",.1f"),
    "memory": Quantity("memory (MB)", 1e-6, ",.1f", exact=True),
    "skipped_updates": Quantity("skipped updates", 1, ",.0f"),
}
"""Size and cost of a run, by their names in `summary.json`; all other values are metrics."""


LAYERS = "_layers"
"""End of the names of losses at other depths, such as `mlm_loss_2_layers`."""


def value_columns(runs: "pd.DataFrame") -> list[str]:
    """The numeric result columns of `load_runs`: quantities first, then metrics."""
    prefixes = (CONFIG, TUNED, PAPER)
    names = [name for name in runs.select_dtypes("number") if name != "seed" and not name.startswith(prefixes)]
    return [name for name in QUANTITIES if name in names] + [name for name in names if name not in QUANTITIES]


def scores(names: Iterable[str]) -> list[str]:
    """The metrics that a comparison is about: the masked-LM loss, and all that are neither a loss nor a quantity."""
    return [name for name in names if name == "mlm_loss" or not (name in QUANTITIES or name.endswith("_loss"))]


def match_labels(option: str, text: str, labels: Sequence[str]) -> list[str]:
    """The label that equals `text`, or else all that contain it.

    Raises:
      InputError: there is none; names `option`.
    """
    matches = [label for label in labels if label == text] or [label for label in labels if text in label]
    if not matches:
        raise InputError(f"{option}: no label contains '{text}'; the labels are {'; '.join(labels)}")
    return matches


def find_label(option: str, text: str, labels: Sequence[str]) -> str:
    """The label that equals `text`, or the only one that contains it.

    Raises:
      InputError: there is none, or there are several; names `option`.
    """
    matches = match_labels(option, text, labels)
    if len(matches) > 1:
        raise InputError(f"{option}: several labels contain '{text}': {'; '.join(matches)}")
    return matches[0]


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Format a Markdown table.

    Args:
      header: the column titles.
      rows: the cells of each row, printed with `str`; None is printed as an empty cell.
    """
    lines = [["" if cell is None else str(cell).replace("|", "\\|") for cell in row] for row in (header, *rows)]
    text = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([text[0], "|---" * len(header) + "|", *text[1:]])


def title(name: str) -> str:
    """The column title of a value: `sop_accuracy` -> "SOP (%)", `mlm_loss` -> "MLM loss"."""
    if name in QUANTITIES:
        return QUANTITIES[name].title
    if name.endswith(LAYERS):
        at_full_depth, _, layers = name.removesuffix(LAYERS).rpartition("_")
        return f"{title(at_full_depth)}, {layers} layers"
    objective, _, kind = name.rpartition("_")
    suffix = {"accuracy": " (%)", "loss": " loss"}.get(kind, "")
    return objective.upper() + suffix if objective and suffix else name


def metric_label(name: str) -> str:
    """The axis label of a metric: `sop_accuracy` -> "SOP accuracy", `mlm_loss` -> "MLM loss (nats)"."""
    objective, _, kind = name.rpartition("_")
    label = f"{objective.upper()} {kind}" if objective and kind in ("accuracy", "loss") else name.replace("_", " ")
    return f"{label} (nats)" if kind == "loss" else label


def value_text(name: str, value: float | None) -> str:
    """Format a value for the column `title(name)`; empty for None and NaN."""
    if value is None or math.isnan(value):
        return ""
    if name in QUANTITIES:
        return format(value * QUANTITIES[name].scale, QUANTITIES[name].spec)
    if name.endswith("_accuracy"):
        return f"{100 * value:.1f}"
    return f"{value:.3f}" if name.endswith(("_loss", LAYERS)) else number(value)


def number(value: float | None) -> str:
    """Format a metric: four decimals below 10, two above, '-' for None."""
    return "-" if value is None else f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}"


def duration(seconds: float) -> str:
    """Format a time in the largest unit in which it is at least 1: `1.5 h`, `20 ms`."""
    units = (("days", 86400), ("h", 3600), ("min", 60), ("s", 1))
    unit, size = next((pair for pair in units if seconds >= pair[1]), ("ms", 0.001))
    return f"{seconds / size:,.3g} {unit}" if seconds < 1000 * size else f"{seconds / size:,.0f} {unit}"
