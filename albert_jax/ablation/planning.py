"""A table at a scale and a budget: the plan, with every row decided but its seed; `ablation.json` of the table's folder holds it.

Running it is `ablate.py`'s business, what its rows come to `comparison.py`'s.
"""

import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from albert_jax.ablation.budget import BUDGETS, WIDTH, lasting, row_flops, widened
from albert_jax.ablation.table import Ablation, At, Row, read_table, scales, slug
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
    require,
    to_dict,
)
from albert_jax.finetuning.run import OWN_MODEL_FIELDS, FinetuneConfig
from albert_jax.finetuning.run import SCALES as FINETUNE_SCALES
from albert_jax.finetuning.run import load_config as load_finetune_config
from albert_jax.model.heads import Albert, num_params
from albert_jax.pretraining.run import PretrainConfig
from albert_jax.reports.comparison import MANIFEST
from albert_jax.reports.tables import duration
from albert_jax.training import run_folder
from albert_jax.training.devices import matmul_flops

LATER_SEED = 1_000_000
"""Added to the seed of a row that starts from another: with that one's own it would read the same batches again."""


@dataclass(frozen=True)
class PlannedRow:
    """A row with everything decided but the seed."""

    label: str
    place: int
    """In the table."""
    config: PretrainConfig
    """Of the first seed; its run_dir is the row's folder."""
    start: str
    share: float
    parameters: int
    flops_per_token: float
    paper: dict[str, float]
    step_seconds: float = 0.0
    """What the budget `time` measured; 0 elsewhere."""

    def seed(self, seed: int) -> PretrainConfig:
        """The run of the seed-th seed, from 0."""
        run_dir = Path(self.config.run_dir) / f"seed-{seed}"
        start = str(run_dir / "start") if self.start else self.config.init_from
        return replace(
            self.config,
            run_dir=str(run_dir),
            init_from=start,
            train=replace(self.config.train, seed=self.config.train.seed + seed),
        )


@dataclass(frozen=True)
class Plan:
    """A table at a scale and a budget; `ablation.json` of its folder holds it."""

    name: str
    question: str
    """The first line of the file's docstring."""
    scale: str
    budget: str
    seeds: int
    run_dir: str
    rows: tuple[PlannedRow, ...]
    finetune: dict[str, str]
    """Name of an experiment file -> what stands behind `albert-jax finetune`: the file and options."""
    base: dict[str, Any]
    """What the rows are overrides of."""

    def joined(self, before: "Plan") -> "Plan":
        """This plan, and what the folder holds of one before: its rows and seeds that have been begun, its fine-tuning.

        Rows of both stay as they were, since what was measured for the budget `time` differs each time.

        Raises:
          InputError: that one is of another table, scale, budget or base.
        """
        begun = [row for row in before.rows if Path(self.run_dir, slug(row.label)).exists()]
        if not begun:
            return self
        told = f"--run-dir {self.run_dir} holds another table"
        for name in ("name", "scale", "budget"):
            theirs, ours = getattr(before, name), getattr(self, name)
            require(theirs == ours, f"{told}: {name} {theirs!r}, not {ours!r}; give another")
        changed = [d for d in differences(before.base, self.base) if not d.startswith(run_folder.MAY_CHANGE_ON_RESUME)]
        require(not changed, f"{told}, of another base ({'; '.join(changed)}); give another")
        rows = {row.label: row for row in self.rows} | {row.label: row for row in begun}
        ordered = tuple(sorted(rows.values(), key=lambda row: row.place))
        runs = [path.name for row in ordered for path in Path(self.run_dir, slug(row.label)).glob("seed-*")]
        seeds = max([self.seeds, *(int(name[5:]) + 1 for name in runs if name[5:].isdecimal())])
        moved = tuple(replace(row, config=replace(row.config, run_dir=self.folder(row.label))) for row in ordered)
        return replace(self, rows=moved, seeds=seeds, finetune=before.finetune | self.finetune)

    def folder(self, label: str) -> str:
        """Of a row."""
        return str(Path(self.run_dir, slug(label)))

    def save(self) -> None:
        """Writes `ablation.json`."""
        Path(self.run_dir).mkdir(parents=True, exist_ok=True)
        run_folder.write_json(Path(self.run_dir) / MANIFEST, to_dict(self) | {"caption": self.caption})

    def row(self, label: str) -> PlannedRow:
        """The row of that label.

        Raises:
          InputError: there is none.
        """
        found = next((row for row in self.rows if row.label == label), None)
        if found is None:
            raise InputError(f"{self.run_dir}: its {MANIFEST} has no row '{label}'")
        return found

    @property
    def caption(self) -> str:
        """What the table is of, and what is held equal in it."""
        seeds = f"{self.seeds} seed{'s' * (self.seeds > 1)} a row"
        equal = BUDGETS[self.budget].caption
        shares = [f"{row.share:g} of that for '{row.label}'" for row in self.rows if row.share != 1]
        started = ["what a row starts from comes on top"] * any(row.start for row in self.rows)
        notes = f" ({'; '.join([*shares, *started])})" if shares or started else ""
        return f"{self.name}, scale {self.scale}, {seeds}; {equal}{notes}. {self.question}"


def load_plan(path: Path) -> Plan:
    """The plan in an `ablation.json`.

    Raises:
      InputError: it is none, or of another version.
    """
    stored = {name: value for name, value in read_json(path).items() if name != "caption"}
    try:
        rows = [row | {"config": from_dict(PretrainConfig, row["config"])} for row in stored["rows"]]
        return Plan(**stored | {"rows": tuple(PlannedRow(**row) for row in rows)})
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: not a plan of this version: {error}") from None


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
    """Every row of a table decided, without running any; but the budget `time` runs some steps of each.

    Args:
      path: the table's file.
      scale: a file in the folder `scales` beside it.
      seeds: runs a row, from the scale's train.seed on.
      budget: one of `BUDGETS`.
      overrides: command-line words such as `--train.num-train-steps 500`, for all rows.
      rows: labels of the rows wanted, or parts of labels, which may fit several; all by default.
      finetune: each what stands behind `albert-jax finetune`; run from every row's parameters.
      run_dir: the folder; `runs/NAME-SCALE` by default.

    Raises:
      InputError: a field that is unknown, or one that rows set and `overrides` too; a configuration that cannot be.
    """
    question, table = read_table(path)
    name = Path(path).stem
    require(scale in scales(path), f"--scale: one of {', '.join(scales(path))}, got {scale!r}")
    require(budget in BUDGETS, f"--budget: one of {', '.join(BUDGETS)}, got {budget!r}")
    require(seeds >= 1, f"--seeds must be at least 1, got {seeds}")
    given = read_overrides(PretrainConfig, overrides)
    ours = {key for row in table.rows.values() for key in row.overrides}
    for key in given:
        require(key not in ours, f"--{key.replace('_', '-')}: rows of {name} set it; change it in {path}")
    require("run_dir" not in given, "--run-dir is the table's: give it once")
    base = to_dict(load(PretrainConfig, str(Path(path).parent / "scales" / f"{scale}.py")))
    base = override(base, {**table.base.get(scale, {}), **given})
    folder = str(Path(run_dir or f"runs/{name}-{scale}").expanduser())
    config = from_dict(PretrainConfig, base | {"run_dir": folder})
    first = next(iter(table.rows))
    chosen = _chosen(list(table.rows), table, rows)
    if budget == "time" and first not in chosen:
        chosen = [first, *chosen]  # what the others are measured against is kept with them
    require(
        budget != "params" or not ours & set(WIDTH), f"--budget params: the rows of {name} set the width themselves"
    )
    configs = {label: _row(config, label, row, scale, path) for label, row in table.rows.items()}
    if budget == "params":
        target = num_params(Albert(configs[first].model))
        configs = {label: replace(c, model=widened(c.model, target)) for label, c in configs.items()}
        for label in chosen:
            start = table.rows[label].start
            same = not start or configs[start].model.hidden_size == configs[label].model.hidden_size
            require(same, f"--budget params: '{label}' cannot start from '{start}', which is of another width")
    wanted = {label: configs[label] for label in dict.fromkeys((first, *chosen))}
    costs = _costs(budget, wanted, folder)
    planned = []
    for label in chosen:
        row, steps = table.rows[label], config.train.num_train_steps * costs[first] / costs[label]
        one = lasting(configs[label], config, steps * row.share)
        train = replace(one.train, seed=one.train.seed + LATER_SEED * _generation(table, label))
        planned.append(
            PlannedRow(
                label=label,
                place=list(table.rows).index(label),
                config=replace(one, run_dir=str(Path(folder, slug(label))), train=train),
                start=row.start,
                share=row.share,
                parameters=num_params(Albert(one.model)),
                flops_per_token=row_flops(one),
                paper=dict(row.paper),
                step_seconds=costs[label] if budget == "time" else 0.0,
            )
        )
    tuned: dict[str, str] = {}
    for words in finetune:  # refused before anything runs
        tuned_name = Path(finetune_config(planned[0], 0, scale, words).run_dir).name.removeprefix("seed-0-")
        require(tuned_name not in tuned, f"--finetune: two of the name '{tuned_name}'; copy one of the files")
        tuned[tuned_name] = words
    return Plan(name, question, scale, budget, seeds, folder, tuple(planned), tuned, to_dict(config) | {"run_dir": ""})


def _chosen(labels: list[str], table: Ablation, wanted: Sequence[str]) -> list[str]:
    """The rows asked for, and those that they start from, in the table's order."""
    if not wanted:
        return labels
    chosen = set()
    for word in wanted:
        found = [label for label in labels if label == word] or [label for label in labels if word in label]
        require(bool(found), f"--rows: no row has '{word}' in its label; they are {'; '.join(labels)}")
        chosen |= set(found)
    for label in reversed(labels):
        if label in chosen and table.rows[label].start:
            chosen.add(table.rows[label].start)
    return [label for label in labels if label in chosen]


def _costs(budget: str, configs: Mapping[str, PretrainConfig], folder: str) -> dict[str, float]:
    """What a step of each row costs; what was measured stays as it was, or a table could not be gone on with."""
    path = Path(folder) / MANIFEST
    measured = load_plan(path).rows if budget == "time" and path.exists() else ()
    known = {row.label: row.step_seconds for row in measured}
    return {label: known.get(label) or BUDGETS[budget].cost(config) for label, config in configs.items()}


def _generation(table: Ablation, label: str) -> int:
    start = table.rows[label].start
    return 1 + _generation(table, start) if start else 0


def _row(base: PretrainConfig, label: str, row: Row, scale: str, path: str) -> PretrainConfig:
    values = {}
    try:
        for key, value in row.overrides.items():
            if isinstance(value, At):
                told = f"{key} has no value at scale {scale!r}, only at {', '.join(value.values)}"
                require(scale in value.values, told)
                value = value.values[scale]
            values[key] = value
        config = from_dict(PretrainConfig, override(to_dict(base), values) | {"eval_objective": None})
        # Held-out pieces are masked in the same way whatever a row trains on; pairs are the row's own, as in Table 5.
        own = {name: getattr(config.objective, name) for name in ("sentence_objective", "max_seq_length")}
        asked = replace(base.eval_objective or base.objective, **own)
        return config if asked == config.objective else replace(config, eval_objective=asked)
    except InputError as error:
        raise InputError(f"{path}: row '{label}': {error}") from None


def finetune_config(row: PlannedRow, seed: int, scale: str, words: str) -> FinetuneConfig:
    """The fine-tuning run from a row's parameters that `words` stand for, in a folder beside the row's own run.

    `words` are an experiment file and options as behind `albert-jax finetune`; the scale is the table's where fine-tuning has
    one of that name and `words` give no other.  Inputs are no longer than the row's network takes.

    Raises:
      InputError: they are no such thing.
    """
    own, error_prefix = row.seed(seed), f"--finetune '{words}'"
    parser = Parser(prog="albert-jax finetune", add_help=False)
    parser.add_argument("experiment")
    parser.add_argument("--scale", default=scale if scale in FINETUNE_SCALES else "paper")
    parser.add_fields(FinetuneConfig)
    try:
        arguments = parser.parse(shlex.split(words))
        check_choice("--scale", arguments.scale, FINETUNE_SCALES)
        given = arguments.overrides
        fields = [
            name for name in given if name.startswith("model.") and name.removeprefix("model.") not in OWN_MODEL_FIELDS
        ]
        for name in ("init_from", "run_dir", "train.seed", *fields):
            require(name not in given, f"--{name.replace('_', '-')} is the row's")
        folder = Path(own.run_dir).parent / f"seed-{seed}-{Path(arguments.experiment).stem}"
        fixed = {"init_from": own.run_dir, "run_dir": str(folder), "train.seed": seed}
        config = load_finetune_config(arguments.experiment, given | fixed, arguments.scale)
    except ValueError as error:
        raise InputError(f"{error_prefix}: {error}") from None
    length = min(config.data.max_seq_length, own.model.max_position_embeddings)
    return replace(config, data=replace(config.data, max_seq_length=length))


def describe(plan: Plan) -> str:
    """The rows of a plan with their sizes and what they will cost, as Markdown; for `--dry-run`."""
    rows = ["| | parameters | MFLOP/token | steps | tokens (M) | PFLOP | paper: parameters (M) |", "|---" * 7 + "|"]
    flops, left, rates = 0.0, 0.0, []
    for row in plan.rows:
        train, objective = row.config.train, row.config.objective
        tokens = train.num_train_steps * train.global_batch_size * objective.max_seq_length
        flops += tokens * row.flops_per_token * plan.seeds
        for seed in range(plan.seeds):
            path = Path(row.seed(seed).run_dir, "summary.json")
            if path.exists():
                found = read_json(path)
                rates.append(found["tokens_per_second"] * found["flops_per_token"])
            else:
                left += tokens * row.flops_per_token
        paper = f"{row.paper['parameters (M)']:g}" if "parameters (M)" in row.paper else ""
        cells = [
            f"{row.parameters:,}",
            f"{row.flops_per_token / 1e6:,.1f}",
            f"{train.num_train_steps:,}",
            f"{tokens / 1e6:,.2f}",
            f"{tokens * row.flops_per_token / 1e15:,.3g}",
            paper,
        ]
        rows.append(f"| {' | '.join([row.label, *cells])} |")
    speed = matmul_flops(plan.rows[0].config.model.dtype)
    runs = f"{len(plan.rows)} rows x {plan.seeds} seeds are {flops / 1e15:,.3g} PFLOP in matrix products"
    todo = "" if left == flops else f", {left / 1e15:,.3g} of them in runs that are not finished"
    least = f"at least {duration(left / speed)} here, where a large product runs at {speed / 1e12:,.2f} TFLOP/s"
    seen = f"; about {duration(left / statistics.median(rates))} at the speed of the finished runs" if rates else ""
    tuned = "; fine-tuning is not counted" if plan.finetune else ""
    return "\n".join([plan.caption, "", *rows, "", f"{runs}{todo}: {least}{seen}{tuned}."])
