"""Explain predictions: how much each word of a text contributes to its class, a masked word, an entity or an answer."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from albert_jax.config import InputError, check_choice
from albert_jax.data.tokenizer import MASK, SPACE, Tokenizer, between_masks, fit
from albert_jax.finetuning import question_answering, token_classification
from albert_jax.finetuning.classification import SCORE
from albert_jax.finetuning.family import Split
from albert_jax.finetuning.metrics import split_tag
from albert_jax.finetuning.windows import Context, locate, tokenize, window_row
from albert_jax.inference import finetuned, pretrained
from albert_jax.inference.attribution import Target, attribute
from albert_jax.inference.pretrained import Loaded
from albert_jax.model.heads import Albert


class Part(NamedTuple):
    """A piece or a word of a text, and its contribution."""

    text: str
    """As spelled in the vocabulary, or in the text."""
    segment: int
    """0: of the first text, 1: of the second."""
    start: int
    end: int
    """Its characters [start, end) in that text."""
    contribution: float


@dataclass(frozen=True)
class Explanation:
    """The contributions of the parts of a text to one prediction."""

    target: str
    """What is predicted, such as the class."""
    method: str
    texts: tuple[str, ...]
    """The text, or both texts of a pair."""
    pieces: tuple[Part, ...]
    words: tuple[Part, ...]
    """The same contributions, summed over the pieces of each word."""
    logit: float
    """log(p / (1 - p)) of the probability p of the target.  For a regression, the score."""
    baseline_logit: float
    """The same for the text with [MASK] in place of every piece."""
    steps: int
    """Number of gradients that were computed."""

    def record(self) -> dict[str, Any]:
        """A dict for JSON."""
        values = {name: value for name, value in vars(self).items() if name != "texts"}
        return values | {name: [part._asdict() for part in getattr(self, name)] for name in ("pieces", "words")}

    def _repr_html_(self) -> str:
        from albert_jax.inference.highlight import html_fragment

        return html_fragment(self)


class _Prediction(NamedTuple):
    """A prediction that is to be explained."""

    name: str
    contexts: tuple[Context, ...]
    """The tokens of the text, or of both texts of a pair, without [CLS] and [SEP]."""
    targets: list[Target]
    """The logits."""
    token_inputs: Mapping[str, np.ndarray] = MappingProxyType({})
    """Inputs of the heads for each token, [S]."""
    head_inputs: Mapping[str, np.ndarray] = MappingProxyType({})
    """Other inputs of the heads, [1, ...]."""


def explain(
    model: Albert,
    params: Any,
    tokenizer: Tokenizer,
    text: str,
    text_pair: str | None = None,
    *,
    task: str,
    target: str | None = None,
    method: str = "integrated-gradients",
) -> list[Explanation]:
    """Explain the prediction of a task for a text or a pair of texts.

    Args:
      model, params, tokenizer: as returned by `albert_jax.load`.
      text, text_pair: for the task `answer`, the question and its context.
      task: classify, sentence-order, fill-mask, entities or answer.
      target: the class, or the piece for all masks; by default the most probable one.  Entities and answers have none.
      method: integrated-gradients or gradient-x-input.

    Returns:
      One explanation for the class (several if a text can have several), one for each [MASK], for each entity, or for the best answer.

    Raises:
      InputError: as the functions that predict; an unknown task, method or target.
    """
    check_choice("task", task, PREDICTIONS)
    inputs = (text,) if text_pair is None else (text, text_pair)
    explanations = []
    for name, contexts, targets, token_inputs, head_inputs in PREDICTIONS[task](
        (model, params, tokenizer), inputs, target
    ):
        row = tokenizer.join(*(context.ids for context in contexts)) | dict(token_inputs)
        attribution = attribute(model, params, tokenizer, row, targets, method, head_inputs)
        pieces, words = _parts(tokenizer, contexts, attribution.contributions.tolist())
        logits = attribution.value, attribution.baseline_value
        explanations.append(Explanation(name, method, inputs, pieces, words, *logits, attribution.steps))
    return explanations


def _parts(
    tokenizer: Tokenizer, contexts: Sequence[Context], contributions: list[float]
) -> tuple[tuple[Part, ...], tuple[Part, ...]]:
    """The pieces and the words of an input.

    A word begins at a piece that starts a word, and after a space.  A piece that is only a space belongs to the word after it.
    """
    at = 1  # after [CLS]
    pieces: list[Part] = []
    words: list[Part] = []
    for segment, context in enumerate(contexts):
        first = len(words)
        for i, piece, (start, end) in zip(
            context.ids.tolist(), tokenizer.pieces(context.ids), context.ranges.tolist(), strict=True
        ):
            value = contributions[at]
            pieces.append(Part(piece, segment, start, end, value))
            at += 1
            last = words[-1] if len(words) > first else None
            if last is None or (last.end > last.start and (tokenizer.starts_word[i] or start > last.end)):
                words.append(Part(context.text[start:end], segment, start, end, value))
            else:
                start, end = min(last.start, start) if last.end > last.start else start, max(last.end, end)
                words[-1] = Part(context.text[start:end], segment, start, end, last.contribution + value)
        at += 1  # [SEP]
    return tuple(pieces), tuple(words)


def _class(loaded: Loaded, texts: tuple[str, ...], target: str | None) -> Iterator[_Prediction]:
    """The class of a text; the labels of a text that can have several, or the most probable one; the score of a regression."""
    model, _, tokenizer = loaded
    answer = finetuned.classify(*loaded, texts[0], texts[1:] or None)[0]
    probabilities = answer.get("probabilities", {SCORE: 1.0})
    names = answer.get("labels") or (max(probabilities, key=lambda name: probabilities[name]),)
    is_raw = model.multi_label or len(model.labels) == 1
    contexts = task_contexts(model, tokenizer, texts, "classify")
    yield from _classes(contexts, tuple(probabilities), names if target is None else (target,), "logits", is_raw)


def _order(loaded: Loaded, texts: tuple[str, ...], target: str | None) -> Iterator[_Prediction]:
    contexts = task_contexts(loaded[0], loaded[2], texts, "sentence-order")
    classes = pretrained.sentence_order(*loaded, [(texts[0], texts[1])])[0]
    # `predict` prints a class with spaces.
    name = max(classes, key=lambda name: classes[name]) if target is None else target.replace(" ", "_")
    yield from _classes(contexts, tuple(classes), (name,), "sop_logits", False)


def _classes(
    contexts: tuple[Context, ...], labels: tuple[str, ...], names: Sequence[str], output: str, is_raw: bool
) -> Iterator[_Prediction]:
    for name in names:
        check_choice("target", name, labels)
        classes = np.array([[label == name for label in labels]])
        yield _Prediction(name, contexts, [Target(output, classes, is_raw=is_raw)])


def _masks(loaded: Loaded, texts: tuple[str, ...], target: str | None) -> Iterator[_Prediction]:
    """The most probable piece, or `target`, at each [MASK]."""
    model, _, tokenizer = loaded
    predicted = pretrained.fill_mask(*loaded, texts[0], top_k=1)[0]
    contexts = task_contexts(model, tokenizer, texts[:1], "fill-mask")
    pieces = tokenizer.pieces(range(tokenizer.vocab_size))
    spellings = () if target is None else (f"{SPACE}{target}", target)
    wanted = next((pieces.index(piece) for piece in spellings if piece in pieces), None)
    if target is not None and wanted is None:
        raise InputError(f"target: {target!r} is not a piece of the vocabulary; choose a word that is one piece")
    positions = np.flatnonzero(contexts[0].ids == tokenizer.mask_id).tolist()
    names = pretrained.mask_names(len(predicted))
    for name, position, (best,) in zip(names, positions, predicted, strict=True):
        i = best["id"] if wanted is None else wanted
        targets = [Target("prediction_logits", np.arange(tokenizer.vocab_size)[None] == i)]
        head_inputs = {"masked_lm_positions": np.array([[position + 1]])}
        yield _Prediction(f"{name}: {pieces[i].lstrip(SPACE) or SPACE}", contexts, targets, head_inputs=head_inputs)


def _entities(loaded: Loaded, texts: tuple[str, ...], target: str | None) -> Iterator[_Prediction]:
    """Each entity: the type of its words.  An entity that is divided into two inputs is explained by the first."""
    model, params, tokenizer = loaded
    entities = finetuned.entities(model, params, tokenizer, texts[0])[0]
    (words,), examples, config = finetuned.find_words(model, texts[:1])
    rows = token_classification.TokenClassification().rows(Split("", examples, model.labels), tokenizer, config)
    types = [split_tag(tag)[1] for tag in finetuned.entity_tags(model, model.labels)]
    for part in rows.items:
        part_words, words = words[: len(part.starts)], words[len(part.starts) :]
        sizes = np.diff([*part.starts, len(part.ids)]).tolist()
        ranges = [
            (start + word.start(), end + word.start())
            for word, size in zip(part_words, sizes, strict=True)
            for start, end in (tokenizer.encode_with_offsets(word.group())[1] or [(0, len(word.group()))])[:size]
        ]
        context = Context(texts[0], part.ids, np.array(ranges))
        for entity in entities:
            inside = [entity["start"] <= word.start() < entity["end"] for word in part_words]
            if part_words[0].start() <= entity["start"] <= part_words[-1].start():
                positions = part.starts[np.array(inside)] + 1
                classes = np.tile([kind == entity["type"] for kind in types], (len(positions), 1))
                targets = [Target("logits", classes, positions)]
                yield _Prediction(f"{entity['type']}: {entity['text']}", (context,), targets)


def _answer(loaded: Loaded, texts: tuple[str, ...], target: str | None) -> Iterator[_Prediction]:
    """The best answer: its first and its last token, among all tokens of the input."""
    if len(texts) != 2:
        raise InputError(f"answer takes a question and its context, got {len(texts)} text")
    model, params, tokenizer = loaded
    answers = finetuned.answer(model, params, tokenizer, *texts, n_best=1)[0]["answers"]
    if not answers:
        return
    example = question_answering.Example("", texts[0], texts[1], (), False)
    task, config = question_answering.QuestionAnswering(unanswerable=True), finetuned.answer_config(model)
    rows = task.rows(Split("", [example]), tokenizer, config)
    span = locate(rows.items[0].context, answers[0]["text"], answers[0]["start"])
    assert span is not None, "an answer consists of tokens of its context"
    # As in the search: the window that has most context around the start.
    window = next(
        one for one in rows.items if one.start <= span[0] < one.start + one.size and one.best[span[0] - one.start]
    )
    row = window_row(tokenizer, window)
    question = _cut(tokenize(tokenizer, texts[0]), 0, len(window.question))
    context = _cut(window.context, window.start, window.start + window.size)
    start, end = (at - window.start + len(window.question) + 2 for at in span)
    positions = np.arange(len(row["input_ids"]))[None]
    targets = [Target("start_logits", positions == start), Target("end_logits", positions == end)]
    head_inputs = {"start_positions": np.array([start])}
    token_inputs = {"answer_mask": row["answer_mask"]}
    yield _Prediction(answers[0]["text"], (question, context), targets, token_inputs, head_inputs)


PREDICTIONS: dict[str, Callable[[Loaded, tuple[str, ...], str | None], Iterator[_Prediction]]] = {
    "classify": _class,
    "sentence-order": _order,
    "fill-mask": _masks,
    "entities": _entities,
    "answer": _answer,
}
"""Task of `predict` -> function (loaded, texts, target) -> what is explained."""


def task_contexts(model: Albert, tokenizer: Tokenizer, texts: tuple[str, ...], task: str) -> tuple[Context, ...]:
    """The tokens of a text, or of both texts of a pair, as `predict` reads them for fill-mask, sentence-order or classify.

    In a text to classify, [MASK] is text, as in fine-tuning.
    """
    if task == "sentence-order" and len(texts) != 2:
        raise InputError(f"sentence-order takes two texts, got {len(texts)}")
    contexts = [(tokenize if task == "classify" else _with_masks)(tokenizer, text) for text in texts]
    first, *second = (len(context.ids) for context in contexts)
    sizes = fit(first, sum(second), model.config.max_position_embeddings - len(texts) - 1)
    return tuple(_cut(context, 0, size) for context, size in zip(contexts, sizes, strict=False))


def _cut(context: Context, start: int, end: int) -> Context:
    """The tokens [start, end) of a context."""
    return Context(context.text, context.ids[start:end], context.ranges[start:end])


def _with_masks(tokenizer: Tokenizer, text: str) -> Context:
    """Tokenize a text in which [MASK] is the mask token, as `Tokenizer.__call__` does."""
    ids: list[int] = []
    ranges: list[tuple[int, int]] = []
    for place, part in between_masks(text):
        if place:
            ids.append(tokenizer.mask_id)
            ranges.append((place - len(MASK), place))
        part_ids, part_ranges = tokenizer.encode_with_offsets(part)
        ids += part_ids
        ranges += [(place + start, place + end) for start, end in part_ranges]
    return Context(text, np.array(ids, np.int32), np.array(ranges, np.int32).reshape(-1, 2))
