"""Every task from files to predictions: labels survive reading, rows and scoring; one task per family is learned."""

import json
import random
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import albert_jax
from albert_jax.cli import main
from albert_jax.data.batches import collate
from albert_jax.data.tokenizer_files import open_tokenizer
from albert_jax.finetuning import files
from albert_jax.finetuning.family import Split, draw, read_splits, train_loss
from albert_jax.finetuning.run import FinetuneConfig, load_config
from albert_jax.finetuning.tasks import TASKS
from albert_jax.finetuning.token_classification import Example, TokenClassification
from albert_jax.model.heads import Albert, param_shapes

from .conftest import overrides_of
from .synthetic_tasks import FIELDS, WRITE, finetune_words, hinted, summary, write_files

CLASSES: dict[str, tuple[list[str], Any]] = {
    "cola": (["CoLA.tsv"], "01"),
    "sst2": (["SST-2.tsv"], "01"),
    "mrpc": (["MRPC.tsv"], "01"),
    "qqp": (["QQP.tsv"], "01"),
    "mnli": (["MNLI-m.tsv", "MNLI-mm.tsv", "AX.tsv"], ["entailment", "neutral", "contradiction"]),
    "qnli": (["QNLI.tsv"], ["entailment", "not_entailment"]),
    "rte": (["RTE.tsv"], ["entailment", "not_entailment"]),
    "wnli": (["WNLI.tsv"], "01"),
}
"""Task -> the prediction files that the GLUE server expects, and the classes in them."""


def outputs_from_labels(task: str, rows: Any) -> list[dict[str, Any]]:
    """The outputs of a model that predicts the label of every row."""
    outputs = []
    for row in (rows[number] for number in range(len(rows))):
        if "start" in row:
            positions = {name: np.array([row[name]]) for name in ("start", "end")}
            is_empty = row["start"] == 0
            score = np.array([-1e30 if is_empty else 5.0])
            outputs.append(positions | {"score": score, "null": np.array(5.0 if is_empty else -5.0)})
        elif task == "ner":
            outputs.append({"label": row["target"], "probability": np.ones(len(row["target"]))})
        elif task == "multilabel":
            outputs.append({"probabilities": row["target"][:, 0].astype(float)})
        else:
            is_class = row["target"].dtype == np.int32
            outputs.append({"probabilities": np.eye(4)[row["target"]]} if is_class else {"score": row["target"]})
    return outputs


@pytest.mark.parametrize("task", WRITE)
def test_labels_become_predictions(task: str, tmp_path: Path) -> None:
    """A model that predicts the labels of the rows has a perfect score, in training, evaluation and the prediction files.

    Fails if labels are shifted, an answer's position is off by one, or an option is compared with another's label.
    """
    _, experiment, *options = finetune_words(task, tmp_path)
    config = load_config(experiment, overrides_of(FinetuneConfig, [*options, *WRITE[task](tmp_path)]))
    family = TASKS[task]
    splits = read_splits(family, files.find(config.data, family.splits), config.data)
    tokenizer = open_tokenizer(FIELDS["data.vocab"])
    for name, split in splits.items():
        labeled = split.is_labeled
        # Answers have positions in the rows of the training split only.
        as_train = Split("train", *split[1:]) if task.startswith("squad") and labeled else split
        rows = family.rows(as_train, tokenizer, config.data)
        score = family.score(split, rows, outputs_from_labels(task, rows), None if labeled else {"null_threshold": 0.0})
        assert bool(score.metrics) == labeled
        perfect = 100 if task.startswith("squad") else 1
        metrics = {name: value for name, value in score.metrics.items() if "threshold" not in name}
        assert all(value == pytest.approx(perfect) for value in metrics.values()), (name, metrics)
        path = family.write(tmp_path, split, score.predictions)
        assert path.is_file()
        if task in CLASSES and not labeled:
            lines = [line.split("\t") for line in path.read_text().splitlines()]
            assert path.name in CLASSES[task][0]
            assert lines[0] == ["index", "prediction"]
            assert [int(number) for number, _ in lines[1:]] == list(range(5))
            assert {value for _, value in lines[1:]} <= set(CLASSES[task][1])

    rows = family.rows(splits["train"], tokenizer, config.data)
    assert len(rows) >= len(splits["train"].examples)
    model = Albert(config.model, family.heads(config.data), splits["train"].labels)
    batch = collate([rows[number] for number in range(8)], 16, 32)
    key = jax.random.key(0)

    def loss(params: Any) -> Any:
        return train_loss(family, model.apply, params, draw(config.model, batch, key))

    value, metrics = jax.eval_shape(loss, param_shapes(model))
    assert value.shape == ()
    assert {metric.shape for metric in metrics.values()} == {(2,)}


def test_baseline_of_entities_ends_with_the_sentence() -> None:
    """A known phrase at the end of a sentence is tagged once; fails if a longer match may reach beyond the last word."""
    train = Split("train", [Example("", ("x", "y", "z"), ("B-A", "O", "B-B")), Example("", ("x", "z"), ("B-A", "I-A"))])
    dev = Split("dev", [Example("", ("y", "z"), ("O", "B-B")), Example("", ("x", "z"), ("B-A", "I-A"))])
    assert TokenClassification().baseline(train, dev)["f1"] == 1.0


QUESTIONS = {
    "multilabel": (["the large list"], "large ("),
    "sst2": ([hinted(random.Random(7), 1)], "positive 0.9"),
    "squad2": (["what is it", "the text import space that list"], "space"),
    "race": (["the text", "what is _ ?", "that list", "this large"], "this large"),
    "ner": (["the space that list"], "LOC  space"),
}
"""A task of each family -> arguments of `albert-jax predict`, and what it prints."""


@pytest.mark.parametrize("task", QUESTIONS)
def test_a_task_of_each_family_is_learned(
    task: str, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run reaches a high score on dev and test data, and `load` and `predict` use it without naming the task."""
    if task == "sst2":
        folder = request.getfixturevalue("finetuned_sst2")
    else:
        folder = tmp_path
        schedule = {
            "train__num_train_steps": 200,
            "optim__learning_rate": 5e-3,
            "train__eval_every": 100,
            "train__log_every": 100,
        }
        assert main([*finetune_words(task, folder / "run", **schedule), *write_files(task, folder / "data")]) == 0
    run_dir = folder / "run"
    results = summary(run_dir)
    assert results["best"][results["select"]] >= (90 if task == "squad2" else 0.9), results
    if task != "ner":
        assert results["best"][results["select"]] > results["baselines"]["trivial"][results["select"]]
    assert not results["degenerate"]
    assert results["best"]["step"] % 50 == 0

    predictions = run_dir / "predictions"
    if task == "sst2":
        lines = (predictions / "SST-2.tsv").read_text().splitlines()[1:]
        assert [line.split("\t")[1] for line in lines] == ["0", "1", "0", "1", "0"]
    if task == "squad2":
        answers = json.loads((predictions / "test.json").read_text())
        paragraphs = json.loads((folder / "data" / "test-v2.0.json").read_text())["data"][0]["paragraphs"]
        # The answer follows the word "import"; without this word there is no answer.
        gold = [[*paragraph["context"].partition("import ")[2].split(), ""][0] for paragraph in paragraphs]
        correct = [answers[f"test{number}"] == answer for number, answer in enumerate(gold)]
        assert sum(correct) >= 4, answers  # the threshold was tuned on 21 questions only
        assert json.loads((predictions / "test.null_odds.json").read_text()).keys() == answers.keys()
    if task == "race":
        assert set(json.loads((predictions / "test.json").read_text()).values()) <= set("ABCD")
    if task == "ner":
        assert "space\tB-LOC\tB-LOC\n" in (predictions / "dev.conll").read_text()
        assert results["test"]["test"]["f1"] > 0.8

    model, params, _ = albert_jax.load(run_dir)
    assert set(model.heads) == set(params) - {"embeddings", "encoder"}
    question, answer = QUESTIONS[task]
    capsys.readouterr()
    assert main(["predict", str(run_dir), *question]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert answer in lines[{"sst2": 0, "multilabel": 0, "race": -1}.get(task, 1)]
