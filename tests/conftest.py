"""Fixtures that several test files share: a small real corpus, and a pretraining command that takes seconds."""

import json
import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compilation takes most of the time of small steps, so tests compile fast rather than well.  Tests that compare two
# programs compile both in the same way.
FAST_COMPILE = "--xla_backend_optimization_level=0"
# One process tests any number of devices up to 8.  Jobs in tests set mesh.data 1 unless they test devices.
os.environ.setdefault("XLA_FLAGS", f"{FAST_COMPILE} --xla_force_host_platform_device_count=8")
if "PYTEST_XDIST_WORKER" not in os.environ:  # workers and child processes inherit the cache of the first process
    _compilation_cache = tempfile.TemporaryDirectory()
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _compilation_cache.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

import pytest

from albert_jax.cli import main
from albert_jax.data import sources
from albert_jax.training.progress import Meter

ROOT = Path(__file__).parent.parent
TINY = str(ROOT / "experiments" / "pretrain" / "tiny.py")


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Check that the command line refuses `words` with exit code 2 and one line; return that line."""
    assert main(words) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "albert-jax: error: " in line]
    assert len(lines) == 1
    return lines[0].removeprefix("albert-jax: error: ")


def free_port() -> int:
    """A port of this machine that nobody listens to."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some of Python's documentation as .jsonl: real prose, the same on every machine of one Python version."""
    path = tmp_path_factory.mktemp("corpus") / "docs.jsonl"
    texts = list(sources.documents(sources.DataConfig()))[:45]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture(scope="session")
def short_corpus(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its words as documents of two lines of one to four words each: sequences of up to 16 tokens, and of more."""
    words = " ".join(json.loads(line)["text"] for line in corpus.read_text().splitlines()).split()
    path, texts = tmp_path_factory.mktemp("corpus") / "short.jsonl", []
    for number in range(1500):
        size, at = 1 + number % 4, 8 * number
        texts.append(" ".join(words[at : at + size]) + "\n" + " ".join(words[at + size : at + 2 * size]))
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def small(corpus: Path, cache: Path) -> Callable[..., list[str]]:
    """`small(run_dir, **overrides)`: the words of a pretraining command that runs 40 steps in seconds, dropout on."""
    fields = {
        "model.vocab_size": 500,
        "model.embedding_size": 16,
        "model.hidden_size": 32,
        "model.num_hidden_layers": 3,
        "model.intermediate_size": 64,
        "model.max_position_embeddings": 32,
        "model.hidden_dropout_prob": 0.1,
        "model.attention_probs_dropout_prob": 0.1,
        "model.scan_unroll": 1,
        "objective.max_seq_length": 32,
        "objective.max_predictions_per_seq": 5,
        "optim.num_warmup_steps": 5,
        "data.source": corpus,
        "data.eval_fraction": 0.1,
        "data.cache_dir": cache,
        "train.num_train_steps": 40,
        "train.global_batch_size": 16,
        "train.eval_batch_size": 16,
        "max_eval_steps": 2,
        "mesh.data": 1,
        "train.log_every": 1,
        "train.eval_every": 100,
        "train.checkpoint_every": 20,
    }

    def words(run_dir: Path, **overrides: object) -> list[str]:
        chosen = fields | {name.replace("__", "."): value for name, value in overrides.items()} | {"run_dir": run_dir}
        return ["pretrain", TINY, *(word for name, value in chosen.items() for word in (f"--{name}", str(value)))]

    return words


@pytest.fixture
def compiled_steps(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every step that train loops compile from here on: in a run, one for each shape of a batch."""
    found: list[Any] = []
    take = Meter.compiled

    def kept(meter: Meter, step: Any) -> None:
        found.append(step)
        take(meter, step)

    monkeypatch.setattr(Meter, "compiled", kept)
    return found
