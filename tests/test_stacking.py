"""Several seeds trained in one program: each run equals a run that is trained separately."""

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from albert_jax.config import InputError
from albert_jax.training import optim
from albert_jax.training.loop import Interrupted
from albert_jax.training.run_folder import read_metrics

from . import toy

SEEDS = (0, 3)
Separate = tuple[dict[int, Path], dict[int, np.ndarray], dict[int, float]]


@pytest.fixture(scope="module", autouse=True)
def early_spikes() -> Iterator[None]:
    """Updates can be skipped from the third step on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optim, "FIRST_NORMS", 2)
        yield


HARD: dict[str, Any] = {
    "optim": {"max_grad_norm": 0.1, "optimizer": "lamb", "skip_spikes": 1.01},
    "gradient_accumulation": 2,
}
"""Settings whose effect depends on norms: of all gradients (clipping, spikes) and of each parameter (trust ratios)."""


def folders(root: Path) -> dict[int, Path]:
    return {seed: root / f"seed-{seed}" for seed in SEEDS}


def metrics(run_dir: Path) -> list[dict[str, float]]:
    """The log without speeds."""
    return [{k: v for k, v in record.items() if "speed" not in k} for record in read_metrics(run_dir)]


def assert_near(run_dir: Path, separate_dir: Path) -> None:
    """The logs of two runs are equal up to rounding."""
    records, wanted = metrics(run_dir), metrics(separate_dir)
    assert [list(record) for record in records] == [list(record) for record in wanted]
    for record, other in zip(records, wanted, strict=True):
        np.testing.assert_allclose(list(record.values()), list(other.values()), rtol=1e-5)


@pytest.fixture(scope="module")
def separate(tmp_path_factory: pytest.TempPathFactory) -> Separate:
    """Each seed trained separately: its folder, last state and number of skipped updates."""
    run_dirs = folders(tmp_path_factory.mktemp("separate"))
    results = {seed: toy.train(folder, seed=seed, **HARD) for seed, folder in run_dirs.items()}
    states = {seed: toy.flat(state) for seed, (state, _) in results.items()}
    return run_dirs, states, {seed: summary["skipped_updates"] for seed, (_, summary) in results.items()}


@pytest.mark.parametrize(("devices", "sharding"), [(1, "none"), (2, "none"), (2, "parameters")])
def test_one_program_equals_separate_runs(devices: int, sharding: str, separate: Separate, tmp_path: Path) -> None:
    """Parameters, optimizer state, log and totals.

    Fails if norms are taken over both seeds, or both read the batches or the noise of one seed.
    """
    results = toy.train_seeds(folders(tmp_path), devices=devices, sharding=sharding, **HARD)
    for (seed, run_dir), (state, summary) in zip(folders(tmp_path).items(), results, strict=True):
        np.testing.assert_allclose(toy.flat(state), separate[1][seed], rtol=1e-5, atol=1e-6)
        assert_near(run_dir, separate[0][seed])
        assert summary["parallel_seeds"] == 2
        assert summary["skipped_updates"] == separate[2][seed] > 0
        assert summary["tokens"] == 12 * toy.ROWS
    assert not np.allclose(separate[1][0], separate[1][3], rtol=0.1)


def test_an_interrupted_program_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same program gives the same bits, and a program of one seed the same numbers up to rounding."""
    straight = [toy.flat(state) for state, _ in toy.train_seeds(folders(tmp_path / "straight"), **HARD)]
    usual_batches = toy.batches

    def batches(start: int, seed: int) -> Iterator[dict[str, np.ndarray]]:
        for number, batch in enumerate(usual_batches(start, seed), start + 1):
            if (seed, number) == (3, 7):  # read two steps ahead, noticed one step late
                signal.raise_signal(signal.SIGTERM)
            yield batch

    run_dirs = folders(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(toy, "batches", batches)
        with pytest.raises(Interrupted, match="saved after step 6"):
            toy.train_seeds(run_dirs, **HARD)
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    alone, _ = toy.train(tmp_path / "copy" / "seed-3", seed=3, **HARD)
    np.testing.assert_allclose(toy.flat(alone), straight[1], rtol=1e-5, atol=1e-6)
    resumed = [toy.flat(state) for state, _ in toy.train_seeds(run_dirs, **HARD)]
    np.testing.assert_array_equal(resumed, straight)
    for seed in SEEDS:
        assert metrics(run_dirs[seed]) == metrics(tmp_path / "straight" / f"seed-{seed}")
    shutil.rmtree(run_dirs[0] / "checkpoints/12")
    with pytest.raises(InputError, match=r"are of different steps \(8 and 12\); train these runs separately"):
        toy.train_seeds(run_dirs, **HARD)


def test_a_seed_that_diverges_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its folder gets its own batch; the program stops."""
    usual_batches = toy.batches

    def batches(start: int, seed: int) -> Iterator[dict[str, np.ndarray]]:
        for number, batch in enumerate(usual_batches(start, seed), start + 1):
            yield {"inputs": np.full_like(batch["inputs"], np.inf)} if (seed, number) == (3, 7) else batch

    monkeypatch.setattr(toy, "batches", batches)
    with pytest.raises(InputError, match=r"step 7: loss is .*seed-3/nonfinite-step-7\.npz"):
        toy.train_seeds(folders(tmp_path))
    with np.load(tmp_path / "seed-3/nonfinite-step-7.npz") as dump:
        assert dump["inputs"].shape == (toy.ROWS, toy.INPUTS)
        assert np.isinf(dump["inputs"]).all()
