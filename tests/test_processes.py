"""Runs of several real processes on this machine: they equal one, stop together, and end together when one fails."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from albert_jax.cli import main
from albert_jax.config import InputError
from albert_jax.training import processes
from albert_jax.training.processes import STUCK, DistributedConfig
from albert_jax.training.run_folder import read_metrics

from .conftest import FAST_COMPILE, ROOT, free_port
from .test_resume import digest

Words = Callable[..., list[str]]

PROMPT = 20
"""Seconds in which a failing process has to end the others."""


def launch(
    words: Sequence[str], count: int, devices: int = 1, script: Sequence[str] = ("albert_jax",), **options: Any
) -> list[subprocess.Popen[str]]:
    """The command in `count` processes of `devices` devices each."""
    port = free_port()
    environment = os.environ | {"XLA_FLAGS": f"{FAST_COMPILE} --xla_force_host_platform_device_count={devices}"}
    return [
        subprocess.Popen(
            [sys.executable, "-m", *script, *words, "--mesh.data", "0", *joined(port, count, i)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **({"cwd": ROOT} | options),
        )
        for i in range(count)
    ]


def joined(port: int, count: int, number: int) -> list[str]:
    told = {"coordinator": f"127.0.0.1:{port}", "num-processes": count, "process-id": number, "timeout": 60}
    return [word for name, value in told.items() for word in (f"--distributed.{name}", str(value))] if count > 1 else []


def ended(started: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """Exit code and standard error of each."""
    errors = [process.communicate(timeout=900)[1] for process in started]
    return [(process.returncode, error) for process, error in zip(started, errors, strict=True)]


def wait_for_step(step: int, run_dir: Path, started: list[subprocess.Popen[str]]) -> None:
    deadline = time.monotonic() + 900
    while not any(
        record["step"] >= step for record in (read_metrics(run_dir) if (run_dir / "metrics.jsonl").exists() else [])
    ):
        assert all(process.poll() is None for process in started), ended(started)
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def straight(small: Words, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in one process with two devices."""
    run_dir = tmp_path_factory.mktemp("runs") / "straight"
    [(code, error)] = ended(launch(small(run_dir, train__eval_every=20), 1, devices=2))
    assert code == 0, error
    return run_dir


@pytest.mark.slow
def test_two_processes_are_one_of_two_devices(small: Words, straight: Path, tmp_path: Path) -> None:
    """Bit for bit, dropout on; only the first prints.  Fails if an epoch's rows were cut another way."""
    run_dir = tmp_path / "run"
    (code, error), (other_code, other_error) = ended(launch(small(run_dir, train__eval_every=20), 2))
    assert (code, other_code) == (0, 0), error + other_error
    assert "40 steps" in error
    assert other_error == ""
    assert digest(run_dir, 40) == digest(straight, 40)
    names = ("train/loss", "eval/mlm_loss", "train/sop_accuracy")
    ours, theirs = ([[r.get(name) for name in names] for r in read_metrics(path)] for path in (run_dir, straight))
    assert ours == theirs
    assert json.loads((run_dir / "config.json").read_text())["job"] == "pretrain"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "signum"), [(1, signal.SIGTERM), pytest.param(0, signal.SIGINT, marks=pytest.mark.long)]
)
def test_signal_to_one_stops_all_after_the_same_step(
    number: int, signum: signal.Signals, small: Words, straight: Path, tmp_path: Path
) -> None:
    """And what they saved is gone on with in one process of as many devices, as if nothing had been."""
    run_dir = tmp_path / "run"
    words = small(run_dir, train__eval_every=20)
    started = launch(words, 2)
    wait_for_step(4, run_dir, started)
    started[number].send_signal(signum)
    found = ended(started)
    assert [code for code, _ in found] == [0 if signum == signal.SIGTERM else 128 + signum] * 2, found
    assert f"stopped by {signum.name} after step" in found[0][1]
    [step] = [int(path.name) for path in (run_dir / "checkpoints").iterdir() if path.name != "20"] or [20]
    assert 4 <= step < 40
    [(code, error)] = ended(launch(words, 1, devices=2))
    assert code == 0, error
    assert f"resuming after step {step}" in error
    assert digest(run_dir, 40) == digest(straight, 40)


@pytest.mark.slow
def test_cut_checkpoint_of_which_one_process_has_a_damaged_part(small: Words, tmp_path: Path) -> None:
    """All set it aside.  Fails if a process that cannot read its part says so while the others add up fingerprints."""
    run_dir = tmp_path / "run"
    cut = {"mesh__sharding": "parameters", "model__remat": "dots", "model__num_hidden_layers": 2}
    words = small(run_dir, **cut)
    assert [code for code, _ in ended(launch(words, 2))] == [0, 0]
    part = max((run_dir / "checkpoints/40/state/ocdbt.process_1/d").iterdir(), key=lambda path: path.stat().st_size)
    part.write_bytes(part.read_bytes()[: part.stat().st_size // 2])
    found = ended(launch(words, 2))
    assert [code for code, _ in found] == [0, 0], found
    assert "skipping checkpoint 40 (" in found[0][1]
    assert "resuming after step 20" in found[0][1]
    assert (run_dir / "checkpoints/40.quarantined").exists()
    again = small(
        tmp_path / "again", **cut, init_from=run_dir, train__num_train_steps=6
    )  # and what was cut can be begun with
    assert [code for code, _ in ended(launch(again, 2))] == [0, 0]


@pytest.mark.slow
def test_fine_tuning_in_two_processes(small: Words, tmp_path: Path) -> None:
    """Parameters cut; every process reads the best ones, and only the first writes predictions."""
    rows = [f"{i % 2}\t{'good' if i % 2 else 'bad'} film number {i}\n" for i in range(64)]
    for split in ("train", "dev"):
        (tmp_path / f"{split}.tsv").write_text("label\ttext\n" + "".join(rows))
    recipe = str(ROOT / "experiments/finetune/text.py")
    files = {f"--data.{split}-file": tmp_path / f"{split}.tsv" for split in ("train", "dev")}
    fields = {
        "--run-dir": tmp_path / "run",
        "--mesh.sharding": "parameters",
        "--model.remat": "dots",
        "--model.vocab-size": 42,
        "--model.hidden-size": 32,
        "--model.num-hidden-layers": 2,
        "--train.num-train-steps": 12,
        "--train.eval-every": 4,
        "--optim.num-warmup-steps": 2,
    }
    options = [word for name, value in (files | fields).items() for word in (name, str(value))]
    found = ended(launch(["finetune", recipe, "--scale", "tiny", *options], 2))
    assert [code for code, _ in found] == [0, 0], found
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert [Path(path).exists() for path in summary["predictions"]] == [True]
    assert summary["best"]["step"] in (4, 8, 12)


def plant(fault: str, number: int, step: int) -> tuple[str, ...]:
    return "tests.fault_script", fault, str(number), str(step)


def seconds_to_end(started: list[subprocess.Popen[str]], number: int) -> tuple[float, list[tuple[int, str]]]:
    """How long the others go on after one has ended."""
    deadline = time.monotonic() + 900
    while started[number].poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    begun = time.monotonic()
    found = ended(started)
    return time.monotonic() - begun, found


@pytest.mark.slow
@pytest.mark.parametrize("number", [pytest.param(0, marks=pytest.mark.long), 1])
def test_an_error_in_one_ends_all_and_is_shown(number: int, small: Words, tmp_path: Path) -> None:
    """Left alone, each would wait for the other: 303 s."""
    started = launch(small(tmp_path / "run"), 2, script=plant("fail", number, 8))
    took, found = seconds_to_end(started, number)
    assert took < PROMPT
    assert found[number][0] == 1
    assert "RuntimeError: planted failure" in found[number][1]
    assert f"process {number} of 2 failed" in found[number][1]
    assert found[1 - number][0] != 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, pytest.param(1, marks=pytest.mark.long)])
def test_a_killed_process_ends_the_other(number: int, small: Words, straight: Path, tmp_path: Path) -> None:
    words = small(tmp_path / "run", train__eval_every=20)
    took, found = seconds_to_end(launch(words, 2, script=plant("kill", number, 28)), number)
    assert took < PROMPT
    assert found[number][0] == -signal.SIGKILL
    assert found[1 - number][0] != 0
    resumed = ended(launch(words, 2))
    assert [code for code, _ in resumed] == [0, 0], resumed
    assert digest(tmp_path / "run", 40) == digest(straight, 40)


@pytest.mark.slow
def test_a_stuck_process_is_ended_with_its_stacks(small: Words, tmp_path: Path) -> None:
    """It is alive, and its heart beats: JAX would wait for ever."""
    words = small(tmp_path / "run", train__watchdog_seconds=60)
    found = ended(launch(words, 2, script=plant("stick", 1, 8)))
    assert found[1][0] == STUCK
    assert found[0][0] != 0
    assert "process 1: no step for 60 s (train.watchdog_seconds)" in found[1][1]
    assert "in stick" in found[1][1]


@pytest.mark.slow
def test_second_signal_exits_at_once(small: Words, tmp_path: Path) -> None:
    """Where the first cannot be heard: the loop waits for its data."""
    [process] = launch(small(tmp_path / "run"), 1, script=plant("stick", 0, 10))
    wait_for_step(6, tmp_path / "run", [process])
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    [(code, _)] = ended([process])
    assert code == 128 + signal.SIGTERM


@pytest.mark.slow
def test_processes_that_were_told_other_things(small: Words, tmp_path: Path) -> None:
    port = free_port()
    started = [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "albert_jax",
                *small(tmp_path / "run", train__seed=i, mesh__data=0),
                *joined(port, 2, i),
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    found = ended(started)
    assert found[0][0] == 2, found
    assert "--train.seed is another in process 1 than in process 0" in found[0][1]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_folder_that_not_all_see(small: Words, tmp_path: Path) -> None:
    port = free_port()
    started = []
    for i in range(2):
        (tmp_path / str(i)).mkdir()
        words = [*small(Path("run"), mesh__data=0), *joined(port, 2, i)]
        command = [sys.executable, "-m", "albert_jax", *words]
        started.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path / str(i)))
    found = ended(started)
    assert found[0][0] == 2, found
    assert "--run-dir run: process 1 does not see it" in found[0][1]


def roll_call(*configs: DistributedConfig) -> list[str]:
    """What each of the processes, here threads, is told; empty: go."""
    said = [""] * len(configs)

    def call(number: int) -> None:
        try:
            processes._roll_call(configs[number])
        except InputError as error:
            said[number] = str(error)

    threads = [threading.Thread(target=call, args=(i,)) for i in range(len(configs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return said


def test_signals_are_caught_by_the_main_thread_alone() -> None:
    """A run in another thread, as notebooks and services have them, is a run nevertheless."""
    entered: list[list[int]] = []

    def run() -> None:
        with processes.caught_signals() as signals:
            entered.append(signals)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert entered == [[]]


def test_roll_call() -> None:
    """All there, in any order; missing ones are named to all; so are two of one number, and another count."""
    at = f"127.0.0.1:{free_port()}"
    assert roll_call(*(DistributedConfig(at, 4, i, 30) for i in (2, 0, 3, 1))) == [""] * 4
    told = roll_call(*(DistributedConfig(at, 4, i, 2) for i in (0, 3)))
    assert told == ["--distributed: waited 2 s: 2 of 4 processes joined (missing 1, 2); look at their logs"] * 2
    told = roll_call(*(DistributedConfig(at, 3, i, 10) for i in (0, 1, 1)))
    assert "--distributed.process-id 1 was given to two processes" in told
    told = roll_call(DistributedConfig(at, 2, 0, 10), DistributedConfig(at, 3, 1, 10))
    assert told == ["--distributed.num-processes is 3 in process 1, 2 in process 0"] * 2
    [alone] = roll_call(DistributedConfig(at, 2, 1, 1))
    assert alone == f"--distributed: waited 1 s: process 0 does not answer at {at}; look at its log"


def test_port_that_is_taken() -> None:
    import socket

    with socket.create_server(("", 0)) as server:
        at = f"127.0.0.1:{server.getsockname()[1]}"
        [told] = roll_call(DistributedConfig(at, 2, 0, 5))
    assert told == f"--distributed.coordinator {at}: Address already in use; take another port"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--distributed.coordinator", "somewhere"], "distributed.coordinator: expected HOST:PORT, got 'somewhere'"),
        (["--distributed.coordinator", "a:1"], "distributed.num_processes: with a coordinator, say how many"),
        (
            ["--distributed.coordinator=a:1", "--distributed.num_processes=2", "--distributed.process-id=2"],
            "distributed.process_id must be in [0, num_processes = 2), got 2",
        ),
        (["--distributed.num-processes", "2"], "distributed.num_processes and process_id need coordinator"),
        (["--distributed.timeout", "0"], "distributed.timeout must be at least 1, got 0"),
        (
            ["--train.checkpoint-dir", "here"],
            "train.checkpoint_dir must be absolute, or a bucket's address, got 'here'",
        ),
        (["--distributed.num-processes", "many"], "distributed.num_processes: expected int, got 'many'"),
        (["--mesh.data", "64"], "mesh.data 64: JAX finds"),
        (
            ["--mesh.sharding", "parameters", "--model.remat", "none"],
            "mesh.sharding 'parameters' needs another model.remat than 'none'",
        ),
    ],
)
def test_bad_input(
    words: list[str], told: str, small: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*small(tmp_path / "run"), *words]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
