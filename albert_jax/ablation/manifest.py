"""A planned table: every row's configuration; `ablation.json` in the table's folder stores it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from albert_jax.ablation.budget import BUDGETS
from albert_jax.config import InputError, differences, from_dict, override, read_json, to_dict
from albert_jax.pretraining.run import PretrainConfig
from albert_jax.reports.comparison import MANIFEST
from albert_jax.reports.tuning_runs import Values, folder_name, grid_points
from albert_jax.training import run_folder

LOCK = "ablate.lock"
"""File that locks a run or a table for a launch; pretraining and fine-tuning have locks of their own."""

TUNING_SEED = 500_000
"""Added to the seed of tuning runs, so that it is none of the counted seeds."""

Number = int | Values
"""Which run of a row: the number of a counted seed, from 0, or the values of a tuning run."""


def run_name(number: Number) -> str:
    """The folder of a run, in its row's folder."""
    return f"seed-{number}" if isinstance(number, int) else folder_name(number)


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
    grid: dict[str, list[float]] = field(default_factory=dict)
    """Tuned field -> the values to try."""
    tuned: Values = field(default_factory=dict)
    """The values selected from the grid; empty until all tuning runs have ended."""
    teacher: str = ""
    """Label of the row from which this one learns; empty: none."""

    @property
    def needs(self) -> list[str]:
        """The rows whose runs must be finished before those of this row begin."""
        return [label for label in dict.fromkeys((self.start, self.teacher)) if label]


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
    reference: str = ""
    """Label of the row with which the others are compared; empty: the first."""

    def run_config(self, row: PlannedRow, number: Number) -> PretrainConfig:
        """The configuration of a run."""
        values, seed = (row.tuned, number) if isinstance(number, int) else (number, TUNING_SEED)
        config = from_dict(PretrainConfig, override(to_dict(row.config), values))
        run_dir = Path(self.run_dir, row.folder, run_name(number))
        start = str(run_dir / "start") if row.start else config.init_from
        train = replace(config.train, seed=config.train.seed + seed)
        distillation = config.distillation
        if row.teacher:
            distillation = replace(distillation, teacher=self.needed_config(row.teacher, number).run_dir)
        return replace(config, run_dir=str(run_dir), init_from=start, train=train, distillation=distillation)

    def needed_config(self, label: str, number: Number) -> PretrainConfig:
        """The run of row `label` from which a run starts or learns: the same seed, or the selected tuning run."""
        row = self.row(label)
        return self.run_config(row, number if isinstance(number, int) else row.tuned)

    def numbers(self) -> Iterator[tuple[PlannedRow, Number]]:
        """All runs: the tuning runs of rows that are not tuned yet; then all rows with one seed, all rows with the next."""
        for row in self.rows:
            for values in grid_points(row.grid) if not row.tuned else []:
                yield row, values
        for seed in range(self.seeds):
            for row in self.rows:
                yield row, seed

    def merged(self, earlier: "Plan") -> "Plan":
        """Add the rows, seeds and fine-tuning of an earlier plan of the same table in the same folder.

        Rows of both plans keep the earlier version, because the step times of the budget `time` vary.

        Raises:
          InputError: the earlier plan has a different table, scale, budget, base or tuning.
        """
        before, after = (
            {"name": plan.name, "scale": plan.scale, "budget": plan.budget} | plan.base for plan in (earlier, self)
        )
        changed = [d for d in differences(before, after) if not d.startswith(run_folder.MAY_CHANGE_ON_RESUME)]
        if changed:
            raise InputError(
                f"--run-dir {self.run_dir} holds a different table ({'; '.join(changed)}); choose a different folder"
            )
        for row in earlier.rows:
            grids = [one.grid for one in self.rows if one.label == row.label]
            if any(grid != row.grid for grid in grids) or bool(row.grid) != bool(self.rows[0].grid):
                raise InputError(
                    f"--run-dir {self.run_dir}: row '{row.label}' {_grid_text(row.grid)}; give the same, or choose a different "
                    "folder"
                )
        tuned = {row.label: row.tuned for row in earlier.rows}
        new = [replace(row, tuned=tuned.get(row.label, row.tuned)) for row in self.rows]
        # Timed steps differ from launch to launch, so with this budget a row stays as it was first planned.
        rows = {row.label: row for row in ((*new, *earlier.rows) if self.budget == "time" else (*earlier.rows, *new))}
        return replace(
            self,
            rows=tuple(sorted(rows.values(), key=lambda row: row.place)),
            reference=self.reference or earlier.reference,
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
            notes.append("a row that starts from another includes the other's tokens, FLOPs and time")
        if any(row.teacher for row in self.rows):
            notes.append("tokens, FLOPs and time do not include those of teachers")
        equal = "; ".join([BUDGETS[self.budget].caption, *notes, *self._rate_notes()])
        seeds = f"{self.seeds} seed{'s' if self.seeds > 1 else ''} per row"
        return f"{self.name}, scale {self.scale}, {seeds}; {equal}. {self.question}"

    def _rate_notes(self) -> list[str]:
        """Whether the rows are tuned or have the same learning rate."""
        if fields := dict.fromkeys(name for row in self.rows for name in row.grid):
            return [
                f"every row runs at its own best {' and '.join(fields)}, selected by the held-out MLM loss with a seed that is "
                "not counted"
            ]
        rates = {row.config.optim.learning_rate for row in self.rows}
        if len(rates) > 1 or len(self.rows) == 1:
            return []
        note = f"all rows use the learning rate {rates.pop():g}"
        if len({(row.config.model.sharing, row.config.model.num_hidden_groups) for row in self.rows}) > 1:
            note += (
                ", which can be too high for rows with shared layers, because an update of a shared layer takes effect at "
                "every pass (see --tune)"
            )
        return [note]


def _grid_text(grid: Mapping[str, Sequence[float]]) -> str:
    """The option --tune that gives a grid."""
    options = [f"--tune {name}={','.join(f'{value:g}' for value in values)}" for name, values in grid.items()]
    return f"runs with {' '.join(options)}" if options else "runs without --tune"


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
        # Fields that were added since have their defaults.
        base = from_dict(PretrainConfig, stored["base"] | {"run_dir": str(folder)})
        stored["base"] = to_dict(base) | {"run_dir": stored["base"]["run_dir"]}
        return Plan(**stored | {"run_dir": str(folder), "rows": tuple(PlannedRow(**row) for row in rows)})
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: not a plan of this version of albert_jax: {error}") from None
