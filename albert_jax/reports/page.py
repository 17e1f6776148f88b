"""`report.html`: a run, several seeds of it, or runs side by side, as one file that loads no other file and needs no network."""

import base64
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from albert_jax.config import flat, read_json, without_passwords
from albert_jax.reports import run
from albert_jax.reports.comparison import Comparison, comparison_table
from albert_jax.reports.tables import CONFIG
from albert_jax.training.run_folder import EXAMPLES_FILE, read_metrics, write_text

TITLES = {"pretrain": "Pretraining", "finetune": "Fine-tuning"}
NUMBER = re.compile(r"[≈+<>-]?\s*[+-]?[\d.]+([,.\d]*)(e[+-]?\d+)?( ±.*| \[.*\])?")
"""Cells that are aligned to the right."""

STYLE = """
:root { color-scheme: light dark; --text: #1f2328; --muted: #59636e; --line: #d1d9e0; --shade: #f6f8fa; --page: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e9ed; --muted: #9ba5b0; --line: #3d444d; --shade: #1c2128; --page: #12161b; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page); max-width: 68rem; margin: 2rem auto;
  padding: 0 1.25rem; }
h1 { font-size: 1.7rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; padding-bottom: .25rem; border-bottom: 1px solid var(--line); }
p { margin: .5rem 0; max-width: 60rem; }
.muted { color: var(--muted); }
.wide { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top;
  white-space: pre-line; overflow-wrap: break-word; }
th { background: var(--shade); font-weight: 600; }
.number { text-align: right; }
td.number { white-space: nowrap; }
td.label:first-child { white-space: nowrap; }
td.lines { white-space: pre; }
td.code { font-family: ui-monospace, monospace; font-size: .85rem; overflow-wrap: anywhere; }
img { max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line); border-radius: 6px; margin: .4rem 0; }
summary { cursor: pointer; color: var(--muted); margin: .6rem 0; }
@media print {
  :root { --text: #000; --muted: #444; --line: #bbb; --shade: #f2f2f2; --page: #fff; }
  body { max-width: none; margin: 0; font-size: 10pt; }
  img, tr { break-inside: avoid; }
  h2 { break-after: avoid; }
  .wide { overflow: visible; }
  table { font-size: 8pt; }
  th, td { padding: .15rem .35rem; }
}
"""


def write(content: str, folder: Path) -> Path:
    """Write `report.html`; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "report.html", content)
    return folder / "report.html"


def run_page(run_dir: Path) -> str:
    """The page of one run, finished or not; its figures are drawn already."""
    stored, path = read_json(run_dir / "config.json"), run_dir / "summary.json"
    if path.exists():
        results = _markdown(run.summary_table(read_json(path)))
    else:
        step = max((record["step"] for record in read_metrics(run_dir)), default=0)
        results = f"<p>Not finished: at step {step:g} of {stored['config']['train']['num_train_steps']}.</p>"
    figures = [run_dir / name for name in ("curves.png", "depths.png")]
    sections = {
        "Results": results,
        "Curves": _images(figures),
        "Examples": _examples(run_dir),
        "Configuration": _configuration(stored),
        "Environment": _environment(stored),
    }
    return _page(run_dir.resolve().name, TITLES[stored["job"]], sections)


def seeds_page(folder: Path, summary: Mapping[str, Any]) -> str:
    """The page of a fine-tuning run with several seeds: their statistics, then each seed's curves; the rest is the first's."""
    seeds = [folder / f"seed-{seed}" for seed in summary["seeds"]]
    stored = read_json(seeds[0] / "config.json")
    sections = {
        "Results": _markdown(run.seeds_table(dict(summary))),
        "Curves": _images([run.plot_curves(seed) for seed in seeds]),
        f"Examples of {seeds[0].name}": _examples(seeds[0]),
        f"Configuration of {seeds[0].name}": _configuration(stored),
        f"Environment of {seeds[0].name}": _environment(stored),
    }
    return _page(folder.resolve().name, f"{TITLES[stored['job']]}, {len(seeds)} seeds", sections)


def comparison_page(folder: Path, comparison: Comparison, files: Iterable[Path]) -> str:
    """The page of runs side by side; `files` are those that `figures.write` returned."""
    runs = comparison.runs
    fields = [name for name in runs if name.startswith(CONFIG)]
    first = {label: rows.iloc[0] for label, rows in runs.groupby("row", sort=False)}
    differing = _table(
        ["", *(name.removeprefix(CONFIG) for name in fields)],
        [[label, *(_value(row[name]) for name in fields)] for label, row in first.items()],
    )
    states = _table(["row", "run", "seed", "state"], runs[["row", "run", "seed", "state"]].itertuples(index=False))
    configs = [path for name in runs["folder"] if (path := Path(name, "config.json")).exists()]
    stored = read_json(configs[0]) if configs else {}
    sections = {
        "Results": _markdown(comparison_table(comparison)),
        "Figures": _images(path for path in files if path.suffix == ".png"),
        "Runs": _details(f"{len(runs)} runs", states),
        "Configuration": (differing if fields else "<p>All runs have the same configuration, except for the seed.</p>")
        + (
            _whole(stored["config"], f"of the first run ({configs[0].parent.parent.name}/{configs[0].parent.name})")
            if stored
            else ""
        ),
        "Environment of the first run": _environment(stored),
    }
    return _page(folder.resolve().name, "Ablation table" if comparison.caption else "Comparison of runs", sections)


def _page(title: str, kind: str, sections: Mapping[str, str]) -> str:
    body = "\n".join(f"<section>\n<h2>{escape(name)}</h2>\n{content}\n</section>" for name, content in sections.items())
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
<p class="muted">{escape(kind)}</p>
{body}
</body>
</html>
"""


def _markdown(text: str) -> str:
    """Paragraphs and tables of our own Markdown (`tables.markdown_table`) as HTML."""
    parts = []
    for block in re.split(r"\n{2,}", text.strip()):
        lines = block.splitlines()
        if lines[0].startswith("|"):
            header, _, *rows = ([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines)
            parts.append(_table(header, [[cell.replace("\\|", "|") for cell in row] for row in rows]))
        else:
            parts += [f"<p>{escape(line)}</p>" for line in lines]
    return "\n".join(parts)


def _table(header: Sequence[str], rows: Iterable[Iterable[object]], kind: str = "label") -> str:
    """A table whose cells have the class `kind`; in tables of the default kind, numbers are aligned to the right."""
    texts = [list(map(str, row)) for row in rows]

    def is_number(text: str) -> bool:
        return kind == "label" and NUMBER.fullmatch(text) is not None

    def cell(text: str) -> str:
        name = "number" if is_number(text) else "lines" if "\n" in text else kind
        return f'<td class="{name}">{escape(text)}</td>'

    columns = list(zip(*texts, strict=True)) or [()] * len(header)
    head = "".join(
        f'<th class="{"number" if any(map(is_number, column)) else "text"}">{escape(title)}</th>'
        for title, column in zip(header, columns, strict=True)
    )
    lines = "\n".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in texts)
    return f'<div class="wide"><table>\n<tr>{head}</tr>\n{lines}\n</table></div>'


def _images(paths: Iterable[Path]) -> str:
    """Pictures, those that exist, as data."""
    return "\n".join(
        f'<img alt="{escape(path.stem)}" src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}">'
        for path in paths
        if path.exists()
    )


def _details(title: str, content: str) -> str:
    return f"<details><summary>{escape(title)}</summary>\n{content}\n</details>"


def _examples(run_dir: Path) -> str:
    path = run_dir / EXAMPLES_FILE
    if not path.exists():
        return f"<p>No examples: {EXAMPLES_FILE} is written when a run completes, and not by earlier versions.</p>"
    examples = read_json(path)
    titles = list(examples["rows"][0]) if examples["rows"] else []
    rows = [[row.get(title, "") for title in titles] for row in examples["rows"]]
    return f"<p>{escape(examples['caption'])}</p>\n{_table(titles, rows, 'text')}"


def _value(value: Any) -> str:
    """A field of a configuration, without passwords; empty texts are visible."""
    text = value if isinstance(value, str) and value else json.dumps(value, default=lambda number: number.item())
    return without_passwords(text)


def _configuration(stored: Mapping[str, Any]) -> str:
    """The fields that differ from the defaults, then all."""
    fields = flat(stored["config"])
    if "non_defaults" not in stored:
        changed = "<p>Which fields differ from the defaults is not recorded: the run began with an earlier version.</p>"
    else:
        rows = [[name, _value(fields[name])] for name in stored["non_defaults"] if name in fields]
        changed = f"<p>Fields that differ from the defaults:</p>\n{_table(['field', 'value'], rows, 'code')}"
    return changed + _whole(stored["config"], "")


def _whole(config: Mapping[str, Any], of: str) -> str:
    rows = [[name, _value(value)] for name, value in flat(config).items()]
    return _details(f"All {len(rows)} fields {of}".rstrip(), _table(["field", "value"], rows, "code"))


def _environment(stored: Mapping[str, Any]) -> str:
    """What the run was started with, versions, and fingerprints of the data."""
    versions = ", ".join(f"{name} {version}" for name, version in stored.get("versions", {}).items())
    rows = [(name, without_passwords(str(value))) for name, value in stored.get("environment", {}).items()]
    rows.append(("versions", versions))
    rows += [(f"fingerprint: {name}", text) for name, text in stored.get("fingerprints", {}).items()]
    if "data_changes" in stored:
        rows.append(("data changes", f"{len(stored['data_changes'])}; the run is not reproducible from data and seed"))
    return _table(["", "at the start of the run"], rows, "code") if stored else "<p>No run has begun.</p>"
