"""Loggers with real W&B and MLflow libraries, offline: what arrives, what a resumed run continues, and that none stops a run."""

import importlib
import json
import logging
import shutil
import struct
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from albert_jax.cli import main
from albert_jax.config import InputError
from albert_jax.training import loggers
from albert_jax.training.loggers import LOGGERS, Loggers, WeightsAndBiases
from albert_jax.training.loop import TrainConfig
from albert_jax.training.progress import Meter
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
    monkeypatch.setattr(loggers, "WAIT_SECONDS", 600)  # for slow machines
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


def test_a_failed_run_continues_the_same_runs(
    services: None, short: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """12 steps, a failure in step 9, resume from 6: W&B's two launches and MLflow's run have together what metrics.jsonl has.

    Fails if the second launch starts a new W&B run, if steps are counted from the launch, or if the API key is stored.
    """
    from mlflow.tracking import MlflowClient

    run_dir, both = tmp_path / "run", "wandb,mlflow"
    add = Meter.add

    def fail_at_9(meter: Meter, number: int, *arguments: Any) -> None:
        if number == 9:
            raise RuntimeError("planted failure")
        add(meter, number, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Meter, "add", fail_at_9)
        with pytest.raises(RuntimeError, match="planted failure"):
            main([*short(run_dir), "--log", both])
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
    sent = by_step(wandb_history(first), "_step")
    assert max(sent) >= 6
    assert sent == {step: values for step, values in expected.items() if step <= max(sent)}
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


def test_mlflow_continues_only_what_it_has(
    services: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A run that was deleted, or that did not get its parameters, begins again."""
    from mlflow.tracking import MlflowClient

    def run() -> str:
        with closing(Loggers("mlflow", tmp_path, CONFIG)) as several:
            several.start(0)
        path = tmp_path / "mlflow.id"
        return path.read_text() if path.exists() else ""

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", lambda *_, **__: 1 / 0)
        assert run() == ""
    assert "ZeroDivisionError" in caplog.text
    caplog.clear()
    client = MlflowClient()
    experiment: Any = client.get_experiment_by_name("albert_jax")
    (failed,) = client.search_runs([experiment.experiment_id])
    assert failed.info.status == "FAILED"
    first = run()
    assert first != failed.info.run_id
    client.delete_run(first)
    second = run()
    assert second != first
    assert client.get_run(second).data.params["train.seed"] == "3"
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_mlflow_runs_that_begin_together(
    services: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """All are in one experiment, which one of them creates.  Fails if a run creates it after it has looked for it."""
    from mlflow.tracking import MlflowClient

    together, lock, create = threading.Barrier(3), threading.Lock(), MlflowClient.create_experiment

    def create_together(self: Any, name: str) -> str:
        together.wait(600)
        with lock:
            return create(self, name)

    monkeypatch.setattr(MlflowClient, "create_experiment", create_together)
    several = [Loggers("mlflow", tmp_path / str(number), CONFIG) for number in range(3)]
    for number, one in enumerate(several):
        (tmp_path / str(number)).mkdir()
        one.start(0)
    loggers.close_all(several)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    ids = [(tmp_path / str(number) / "mlflow.id").read_text() for number in range(3)]
    assert len({MlflowClient().get_run(one).info.experiment_id for one in ids}) == 1


def test_wandb_keeps_the_steps_that_it_has() -> None:
    """A run that W&B has up to step 8 and that resumes after step 6 sends nothing of steps 7 and 8.

    Fails if W&B's `Run` has no `starting_step`.  That its server reports it is not tested.
    """
    import wandb

    logger: Any = WeightsAndBiases.__new__(WeightsAndBiases)
    logger.run = Mock(spec_set=wandb.Run, starting_step=9)
    for step in range(7, 12):
        logger.log(step, {"train/loss": 1.0})
    assert [call.kwargs["step"] for call in logger.run.log.call_args_list] == [9, 10, 11]


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
    """Training does not wait for it, and the end of runs only for a limited time, together.  Fails if calls are made by the caller."""
    answer = threading.Event()
    silent: Any = recorder()
    silent.log = lambda self, step, values: answer.wait()
    monkeypatch.setattr(loggers, "LOGGERS", {"silent": silent})
    monkeypatch.setattr(loggers, "WAIT_SECONDS", 0.01)
    several, others = Loggers("silent"), [Loggers("silent") for _ in range(3)]
    for one in (several, *others):
        one.start(0)
        one.log(1, {"train/loss": 2.0})
    waits: list[float] = []
    monkeypatch.setattr(loggers._LoggerThread, "join", lambda self, timeout: waits.append(timeout))
    monkeypatch.setattr(loggers.time, "monotonic", iter([10.0, 10.002, 10.008, 10.02, 10.03]).__next__)
    loggers.close_all([several, *others])
    monkeypatch.undo()
    assert waits == pytest.approx([0.008, 0.002, 0, 0])
    answer.set()
    assert "train.loggers silent: no answer for 0.01 s; the rest was not sent" in caplog.text
    several._threads[0].join()
    for one in others:
        one._threads[0].join()
    assert silent.calls.count("close") == 4


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
    """No logger is made in a process other than process 0."""
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
