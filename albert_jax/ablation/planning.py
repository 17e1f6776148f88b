"""Plan a table at a scale and with a budget: resolve every row's configuration without running it.

Rows share the seed, and with it the data order, the masks and the initial values of the parameters that they have in common.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from albert_jax.ablation import tuning
from albert_jax.ablation.budget import BUDGETS, WIDTH, row_flops, widened, with_steps
from albert_jax.ablation.manifest import Plan, PlannedRow, load_plan
from albert_jax.ablation.table import Ablation, At, Row, read_table, scale_names, slug
from albert_jax.config import (
    InputError,
    check_choice,
    from_dict,
    load,
    override,
    to_dict,
)
from albert_jax.finetuning.run import SCALES as FINETUNE_SCALES
from albert_jax.finetuning.run import FinetuneConfig
from albert_jax.finetuning.run import load_config as load_finetune_config
from albert_jax.model.heads import Albert, num_params
from albert_jax.parser import Parser
from albert_jax.pretraining.distillation import HEADS_TAUGHT, check_teacher
from albert_jax.pretraining.run import PretrainConfig
from albert_jax.pretraining.task import pretraining_model
from albert_jax.reports.comparison import MANIFEST
from albert_jax.reports.tables import find_label, match_labels

SEED_OFFSET = 1_000_000
"""Added to the seed of a row that starts from another, because with the same seed it would read the same batches again."""


def resolve(
    path: str,
    *,
    scale: str = "tiny",
    seeds: int = 1,
    budget: str = "tokens",
    overrides: Mapping[str, Any] | None = None,
    rows: Sequence[str] = (),
    tune: Sequence[str] = (),
    reference: str = "",
    finetune: Sequence[str] = (),
    run_dir: str = "",
) -> Plan:
    """Plan a table without running it, except that the budget `time` runs some steps of each row.

    Args:
      path: the table's file.
      scale: a file in the folder `scales` beside it.
      seeds: the number of runs per row.
      budget: an entry of `BUDGETS`.
      overrides: for all rows; dotted field -> value.
      rows: labels, or parts of labels, of the rows to run (default: all).
      tune: fields of `optim` with values to try, such as "optim.learning_rate=2e-3,5e-3"; every row runs at its best combination.
      reference: label, or a part of it, of the row with which the others are compared (default: the first); it runs too.
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
    base = _base_config(path, table, scale, overrides or {}, row_fields)
    config = from_dict(PretrainConfig, base | {"run_dir": folder})
    configs = {label: _row_config(config, label, row, scale, path) for label, row in table.rows.items()}
    first = next(iter(table.rows))
    reference = find_label("--reference", reference, list(table.rows)) if reference else ""
    chosen = _chosen_rows(table, [*rows, reference] if rows and reference else rows)
    texts = tuning.read_grid(tune)
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
        one = replace(one, train=train)
        planned.append(
            PlannedRow(
                label=label,
                place=place,
                config=one,
                folder=slug(label),
                start=row.start,
                teacher=row.teacher,
                share=row.share,
                parameters=num_params(Albert(one.model)),
                flops_per_token=row_flops(one),
                paper=dict(row.paper),
                step_seconds=costs[label] if budget == "time" else 0.0,
                grid=tuning.row_grid(texts, label, one),
            )
        )
    models = {one.label: pretraining_model(one.config.model, one.config.objective) for one in planned}
    for student in (one for one in planned if one.teacher):
        settings = replace(student.config.distillation, teacher=f"'{student.teacher}'")
        length = student.config.objective.max_seq_length
        try:
            check_teacher(settings, models[student.label], length, HEADS_TAUGHT, models[student.teacher])
        except InputError as error:
            raise InputError(f"{path}: row '{student.label}': {error}") from None
    base = to_dict(config) | {"run_dir": ""}
    plan = Plan(name, question, scale, budget, seeds, folder, tuple(planned), {}, base, reference)
    return replace(plan, finetune=_finetune_names(plan, finetune))


def _base_config(
    path: str,
    table: Ablation,
    scale: str,
    overrides: Mapping[str, Any],
    row_fields: set[str],
) -> dict[str, Any]:
    """The scale's experiment with the table's fields for it and the overrides."""
    for name in overrides:
        if name in row_fields:
            raise InputError(f"--{name.replace('_', '-')}: rows of {Path(path).stem} set it; change it in {path}")
    experiment = load(PretrainConfig, str(Path(path).parent / "scales" / f"{scale}.py"))
    return override(to_dict(experiment), {**table.base.get(scale, {}), **overrides})


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


def _needed(table: Ablation, label: str) -> set[str]:
    """A row and those that it starts or learns from, directly and indirectly."""
    row = table.rows[label]
    return {label}.union(*(_needed(table, other) for other in (row.start, row.teacher) if other))


def _chosen_rows(table: Ablation, words: Sequence[str]) -> list[str]:
    """The rows that `words` name and those that they start or learn from; a part of a label names every row that contains it."""
    labels = list(table.rows)
    chosen = set() if words else set(labels)
    for word in words:
        for label in match_labels("--rows", word, labels):
            chosen |= _needed(table, label)
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
