"""Tables that are run: finished rows are kept, failed ones shown, killed ones resumed, and no run is run twice."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from albert_jax.ablation.budget import step_seconds
from albert_jax.ablation.planning import load_plan, resolve
from albert_jax.ablation.run import run_unit
from albert_jax.ablation.table import read_table
from albert_jax.cli import main
from albert_jax.exchange import load as exchange
from albert_jax.exchange.reshare import reshare
from albert_jax.reports import comparison
from albert_jax.training.run_folder import file_lock, read_metrics

from .conftest import ROOT, refused
from .synthetic_tasks import WRITE
from .test_resume import digest

pytestmark = pytest.mark.slow

TABLE = '''"""Does a small table run?"""

from albert_jax.ablation import Ablation, Row

ablation = Ablation(
    rows={
        "shared": Row({"model.sharing": "all"}, {"parameters (M)": 12, "average": 80.1}),
        "fails": Row({"data.vocab": "nowhere.model"}),
        "unshared later": Row({"model.sharing": "none"}, start="shared", share=0.5),
        "after that": Row({"model.sharing": "none"}, start="fails"),
    },
)
'''

Words = Callable[..., list[str]]


@pytest.fixture(scope="module")
def words(small: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> Words:
    """`words(run_dir, *options, **fields)`: a table of four rows, of networks that take seconds."""
    folder = tmp_path_factory.mktemp("tables")
    (folder / "scales").symlink_to(ROOT / "experiments" / "ablations" / "scales")
    (folder / "four.py").write_text(TABLE)

    def command(run_dir: Path, *options: str, **fields: Any) -> list[str]:
        quick = {"train__num_train_steps": 12, "optim__num_warmup_steps": 2, "train__eval_every": 6} | fields
        given = small(run_dir, train__checkpoint_every=6, **quick)[2:]
        return ["ablate", str(folder / "four.py"), *given, *options]

    return command


@pytest.fixture(scope="module")
def table(words: Words, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The table after one launch with two seeds, where one row fails."""
    folder = tmp_path_factory.mktemp("table") / "four"
    assert main(words(folder, "--seeds", "2")) == 1
    return folder


def summaries(folder: Path, row: str) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((folder / row).glob("seed-?/summary.json"))]


def test_finished_failed_and_waiting_rows_are_shown(table: Path) -> None:
    found = comparison.read([table])
    states = {line.label: line.state for line in found.lines}
    assert states == {
        "shared": "2",
        "fails": "0 of 2; 2 failed",
        "unshared later": "2",
        "after that": "0 of 2; 2 not begun",
    }
    text = (table / "table.md").read_text()
    assert "failed: fails, seed-0: nowhere.model: " in text
    assert "| after that | 0 of 2; 2 not begun | " in text
    told = "2 seeds a row; every row sees as many tokens (0.5 of that for 'unshared later'; what a row starts from comes on top)"
    assert f"{told}. Does a small table run?" in text


def test_table_is_mean_and_spread_of_the_summaries(table: Path) -> None:
    """Fails if the spread is over n, or rows are mixed up."""
    values = [summary["eval"]["mlm_loss"] for summary in summaries(table, "shared")]
    assert len(set(values)) == 2, "seeds that come to the same test nothing"
    cells = next(line for line in (table / "table.md").read_text().splitlines() if line.startswith("| shared |")).split(
        " | "
    )
    assert f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}" in cells
    assert cells[-2:] == ["12", "80.1 |"]
    rows = list(csv.DictReader((table / "runs.csv").read_text().splitlines()))
    assert [row["state"] for row in rows[:2]] == ["finished"] * 2
    assert rows[2]["state"].startswith("failed: nowhere.model: ")
    assert [float(row["mlm_loss"]) for row in rows[:2]] == pytest.approx(values)
    first = next(csv.DictReader((table / "table.csv").read_text().splitlines()))
    assert float(first["mlm_loss std"]) == pytest.approx(np.std(values, ddof=1))
    assert first["paper: average"] == "80.1"


def test_figures(table: Path) -> None:
    for name in ("curves", "scores"):
        assert (table / f"{name}.png").stat().st_size > 20_000
        assert "<svg" in (table / f"{name}.svg").read_text()


def test_what_a_row_starts_from(table: Path) -> None:
    """The network of the other row's same seed, unshared, bit for bit, with the tokens of both; and another seed's batches.

    Fails if the start is the first seed's for all, or is not unshared.
    """
    plan = load_plan(table / "ablation.json")
    row = plan.row("unshared later")
    for seed in (0, 1):
        config = row.seed(seed)
        source = exchange.read(table / "shared" / f"seed-{seed}").weights
        start = exchange.read(config.init_from).weights
        assert start.model.config.sharing == config.model.sharing == "none"
        wanted = reshare(source, sharing="none").params
        assert jax.tree.all(jax.tree.map(np.array_equal, start.params, wanted))
        first = next(r for r in read_metrics(Path(config.run_dir)) if "train/mlm_loss" in r)
        fresh = next(r for r in read_metrics(table / "shared" / f"seed-{seed}") if "train/mlm_loss" in r)
        assert first["train/mlm_loss"] < fresh["train/mlm_loss"]
        assert config.train.seed == 1_000_000 + seed
    lines = {line.label: line for line in comparison.read([table]).lines}
    before, own = (summaries(table, name)[0] for name in ("shared", "unshared-later"))
    result = lines["unshared later"].results[0]
    assert result["tokens"] == before["tokens"] + own["tokens"]
    assert result["flops"] == sum(part["tokens"] * part["flops_per_token"] for part in (before, own))
    assert lines["shared"].results[0]["tokens"] == before["tokens"]
    at = [record["at"] for record in lines["unshared later"].records[0]]
    assert (at[0], at[-1]) == ((12 + 1) * 16 * 32, (12 + 6) * 16 * 32)


def test_the_same_command_runs_only_what_is_not_finished(
    table: Path, words: Words, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in table.glob("*/seed-*/summary.json")}
    assert len(before) == 4
    assert main(words(table, "--seeds", "2")) == 1
    assert {path: path.stat().st_mtime_ns for path in table.glob("*/seed-*/summary.json")} == before
    told = capsys.readouterr().err
    assert "shared, seed 0: was finished before" in told
    assert "fails, seed 1: failed" in told
    assert "after that, seed 0: not begun: 'fails', which it starts from, is not finished" in told


def test_another_table_is_refused(table: Path, words: Words, capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(words(table, model__hidden_size=64), capsys)
    assert f"--run-dir {table} holds another table, of another base (model.hidden_size: 32 -> 64); give another" in told
    told = refused(words(table, "--budget", "flops"), capsys)
    assert f"--run-dir {table} holds another table: budget 'tokens', not 'flops'; give another" in told


def test_probes_are_beside_the_table(table: Path) -> None:
    found = json.loads((table / "probes.json").read_text())
    assert found["objective"] == "sop"
    assert not found["case"]
    assert (
        f"SOP comes to {100 * found['shapes']:.1f} % from lengths and punctuation, " in (table / "table.md").read_text()
    )


def test_killed_between_rows_and_within_one(words: Words, table: Path, tmp_path: Path) -> None:
    """kill -9 in the middle of a run; the next launch resumes that one, and all comes to the same bits as without."""
    folder = tmp_path / "four"
    command = [sys.executable, "-m", "albert_jax", *words(folder, "--seeds", "2")]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    wanted = folder / "unshared-later" / "seed-0" / "checkpoints"
    for _ in range(3000):
        if wanted.exists() or process.poll() is not None:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "unshared-later" / "seed-0" / "summary.json").exists()
    assert main(words(folder, "--seeds", "2")) == 1
    for row, step in (("shared", 12), ("unshared-later", 6)):
        for seed in (0, 1):
            assert digest(folder / row / f"seed-{seed}", step) == digest(table / row / f"seed-{seed}", step)


def test_two_launches_never_run_a_row_twice(words: Words, tmp_path: Path) -> None:
    """Side by side on one folder each run is finished by one of them."""
    folder = tmp_path / "four"
    command = [sys.executable, "-m", "albert_jax", *words(folder, "--seeds", "3", "--rows", "unshared later")]
    launches = [
        subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) for _ in range(2)
    ]
    told = "".join(launch.communicate()[1] for launch in launches)
    for row in ("shared", "unshared later"):
        for seed in range(3):
            assert told.count(f"{row}, seed {seed}: finished") <= 1
    assert sum(told.count(f"shared, seed {seed}: finished") for seed in range(3)) == 3
    for path in folder.glob("*/seed-*/metrics.jsonl"):
        steps = [json.loads(line)["step"] for line in path.read_text().splitlines() if "train/loss" in line]
        assert steps == list(range(1, len(steps) + 1))
    # What waited for the other launch's row is left; one launch more finds that finished.
    assert main(words(folder, "--seeds", "3", "--rows", "unshared later")) == 0
    assert [line.state for line in comparison.read([folder]).lines] == ["3", "3"]


def test_a_folder_is_held_by_one(tmp_path: Path) -> None:
    with file_lock(tmp_path) as first, file_lock(tmp_path) as second:
        assert (first, second) == (True, False)
    with file_lock(tmp_path) as third:
        assert third


def test_rows_are_fine_tuned(words: Words, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A finished table can be fine-tuned afterwards; the scores stand in it, and pretraining is not run again."""
    options = " ".join(WRITE["cola"](_made(tmp_path / "cola")))
    tuning = f"{ROOT}/experiments/finetune/cola.py {options} --train.num-train-steps 6 --optim.num-warmup-steps 1"
    before = (table / "shared" / "seed-0" / "summary.json").stat().st_mtime_ns
    wrong = f"{ROOT}/experiments/finetune/cola.py --data.dir {tmp_path / 'nowhere'}"
    assert "nowhere" in refused([*words(table, "--rows", "shared"), "--finetune", wrong], capsys)
    assert main([*words(table, "--rows", "shared"), "--finetune", tuning]) == 0
    told = refused([*words(table, "--rows", "shared"), "--finetune", f"{tuning} --optim.learning-rate 1"], capsys)
    assert "seed-0-cola was fine-tuned with other settings (optim.learning_rate: 0.0005 -> 1.0)" in told
    assert (table / "shared" / "seed-0" / "summary.json").stat().st_mtime_ns == before
    stored = json.loads((table / "shared" / "seed-0-cola" / "config.json").read_text())["config"]
    assert stored["init_from"] == str(table / "shared" / "seed-0")
    assert stored["data"]["max_seq_length"] == 32  # what the row's network takes, though the scale says more
    assert stored["train"]["num_train_steps"] == 6
    found = comparison.read([table]).lines[0]
    assert found.values("cola matthews") == [
        json.loads((table / "shared" / "seed-0-cola" / "summary.json").read_text())["best"]["matthews"]
    ]
    states = {line.label: line.state for line in comparison.read([table]).lines}
    assert states["shared"] == "1 of 2; 1 without cola"
    assert "| cola matthews |" in (table / "table.md").read_text()


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_step_seconds(words: Words, tmp_path: Path) -> None:
    """A real measurement, which leaves nothing behind."""
    before = set(tmp_path.iterdir())
    command = words(tmp_path / "four")
    plan = resolve(command[1], rows=["shared"], overrides=command[2:-2])  # without the run folder
    assert 0 < step_seconds(plan.rows[0].config) < 10
    assert set(tmp_path.iterdir()) == before


SBATCH = """#!/bin/sh
grep -o 'dependency=.*' "$1" >> {log} || echo none >> {log}
echo "Submitted batch job $((99 + $(wc -l < {log})))"
"""
SRUN = """#!/bin/sh
while [ "${1#*python}" = "$1" ]; do shift; done
exec "$@"
"""


def test_slurm(
    words: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One job a run, later rows after those that they start from; and each job, once a node takes it, does its run."""
    binaries, log = tmp_path / "bin", tmp_path / "sbatch.log"
    binaries.mkdir()
    for name, text in {"sbatch": SBATCH.format(log=log), "srun": SRUN}.items():
        (binaries / name).write_text(text)
        (binaries / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{binaries}:{os.environ['PATH']}")
    folder = tmp_path / "four"
    command = words(folder, "--rows", "unshared later", "--launcher", "slurm")
    assert main([*command, "--slurm", "timeout_min=5", "--slurm", "slurm_partition=gpu"]) == 0
    assert capsys.readouterr().out.startswith("2 jobs: 100 101\n")
    assert log.read_text().splitlines() == ["none", "dependency=afterany:100"]
    node = {"NTASKS": "1", "JOB_NUM_NODES": "1", "NODEID": "0", "JOB_NODELIST": "here", "PROCID": "0", "LOCALID": "0"}
    for number in ("100", "101"):
        script = (folder / "slurm" / f"{number}_submission.sh").read_text()
        assert "--partition=gpu" in script
        assert "--time=5" in script
        env = os.environ | {f"SLURM_{name}": value for name, value in (node | {"JOB_ID": number}).items()}
        subprocess.run(["bash", "-c", script], env=env, check=True, capture_output=True)
    assert [line.state for line in comparison.read([folder]).lines] == ["1", "1"]
    assert main(command) == 0  # nothing is left to send
    assert capsys.readouterr().out.startswith("0 jobs")
    assert "--launcher slurm: " in refused([*command, "--slurm", "bicycles=5"], capsys)


def test_runs_side_by_side(table: Path, words: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Any run folders: those that differ in their seed are one row, named after what is its own."""
    runs = [
        str(table / "shared" / "seed-0"),
        str(table / "shared" / "seed-1"),
        str(table / "unshared-later" / "seed-0"),
        str(table / "unshared-later" / "seed-1"),
    ]
    assert main(["report", *runs, "--output", str(tmp_path / "compared")]) == 0
    out = capsys.readouterr().out
    lines = comparison.read([Path(run) for run in runs]).lines
    assert [len(line.folders) for line in lines] == [2, 2]
    assert "sharing all" in lines[0].label
    assert "sharing none" in lines[1].label
    assert "sharing all" in out
    assert (tmp_path / "compared" / "curves.svg").exists()
    assert main(["report", str(table)]) == 0
    assert capsys.readouterr().out == (table / "table.md").read_text()
    assert "no run in it" in refused(
        ["report", str(tmp_path / "compared"), str(table), "--output", str(tmp_path)], capsys
    )


def test_a_table_can_be_moved(table: Path, words: Words, tmp_path: Path) -> None:
    """It is read and gone on with elsewhere, rows that start from others and fine-tuning too."""
    shutil.copytree(table, tmp_path / "moved")
    table.rename(tmp_path / "away")
    try:
        assert comparison.read([tmp_path / "moved"]).lines[0].results[0]
        finished = tmp_path / "moved" / "unshared-later" / "seed-1" / "summary.json"
        before = finished.stat().st_mtime_ns
        assert main(words(tmp_path / "moved", "--seeds", "2", "--rows", "unshared later")) == 0
        assert finished.stat().st_mtime_ns == before
    finally:
        (tmp_path / "away").rename(table)


def test_reading_what_is_no_run(table: Path, tmp_path: Path) -> None:
    """A folder of tables and runs, and a model folder between them; two tables are told apart."""
    for name in ("one", "two"):
        shutil.copytree(table, tmp_path / name)
    shutil.copytree(table / "unshared-later" / "seed-0" / "start", tmp_path / "model")
    shutil.copytree(table / "shared" / "seed-0", tmp_path / "run")
    shutil.copytree(table / "shared" / "seed-0", tmp_path / "run-longer")
    lines = comparison.read([tmp_path]).lines
    labels = [line.label for line in lines]
    assert labels[:4] == ["four: shared", "four: fails", "four: unshared later", "four: after that"]
    assert len(lines) == 9
    assert lines[8].states == ["finished"] * 2
    assert lines[2].results[0]["tokens"] == lines[6].results[0]["tokens"]  # not added up over both tables


def test_unfinished_runs_say_how_far_they_are(words: Words, tmp_path: Path) -> None:
    folder = tmp_path / "four"
    assert main(words(folder, "--rows", "shared")) == 0
    (folder / "shared" / "seed-0" / "summary.json").unlink()
    assert comparison.read([folder]).lines[0].state == "0 of 1; 1 at step 12 of 12"
    assert run_unit(str(folder), "shared", 0) == "finished"


ONE_ROW = {
    "depth": "3 layers from 1",
    "dropout": "with 0.1",
    "embedding_size": "all-shared, small E",
    "masking": "15 %, single pieces",
    "optimizer": "LAMB of optax, batch x 0.25",
    "sentence_objective": "NSP",
    "sharing": "2 groups",
    "unsharing": "shared, then not shared",
    "width": "H x 1",
}


@pytest.mark.parametrize("path", sorted((ROOT / "experiments" / "ablations").glob("*.py")), ids=lambda path: path.stem)
def test_a_row_of_every_table_runs(path: Path, small: Callable[..., list[str]], tmp_path: Path) -> None:
    """Two steps, and what it starts from."""
    own = {name for row in read_table(str(path))[1].rows.values() for name in row.overrides}
    given = small(tmp_path / "t", train__num_train_steps=2, optim__num_warmup_steps=0, train__eval_every=2)[2:]
    given += ["--model.num_hidden_layers", "6"]
    fields = zip(given[::2], given[1::2], strict=True)
    mine = [word for name, value in fields if name[2:] not in own for word in (name, value)]
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "probes.json").write_text('{"error": "left out"}')
    assert main(["ablate", str(path), *mine, "--rows", ONE_ROW[path.stem]]) == 0
    lines = comparison.read([tmp_path / "t"]).lines
    assert lines[-1].label == ONE_ROW[path.stem]
    assert [line.state for line in lines] == ["1"] * len(lines)
    assert "The probe for shortcuts failed: left out" in (tmp_path / "t" / "table.md").read_text()
