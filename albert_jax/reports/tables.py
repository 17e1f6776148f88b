"""Tables and numbers as text."""

from collections.abc import Iterable, Sequence


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Format a Markdown table.

    Args:
      header: the column titles.
      rows: the cells of each row, printed with `str`; None is printed as an empty cell.
    """
    lines = [["" if cell is None else str(cell).replace("|", "\\|") for cell in row] for row in (header, *rows)]
    text = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([text[0], "|---" * len(header) + "|", *text[1:]])


def number(value: float | None) -> str:
    """Format a metric: four decimals below 10, two above, '-' for None."""
    return "-" if value is None else f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}"


def duration(seconds: float) -> str:
    """Format a time in the largest unit in which it is at least 1: `1.5 h`, `20 ms`."""
    units = (("days", 86400), ("h", 3600), ("min", 60), ("s", 1))
    unit, size = next((pair for pair in units if seconds >= pair[1]), ("ms", 0.001))
    return f"{seconds / size:,.3g} {unit}" if seconds < 1000 * size else f"{seconds / size:,.0f} {unit}"
