"""The command report."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from albert_jax.config import read_json
from albert_jax.parser import Parser

EXAMPLES = """\
  albert-jax report runs/tiny   # draws curves.png, prints the final metrics, writes report.html
  albert-jax report runs/sharing-tiny   # writes tables and figures of an ablation table
  albert-jax report runs/sharing-tiny --rows all-shared --rows not-shared --output few   # a figure with few lines
  albert-jax report runs/a runs/b --output compared   # compares any runs; those that differ only in the seed are one row
"""


def add_report_commands(add_command: Callable[..., Parser]) -> None:
    """Add the command of this folder to the command line."""
    parser = add_command(
        "report DIR...", report, "Show the results of a run or of an ablation table, or compare runs.", EXAMPLES
    )
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="a run, a table, or a folder of runs")
    text = "only rows whose label is TEXT or contains it (repeatable)"
    parser.add_argument("--rows", action="append", default=[], metavar="TEXT", help=text)
    text = "compare the other rows with the row whose label is TEXT or contains it (default: the table's, or the first)"
    parser.add_argument("--reference", default="", metavar="TEXT", help=text)
    text = """folder for the files (default: that of the run or table; 'report' for several DIRs); of a run, only report.html is
    written there"""
    parser.add_argument("--output", type=Path, metavar="DIR", help=text)


def report(arguments: argparse.Namespace) -> int:
    """Run `albert-jax report`."""
    from albert_jax.reports import comparison, figures, page, run

    folder, *others = arguments.folders
    path = folder / "summary.json"
    summary = read_json(path) if path.exists() else {}
    if not others and "seeds" in summary:
        print(run.seeds_table(summary))
        content = page.seeds_page(folder, summary)
    elif not others and (folder / "config.json").exists():
        print(run.plot_curves(folder))
        if summary:
            print(run.summary_table(summary))
        content = page.run_page(folder)
    else:
        output = arguments.output or (Path("report") if others else folder)
        result = comparison.read(arguments.folders, arguments.reference, arguments.rows)
        files = figures.write(result, output)
        print(comparison.comparison_table(result))
        print(
            f"\ntables (.md, .csv) and figures (.png, .svg): {output}",
            file=sys.stderr,
        )
        content = page.comparison_page(output, result, files)
    print(f"report: {page.write(content, arguments.output or (Path('report') if others else folder))}", file=sys.stderr)
    return 0
