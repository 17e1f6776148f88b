"""Explanations: the integral against closed forms and finite differences, the words they find, and how they are shown.

Docstrings name the deliberate breaks that were tried and made the test fail.
"""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from scipy.stats import spearmanr

from albert_jax.cli import main
from albert_jax.data import tokenizer_files
from albert_jax.exchange import huggingface
from albert_jax.exchange.weights import Weights
from albert_jax.inference import attribution, finetuned, highlight, pretrained
from albert_jax.inference.attribution import CHUNK, METHODS, Target, attribute, integrated_gradients
from albert_jax.inference.explanation import Explanation, Part, explain
from albert_jax.model.heads import init_params

from .conftest import assert_input_error, refused
from .small_models import Loaded, random_model

MODELS: dict[str, Loaded] = {
    "classify": random_model(("pooler", "classifier"), ("bad", "good", "so so")),
    "fill-mask": random_model(),
    "sentence-order": random_model(),
    "entities": random_model(("token_classifier",), ("O", "B-X", "I-X", "B-Y", "I-Y")),
    "answer": random_model(("qa_outputs",)),
    "answer class": random_model(("answer_class",)),
}
INPUTS: dict[str, tuple[str, ...]] = {
    "classify": ("The Text, in 2010.", "Émile  wrote “random” lines"),
    "fill-mask": ("the [MASK] text has  [MASK] lines",),
    "sentence-order": ("The text is wrapped.", "It has lines."),
    "entities": ("The Text, in 2010, Émile wrote.",),
    "answer": ("what is it?", "The Text has lines, " * 12),
}


def softer(loaded: Loaded) -> Loaded:
    """The model with small parameters: their sum of finite differences converges with few points."""
    return loaded[0], jax.tree.map(lambda leaf: leaf * 0.5, loaded[1]), loaded[2]


def quadratic(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x0**2 + 3 x1**3 + 2 x0 x2 of points [N, 3, 1], and its gradients."""
    a, b, c = (x[:, i, 0].astype(np.float64) for i in range(3))
    return a**2 + 3 * b**3 + 2 * a * c, np.stack([2 * a + 2 * c, 9 * b**2, 2 * a], axis=1)[..., None]


def test_integral_has_its_closed_form() -> None:
    """From 0, x0**2 gives itself to x0, 3 x1**3 to x1, and 2 x0 x2 half to each.  Fails with the gradient at the end alone."""
    x = np.array([[2.0], [-1.5], [0.5]])
    integral = integrated_gradients(quadratic, x, np.zeros_like(x))
    np.testing.assert_allclose(integral.contributions, [2.0**2 + 2.0 * 0.5, 3 * -(1.5**3), 2.0 * 0.5], rtol=1e-6)
    assert (integral.value, integral.baseline_value, integral.steps) == (pytest.approx(4 - 10.125 + 2), 0, CHUNK)
    points = []

    def counted(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        points.append(len(x))
        return quadratic(x)

    linear = attribution.gradient_x_input(counted, x, np.zeros_like(x))
    assert points == [2]  # the input and the baseline, since it is the fast method
    assert (linear.value, linear.baseline_value, linear.steps) == (pytest.approx(4 - 10.125 + 2), 0, 1)
    np.testing.assert_allclose(linear.contributions, [2 * (2 * 2 + 2 * 0.5), -1.5 * 9 * 1.5**2, 0.5 * 4], rtol=1e-6)


def test_steps_double_until_contributions_sum_to_the_difference(caplog: pytest.LogCaptureFixture) -> None:
    """A steep function needs more points; a jump that its gradient does not show never converges, and is reported."""
    x = np.ones((1, 1))

    def steep(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        y = 300 * (points.astype(np.float64) - 0.4142)
        return np.tanh(y[:, 0, 0]), 300 / np.cosh(y) ** 2

    integral = integrated_gradients(steep, x, np.zeros((1, 1)))
    assert CHUNK < integral.steps < attribution.MAX_STEPS
    np.testing.assert_allclose(integral.contributions, [2.0], rtol=0.01)
    assert not caplog.records
    jump = integrated_gradients(lambda p: ((p[:, 0, 0] > 0.5).astype(float), 0 * p), x, np.zeros((1, 1)))
    assert jump.steps == attribution.MAX_STEPS
    assert (
        "contributions sum to 0.0000 instead of the difference of the logits, 1.0000, after 1024 steps" in caplog.text
    )


@pytest.mark.parametrize("task", INPUTS)
def test_contributions_are_those_of_finite_differences(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each token is moved alone at each point of the line: no gradients, and midpoints instead of Gauss-Legendre.

    Fails if the gradient is that of a different row, a target is at a different position, or [CLS] has a baseline.
    """
    seen: list[Any] = []

    def record(gradients: Callable[..., Any], x: np.ndarray, baseline: np.ndarray) -> Any:
        seen.append((gradients, x, baseline))
        return integrated_gradients(gradients, x, baseline)

    monkeypatch.setitem(METHODS, "integrated-gradients", record)
    loaded = softer(MODELS[task])
    texts = ("what is it?", "The Text has lines.") if task == "answer" else INPUTS[task]
    explanation = explain(*loaded, *texts, task=task)[0]
    gradients, x, baseline = seen[0]
    size, points, h = len(explanation.pieces) + 1 + len(texts), 16, 0.02
    contributions = np.zeros(size)
    for at in (np.arange(points) + 0.5) / points:
        middle = baseline + at * (x - baseline)
        for first in range(0, size, CHUNK // 2):
            moved = np.stack([middle] * CHUNK)
            for number, token in enumerate(range(first, min(first + CHUNK // 2, size))):
                moved[2 * number, token] += h * (x - baseline)[token]
                moved[2 * number + 1, token] -= h * (x - baseline)[token]
            values = gradients(moved.astype(np.float32))[0].reshape(-1, 2)
            differences = (values[:, 0] - values[:, 1]) / (2 * h) / points
            contributions[first : first + CHUNK // 2] += differences[: size - first]
    is_piece = ~np.isin(np.arange(size), [0, len(_first(explanation)) + 1, size - 1])  # [CLS], [SEP], [SEP]
    assert np.all(contributions[~is_piece] == 0)
    scale = np.abs(contributions).max()
    np.testing.assert_allclose([p.contribution for p in explanation.pieces], contributions[is_piece], atol=0.01 * scale)


def _first(explanation: Explanation) -> list[Part]:
    """The pieces of the first text."""
    return [piece for piece in explanation.pieces if piece.segment == 0]


def logits_of(loaded: Loaded, *texts: str, **inputs: Any) -> dict[str, np.ndarray]:
    model, params, tokenizer = loaded
    apply: Any = model.apply
    return jax.device_get(apply({"params": params}, **tokenizer(*texts), **inputs))


def log_odds(logits: np.ndarray, classes: list[int]) -> float:
    p = float(np.asarray(jax.nn.softmax(logits.astype(np.float64)))[classes].sum())
    return float(np.log(p / (1 - p)))


@pytest.mark.parametrize("task", [*INPUTS, "answer class"])
def test_contributions_sum_to_the_logit_difference(task: str) -> None:
    """Contributions sum to the difference within 1 %, words to their pieces; words are characters of the text, in order."""
    loaded = MODELS[task]
    kind = "answer" if task == "answer class" else task
    for e in explain(*loaded, *INPUTS[kind], task=kind):
        difference = e.logit - e.baseline_logit
        assert sum(piece.contribution for piece in e.pieces) == pytest.approx(difference, rel=0.01, abs=1e-5)
        assert sum(word.contribution for word in e.words) == pytest.approx(sum(p.contribution for p in e.pieces))
        for word in e.words:
            assert word.text == e.texts[word.segment][word.start : word.end]
        places = [(word.segment, word.start) for word in e.words]
        assert places == sorted(places)
        assert {piece.segment for piece in e.pieces} == set(range(len(e.texts)))
        json.dumps(e.record())


def test_logits_are_those_of_the_predictions() -> None:
    """Against the model's outputs for the text and for its baseline.  Fails if the logit is not that of the prediction."""
    loaded = MODELS["classify"]
    model, params, tokenizer = loaded
    texts = INPUTS["classify"]
    label = finetuned.classify(*loaded, texts[0], texts[1:])[0]["label"]
    explanation = explain(*loaded, *texts, task="classify")[0]
    assert explanation.target == label
    number = model.labels.index(label)
    logits = logits_of(loaded, *texts)["logits"][0]
    assert explanation.logit == pytest.approx(log_odds(logits, [number]), rel=1e-3)
    other = model.labels[number - 1]
    changed = explain(*loaded, *texts, task="classify", target=other)[0]
    assert changed.logit == pytest.approx(log_odds(logits, [(number - 1) % 3]), rel=1e-3)
    inputs = tokenizer(*texts)
    ids = inputs["input_ids"]
    inputs["input_ids"] = np.where(np.isin(ids, (tokenizer.cls_id, tokenizer.sep_id)), ids, tokenizer.mask_id)
    apply: Any = model.apply
    baseline = jax.device_get(apply({"params": params}, **inputs))["logits"][0]
    assert explanation.baseline_logit == pytest.approx(log_odds(baseline, [number]), rel=1e-3)

    loaded = MODELS["fill-mask"]
    text = INPUTS["fill-mask"][0]
    masks = pretrained.fill_mask(*loaded, text, top_k=1)[0]
    places = np.flatnonzero(loaded[2](text)["input_ids"][0] == loaded[2].mask_id)
    logits = logits_of(loaded, text)["prediction_logits"][0]
    explanations = explain(*loaded, text, task="fill-mask")
    for e, place, (best,) in zip(explanations, places, masks, strict=True):
        assert e.logit == pytest.approx(log_odds(logits[place], [best["id"]]), rel=1e-3)
        assert [word.contribution for word in e.words if word.text == "[MASK]"] == [0, 0]
    assert [e.target.partition(":")[0] for e in explanations] == ["[MASK] 1", "[MASK] 2"]
    wanted = explain(*loaded, text, task="fill-mask", target="list")[0]
    piece = loaded[2].encode("list")
    assert wanted.target == "[MASK] 1: list"
    assert wanted.logit == pytest.approx(log_odds(logits[places[0]], piece), rel=1e-3)


def test_entities_and_answers_are_those_of_predict() -> None:
    """One explanation per entity, whose logit is that of its type; the best answer with its window, by characters."""
    loaded = MODELS["entities"]
    text = INPUTS["entities"][0]
    entities = finetuned.entities(*loaded, text)[0]
    explanations = explain(*loaded, text, task="entities")
    assert [e.target for e in explanations] == [f"{e['type']}: {e['text']}" for e in entities]
    assert len(entities) > 1
    whole = " ".join(word * 30 for word in ("text ", "list "))  # more than one input
    assert [e.target for e in explain(*loaded, whole, task="entities", method="gradient-x-input")] == [
        f"{e['type']}: {e['text']}" for e in finetuned.entities(*loaded, whole)[0]
    ]
    for name in ("answer", "answer class"):
        loaded = MODELS[name]
        question, context = INPUTS["answer"]
        best = finetuned.answer(*loaded, question, context)[0]["answers"][0]
        e = explain(*loaded, question, context, task="answer", method="gradient-x-input")[0]
        assert e.target == best["text"]
        second = [piece for piece in e.pieces if piece.segment == 1]
        assert second[0].start <= best["start"] < best["end"] <= second[-1].end
        if name == "answer":
            part = context[second[0].start : second[-1].end]
            logits = logits_of(loaded, question, part)
            at = {
                key: len(_first(e)) + 2 + [getattr(p, key) for p in second].index(best[key]) for key in ("start", "end")
            }
            odds = [log_odds(logits[f"{key}_logits"][0], [at[key]]) for key in at]
            assert e.logit == pytest.approx(sum(odds), rel=1e-3)


def test_masks_and_long_pairs_are_read_as_by_predict() -> None:
    """Fails if [MASK] is text where `predict` reads a mask, or a mask in a text to classify; or a different text is truncated."""
    long = "the text has lines " * 30, "a list of lines " * 30
    for texts in (("a [MASK] text", "It has [MASK]."), long):
        for task, answers in (
            ("classify", finetuned.classify(*MODELS["classify"], texts[0], texts[1:])[0]["probabilities"]),
            ("sentence-order", pretrained.sentence_order(*MODELS["sentence-order"], [texts])[0]),
        ):
            e = explain(*MODELS[task], *texts, task=task, method="gradient-x-input")[0]
            assert e.logit == pytest.approx(np.log(answers[e.target] / (1 - answers[e.target])), rel=1e-3)


@pytest.mark.parametrize("labels", [("B", "I", "O"), ("O", "X-B", "X-I", "Y-B", "Y-I")])
def test_entities_of_rewritten_tags(labels: tuple[str, ...]) -> None:
    """Tags of other forms, which `entities` rewrites: the logit is that of all tags of the type."""
    loaded = random_model(("token_classifier",), labels)
    text = "lines in text of a list with some space"
    logits = logits_of(loaded, text)["logits"][0]
    starts = [0, *np.cumsum([len(loaded[2].encode(word)) for word in text.split()])]
    entities = finetuned.entities(*loaded, text)[0]
    assert entities
    for entity, e in zip(entities, explain(*loaded, text, task="entities", method="gradient-x-input"), strict=True):
        first, count = (len(text[: entity[key]].split()) for key in ("start", "end"))
        classes = [
            i for i, label in enumerate(labels) if label != "O" and (label in "BI" or label[0] == entity["type"])
        ]
        assert e.logit == pytest.approx(sum(log_odds(logits[at + 1], classes) for at in starts[first:count]), rel=1e-3)


def test_vocabulary_may_have_the_piece_none_and_equal_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a target the best piece is explained, by its id: a vocabulary with holes has several empty pieces."""
    loaded, text = MODELS["fill-mask"], "the [MASK] text"
    best = pretrained.fill_mask(*loaded, text, top_k=1)[0][0][0]["id"]
    spellings = {10: "▁None", 11: "", best: ""}
    monkeypatch.setattr(type(loaded[2]), "pieces", lambda self, ids: [spellings.get(int(i), f"▁{i}") for i in ids])
    place = int(np.flatnonzero(loaded[2](text)["input_ids"][0] == loaded[2].mask_id)[0])
    logits = logits_of(loaded, text)["prediction_logits"][0, place]
    for target, number in ((None, best), ("None", 10)):
        e = explain(*loaded, text, task="fill-mask", target=target, method="gradient-x-input")[0]
        assert e.logit == pytest.approx(log_odds(logits, [number]), rel=1e-3)


def test_several_labels_and_scores() -> None:
    """A label's logit is the classifier's; of a regression, the score; both as they are.  Without a label, the nearest one."""
    model, params, tokenizer = random_model(("pooler", "classifier"), ("a", "b", "c"))
    model, text = model.clone(multi_label=True), "The Text, in 2010."
    for shift, number in ((0, 2), (-100, 0)):
        classifier = params["classifier"] | {"bias": params["classifier"]["bias"] + shift}
        loaded = (model, params | {"classifier": classifier}, tokenizer)
        logits = logits_of(loaded, text)["logits"][0]
        labels = finetuned.classify(*loaded, text)[0]["labels"]
        assert len(labels) == number
        explanations = explain(*loaded, text, task="classify")
        assert [e.target for e in explanations] == (list(labels) or ["abc"[int(np.argmax(logits))]])
        for e in explanations:
            assert e.logit == pytest.approx(logits["abc".index(e.target)], rel=1e-4)
    score = random_model(("pooler", "classifier"), ("score",))
    assert explain(*score, text, task="classify")[0].logit == pytest.approx(
        finetuned.classify(*score, text)[0]["score"], rel=1e-4
    )


def test_explanation_is_independent_of_dtype_and_padding() -> None:
    """A model in bfloat16 is explained in float32."""
    model, params, tokenizer = MODELS["classify"]
    low = model.clone(config=replace(model.config, dtype="bfloat16", scan_unroll=2))
    text = "The Text, in 2010."
    label = model.labels[0]
    pieces = [explain(one, params, tokenizer, text, task="classify", target=label)[0].pieces for one in (model, low)]
    assert pieces[0] == pieces[1]


# The sanity check of Adebayo et al. (arXiv 1810.03292)


def decisive(draw: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Random pieces [rows, 8], at most one of which decides the label: piece 20 label 1, piece 21 label 2; labels."""
    ids = draw.integers(30, 60, (rows, 8))
    labels = draw.integers(0, 3, rows)
    ids[np.arange(rows), draw.integers(0, 8, rows)] = np.choose(labels, [ids[:, 0], 20, 21])
    return ids, labels


@pytest.fixture(scope="module")
def trained() -> Loaded:
    """A classifier of `decisive` rows; it also knows [MASK], as a pretrained model does."""
    model, _, tokenizer = random_model(("pooler", "classifier"), ("neither", "one", "two"))
    model = model.clone(config=replace(model.config, initializer_range=0.2))

    @jax.jit
    def step(params: Any, velocity: Any, inputs: Any, labels: Any) -> Any:
        def loss(params: Any) -> Any:
            apply: Any = model.apply
            log_probabilities = jax.nn.log_softmax(apply({"params": params}, **inputs)["logits"])
            return -log_probabilities[np.arange(len(labels)), labels].mean()

        value, gradients = jax.value_and_grad(loss)(params)
        velocity = jax.tree.map(lambda v, g: 0.9 * v + g, velocity, gradients)
        return jax.tree.map(lambda p, v: p - 0.02 * v, params, velocity), velocity, value

    params, draw = init_params(model, jax.random.key(0)), np.random.default_rng(1)
    velocity, value = jax.tree.map(np.zeros_like, params), np.inf
    for _ in range(300):
        ids, labels = decisive(draw, 64)
        ids = np.where((ids >= 30) & (draw.random(ids.shape) < draw.random((64, 1))), tokenizer.mask_id, ids)
        ids = np.pad(ids, ((0, 0), (1, 1)), constant_values=((0, 0), (tokenizer.cls_id, tokenizer.sep_id)))
        params, velocity, value = step(params, velocity, {"input_ids": ids}, labels)
        if value < 0.01:
            break
    assert value < 0.05, "the classifier did not learn its task"
    return model, params, tokenizer


def contributions_to_labels(loaded: Loaded, method: str) -> tuple[np.ndarray, np.ndarray]:
    """The contributions [rows, 8] of pieces to the labels 1 and 2 of new rows, and which piece decides, as a number [rows]."""
    model, params, tokenizer = loaded
    rows, labels = decisive(np.random.default_rng(2), 40)
    rows, labels = rows[labels > 0], labels[labels > 0]
    contributions = []
    for ids, label in zip(rows, labels, strict=True):
        target = Target("logits", np.arange(3)[None] == label)
        contributions.append(
            attribute(model, params, tokenizer, tokenizer.join(ids), [target], method).contributions[1:-1]
        )
    return np.stack(contributions), np.isin(rows, (20, 21)).argmax(axis=1)


@pytest.mark.parametrize("method", METHODS)
def test_explanations_depend_on_the_parameters(trained: Loaded, method: str) -> None:
    """After randomization of all parameters, or of all but the embeddings, pieces have other ranks.

    In the trained network, integrated gradients find the deciding piece.  Gradient x input does not always: the logit is flat
    where the network is certain.
    """
    model, params, tokenizer = trained
    fresh = init_params(model, jax.random.key(1))
    wanted, places = contributions_to_labels(trained, method)
    if method == "integrated-gradients":
        assert (wanted.argmax(axis=1) == places).mean() >= 0.9
    for random_params in (fresh, fresh | {"embeddings": params["embeddings"]}):
        contributions, _ = contributions_to_labels((model, random_params, tokenizer), method)
        assert (contributions.argmax(axis=1) == places).mean() <= 0.5
        ranks = [spearmanr(np.abs(a), np.abs(b)).statistic for a, b in zip(contributions, wanted, strict=True)]
        assert abs(np.mean(ranks)) < 0.5


# How explanations are shown


def example(text: str = "a <b> & cost $5") -> Explanation:
    values = {"a": -0.5, "<b>": 2.0, "&": 0.01, "cost": 0.0, "$5": 1.0}
    words = []
    for word, value in values.items():
        start = text.index(word)
        words.append(Part(word, 0, start, start + len(word), value))
    return Explanation("yes & <no>", "integrated-gradients", (text,), tuple(words), tuple(words), 2.0, -0.51, 32)


def test_terminal() -> None:
    plain = highlight.terminal_lines(example(), color=False)
    assert plain == [
        "  yes & <no>: logit 2.000, with all pieces masked -0.510 (integrated-gradients, 32 steps)",
        *("     +2.000  <b>", "     +1.000  $5", "     -0.500  a", "     +0.010  &"),
    ]
    title, colored, *rest = highlight.terminal_lines(example(), color=True)
    assert [title, *rest] == plain
    assert re.sub(r"\x1b\[[0-9;]*m", "", colored) == "  a <b> & cost $5"
    assert "\x1b[48;5;69m\x1b[38;5;16m<b>\x1b[0m & cost \x1b[48;5;111m" in colored
    assert "\x1b[48;5;223m\x1b[38;5;16ma\x1b[0m" in colored


def test_color_only_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    for is_terminal in (True, False):
        monkeypatch.setattr("sys.stdout.isatty", lambda is_terminal=is_terminal: is_terminal)
        assert highlight.use_color() == is_terminal
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("NO_COLOR", "1")
    assert not highlight.use_color()


class Page(HTMLParser):
    """The texts of a page, its tags, and its links."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.feed(page)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]


def test_page_is_self_contained_and_escapes() -> None:
    page = Page(highlight.html_page([example(), example()], "A <title>"))
    assert {"script", "link", "img", "b>"}.isdisjoint(page.tags)
    assert {"src", "href"}.isdisjoint(page.attributes)
    assert page.tags.count("b") == 2  # the targets; none from the text
    assert "a <b> & cost $5" in "".join(page.texts)
    assert "yes & <no>" in page.texts
    assert example()._repr_html_() in highlight.html_page([example()], "t")


def test_bars() -> None:
    axes = highlight.draw_explanation(example()).axes[0]
    bars: list[Any] = list(axes.patches)
    assert [bar.get_width() for bar in bars] == [-0.5, 2.0, 0.01, 1.0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "<b>", "&", r"\$5"]
    assert axes.yaxis_inverted()  # in the order of the text


# The command line


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Hugging Face folders of some models."""
    folders = {}
    for name in ("classify", "fill-mask", "answer"):
        model, params, tokenizer = MODELS[name]
        folder = tmp_path_factory.mktemp("model")
        huggingface.write(Weights(model, params), folder)
        tokenizer_files.write(tokenizer, 80, folder)
        folders[name] = str(folder)
    return folders


def test_predict_explains(folders: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    words = ["predict", folders["classify"], "the text", "The Text, in 2010.", "--explain"]
    assert main([*words, "--json"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for record in records:
        (one,) = record["explanations"]
        assert one["target"] == record["label"]
        wanted = explain(*MODELS["classify"], record["text"], task="classify")[0].record()
        assert [w["text"] for w in one["words"]] == [w["text"] for w in wanted["words"]]
        assert [w["contribution"] for w in one["words"]] == pytest.approx(
            [w["contribution"] for w in wanted["words"]], rel=1e-3, abs=1e-4
        )
    assert main([*words, "--html", str(page), "--explain-by", "gradient-x-input", "--target", "bad"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("\n  bad: logit ") == 2
    assert "gradient-x-input)" in shown
    assert "\x1b" not in shown
    assert page.read_text().count("<div>") == 2
    assert main(["predict", folders["answer"], *INPUTS["answer"], "--explain", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["explanations"][0]["target"] == record["answers"][0]["text"]
    words = ["predict", folders["answer"], *INPUTS["answer"], "--explain", "--null-threshold", "-1000000"]
    assert main(words) == 0
    assert capsys.readouterr().out.splitlines()[1].strip() == "no answer"
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["explanations"] == []
    pair = ["predict", folders["fill-mask"], "--task", "sentence-order", *INPUTS["sentence-order"], "--explain"]
    for name in ("in order", "in_order"):  # as printed, and as in JSON
        assert main([*pair, "--explain-by", "gradient-x-input", "--target", name]) == 0
        assert "  in_order: logit" in capsys.readouterr().out


def test_what_cannot_be_explained(folders: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    classes = ["predict", folders["classify"], "a text"]
    pretrained_model = ["predict", folders["fill-mask"], "a [MASK]"]
    for words, message in (
        (
            [*classes, "--explain-by", "magic"],
            "--explain-by: unknown value 'magic'; choose one of integrated-gradients",
        ),
        ([*classes, "--target", "good"], "--target is for explanations; add --explain"),
        ([*classes, "--html", "x.html"], "--html is for explanations; add --explain"),
        ([*classes, "--explain", "--html", str(tmp_path)], "is a folder; name a file in it"),
        ([*classes, "--explain", "--html", str(tmp_path / "no" / "x")], "create it first"),
        ([*classes, "--explain", "--target", "nice"], "target: unknown value 'nice'; choose one of bad, good, so so"),
        ([*classes, "--explain", "--early-exit", "layers=1"], "leave out --early-exit"),
        ([*pretrained_model, "--explain", "--target", "unheard"], "target: 'unheard' is not a piece of the vocabulary"),
        ([*pretrained_model, "--task", "embed", "--explain"], "--explain is for the tasks classify, sentence-order"),
        (["predict", folders["answer"], "a", "b", "--explain", "--target", "x"], "not for the task answer"),
        (["predict", folders["answer"], "a", "b", "--passes"], "--passes is for the tasks fill-mask, classify"),
    ):
        assert message in refused(words, capsys)
    assert_input_error(lambda: explain(*MODELS["classify"], "a", task="embed"), "task: unknown value 'embed'")
    assert_input_error(lambda: explain(*MODELS["answer"], "a", task="answer"), "a question and its context")
    assert_input_error(lambda: explain(*MODELS["fill-mask"], "a", task="sentence-order"), "two texts, got 1")
