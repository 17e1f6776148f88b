"""Tuning of ablation tables: which options are accepted, which values are selected, and that a selection is final."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from albert_jax.ablation import tuning
from albert_jax.ablation.budget import step_tokens
from albert_jax.ablation.cost import cost_table
from albert_jax.ablation.manifest import Plan, load_plan
from albert_jax.ablation.planning import resolve
from albert_jax.config import to_dict
from albert_jax.reports.tuning_runs import grid_points, tuning_table
from albert_jax.training.optim import AdamW

from .conftest import ROOT, assert_input_error, refused

FOLDER = ROOT / "experiments" / "ablations"
SHARING = str(FOLDER / "sharing.py")
LABELS = ["all-shared", "not-shared"]
SETUP = {"optim.optimizer": "adamw", "optim.num_warmup_steps": 50, "train.num_train_steps": 500}
"""Whatever the scale `tiny` has."""
RATES = "optim.learning_rate=5e-4,1e-3,2e-3"


def planned(folder: Path, *tune: str, rows: list[str] = LABELS, **options: Any) -> Plan:
    return resolve(SHARING, rows=rows, run_dir=str(folder), tune=tune, overrides=SETUP, **options)


def end(plan: Plan, label: str, losses: dict[float, float | None]) -> None:
    """Write the end of tuning runs: rate -> loss, or None if it diverged."""
    row = plan.row(label)
    for rate, loss in losses.items():
        folder = Path(plan.run_config(row, {"optim.learning_rate": rate}).run_dir)
        folder.mkdir(parents=True, exist_ok=True)
        name, content = (
            ("failure.json", {"error": "loss is nan", "diverged": True})
            if loss is None
            else ("summary.json", {"eval": {"mlm_loss": loss}})
        )
        (folder / name).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("tune", "message"),
    [
        (["optim.learning_rate"], "--tune optim.learning_rate: expected FIELD=VALUE,VALUE such as optim.learning_rate=2e-3"),
        (["optim.learning_rate=1e-3"], "--tune optim.learning_rate=1e-3: expected FIELD=VALUE,VALUE such as"),
        ([RATES, RATES], "--tune optim.learning_rate is given twice; list all values in one option"),
        (["optim.learning_rate=1e-3,0.001"], "optim.learning_rate: a value is listed twice"),
        (["optim.learning_rate=1e-3,fast"], "--tune: row 'all-shared': optim.learning_rate: expected float, got 'fast'"),
        (["optim.learning_rate=1e-3,-1"], "optim.learning_rate must be finite and > 0, got -1.0"),
        (["optim.lerning_rate=1,2"], "unknown key 'optim.lerning_rate'; did you mean 'learning_rate'?"),
        (["optim.optimizer.adam_learning_rate=1,2"], "row 'all-shared': unknown key 'optim.optimizer.adam_learning_rate'"),
        (["optim.num_warmup_steps=5,1000"], "optim.num_warmup_steps (1000) must be < train.num_train_steps (500)"),
        (["optim.schedule=linear,cosine"], "optim.schedule: only numbers can be tuned; make rows of other fields"),
        (["optim.optimizer=lamb,adamw"], "optim.optimizer: only numbers can be tuned; make rows of other fields"),
        (["model.hidden_size=64,128"], "--tune model.hidden_size: only numbers of the section optim can be tuned"),
    ],
)  # fmt: skip
def test_refused(tune: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = [("--tune", text) for text in tune] + [(f"--{name}", str(value)) for name, value in SETUP.items()]
    assert message in refused(
        ["ablate", SHARING, "--dry-run", *(word for option in options for word in option)], capsys
    )


def test_a_tuned_value_replaces_that_of_the_row(tmp_path: Path) -> None:
    """Fails if a row kept its own learning rate."""
    plan = resolve(str(FOLDER / "optimizer.py"), tune=[RATES], rows=["Muon, batch x 1"], run_dir=str(tmp_path))
    row = plan.row("Muon, batch x 1")
    rates = [plan.run_config(row, point).optim.learning_rate for point in grid_points(row.grid)]
    assert rates == [5e-4, 1e-3, 2e-3]


def test_values_and_seeds_of_tuning_runs(tmp_path: Path) -> None:
    """All combinations; values have the type of their field; the seed is none that any number of counted runs uses."""
    plan = planned(tmp_path, "optim.optimizer.beta2=0.98,0.999", "optim.num-warmup-steps=5,10", seeds=3)
    row = plan.rows[1]
    points = grid_points(row.grid)
    assert len(points) == 4
    configs = [plan.run_config(row, point) for point in points]
    chosen = []
    for config in configs:
        assert isinstance(config.optim.optimizer, AdamW)
        chosen.append((config.optim.optimizer.beta2, config.optim.num_warmup_steps))
        assert 3 <= config.train.seed < 1_000_000
        same = dataclasses.replace(config, optim=row.config.optim, run_dir=row.config.run_dir, train=row.config.train)
        assert same == row.config
    assert chosen == [(0.98, 5), (0.98, 10), (0.999, 5), (0.999, 10)]
    assert [Path(config.run_dir).name for config in configs][1] == "tune-beta2-0.98-num_warmup_steps-10"
    assert [number for _, number in plan.numbers()][:10] == [*points, *points, 0, 0]


def test_the_best_value_is_selected_once(tmp_path: Path) -> None:
    """By the lowest loss, when all tuning runs have ended; a diverged one counts as worst, and one that failed otherwise has not ended.

    Fails if a selection changes when a loss does, or if counted runs do not use it.
    """
    plan = planned(tmp_path, RATES, seeds=2)
    plan.save()
    shared, unshared = LABELS
    end(plan, shared, {0.0005: 5.1, 0.001: 5.0})
    stored = tuning.select(str(tmp_path), shared)
    assert stored.row(shared).tuned == {}
    assert "tune-learning_rate-0.002" in tuning.check_selected(stored, stored.row(shared))
    failed = Path(plan.run_config(plan.row(shared), {"optim.learning_rate": 0.002}).run_dir)
    failed.mkdir(parents=True)
    (failed / "failure.json").write_text(json.dumps({"error": "disk full", "diverged": False}))
    assert tuning.select(str(tmp_path), shared).row(shared).tuned == {}
    assert "failed: all-shared, learning_rate 0.002: disk full" in tuning_table(tmp_path, to_dict(plan))
    end(plan, shared, {0.002: None})
    stored = tuning.select(str(tmp_path), shared)
    assert stored == load_plan(tmp_path)
    assert [row.tuned for row in stored.rows] == [{"optim.learning_rate": 0.001}, {}]
    config = stored.run_config(stored.row(shared), 1)
    assert (config.optim.learning_rate, config.train.seed) == (0.001, 1)
    assert Path(config.run_dir).name == "seed-1"

    end(plan, unshared, {0.0005: 5.0, 0.001: 4.9, 0.002: 4.5})
    end(plan, shared, {0.0005: 1.0})
    for label in LABELS:
        stored = tuning.select(str(tmp_path), label)
    assert [row.tuned["optim.learning_rate"] for row in stored.rows] == [0.001, 0.002]
    text = tuning_table(tmp_path, json.loads((tmp_path / "ablation.json").read_text()))
    assert f"| {shared} | 1.000 | **5.000** | diverged |" in text
    assert f"| {unshared} | 5.000 | 4.900 | **4.500** |" in text
    assert text.count("edge of the grid") == 1
    assert f"better value: {unshared} (learning_rate 0.002)." in text
    assert planned(tmp_path, RATES).merged(stored).rows == stored.rows


def test_an_edited_row_replaces_the_planned_one(tmp_path: Path) -> None:
    """With the values that were selected for it.  Fails if a launch runs the row as an earlier launch planned it."""
    plan = planned(tmp_path, RATES)
    plan.save()
    end(plan, LABELS[0], {0.0005: 5.1, 0.001: 5.0, 0.002: 5.2})
    stored = tuning.select(str(tmp_path), LABELS[0])
    config = dataclasses.replace(plan.rows[0].config, init_from="elsewhere")
    edited = dataclasses.replace(plan, rows=(dataclasses.replace(plan.rows[0], config=config), plan.rows[1]))
    row = edited.merged(stored).rows[0]
    assert (row.config.init_from, row.tuned) == ("elsewhere", {"optim.learning_rate": 0.001})


def test_tuning_runs_of_a_row_that_starts_from_a_tuned_row(tmp_path: Path) -> None:
    """They start from the selected tuning run of the other row; counted runs from its run with the same seed."""
    plan = resolve(
        str(FOLDER / "depth.py"), rows=["3 layers from 1"], run_dir=str(tmp_path), tune=[RATES], overrides=SETUP
    )
    plan.save()
    end(plan, "1 layer", {0.0005: 5.1, 0.001: 5.0, 0.002: 5.2})
    plan = tuning.select(str(tmp_path), "1 layer")
    row = plan.row("3 layers from 1")
    starts = [Path(plan.needed_config(row.start, number).run_dir) for number in ({"optim.learning_rate": 0.002}, 1)]
    assert [start.relative_to(tmp_path) for start in starts] == [
        Path("1-layer/tune-learning_rate-0.001"),
        Path("1-layer/seed-1"),
    ]
    assert plan.run_config(row, {"optim.learning_rate": 0.002}).train.seed == 1_500_000


def test_a_row_whose_tuning_runs_all_fail_cannot_run(tmp_path: Path) -> None:
    plan = planned(tmp_path, RATES)
    plan.save()
    end(plan, LABELS[0], {0.0005: None, 0.001: None, 0.002: None})
    stored = tuning.select(str(tmp_path), LABELS[0])
    assert_input_error(
        lambda: tuning.check_selected(stored, stored.rows[0]), "all tuning runs diverged; the first: loss is nan"
    )


def test_launches_in_one_folder(tmp_path: Path) -> None:
    """Different rows may have different grids, but a row has one grid, and all rows of a table are tuned or none."""
    first = planned(tmp_path, RATES, rows=LABELS[:1], reference=LABELS[0])
    other = "optim.learning_rate=1e-3,4e-3"
    merged = planned(tmp_path, other, rows=LABELS[1:]).merged(first)
    assert [row.grid["optim.learning_rate"] for row in merged.rows] == [[0.0005, 0.001, 0.002], [0.001, 0.004]]
    assert merged.reference == LABELS[0]
    message = f"row '{LABELS[0]}' runs with --tune optim.learning_rate=0.0005,0.001,0.002; give the same, or choose"
    for again in (planned(tmp_path, other), planned(tmp_path), planned(tmp_path, rows=LABELS[1:])):
        assert_input_error(lambda again=again: again.merged(first), message)  # type: ignore[misc]
    assert_input_error(lambda: first.merged(planned(tmp_path)), f"row '{LABELS[0]}' runs without --tune; give the same")


def test_cost_and_caption(tmp_path: Path) -> None:
    """Tuning runs are counted in the cost, and the reference runs although it is not named by `rows`."""
    plan = planned(tmp_path, RATES, rows=["2 groups"], reference="not-shared", seeds=5)
    assert [row.label for row in plan.rows] == [LABELS[1], "2 groups"]
    assert plan.reference == LABELS[1]
    text = cost_table(plan)
    single = plan.rows[0].flops_per_token * step_tokens(plan.rows[0].config) * 500
    assert f"2 rows x 5 seeds and 6 tuning runs: {16 * single / 1e15:,.3g} PFLOP in matrix products" in text
    assert (
        "; every row runs at its own best optim.learning_rate, selected by the held-out MLM loss with a seed that is not counted"
        in text
    )
    assert_input_error(
        lambda: planned(tmp_path, reference="E = H"), "--reference: several labels contain 'E = H': all-shared, E = H; "
    )
