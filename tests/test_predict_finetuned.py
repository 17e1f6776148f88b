"""Predictions of a fine-tuned model: batches equal single texts, and positions are characters of the text."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from albert_jax.cli import main
from albert_jax.config import InputError
from albert_jax.data import tokenizer_files
from albert_jax.exchange import huggingface
from albert_jax.exchange.weights import Weights
from albert_jax.inference import answers, finetuned

from .conftest import refused
from .small_models import Loaded, random_model

TEXTS = ["The Text, in 2010.", "", "Émile  wrote “random” lines " * 9, "a"]

CLASSES = random_model(("pooler", "classifier"), ("bad", "good", "so so"))
TAGS = random_model(("token_classifier",), ("O", "B-X", "I-X", "B-Y", "I-Y"))
ANSWER = random_model(("qa_outputs",))
RELEASED = random_model(("answer_class",))
CHOICE = random_model(("pooler", "choice_classifier"))


def test_classes_of_texts_and_pairs() -> None:
    """Against the model itself, without padding; fails if a pair's second text is left out."""
    for pairs in (None, TEXTS[::-1]):
        together = finetuned.classify(*CLASSES, TEXTS, pairs)
        for number, found in enumerate(together):
            model, params, tokenizer = CLASSES
            inputs = tokenizer(TEXTS[number], pairs and pairs[number], max_length=80)
            apply: Any = model.apply
            wanted = jax.nn.softmax(apply({"params": params}, **inputs)["logits"][0])
            assert np.allclose(list(found["probabilities"].values()), wanted, atol=1e-5)
            assert found["label"] == model.labels[int(np.argmax(wanted))]
            assert found["probability"] == max(found["probabilities"].values())
    regression = finetuned.classify(*random_model(("pooler", "classifier"), ("score",)), "a text")
    assert list(regression[0]) == ["score"]


def test_entities_are_characters_of_the_text() -> None:
    together = finetuned.entities(*TAGS, TEXTS)
    assert any(together)
    for text, found in zip(TEXTS, together, strict=True):
        alone = finetuned.entities(*TAGS, text)[0]
        assert [(e["start"], e["end"], e["type"]) for e in found] == [(e["start"], e["end"], e["type"]) for e in alone]
        for entity in found:
            assert entity["text"] == text[entity["start"] : entity["end"]]
            assert entity["type"] in ("X", "Y")
            assert 0 < entity["probability"] <= 1
    assert together[1] == []


@pytest.mark.parametrize("loaded", [ANSWER, RELEASED], ids=["plain", "answer class"])
def test_answers_are_characters_of_the_context(loaded: Loaded) -> None:
    contexts = [TEXTS[2], TEXTS[0], "x"]
    together = finetuned.answer(*loaded, ["what is it?"] * 3, contexts, n_best=3)
    for context, found in zip(contexts, together, strict=True):
        alone = finetuned.answer(*loaded, "what is it?", context, n_best=3)[0]
        assert [a["text"] for a in alone["answers"]] == [a["text"] for a in found["answers"]]
        assert alone["null_odds"] == pytest.approx(found["null_odds"], abs=1e-3)
        assert 1 <= len(found["answers"]) <= 3
        assert sum(a["probability"] for a in found["answers"]) == pytest.approx(1)
        scores = [a["score"] for a in found["answers"]]
        assert scores == sorted(scores, reverse=True)
        most = finetuned.answer(*loaded, "what is it?", context, n_best=20)[0]
        assert (
            most["answers"][0]["text"] == found["answers"][0]["text"]
        )  # the number of printed answers does not change the search
        assert most["null_odds"] == pytest.approx(found["null_odds"], abs=1e-3)
        for one in found["answers"]:
            assert one["text"] == context[one["start"] : one["end"]]


def test_choices_of_several_numbers() -> None:
    questions = [("the text", "what is _ ?", ["a", "b", "c"]), ("", "which?", ["some lines", "a"])]
    together = finetuned.choose(*CHOICE, questions)
    assert [len(found) for found in together] == [3, 2]
    for question, found in zip(questions, together, strict=True):
        assert sum(found) == pytest.approx(1, abs=1e-5)
        assert np.allclose(found, finetuned.choose(*CHOICE, [question])[0], atol=1e-5)


def test_errors_name_the_missing_head() -> None:
    with pytest.raises(InputError, match="a model with the head classifier; heads of this model: qa_outputs"):
        finetuned.classify(*ANSWER, "a text")
    with pytest.raises(InputError, match="qa_outputs or answer_class; heads of this model: token_classifier"):
        finetuned.answer(*TAGS, "who?", "a text")
    with pytest.raises(InputError, match="question 1: expected 2 to 10 options, got 1"):
        finetuned.choose(*CHOICE, [("a", "b", ["c"])])
    with pytest.raises(InputError, match="2 questions and 1 contexts"):
        finetuned.answer(*ANSWER, ["a", "b"], ["c"])


def test_command_line(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """A Hugging Face folder that was fine-tuned is asked what it was fine-tuned for."""
    folders = {}
    for name, (model, params, tokenizer) in {
        "classes": CLASSES,
        "tags": TAGS,
        "answer": ANSWER,
        "choice": CHOICE,
    }.items():
        folders[name] = str(tmp_path / name)
        (tmp_path / name).mkdir()
        huggingface.write(Weights(model, params), tmp_path / name)
        tokenizer_files.write(tokenizer, 80, tmp_path / name)
        assert (
            answers.default_task(model)
            == {"classes": "classify", "tags": "entities", "answer": "answer", "choice": "choose"}[name]
        )

    def printed_records(*words: str) -> list[dict[str, Any]]:
        assert main(["predict", *words, "--json"]) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    assert (
        printed_records(folders["classes"], "a text")[0]["label"] == finetuned.classify(*CLASSES, "a text")[0]["label"]
    )
    pair = printed_records(folders["classes"], "--pair", "a text", "lines")
    assert pair[0]["text_pair"] == "lines"
    assert pair == printed_records(folders["classes"], "a text\tlines")
    assert printed_records(folders["tags"], TEXTS[0])[0]["entities"] == finetuned.entities(*TAGS, TEXTS[0])[0]
    found = printed_records(folders["answer"], "what?", TEXTS[0], "--top-k", "2")[0]
    assert len(found["answers"]) == 2
    assert not found["no_answer"]
    assert printed_records(folders["answer"], "what?", TEXTS[0], "--null-threshold", "-1000")[0]["no_answer"]
    assert len(printed_records(folders["choice"], "a text", "what?", "a", "b", "c")[0]["probabilities"]) == 3
    assert "two or more options, or lines of them separated by tabs; 1 has 2 texts" in refused(
        ["predict", folders["choice"], "a", "b"], capsys
    )
    assert "answer takes two texts" in refused(["predict", folders["answer"], "a"], capsys)
    assert "this needs a model with the head classifier" in refused(
        ["predict", folders["tags"], "--task", "classify", "a"], capsys
    )
    assert main(["predict", folders["tags"], TEXTS[0]]) == 0
    assert capsys.readouterr().out.startswith(TEXTS[0])


def test_texts_with_several_labels(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Sigmoids of the logits; labels above 0.5, also none; kept in a Hugging Face folder.  Fails if softmax is used."""
    model, params, tokenizer = random_model(("pooler", "classifier"), ("a", "b", "c"))
    model = model.clone(multi_label=True)
    found = finetuned.classify(model, params, tokenizer, TEXTS)
    for text, one in zip(TEXTS, found, strict=True):
        apply: Any = model.apply
        logits = apply({"params": params}, **tokenizer(text, max_length=80))["logits"][0]
        np.testing.assert_allclose(list(one["probabilities"].values()), jax.nn.sigmoid(logits), atol=1e-5)
        assert one["labels"] == tuple(name for name, logit in zip("abc", logits, strict=True) if logit > 0)
    folder = tmp_path / "hf"
    folder.mkdir()
    huggingface.write(Weights(model, jax.device_get(params)), folder)
    assert json.loads((folder / "config.json").read_text())["problem_type"] == "multi_label_classification"
    tokenizer_files.write(tokenizer, 80, folder)
    assert main(["predict", str(folder), "--json", TEXTS[0]]) == 0
    assert tuple(json.loads(capsys.readouterr().out)["labels"]) == found[0]["labels"]
