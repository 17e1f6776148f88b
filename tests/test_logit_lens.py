"""The prediction after pass i equals that of a network with i layers."""

import json
from dataclasses import replace
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
from albert_jax.inference import finetuned, pretrained
from albert_jax.inference.logit_lens import after_each_pass, draw_passes

from .small_models import Loaded, random_model

TEXT = "the [MASK] text has [MASK] lines"
CLASSES = random_model(("pooler", "classifier"), ("bad", "good", "so so"))


def shallow(loaded: Loaded, depth: int) -> Loaded:
    """The network with fewer layers; all share their parameters, so the parameters are the same."""
    model, params, tokenizer = loaded
    return model.clone(config=replace(model.config, num_hidden_layers=depth)), params, tokenizer


def test_passes_of_masks() -> None:
    """Fails if the passes count from the embeddings, or a mask reads the position of the other."""
    loaded = random_model()
    of_masks = after_each_pass(*loaded, TEXT, top_k=4)
    assert [passes.place for passes in of_masks] == ["[MASK] 1", "[MASK] 2"]
    for number, passes in enumerate(of_masks):
        last = pretrained.fill_mask(*loaded, TEXT, top_k=4)[0][number]
        assert list(passes.names) == [answer["token"] for answer in last]
        for depth in (1, 2):
            answers = pretrained.fill_mask(*shallow(loaded, depth), TEXT, top_k=500)[0][number]
            by_id = {answer["id"]: answer["probability"] for answer in answers}
            wanted = [by_id[answer["id"]] for answer in last]
            np.testing.assert_allclose(passes.probabilities[depth - 1], wanted, rtol=1e-3)
            assert passes.best[depth - 1] == answers[0]["token"]


def test_passes_of_classes() -> None:
    (passes,) = after_each_pass(*CLASSES, "the text", "has lines", task="classify")
    for depth in (1, 2):
        wanted = finetuned.classify(*shallow(CLASSES, depth), "the text", ["has lines"])[0]
        values = dict(zip(passes.names, passes.probabilities[depth - 1].tolist(), strict=True))
        assert values == pytest.approx(wanted["probabilities"], rel=1e-3)
        assert passes.best[depth - 1] == wanted["label"]
    assert passes.names[0] == passes.best[-1]
    table = passes.table()
    assert list(table.columns) == ["best", *passes.names]
    assert table.loc[2, passes.names[0]] == passes.probabilities[1, 0]
    assert json.loads(json.dumps(passes.record()))["passes"][0]["best"] == passes.best[0]
    assert "<table" in passes._repr_html_()
    lines = draw_passes(passes).axes[0].lines
    np.testing.assert_array_equal(lines[0].get_ydata(), passes.probabilities[:, 0])


def test_classes_of_masks_and_long_pairs() -> None:
    """The last pass is the prediction: [MASK] is text for classify and a mask for sentence-order; long pairs are truncated alike."""
    loaded = random_model()
    for texts in (("a [MASK] text", "It has [MASK]."), ("the text has lines " * 30, "a list of lines " * 30)):
        for task, model, answer in (
            ("classify", CLASSES, finetuned.classify(*CLASSES, texts[0], texts[1:])[0]["probabilities"]),
            ("sentence-order", loaded, pretrained.sentence_order(*loaded, [texts])[0]),
        ):
            (passes,) = after_each_pass(*model, *texts, task=task)
            assert dict(zip(passes.names, passes.probabilities[-1], strict=True)) == pytest.approx(answer, rel=1e-3)


def test_pieces_that_differ_by_a_space() -> None:
    """A piece that starts a word, and the same letters inside of a word, are two names."""
    (passes,) = after_each_pass(*random_model(), "the [MASK] text", top_k=500)
    assert {"a", "▁a"} <= set(passes.names)
    assert len(passes.record()["passes"][0]["probabilities"]) == 500


def test_classes_named_as_columns_of_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, params, tokenizer = random_model(("pooler", "classifier"), ("pass", "best"))
    huggingface.write(Weights(model, params), tmp_path)
    tokenizer_files.write(tokenizer, 80, tmp_path)
    assert main(["predict", str(tmp_path), "the text", "--passes"]) == 0
    header = capsys.readouterr().out.splitlines()[2].split()
    assert header[:2] == ["pass", "best"]
    assert sorted(header[2:]) == ["best", "pass"]


def test_scores_and_several_labels() -> None:
    loaded = random_model(("pooler", "classifier"), ("score",))
    (passes,) = after_each_pass(*loaded, "the text", task="classify")
    assert passes.probabilities[-1, 0] == pytest.approx(finetuned.classify(*loaded, "the text")[0]["score"], rel=1e-4)
    model, params, tokenizer = CLASSES
    (passes,) = after_each_pass(model.clone(multi_label=True), params, tokenizer, "the text", task="classify")
    apply: Any = model.apply
    logits = apply({"params": params}, **tokenizer("the text"))["logits"][0]
    np.testing.assert_allclose(sorted(passes.probabilities[-1]), sorted(jax.nn.sigmoid(logits)), rtol=1e-4)


def test_passes_need_a_mask_or_two_texts() -> None:
    with pytest.raises(InputError, match=r"has no \[MASK\] to predict: 'the text'"):
        after_each_pass(*random_model(), "the text")
    with pytest.raises(InputError, match="needs a model with the head sop_classifier"):
        after_each_pass(*CLASSES, "the text", task="sentence-order")
    with pytest.raises(InputError, match="sentence-order takes two texts, got 1"):
        after_each_pass(*random_model(), "the text", task="sentence-order")
