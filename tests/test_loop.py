"""The train loop on the toy model: it resumes exactly, stops at signals, stores what is evaluated, and explains failures."""

import functools
import logging
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from albert_jax.config import InputError
from albert_jax.training import loop, processes
from albert_jax.training.checkpoint import restore_params
from albert_jax.training.loop import Interrupted, TrainConfig
from albert_jax.training.optim import Optimizer
from albert_jax.training.progress import Diverged
from albert_jax.training.run_folder import read_metrics

from . import toy
from .conftest import largest_file


def steps(folder: Path) -> set[int]:
    return {int(path.name) for path in folder.iterdir() if path.name.isdigit()}


def losses(run_dir: Path) -> list[float]:
    return [record["train/loss"] for record in read_metrics(run_dir) if "train/loss" in record]


def abstract(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """The folder and the last state of an uninterrupted run."""
    run_dir = tmp_path_factory.mktemp("straight")
    state, _ = toy.train(run_dir)
    return run_dir, toy.flat(state)


def signal_after(step: int, signum: int) -> dict[str, Any]:
    """A workload whose input pipeline sends the process a signal when it reads the batch of `step`."""

    def batches(start: int) -> Iterator[dict[str, np.ndarray]]:
        for number, batch in enumerate(toy.batches(start), start + 1):
            if number == step:
                signal.raise_signal(signum)
            yield batch

    return {"batches": batches}


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_signal_saves_and_the_run_resumes_exactly(
    signum: int, code: int, straight: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    """Fails if a resumed run starts at batch 0, draws noise by launch instead of by step, or loses the optimizer's state."""
    message = f"stopped by {signal.Signals(signum).name} and saved after step 6; rerun the command to resume"
    with pytest.raises(Interrupted, match=message) as stopped:
        toy.train(tmp_path, fields=signal_after(7, signum))  # read two steps ahead, noticed one step late
    assert stopped.value.code == code
    assert steps(tmp_path / "checkpoints") == {4, 6}
    state, _ = toy.train(tmp_path)
    np.testing.assert_array_equal(toy.flat(state), straight[1])
    assert losses(tmp_path) == losses(straight[0])
    assert [r["step"] for r in read_metrics(tmp_path) if "eval/bias" in r] == [4, 8, 12]


def test_states_differ_where_they_should(straight: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    """So the comparison of states can fail: a different seed gives a different state, and losses differ by step."""
    state, _ = toy.train(tmp_path, seed=1)
    assert not np.array_equal(toy.flat(state), straight[1])
    assert len(set(losses(straight[0]))) == 12


def test_corrupted_checkpoint_is_replaced(straight: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    run_dir = Path(shutil.copytree(straight[0], tmp_path / "run"))
    arrays = largest_file(run_dir / "checkpoints/12")
    arrays.write_bytes(arrays.read_bytes()[:50])
    state, _ = toy.train(run_dir)
    np.testing.assert_array_equal(toy.flat(state), straight[1])
    assert steps(run_dir / "checkpoints") == {4, 8, 12}
    assert (run_dir / "checkpoints/12.quarantined").exists()


def test_completed_run_changes_nothing(straight: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    run_dir = Path(shutil.copytree(straight[0], tmp_path / "run"))
    before = (run_dir / "metrics.jsonl").read_text()
    state, summary = toy.train(run_dir)
    np.testing.assert_array_equal(toy.flat(state), straight[1])
    assert (run_dir / "metrics.jsonl").read_text() == before
    assert summary["steps"] == 12
    assert summary["tokens"] == 12 * toy.ROWS
    assert summary["parameters"] == (toy.INPUTS + 1) * toy.OUTPUTS


def test_missing_evaluation_is_made_up(straight: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    """As after a process that died between saving and evaluating.  Fails if only steps that are trained are evaluated."""
    run_dir = Path(shutil.copytree(straight[0], tmp_path / "run"))
    shutil.rmtree(run_dir / "checkpoints/12")
    log = (run_dir / "metrics.jsonl").read_text()
    lines = log.splitlines(True)
    (run_dir / "metrics.jsonl").write_text(
        "".join(line for line in lines if not ('"step": 8' in line and "eval/" in line))
    )
    toy.train(run_dir)
    assert [sorted(r)[0] for r in read_metrics(run_dir) if r["step"] == 8] == [
        "speed/sequences_per_second",
        "eval/bias",
    ]
    assert losses(run_dir) == losses(straight[0])


@pytest.mark.parametrize(("first", "then"), [((1, "none"), (4, "parameters")), ((8, "parameters"), (2, "optimizer"))])
def test_resume_on_a_different_number_of_devices(
    first: tuple[int, str], then: tuple[int, str], straight: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    """Equal up to the order of summation, for any sharding before and after."""
    with pytest.raises(Interrupted):
        toy.train(tmp_path, devices=first[0], sharding=first[1], fields=signal_after(7, signal.SIGTERM))
    state, _ = toy.train(tmp_path, devices=then[0], sharding=then[1])
    np.testing.assert_allclose(toy.flat(state), straight[1], atol=1e-5)
    assert len(state.params["kernel"].sharding.device_set) == then[0]


def averaging() -> Optimizer:
    """SGD that evaluates the running mean of the parameters."""

    def update(grads: Any, mean: Any, params: Any) -> tuple[Any, Any]:
        updates = jax.tree.map(lambda g: -0.01 * g, grads)
        return updates, jax.tree.map(lambda m, p, u: 0.5 * m + 0.5 * (p + u), mean, params, updates)

    transformation = optax.GradientTransformation(lambda params: jax.tree.map(jnp.zeros_like, params), update)
    return Optimizer(transformation, lambda step: jnp.float32(0.01), lambda mean, params: mean)


def test_averaged_parameters_are_evaluated_kept_and_loaded(tmp_path: Path) -> None:
    """Evaluation uses the mean, resuming uses the trained parameters.  Fails if one replaces the other."""
    evaluated: list[Any] = []

    def evaluate(params: Any) -> dict[str, dict[str, float]]:
        evaluated.append(jax.device_get(params))
        return toy.evaluate(params)

    whole, summary = toy.train(
        tmp_path / "straight", optimizer=averaging, fields={"evaluate": evaluate, "select": "bias"}
    )
    target = abstract(whole.params)
    last = restore_params(tmp_path / "straight/checkpoints", target)
    jax.tree.map(np.testing.assert_array_equal, last, evaluated[-1])
    jax.tree.map(np.testing.assert_array_equal, last, whole.opt_state)
    assert not np.array_equal(last["kernel"], whole.params["kernel"])
    best = restore_params(tmp_path / "straight/best", target)
    jax.tree.map(np.testing.assert_array_equal, best, evaluated[summary["best"]["step"] // 4 - 1])
    with pytest.raises(Interrupted):
        toy.train(tmp_path / "run", optimizer=averaging, fields=signal_after(7, signal.SIGTERM))
    state, _ = toy.train(tmp_path / "run", optimizer=averaging)
    np.testing.assert_array_equal(toy.flat(state), toy.flat(whole))


def test_best_parameters(tmp_path: Path) -> None:
    """The largest metric wins, not the last one."""
    scores = iter([0.1, 0.9, 0.3])
    kept: list[Any] = []

    def evaluate(params: Any) -> dict[str, dict[str, float]]:
        kept.append(jax.device_get(params))
        return {"eval": {"score": next(scores)}, "baselines": {}}

    state, summary = toy.train(tmp_path, fields={"evaluate": evaluate, "select": "score"})
    assert summary["best"] == {"step": 8, "score": 0.9}
    jax.tree.map(np.testing.assert_array_equal, restore_params(tmp_path / "best", abstract(state.params)), kept[1])


def test_a_warning_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Per run, not per launch.  Fails if a checkpoint does not store that the run has warned."""
    fields = {"warning": lambda step, evaluation: f"step {step} of {len(evaluation['eval'])}" if step > 4 else ""}
    with pytest.raises(Interrupted):
        toy.train(tmp_path, fields=fields | signal_after(11, signal.SIGTERM))
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == ["step 8 of 1"]
    caplog.clear()
    toy.train(tmp_path, fields=fields)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_a_held_out_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    """Fails if NaN reaches summary.json, which no table could read."""
    with pytest.raises(Diverged, match="step 4: the held-out mlm_loss is nan"):
        toy.train(tmp_path, fields={"evaluate": lambda _: {"eval": {"mlm_loss": float("nan")}}})
    assert not (tmp_path / "summary.json").exists()


def test_start_from_given_parameters(tmp_path: Path) -> None:
    """They replace the random parameters; a run that has checkpoints ignores them."""
    given = {"kernel": np.full((toy.INPUTS, toy.OUTPUTS), 2.0, np.float32), "bias": np.ones(toy.OUTPUTS, np.float32)}
    run = functools.partial(toy.train, optim={"learning_rate": 1e-30}, num_train_steps=1)
    state, _ = run(tmp_path, initial=lambda: given)
    np.testing.assert_array_equal(state.params["kernel"], given["kernel"])
    run(tmp_path, initial=pytest.fail)


def test_loss_that_is_not_finite(tmp_path: Path) -> None:
    """The run stops, step, batch and gradient norms are saved for diagnosis, and earlier checkpoints remain."""

    def batches(start: int) -> Iterator[dict[str, np.ndarray]]:
        for number, batch in enumerate(toy.batches(start), start + 1):
            yield {"inputs": np.full_like(batch["inputs"], np.inf)} if number == 7 else batch

    message = "step 7: loss is (nan|inf), gradient norm nan; its batch and the norm of each gradient are in "
    with pytest.raises(InputError, match=message):
        toy.train(tmp_path, fields={"batches": batches})
    with np.load(tmp_path / "nonfinite-step-7.npz") as dump:
        assert int(dump["step"]) == 7
        assert np.isinf(dump["inputs"]).all()
        assert not np.isfinite(dump["grad_norms"]).all()
    assert steps(tmp_path / "checkpoints") == {4}
    toy.train(tmp_path)


def test_skipped_spikes_are_counted(tmp_path: Path) -> None:
    """The factor is so low that about every second norm exceeds it; the count survives a resume."""
    settings: dict[str, Any] = {"num_train_steps": 130, "eval_every": 130, "checkpoint_every": 125}
    toy.train(tmp_path, optim={"skip_spikes": 1.01}, **settings)
    counts = [r.get("train/skipped_updates", 0) for r in read_metrics(tmp_path) if "train/loss" in r]
    assert counts[99] == 0
    assert 0 < counts[-1] < 30
    shutil.rmtree(tmp_path / "checkpoints/130")
    _, summary = toy.train(tmp_path, optim={"skip_spikes": 1.01}, **settings)
    assert summary["skipped_updates"] == counts[-1]


def test_means_over_a_window_survive_a_resume(straight: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    """With a log line every 5 steps and a checkpoint at step 4, the line of step 5 has the mean over steps 1 to 5."""
    toy.train(tmp_path / "straight", log_every=5)
    with pytest.raises(Interrupted):
        toy.train(tmp_path / "run", log_every=5, fields=signal_after(4, signal.SIGTERM))
    toy.train(tmp_path / "run", log_every=5)
    assert losses(tmp_path / "run") == losses(tmp_path / "straight")
    assert losses(tmp_path / "run")[0] == pytest.approx(np.mean(losses(straight[0])[:5]))


def test_out_of_memory() -> None:
    """A real allocation of a terabyte fails."""
    config = TrainConfig(gradient_accumulation=2, global_batch_size=24)
    message = (
        r"out of memory for a step \(Out of memory.*; use gradient accumulation \(--train.gradient-accumulation 3\), or save "
        r"less for the backward pass \(--model.remat dots or full\), or lower --train.global-batch-size"
    )
    with pytest.raises(InputError, match=message), loop.explain_out_of_memory(config, 8):
        jnp.zeros(2**38, jnp.float32).block_until_ready()
    with (
        pytest.raises(InputError, match=r"out of memory for an evaluation .*; lower --train.eval-batch-size 64"),
        loop.explain_out_of_memory(config, 8, "an evaluation"),
    ):
        jnp.zeros(2**38, jnp.float32).block_until_ready()


def test_out_of_memory_has_the_compilers_figures() -> None:
    step = jax.jit(lambda x: x @ x).lower(jax.ShapeDtypeStruct((1000, 1000), jnp.float32)).compile()
    with (
        pytest.raises(InputError, match=r"out of memory for a step: the compiled step needs 0\.01 GB per device"),
        loop.explain_out_of_memory(TrainConfig(), 1, "a step", step),
    ):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8000000 bytes.")


def test_other_errors_of_xla_stay_as_they_are() -> None:
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), loop.explain_out_of_memory(TrainConfig(), 1):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")


def test_second_signal_exits_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop may never read the first one, since it may be waiting for data."""
    codes: list[int] = []
    monkeypatch.setattr(processes.os, "_exit", codes.append)
    before = signal.getsignal(signal.SIGTERM)
    with processes.caught_signals() as signals:
        signal.raise_signal(signal.SIGTERM)
        assert (signals, codes) == ([signal.SIGTERM], [])
        signal.raise_signal(signal.SIGINT)
        assert codes == [130]
    assert signal.getsignal(signal.SIGTERM) == before


def test_run_in_another_thread(tmp_path: Path) -> None:
    """Only the main thread can handle signals; a run in a different thread, as in notebooks and services, works without them."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(toy.train(tmp_path)))
    thread.start()
    thread.join()
    assert len(results) == 1


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_train_steps", 0, "num_train_steps must be at least 1, got 0"),
        ("keep_checkpoints", 0, "keep_checkpoints must be at least 1, got 0"),
        ("keep_every", -1, "keep_every must be at least 0, got -1"),
        ("seed", -1, "seed must be at least 0, got -1"),
        ("seed", 2**32, "seed must be below 2"),
        ("platform", "npu", "platform: unknown value 'npu'"),
        ("checkpoint_dir", "here", "checkpoint_dir must be an absolute path or the address of a bucket, got 'here'"),
    ],
)
def test_bad_config(field: str, value: Any, message: str) -> None:
    with pytest.raises(InputError) as error:
        TrainConfig(**{field: value})
    assert message in str(error.value)


def test_log_lines(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        toy.train(tmp_path)
    lines = [record.getMessage() for record in caplog.records]
    assert [line for line in lines if line.startswith("step 4  eval  bias ")]
    assert [line for line in lines if line.startswith("step 12/12  loss ") and "tokens_per_second" in line]
