"""Fixtures that several test files share: a small real corpus, and a pretraining command that takes seconds."""

import hashlib
import importlib.metadata
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compilation takes most of the time of small steps, so tests compile fast rather than well.  Tests that compare two
# programs compile both in the same way.
FAST_COMPILE = "--xla_backend_optimization_level=0"
USUAL_FUSION: dict[str, bool] = {}
"""Compiler options for tests of the compiled program itself: they undo what `FAST_COMPILE` changes in it."""
if importlib.metadata.version("jaxlib").startswith("0.10."):
    # This halves the time of compilation.  Later versions of XLA do not know the flag.
    FAST_COMPILE += " --xla_cpu_use_fusion_emitters=false"
    USUAL_FUSION["xla_cpu_use_fusion_emitters"] = True
# One process tests any number of devices up to 8.  Jobs in tests set mesh.data 1 unless they test devices.
os.environ.setdefault("XLA_FLAGS", f"{FAST_COMPILE} --xla_force_host_platform_device_count=8")
if "PYTEST_XDIST_WORKER" not in os.environ:  # workers and child processes inherit the cache of the first process
    _compilation_cache = tempfile.TemporaryDirectory()
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _compilation_cache.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from albert_jax.cli import main
from albert_jax.config import InputError
from albert_jax.data import sources
from albert_jax.data.sentencepiece_tokenizer import train_vocabulary
from albert_jax.parser import Parser
from albert_jax.training.progress import Meter

from .synthetic_tasks import finetune_words, write_files

ROOT = Path(__file__).parent.parent
TINY = str(ROOT / "experiments" / "pretrain" / "tiny.py")
GOLDEN_TOKENIZER = ROOT / "tests" / "golden" / "tokenizer"
RELEASED_VOCABULARY = Path(os.environ.get("ALBERT_SPIECE_MODEL", ROOT / "../shared/data/tokenizer/spiece.model"))
needs_released_vocabulary = pytest.mark.skipif(
    not RELEASED_VOCABULARY.is_file(),
    reason="set ALBERT_SPIECE_MODEL to ALBERT's spiece.model (30,000 pieces) to run this",
)
# The small vocabularies of the tests know é only as e, because NFKD drops accents.  İ, ﬁ and ½ change their length.
HARD_TEXTS = ["", " \t\r\n ", "$1,234,567, (x7,y7,)", "Café cafe\u0301 naïve \u0301x ÅNGSTRÖM", "word" * 5000]
HARD_TEXTS += [
    "漢字かな ｶﾞ 각 \u1100\u1161\u11a8",
    "🙂👩‍👩‍👧 🇫🇮",
    "a\x01b\x07 c\x7f\x00d \x00 e\x00",
    "\ufeffbom\r\ncrlf\r\n",
]
HARD_TEXTS += ["ﬁrst ﬃ ½ ﷺ İstanbul ΟΔΟΣ ¨x ▁y…", "“quoted” – it’s — a−b 5″ n´t x", "\u200b\u00ad\u2028x\u2029 \u3000"]


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Use the name of the argument as the test id of bytes: gzip writes the time, so workers would collect different ids."""
    return argname if isinstance(val, bytes) else None


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Check that the command line refuses `words` with exit code 2 and one line; return that line."""
    assert main(words) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "albert-jax: error: " in line]
    assert len(lines) == 1
    return lines[0].removeprefix("albert-jax: error: ")


def overrides_of(cls: type, words: Sequence[str]) -> dict[str, Any]:
    """The fields of `cls` that command-line words set: dotted field -> text."""
    parser = Parser(add_help=False)
    parser.add_fields(cls)
    return parser.parse(words).overrides


def assert_input_error(call: Callable[[], object], *parts: str) -> None:
    """Check that `call` raises an `InputError` of one line that contains all `parts`."""
    with pytest.raises(InputError) as error:
        call()
    message = str(error.value)
    assert "\n" not in message
    assert [part for part in parts if part not in message] == [], message


def write_tfds_set(folder: Path, splits: dict[str, list[Any]], shards: int = 1) -> Path:
    """Prepare the TFDS data set `sample_texts`; its features are `text`, `other` (the same text), `number` and `list`."""
    import tensorflow_datasets as tfds

    class SampleTexts(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> Any:
            features: dict[str, Any] = {
                "text": tfds.features.Text(),
                "other": np.object_,
                "number": np.int64,
                "list": tfds.features.Sequence(np.int64),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, manager: Any) -> Any:
            return {name: self._generate_examples(texts) for name, texts in splits.items()}

        def _generate_examples(self, texts: Any) -> Any:
            for i, text in enumerate(texts):
                yield i, {"text": text, "other": text, "number": i, "list": [i]}

    builder = SampleTexts(data_dir=folder, file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=shards))
    return Path(builder.data_dir)


def largest_file(folder: Path) -> Path:
    """The file of a checkpoint that holds most of its arrays."""
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def digest(run_dir: Path, step: int) -> str:
    """SHA-256 of the parameters, optimizer state and step in a checkpoint of a run."""
    with ocp.PyTreeCheckpointer() as reader:
        path = run_dir / "checkpoints" / str(step) / "state"
        leaves = jax.tree.map(np.zeros_like, reader.metadata(path).item_metadata.tree)
        restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), leaves)
        restored = reader.restore(path, restore_args=restore_args)
    total = hashlib.sha256()
    for leaf in jax.tree.leaves(restored):
        total.update(np.ascontiguousarray(leaf).tobytes())
    return total.hexdigest()


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
        "optim.optimizer": "lamb",  # compiles faster than Muon
        "optim.learning_rate": 0.01,
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


@pytest.fixture(scope="session")
def finetuned_sst2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `run`, a completed fine-tuning run of 100 steps on synthetic SST-2, and its `data`."""
    folder = tmp_path_factory.mktemp("sst2")
    assert main([*finetune_words("sst2", folder / "run"), *write_files("sst2", folder / "data")]) == 0
    return folder


@pytest.fixture(scope="session")
def short(small: Callable[..., list[str]]) -> Callable[..., list[str]]:
    """`small` with 12 steps of two layers, and checkpoints at 6 and 12.

    Compilation takes most of the time of such a run.  Settings that leave the compiled programs as they are, such as intervals,
    seeds and folders, are nearly free: all tests share a cache.
    """
    length = {
        "train__num_train_steps": 12,
        "train__checkpoint_every": 6,
        "model__num_hidden_layers": 2,
        "optim__num_warmup_steps": 2,
    }
    return lambda run_dir, **overrides: small(run_dir, **(length | overrides))


@pytest.fixture
def compiled_steps(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The steps that train loops compile during a test: in a run, one for each shape of a batch."""
    steps: list[Any] = []
    compiled = Meter.compiled

    def record(meter: Meter, step: Any) -> None:
        steps.append(step)
        compiled(meter, step)

    monkeypatch.setattr(Meter, "compiled", record)
    return steps


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty pieces, as many as the golden models have."""
    from .small_models import TEXT

    path = tmp_path_factory.mktemp("vocabulary") / "spiece.model"
    train_vocabulary([TEXT] * 20, path, 40)
    return path


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    """A Hugging Face folder that transformers wrote, without a vocabulary."""
    return Path(shutil.copytree(ROOT / "tests" / "golden" / "huggingface" / "shared", tmp_path / "hf"))


@pytest.fixture
def complete(golden: Path, vocabulary: Path) -> Path:
    """The same folder with a vocabulary."""
    shutil.copy(vocabulary, golden)
    return golden
