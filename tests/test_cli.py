"""The command line.  A user's mistake gives one line that names the field, or file and line, and exit code 2."""

import gzip
import json
import os
import shlex
import subprocess
import sys
from collections import ChainMap
from collections.abc import Callable
from pathlib import Path

import pytest

import albert_jax
from albert_jax.cli import main, parsers

from .conftest import ROOT, TINY, refused

Words = Callable[..., list[str]]


FIELDS = [  # overrides, part of the message
    ({"model.hiden_size": 64}, "unknown option --model.hiden-size; did you mean --model.hidden-size?"),
    ({"modle.hidden_size": 64}, "unknown option --modle.hidden-size; did you mean --model.hidden-size?"),
    ({"optim.learning_rate": "fast"}, "optim.learning_rate: expected float, got 'fast'"),
    ({"train.global_batch_size": "1.5"}, "train.global_batch_size: expected int, got '1.5'"),
    ({"optim.learning_rate": "nan"}, "optim.learning_rate must be finite and > 0, got nan"),
    ({"optim.learning_rate": "-1"}, "optim.learning_rate must be finite and > 0, got -1.0"),
    ({"optim.learning_rate": "inf"}, "optim.learning_rate must be finite and > 0, got inf"),
    ({"optim.num_warmup_steps": 40}, "optim.num_warmup_steps (40) must be < train.num_train_steps (40)"),
    ({"model.num_attention_heads": 3}, "model.hidden_size 32 is not divisible by num_attention_heads 3"),
    (
        {"model.hidden_act": "swish"},
        "model.hidden_act: unknown value 'swish'; choose one of gelu_new, gelu, relu, tanh, linear",
    ),
    ({"optim.optimizer": "lam"}, "optim.optimizer: unknown value 'lam'; choose one of lamb, adamw, optax_lamb"),
    ({"optim.optimizer.beta2": "2"}, "optim.optimizer.beta2 must be in [0, 1), got 2.0"),
    ({"optim.optimizer.beta4": "2"}, "unknown option --optim.optimizer.beta4; did you mean --optim.optimizer.beta?"),
    (
        {"train.gradient_accumulation": 3},
        "train.global_batch_size 16 is not divisible by 1 devices (1 processes) x train.gradient_accumulation 3; use 15 or 18",
    ),
    ({"objective.max_seq_length": 600}, "objective.max_seq_length 600 > model.max_position_embeddings 32"),
    ({"objective.masked_lm_prob": 0}, "objective.masked_lm_prob must be in (0, 1), got 0.0"),
    ({"objective.masked_lm_prob": 1}, "objective.masked_lm_prob must be in (0, 1), got 1.0"),
    (
        {"objective.max_predictions_per_seq": 0},
        "objective.max_predictions_per_seq must be in [1, max_seq_length], got 0",
    ),
    ({"train.seed": -1}, "train.seed must be at least 0, got -1"),
    ({"train.seed": 2**32}, "train.seed must be below 2**32, got 4294967296"),
    ({"train.platform": "gpu"}, "train.platform is 'gpu', but JAX found 'cpu'"),
    ({"model.vocab_size": 500_000}, "cannot train a vocabulary of 500000 pieces"),
    ({"train.global_batch_size": 4096}, "train.global_batch_size is 4096, but there are only"),
    ({"data.eval_fraction": 1e-9}, "data.eval_fraction 1e-09 leaves 0 of 45 documents for 'heldout'"),
    ({"data.source": "nowhere/*.txt"}, "data.source 'nowhere/*.txt' matches no file"),
    ({"data.vocab": "nowhere.model"}, "nowhere.model: cannot read the vocabulary"),
    ({"model": 3}, "--model is a section; set one of its fields: --model.vocab-size, --model.embedding-size"),
]


@pytest.mark.parametrize(("overrides", "message"), FIELDS)
def test_a_wrong_field_is_refused_before_anything_is_written(
    overrides: dict[str, object], message: str, small: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    assert message in refused(
        [*small(run_dir), *(word for name, value in overrides.items() for word in (f"--{name}", str(value)))], capsys
    )
    assert not run_dir.exists()


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


PROSE = " ".join(f"This is sentence number {i}." for i in range(60))
TEXTS = [  # file name, content, message
    ("empty.txt", b"", "has 0 usable documents"),
    ("blank.jsonl", b'{"text": "  "}\n\n', "has 0 usable documents"),
    (
        "single.jsonl",
        "".join(json.dumps({"text": f"only {i}"}) + "\n" for i in range(300)).encode(),
        "have two sentences, so no pair can be made",
    ),
    ("latin.jsonl", b'{"text": "good"}\n{"text": "caf\xe9"}\n', "latin.jsonl:2: invalid UTF-8 at byte 30"),
    ("broken.jsonl", b'{"text": "good"}\n{"text": \n', "broken.jsonl:2: not JSON"),
    ("field.jsonl", b'{"body": "good"}\n', "field.jsonl:1: no text field 'text'; name it with --data.text-field"),
    ("cut.jsonl.gz", gzip.compress(json.dumps({"text": PROSE}).encode())[:-20], "corrupted or truncated"),
    ("table.csv", b"a,b\n", "table.csv:1: no text field 'text'; name it with --data.text-field: a, b"),
]


@pytest.mark.parametrize(("name", "content", "message"), TEXTS)
def test_unusable_text_is_refused_before_anything_is_written(
    name: str, content: bytes, message: str, small: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / name, content)
    vocab = {} if "single" not in name else {"model__vocab_size": 40}
    error = refused(small(tmp_path / "run", data__source=source, data__cache_dir=tmp_path / "cache", **vocab), capsys)
    assert message in error
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "cache").exists()


def test_a_line_that_is_too_long_is_refused(
    small: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("albert_jax.data.lines.MAX_LINE_BYTES", 100)
    source = write(tmp_path / "long.jsonl", json.dumps({"text": PROSE}).encode())
    assert "long.jsonl:1: line longer than 100 bytes" in refused(small(tmp_path / "run", data__source=source), capsys)


VOCABULARIES = [
    ("garbage.model", b"x" * 700, "garbage.model is not a SentencePiece model (700 bytes)"),
    ("empty.model", b"", "empty.model is not a SentencePiece model (0 bytes)"),
    ("lfs.model", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
]


@pytest.mark.parametrize(("name", "content", "message"), VOCABULARIES)
def test_a_file_that_is_no_vocabulary_is_refused(
    name: str, content: bytes, message: str, small: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(small(tmp_path / "run", data__vocab=write(tmp_path / name, content)), capsys)


@pytest.fixture(scope="module")
def finished_run(small: Words, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two steps."""
    run_dir = tmp_path_factory.mktemp("done") / "run"
    assert main(small(run_dir, train__num_train_steps=2, optim__num_warmup_steps=1)) == 0
    return run_dir


def finished_run_words(small: Words, finished_run: Path, **overrides: object) -> list[str]:
    return small(finished_run, **({"train__num_train_steps": 2, "optim__num_warmup_steps": 1} | overrides))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model__hidden_size": 64}, "model.hidden_size: 32 -> 64"),
        ({"optim__optimizer": "adamw"}, "optim.optimizer.name: 'lamb' -> 'adamw'"),
        ({"train__seed": 1}, "train.seed: 0 -> 1"),
    ],
)
def test_the_folder_of_a_different_configuration_is_refused_and_unchanged(
    overrides: dict[str, object], message: str, small: Words, finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in finished_run.rglob("*"))
    error = refused(finished_run_words(small, finished_run, **overrides), capsys)
    assert message in error
    assert "--run-dir" in error
    assert "--init-from" in error
    assert before == sorted((path, path.stat().st_mtime_ns) for path in finished_run.rglob("*"))


def test_resuming_with_changed_data_is_refused(
    small: Words, finished_run: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = corpus.read_text()
    try:
        corpus.write_text(text + json.dumps({"text": PROSE}) + "\n")
        assert "the data changed since this run began (data: " in refused(
            finished_run_words(small, finished_run), capsys
        )
    finally:
        corpus.write_text(text)


def test_a_run_folder_that_cannot_be_created_is_refused(
    small: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Uses a file in place of a read-only folder, since root may write anywhere."""
    write(tmp_path / "file", b"")
    assert "cannot write to" in refused(small(tmp_path / "file" / "run"), capsys)


def test_a_duplicate_key_in_config_json_is_refused(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (finished_run / "config.json").read_text().replace('"seed": 0,', '"seed": 0,\n      "seed": 1,')
    path = write(tmp_path / "config.json", text.encode())
    assert "duplicate key 'seed'" in refused(["pretrain", str(path)], capsys)


def test_config_json_repeats_the_run(finished_run: Path, tmp_path: Path) -> None:
    """Fails if config.json lacks a field that changes the results."""
    again = tmp_path / "again"
    assert main(["pretrain", str(finished_run / "config.json"), "--run-dir", str(again)]) == 0
    first, second = (json.loads((path / "summary.json").read_text()) for path in (finished_run, again))
    assert first["eval"] == second["eval"]
    assert first["baselines"] == second["baselines"]


def test_a_run_folder_has_its_files(finished_run: Path) -> None:
    summary = json.loads((finished_run / "summary.json").read_text())
    for metrics in (summary["eval"], ChainMap(*summary["baselines"].values())):
        assert {"mlm_loss", "mlm_accuracy", "sop_accuracy"} <= metrics.keys()
    assert {"steps", "tokens", "seconds", "tokens_per_second"} <= summary.keys()
    assert {path.name for path in finished_run.iterdir()} >= {
        "config.json",
        "metrics.jsonl",
        "checkpoints",
        "tensorboard",
        "curves.png",
        "summary.json",
    }
    assert {"fingerprints", "versions", "config", "job"} <= json.loads(
        (finished_run / "config.json").read_text()
    ).keys()


def test_a_loss_that_is_not_finite_ends_the_run(
    small: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run keeps that batch and the previous checkpoint.  Fails if a checkpoint is saved before pending metrics are read."""
    run_dir = tmp_path / "run"
    words = small(
        run_dir,
        optim__learning_rate=1e30,
        optim__optimizer="adamw",
        optim__num_warmup_steps=0,
        train__checkpoint_every=1,
    )
    error = refused(words, capsys)
    assert "loss is nan" in error
    dumps = list(run_dir.glob("nonfinite-step-*.npz"))
    assert len(dumps) == 1
    step = int(dumps[0].stem.rpartition("-")[2])
    assert max(int(path.name) for path in (run_dir / "checkpoints").iterdir()) == step - 1


def test_wrong_arguments_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such experiment file" in refused(["pretrain", str(tmp_path / "none.py")], capsys)
    other = write(tmp_path / "other.py", b"x = 1\n")
    assert "must set 'config' to a PretrainConfig" in refused(["pretrain", str(other)], capsys)
    assert "unexpected argument 'extra'; see albert-jax pretrain --help" in refused(["pretrain", TINY, "extra"], capsys)
    assert "unknown command 'train'; choose one of pretrain, prepare" in refused(["train", TINY], capsys)
    assert "argument --train.seed: expected one argument" in refused(["pretrain", TINY, "--train.seed"], capsys)


MISTAKES = [  # text of tiny.py, what replaces it, message
    ("hidden_size=128", "hiden_size=128", "AlbertConfig.__init__() got an unexpected keyword argument 'hiden_size'"),
    ("hidden_size=128", "hidden_size='128'", "hidden_size: expected int, got '128'"),
    ("learning_rate=0.005", "learning_rate='fast'", "learning_rate: expected float, got 'fast'"),
    ("num_attention_heads=4", "num_attention_heads=3", "hidden_size 128 is not divisible by num_attention_heads 3"),
    ("config = ", "config = (", "SyntaxError: "),
]


@pytest.mark.parametrize(("right", "wrong", "message"), MISTAKES)
def test_a_mistake_in_an_experiment_file_is_reported_with_its_line(
    right: str, wrong: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = Path(TINY).read_text()
    assert right in text
    path = write(tmp_path / "mine.py", text.replace(right, wrong).encode())
    error = refused(["pretrain", str(path)], capsys)
    assert error.startswith(f"{path}:")
    assert error.removeprefix(f"{path}:")[0].isdigit()
    assert message in error


def test_folders_of_another_kind_are_refused(small: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other"
    other.mkdir()
    write(other / "config.json", b'{"model_type": "albert"}')
    assert "config.json does not belong to a run" in refused(small(other), capsys)
    write(other / "dataset_info.json", b"{}")
    assert "was not written by albert-jax prepare" in refused(small(tmp_path / "run", data__source=other), capsys)
    cache = write(tmp_path / "file", b"")
    assert "data.cache_dir" in refused(small(tmp_path / "run", data__cache_dir=cache / "cache"), capsys)
    path = write(tmp_path / "number.json", b'{"config": 3}')
    assert "the key 'config' is missing" in refused(["pretrain", str(path), "--train.seed", "1"], capsys)


def test_prepare_prints_a_folder_that_can_be_a_source(
    small: Words, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A setting that differs from those it was prepared with is refused."""
    assert main(["prepare", *small(tmp_path / "run")[1:]]) == 0
    folder = capsys.readouterr().out.strip()
    wrong = small(tmp_path / "run", data__source=folder, data__language="de")
    assert f"data.language is 'de', but {folder} was prepared with 'en'" in refused(wrong, capsys)


def test_vocab_never_overwrites_a_file(small: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Options may stand before and between the arguments."""
    target = tmp_path / "my.model"
    _, experiment, *fields = small(tmp_path / "run")
    assert main(["vocab", *fields, experiment, str(target)]) == 0
    before = target.read_bytes()
    assert "exists; name another file" in refused(["vocab", experiment, *fields, str(target)], capsys)
    assert target.read_bytes() == before


def test_report_draws_the_curves_again(finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (finished_run / "curves.png").unlink()
    assert main(["report", str(finished_run)]) == 0
    assert "| mlm_loss |" in capsys.readouterr().out
    assert (finished_run / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "contains no run and no table of runs" in refused(["report", str(tmp_path)], capsys)


def test_help_is_quick() -> None:
    """Fails if --help imports numpy or jax, whose import alone takes longer than the second that it may take."""
    for words in (["--help"], ["pretrain", "--help"]):
        command = [sys.executable, "-X", "importtime", "-m", "albert_jax", *words]
        shown = subprocess.run(command, capture_output=True, text=True, check=True)
        assert "pretrain" in shown.stdout
        loaded = {line.rpartition("|")[2].strip() for line in shown.stderr.splitlines()}
        assert "albert_jax.pretraining.command" in loaded
        assert loaded.isdisjoint({"jax", "flax", "numpy", "grain", "tensorflow_datasets", "pandas"})


COMMANDS = parsers()[1]


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_of_the_help_are_commands(command: str) -> None:
    """Fails if an example names an option or an experiment that does not exist."""
    lines = [line for line in str(COMMANDS[command].epilog).splitlines() if line.startswith(f"  albert-jax {command} ")]
    assert lines
    for line in lines:
        words = shlex.split(line, comments=True)[2:]
        parser = parsers()[1][command]
        if parser.field_class:
            parser.add_fields(parser.field_class())
        arguments = vars(parser.parse(words))
        path = arguments.get("experiment", arguments.get("table", ""))
        assert not path.startswith("experiments") or (ROOT / path).is_file(), line


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["pretrain", TINY], "--train.global-batch-size INT B: sequences"),
        (["pretrain", TINY, "--optim.optimizer", "adamw", "--optim.optimizer.beta2=0.5"], "squared gradients. (0.5)"),
        (["finetune", str(ROOT / "experiments" / "finetune" / "sst2.py"), "--scale", "tiny"], "(300)"),
        (["ablate", str(ROOT / "experiments" / "ablations" / "sharing.py")], "scales: paper, small, tiny"),
        (["plan", TINY], "--device NAME"),
        (["bench", "base"], "--length INT"),
        (["predict", "source", "text"], "--top-k K"),
    ],
)
def test_help_after_a_file_lists_its_fields(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for help_word in ("--help", "-h"):
        assert main([*words, help_word]) == 0
        text = " ".join(capsys.readouterr().out.split())
        assert expected in text
        assert f"usage: albert-jax {words[0]} " in text


def test_help_of_a_file_that_does_not_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such experiment file" in refused(["pretrain", "nothing.py", "--help"], capsys)


def test_no_command_prints_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "finetune" in capsys.readouterr().out


def test_version_and_entry_point() -> None:
    assert albert_jax.__version__ in (ROOT / "CHANGELOG.md").read_text()
    assert (ROOT / "albert_jax" / "py.typed").exists()
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
