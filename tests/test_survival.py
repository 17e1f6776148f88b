"""What happens to long runs: killed again and again, flipped bits, full disks, two jobs in one folder, data that changes."""

import errno
import json
import random
import resource
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from albert_jax.cli import main
from albert_jax.config import InputError
from albert_jax.training import checkpoint, run_folder
from albert_jax.training import loop as train
from albert_jax.training.checkpoint import Best, Checkpoints
from albert_jax.training.loop import TrainConfig
from albert_jax.training.run_folder import read_metrics

from .test_processes import ended, launch, plant
from .test_resume import digest, slow, straight  # noqa: F401  (fixtures)

Words = Callable[..., list[str]]

# As in test_resume.py: what Orbax drops where a read fails.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")]


@pytest.mark.parametrize(("kills", "steps"), [(3, 40), pytest.param(20, 400, marks=pytest.mark.long)])
def test_killed_at_random_moments(kills: int, steps: int, slow: Words, tmp_path: Path) -> None:  # noqa: F811
    """kill -9, also while checkpoints are written (every other step): the end is the uninterrupted run's, bit for bit."""
    length = {"train__num_train_steps": steps, "train__eval_every": 2 * steps}
    assert main(slow(tmp_path / "straight", **length, train__checkpoint_every=steps)) == 0
    run_dir, words = tmp_path / "run", slow(tmp_path / "run", **length, train__checkpoint_every=2)
    moments = random.Random(kills)
    killed: list[int] = []
    for number in range(1, kills + 1):
        process = subprocess.Popen([sys.executable, "-m", "albert_jax", *words], stderr=subprocess.PIPE, text=True)
        goal = number * (steps - 4) // kills - moments.randrange(steps // kills // 2)
        deadline = time.monotonic() + 900
        while last_step(run_dir) < goal:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(moments.random() / 20)
        process.kill()
        process.communicate()
        killed.append(int(last_step(run_dir)))
    whole = {int(path.name) for path in (run_dir / "checkpoints").iterdir() if path.name.isdigit()}
    print(f"killed after steps {killed}; whole checkpoints at the end {sorted(whole)}")
    assert steps not in whole
    assert main(words) == 0
    assert digest(run_dir, steps) == digest(tmp_path / "straight", steps)
    ours, theirs = (losses(path) for path in (run_dir, tmp_path / "straight"))
    assert ours == theirs


def losses(run_dir: Path) -> list[float]:
    return [r["train/loss"] for r in read_metrics(run_dir) if "train/loss" in r]


def last_step(run_dir: Path) -> float:
    return max((r["step"] for r in read_metrics(run_dir)), default=0) if (run_dir / "metrics.jsonl").exists() else 0


def state(step: int) -> dict[str, Any]:
    """Something like a state; no two steps have a value in common."""
    rng = np.random.default_rng(step)
    kernels = {f"kernel_{i}": jnp.asarray(rng.normal(size=(2, 60 + i, 70)), jnp.float32) for i in range(4)}
    return {
        "params": kernels,
        "opt_state": {"mu": jnp.asarray(rng.normal(size=(300, 7)), jnp.float32)},
        "step": jnp.int32(step),
    }


@pytest.mark.parametrize("flips", [15, pytest.param(200, marks=pytest.mark.long)])
def test_flipped_bits(flips: int, tmp_path: Path) -> None:
    """In any file of a checkpoint: never a wrong value; where one would be, the step before is used."""
    folder = tmp_path / "checkpoints"
    writer = Checkpoints(folder, keep=2)
    for step in (1, 2):
        writer.save(step, state(step), {"tokens": float(step)})
    writer.close()
    whole = tmp_path / "whole"
    shutil.copytree(folder, whole)
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state(0))
    where = random.Random(flips)
    files = sorted(
        path.relative_to(whole) for path in (whole / "2").rglob("*") if path.is_file() and path.stat().st_size
    )
    arrays = [max(files, key=lambda path: (whole / path).stat().st_size)]
    found, harmless = 0, []
    for number in range(flips):
        shutil.rmtree(folder)
        shutil.copytree(whole, folder)
        path = where.choice(files if number % 4 == 3 else arrays)
        flip(folder / path, where)
        reader = Checkpoints(folder, keep=2)
        restored = reader.restore(target)
        reader.close()
        assert restored is not None
        step = int(restored[0]["step"])
        jax.tree.map(np.testing.assert_array_equal, restored[0], state(step))
        assert restored[1] == {"tokens": float(step)}
        assert (folder / "2.quarantined").exists() == (step == 1)
        found += step == 1
        harmless += [path] * (step == 2)
    told = "flips set the step aside; values were right all the same after those in"
    print(f"{found} of {flips} {told} {dict(Counter(map(str, harmless)))}")
    assert harmless.count(arrays[0]) <= max(1, flips // 20)


def flip(path: Path, where: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[where.randrange(len(data))] ^= 1 << where.randrange(8)
    path.write_bytes(data)


LIMIT = 600_000
"""Bytes of the largest file: less than a checkpoint has, more than a vocabulary."""


def limited(words: list[str]) -> subprocess.Popen[str]:
    """The command with a disk that takes no file above `LIMIT`: writes fail as on a full one."""
    return subprocess.Popen(
        [sys.executable, "-m", "albert_jax", *words],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, resource.RLIM_INFINITY)),
    )


def test_full_disk_costs_a_checkpoint(slow: Words, straight: Path, tmp_path: Path) -> None:  # noqa: F811
    """The run goes on, and saves again once there is room; nothing of the lost one is left."""
    run_dir = tmp_path / "run"
    process = limited(slow(run_dir, train__checkpoint_every=10))
    deadline = time.monotonic() + 900
    while last_step(run_dir) < 22:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    error = process.communicate(timeout=900)[1]
    assert process.returncode == 0, error
    assert "checkpoint 10 is lost (" in error
    assert "training goes on" in error
    assert "Traceback" not in error
    assert {path.name for path in (run_dir / "checkpoints").iterdir()} in ({"30", "40"}, {"40"})
    assert digest(run_dir, 40) == digest(straight, 40)


def test_full_disk_at_the_end(slow: Words, straight: Path, tmp_path: Path) -> None:  # noqa: F811
    """No exit 0 for a run whose last step is nowhere; the same command makes it good."""
    run_dir = Path(shutil.copytree(straight, tmp_path / "run"))
    shutil.rmtree(run_dir / "checkpoints/40")
    process = limited(slow(run_dir))
    error = process.communicate(timeout=900)[1]
    assert process.returncode == 2, error
    assert "checkpoint 40 could not be written" in error
    assert "make room and rerun the command to resume from step 20" in error
    assert "Traceback" not in error
    assert main(slow(run_dir)) == 0
    assert digest(run_dir, 40) == digest(straight, 40)


def test_no_room_to_begin_with(
    small: Words,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    room = shutil.disk_usage(tmp_path)._replace(free=200_000)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: room)
    assert main(small(tmp_path / "run")) == 2
    error = capsys.readouterr().err
    assert "4 checkpoints of " in error
    assert "0.0002 GB are free; make room" in error


def test_two_jobs_in_one_folder(
    small: Words,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The second is refused and told whose it is; a lock whose process is gone holds nobody off."""
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "lock").write_text("elsewhere:1 since long ago")
    with run_folder.file_lock(run_dir) as mine:
        assert mine
        assert main(small(run_dir)) == 2
    error = capsys.readouterr().err
    assert f"{run_dir}: held by " in error
    assert "since 20" in error
    assert "wait for it, or give another --run-dir" in error
    assert {path.name for path in run_dir.iterdir()} == {"lock"}


def test_data_that_changed(
    small: Words,
    corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Refused by the run folder and, where that is lost, by the checkpoint; gone on with when that is said, and kept on record."""
    text = tmp_path / "docs.jsonl"
    shutil.copy(corpus, text)
    run_dir = tmp_path / "run"
    words = small(run_dir, data__source=text, train__checkpoint_dir=tmp_path / "elsewhere", train__num_train_steps=20)
    assert main(words) == 0
    text.write_text("".join(text.read_text().splitlines(True)[:-1]))
    assert main(words) == 2
    assert "the data changed since this run began (data: " in capsys.readouterr().err
    records = [run_dir / "config.json", tmp_path / "elsewhere/config.json"]
    for record in records:
        record.rename(record.with_suffix(".old"))
    assert main(words) == 2
    assert "checkpoint 20 was trained on other data (data: " in capsys.readouterr().err
    for record in records:
        record.with_suffix(".old").replace(record)
    assert main([*words, "--allow-data-change"]) == 0
    assert "which is allowed" in capsys.readouterr().err
    assert len(json.loads((run_dir / "config.json").read_text())["data_changes"]) == 1
    assert main([*words, "--allow-data-change"]) == 0


@pytest.mark.parametrize(
    ("first", "then"),
    [((1, "none"), (4, "parameters")), pytest.param((4, "parameters"), (1, "optimizer"), marks=pytest.mark.long)],
)
def test_another_number_of_devices(first: tuple[int, str], then: tuple[int, str], small: Words, tmp_path: Path) -> None:
    """A state saved whole on one device is gone on with cut over four, and one cut over four whole on one."""
    kept = {"model__remat": "dots", "model__sharing": "none"}
    assert main(small(tmp_path / "one", **kept)) == 0
    run_dir = tmp_path / "run"
    for devices, sharding in (first, then):
        [(code, error)] = ended(launch(small(run_dir, **kept, mesh__sharding=sharding), 1, devices))
        assert code == 0, error
        if (devices, sharding) == first:
            shutil.rmtree(run_dir / "checkpoints/40")
    assert "resuming after step 20" in error
    np.testing.assert_allclose(losses(run_dir), losses(tmp_path / "one"), atol=1e-4)


def test_other_versions_are_told(small: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = small(tmp_path / "run", train__num_train_steps=6)
    assert main(words) == 0
    record = tmp_path / "run/config.json"
    stored = json.loads(record.read_text())
    stored["versions"]["jax"] = "0.0.1"
    record.write_text(json.dumps(stored))
    capsys.readouterr()
    assert main(words) == 0
    assert "resuming with other versions, so not bit for bit: jax: '0.0.1' -> " in capsys.readouterr().err


def test_best_that_is_lost_is_not_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if it were taken for kept: a worse one that there is room for would then be refused."""
    best, params = Best(tmp_path / "best"), {"kernel": jnp.ones((2, 2))}
    best.offer(1, "f1", params, {"f1": 0.5})
    monkeypatch.setattr(Checkpoints, "_free", lambda self: 0.0)
    best.offer(2, "f1", params, {"f1": 0.9})
    assert (best.step, best.metrics) == (1, {"f1": 0.5})
    monkeypatch.undo()
    best.offer(3, "f1", params, {"f1": 0.8})
    best.close()
    again = Best(tmp_path / "best")
    assert (again.step, again.metrics) == (3, {"f1": 0.8})
    again.close()


def test_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Some network file systems: the run goes on, and says so."""

    def none(*args: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(run_folder.fcntl, "flock", none)
    with caplog.at_level("WARNING"), run_folder.file_lock(tmp_path) as mine:
        assert mine
    assert "no lock (No locks available); see to it that no other job runs in it" in caplog.text


def test_checkpoints_elsewhere(small: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are the run's alone, and are found from its folder.  Fails if another run went on from them."""
    kept = {"train__checkpoint_dir": tmp_path / "elsewhere", "train__num_train_steps": 20}
    assert main(small(tmp_path / "run", **kept)) == 0
    assert not (tmp_path / "run/checkpoints").exists()
    assert main(small(tmp_path / "other", **kept, train__seed=1)) == 2
    told = f"--train.checkpoint-dir {tmp_path / 'elsewhere'} belongs to another configuration (train.seed: 0 -> 1)"
    assert told in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "model"), "--to", "albert_jax"]) == 0
    assert main(small(tmp_path / "next", init_from=tmp_path / "run", train__num_train_steps=6)) == 0
    shutil.rmtree(tmp_path / "run")  # as on a new host
    assert main(small(tmp_path / "run", **kept)) == 0
    assert "resuming after step 20" in capsys.readouterr().err


def test_which_checkpoints_are_kept(small: Words, tmp_path: Path) -> None:
    words = small(tmp_path / "run", train__checkpoint_every=4, train__keep_checkpoints=2, train__keep_every=16)
    assert main(words) == 0
    assert {int(path.name) for path in (tmp_path / "run/checkpoints").iterdir()} == {16, 32, 36, 40}


def test_poisoned_batch(small: Words, tmp_path: Path) -> None:
    """What is needed to find out why: step, the norm of each gradient, which records; and the checkpoint before it stays."""
    run_dir = tmp_path / "run"
    [(code, error)] = ended(launch(small(run_dir, train__checkpoint_every=10), 1, script=plant("poison", 0, 25)))
    assert code == 2
    assert "step 25: loss is nan, gradient norm nan; its batch and the norm of each gradient are in " in error
    with np.load(run_dir / "nonfinite-step-25.npz") as dump:
        assert int(dump["step"]) == 25
        assert dump["document"].shape == (16,)
        assert (dump["tokens"] == 10**6).all()
        assert np.isnan(dump["grad_norms"]).any()
    assert max(int(path.name) for path in (run_dir / "checkpoints").iterdir()) == 20
    assert main(small(run_dir, train__checkpoint_every=10)) == 0


def test_spikes_are_left_out(small: Words, tmp_path: Path) -> None:
    """With a factor that every other norm exceeds; the count survives a resume."""
    words = small(tmp_path / "run", optim__skip_spikes=1.01, train__num_train_steps=130, train__checkpoint_every=125)
    assert main(words) == 0
    records = [r for r in read_metrics(tmp_path / "run") if "train/loss" in r]
    counts = [r.get("train/skipped_updates", 0) for r in records]
    assert counts[99] == 0
    assert 0 < counts[-1] < 30
    assert json.loads((tmp_path / "run/summary.json").read_text())["skipped_updates"] == counts[-1]


def test_out_of_memory() -> None:
    """A real one: a terabyte."""
    config = TrainConfig(gradient_accumulation=2, global_batch_size=24)
    told = r"out of memory for a step \(Out of memory.*; add the batch of 24 up from parts \(--train.gradient-accumulation 3\)"
    with pytest.raises(InputError, match=told), train.explain_out_of_memory(config, 8):
        jnp.zeros(2**38, jnp.float32).block_until_ready()


def test_out_of_memory_has_the_compilers_figures() -> None:
    step = jax.jit(lambda x: x @ x).lower(jax.ShapeDtypeStruct((1000, 1000), jnp.float32)).compile()
    with (
        pytest.raises(InputError, match=r"out of memory for a step: by the compiler it takes 0\.01 GB a device"),
        train.explain_out_of_memory(TrainConfig(), 1, "a step", step),
    ):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8000000 bytes.")
