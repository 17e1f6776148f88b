"""Metrics equal those of the official scorers (golden/make_metrics.py), and properties that hold for any input."""

import itertools
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from albert_jax.finetuning import metrics
from albert_jax.finetuning.metrics import best_threshold, normalized, span_f1, spans, squad, to_iob2

from .conftest import ROOT

GOLDEN: dict[str, Any] = json.loads((ROOT / "tests" / "golden" / "metrics.json").read_text())
TAGS = st.lists(st.sampled_from(["O", *(f"{prefix}-{kind}" for prefix in "BIES" for kind in "XY")]), max_size=12)


@pytest.mark.parametrize("case", GOLDEN["entities"], ids=["IOB1", "IOB2", "IOBES", "any"])
def test_entities_equal_seqeval(case: dict[str, Any]) -> None:
    """Fails if an entity does not end where the type changes."""
    assert [[list(span) for span in spans(row)] for row in case["gold"]] == case["spans"]
    scores, expected = span_f1(case["guessed"], case["gold"]), case["report"]
    for name, key in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score")):
        assert scores[name] == pytest.approx(expected["micro avg"][key], abs=1e-12)
    for kind in ("PER", "LOC", "creative-work"):
        assert scores[f"f1_{kind}"] == pytest.approx(expected[kind]["f1-score"], abs=1e-12)


SCHEMES = {"BILOU": {"E": "L", "S": "U"}, "BMEWO": {"I": "M", "S": "W"}, "IO": {"B": "I", "E": "I", "S": "I"}}
"""Scheme -> prefix in IOBES -> its prefix."""


@pytest.mark.parametrize("scheme", SCHEMES)
def test_other_schemes_mark_the_same_entities(scheme: str) -> None:
    """Those of seqeval for IOBES, rewritten.  IO cannot separate neighbors of one type."""
    renamed = SCHEMES[scheme]
    case = GOLDEN["entities"][2]
    for row, found in zip(case["gold"], case["spans"], strict=True):
        tags = [renamed.get(tag[0], tag[0]) + tag[1:] for tag in row]
        underscored = [tag.replace("-", "_", 1) for tag in tags]
        for own in (tags, underscored):
            if scheme != "IO" or all(a[1] < b[0] or a[2] != b[2] for a, b in itertools.pairwise(found)):
                assert [list(span) for span in spans(own)] == found


@pytest.mark.parametrize("form", ["suffixes", "no types"])
def test_tags_are_rewritten_with_prefixes(form: str) -> None:
    """The entities are seqeval's, whatever the form."""
    case = GOLDEN["entities"][2]
    for row, found in zip(case["gold"], case["spans"], strict=True):
        tags = [tag[0] if form == "no types" or tag == "O" else f"{tag[2:]}-{tag[0]}" for tag in row]
        if set(tags) > {"O"}:
            assert metrics.need_prefixes(tags)
        kinds = [metrics.ENTITY if form == "no types" else kind for _, _, kind in found]
        assert list(spans([metrics.with_prefix(tag) for tag in tags])) == [
            (start, end, kind) for (start, end, _), kind in zip(found, kinds, strict=True)
        ]
    for tags in (["B-X", "O"], ["B_X", "S-Y"], ["O"], ["NN", "VB"], ["B", "X"], ["X-B", "Y"], ["S", "V"]):
        assert not metrics.need_prefixes(tags)


def test_tags_without_prefixes_are_words() -> None:
    """Not one entity of the whole text."""
    tags = ["NOUN", "NOUN", "O", "PER", "PER"]
    assert [(span.start, span.end, span.type) for span in spans(tags)] == [
        (0, 1, "NOUN"),
        (1, 2, "NOUN"),
        (3, 4, "PER"),
        (4, 5, "PER"),
    ]
    assert to_iob2(tags) == tags
    assert span_f1([["A", "B", "O"]], [["A", "A", "O"]])["f1"] == 0.5


@given(TAGS)
def test_iob2_has_the_same_entities(tags: list[str]) -> None:
    """Entities do not overlap, and converting tags to IOB2 keeps them."""
    found = spans(tags)
    assert spans(to_iob2(tags)) == found
    assert all(a.end <= b.start for a, b in itertools.pairwise(found))
    assert sum(span.end - span.start for span in found) == sum(tag != "O" for tag in tags)


@pytest.mark.parametrize("number", [0, 1], ids=["all answerable", "some unanswerable"])
def test_answers_equal_the_official_scorer(number: int) -> None:
    case = GOLDEN["answers"][number]
    expected, gold, guessed, odds = (case[key] for key in ("report", "gold", "guessed", "odds"))
    scores = squad(guessed, gold)
    # The scorer's threshold is 1.0, so it keeps all answers.
    assert scores["exact"] == pytest.approx(expected["exact"], abs=1e-9)
    assert scores["f1"] == pytest.approx(expected["f1"], abs=1e-9)
    for name in ("HasAns_exact", "HasAns_f1", "NoAns_exact", "NoAns_f1") if number else ():
        assert scores[name] == pytest.approx(expected[name], abs=1e-9)
    for metric in ("exact", "f1"):
        best, threshold = best_threshold(guessed, odds, gold, metric)
        assert best == pytest.approx(expected[f"best_{metric}"], abs=1e-9)
        assert threshold == pytest.approx(expected[f"best_{metric}_thresh"], abs=1e-9)
        final = {name: "" if odds[name] > threshold else answer for name, answer in guessed.items()}
        assert squad(final, gold)[metric] == pytest.approx(best, abs=1e-9)


def test_normalized_answers() -> None:
    for text, expected in GOLDEN["answers"][2]["normalized"].items():
        assert normalized(text) == expected


def test_threshold_if_no_answer_is_correct() -> None:
    score, threshold = best_threshold({"a": "x", "b": "y"}, {"a": 0.5, "b": 1.0}, {"a": [], "b": []})
    assert (score, threshold) == (100.0, -0.5)


def test_metrics_of_classes_and_numbers() -> None:
    """Equal their definitions; 0 where they are undefined."""
    predicted, gold = np.array([1, 0, 1, 1, 0, 1]), np.array([1, 0, 0, 1, 1, 1])
    tp, fp, fn, tn = 3, 1, 1, 1
    assert metrics.accuracy(predicted, gold) == pytest.approx(4 / 6)
    assert metrics.f1(predicted, gold) == pytest.approx(2 * tp / (2 * tp + fp + fn))
    root = ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)) ** 0.5
    assert metrics.matthews(predicted, gold) == pytest.approx((tp * tn - fp * fn) / root)
    assert metrics.macro_f1(predicted, gold) == pytest.approx((0.75 + 0.5) / 2)
    constant = np.ones(6, int)
    assert metrics.matthews(constant, gold) == 0.0
    values = np.array([0.1, 2.0, 3.5, 3.0])
    assert metrics.pearson(values, values * 2 + 1) == pytest.approx(1)
    assert metrics.spearman(np.exp(values), values) == pytest.approx(1)
    assert metrics.pearson(np.ones(4), values) == metrics.spearman(values, np.ones(4)) == 0.0
