"""Runs side by side: one table of rows with mean and spread over seeds, as Markdown and CSV, and figures of it.

Reads run folders and nothing else, so a table can be made again, or anew from other runs, wherever the folders lie.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from albert_jax.config import differences, read_json, require
from albert_jax.reports.tables import number
from albert_jax.training.run_folder import MAY_CHANGE_ON_RESUME, read_metrics, without_location

MANIFEST = "ablation.json"
"""The plan of a table, which `ablate` writes into its folder."""
FAILURE = "failure.json"
"""In a run's folder: why the last try ended."""
PROBES = "probes.json"
"""In a table's folder: what `probes.probe` found."""


def _number(scale: float, digits: int) -> Callable[[float], str]:
    return lambda value: f"{value * scale:,.{digits}f}"


COLUMNS: dict[str, tuple[str, Callable[[float], str]]] = {
    "parameters": ("parameters", _number(1, 0)),
    "flops_per_token": ("MFLOP/token", _number(1e-6, 1)),
    "tokens": ("tokens (M)", _number(1e-6, 2)),
    "seconds": ("training (s)", _number(1, 0)),
    "tokens_per_second": ("tokens/s", _number(1, 0)),
    "step_seconds": ("step (ms)", _number(1e3, 1)),
    "memory": ("memory (MB)", _number(1e-6, 1)),
    "mlm_accuracy": ("MLM (%)", _number(100, 1)),
    "mlm_loss": ("MLM loss", _number(1, 3)),
    "sop_accuracy": ("SOP (%)", _number(100, 1)),
    "nsp_accuracy": ("NSP (%)", _number(100, 1)),
}
"""Name of a value -> its head in the Markdown table and how it is printed; metrics that are not here stand behind, as they are."""

EXACT = ("parameters", "flops_per_token", "tokens", "memory")
"""Columns that seeds do not change, or next to not."""


@dataclass
class Line:
    """One row of a comparison."""

    label: str
    folders: list[Path]
    """Of its runs, one a seed."""
    facts: dict[str, float] = field(default_factory=dict)
    """What is known of it before it ran."""
    paper: dict[str, float] = field(default_factory=dict)
    start: str = ""
    """The line whose training comes before this one's own."""
    tuned: tuple[str, ...] = ()
    """Names of the fine-tuning runs that every run is to have."""
    results: list[dict[str, float]] = field(default_factory=list)
    """What each run came to, name -> value; empty for a run that has not come to an end."""
    records: list[list[dict[str, float]]] = field(default_factory=list)
    """The log of each run that has one; `at` is how far it was, in tokens (padding counted) where it can be said, else in steps."""
    states: list[str] = field(default_factory=list)
    """What became of each run: finished, failed: why, at step n of m, not begun."""

    @property
    def state(self) -> str:
        """All of them in a few words."""
        finished = self.states.count("finished")
        others = [state.partition(":")[0] for state in self.states if state != "finished"]
        if not others:
            return str(finished)
        told = ", ".join(f"{others.count(state)} {state}" for state in dict.fromkeys(others))
        return f"{finished} of {len(self.states)}; {told}"

    @property
    def failures(self) -> list[str]:
        """The runs that failed, and why."""
        runs = zip(self.folders, self.states, strict=True)
        return [f"{self.label}, {run.name}: {state[8:]}" for run, state in runs if state.startswith("failed: ")]

    @property
    def names(self) -> list[str]:
        """Of all values that are known of it."""
        return list(dict.fromkeys((*self.facts, *(name for result in self.results for name in result))))

    def values(self, name: str) -> list[float]:
        """One a run that has it."""
        return [result[name] for result in self.results if name in result]

    def mean(self, name: str) -> float | None:
        """Over the runs; None without any."""
        found = self.values(name)
        return float(np.mean(found)) if found else self.facts.get(name)

    def std(self, name: str) -> float | None:
        """Over n - 1; None with fewer than two runs."""
        found = self.values(name)
        return float(np.std(found, ddof=1)) if len(found) > 1 else None


@dataclass
class Comparison:
    """Rows that belong together."""

    caption: str
    lines: list[Line]
    folder: Path
    """Where `write` puts files."""
    baseline: dict[str, float]
    """Metrics without a model."""
    probes: dict[str, Any]

    @property
    def columns(self) -> list[str]:
        """Names of the values that any line has, in the table's order."""
        found = {name for line in self.lines for name in line.names}
        rest = sorted(name for name in found - COLUMNS.keys() if not name.endswith("_loss") and name != "flops")
        return [name for name in COLUMNS if name in found] + rest


def read(folders: Sequence[Path], output: Path | None = None) -> Comparison:
    """What the runs in `folders` come to: tables of `ablate`, run folders, folders of such.

    Run folders whose configurations differ by no more than the seed are one row, which is named after what is its own.

    Raises:
      InputError: no runs there.
    """
    tables = [path.parent for folder in folders for path in _found(folder, MANIFEST)]
    lines: list[Line] = []
    captions, probes = [], {}
    for table in tables:
        plan = read_json(table / MANIFEST)
        own = _planned(table, plan)
        _add_starts(own)
        for line in own if len(tables) > 1 else ():
            line.label = f"{plan['name']}: {line.label}"
        lines += own
        captions.append(plan["caption"])
        if (table / PROBES).exists():
            probes = read_json(table / PROBES)
    inside = {folder.resolve() for line in lines for folder in line.folders}
    loose = [
        path.parent
        for folder in folders
        for path in (*_found(folder, "config.json"), *folder.glob("*/*/config.json"))
        if not any(parent in tables for parent in path.parents) and path.parent.resolve() not in inside
    ]
    runs = [folder for folder in loose if read_json(folder / "config.json").get("job") in ("pretrain", "finetune")]
    for folder in folders:
        seen = any(folder in (path, *path.parents) for path in (*tables, *runs))
        require(seen, f"{folder}: no run in it, and no table of runs")
    others = _grouped(runs)
    for line in others:
        _fill(line)
    lines += others
    summaries = [read_json(path) for line in lines for f in line.folders if (path := f / "summary.json").exists()]
    baseline = summaries[0].get("baseline", {}) if summaries else {}
    where = output or (folders[0] if len(folders) == 1 else Path("report"))
    return Comparison(" ".join(captions), lines, where, baseline, probes)


def _found(folder: Path, name: str) -> list[Path]:
    """Files of that name in the folder and those one level below it."""
    return sorted(path for path in (folder / name, *folder.glob(f"*/{name}")) if path.exists())


def _add_starts(lines: Sequence[Line]) -> None:
    """Fills the lines of one table; tokens, FLOPs and time of what a line started from are added to its own."""
    by_label: dict[str, Line] = {}
    for line in lines:
        _fill(line)
        by_label[line.label] = line
        if line.start not in by_label:
            continue
        for result, before in zip(line.results, by_label[line.start].results, strict=True):
            for name in ("tokens", "seconds", "flops"):
                if name in result:
                    result[name] += before.get(name, 0)
        ends = [max((r["at"] for r in records), default=0.0) for records in by_label[line.start].records]
        for records in line.records:
            for record in records:
                record["at"] += max(ends, default=0.0)


def _planned(folder: Path, plan: dict[str, Any]) -> list[Line]:
    return [
        Line(
            row["label"],
            # Beside the manifest, wherever the table was moved.
            [folder / Path(row["config"]["run_dir"]).name / f"seed-{seed}" for seed in range(plan["seeds"])],
            {name: row[name] for name in ("parameters", "flops_per_token")},
            row["paper"],
            row["start"],
            tuple(plan["finetune"]),
        )
        for row in plan["rows"]
    ]


def _grouped(folders: Sequence[Path]) -> list[Line]:
    """Runs that differ in their seed alone together."""
    kinds: dict[str, tuple[dict[str, Any], list[Path]]] = {}
    for folder in folders:
        config = read_json(folder / "config.json")["config"]
        config = without_location(config) | {"run_dir": "", "train": config["train"] | {"seed": 0}}
        config["init_from"] = re.sub(r"seed-\d+", "seed", config["init_from"])  # each seed's own
        kinds.setdefault(json.dumps(config, sort_keys=True), (config, []))[1].append(folder)
    lines = []
    for config, runs in kinds.values():
        own = {key: value for other, _ in kinds.values() for key, value in _own(config, other).items()}
        label = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in own.items())
        lines.append(Line(label or runs[0].name, runs))
    return lines


def _own(config: dict[str, Any], other: dict[str, Any]) -> dict[str, str]:
    """Field -> its value in `config`, for those that differ."""
    found = {}
    for text in differences(config, other):
        name, _, values = text.partition(": ")
        if not name.startswith(MAY_CHANGE_ON_RESUME):
            found[name] = values.partition(" -> ")[0].strip("'")
    return found


def _fill(line: Line) -> None:
    """What the folders of its runs hold."""
    for folder in line.folders:
        records = read_metrics(folder) if (folder / "metrics.jsonl").exists() else []
        if records:
            config = read_json(folder / "config.json")["config"]
            length = config["objective"]["max_seq_length"] if "objective" in config else 0
            for record in records:
                record["at"] = record["step"] * (config["train"]["global_batch_size"] * length or 1)
            line.records.append(records)
        line.states.append(_state(folder, records, line.tuned))
        line.results.append(_result(folder, records, line.tuned) if (folder / "summary.json").exists() else {})


def _result(folder: Path, records: list[dict[str, float]], tuned: Sequence[str]) -> dict[str, float]:
    """The values of a finished run, and of what was fine-tuned from it."""
    summary = read_json(folder / "summary.json")
    metrics = summary["best"] if "best" in summary else summary["eval"]
    found = {name: value for name, value in (summary | metrics).items() if type(value) in (int, float)}
    found = {name: value for name, value in found.items() if "threshold" not in name and name not in ("step", "steps")}
    if "flops_per_token" in found:
        found["flops"] = found["flops_per_token"] * found["tokens"]
    # The median over the log's windows: other work on the machine slows some of them.
    rates = [r for r in records if "speed/sequences_per_second" in r]
    if rates:
        batch = read_json(folder / "config.json")["config"]["train"]["global_batch_size"]
        found["step_seconds"] = batch / float(np.median([r["speed/sequences_per_second"] for r in rates]))
        found["tokens_per_second"] = float(np.median([r["speed/tokens_per_second"] for r in rates]))
    for task in tuned:
        path = folder.with_name(f"{folder.name}-{task}") / "summary.json"
        if path.exists():
            other = read_json(path)
            found[f"{task} {other['select']}"] = other["best"][other["select"]]
    return {name: float(value) for name, value in found.items()}


def _state(folder: Path, records: list[dict[str, float]], tuned: Sequence[str]) -> str:
    if (folder / FAILURE).exists():
        return f"failed: {read_json(folder / FAILURE)['error']}"
    if (folder / "summary.json").exists():
        missing = [name for name in tuned if not (folder.with_name(f"{folder.name}-{name}") / "summary.json").exists()]
        return f"without {', '.join(missing)}" if missing else "finished"
    if not (folder / "config.json").exists():
        return "not begun"
    steps = read_json(folder / "config.json")["config"]["train"]["num_train_steps"]
    return f"at step {max((r['step'] for r in records), default=0)} of {steps}"


def markdown(comparison: Comparison) -> str:
    """The table for people and papers: mean ± standard deviation over seeds, what the paper has beside."""
    names = comparison.columns
    printed = list(dict.fromkeys(key for line in comparison.lines for key in line.paper))
    heads = [COLUMNS[name][0] if name in COLUMNS else name for name in names]
    rows = [["", "runs", *heads, *(f"paper: {key}" for key in printed)]]
    for line in comparison.lines:
        cells = [_cell(line, name) for name in names]
        rows.append(
            [line.label, line.state, *cells, *(f"{line.paper[key]:g}" if key in line.paper else "" for key in printed)]
        )
    if any(name in comparison.baseline for name in names):
        base = [_print(name, comparison.baseline.get(name)) for name in names]
        rows.append(["no model", "", *base, *[""] * len(printed)])
    text = [f"| {' | '.join(row)} |" for row in rows]
    text.insert(1, "|---" * len(rows[0]) + "|")
    if comparison.caption:
        text = [comparison.caption, "", *text]
    if comparison.probes:
        text += ["", *_probed(comparison.probes)]
    failures = [f"failed: {told}" for line in comparison.lines for told in line.failures]
    text += ["", *failures] if failures else []
    return "\n".join(text)


def _probed(found: dict[str, Any]) -> list[str]:
    if "error" in found:
        return [f"The probe for shortcuts failed: {found['error']}"]
    kind, shapes = (
        found["objective"].upper(),
        "lengths, punctuation and case" if found["case"] else "lengths and punctuation",
    )
    return [
        f"Without reading, {kind} comes to {100 * found['shapes']:.1f} % from {shapes}, {100 * found['pieces']:.1f} % "
        f"from bags of pieces (linear classifiers; a coin: 50 ± {100 * found['standard_error']:.1f} %)."
    ]


def _cell(line: Line, name: str) -> str:
    mean, std = line.mean(name), line.std(name)
    return _print(name, mean) + ("" if std is None or name in EXACT else f" ± {_print(name, std)}")


def _print(name: str, value: float | None) -> str:
    return "" if value is None else COLUMNS[name][1](value) if name in COLUMNS else number(value)


def table_csv(comparison: Comparison) -> str:
    """A line a row: label, state, mean and standard deviation of every value, the paper's figures."""
    names = sorted({name for line in comparison.lines for name in line.names})
    printed = list(dict.fromkeys(key for line in comparison.lines for key in line.paper))
    heads = [head for name in names for head in (name, f"{name} std")]
    rows: list[list[Any]] = [["row", "runs", *heads, *(f"paper: {key}" for key in printed)]]
    for line in comparison.lines:
        cells = [value for name in names for value in (line.mean(name), line.std(name))]
        rows.append([line.label, line.state, *cells, *(line.paper.get(key) for key in printed)])
    return _csv(rows)


def runs_csv(comparison: Comparison) -> str:
    """A line a run, for statistics of one's own: row, folder, state, every value of its summary."""
    names = sorted({name for line in comparison.lines for result in line.results for name in result})
    rows: list[list[Any]] = [["row", "run", "state", *names]]
    for line in comparison.lines:
        for folder, state, result in zip(line.folders, line.states, line.results, strict=True):
            rows.append([line.label, folder.name, state, *(result.get(name) for name in names)])
    return _csv(rows)


def _csv(rows: list[list[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
