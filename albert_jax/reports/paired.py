"""Compare rows with a reference row, seed by seed."""

from typing import Any

import pandas as pd
from scipy import stats

from albert_jax.reports.tables import markdown_table, scores, title, value_columns, value_text

CONFIDENCE = 0.95
CLAIM_SEEDS = 5
"""Tables with fewer common seeds make no claim."""


def paired_differences(runs: pd.DataFrame, reference: str = "") -> pd.DataFrame:
    """Compare each row with a reference row by a paired t test over the seeds that both have finished.

    Pairing removes what a seed does to both rows, such as its batches and masks.  The intervals are not corrected for the number
    of comparisons, so that they do not depend on which other rows were run: with no true differences, one in 20 excludes 0.

    Args:
      runs: see `load_runs`.
      reference: label of the reference row (default: the first row).

    Returns:
      One line per row and metric, with the columns `row`, `metric`, `seeds` (number of pairs), `difference` (mean of row minus
      reference), `low` and `high` (its 95 % confidence interval; NaN with fewer than 2 seeds), and `distinct` (whether the
      interval excludes 0).
    """
    labels = runs["row"].unique()
    reference = reference or labels[0]
    metrics = scores(value_columns(runs))
    values = runs.groupby(["row", "seed"])[metrics].mean()
    lines = []
    for label in labels[labels != reference]:
        differences = values.loc[label] - values.loc[reference]  # seeds of only one row become NaN
        for metric in metrics:
            pairs = differences[metric].dropna()
            mean, count = pairs.mean(), len(pairs)
            half = stats.t.ppf((1 + CONFIDENCE) / 2, count - 1) * pairs.sem() if count > 1 else float("nan")
            lines.append((label, metric, count, mean, mean - half, mean + half, abs(mean) > half))
    return pd.DataFrame(lines, columns=["row", "metric", "seeds", "difference", "low", "high", "distinct"])


def differences_table(differences: pd.DataFrame, reference: str) -> str:
    """Format the result of `paired_differences` as Markdown; empty if no row has a seed in common with the reference."""
    paired = differences[differences["seeds"] > 0]
    if paired.empty:
        return ""
    metrics = list(paired["metric"].unique())
    lines = []
    for label, row in paired.groupby("row", sort=False):
        cells = {line.metric: _cell(line) for line in row.itertuples()}
        counts = sorted({row["seeds"].min(), row["seeds"].max()})
        lines.append([label, " to ".join(map(str, counts)), *(cells.get(metric) for metric in metrics)])
    caption = (
        f"Difference from '{reference}': mean over the common seeds [{100 * CONFIDENCE:.0f} % confidence interval, paired t "
        "test, not corrected for the number of rows]. ≈: the interval contains 0, so the row cannot be distinguished from "
        "the reference."
    )
    if paired["seeds"].min() < CLAIM_SEEDS:
        caption += f" This table makes no claim, because it has fewer than {CLAIM_SEEDS} common seeds."
    return f"{caption}\n\n{markdown_table(['', 'seeds', *map(title, metrics)], lines)}"


def _cell(line: Any) -> str:
    def signed(value: float) -> str:
        text = value_text(line.metric, value)
        if not text.strip("-0."):
            return text.removeprefix("-")  # rounded to 0
        return text if text.startswith("-") else f"+{text}"

    if line.seeds < 2:
        return signed(line.difference)
    mark = "" if line.distinct else "≈ "
    return f"{mark}{signed(line.difference)} [{signed(line.low)}, {signed(line.high)}]"
