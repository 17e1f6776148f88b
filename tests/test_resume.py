"""Runs that end early: killed, interrupted, damaged.  What comes after must be what would have come anyway."""

import hashlib
import json
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
import orbax.checkpoint as ocp
import pytest

from albert_jax.cli import main
from albert_jax.exchange import huggingface
from albert_jax.exchange.convert import convert
from albert_jax.exchange.load import read
from albert_jax.exchange.weights import Weights
from albert_jax.model.heads import Albert
from albert_jax.training import checkpoint
from albert_jax.training.run_folder import read_metrics

Words = Callable[..., list[str]]

# Where a read fails, Orbax drops coroutines that it never awaited.  `checkpoint` ignores them, but pytest's capture of logs
# keeps some alive until another test runs.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")]


@pytest.fixture(scope="module")
def slow(small: Words) -> Words:
    """Steps of some 50 ms, so that a process can be caught between two of them."""
    size = {
        "model__hidden_size": 128,
        "model__num_hidden_layers": 6,
        "model__intermediate_size": 256,
        "train__global_batch_size": 64,
    }
    return lambda run_dir, **overrides: small(run_dir, **(size | overrides))


def digest(run_dir: Path, step: int) -> str:
    """SHA-256 of parameters, optimiser state and step as they lie in a checkpoint."""
    with ocp.PyTreeCheckpointer() as reader:
        path = run_dir / "checkpoints" / str(step) / "state"
        leaves = jax.tree.map(np.zeros_like, reader.metadata(path).item_metadata.tree)
        restored = reader.restore(
            path, restore_args=jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), leaves)
        )
    total = hashlib.sha256()
    for leaf in jax.tree.leaves(restored):
        total.update(np.ascontiguousarray(leaf).tobytes())
    return total.hexdigest()


@pytest.fixture(scope="module")
def straight(slow: Words, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 40 steps in one go; an epoch is a few steps, so that it crosses edges."""
    run_dir = tmp_path_factory.mktemp("runs") / "straight"
    assert main(slow(run_dir)) == 0
    return run_dir


def start(words: list[str], until_step: int, run_dir: Path) -> subprocess.Popen[str]:
    """The command in a process of its own, once it has logged `until_step`."""
    process = subprocess.Popen([sys.executable, "-m", "albert_jax", *words], stderr=subprocess.PIPE, text=True)
    log = run_dir / "metrics.jsonl"
    deadline = time.monotonic() + 180
    while not (log.exists() and len(log.read_text().splitlines()) >= until_step):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


def test_length_buckets_resume(
    small: Words,
    short_corpus: Path,
    compiled_steps: list[Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The second half again, as after a crash: among batches of two widths, across an epoch edge, to the same bits.  Fails if
    batches count from the start, or are all of one width."""
    words = small(tmp_path, data__source=short_corpus, length_buckets=True, train__global_batch_size=64)
    assert main(words) == 0
    straight = digest(tmp_path, 40)
    shutil.rmtree(tmp_path / "checkpoints" / "40")
    assert main(words) == 0
    assert "resuming after step 20" in capsys.readouterr().err
    assert len(compiled_steps) == 4  # both launches met both widths
    assert digest(tmp_path, 40) == straight


def test_killed_and_resumed_is_bitwise_straight(slow: Words, straight: Path, tmp_path: Path) -> None:
    """40 steps == 20, kill -9, resume; dropout on, across an epoch edge.  Fails if the data began again at batch 0, if
    dropout were keyed by launch instead of step, or if the optimiser's state were left out."""
    run_dir = tmp_path / "run"
    process = start(slow(run_dir), 24, run_dir)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (run_dir / "checkpoints" / "40").exists()
    assert (run_dir / "checkpoints" / "20").exists()
    assert main(slow(run_dir)) == 0
    assert digest(run_dir, 40) == digest(straight, 40)
    ours, theirs = ([r for r in read_metrics(path) if "train/loss" in r] for path in (run_dir, straight))
    assert [r["step"] for r in ours] == list(range(1, 41))
    assert [r["train/loss"] for r in ours] == [r["train/loss"] for r in theirs]
    a, b = (json.loads((path / "summary.json").read_text()) for path in (run_dir, straight))
    assert a["eval"] == b["eval"]
    assert a["tokens"] == b["tokens"]


def test_digest_sees_what_differs(slow: Words, straight: Path, tmp_path: Path) -> None:
    """The digest can fail: another seed gives another, and steps differ."""
    assert main(slow(tmp_path / "other", train__seed=1)) == 0
    assert len({digest(tmp_path / "other", 40), digest(straight, 40), digest(straight, 20)}) == 3


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_and_the_same_command_resumes(
    signum: signal.Signals, slow: Words, straight: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    process = start(slow(run_dir), 6, run_dir)
    process.send_signal(signum)
    output = process.communicate(timeout=120)[1]
    assert process.returncode == (0 if signum == signal.SIGTERM else 128 + signum)
    assert not (run_dir / "summary.json").exists()
    assert "the same command goes on from there" in output
    assert "Traceback" not in output, output
    saved = max(int(path.name) for path in (run_dir / "checkpoints").iterdir())
    assert 6 <= saved < 20
    assert main(slow(run_dir)) == 0
    assert digest(run_dir, 40) == digest(straight, 40)


def test_finished_run_changes_nothing(slow: Words, straight: Path) -> None:
    before = (
        digest(straight, 40),
        (straight / "metrics.jsonl").read_text(),
        json.loads((straight / "summary.json").read_text()),
    )
    assert main(slow(straight)) == 0
    assert before == (
        digest(straight, 40),
        (straight / "metrics.jsonl").read_text(),
        json.loads((straight / "summary.json").read_text()),
    )


@pytest.fixture
def copied(straight: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(straight, tmp_path / "copy"))


def resume_from_20(copied: Path, slow: Words, straight: Path, capsys: pytest.CaptureFixture[str], reason: str) -> None:
    assert main(slow(copied)) == 0
    assert reason in capsys.readouterr().err
    assert (copied / "checkpoints" / "40.quarantined").exists()
    assert digest(copied, 40) == digest(straight, 40)


def test_flipped_bit_is_seen_and_the_step_before_is_used(
    slow: Words, copied: Path, straight: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Orbax itself loads such a file without a word; fails if `_verify` is not called."""
    arrays = max((copied / "checkpoints/40/state/ocdbt.process_0/d").iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(arrays.read_bytes())
    data[len(data) // 2] ^= 1
    arrays.write_bytes(data)
    resume_from_20(copied, slow, straight, capsys, "skipping checkpoint 40 (fingerprint mismatch in")


def truncate(step: Path) -> None:
    """Nearly everything is gone: in which order Orbax writes parameters and the rest is not the same every time."""
    for path in step.glob("state/ocdbt.process_0/d/*"):
        path.write_bytes(path.read_bytes()[:100])


def test_truncated_checkpoint(slow: Words, copied: Path, straight: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truncate(copied / "checkpoints/40")
    resume_from_20(copied, slow, straight, capsys, "skipping checkpoint 40")


def test_folder_with_a_number_is_no_checkpoint(
    slow: Words, copied: Path, straight: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bare folder is the latest step to Orbax."""
    shutil.rmtree(copied / "checkpoints/40")
    (copied / "checkpoints/40").mkdir()
    resume_from_20(copied, slow, straight, capsys, "skipping checkpoint 40 (no commit marker)")


def test_no_whole_checkpoint_left(slow: Words, copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Never a silent fresh start."""
    for step in (20, 40):
        truncate(copied / f"checkpoints/{step}")
    before = sorted((copied / "checkpoints").rglob("*"))
    for _ in range(2):
        assert main(slow(copied)) == 2
        assert "none of the checkpoints can be read (40: " in capsys.readouterr().err
    assert sorted((copied / "checkpoints").rglob("*")) == before


def test_failing_disk_is_no_damage(slow: Words, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if any error sets good checkpoints aside."""

    def fail(*args: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(checkpoint.Checkpoints, "_read", fail)
    with pytest.raises(OSError, match="Input/output"):
        main(slow(copied))
    assert {path.name for path in (copied / "checkpoints").iterdir()} == {"20", "40"}


def test_evaluation_that_was_missed_is_made_up_for(slow: Words, straight: Path, tmp_path: Path) -> None:
    """A log whose last record was lost with the process; fails if only steps that are trained are evaluated."""
    copied = Path(shutil.copytree(straight, tmp_path / "copy"))
    log = (copied / "metrics.jsonl").read_text()
    (copied / "metrics.jsonl").write_text("".join(line for line in log.splitlines(True) if "eval/" not in line))
    assert main(slow(copied)) == 0
    assert (copied / "metrics.jsonl").read_text() == log


def test_init_from_takes_the_parameters_alone(slow: Words, straight: Path, tmp_path: Path) -> None:
    """One step at learning rate ~0 from the other run's weights evaluates as that run did."""
    words = slow(
        tmp_path / "run",
        init_from=straight,
        train__num_train_steps=1,
        optim__num_warmup_steps=0,
        optim__learning_rate=1e-12,
    )
    assert main(words) == 0
    ours, theirs = (json.loads((path / "summary.json").read_text())["eval"] for path in (tmp_path / "run", straight))
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_init_from_another_shape(
    slow: Words, straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(slow(tmp_path / "run", init_from=straight, model__intermediate_size=128)) == 2
    error = capsys.readouterr().err
    assert "encoder/ffn/intermediate/bias has shape (1, 256), but the model expects (1, 128)" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("model__num_attention_heads", 2, "model.num_attention_heads is 4 in the source, but set to 2"),
        ("model__hidden_act", "relu", "model.hidden_act is 'gelu_new' in the source, but set to 'relu'"),
        ("model__layer_norm_eps", 1e-6, "model.layer_norm_eps is 1e-12 in the source, but set to 1e-06"),
    ],
)
def test_init_from_another_network_of_the_same_shapes(
    field: str, value: Any, told: str, slow: Words, straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(slow(tmp_path / "run", init_from=straight, **{field: value})) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_init_from_the_same_network_by_another_name(slow: Words, straight: Path, tmp_path: Path) -> None:
    """One group is all; files elsewhere know one spelling alone."""
    one = {"train__num_train_steps": 1, "optim__num_warmup_steps": 0, "model__sharing": "groups"}
    assert main(slow(tmp_path / "run", init_from=straight, **one)) == 0


def test_init_from_what_transformers_saved(
    slow: Words, straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """tokenizer.json alone, whose rebuilt vocabulary has other bytes; into a deeper network, as the paper's Table 11."""
    source = tmp_path / "exported"
    convert(straight, source)
    (source / "spiece.model").unlink()
    one = {"train__num_train_steps": 1, "optim__num_warmup_steps": 0, "model__num_hidden_layers": 5}
    assert main(slow(tmp_path / "run", init_from=source, **one)) == 0
    weights = read(source).weights
    bare = Weights(
        Albert(weights.model.config, ("predictions",)), {k: weights.params[k] for k in weights.params if k in BARE}
    )
    (source / "model.safetensors").unlink()
    huggingface.write(bare, source)
    assert main(slow(tmp_path / "other", init_from=source, **one)) == 2
    assert "it has no pooler, sop_classifier; 'albert-jax convert" in capsys.readouterr().err


BARE = ("embeddings", "encoder", "predictions")


def predicted(run_dir: Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "albert_jax", "predict", str(run_dir), "a [MASK]", "--json"]
    return subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)


def test_prediction_by_a_damaged_run(copied: Path) -> None:
    """By the checkpoint before, which is said in one line; or refused in one: Orbax alone would print pages."""
    whole = predicted(copied)
    assert whole.returncode == 0
    assert whole.stderr == ""
    truncate(copied / "checkpoints/40")
    files = sorted((copied / "checkpoints").rglob("*"))
    before = predicted(copied)
    assert before.returncode == 0
    assert len(before.stderr.splitlines()) == 1
    assert "passing over checkpoint 40 (" in before.stderr
    assert ", using 20" in before.stderr
    assert before.stdout != whole.stdout
    truncate(copied / "checkpoints/20")
    none = predicted(copied)
    assert none.returncode == 2
    assert len(none.stderr.splitlines()) == 1
    assert "none of the checkpoints can be read (40: " in none.stderr
    assert sorted((copied / "checkpoints").rglob("*")) == files
