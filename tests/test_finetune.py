"""Fine-tuning from files to predictions: every task is learned, and its run answers."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

import albert_jax
from albert_jax.cli import main

from .conftest import GOLDEN_TOKENIZER, ROOT
from .synthetic_tasks import WRITE, hinted

pytestmark = pytest.mark.slow

FIELDS = {
    "data.vocab": GOLDEN_TOKENIZER / "spiece.model",
    "data.max_seq_length": 32,
    "data.max_qa_length": 16,
    "model.embedding_size": 16,
    "model.hidden_size": 32,
    "model.num_hidden_layers": 2,
    "model.num_attention_heads": 2,
    "model.intermediate_size": 48,
    "model.max_position_embeddings": 32,
    "model.scan_unroll": 1,
    "model.initializer_range": 0.2,
    "optim.learning_rate": 2e-3,
    "optim.num_warmup_steps": 10,
    "train.num_train_steps": 200,
    "train.global_batch_size": 16,
    "train.log_every": 30,
    "train.eval_every": 50,
    "train.checkpoint_every": 50,
    "train.eval_batch_size": 8,
}


def words(task: str, run_dir: Path, *more: str, **overrides: object) -> list[str]:
    """The command that fine-tunes on a made task."""
    fields = FIELDS | {name.replace("__", "."): value for name, value in overrides.items()} | {"run_dir": run_dir}
    plain = [word for name, value in fields.items() if value is not None for word in (f"--{name}", str(value))]
    return ["finetune", str(ROOT / "experiments" / "finetune" / f"{task}.py"), *plain, *more]


def files(task: str, folder: Path) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    return WRITE[task](folder)


def place_in(context: str) -> str:
    """The answer that a made context holds, or none."""
    _, _, rest = context.partition("import ")
    return rest.split()[0] if rest else ""


def summary(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "summary.json").read_text())


SERVER: dict[str, dict[str, Any]] = {
    "cola": {"CoLA.tsv": "01"},
    "sst2": {"SST-2.tsv": "01"},
    "mrpc": {"MRPC.tsv": "01"},
    "stsb": {"STS-B.tsv": ""},
    "qqp": {"QQP.tsv": "01"},
    "mnli": {name: ["entailment", "neutral", "contradiction"] for name in ("MNLI-m.tsv", "MNLI-mm.tsv", "AX.tsv")},
    "qnli": {"QNLI.tsv": ["entailment", "not_entailment"]},
    "rte": {"RTE.tsv": ["entailment", "not_entailment"]},
    "wnli": {"WNLI.tsv": "01"},
}
ASK = {
    "squad1": (["what is it", "the text import space that list"], "space"),
    "squad2": (["what is it", "the text import space that list"], "space"),
    "race": (["the text", "what is _ ?", "that list", "this large"], "this large"),
    "mctest": (["the text", "what is it ?", "that list", "this large"], "this large"),
    "ner": (["the space that list"], "LOC  space"),
}


@pytest.mark.parametrize("task", WRITE)
def test_task(task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every task is learned from its files, its predictions have the server's form, and the run answers `predict`.

    Fails if labels are shifted, an answer's place is off by one, or a choice is scored by another's input.
    """
    run_dir = tmp_path / "run"
    more = {"train__num_train_steps": 300, "optim__learning_rate": 5e-3} if task == "ner" else {}
    assert main([*words(task, run_dir, **more), *files(task, tmp_path / "data")]) == 0
    found = summary(run_dir)
    select = found["select"]
    floor = 100 * 0.9 if task.startswith("squad") else 0.9
    assert found["best"][select] >= floor, found
    assert found["best"][select] > found["baseline"].get(select, 0)
    assert not found["degenerate"]
    assert found["best"]["step"] % 50 == 0

    predictions = run_dir / "predictions"
    for name, allowed in SERVER.get(task, {}).items():
        lines = (predictions / name).read_text().splitlines()
        assert lines[0] == "index\tprediction"
        cells = [line.split("\t") for line in lines[1:]]
        assert [int(number) for number, _ in cells] == list(range(5))
        assert all(value in allowed if allowed else 0 <= float(value) <= 5.5 for _, value in cells)
        if task in ("sst2", "rte"):
            assert [value for _, value in cells] == [allowed[n % 2] for n in range(5)]
    if task.startswith("squad"):
        answers = json.loads((predictions / "test.json").read_text())
        assert sorted(answers) == [f"test{n}" for n in range(5)]
        asked_of = json.loads(next((tmp_path / "data").glob("test*")).read_text())["data"][0]["paragraphs"]
        right = [answers[f"test{n}"] == place_in(paragraph["context"]) for n, paragraph in enumerate(asked_of)]
        assert sum(right) >= 4, answers  # a threshold found on 21 questions may lose one
        assert (answers["test0"] == "") == (task == "squad2")
        assert json.loads((predictions / "test.null_odds.json").read_text()).keys() == answers.keys()
    if task in ("race", "mctest"):
        assert set(json.loads((predictions / "test.json").read_text()).values()) <= set("ABCD")
    if task == "ner":
        assert "space\tB-LOC\tB-LOC\n" in (predictions / "dev.conll").read_text()
        assert found["test"]["test"]["f1"] > 0.8

    model, params, _ = albert_jax.load(run_dir)
    assert set(model.heads) == set(params) - {"embeddings", "encoder"}
    asked, wanted = ASK.get(task, ([hinted(random.Random(7), 1)], ""))
    pair = ["--pair"] if task not in ("cola", "sst2", "text", "regression") and task not in ASK else []
    capsys.readouterr()
    assert main(["predict", str(run_dir), *pair, *(["the text"] if pair else []), *asked]) == 0
    said = capsys.readouterr().out
    assert (
        wanted in said.splitlines()[1 if task in ASK and task not in ("race", "mctest") else -1 if task in ASK else 0]
    )
    if task in ("sst2", "rte"):
        assert said.startswith("positive 0.9" if task == "sst2" else "not_entailment 0.9")
