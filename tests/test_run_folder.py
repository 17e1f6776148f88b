"""Run folders: who may use one, what is recorded, and what survives a crash or a full disk."""

import errno
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from albert_jax.config import InputError, to_dict
from albert_jax.training import run_folder
from albert_jax.training.loop import TrainConfig
from albert_jax.training.partition import MeshConfig
from albert_jax.training.run_folder import MetricsLog, file_lock, locked, read_metrics


@dataclass(frozen=True)
class Config:
    """The fields that a run folder looks at."""

    run_dir: str
    init_from: str = ""
    train: TrainConfig = field(default_factory=TrainConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)


DATA = {"data": "a", "vocab": "b"}


def claim(config: Config, data: dict[str, str] = DATA, allow: bool = False) -> None:
    run_folder.check(Path(config.run_dir), "pretrain", config)
    run_folder.claim(Path(config.run_dir), "pretrain", to_dict(config), data, {}, allow)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """The configuration of a run folder that was claimed."""
    config = Config(str(tmp_path / "run"))
    claim(config)
    return config


def test_same_configuration_is_accepted(config: Config) -> None:
    claim(config)


@pytest.mark.parametrize(
    "changes",
    [
        {"mesh": MeshConfig(data=4)},
        {"train": TrainConfig(keep_checkpoints=1, keep_every=7, watchdog_seconds=5, platform="cpu", loggers="wandb")},
    ],
)
def test_fields_that_may_change(changes: dict[str, Any], config: Config) -> None:
    claim(replace(config, **changes))


def test_different_configuration_is_refused(config: Config) -> None:
    message = r"--run-dir .*/run belongs to a different configuration \(train.seed: 0 -> 1\); .* add --init-from .*/run"
    with pytest.raises(InputError, match=message):
        claim(replace(config, train=TrainConfig(seed=1)))
    with pytest.raises(InputError, match=r"belongs to a different configuration \(pretrain\)"):
        run_folder.check(Path(config.run_dir), "finetune", config)


def test_field_that_is_newer_than_the_run(config: Config) -> None:
    """It counts as its default."""
    path = Path(config.run_dir, "config.json")
    stored = json.loads(path.read_text())
    del stored["config"]["train"]["log_every"]
    path.write_text(json.dumps(stored))
    claim(config)
    with pytest.raises(InputError, match=r"train.log_every: 100 -> 7"):
        claim(replace(config, train=TrainConfig(log_every=7)))


def test_file_that_is_not_of_a_run(config: Config) -> None:
    Path(config.run_dir, "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"config.json does not belong to a run; give a different --run-dir"):
        claim(config)


def test_folder_of_runs_can_be_moved(tmp_path: Path) -> None:
    """A run that starts from its neighbor does so wherever both are."""
    old = Config(str(tmp_path / "old/b"), init_from=str(tmp_path / "old/a"))
    claim(old)
    (tmp_path / "old").rename(tmp_path / "new")
    claim(Config(str(tmp_path / "new/b"), init_from=str(tmp_path / "new/a")))
    with pytest.raises(InputError, match="init_from"):
        claim(Config(str(tmp_path / "new/b"), init_from=str(tmp_path / "old/a")))


def test_data_that_changed(config: Config, caplog: pytest.LogCaptureFixture) -> None:
    """It is refused; if it is allowed, the change is recorded."""
    changed = DATA | {"data": "c"}
    with pytest.raises(
        InputError, match=r"the data changed since this run began \(data: 'a' -> 'c'\); restore the old"
    ):
        claim(config, changed)
    claim(config, changed, allow=True)
    assert "continuing because of --allow-data-change" in caplog.text
    stored = json.loads(Path(config.run_dir, "config.json").read_text())
    assert stored["data_changes"] == [DATA]
    claim(config, changed)


def test_different_versions_are_reported(config: Config, caplog: pytest.LogCaptureFixture) -> None:
    path = Path(config.run_dir, "config.json")
    stored = json.loads(path.read_text())
    stored["versions"]["jax"] = "0.0.1"
    path.write_text(json.dumps(stored))
    claim(config)
    assert "resuming with different versions, so not bit for bit: jax: '0.0.1' -> " in caplog.text


def test_checkpoints_elsewhere_belong_to_their_run(tmp_path: Path) -> None:
    """Even if the run folder is lost."""
    config = Config(str(tmp_path / "run"), train=TrainConfig(checkpoint_dir=str(tmp_path / "elsewhere")))
    claim(config)
    Path(config.run_dir, "config.json").unlink()
    claim(config)
    with pytest.raises(InputError, match=r"--train.checkpoint-dir .*elsewhere belongs to a different configuration"):
        claim(Config(str(tmp_path / "other"), train=replace(config.train, seed=1)))


def test_two_jobs_in_one_folder(tmp_path: Path) -> None:
    """The second is refused with host, process and time of the first; a lock of a dead process is free."""
    (tmp_path / "lock").write_text("elsewhere:1 since long ago")
    with locked(tmp_path, ""):
        with pytest.raises(InputError, match=r": in use by .*:\d+ since 20.*; wait for that job, or give a different"):
            locked(tmp_path, "").__enter__()
        with locked(tmp_path, "", enabled=False):  # another process of the same run
            pass
    with locked(tmp_path, ""):
        pass


def test_two_jobs_with_the_same_checkpoints(tmp_path: Path) -> None:
    with (
        locked(tmp_path / "a", str(tmp_path / "checkpoints")),
        pytest.raises(InputError, match=r"checkpoints: in use by"),
    ):
        locked(tmp_path / "b", str(tmp_path / "checkpoints")).__enter__()


def test_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As some network file systems: the run continues with a warning."""

    def fail(*args: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(run_folder.fcntl, "flock", fail)
    with file_lock(tmp_path) as mine:
        assert mine
    assert "no locks (No locks available); make sure that no other job uses this folder" in caplog.text


def test_metrics_after_the_step_of_resumption_are_dropped(tmp_path: Path) -> None:
    """And so is a last line that a crash cut off."""
    log = MetricsLog(tmp_path, 0)
    for step in (1, 2, 3):
        log.write(step, {"train/loss": float(step)})
    log.write(2, {"eval/accuracy": 0.5})
    log.close()
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 4, "train/lo')
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2, 3, 2]
    log = MetricsLog(tmp_path, 2)
    assert log.evaluated == {2}
    log.write(3, {"train/loss": 0.25})
    log.close()
    assert [record.get("train/loss") for record in read_metrics(tmp_path)] == [1, 2, None, 0.25]


def test_only_the_main_process_writes_metrics(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, 0, writes=False)
    log.write(1, {"train/loss": 1.0})
    log.close()
    assert list(tmp_path.iterdir()) == []


def test_metrics_on_a_full_disk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Records are lost, which is logged once; training continues."""
    log = MetricsLog(tmp_path, 0)

    class Full:
        """A file on a full disk."""

        name = "metrics.jsonl"

        def write(self, text: str) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    file, log._file = log._file, Full()  # type: ignore[assignment]
    log.write(1, {"train/loss": 1.0})
    log.write(2, {"train/loss": 1.0})
    log._file = file
    log.close()
    assert caplog.text.count("records are lost (No space left on device); training continues") == 1


def test_metrics_of_no_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such file; is .* a run folder"):
        read_metrics(tmp_path)
