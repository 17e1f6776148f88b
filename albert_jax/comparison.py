"""Runs side by side: one table of rows with mean and spread over seeds, as Markdown and CSV, and figures of it.

Reads run folders and nothing else, so a table can be made again, or anew from other runs, wherever the folders lie.
"""

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from albert_jax import report
from albert_jax.config import differences, read_json, require
from albert_jax.run_folder import read_metrics

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
    results: list[dict[str, float]] = field(default_factory=list)
    """What each run came to, name -> value; empty for a run that has not come to an end."""
    records: list[list[dict[str, float]]] = field(default_factory=list)
    """The log of each run that has one."""
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
        rest = sorted(name for name in found - COLUMNS.keys() if not name.endswith("_loss") and name != "seconds")
        return [name for name in COLUMNS if name in found] + rest


def read(folders: Sequence[Path], output: Path | None = None) -> Comparison:
    """What the runs in `folders` come to: tables of `ablate`, run folders, folders of such.

    Run folders whose configurations differ by no more than the seed are one row, which is named after what is its own.

    Raises:
      InputError: no runs there.
    """
    lines: list[Line] = []
    captions, loose, probes = [], [], {}
    for folder in folders:
        if (folder / MANIFEST).exists():
            plan = read_json(folder / MANIFEST)
            lines += _planned(folder, plan)
            captions.append(plan["caption"])
            if (folder / PROBES).exists():
                probes = read_json(folder / PROBES)
        else:
            found = sorted(
                path.parent
                for path in (folder, *folder.glob("*"), *folder.glob("*/*"))
                for path in [path / "config.json"]
                if path.exists()
            )
            require(bool(found), f"{folder}: no run in it, and no table of runs")
            loose += found
    lines += _grouped(loose)
    for line in lines:
        _fill(line)
    by_label = {line.label: line for line in lines}
    for line in lines:  # tokens and time of what it started from count
        if line.start in by_label:
            for result, before in zip(line.results, by_label[line.start].results, strict=False):
                result |= {name: result[name] + before.get(name, 0) for name in ("tokens", "seconds") if name in result}
    baselines = [read_json(path) for line in lines for f in line.folders if (path := f / "summary.json").exists()]
    baseline = baselines[0].get("baseline", {}) if baselines else {}
    where = output or (folders[0] if len(folders) == 1 else Path("report"))
    return Comparison(" ".join(captions), lines, where, baseline, probes)


def _planned(folder: Path, plan: dict[str, Any]) -> list[Line]:
    return [
        Line(
            row["label"],
            # Beside the manifest, wherever the table was moved.
            [folder / Path(row["config"]["run_dir"]).name / f"seed-{seed}" for seed in range(plan["seeds"])],
            {name: row[name] for name in ("parameters", "flops_per_token")},
            row["paper"],
            row["start"],
        )
        for row in plan["rows"]
    ]


def _grouped(folders: Sequence[Path]) -> list[Line]:
    """Runs that differ in their seed alone together."""
    kinds: dict[str, tuple[dict[str, Any], list[Path]]] = {}
    for folder in folders:
        config = read_json(folder / "config.json")["config"]
        start = config.get("init_from", "").replace(config["run_dir"], "RUN")  # each has its own, made for it
        config |= {"run_dir": "", "init_from": start, "train": config["train"] | {"seed": 0}}
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
        found[name] = values.partition(" -> ")[0].strip("'")
    return found


def _fill(line: Line) -> None:
    """What the folders of its runs hold."""
    for folder in line.folders:
        has_log = (folder / "metrics.jsonl").exists()
        records = read_metrics(folder) if has_log else []
        if has_log:
            line.records.append(records)
        line.states.append(_state(folder, records))
        if not (folder / "summary.json").exists():
            line.results.append({})
            continue
        summary = read_json(folder / "summary.json")
        found: dict[str, Any] = {name: value for name, value in summary.items() if isinstance(value, (int, float))}
        metrics = summary["best"] if "best" in summary else summary["eval"]
        found |= {name: value for name, value in metrics.items() if "threshold" not in name and name != "step"}
        # The median over the log's windows: other work on the machine slows some of them.
        rates = [r["speed/sequences_per_second"] for r in records if "speed/sequences_per_second" in r]
        if rates:
            batch = read_json(folder / "config.json")["config"]["train"]["global_batch_size"]
            found["step_seconds"] = batch / float(np.median(rates))
            found["tokens_per_second"] = float(
                np.median([r["speed/tokens_per_second"] for r in records if "speed/tokens_per_second" in r])
            )
        found.pop("steps")
        for tuned in sorted(folder.parent.glob(f"{folder.name}-*/summary.json")):
            task, other = tuned.parent.name.removeprefix(f"{folder.name}-"), read_json(tuned)
            found[f"{task} {other['select']}"] = other["best"][other["select"]]
        line.results.append({name: float(value) for name, value in found.items()})


def _state(folder: Path, records: list[dict[str, float]]) -> str:
    if (folder / FAILURE).exists():
        return f"failed: {read_json(folder / FAILURE)['error']}"
    if (folder / "summary.json").exists():
        return "finished"
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
    kind = found["objective"].upper()
    return [
        f"Without reading, {kind} comes to {100 * found['shapes']:.1f} % from lengths, punctuation and case, {100 * found['pieces']:.1f} % "
        f"from bags of pieces (linear classifiers; a coin: 50 ± {100 * found['standard_error']:.1f} %)."
    ]


def _cell(line: Line, name: str) -> str:
    mean, std = line.mean(name), line.std(name)
    return _print(name, mean) + ("" if std is None or name in EXACT else f" ± {_print(name, std)}")


def _print(name: str, value: float | None) -> str:
    return "" if value is None else COLUMNS[name][1](value) if name in COLUMNS else report.number(value)


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
