"""The prediction after each pass is that of a network with so many layers."""

import json
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest

from albert_jax.config import InputError
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
    found = after_each_pass(*loaded, TEXT, top_k=4)
    assert [passes.place for passes in found] == ["[MASK] 1", "[MASK] 2"]
    for number, passes in enumerate(found):
        last = pretrained.fill_mask(*loaded, TEXT, top_k=4)[0][number]
        assert list(passes.names) == [answer["token"].lstrip("▁") or "▁" for answer in last]
        for depth in (1, 2):
            answers = pretrained.fill_mask(*shallow(loaded, depth), TEXT, top_k=500)[0][number]
            by_id = {answer["id"]: answer["probability"] for answer in answers}
            wanted = [by_id[answer["id"]] for answer in last]
            np.testing.assert_allclose(passes.probabilities[depth - 1], wanted, rtol=1e-3)
            assert passes.best[depth - 1] == (answers[0]["token"].lstrip("▁") or "▁")


def test_passes_of_classes() -> None:
    (found,) = after_each_pass(*CLASSES, "the text", "has lines", task="classify")
    for depth in (1, 2):
        wanted = finetuned.classify(*shallow(CLASSES, depth), "the text", ["has lines"])[0]
        values = dict(zip(found.names, found.probabilities[depth - 1].tolist(), strict=True))
        assert values == pytest.approx(wanted["probabilities"], rel=1e-3)
        assert found.best[depth - 1] == wanted["label"]
    assert found.names[0] == found.best[-1]
    table = found.table()
    assert list(table.columns) == ["best", *found.names]
    assert table.loc[2, found.names[0]] == found.probabilities[1, 0]
    assert json.loads(json.dumps(found.record()))["passes"][0]["best"] == found.best[0]
    assert "<table" in found._repr_html_()
    lines = draw_passes(found).axes[0].lines
    np.testing.assert_array_equal(lines[0].get_ydata(), found.probabilities[:, 0])


def test_scores_and_several_labels() -> None:
    loaded = random_model(("pooler", "classifier"), ("score",))
    (found,) = after_each_pass(*loaded, "the text", task="classify")
    assert found.probabilities[-1, 0] == pytest.approx(finetuned.classify(*loaded, "the text")[0]["score"], rel=1e-4)
    model, params, tokenizer = CLASSES
    (found,) = after_each_pass(model.clone(multi_label=True), params, tokenizer, "the text", task="classify")
    apply: Any = model.apply
    logits = apply({"params": params}, **tokenizer("the text"))["logits"][0]
    np.testing.assert_allclose(sorted(found.probabilities[-1]), sorted(jax.nn.sigmoid(logits)), rtol=1e-4)


def test_passes_need_a_mask() -> None:
    with pytest.raises(InputError, match=r"has no \[MASK\] to predict: 'the text'"):
        after_each_pass(*random_model(), "the text")
    with pytest.raises(InputError, match="needs a model with the head sop_classifier"):
        after_each_pass(*CLASSES, "the text", task="sentence-order")
