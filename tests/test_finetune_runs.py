"""Fine-tuning runs: resumed, damaged, of several seeds, from other starts, on other numbers of devices."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import albert_jax
from albert_jax.cli import main
from albert_jax.finetuning import tasks
from albert_jax.finetuning.classification import Classification
from albert_jax.training.run_folder import read_metrics

from .conftest import FAST_COMPILE, ROOT, refused
from .synthetic_tasks import glue
from .test_finetune import FIELDS, files, summary, words
from .test_resume import digest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def sst2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on SST-2."""
    folder = tmp_path_factory.mktemp("sst2")
    assert main([*words("sst2", folder / "run", train__num_train_steps=100), *files("sst2", folder / "data")]) == 0
    return folder


def test_run_folder_and_curves(sst2: Path) -> None:
    run_dir = sst2 / "run"
    names = {path.name for path in run_dir.iterdir()}
    wanted = {"config.json", "metrics.jsonl", "checkpoints", "best", "tensorboard", "curves.png", "summary.json"}
    assert wanted | {"predictions", "spiece.model"} <= names
    stored = json.loads((run_dir / "config.json").read_text())
    assert stored["job"] == "finetune"
    assert stored["heads"] == ["pooler", "classifier"]
    assert stored["labels"] == ["negative", "positive"]
    assert [record["step"] for record in read_metrics(run_dir) if "eval/accuracy" in record] == [50, 100]


def test_the_best_is_apart_from_the_last(tmp_path: Path) -> None:
    """At a rate that does not settle, the best parameters stay, and `load` takes them, or the last where they are named."""
    run_dir = tmp_path / "run"
    restless = {"optim__schedule": "constant", "optim__learning_rate": 0.05, "train__eval_every": 25}
    assert main([*words("cola", run_dir, **restless), *files("cola", tmp_path / "data")]) == 0
    found = summary(run_dir)
    values = {r["step"]: r["eval/matthews"] for r in read_metrics(run_dir) if "eval/matthews" in r}
    best = max(values, key=lambda step: values[step])  # the first of equals
    assert best < 200, "the test wants a best that is not the last: change the rate"
    assert found["best"]["step"] == best
    assert found["best"]["matthews"] == values[best]
    assert found["eval"]["matthews"] == values[200]
    assert [path.name for path in (run_dir / "best").iterdir()] == [str(best)]
    chosen, named, last = (albert_jax.load(path)[1] for path in (run_dir, run_dir / "best", run_dir / "checkpoints"))
    same = [np.array_equal(chosen["classifier"]["kernel"], other["classifier"]["kernel"]) for other in (named, last)]
    assert same == [True, False]


def test_resumed_is_uninterrupted(sst2: Path, tmp_path: Path) -> None:
    """Killed between two steps, the run goes on to the same bits, metrics and predictions; the best checkpoint too."""
    run_dir = tmp_path / "run"
    command = [sys.executable, "-m", "albert_jax"]
    given = [
        *words("sst2", run_dir, train__num_train_steps=100, train__checkpoint_every=20),
        "--data.dir",
        str(sst2 / "data"),
    ]
    straight = tmp_path / "straight"
    again = [str(straight) if word == str(run_dir) else word for word in given]
    assert main(again) == 0
    process = subprocess.Popen([*command, *given], cwd=ROOT, stderr=subprocess.PIPE)
    deadline = time.time() + 120
    while not list((run_dir / "checkpoints").glob("[46]0/_CHECKPOINT_METADATA")) and time.time() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert main(given) == 0
    assert digest(run_dir, 100) == digest(straight, 100)
    assert summary(run_dir)["eval"] == summary(straight)["eval"]
    assert summary(run_dir)["best"] == summary(straight)["best"]
    mine, theirs = ((folder / "predictions" / "SST-2.tsv").read_bytes() for folder in (run_dir, straight))
    assert mine == theirs


def test_the_same_command_again_changes_nothing(sst2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = summary(sst2 / "run")
    given = [*words("sst2", sst2 / "run", train__num_train_steps=100), "--data.dir", str(sst2 / "data")]
    assert main(given) == 0
    assert summary(sst2 / "run")["eval"] == before["eval"]
    assert main([str(sst2 / "run" / "config.json") if word.endswith("sst2.py") else word for word in given]) == 0
    message = refused([*given, "--train.seed", "1"], capsys)
    assert "belongs to another configuration (train.seed: 0 -> 1)" in message
    (sst2 / "data2").mkdir(exist_ok=True)
    files("sst2", sst2 / "data2")
    text = (sst2 / "data2" / "dev.tsv").read_text()
    (sst2 / "data2" / "dev.tsv").write_text(text.replace("the", "than"))
    stored = json.loads((sst2 / "run" / "config.json").read_text())
    own = sst2 / "changed"
    own.mkdir()
    stored["config"]["data"]["dir"] = str(sst2 / "data2")
    (own / "config.json").write_text(json.dumps(stored))
    changed = [*words("sst2", own, train__num_train_steps=100), "--data.dir", str(sst2 / "data2")]
    assert "the data changed since this run began" in refused(changed, capsys)


def test_from_an_mnli_run_and_from_a_pretrained_one(
    sst2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Encoder and pooler come along; a classifier of other classes starts afresh; one of the same classes comes too."""
    own = {name: None for name in FIELDS if name.startswith("model.") and "unroll" not in name} | {"data.vocab": None}
    quick = own | {"train.num_train_steps": 11, "train.eval_every": 11, "optim.learning_rate": 1e-9}
    overrides = {name.replace(".", "__"): value for name, value in quick.items()}
    init = ["--init-from", str(sst2 / "run")]
    assert main([*words("rte", tmp_path / "rte", *init, **overrides), *files("rte", tmp_path / "data")]) == 0
    assert "classifier from random numbers; of it classifier left out" in capsys.readouterr().err
    _, before, tokenizer = albert_jax.load(sst2 / "run")
    _, after, own_tokenizer = albert_jax.load(tmp_path / "rte")
    assert tokenizer.sha256 == own_tokenizer.sha256
    for name in ("encoder", "pooler", "embeddings"):
        for a, b in zip(*(sorted(_leaves(tree[name])) for tree in (before, after)), strict=True):
            assert np.allclose(a[1], b[1], atol=1e-5), a[0]
    assert not np.allclose(before["classifier"]["kernel"], after["classifier"]["kernel"], atol=1e-3)

    assert main([*words("sst2", tmp_path / "sst2", *init, **overrides), "--data.dir", str(sst2 / "data")]) == 0
    assert summary(tmp_path / "sst2")["eval"]["accuracy"] == summary(sst2 / "run")["best"]["accuracy"]


def _leaves(tree: Any, path: str = "") -> list[tuple[str, Any]]:
    if not isinstance(tree, dict):
        return [(path, np.asarray(tree).tolist())]
    return [leaf for name, value in tree.items() for leaf in _leaves(value, f"{path}/{name}")]


def test_what_a_kill_leaves_behind_is_no_checkpoint(
    sst2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A half-written first checkpoint does not make a run forget --init-from, nor hide the whole ones from `load`."""
    run_dir = tmp_path / "run"
    own = {name.replace(".", "__"): None for name in FIELDS if name.startswith("model.") and "unroll" not in name}
    given = words("sst2", run_dir, "--init-from", str(sst2 / "run"), data__vocab=None, train__num_train_steps=11, **own)
    for left in ("10.orbax-checkpoint-tmp", "10"):
        (run_dir / "checkpoints" / left).mkdir(parents=True)
    assert main([*given, "--data.dir", str(sst2 / "data")]) == 0
    assert f"started from {sst2 / 'run'}" in capsys.readouterr().err
    shutil.rmtree(run_dir / "best")
    (run_dir / "best" / "10.orbax-checkpoint-tmp").mkdir(parents=True)
    albert_jax.load(run_dir)


def test_a_damaged_best_is_set_aside(sst2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = tmp_path / "run"
    given = [*words("sst2", run_dir, train__num_train_steps=20, train__eval_every=10), "--data.dir", str(sst2 / "data")]
    assert main(given) == 0
    step = summary(run_dir)["best"]["step"]
    (run_dir / "best" / str(step) / "meta" / "metadata").write_text("{")
    assert main(given) == 0
    assert f"skipping checkpoint {step}" in capsys.readouterr().err
    assert summary(run_dir)["best"] == {"step": 20} | summary(run_dir)["eval"]


def test_a_hugging_face_folder_called_best_is_itself(sst2: Path, tmp_path: Path) -> None:
    for name in ("hf", "hf/best"):
        assert main(["convert", str(sst2 / "run"), str(tmp_path / name)]) == 0
    config = json.loads((tmp_path / "hf" / "best" / "config.json").read_text())
    config["id2label"] = {"0": "no", "1": "yes"}
    (tmp_path / "hf" / "best" / "config.json").write_text(json.dumps(config))
    assert albert_jax.load(tmp_path / "hf" / "best")[0].labels == ("no", "yes")


def test_mnli_with_one_dev_file(tmp_path: Path) -> None:
    """The metric that selects bears the name that the metrics bear."""
    more = files("mnli", tmp_path / "data")
    (tmp_path / "data" / "dev_mismatched.tsv").unlink()
    quick = {"train__num_train_steps": 20, "train__eval_every": 10}
    assert main([*words("mnli", tmp_path / "run", **quick), *more]) == 0
    assert summary(tmp_path / "run")["select"] == "accuracy"
    named = ["--data.dev-file", str(tmp_path / "data" / "dev_matched.tsv")]
    assert main([*words("mnli", tmp_path / "named", *named, **quick), *more]) == 0
    assert summary(tmp_path / "named")["eval"] == summary(tmp_path / "run")["eval"]


def test_answers_that_changed_are_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """MCTest keeps them in files of their own."""
    given = [*words("mctest", tmp_path / "run", train__num_train_steps=11), *files("mctest", tmp_path / "data")]
    assert main(given) == 0
    path = tmp_path / "data" / "mc160.train.ans"
    path.write_text(path.read_text().translate(str.maketrans("ABCD", "BCDA")))
    assert "the data changed since this run began" in refused(given, capsys)


def test_exported_to_hugging_face_and_back(sst2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(sst2 / "run"), str(tmp_path / "hf")]) == 0
    stored = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert stored["architectures"] == ["AlbertForSequenceClassification"]
    assert stored["id2label"] == {"0": "negative", "1": "positive"}
    capsys.readouterr()
    said = []
    for source in (sst2 / "run", tmp_path / "hf"):
        assert main(["predict", str(source), "--json", "this large text", "some small list"]) == 0
        said.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
    for a, b in zip(*said, strict=True):
        assert a["label"] == b["label"]
        assert a["probability"] == pytest.approx(b["probability"], abs=1e-6)


def test_seeds_and_those_that_degenerate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that stays at the commonest class is named, and counted in every figure."""
    run_dir = tmp_path / "runs"
    # Nearly no rate: whatever the seed, the classifier stays where it started.
    given = words(
        "cola", run_dir, "--seeds", "3", optim__learning_rate=1e-9, train__num_train_steps=20, train__eval_every=10
    )
    given += files("cola", tmp_path / "data")
    assert main(given) == 0
    found = summary(run_dir)
    alone = [summary(run_dir / f"seed-{seed}") for seed in range(3)]
    assert found["seeds"] == [0, 1, 2]
    assert found["degenerate"] == [seed for seed in range(3) if alone[seed]["degenerate"]]
    assert found["degenerate"]
    values = [one["best"]["accuracy"] for one in alone]
    spread = found["metrics"]["accuracy"]
    assert spread["values"] == values
    assert spread["median"] == np.median(values)
    assert spread["std"] == pytest.approx(np.std(values, ddof=1))
    assert "degenerate, but included: " + ", ".join(f"seed {n}" for n in found["degenerate"]) in capsys.readouterr().err
    assert main(["report", str(run_dir)]) == 0
    assert "| accuracy |" in capsys.readouterr().out
    alone_there = [word for word in given if word not in ("--seeds", "3")]
    assert "holds the runs of several seeds" in refused(alone_there, capsys)
    assert not np.array_equal(*(albert_jax.load(run_dir / f"seed-{n}")[1]["pooler"]["kernel"] for n in (0, 1)))


def test_evaluation_on_eight_devices(sst2: Path, tmp_path: Path) -> None:
    """21 dev rows in batches of 8: the same predictions and metrics on 8 devices as on one."""
    environment = os.environ | {"XLA_FLAGS": f"{FAST_COMPILE} --xla_force_host_platform_device_count=8"}
    given = [*words("sst2", tmp_path / "run", train__num_train_steps=100), "--data.dir", str(sst2 / "data")]
    subprocess.run([sys.executable, "-m", "albert_jax", *given], cwd=ROOT, env=environment, check=True)
    one, eight = summary(sst2 / "run"), summary(tmp_path / "run")
    assert eight["eval"] == one["eval"]
    assert eight["best"] == one["best"]
    for name in ("SST-2.tsv", "dev.tsv"):
        mine, theirs = ((folder / "run" / "predictions" / name).read_bytes() for folder in (sst2, tmp_path))
        assert mine == theirs


def test_a_new_task_is_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As CONTRIBUTING.md shows it."""
    entry = Classification(
        text=("premise",),
        text_pair=("claim",),
        label=("verdict",),
        classes={"y": "supported", "n": "refuted"},
        metrics=("accuracy", "f1"),
        server={"test": "answers.tsv"},
    )
    monkeypatch.setitem(tasks.TASKS, "claims", entry)
    write: Callable[[Path], list[str]] = glue(
        "n\tpremise\tclaim\tverdict", "{n}\t{a}\t{b}\t{label}", ("n", "y"), test="{n}\t{a}\t{b}"
    )
    (tmp_path / "data").mkdir()
    assert main([*words("rte", tmp_path / "run", "--data.task", "claims"), *write(tmp_path / "data")]) == 0
    assert summary(tmp_path / "run")["best"]["accuracy"] > 0.9
    assert "index\tprediction\n0\t" in (tmp_path / "run" / "predictions" / "answers.tsv").read_text()


def test_scale_and_a_vocabulary_of_its_own(tmp_path: Path) -> None:
    """--scale tiny without a vocabulary trains one on the task's text; the command line goes before the scale."""
    path = str(ROOT / "experiments" / "finetune" / "sst2.py")
    own = [
        "--scale",
        "tiny",
        "--model.vocab-size",
        "40",
        "--train.num-train-steps",
        "31",
        "--run-dir",
        str(tmp_path / "run"),
    ]
    assert main(["finetune", path, *own, *files("sst2", tmp_path / "data")]) == 0
    stored = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert stored["model"]["hidden_size"] == 128
    assert stored["train"]["num_train_steps"] == 31
    _, _, tokenizer = albert_jax.load(tmp_path / "run")
    assert tokenizer.vocab_size == 40
