"""Runs side by side: `load_runs` gives one line per run, `comparison_table` mean and standard deviation over seeds.

It reads only run folders, so a table can be printed again after they have moved.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from albert_jax.config import InputError, flat, override, read_json
from albert_jax.reports import paired, tuning_runs
from albert_jax.reports.tables import (
    CONFIG,
    LAYERS,
    PAPER,
    QUANTITIES,
    TUNED,
    find_label,
    markdown_table,
    match_labels,
    scores,
    title,
    value_columns,
    value_text,
)
from albert_jax.training.run_folder import FAILURE, MAY_CHANGE_ON_RESUME, read_metrics, without_location

MANIFEST = "ablation.json"
"""The plan of an ablation table, in the table's folder."""
PROBES = "probes.json"
"""The result of `probes.probe`, in the table's folder."""

Folders = str | Path | Iterable[str | Path]
Run = tuple[dict[str, Any], pd.DataFrame]
"""A line of `Comparison.runs`, and the run's part of `Comparison.curves`."""


@dataclass(frozen=True)
class Comparison:
    """Runs side by side, and what is printed around their table."""

    runs: pd.DataFrame
    """See `load_runs`."""
    curves: pd.DataFrame
    """One line per record of `metrics.jsonl`: `row`, `folder`, `step`, `tokens` (with padding) and the record's values."""
    caption: str
    baselines: Mapping[str, Mapping[str, float]]
    """Name -> metrics of a simple predictor."""
    probes: Mapping[str, Any]
    reference: str
    """The row with which the others are compared."""
    tuning: str
    """The losses of the tuning runs as Markdown."""


def load_runs(folders: Folders) -> pd.DataFrame:
    """Load finished and unfinished runs as a DataFrame with one line per run.

    Args:
      folders: tables of `albert-jax ablate`, run folders, or folders that contain them; one or several.

    Returns:
      The columns `row` (label), `run` (folder name), `folder`, `seed`, `state`; `config: FIELD` for each field in which the
      runs differ; `tuned: FIELD` for values that were selected by tuning; `paper: NAME` for values that the paper prints; then
      every number in the run's summary, such as `mlm_loss`, and `TASK METRIC` for each fine-tuned task.  A run that starts from
      another includes that one's tokens, FLOPs and time, and has its seed.

    Raises:
      InputError: a folder contains no runs.
    """
    return read(folders).runs


def read(folders: Folders, reference: str = "", rows: Sequence[str] = ()) -> Comparison:
    """Load runs with their curves, caption, baselines, probes and tuning.

    Args:
      folders: as for `load_runs`.
      reference: the row with which the others are compared: its label or a part of it (default: the table's, or the first).
      rows: labels, or parts of labels, of the rows to keep (default: all).

    Raises:
      InputError: a folder contains no runs, a text in `rows` names no row, or `reference` names no row or several.
    """
    paths = [Path(folders)] if isinstance(folders, (str, Path)) else [Path(folder) for folder in folders]
    tables = list(dict.fromkeys(path.parent for folder in paths for path in _find(folder, MANIFEST)))
    single = _single_runs(paths, tables)
    for folder in paths:
        if not any(folder in (path, *path.parents) for path in (*tables, *single)):
            raise InputError(f"{folder}: contains no run and no table of runs")
    plans = [read_json(table / MANIFEST) for table in tables]
    loaded = [_read_run(folder, read_json(folder / "config.json")["config"]) for folder in single]
    for table, plan in reversed(list(zip(tables, plans, strict=True))):
        loaded = _planned_runs(table, plan, f"{plan['name']}: " if len(tables) > 1 else "") + loaded
    runs = pd.DataFrame([line for line, _ in loaded])
    _label_single_runs(runs)
    if rows:
        labels = list(runs["row"].unique())
        kept = {label for text in rows for label in match_labels("--rows", text, labels)}
        runs = runs[runs["row"].isin(kept)]
        loaded = [(line, curve) for line, curve in loaded if line["folder"] in set(runs["folder"])]
    fixed = [name for name in runs if name.startswith(CONFIG) and not _varies(runs[name])]
    runs = runs.drop(columns=fixed).sort_index(
        axis="columns", key=lambda names: names.map(_column_order), kind="stable"
    )
    curves = pd.concat([curve for _, curve in loaded if len(curve)] or [pd.DataFrame(columns=["folder", "tokens"])])
    curves.insert(0, "row", curves["folder"].map(runs.set_index("folder")["row"]))
    summaries = [read_json(path) for folder in runs["folder"] if (path := Path(folder, "summary.json")).exists()]
    probes = [read_json(table / PROBES) for table in tables if (table / PROBES).exists()]
    return Comparison(
        runs,
        curves,
        caption=" ".join(plan["caption"] for plan in plans),
        baselines=summaries[0].get("baselines", {}) if summaries else {},
        probes=probes[-1] if probes else {},
        reference=_reference(reference, runs, plans[0] if len(plans) == 1 else {}),
        tuning="\n\n".join(filter(None, map(tuning_runs.tuning_table, tables, plans))),
    )


def _reference(text: str, runs: pd.DataFrame, plan: Mapping[str, Any]) -> str:
    """The label that `text` names, else the reference of the plan, else the first label."""
    labels = list(runs["row"].unique())
    if text:
        return find_label("--reference", text, labels)
    return next((label for label in labels if label == plan.get("reference")), labels[0])


def _find(folder: Path, name: str) -> list[Path]:
    """Files of that name in the folder and one level below."""
    return sorted(path for path in (folder / name, *folder.glob(f"*/{name}")) if path.exists())


def _single_runs(folders: Sequence[Path], tables: Sequence[Path]) -> list[Path]:
    """Run folders that belong to no table."""
    configs = [path for folder in folders for path in (*_find(folder, "config.json"), *folder.glob("*/*/config.json"))]
    return [
        path.parent
        for path in dict.fromkeys(configs)
        if not any(table in path.parents for table in tables) and read_json(path).get("job") in ("pretrain", "finetune")
    ]


def _planned_runs(table: Path, plan: dict[str, Any], prefix: str) -> list[Run]:
    """The runs of a table, including those that have not begun."""
    runs: dict[tuple[str, int], Run] = {}
    for row in plan["rows"]:
        planned = {name: row[name] for name in ("parameters", "flops_per_token")}
        planned |= {f"{PAPER}{name}": value for name, value in row["paper"].items()}
        tuned = row.get("tuned", {})
        planned |= {f"{TUNED}{name}": value for name, value in tuned.items()}
        config = override(row["config"], tuned)
        for seed in range(plan["seeds"]):
            line, curve = _read_run(table / row["folder"] / f"seed-{seed}", config, tuple(plan["finetune"]))
            # Rows that start from others have larger seeds, so that they read new batches.
            line |= {"row": f"{prefix}{row['label']}", "seed": plan["base"]["train"]["seed"] + seed}
            line = planned | line
            if (row["start"], seed) in runs:
                start_line, start_curve = runs[row["start"], seed]
                for name in {"tokens", "seconds", "flops"} & line.keys():
                    line[name] += start_line.get(name, 0)
                curve["tokens"] += start_curve["tokens"].max() if len(start_curve) else 0
            runs[row["label"], seed] = line, curve
    return list(runs.values())


def _label_single_runs(runs: pd.DataFrame) -> None:
    """Label runs outside of tables by the fields in which they differ, so that the seeds of a configuration are one row."""
    if "row" not in runs:
        runs.insert(0, "row", None)
    single = runs[runs["row"].isna()]
    varying = [name for name in single if name.startswith(CONFIG) and _varies(single[name])]
    for index, run in single.iterrows():
        texts = [
            f"{str(name).removesuffix('.name').rpartition('.')[2]} {value}"
            for name, value in run[varying].dropna().items()
        ]
        runs.loc[index, "row"] = ", ".join(texts) or single["run"].iloc[0]


def _varies(column: pd.Series) -> bool:
    return column.map(repr).nunique() > 1


def _column_order(name: str) -> int:
    first = ("row", "run", "folder", "seed", "state")
    if name in first:
        return first.index(name)
    prefixes = (CONFIG, TUNED, PAPER)
    return next((len(first) + n for n, prefix in enumerate(prefixes) if name.startswith(prefix)), len(first) + 3)


def _read_run(folder: Path, config: dict[str, Any], tasks: Sequence[str] = ()) -> Run:
    """Read a run folder, which may not exist yet, and the fine-tuned runs beside it."""
    records = read_metrics(folder) if (folder / "metrics.jsonl").exists() else []
    batch = config["train"]["global_batch_size"]
    length = config["objective"]["max_seq_length"] if "objective" in config else float("nan")
    curve = pd.DataFrame(records, columns=None if records else ["step"])
    curve.insert(0, "folder", str(folder))
    curve.insert(2, "tokens", curve["step"] * batch * length)
    line = {"run": folder.name, "folder": str(folder), "seed": config["train"]["seed"]}
    line["state"] = _state(folder, config, curve, tasks)
    line |= {
        f"{CONFIG}{name}": re.sub(r"seed-\d+", "seed", value) if name in SOURCES else value
        for name, value in flat(without_location(config)).items()
        if name != "train.seed" and not name.startswith(MAY_CHANGE_ON_RESUME)
    }
    if (folder / "summary.json").exists():
        line |= _values(read_json(folder / "summary.json"))
        # The median over the log's windows, because other processes of the machine slow some of them down.
        if "speed/sequences_per_second" in curve:
            line["step_seconds"] = batch / curve["speed/sequences_per_second"].median()
            line["tokens_per_second"] = curve["speed/tokens_per_second"].median()
        for task, tuned in _tuned(folder, tasks).items():
            line[f"{task} {tuned['select']}"] = tuned["best"][tuned["select"]]
    return line, curve


SOURCES = ("init_from", "distillation.teacher")
"""Fields that name another run; runs that differ only in its seed are seeds of one row."""

NOT_COMPARED = ("step", "steps", "parallel_seeds")
"""Numbers of a summary that are not results."""


def _values(summary: dict[str, Any]) -> dict[str, float]:
    """The numbers in a run's summary, with the metrics of the best evaluation if there is one."""
    metrics = summary.get("best", summary["eval"])
    values = {name: value for name, value in (summary | metrics).items() if type(value) in (int, float)}
    for layers, at_depth in summary.get("depths", {}).items():
        values[f"mlm_loss_{layers}{LAYERS}"] = at_depth["mlm_loss"]
    if "flops_per_token" in values:
        values["flops"] = values["flops_per_token"] * values["tokens"]
    return {name: value for name, value in values.items() if "threshold" not in name and name not in NOT_COMPARED}


def _tuned(folder: Path, tasks: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The summaries of the finished fine-tuning runs that start from a run."""
    paths = {task: folder.with_name(f"{folder.name}-{task}") / "summary.json" for task in tasks}
    return {task: read_json(path) for task, path in paths.items() if path.exists()}


def _state(folder: Path, config: dict[str, Any], curve: pd.DataFrame, tasks: Sequence[str]) -> str:
    if (folder / FAILURE).exists():
        return f"failed: {read_json(folder / FAILURE)['error']}"
    if (folder / "summary.json").exists():
        missing = [task for task in tasks if task not in _tuned(folder, tasks)]
        return f"without {', '.join(missing)}" if missing else "finished"
    if not (folder / "config.json").exists():
        return "not begun"
    return f"at step {curve['step'].max() if len(curve) else 0} of {config['train']['num_train_steps']}"


def mean_and_std(runs: pd.DataFrame) -> pd.DataFrame:
    """Average over seeds: one line per row.

    Returns:
      The columns `runs` (how many are finished), `tuned: FIELD`, `NAME` and `NAME std` of every value, and `paper: NAME`.
    """
    groups = runs.groupby("row", sort=False)
    values = value_columns(runs)
    mean, std = groups[values].mean(), groups[values].std().add_suffix(" std")
    both = pd.concat([mean, std], axis="columns")[[column for name in values for column in (name, f"{name} std")]]
    tuned, paper = (groups[[name for name in runs if name.startswith(prefix)]].first() for prefix in (TUNED, PAPER))
    return pd.concat([groups["state"].agg(_states).rename("runs"), tuned, both, paper], axis="columns")


def _states(states: pd.Series) -> str:
    """The states of a row's runs in a few words: "3", "1 of 3; 2 failed"."""
    counts = Counter(state.partition(":")[0] for state in states)
    finished = counts.pop("finished", 0)
    others = ", ".join(f"{count} {state}" for state, count in counts.items())
    return f"{finished} of {len(states)}; {others}" if others else str(finished)


def comparison_table(comparison: Comparison) -> str:
    """Format a comparison as Markdown.

    The tables are: metrics, as mean ± standard deviation over seeds, beside the paper's values; differences from the reference
    row; losses of tuning runs; costs.
    """
    runs = comparison.runs
    rows, columns = mean_and_std(runs), value_columns(runs)
    values = [name for name in columns if name == "parameters" or name in scores(columns)]
    costs = [name for name in QUANTITIES if name in columns and name != "parameters"]
    tuned, paper = ([name for name in rows if name.startswith(prefix)] for prefix in (TUNED, PAPER))
    lines = []
    for label, row in rows.iterrows():
        cells = [_cell(name, row[name], row[f"{name} std"]) for name in values]
        given = {name: "" if pd.isna(row[name]) else f"{row[name]:g}" for name in (*tuned, *paper)}
        lines.append([label, row["runs"], *(given[name] for name in tuned), *cells, *(given[name] for name in paper)])
    for baseline, metrics in comparison.baselines.items():
        if any(name in metrics for name in values):
            cells = [value_text(name, metrics.get(name)) for name in values]
            lines.append([f"baseline: {baseline}", "", *[""] * len(tuned), *cells, *[""] * len(paper)])
    header = ["", "runs", *(tuning_runs.short_name(name) for name in tuned), *map(title, values), *paper]
    parts = [comparison.caption, markdown_table(header, lines)]
    parts.append(paired.differences_table(paired.paired_differences(runs, comparison.reference), comparison.reference))
    parts.append(comparison.tuning)
    lines = [[label, *(_cell(name, row[name], row[f"{name} std"]) for name in costs)] for label, row in rows.iterrows()]
    parts += [markdown_table(["cost", *map(title, costs)], lines), _probe_sentence(comparison.probes)]
    failed = runs[runs["state"].str.startswith("failed: ")]
    parts.append("\n".join(f"failed: {run.row}, {run.run}: {run.state[8:]}" for run in failed.itertuples()))
    return "\n\n".join(part for part in parts if part)


def _cell(name: str, mean: float, std: float) -> str:
    exact = name in QUANTITIES and QUANTITIES[name].exact
    return value_text(name, mean) + ("" if exact or pd.isna(std) else f" ± {value_text(name, std)}")


def _probe_sentence(result: Mapping[str, Any]) -> str:
    if not result:
        return ""
    if "error" in result:
        return f"The shortcut probe failed: {result['error']}"
    return (
        f"Linear classifiers reach {100 * result['shapes']:.1f} % on {result['objective'].upper()} from lengths and punctuation, and "
        f"{100 * result['pieces']:.1f} % from bags of pieces "
        f"(chance: {100 * result['chance']:.1f} ± {100 * result['standard_error']:.1f} %)."
    )
