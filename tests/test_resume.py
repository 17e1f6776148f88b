"""The command line with real runs: killed, interrupted, out of disk, started from other runs.

What comes after an interruption must be what would have come without it.
"""

import json
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import albert_jax
from albert_jax.cli import main
from albert_jax.exchange import huggingface
from albert_jax.exchange.convert import convert
from albert_jax.exchange.load import read
from albert_jax.exchange.weights import Weights
from albert_jax.model.heads import Albert
from albert_jax.model.tree import leaves, nested
from albert_jax.pretraining.distillation import digest as teacher_digest
from albert_jax.training.run_folder import MetricsLog, read_metrics

from .conftest import ROOT, digest

Words = Callable[..., list[str]]


@pytest.fixture(scope="module")
def straight(short: Words, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    run_dir = tmp_path_factory.mktemp("runs") / "straight"
    assert main(short(run_dir)) == 0
    return run_dir


@pytest.fixture
def copied(straight: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(straight, tmp_path / "copy"))


def execute(*words: str, **options: Any) -> tuple[int, str]:
    """Run `python -m WORDS...`; return exit code and standard error."""
    command = [sys.executable, "-m", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, cwd=ROOT, **options)
    return done.returncode, done.stderr


def fault(name: str, step: int, words: list[str], **options: Any) -> tuple[int, str]:
    return execute("tests.fault_script", name, "0", str(step), *words, **options)


def steps(run_dir: Path) -> set[int]:
    return {int(path.name) for path in (run_dir / "checkpoints").iterdir() if path.name.isdigit()}


def losses(run_dir: Path) -> list[float]:
    return [r["train/loss"] for r in read_metrics(run_dir) if "train/loss" in r]


def truncate(step: Path) -> None:
    for path in step.glob("state/ocdbt.process_0/d/*"):
        path.write_bytes(path.read_bytes()[:100])


def test_killed_and_resumed_is_bitwise_straight(short: Words, straight: Path, tmp_path: Path) -> None:
    """12 steps == 9, kill -9, resume; with dropout, across the edge of an epoch.  Fails if the data began again at batch 0, if
    dropout depended on the launch instead of the step, or if the optimizer's state were lost."""
    run_dir = tmp_path / "run"
    code, _ = fault("kill", 9, short(run_dir))
    assert code == -signal.SIGKILL
    assert steps(run_dir) == {6}
    assert main(short(run_dir)) == 0
    assert digest(run_dir, 12) == digest(straight, 12)
    assert [r["step"] for r in read_metrics(run_dir) if "train/loss" in r] == list(range(1, 13))
    assert losses(run_dir) == losses(straight)
    summaries = [json.loads((path / "summary.json").read_text()) for path in (run_dir, straight)]
    assert summaries[0]["eval"] == summaries[1]["eval"]
    assert summaries[0]["tokens"] == summaries[1]["tokens"]


def test_muon_resumes_bitwise(short: Words, tmp_path: Path) -> None:
    """Fails if the momentum of kernels, or the state of the other parameters, were lost, those of passes among them."""
    muon = {"optim__optimizer": "muon", "optim__learning_rate": 0.005}
    muon |= {"model__sharing": "attention=0,0;ffn=0,1", "model__per_pass": "lora", "model__per_pass__rank": 2}
    muon |= {"tying__sharing": "all", "tying__end": 0.75}
    assert main(short(tmp_path / "straight", **muon)) == 0
    run_dir = Path(shutil.copytree(tmp_path / "straight", tmp_path / "run"))
    shutil.rmtree(run_dir / "checkpoints/12")
    (run_dir / "summary.json").unlink()
    assert main(short(run_dir, **muon)) == 0
    assert digest(run_dir, 12) == digest(tmp_path / "straight", 12)


def test_a_run_teaches_another(
    short: Words, straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A teacher with another vocabulary is refused before the folder is written."""
    steps = {"train__num_train_steps": 2, "optim__num_warmup_steps": 1, "distillation__teacher": straight}
    assert main(short(tmp_path / "student", **steps)) == 0
    assert any("train/distillation_loss" in record for record in read_metrics(tmp_path / "student"))
    stored = json.loads((tmp_path / "student" / "config.json").read_text())
    weights = read(straight).weights
    assert stored["fingerprints"]["teacher"] == teacher_digest(weights)
    weights.params["embeddings"]["LayerNorm"]["bias"] = weights.params["embeddings"]["LayerNorm"]["bias"] + 1
    assert stored["fingerprints"]["teacher"] != teacher_digest(weights)
    capsys.readouterr()
    assert main(short(tmp_path / "other", **steps, model__vocab_size=400)) == 2
    assert f"distillation.teacher {straight}: its vocab_size is " in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_load_reads_the_checkpoint_that_is_named(straight: Path) -> None:
    """Fails if the newest checkpoint were read instead."""
    first, last, newest = (
        jax.tree.leaves(albert_jax.load(straight / path)[1]) for path in ("checkpoints/6", "checkpoints/12", "")
    )
    assert all(np.array_equal(a, b) for a, b in zip(last, newest, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, last, strict=True))


def test_digest_sees_differences(short: Words, straight: Path, tmp_path: Path) -> None:
    """The comparison can fail: another seed and another step have other digests."""
    assert main(short(tmp_path / "other", train__seed=1)) == 0
    assert len({digest(tmp_path / "other", 12), digest(straight, 6), digest(straight, 12)}) == 3


@pytest.mark.parametrize("name", ["terminate", pytest.param("interrupt", marks=pytest.mark.long)])
def test_signal_saves_and_the_command_resumes(name: str, short: Words, straight: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    code, error = fault(name, 8, short(run_dir))
    assert code == {"terminate": 0, "interrupt": 130}[name]
    assert "and saved after step 10; rerun the command to resume" in error
    assert "Traceback" not in error
    assert steps(run_dir) == {6, 10}
    assert not (run_dir / "summary.json").exists()
    assert main(short(run_dir)) == 0
    assert digest(run_dir, 12) == digest(straight, 12)


@pytest.mark.long
def test_killed_at_random_moments(small: Words, tmp_path: Path) -> None:
    """20 times, also while checkpoints are written (every other step): the end has the bits of an uninterrupted run."""
    length: dict[str, Any] = {"train__num_train_steps": 400, "train__eval_every": 800}
    assert main(small(tmp_path / "straight", **length, train__checkpoint_every=400)) == 0
    run_dir, words = tmp_path / "run", small(tmp_path / "run", **length, train__checkpoint_every=2)
    moments = random.Random(0)
    for number in range(20):
        code, error = fault("kill_soon", 19 * number + moments.randrange(10, 20), words)
        assert code == -signal.SIGKILL, error
    assert 400 not in steps(run_dir)
    assert main(words) == 0
    assert digest(run_dir, 400) == digest(tmp_path / "straight", 400)
    assert losses(run_dir) == losses(tmp_path / "straight")


def test_full_disk_costs_checkpoints(short: Words, tmp_path: Path) -> None:
    """The run continues, and saves again when there is room; nothing of the lost checkpoint is left."""
    run_dir = tmp_path / "run"
    code, error = fault("full_disk", 8, short(run_dir, train__checkpoint_every=3))  # full up to step 8
    assert code == 0, error
    assert "checkpoint 3 was not written (" in error
    assert "training continues" in error
    assert "Traceback" not in error
    names = {path.name for path in (run_dir / "checkpoints").iterdir()}
    assert names - {"6"} == {"9", "12"}  # the checkpoint of step 6 may be written late enough to find room


def test_corrupted_run(short: Words, copied: Path, straight: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It resumes from the checkpoint before, to the same bits."""
    truncate(copied / "checkpoints/12")
    assert main(short(copied)) == 0
    error = capsys.readouterr().err
    assert "checkpoints/12 is corrupted (" in error
    assert "resuming after step 6" in error
    assert digest(copied, 12) == digest(straight, 12)


def test_run_without_an_intact_checkpoint(short: Words, copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It does not silently start again."""
    for step in (6, 12):
        truncate(copied / f"checkpoints/{step}")
    assert main(short(copied)) == 2
    assert "all checkpoints are corrupted (12: " in capsys.readouterr().err
    assert steps(copied) == {6, 12}


def test_prediction_by_a_corrupted_run(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It uses the checkpoint before, and says so in one line: Orbax alone would print pages, some when the process ends."""
    words = ["predict", str(copied), "a [MASK]", "--json"]
    assert main(words) == 0
    intact = capsys.readouterr()
    assert intact.err == ""
    truncate(copied / "checkpoints/12")
    code, error = execute("albert_jax", *words)
    assert code == 0
    assert len(error.splitlines()) == 1, error
    assert "checkpoint 12 is corrupted (" in error
    assert "using checkpoint 6 instead" in error
    truncate(copied / "checkpoints/6")
    assert main(words) == 2
    assert "all checkpoints are corrupted (12: " in capsys.readouterr().err
    assert steps(copied) == {6, 12}


def test_completed_run_changes_nothing(short: Words, copied: Path, straight: Path) -> None:
    assert main(short(copied)) == 0
    for name in ("metrics.jsonl", "summary.json"):
        assert (copied / name).read_text() == (straight / name).read_text()
    assert digest(copied, 12) == digest(straight, 12)


@pytest.mark.long  # test_processes.py resumes a run on two devices, too
def test_run_on_two_devices(short: Words, straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Training, evaluation, checkpoints and resumption.  Fails if an array of one device meets a computation on two."""
    words = short(tmp_path / "run", mesh__data=2)
    assert main(words) == 0
    assert "on 2 cpu" in capsys.readouterr().err
    assert losses(tmp_path / "run") == pytest.approx(losses(straight), abs=1e-4)
    shutil.rmtree(tmp_path / "run/checkpoints/12")
    assert main(words) == 0
    assert "resuming after step 6" in capsys.readouterr().err
    assert losses(tmp_path / "run") == pytest.approx(losses(straight), abs=1e-4)


@pytest.mark.long  # batches by length are tested in test_data.py, a run with them below
def test_length_buckets_resume(
    short: Words, short_corpus: Path, compiled_steps: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Among batches of two widths, to the same bits.  Fails if batches count from the start, or all have one width."""
    words = short(tmp_path, data__source=short_corpus, length_buckets=True)
    assert main(words) == 0
    uninterrupted = digest(tmp_path, 12)
    shutil.rmtree(tmp_path / "checkpoints/12")
    assert main(words) == 0
    assert "resuming after step 6" in capsys.readouterr().err
    assert len(compiled_steps) == 4  # both launches met both widths
    assert digest(tmp_path, 12) == uninterrupted


@pytest.mark.parametrize("buckets", [False, True])
def test_nothing_is_compiled_after_the_second_step(
    short: Words,
    short_corpus: Path,
    compiled_steps: list[Any],
    buckets: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nor after the first evaluation and checkpoint, except one step of each width.

    Fails if an array comes to the step with a type or sharding that differs from step to step.
    """
    compiled: list[str] = []
    counts: dict[int, int] = {}
    write = MetricsLog.write

    def counted(log: MetricsLog, step: int, values: dict[str, float]) -> None:
        counts[step] = len(compiled)  # by then the next step has started
        write(log, step, values)

    def listener(event: str, duration: float, **_: Any) -> None:
        if event.endswith("backend_compile_duration"):
            compiled.append(event)

    monkeypatch.setattr(MetricsLog, "write", counted)
    jax.monitoring.register_event_duration_secs_listener(listener)
    data: dict[str, Any] = {"data__source": short_corpus, "length_buckets": True} if buckets else {}
    assert main(short(tmp_path / "run", **data, train__eval_every=4, train__checkpoint_every=4)) == 0
    assert counts[1] > 0
    widths = 2 if buckets else 1  # 16 and the full length, 32
    assert len(compiled_steps) == widths
    assert counts[3] - counts[2] <= widths - 1
    assert counts[11] - counts[5] <= widths - 1


def test_data_that_changed(
    short: Words, straight: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is refused by the run folder and, if that is lost, by the checkpoint; --allow-data-change accepts it."""
    text = tmp_path / "docs.jsonl"
    shutil.copy(corpus, text)
    run_dir = tmp_path / "run"
    words = short(run_dir, data__source=text, data__vocab=straight / "spiece.model")
    assert main(words) == 0
    text.write_text("".join(text.read_text().splitlines(True)[:-1]))
    assert main(words) == 2
    assert "the data changed since this run began (data: " in capsys.readouterr().err
    (run_dir / "config.json").rename(run_dir / "config.old")
    assert main(words) == 2
    assert "checkpoint 12 was trained on different data (data: " in capsys.readouterr().err
    (run_dir / "config.old").replace(run_dir / "config.json")
    assert main([*words, "--allow-data-change"]) == 0
    assert len(json.loads((run_dir / "config.json").read_text())["data_changes"]) == 1


def test_checkpoints_elsewhere(short: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They belong to their run, which finds them even if its folder is lost; `convert` and --init-from find them too."""
    elsewhere = {"train__checkpoint_dir": tmp_path / "elsewhere"}
    assert main(short(tmp_path / "run", **elsewhere)) == 0
    assert not (tmp_path / "run/checkpoints").exists()
    assert main(short(tmp_path / "other", **elsewhere, train__seed=1)) == 2
    message = (
        f"--train.checkpoint-dir {tmp_path / 'elsewhere'} belongs to a different configuration (train.seed: 0 -> 1)"
    )
    assert message in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "model"), "--to", "albert_jax"]) == 0
    assert main(short(tmp_path / "next", init_from=tmp_path / "run")) == 0
    shutil.rmtree(tmp_path / "run")  # as on a new host
    assert main(short(tmp_path / "run", **elsewhere)) == 0
    assert "resuming after step 12" in capsys.readouterr().err


def test_init_from_takes_the_parameters_only(short: Words, straight: Path, tmp_path: Path) -> None:
    """The warmup starts at a rate of 0, so the first evaluation is that of the other run's parameters."""
    assert main(short(tmp_path / "run", init_from=straight, train__eval_every=1)) == 0
    first = next(r for r in read_metrics(tmp_path / "run") if r["step"] == 1 and "eval/mlm_loss" in r)
    for name, value in json.loads((straight / "summary.json").read_text())["eval"].items():
        assert first[f"eval/{name}"] == pytest.approx(value, rel=1e-5)


def test_init_from_a_different_shape(
    short: Words, straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(short(tmp_path / "run", init_from=straight, model__intermediate_size=128)) == 2
    error = capsys.readouterr().err
    assert "encoder/ffn/intermediate/bias has shape (1, 64), but the model expects (1, 128)" in error
    assert not (tmp_path / "run").exists()


def test_init_from_a_source_with_fewer_positions(short: Words, straight: Path, tmp_path: Path) -> None:
    """Position p starts as a copy of p modulo the number of positions of the source.  The first rate of the warmup is 0."""
    stored = read(straight).weights.params["embeddings"]["position_embeddings"]["embedding"]
    positions = 2 * len(stored) + 5
    longer = {"model__max_position_embeddings": positions, "train__checkpoint_every": 1, "train__keep_checkpoints": 12}
    assert main(short(tmp_path / "run", init_from=straight, **longer)) == 0
    first = read(tmp_path / "run/checkpoints/1").weights.params["embeddings"]["position_embeddings"]["embedding"]
    np.testing.assert_array_equal(first, np.concatenate([stored, stored, stored[:5]]))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model__num_attention_heads", 2, "model.num_attention_heads is 4 in the source, but set to 2"),
        ("model__hidden_act", "relu", "model.hidden_act is 'gelu_new' in the source, but set to 'relu'"),
        ("model__layer_norm_eps", 1e-6, "model.layer_norm_eps is 1e-12 in the source, but set to 1e-06"),
    ],
)
def test_init_from_a_different_network_of_the_same_shapes(
    field: str,
    value: Any,
    message: str,
    short: Words,
    straight: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(short(tmp_path / "run", init_from=straight, **{field: value})) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_init_from_the_same_network_by_another_name(short: Words, straight: Path, tmp_path: Path) -> None:
    """One group is the same as all shared; other formats know only one of the names."""
    assert main(short(tmp_path / "run", init_from=straight, model__sharing="groups")) == 0


def test_init_from_a_folder_of_transformers(
    short: Words, straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With only a tokenizer.json, whose rebuilt vocabulary has different bytes; into a deeper network (paper, Table 11)."""
    source = tmp_path / "exported"
    convert(straight, source)
    (source / "spiece.model").unlink()
    deeper = {"model__num_hidden_layers": 3}
    assert main(short(tmp_path / "run", init_from=source, **deeper)) == 0
    weights = read(source).weights
    parts = ("embeddings", "encoder", "predictions")
    bare = Weights(Albert(weights.model.config, ("predictions",)), {part: weights.params[part] for part in parts})
    (source / "model.safetensors").unlink()
    huggingface.write(bare, source)
    assert main(short(tmp_path / "other", init_from=source, **deeper)) == 2
    assert ": missing pooler, sop_classifier; 'albert-jax convert" in capsys.readouterr().err


def test_init_from_a_padded_embedding_table(
    short: Words, straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The rows without pieces are never drawn; with a bias of -30 they change no prediction.  The first evaluation is the source's."""
    source = tmp_path / "padded"
    convert(straight, source)
    weights = read(source).weights
    rows = weights.model.config.vocab_size + 24
    padded = leaves(weights.params)
    words, bias = ("embeddings", "word_embeddings", "embedding"), ("predictions", "bias")
    padded[words] = np.pad(padded[words], ((0, 24), (0, 0)), constant_values=1.0)
    padded[bias] = np.pad(padded[bias], (0, 24), constant_values=-30.0)
    (source / "model.safetensors").unlink()
    config = replace(weights.model.config, vocab_size=rows)
    huggingface.write(replace(weights, model=weights.model.clone(config=config), params=nested(padded)), source)
    given = {"init_from": source, "data__vocab": source / "spiece.model", "model__vocab_size": rows}
    assert main(short(tmp_path / "run", **given, train__eval_every=1)) == 0
    assert f"model.vocab_size is {rows}, but the vocabulary has" in capsys.readouterr().err
    first = next(r for r in read_metrics(tmp_path / "run") if r["step"] == 1 and "eval/mlm_loss" in r)
    summary = json.loads((straight / "summary.json").read_text())
    assert first["eval/mlm_loss"] == pytest.approx(summary["eval"]["mlm_loss"], rel=1e-5)
