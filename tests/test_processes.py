"""Runs of several real processes on this machine: they equal one, stop together, and end together when one fails."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from albert_jax.cli import main
from albert_jax.config import InputError
from albert_jax.training import processes
from albert_jax.training.processes import STUCK, DistributedConfig
from albert_jax.training.run_folder import read_metrics

from . import toy
from .conftest import FAST_COMPILE, ROOT, digest, free_port

Words = Callable[..., list[str]]

PROMPT = 60
"""Seconds in which a failing process must end the others, on a busy machine.  Without our code it takes 300 s."""


def launch(words: Callable[[str, int], Sequence[str]]) -> list[tuple[int, str]]:
    """Run `python -m WORDS...` in two processes of one device; return exit code and standard error of each.

    `words(coordinator, number)` are those of one process.
    """
    environment = os.environ | {"XLA_FLAGS": FAST_COMPILE}
    coordinator = f"127.0.0.1:{free_port()}"
    started = [
        subprocess.Popen(
            [sys.executable, "-m", *words(coordinator, number)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for number in range(2)
    ]
    errors = [process.communicate(timeout=600)[1] for process in started]
    return [(process.returncode, error) for process, error in zip(started, errors, strict=True)]


def distributed(coordinator: str, number: int) -> list[str]:
    values = {"coordinator": coordinator, "num-processes": 2, "process-id": number, "timeout": 60}
    return [word for name, value in values.items() for word in (f"--distributed.{name}", str(value))]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """What tests/process_script.py wrote: the folder, and the results of each process."""
    out = tmp_path_factory.mktemp("processes")
    ended = launch(lambda coordinator, number: ["tests.process_script", str(out), coordinator, str(number)])
    assert [code for code, _ in ended] == [0, 0], ended
    return out, [json.loads((out / f"{number}.json").read_text()) for number in range(2)]


Results = tuple[Path, list[dict[str, Any]]]


@pytest.mark.parametrize("sharding", ["none", "parameters"])
def test_two_processes_equal_two_devices_bit_for_bit(sharding: str, results: Results, tmp_path: Path) -> None:
    """Random numbers included; fails if rows landed on a process that does not own them."""
    state, _ = toy.train(tmp_path, devices=2, sharding=sharding)
    for result in results[1]:
        np.testing.assert_array_equal(result[sharding], toy.flat(state))
    losses = [[r.get("train/loss") for r in read_metrics(path)] for path in (tmp_path, results[0] / sharding)]
    assert losses[0] == losses[1]


def test_corrupted_part_of_one_process(results: Results) -> None:
    """All processes go back to the same step.  Fails if the others wait for one that cannot read its part."""
    out, (first, second) = results
    assert first["resumed"] == second["resumed"] == first["parameters"]
    assert (out / "parameters/checkpoints/12.quarantined").exists()
    assert (out / "parameters/checkpoints/12").exists()


def test_settings_that_differ(results: Results) -> None:
    for result in results[1]:
        assert result["agree"] == ""
        assert result["disagree"].startswith(
            "--train.seed differs between process 0 and process 1; launch all processes"
        )
        assert result["everywhere"] == [True, False]


def test_folder_that_not_all_processes_see(results: Results) -> None:
    for result in results[1]:
        assert result["shared"] == ""
        assert "process 1 does not see it; give a folder that all hosts share" in result["not_shared"]


def test_process_0_goes_first(results: Results) -> None:
    assert [result["is_main"] for result in results[1]] == [True, False]
    assert [result["file_before"] for result in results[1]] == [False, True]


@pytest.mark.long  # test_resume.py sends a signal to a single process
def test_signal_to_one_process_stops_both_after_the_same_step(short: Words, tmp_path: Path) -> None:
    """By the command line; one process of two devices resumes what they saved, and ends with the bits of a run without a stop.

    Only process 0 prints and writes: the other one fails if it opens a file of the run folder for writing.
    """
    run_dir = tmp_path / "run"
    words = short(run_dir, mesh__data=0)
    ended = launch(lambda *peer: ["tests.fault_script", "terminate", "1", "3", *words, *distributed(*peer)])
    assert [code for code, _ in ended] == [0, 0], ended
    assert "stopped by SIGTERM and saved after step 5; rerun the command to resume" in ended[0][1]
    assert "saving after this step" in ended[1][1]
    assert "step 1/12" not in ended[1][1]
    assert {path.name for path in (run_dir / "checkpoints").iterdir()} == {"5"}
    assert not (run_dir / "summary.json").exists()
    assert main(short(run_dir, mesh__data=2)) == 0
    assert main(short(tmp_path / "straight", mesh__data=2)) == 0
    assert digest(run_dir, 12) == digest(tmp_path / "straight", 12)
    names = ("train/loss", "eval/mlm_loss", "train/sop_accuracy")
    records = [
        [[r.get(name) for name in names] for r in read_metrics(path)] for path in (run_dir, tmp_path / "straight")
    ]
    assert records[0] == records[1]


@pytest.mark.long
def test_fine_tuning_in_two_processes(tmp_path: Path) -> None:
    """Parameters are sharded; every process reads the best ones, and only process 0 writes predictions."""
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
    words = ["finetune", recipe, "--scale", "tiny", *options]
    ended = launch(lambda *peer: ["tests.fault_script", "none", "0", "0", *words, *distributed(*peer)])
    assert [code for code, _ in ended] == [0, 0], ended
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert [Path(path).exists() for path in summary["predictions"]] == [True]
    assert summary["best"]["step"] in (4, 8, 12)


def fault(name: str, number: int, run_dir: Path, watchdog_seconds: int = 0) -> list[tuple[int, str]]:
    """Exit codes and errors of a toy run in which process `number` fails at step 5."""
    begun = time.monotonic()
    ended = launch(
        lambda coordinator, own_number: [
            *("tests.fault_script", name, str(number), "5", "toy"),
            *(str(run_dir), str(watchdog_seconds), coordinator, str(own_number)),
        ]
    )
    assert time.monotonic() - begun < PROMPT + 60
    return ended


@pytest.mark.parametrize("number", [pytest.param(0, marks=pytest.mark.long), 1])
def test_error_in_one_process_is_printed_and_ends_both(number: int, tmp_path: Path) -> None:
    ended = fault("fail", number, tmp_path)
    assert ended[number][0] == 1
    assert "RuntimeError: planted failure" in ended[number][1]
    assert f"process {number} of 2 failed" in ended[number][1]
    assert ended[1 - number][0] != 0


@pytest.mark.long
@pytest.mark.parametrize("number", [0, 1])
def test_killed_process_ends_the_other(number: int, tmp_path: Path) -> None:
    ended = fault("kill", number, tmp_path)
    assert ended[number][0] == -signal.SIGKILL
    assert ended[1 - number][0] != 0


def test_stuck_process_ends_with_its_stacks(tmp_path: Path) -> None:
    """It is alive, and JAX hears its heartbeat: the other one would wait forever."""
    ended = fault("stick", 1, tmp_path, watchdog_seconds=5)
    assert ended[1][0] == STUCK
    assert ended[0][0] != 0
    assert "process 1: no step for 5 s (train.watchdog_seconds)" in ended[1][1]
    assert "in stick" in ended[1][1]


def roll_call(*configs: DistributedConfig) -> list[str]:
    """The error of each process, here a thread; empty: all are present."""
    errors = [""] * len(configs)

    def call(number: int) -> None:
        try:
            processes._roll_call(configs[number])
        except InputError as error:
            errors[number] = str(error)

    threads = [threading.Thread(target=call, args=(i,)) for i in range(len(configs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return errors


def test_roll_call_of_all_processes() -> None:
    """In any order."""
    address = f"127.0.0.1:{free_port()}"
    assert roll_call(*(DistributedConfig(address, 4, i, 30) for i in (2, 0, 3, 1))) == [""] * 4


def test_missing_processes_are_named() -> None:
    """In the log of each process that is present."""
    address = f"127.0.0.1:{free_port()}"
    errors = roll_call(*(DistributedConfig(address, 4, i, 2) for i in (0, 3)))
    assert errors == ["--distributed: waited 2 s: 2 of 4 processes joined (missing 1, 2); look at their logs"] * 2
    [alone] = roll_call(DistributedConfig(address, 2, 1, 1))
    assert alone == f"--distributed: waited 1 s: process 0 does not answer at {address}; look at its log"


def test_processes_with_the_same_number_or_different_counts() -> None:
    address = f"127.0.0.1:{free_port()}"
    errors = roll_call(*(DistributedConfig(address, 3, i, 3) for i in (0, 1, 1)))
    assert "--distributed.process-id 1 was given to two processes" in errors
    errors = roll_call(DistributedConfig(address, 2, 0, 10), DistributedConfig(address, 3, 1, 10))
    assert errors == ["--distributed.num-processes is 3 in process 1, 2 in process 0"] * 2


def test_port_that_is_taken() -> None:
    with socket.create_server(("", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        [error] = roll_call(DistributedConfig(address, 2, 0, 5))
    assert error == f"--distributed.coordinator {address}: Address already in use; use a different port"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--distributed.coordinator", "somewhere"], "distributed.coordinator: expected HOST:PORT, got 'somewhere'"),
        (["--distributed.coordinator", "a:1"], "distributed.num_processes: give the number of processes"),
        (
            ["--distributed.coordinator=a:1", "--distributed.num_processes=2", "--distributed.process-id=2"],
            "distributed.process_id must be in [0, num_processes = 2), got 2",
        ),
        (["--distributed.num-processes", "2"], "distributed.num_processes and process_id need coordinator"),
        (["--distributed.timeout", "0"], "distributed.timeout must be at least 1, got 0"),
        (["--distributed.num-processes", "many"], "distributed.num_processes: expected int, got 'many'"),
        (["--mesh.data", "64"], "mesh.data 64: JAX found 8 devices"),
        (["--mesh.sharding", "parameters", "--model.remat", "none"], "mesh.sharding 'parameters'"),
    ],
)
def test_bad_input(
    words: list[str], message: str, small: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*small(tmp_path / "run"), *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
