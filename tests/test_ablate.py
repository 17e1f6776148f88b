"""Runs of ablation tables: finished rows are kept, failed rows are shown, unfinished rows resume, no run is run twice."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from albert_jax.ablation import budget
from albert_jax.ablation.manifest import load_plan
from albert_jax.ablation.planning import resolve
from albert_jax.ablation.run import LOCK, run_one
from albert_jax.cli import main
from albert_jax.exchange import load as exchange
from albert_jax.exchange.reshare import reshare
from albert_jax.model.tree import leaves
from albert_jax.pretraining.run import PretrainConfig
from albert_jax.reports import load_runs
from albert_jax.training.loggers import LOGGERS, TensorBoard
from albert_jax.training.run_folder import file_lock, read_metrics

from .conftest import ROOT, digest, overrides_of, refused
from .synthetic_tasks import WRITE

TABLE = '''"""Does a small table run?"""

from albert_jax.ablation import Ablation, Row

ablation = Ablation(
    rows={
        "shared": Row({"model.sharing": "all", "model.num_hidden_layers": 1}, {"parameters (M)": 12, "average": 80.1}),
        "fails": Row({"data.vocab": "nowhere.model"}),
        "unshared later": Row({"model.sharing": "none", "model.num_hidden_layers": 2}, start="shared", share=0.5),
        "after that": Row({"model.sharing": "none"}, start="fails"),
    },
)
'''

QUICK = {
    "model__num_hidden_layers": 1,
    "model__hidden_size": 16,
    "train__num_train_steps": 4,
    "optim__num_warmup_steps": 1,
    "optim__learning_rate": 0.001,
    "train__checkpoint_every": 2,
}
"""The same in all tests of this file, so that most of them find their steps in the compilation cache."""

Words = Callable[..., list[str]]


@pytest.fixture(scope="module")
def words(small: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> Words:
    """`words(run_dir, *options, **fields)`: the command for a table of four rows, of models that train in a second."""
    folder = tmp_path_factory.mktemp("tables")
    (folder / "scales").symlink_to(ROOT / "experiments" / "ablations" / "scales")
    (folder / "four.py").write_text(TABLE)

    def command(run_dir: Path, *options: str, **fields: Any) -> list[str]:
        arguments = small(run_dir, **QUICK | fields)[2:]
        position = arguments.index("--model.num_hidden_layers")  # rows set it
        del arguments[position : position + 2]
        return ["ablate", str(folder / "four.py"), *arguments, *options]

    return command


@pytest.fixture(scope="module")
def table(words: Words, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the table after one launch with two seeds, in which one row failed."""
    folder = tmp_path_factory.mktemp("table") / "four"
    assert main(words(folder, "--seeds", "2")) == 1
    return folder


def test_the_table_is_logged(words: Words, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each launch sends table and figures to the loggers, which a later launch may change."""
    logged: list[tuple[Path, Any, list[str]]] = []

    class Recorder(TensorBoard):
        def finish(self, summary: Any, files: Sequence[Path]) -> None:
            logged.append((self.folder, dict(summary), [path.name for path in files if path.exists()]))

    monkeypatch.setitem(LOGGERS, "mlflow", Recorder)
    folder = Path(shutil.copytree(table, tmp_path / "four"))
    assert main(words(folder, "--seeds", "2", train__loggers="mlflow")) == 1
    tables = ["table.md", "table.csv", "differences.csv", "runs.csv"]
    assert logged == [(folder, {}, [*tables, "curves.png", "differences.png", "scores.png"])]
    assert not (folder / "tensorboard").exists()


def test_the_loggers_of_every_row_are_checked(
    words: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything runs."""
    monkeypatch.setitem(LOGGERS, "mlflow", type("Missing", (TensorBoard,), {"package": "no_such_library"}))
    (tmp_path / "scales").symlink_to(ROOT / "experiments" / "ablations" / "scales")
    (tmp_path / "rows.py").write_text(TABLE.replace('"data.vocab": "nowhere.model"', '"train.loggers": "mlflow"'))
    command, _, *rest = words(tmp_path / "run")
    message = refused([command, str(tmp_path / "rows.py"), *rest], capsys)
    assert message == "train.loggers mlflow: pip install 'albert_jax[mlflow]'"
    assert not (tmp_path / "run").exists()


def states(folder: Path) -> dict[str, list[str]]:
    return load_runs(folder).groupby("row", sort=False)["state"].agg(list).to_dict()


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_finished_failed_and_waiting_rows_are_shown(table: Path) -> None:
    failed = "failed: nowhere.model: "
    found = states(table)
    assert [list(found), found["shared"], found["unshared later"], found["after that"]] == [
        ["shared", "fails", "unshared later", "after that"],
        ["finished"] * 2,
        ["finished"] * 2,
        ["not begun"] * 2,
    ]
    assert all(state.startswith(failed) for state in found["fails"])
    text = (table / "table.md").read_text()
    assert f"failed: fails, seed-0: {failed[8:]}" in text
    assert "| after that | 0 of 2; 2 not begun | " in text
    assert (
        "2 seeds per row; every row sees the same number of tokens; 'unshared later' has 0.5 of the budget; "
        "a row that starts from another includes the other's tokens, FLOPs and time; all rows use the learning rate 0.001, which "
        "can be too high for rows with shared layers, because an update of a shared layer takes effect at every pass (see "
        "--tune). "
        "Does a small table run?"
    ) in text
    assert all((table / f"{name}.{suffix}").exists() for name in ("curves", "scores") for suffix in ("png", "svg"))


def test_a_row_starts_from_the_same_seed_of_the_other_row(table: Path) -> None:
    """Its parameters are unshared and repeated, it reads different batches, and its tokens and FLOPs include those of the other row.

    Fails if all seeds start from the first one, or the start keeps the sharing of the other row.
    """
    plan = load_plan(table)
    for seed in (0, 1):
        config = plan.run_config(plan.row("unshared later"), seed)
        source = exchange.read(table / "shared" / f"seed-{seed}").weights
        start = exchange.read(config.init_from).weights
        assert start.model.config.sharing == config.model.sharing == "none"
        assert jax.tree.all(
            jax.tree.map(np.array_equal, start.params, reshare(source, sharing="none", num_hidden_layers=2).params)
        )
        assert config.train.seed == 1_000_000 + seed
    runs = load_runs(table).set_index(["row", "run"])
    start_run, run = runs.loc[("shared", "seed-0")], runs.loc[("unshared later", "seed-0")]
    summaries = [read(Path(one["folder"], "summary.json")) for one in (start_run, run)]
    assert run["tokens"] == sum(summary["tokens"] for summary in summaries)
    assert run["flops"] == sum(summary["tokens"] * summary["flops_per_token"] for summary in summaries)
    assert start_run["tokens"] == summaries[0]["tokens"]


def test_a_row_learns_from_another(words: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its runs wait for those of the teacher; the second launch finds the same configurations.

    Fails if the teacher is not passed on to the run.
    """
    (tmp_path / "scales").symlink_to(ROOT / "experiments" / "ablations" / "scales")
    rows = """{"teacher": Row({"model.num_hidden_layers": 1}), "student": Row({"model.num_hidden_layers": 2}, teacher="teacher")}"""
    imports = "from albert_jax.ablation import Ablation, Row"
    (tmp_path / "taught.py").write_text(f"{imports}\n\nablation = Ablation(rows={rows})\n")
    folder = tmp_path / "taught"
    folder.mkdir()
    (folder / "probes.json").write_text('{"error": "no probe in this test"}')
    _, _, *options = words(folder)
    command = ["ablate", str(tmp_path / "taught.py"), *options]
    for _ in range(2):
        assert main(command) == 0
    assert "student, seed 0: already finished" in capsys.readouterr().err
    stored = read(folder / "student" / "seed-0" / "config.json")["config"]
    assert stored["distillation"]["teacher"] == str(folder / "teacher" / "seed-0")
    for name in ("teacher", "student"):
        records = read_metrics(folder / name / "seed-0")
        assert any("train/distillation_loss" in one for one in records) == (name == "student")
    shutil.rmtree(folder / "student")
    (folder / "teacher" / "seed-0" / "summary.json").unlink()
    assert "'teacher', from which it learns, is not finished" in run_one(str(folder), "student", 0)


def test_a_second_launch_skips_finished_runs(table: Path, words: Words, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in table.glob("*/seed-*/summary.json")}
    assert len(before) == 4
    assert main(words(table, "--seeds", "2")) == 1
    assert {path: path.stat().st_mtime_ns for path in table.glob("*/seed-*/summary.json")} == before
    log = capsys.readouterr().err
    assert "shared, seed 0: already finished" in log
    assert "fails, seed 1: failed" in log
    assert "after that, seed 0: not begun: 'fails', from which it starts, is not finished" in log


def test_a_folder_of_a_different_table_is_refused(
    table: Path, words: Words, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(words(table, model__embedding_size=64), capsys)
    assert (
        f"--run-dir {table} holds a different table (model.embedding_size: 16 -> 64); choose a different folder"
        in message
    )
    message = refused(words(table, "--budget", "flops"), capsys)
    assert (
        f"--run-dir {table} holds a different table (budget: 'tokens' -> 'flops'); choose a different folder" in message
    )


def test_probes_are_printed_below_the_table(table: Path) -> None:
    result = read(table / "probes.json")
    assert result["objective"] == "sop"
    sentence = f"reach {100 * result['shapes']:.1f} % on SOP from lengths and punctuation, and "
    assert sentence in (table / "table.md").read_text()


def test_a_run_that_a_different_launch_holds_is_left_to_it(table: Path, tmp_path: Path) -> None:
    """And it runs as soon as the lock is released."""
    folder = tmp_path / "four"
    shutil.copytree(table, folder)
    (folder / "shared" / "seed-0" / "summary.json").unlink()
    with file_lock(folder / "shared" / "seed-0", LOCK):
        assert run_one(str(folder), "shared", 0) == "running in a different launch"
    assert states(folder)["shared"] == ["at step 4 of 4", "finished"]
    assert run_one(str(folder), "shared", 0) == "finished"
    assert states(folder)["shared"] == ["finished"] * 2


def test_a_lock_is_held_by_one(tmp_path: Path) -> None:
    with file_lock(tmp_path) as first, file_lock(tmp_path) as second:
        assert (first, second) == (True, False)
    with file_lock(tmp_path) as third:
        assert third


def test_parallel_seeds_equal_separate_runs(
    table: Path, words: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All parameters and logged metrics, with dropout, up to rounding; also of rows that start from others.

    A process that is killed while it saves leaves seeds at different steps: they are resumed in programs of their own.
    """
    folder = tmp_path / "four"
    command = words(folder, "--seeds", "2", "--parallel-seeds")

    def compare() -> None:
        for row, seed in itertools.product(("shared", "unshared-later"), ("seed-0", "seed-1")):
            runs = [one / row / seed for one in (folder, table)]
            params = [leaves(exchange.read(run).weights.params) for run in runs]
            for path, value in params[1].items():
                np.testing.assert_allclose(params[0][path], value, rtol=1e-4, atol=1e-5)
            records = [
                [value for record in read_metrics(run) for name, value in record.items() if "speed" not in name]
                for run in runs
            ]
            np.testing.assert_allclose(*records, rtol=1e-4)
            assert {path.name for path in runs[1].iterdir()} == {path.name for path in runs[0].iterdir()}

    assert main(command) == 1
    log = capsys.readouterr().err
    assert "shared: one program trains seed 0, seed 1" in log
    assert "fails: cannot train its seeds in one program, so one after another: nowhere.model" in log
    compare()
    for seed in (0, 1):
        (folder / "shared" / f"seed-{seed}" / "summary.json").unlink()
    shutil.rmtree(folder / "shared" / "seed-1" / "checkpoints" / "4")
    assert main([*command, "--rows", "shared"]) == 0
    assert "one program" not in capsys.readouterr().err.partition("unshared later")[0]
    assert "parallel" not in (folder / "table.md").read_text()
    compare()


@pytest.mark.long
def test_a_killed_table_resumes(words: Words, table: Path, tmp_path: Path) -> None:
    """kill -9 in the middle of a run: the next launch resumes it, and every run has the same parameters as without."""
    folder = tmp_path / "four"
    process = subprocess.Popen(
        [sys.executable, "-m", "albert_jax", *words(folder, "--seeds", "2")],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    while process.poll() is None and not (folder / "unshared-later" / "seed-0" / "checkpoints").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "unshared-later" / "seed-0" / "summary.json").exists()
    assert main(words(folder, "--seeds", "2")) == 1
    for row, step in (("shared", 4), ("unshared-later", 2)):
        for seed in (0, 1):
            assert digest(folder / row / f"seed-{seed}", step) == digest(table / row / f"seed-{seed}", step)


@pytest.mark.long
def test_two_launches_never_run_a_row_twice(words: Words, tmp_path: Path) -> None:
    """Two launches in one folder: each run is finished by one of them."""
    folder = tmp_path / "four"
    command = [sys.executable, "-m", "albert_jax", *words(folder, "--seeds", "3", "--rows", "unshared later")]
    launches = [
        subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) for _ in range(2)
    ]
    logs = "".join(launch.communicate()[1] for launch in launches)
    for row in ("shared", "unshared later"):
        for seed in range(3):
            assert logs.count(f"{row}, seed {seed}: finished") <= 1
    assert sum(logs.count(f"shared, seed {seed}: finished") for seed in range(3)) == 3
    for path in folder.glob("*/seed-*/metrics.jsonl"):
        steps = [json.loads(line)["step"] for line in path.read_text().splitlines() if "train/loss" in line]
        assert steps == list(range(1, len(steps) + 1))
    # A run that waited for the other launch's run may be left; a third launch runs it.
    assert main(words(folder, "--seeds", "3", "--rows", "unshared later")) == 0
    assert states(folder) == {"shared": ["finished"] * 3, "unshared later": ["finished"] * 3}


def test_rows_are_fine_tuned(words: Words, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A finished table can be fine-tuned later; the scores are added to it, and pretraining does not run again."""
    folder, data = tmp_path / "four", tmp_path / "cola"
    shutil.copytree(table, folder)
    data.mkdir()
    cola = f"{ROOT}/experiments/finetune/cola.py"
    tuning = (
        f"{cola} {' '.join(WRITE['cola'](data))} --train.num-train-steps 2 --optim.num-warmup-steps 1 --mesh.data 1"
    )
    command = words(folder, "--rows", "shared")
    before = (folder / "shared" / "seed-0" / "summary.json").stat().st_mtime_ns
    missing = f"{cola} --data.dir {tmp_path / 'nowhere'}"
    assert "nowhere" in refused([*command, "--finetune", missing], capsys)
    assert main([*command, "--finetune", tuning]) == 0
    message = refused([*command, "--finetune", f"{tuning} --optim.learning-rate 1"], capsys)
    assert "seed-0-cola" in message
    assert "optim.learning_rate: 0.0005 -> 1.0" in message
    assert (folder / "shared" / "seed-0" / "summary.json").stat().st_mtime_ns == before
    stored = read(folder / "shared" / "seed-0-cola" / "config.json")["config"]
    assert stored["init_from"] == str(folder / "shared" / "seed-0")
    assert stored["data"]["max_seq_length"] == 32  # the longest input of the row's model, although the scale has 128
    best = read(folder / "shared" / "seed-0-cola" / "summary.json")["best"]["matthews"]
    runs = load_runs(folder)
    assert runs["cola matthews"].dropna().tolist() == [best]
    assert states(folder)["shared"] == ["finished", "without cola"]
    assert "| cola matthews |" in (folder / "table.md").read_text()


def test_step_seconds(words: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measures a real run in a temporary folder, and removes the folder."""
    used: list[Path] = []
    pretrain = budget.pretrain

    def kept(config: PretrainConfig) -> dict[str, Any]:
        used.append(Path(config.run_dir))
        return pretrain(config)

    monkeypatch.setattr(budget, "pretrain", kept)
    monkeypatch.setattr(budget, "TIMED_STEPS", 3)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    arguments = words(tmp_path / "four")
    overrides = overrides_of(PretrainConfig, arguments[2:-2])  # without the run folder
    plan = resolve(arguments[1], rows=["shared"], overrides=overrides)
    assert 0 < budget.step_seconds(plan.rows[0].config) < 10
    assert [folder.parent for folder in used] == [tmp_path]
    assert list(tmp_path.iterdir()) == []


SBATCH = """#!/bin/sh
grep -o 'dependency=.*' "$1" >> {log} || echo none >> {log}
echo "Submitted batch job $((99 + $(wc -l < {log})))"
"""
SRUN = """#!/bin/sh
while [ "${1#*python}" = "$1" ]; do shift; done
exec "$@"
"""


@pytest.fixture
def sbatch_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with the dependencies of each job, which a stand-in for `sbatch` writes."""
    binaries, log = tmp_path / "bin", tmp_path / "sbatch.log"
    binaries.mkdir()
    for name, text in {"sbatch": SBATCH.format(log=log), "srun": SRUN}.items():
        (binaries / name).write_text(text)
        (binaries / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{binaries}:{os.environ['PATH']}")
    return log


def test_slurm(words: Words, table: Path, tmp_path: Path, sbatch_log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each unfinished run is one job; jobs wait for the rows that they start from; a job does its run."""
    folder = tmp_path / "four"
    shutil.copytree(table, folder)
    for row in ("shared", "unshared-later"):
        (folder / row / "seed-0" / "summary.json").unlink()
    command = words(folder, "--rows", "unshared later", "--launcher", "slurm")
    assert main([*command, "--slurm", "timeout_min=5", "--slurm", "slurm_partition=gpu"]) == 0
    assert capsys.readouterr().out.startswith("2 jobs: 100 101\n")
    assert sbatch_log.read_text().splitlines() == ["none", "dependency=afterany:100"]
    script = (folder / "slurm" / "100_submission.sh").read_text()
    assert "--partition=gpu" in script
    assert "--time=5" in script
    node = {"NTASKS": "1", "JOB_NUM_NODES": "1", "NODEID": "0", "JOB_NODELIST": "here", "PROCID": "0", "LOCALID": "0"}
    env = os.environ | {f"SLURM_{name}": value for name, value in (node | {"JOB_ID": "100"}).items()}
    subprocess.run(["bash", "-c", script], env=env, check=True, capture_output=True)
    assert states(folder)["shared"][0] == "finished"
    assert main(command) == 0
    assert capsys.readouterr().out.startswith("1 jobs: 102\n")  # the finished run is not sent again
    assert "--launcher slurm: " in refused([*command, "--slurm", "bicycles=5"], capsys)


@pytest.mark.parametrize("seeds", [[], ["--seeds", "2", "--parallel-seeds"]])
def test_slurm_jobs_wait_for_tuning(seeds: list[str], words: Words, tmp_path: Path, sbatch_log: Path) -> None:
    """The tuning runs of a row wait for those of the row that it starts from; counted runs for all of them.

    With parallel seeds, a job trains all seeds of a row.
    """
    command = words(tmp_path / "four", "--rows", "unshared later", "--launcher", "slurm")
    assert main([*command, *seeds, "--tune", "optim.learning_rate=0.001,0.002"]) == 0
    tuned, start_tuned = "dependency=afterany:102:103:104", "dependency=afterany:100:101"
    assert sbatch_log.read_text().splitlines() == ["none", "none", *[start_tuned] * 3, tuned]


def test_a_tuned_table(words: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A row runs at its selected value; one that diverges is not selected; the next launch repeats nothing."""
    folder = tmp_path / "four"
    folder.mkdir()
    (folder / "probes.json").write_text('{"error": "no probe in this test"}')
    command = [*words(folder, "--rows", "shared"), "--tune", "optim.learning-rate=0.001,1e30"]
    assert main(command) == 0
    assert load_plan(folder).row("shared").tuned == {"optim.learning_rate": 0.001}
    stored = read(folder / "shared" / "seed-0" / "config.json")["config"]
    assert (stored["optim"]["learning_rate"], stored["train"]["seed"]) == (0.001, 0)
    assert load_runs(folder)["tuned: optim.learning_rate"].tolist() == [0.001]
    text = (folder / "table.md").read_text()
    assert (
        "every row runs at its own best optim.learning_rate, selected by the held-out MLM loss with a seed that" in text
    )
    assert "|  | runs | learning_rate | parameters |" in text
    loss = read(folder / "shared" / "tune-learning_rate-0.001" / "summary.json")["eval"]["mlm_loss"]
    assert (
        f"|  | learning_rate 0.001 | learning_rate 1e+30 |\n|---|---|---|\n| shared | **{loss:.3f}** | diverged |"
        in text
    )
    assert "the edge of the grid, so a wider grid may give a better value: shared (learning_rate 0.001)." in text
    assert "diverged: shared, learning_rate 1e+30: step " in text

    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/*/metrics.jsonl")}
    capsys.readouterr()
    assert main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*/*/metrics.jsonl")} == before
    assert "run 1 of 1: shared, seed 0" in capsys.readouterr().err
    message = refused(command[:-2], capsys)
    assert (
        "row 'shared' runs with --tune optim.learning_rate=0.001,1e+30; give the same, or choose a different" in message
    )


def test_a_table_can_be_moved(table: Path, words: Words, tmp_path: Path) -> None:
    """It is read and continued elsewhere, including rows that start from others."""
    shutil.copytree(table, tmp_path / "moved")
    table.rename(tmp_path / "away")
    try:
        assert load_runs(tmp_path / "moved")["mlm_loss"].notna().sum() == 4
        finished = tmp_path / "moved" / "unshared-later" / "seed-1" / "summary.json"
        before = finished.stat().st_mtime_ns
        assert main(words(tmp_path / "moved", "--seeds", "2", "--rows", "unshared later")) == 0
        assert finished.stat().st_mtime_ns == before
    finally:
        (tmp_path / "away").rename(table)


def test_a_folder_of_tables_and_runs(table: Path, tmp_path: Path) -> None:
    """The table's name distinguishes the rows of two tables; each run outside of tables is one row."""
    for name in ("one", "two"):
        shutil.copytree(table, tmp_path / name)
    shutil.copytree(table / "unshared-later" / "seed-0" / "start", tmp_path / "model")  # not a run
    shutil.copytree(table / "shared" / "seed-0", tmp_path / "run")
    runs = load_runs(tmp_path)
    assert len(runs) == 2 * 8 + 1
    assert runs["row"].unique().tolist()[:4] == [
        "four: shared",
        "four: fails",
        "four: unshared later",
        "four: after that",
    ]
    assert runs["state"].iloc[-1] == "finished"
    later = runs[runs["row"] == "four: unshared later"]
    assert later["tokens"].iloc[0] == later["tokens"].iloc[2]  # tokens of the start are added once


def test_a_new_table_is_one_file(
    small: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A table that the package does not know is planned, printed and run."""
    path = tmp_path / "ablations" / "activation.py"
    path.parent.mkdir()
    (path.parent / "scales").symlink_to(ROOT / "experiments" / "ablations" / "scales")
    path.write_text(
        '"""Which activation should the feed-forward network have?"""\n\n'
        "from albert_jax.ablation import Ablation, Row\n\n"
        'ablation = Ablation({act: Row({"model.hidden_act": act}) for act in ("gelu_new", "relu", "tanh")})\n'
    )
    folder = tmp_path / "runs"
    command = ["ablate", str(path), *small(folder, **QUICK)[2:]]
    assert main([*command, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "Which activation should the feed-forward network have?" in out
    assert [line.split(" | ")[0] for line in out.splitlines() if line.startswith("| ")][1:] == [
        "| gelu_new",
        "| relu",
        "| tanh",
    ]
    assert not folder.exists()
    folder.mkdir()
    (folder / "probes.json").write_text('{"error": "no probe in this test"}')
    assert main([*command, "--rows", "gelu_new"]) == 0
    assert states(folder) == {"gelu_new": ["finished"]}
    assert len(read_metrics(folder / "gelu-new" / "seed-0")) >= 2
