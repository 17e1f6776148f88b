"""A planned table: every row's configuration; `ablation.json` in the table's folder stores it."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from albert_jax.ablation.budget import BUDGETS
from albert_jax.config import InputError, differences, from_dict, read_json, to_dict
from albert_jax.pretraining.run import PretrainConfig
from albert_jax.reports.comparison import MANIFEST
from albert_jax.training import run_folder


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
