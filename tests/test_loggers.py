"""Loggers with real W&B and MLflow libraries, offline: what arrives, what a resumed run continues, and that none stops a run."""

import importlib
import json
import logging
import shutil
import signal
import struct
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from albert_jax.cli import main
from albert_jax.config import InputError
from albert_jax.training import loggers
from albert_jax.training.loggers import LOGGERS, Loggers, WeightsAndBiases
from albert_jax.training.loop import TrainConfig
from albert_jax.training.run_folder import read_metrics

from .conftest import ROOT, refused

Words = Callable[..., list[str]]
CONFIG = {"job": "pretrain", "run_dir": "runs/a", "train": {"seed": 3}}
API_KEY = "0123456789abcdef" * 2 + "01234567"


@pytest.fixture
def services(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """W&B offline and logged in, MLflow with a store of files; all their files are below `tmp_path`."""
    import wandb

    variables = {"WANDB_MODE": "offline", "WANDB_API_KEY": API_KEY, "WANDB_PROJECT": "my-project"}
    variables |= {f"WANDB_{name}_DIR": str(tmp_path / "wandb-home") for name in ("CONFIG", "CACHE", "DATA")}
    variables |= {"MLFLOW_TRACKING_URI": f"file://{tmp_path / 'mlruns'}", "MLFLOW_ALLOW_FILE_STORE": "true"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    wandb.teardown()  # it reads the variables when it starts
    yield
    wandb.teardown()


def wandb_records(path: Path) -> list[Any]:
    """The records of a `.wandb` file: 7 bytes, then LevelDB's log format, whose records have checksum, length and type."""
    messages: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")
    data, at, records, parts = path.read_bytes(), 7, [], b""
    while at + 7 <= len(data):
        if (room := 32768 - at % 32768) < 7:  # records do not begin in the last bytes of a block
            at += room
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = messages.Record()
            record.ParseFromString(parts)
            records.append(record)
            parts = b""
    return records


def wandb_history(path: Path) -> list[dict[str, Any]]:
    """The rows of a run's history, with `_step`."""
    rows = [record.history for record in wandb_records(path) if record.WhichOneof("record_type") == "history"]
    return [
        {"/".join(item.nested_key): json.loads(item.value_json) for item in row.item} | {"_step": row.step.num}
        for row in rows
    ]


def wandb_runs(folder: Path) -> list[Path]:
    """The files of a folder's offline runs, oldest first."""
    return sorted(folder.glob("wandb/offline-run-*/*.wandb"))


def by_step(records: list[dict[str, Any]], step: str) -> dict[int, dict[str, float]]:
    """Step -> values without speeds, which differ from launch to launch."""
    table: dict[int, dict[str, float]] = defaultdict(dict)
    for record in records:
        table[record[step]] |= {k: v for k, v in record.items() if k.startswith(("train/", "eval/", "diagnostics/"))}
    return table


def test_a_killed_run_continues_the_same_runs(services: None, short: Words, tmp_path: Path) -> None:
    """12 steps, kill -9 after 9, resume from 6: W&B's two launches and MLflow's run have together what metrics.jsonl has.

    Fails if a launch began a run of its own, if steps were those of the launch, or if the API key were stored.
    """
    from mlflow.tracking import MlflowClient

    run_dir, both = tmp_path / "run", "wandb,mlflow"
    command = [sys.executable, "-m", "tests.fault_script", "kill", "0", "9", *short(run_dir)]
    done = subprocess.run([*command, "--log", both], capture_output=True, text=True, timeout=600, check=False, cwd=ROOT)
    assert done.returncode == -signal.SIGKILL, done.stderr
    ids = [(run_dir / f"{name}.id").read_text() for name in ("wandb", "mlflow")]
    assert main([*short(run_dir), "--log", both]) == 0
    assert [(run_dir / f"{name}.id").read_text() for name in ("wandb", "mlflow")] == ids
    assert not (run_dir / "tensorboard").exists()
    expected = by_step(read_metrics(run_dir), "step")

    first, second = wandb_runs(run_dir)
    runs = [next(r.run for r in wandb_records(path) if r.HasField("run")) for path in (first, second)]
    assert [(run.run_id, run.project) for run in runs] == [(ids[0], "my-project")] * 2
    history = wandb_history(second)
    assert by_step(history, "_step") == {step: values for step, values in expected.items() if step > 6}
    assert wandb_history(first) == [] or by_step(wandb_history(first), "_step").items() <= expected.items()
    assert history[-1]["curves/_type"] == "image-file"

    client = MlflowClient()
    run = client.get_run(ids[1])
    assert run.info.status == "FINISHED"
    assert run.data.params["model.num_hidden_layers"] == "2"
    for name in ("train/mlm_loss", "eval/sop_accuracy", "diagnostics/hidden_similarity"):
        points = {(m.step, m.value) for m in client.get_metric_history(ids[1], name)}  # 7 to 9 twice, with equal values
        assert points == {(step, values[name]) for step, values in expected.items() if name in values}
    artifacts = {artifact.path for artifact in client.list_artifacts(ids[1])}
    assert artifacts == {"summary.json", "curves.png"}
    assert [path for path in run_dir.rglob("*") if path.is_file() and API_KEY.encode() in path.read_bytes()] == []


def test_tables_and_figures_of_an_ablation(services: None, tmp_path: Path) -> None:
    """A logger gets the files of `figures.write`; configurations keep their nesting in W&B, and are flat in MLflow."""
    from mlflow.tracking import MlflowClient

    shutil.copy(ROOT / "docs" / "tiny-curves.png", tmp_path / "curves.png")
    (tmp_path / "table.csv").write_text("row,mlm_loss\nall,3.5\nnone,3.25\n")
    with closing(Loggers("wandb,mlflow", tmp_path, CONFIG)) as several:
        several.start(0)
        several.finish({"steps": 4}, [tmp_path / "curves.png", tmp_path / "table.csv"])
    (path,) = wandb_runs(tmp_path)
    (row,) = wandb_history(path)
    assert row["table (table)/_type"] == "table-file"
    table = json.loads((path.parent / "files" / row["table (table)/path"]).read_text())
    assert table["columns"] == ["row", "mlm_loss"]
    assert table["data"] == [["all", 3.5], ["none", 3.25]]
    records = wandb_records(path)
    config = {item.key: json.loads(item.value_json) for r in records for item in r.run.config.update}
    assert config["train"] == {"seed": 3}
    assert next(r.run.display_name for r in records if r.HasField("run")) == "runs/a"
    assert [record.exit.exit_code for record in records if record.HasField("exit")] == [0]
    client, run_id = MlflowClient(), (tmp_path / "mlflow.id").read_text()
    assert client.get_run(run_id).data.params == {"job": "pretrain", "run_dir": "runs/a", "train.seed": "3"}
    assert {one.path for one in client.list_artifacts(run_id)} == {"curves.png", "table.csv", "summary.json"}


def test_unfinished_run_is_marked_failed(services: None, tmp_path: Path) -> None:
    """And a run that MLflow has lost begins again."""
    from mlflow.tracking import MlflowClient

    run_ids = []
    for _ in range(2):
        with closing(Loggers("wandb,mlflow", tmp_path, CONFIG)) as several:
            several.start(0)
            several.log(1, {"train/loss": 2.0})
        run_ids.append((tmp_path / "mlflow.id").read_text())
        assert MlflowClient().get_run(run_ids[-1]).info.status == "FAILED"
        shutil.rmtree(next(tmp_path.glob(f"mlruns/*/{run_ids[-1]}")))
    records = [record for path in wandb_runs(tmp_path) for record in wandb_records(path)]
    assert [record.exit.exit_code for record in records if record.HasField("exit")] == [1, 1]
    assert len(set(run_ids)) == 2


def test_wandb_keeps_the_steps_that_it_has() -> None:
    """A run that W&B has up to step 8 and that resumes after step 6 sends nothing of steps 7 and 8."""
    sent: list[int] = []
    logger: Any = WeightsAndBiases.__new__(WeightsAndBiases)
    logger.run = SimpleNamespace(starting_step=9, log=lambda values, step: sent.append(step))
    for step in range(7, 12):
        logger.log(step, {"train/loss": 1.0})
    assert sent == [9, 10, 11]


class Recorder:
    """A logger that records its calls, and fails in one of them."""

    package = "json"
    fails_in = ""
    calls: list[str]

    def __init__(self, folder: Path, config: Any, start: int) -> None:
        self.call("init", start)

    def call(self, name: str, *arguments: Any) -> None:
        type(self).calls.append(name)
        if name == self.fails_in:
            raise OSError(f"{name}: no connection\nand more")

    def log(self, step: int, values: Any) -> None:
        self.call("log", step)

    def finish(self, summary: Any, files: Any) -> None:
        self.call("finish")

    def close(self) -> None:
        self.call("close")


def recorder(fails_in: str = "") -> type[Recorder]:
    return type("OneRecorder", (Recorder,), {"fails_in": fails_in, "calls": []})


ALL = ["init", "log", "log", "finish", "close"]


@pytest.mark.parametrize(
    ("fails_in", "calls"),
    [
        ("init", ["init"]),
        ("log", ["init", "log", "close"]),
        ("finish", ["init", "log", "log", "finish", "close"]),
        ("close", ALL),
    ],
)
def test_a_logger_that_fails(
    fails_in: str, calls: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is reported in one line and closed; the others get everything."""
    broken, other = recorder(fails_in), recorder()
    monkeypatch.setattr(loggers, "LOGGERS", {"broken": broken, "other": other})
    with closing(Loggers("broken,other")) as several:
        several.start(0)
        several.log(1, {"train/loss": 2.0})
        several.log(2, {"train/loss": 1.0})
        several.finish({}, [])
    assert broken.calls == calls
    assert other.calls == ALL
    message = f"train.loggers broken: OSError: {fails_in}: no connection; the run continues without it"
    assert [record.getMessage() for record in caplog.records] == [message]


def test_a_service_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Training does not wait for it, and the end of the run only for a limited time.  Fails if calls are made by the caller."""
    answer = threading.Event()
    silent: Any = recorder()
    silent.log = lambda self, step, values: answer.wait()
    monkeypatch.setattr(loggers, "LOGGERS", {"silent": silent})
    monkeypatch.setattr(loggers, "WAIT_SECONDS", 0.01)
    several = Loggers("silent")
    several.start(0)
    several.log(1, {"train/loss": 2.0})
    several.close()
    answer.set()
    assert "train.loggers silent: no answer for 0.01 s; the run continues without it" in caplog.text
    several._threads[0].join()
    assert silent.calls == ["init", "close"]


def test_wandb_without_login(
    services: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It does not ask at the terminal for an account.  A closed port answers at once if it did try to connect."""
    import wandb

    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    wandb.teardown()
    with caplog.at_level(logging.WARNING), closing(Loggers("wandb", tmp_path, CONFIG)) as several:
        several.start(0)
    assert "train.loggers wandb: InputError: no API key; run 'wandb login', or set WANDB_MODE=offline" in caplog.text


def test_names_of_loggers(
    short: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unknown names and missing libraries are errors before the run folder is written."""
    assert TrainConfig(loggers="").loggers == ""
    with pytest.raises(
        InputError, match="loggers: unknown value 'tensorbord'; choose one of tensorboard, wandb, mlflow"
    ):
        TrainConfig(loggers="wandb,tensorbord")
    missing = recorder()
    missing.package = "no_such_library"
    monkeypatch.setitem(LOGGERS, "mlflow", missing)
    message = refused([*short(tmp_path / "run"), "--log", "mlflow"], capsys)
    assert message == "train.loggers mlflow: pip install 'albert_jax[mlflow]'"
    assert not (tmp_path / "run").exists()


def test_only_process_0_logs(short: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process that believes to be another one, no logger is made."""
    from albert_jax.training import job

    made = recorder()
    monkeypatch.setitem(LOGGERS, "tensorboard", made)
    assert main(short(tmp_path / "run")) == 0
    assert made.calls[0] == "init"
    assert made.calls[-2:] == ["finish", "close"]
    made.calls.clear()
    monkeypatch.setattr(job.processes, "is_main", lambda: False)
    main(short(tmp_path / "run"))
    assert made.calls == []
