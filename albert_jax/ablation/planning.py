"""The plan of a table at a scale and with a budget: every row's configuration; `ablation.json` in the table's folder stores it.

Rows share the seed, and with it the data order, the masks and the initial values of the parameters that they have in common.
"""

import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from albert_jax.ablation.budget import BUDGETS, WIDTH, row_flops, step_tokens, widened, with_steps
from albert_jax.ablation.table import Ablation, At, Row, read_table, scale_names, slug
from albert_jax.config import (
    InputError,
    Parser,
    check_choice,
    differences,
    from_dict,
    load,
    override,
    read_json,
    read_overrides,
    to_dict,
)
from albert_jax.finetuning.run import SCALES as FINETUNE_SCALES
from albert_jax.finetuning.run import FinetuneConfig
from albert_jax.finetuning.run import load_config as load_finetune_config
from albert_jax.model.heads import Albert, num_params
from albert_jax.pretraining.run import PretrainConfig
from albert_jax.reports.comparison import MANIFEST
from albert_jax.reports.tables import QUANTITIES, duration, markdown_table, value_text
from albert_jax.training import devices, run_folder

SEED_OFFSET = 1_000_000
"""Added to the seed of a row that starts from another, because with the same seed it would read the same batches again."""


@dataclass(frozen=True)
class PlannedRow:
    """A row with its resolved configuration."""

    label: str
    place: int
    """Index in the table."""
    config: PretrainConfig
    """The configuration of the first seed; its run_dir is that of the table."""
    folder: str
    """The row's folder, in the table's."""
    start: str
    share: float
    parameters: int
    flops_per_token: float
    paper: dict[str, float]
    step_seconds: float = 0.0
    """The step time that the budget `time` measured; 0 with other budgets."""


@dataclass(frozen=True)
class Plan:
    """A table at a scale and with a budget."""

    name: str
    question: str
    """The first line of the table's docstring."""
    scale: str
    budget: str
    seeds: int
    run_dir: str
    rows: tuple[PlannedRow, ...]
    finetune: dict[str, str]
    """Name of a fine-tuning experiment -> arguments of `albert-jax finetune`."""
    base: dict[str, Any]
    """The configuration that the rows override."""

    def run_config(self, row: PlannedRow, seed: int) -> PretrainConfig:
        """The configuration of a run; `seed` counts from 0."""
        run_dir = Path(self.run_dir, row.folder, f"seed-{seed}")
        start = str(run_dir / "start") if row.start else row.config.init_from
        train = replace(row.config.train, seed=row.config.train.seed + seed)
        return replace(row.config, run_dir=str(run_dir), init_from=start, train=train)

    def merged(self, earlier: "Plan") -> "Plan":
        """Add the rows, seeds and fine-tuning of an earlier plan of the same table in the same folder.

        Rows of both plans keep the earlier version, because the step times of the budget `time` vary.

        Raises:
          InputError: the earlier plan has a different table, scale, budget or base.
        """
        before, after = (
            {"name": plan.name, "scale": plan.scale, "budget": plan.budget} | plan.base for plan in (earlier, self)
        )
        changed = [d for d in differences(before, after) if not d.startswith(run_folder.MAY_CHANGE_ON_RESUME)]
        if changed:
            raise InputError(f"--run-dir {self.run_dir} holds a different table ({'; '.join(changed)}); choose another")
        rows = {row.label: row for row in (*self.rows, *earlier.rows)}
        return replace(
            self,
            rows=tuple(sorted(rows.values(), key=lambda row: row.place)),
            seeds=max(self.seeds, earlier.seeds),
            finetune=earlier.finetune | self.finetune,
        )

    def save(self) -> None:
        """Write `ablation.json`."""
        Path(self.run_dir).mkdir(parents=True, exist_ok=True)
        stored = to_dict(self) | {"rows": [to_dict(row) for row in self.rows], "caption": self.caption}
        run_folder.write_json(Path(self.run_dir, MANIFEST), stored)

    def row(self, label: str) -> PlannedRow:
        """The row with a label.

        Raises:
          InputError: there is none.
        """
        for row in self.rows:
            if row.label == label:
                return row
        raise InputError(f"{Path(self.run_dir, MANIFEST)}: no row '{label}'")

    @property
    def caption(self) -> str:
        """One line above the table: what it shows, and what is held equal."""
        notes = [f"'{row.label}' has {row.share:g} of the budget" for row in self.rows if row.share != 1]
        if any(row.start for row in self.rows):
            notes.append("the training of the row that another one starts from is counted in both")
        equal = "; ".join([BUDGETS[self.budget].caption, *notes])
        seeds = f"{self.seeds} seed{'s' if self.seeds > 1 else ''} per row"
        return f"{self.name}, scale {self.scale}, {seeds}; {equal}. {self.question}"


def load_plan(folder: str | Path) -> Plan:
    """Load the plan in a table's folder.

    Raises:
      InputError: the file is not a plan, or is of a different version.
    """
    path = Path(folder, MANIFEST)
    stored = read_json(path)
    try:
        del stored["caption"]
        rows = [row | {"config": from_dict(PretrainConfig, row["config"])} for row in stored["rows"]]
        return Plan(**stored | {"run_dir": str(folder), "rows": tuple(PlannedRow(**row) for row in rows)})
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: not a plan of this version of albert_jax: {error}") from None


def resolve(
    path: str,
    *,
    scale: str = "tiny",
    seeds: int = 1,
    budget: str = "tokens",
    overrides: Mapping[str, Any] | Sequence[str] = (),
    rows: Sequence[str] = (),
    finetune: Sequence[str] = (),
    run_dir: str = "",
) -> Plan:
    """Plan a table without running it, except that the budget `time` runs some steps of each row.

    Args:
      path: the table's file.
      scale: a file in the folder `scales` beside it.
      seeds: the number of runs per row.
      budget: an entry of `BUDGETS`.
      overrides: for all rows; dotted field -> value, or command-line words.
      rows: labels, or parts of labels, of the rows to run (default: all).
      finetune: arguments of `albert-jax finetune`, each as one string, to run from every row's parameters.
      run_dir: the table's folder (default: `runs/NAME-SCALE`).

    Raises:
      InputError: an option is invalid, `overrides` set a field that rows set too, or a row's configuration is invalid.
    """
    question, table = read_table(path)
    name = Path(path).stem
    check_choice("--scale", scale, scale_names(path))
    check_choice("--budget", budget, BUDGETS)
    if seeds < 1:
        raise InputError(f"--seeds must be at least 1, got {seeds}")
    row_fields = {key for row in table.rows.values() for key in row.overrides}
    if budget == "params" and not row_fields.isdisjoint(WIDTH):
        raise InputError(f"--budget params: the rows of {name} set the width themselves")
    folder = str(Path(run_dir or f"runs/{name}-{scale}").expanduser())
    base = _base_config(path, table, scale, overrides, row_fields)
    config = from_dict(PretrainConfig, base | {"run_dir": folder})
    configs = {label: _row_config(config, label, row, scale, path) for label, row in table.rows.items()}
    first = next(iter(table.rows))
    chosen = _chosen_rows(table, rows)
    if first not in chosen and budget == "time":
        chosen = [first, *chosen]  # the others are compared with it, so its step time is stored too
    configs = {label: configs[label] for label in dict.fromkeys((first, *chosen))}
    if budget == "params":
        target = num_params(Albert(configs[first].model))
        configs = {label: replace(c, model=widened(c.model, target)) for label, c in configs.items()}
        _check_widths(table, chosen, configs)
    costs = _step_costs(budget, configs, folder)
    planned = []
    for place, (label, row) in enumerate(table.rows.items()):
        if label not in chosen:
            continue
        steps = config.train.num_train_steps * row.share * costs[first] / costs[label]
        one = with_steps(configs[label], config, steps)
        train = replace(one.train, seed=one.train.seed + SEED_OFFSET * len(_starts(table, label)))
        planned.append(
            PlannedRow(
                label=label,
                place=place,
                config=replace(one, train=train),
                folder=slug(label),
                start=row.start,
                share=row.share,
                parameters=num_params(Albert(one.model)),
                flops_per_token=row_flops(one),
                paper=dict(row.paper),
                step_seconds=costs[label] if budget == "time" else 0.0,
            )
        )
    plan = Plan(name, question, scale, budget, seeds, folder, tuple(planned), {}, to_dict(config) | {"run_dir": ""})
    return replace(plan, finetune=_finetune_names(plan, finetune))


def _base_config(
    path: str,
    table: Ablation,
    scale: str,
    overrides: Mapping[str, Any] | Sequence[str],
    row_fields: set[str],
) -> dict[str, Any]:
    """The scale's experiment with the table's fields for it and the overrides."""
    values = read_overrides(PretrainConfig, overrides)
    for name in values:
        if name in row_fields:
            raise InputError(f"--{name.replace('_', '-')}: rows of {Path(path).stem} set it; change it in {path}")
    experiment = load(PretrainConfig, str(Path(path).parent / "scales" / f"{scale}.py"))
    return override(to_dict(experiment), {**table.base.get(scale, {}), **values})


def _row_config(base: PretrainConfig, label: str, row: Row, scale: str, path: str) -> PretrainConfig:
    """The base with a row's overrides; the budget is not applied yet."""
    values = {}
    try:
        for name, value in row.overrides.items():
            if isinstance(value, At):
                if scale not in value:
                    raise InputError(f"{name} has no value at scale {scale!r}, only at {', '.join(value)}")
                value = value[scale]
            values[name] = value
        config = from_dict(PretrainConfig, override(to_dict(base), values) | {"eval_objective": None})
        # All rows are evaluated with the same masking: one that masks more would have a harder task.
        # Each row keeps its sentence objective, as in the paper's Table 5.
        row_fields = {name: getattr(config.objective, name) for name in ("sentence_objective", "max_seq_length")}
        evaluated = replace(base.eval_objective or base.objective, **row_fields)
        return config if evaluated == config.objective else replace(config, eval_objective=evaluated)
    except InputError as error:
        raise InputError(f"{path}: row '{label}': {error}") from None


def _starts(table: Ablation, label: str) -> list[str]:
    """The rows that a row starts from, directly and indirectly."""
    start = table.rows[label].start
    return [start, *_starts(table, start)] if start else []


def _chosen_rows(table: Ablation, words: Sequence[str]) -> list[str]:
    """The rows that `words` name and those that they start from; a part of a label names every row that contains it."""
    labels = list(table.rows)
    chosen = set() if words else set(labels)
    for word in words:
        matches = [label for label in labels if label == word] or [label for label in labels if word in label]
        if not matches:
            raise InputError(f"--rows: no label contains '{word}'; the labels are {'; '.join(labels)}")
        for label in matches:
            chosen |= {label, *_starts(table, label)}
    return [label for label in labels if label in chosen]


def _check_widths(table: Ablation, chosen: Sequence[str], configs: Mapping[str, PretrainConfig]) -> None:
    for label in chosen:
        start = table.rows[label].start
        if start and configs[start].model.hidden_size != configs[label].model.hidden_size:
            raise InputError(f"--budget params: '{label}' cannot start from '{start}', which has a different width")


def _step_costs(budget: str, configs: Mapping[str, PretrainConfig], folder: str) -> dict[str, float]:
    """The cost of a step of each row; measured times are reused, so that a second launch plans the same steps."""
    measured = {}
    if budget == "time" and Path(folder, MANIFEST).exists():
        measured = {row.label: row.step_seconds for row in load_plan(folder).rows}
    return {label: measured.get(label) or BUDGETS[budget].step_cost(config) for label, config in configs.items()}


def _finetune_names(plan: Plan, finetune: Sequence[str]) -> dict[str, str]:
    """Check the fine-tuning commands with one row, and name them after their experiment files."""
    names: dict[str, str] = {}
    for words in finetune:
        name = Path(finetune_config(plan, plan.rows[0], 0, words).run_dir).name.removeprefix("seed-0-")
        if name in names:
            raise InputError(f"--finetune: two experiments are named '{name}'; copy one of the files")
        names[name] = words
    return names


def finetune_config(plan: Plan, row: PlannedRow, seed: int, words: str) -> FinetuneConfig:
    """The configuration of a fine-tuning run from a row's parameters, in a folder beside the row's run.

    Args:
      plan: its scale is also the scale of fine-tuning, unless `words` set one or fine-tuning has none of that name.
      row: limits the length of the inputs.
      seed: which run of the row.
      words: arguments of `albert-jax finetune`: an experiment file and options.

    Raises:
      InputError: the arguments are invalid.
    """
    run = plan.run_config(row, seed)
    parser = Parser(prog="albert-jax finetune", add_help=False)
    parser.add_argument("experiment")
    parser.add_argument("--scale", default=plan.scale if plan.scale in FINETUNE_SCALES else "paper")
    parser.add_fields(FinetuneConfig)
    try:
        arguments = parser.parse(shlex.split(words))
        for name in {"init_from", "run_dir", "train.seed"} & arguments.overrides.keys():
            raise InputError(f"--{name.replace('_', '-')} is set by the row")
        folder = Path(run.run_dir).parent / f"seed-{seed}-{Path(arguments.experiment).stem}"
        fixed = {"init_from": run.run_dir, "run_dir": str(folder), "train.seed": seed}
        config = load_finetune_config(arguments.experiment, arguments.overrides | fixed, arguments.scale)
    except ValueError as error:  # InputError, or a quote that is not closed
        raise InputError(f"--finetune '{words}': {error}") from None
    length = min(config.data.max_seq_length, run.model.max_position_embeddings)
    return replace(config, data=replace(config.data, max_seq_length=length))


def cost_table(plan: Plan) -> str:
    """Format a plan's rows with size and cost as Markdown, and estimate the time; for `--dry-run`."""
    lines = []
    total, remaining, speeds = 0.0, 0.0, []
    for row in plan.rows:
        steps = row.config.train.num_train_steps
        tokens = steps * step_tokens(row.config)
        flops = tokens * row.flops_per_token
        values = {
            "parameters": row.parameters,
            "flops_per_token": row.flops_per_token,
            "tokens": tokens,
            "flops": flops,
        }
        cells = [value_text(name, value) for name, value in values.items()]
        lines.append([row.label, f"{steps:,}", *cells, row.paper.get("parameters (M)")])
        total += flops * plan.seeds
        for seed in range(plan.seeds):
            path = Path(plan.run_config(row, seed).run_dir, "summary.json")
            if path.exists():
                summary = read_json(path)
                speeds.append(summary["tokens_per_second"] * summary["flops_per_token"])
            else:
                remaining += flops
    titles = [QUANTITIES[name].title for name in values]
    table = markdown_table(["", "steps", *titles, "paper: parameters (M)"], lines)
    runs = f"{len(plan.rows)} rows x {plan.seeds} seeds: {total / 1e15:,.3g} PFLOP in matrix products"
    if remaining != total:
        runs += f", {remaining / 1e15:,.3g} of them in unfinished runs"
    speed = devices.matmul_flops(plan.rows[0].config.model.dtype)
    time = f"at least {duration(remaining / speed)} here (a large product runs at {speed / 1e12:,.2f} TFLOP/s)"
    if speeds:
        time += f"; about {duration(remaining / statistics.median(speeds))} at the speed of the finished runs"
    note = "; fine-tuning is not included" if plan.finetune else ""
    return f"{plan.caption}\n\n{table}\n\n{runs}. Time: {time}{note}."
