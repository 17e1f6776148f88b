"""Predictions of a fine-tuned model: classes, entities, answers and choices.

Every function takes `model, params, tokenizer` as `albert_jax.load` returns them.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax

from albert_jax.config import InputError
from albert_jax.data.batches import Rows
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.finetuning import (
    classification,
    family,
    multi_label,
    multiple_choice,
    question_answering,
    token_classification,
)
from albert_jax.finetuning.family import Split
from albert_jax.finetuning.files import TaskDataConfig
from albert_jax.finetuning.metrics import need_prefixes, spans, with_prefix
from albert_jax.inference.early_exit import EarlyExit, check_model, classify_early
from albert_jax.inference.pretrained import BATCH_SIZE, as_list, check_head
from albert_jax.model.heads import Albert

WINDOW = 384
"""Tokens in a window that is searched for answers (google-research/albert README), if the model takes as many."""


def classify(
    model: Albert,
    params: Any,
    tokenizer: Tokenizer,
    texts: str | Sequence[str],
    text_pairs: Sequence[str] | None = None,
    early_exit: EarlyExit | None = None,
) -> list[dict[str, Any]]:
    """Classify each text or pair of texts.

    Args:
      model, params, tokenizer, texts, text_pairs: what classifies what.
      early_exit: run only as many layers as each text needs.

    Returns:
      For each, its `label`, the `probability` of that label and the `probabilities` of all; if a text can have several labels, its
      `labels` and the `probabilities`; for a regression its `score`.  With `early_exit`, also `layers`, the number of layers that ran.

    Raises:
      InputError: the model has no classifier of texts; early exit with a regression or with `layer_weights`.
    """
    check_head(model, "classifier")
    texts = as_list(texts)
    pairs: Sequence[str | None] = [None] * len(texts) if text_pairs is None else text_pairs
    if len(texts) != len(pairs):
        raise InputError(f"{len(texts)} texts and {len(pairs)} text pairs")
    task = (
        multi_label.MultiLabel()
        if model.multi_label
        else classification.Classification(regression=len(model.labels) == 1)
    )
    config = task.data_config(task="text", max_seq_length=model.config.max_position_embeddings)
    examples = [classification.Example("", text, pair, None) for text, pair in zip(texts, pairs, strict=True)]
    if early_exit is None:
        _, _, outputs = _evaluate(model, params, tokenizer, task, config, examples)
    else:
        outputs = _exiting(model, params, task.rows(Split("", examples, model.labels), tokenizer, config), early_exit)
    if task.regression:
        return [{"score": float(row["score"])} for row in outputs]
    answers = []
    for row in outputs:
        probabilities = dict(zip(model.labels, row["probabilities"].tolist(), strict=True))
        if model.multi_label:
            answers.append(
                {"labels": multi_label.chosen(row["probabilities"], model.labels), "probabilities": probabilities}
            )
            continue
        label = max(probabilities, key=lambda name: probabilities[name])
        answer = {"label": label, "probability": probabilities[label], "probabilities": probabilities}
        answers.append(answer | ({"layers": int(row["layers"])} if "layers" in row else {}))
    return answers


def _exiting(model: Albert, params: Any, rows: Rows, early_exit: EarlyExit) -> family.RowOutputs:
    check_model(model)

    def step(params: Any, batch: Any) -> dict[str, Any]:
        return dict(zip(("probabilities", "layers"), classify_early(model, params, batch, early_exit), strict=True))

    batch_size = max(1, min(BATCH_SIZE, len(rows)))
    return family.infer(step, params, rows, batch_size, model.config.max_position_embeddings)


def entities(
    model: Albert, params: Any, tokenizer: Tokenizer, texts: str | Sequence[str]
) -> list[list[dict[str, Any]]]:
    """Find the entities in each text; or the tag of each word, if the model's tags have no prefixes such as B-.

    Words are those of `token_classification.WORDS`.  Long texts are processed in parts.

    Returns:
      For each text, the entities: `type`, `text`, `start` and `end` in characters, and `probability`, the lowest of its words.
      The tag O is left out.

    Raises:
      InputError: the model has no classifier of tokens.
    """
    check_head(model, "token_classifier")
    texts = as_list(texts)
    words, examples, config = find_words(model, texts)
    task = token_classification.TokenClassification()
    tagged = task.tags(*_evaluate(model, params, tokenizer, task, config, examples))
    answers = []
    for text, matches, (tags, probabilities) in zip(texts, words, tagged, strict=True):
        found = []
        for first, end, kind in spans(entity_tags(model, tags)):
            start, stop = matches[first].start(), matches[end - 1].end()
            entity = {"type": kind, "text": text[start:stop], "start": start, "end": stop}
            found.append(entity | {"probability": min(probabilities[first:end])})
        answers.append(found)
    return answers


def find_words(
    model: Albert, texts: Sequence[str]
) -> tuple[
    list[list[re.Match[str]]],
    list[token_classification.Example],
    token_classification.TokenClassificationData,
]:
    """The words of each text, as matches and as an example, and how `entities` reads them."""
    words = [list(token_classification.WORDS.finditer(text)) for text in texts]
    examples = [token_classification.Example("", tuple(word.group() for word in matches), None) for matches in words]
    length = model.config.max_position_embeddings
    return words, examples, token_classification.TokenClassificationData(task="ner", max_seq_length=length)


def entity_tags(model: Albert, tags: Sequence[str]) -> Sequence[str]:
    """Tags of a model with prefixes: B as B-entity and PER-B as B-PER, if its labels are of such a form."""
    return [with_prefix(tag) for tag in tags] if need_prefixes(model.labels) else tags


def answer(
    model: Albert,
    params: Any,
    tokenizer: Tokenizer,
    questions: str | Sequence[str],
    contexts: str | Sequence[str],
    *,
    n_best: int = 5,
    max_answer_length: int = 30,
) -> list[dict[str, Any]]:
    """Answer each question from its context.

    Returns:
      For each question: `answers`, at most `n_best`, the best first, each with `text`, `start` and `end` in characters of
      the context, `score`, and `probability` among these answers; and `null_odds`, the log odds that there is no answer.

    Raises:
      InputError: the model has no head for answers.
    """
    check_head(model, "qa_outputs", "answer_class")
    if n_best < 1:
        raise InputError(f"n_best must be at least 1, got {n_best}")
    questions, contexts = as_list(questions), as_list(contexts)
    if len(questions) != len(contexts):
        raise InputError(f"{len(questions)} questions and {len(contexts)} contexts")
    config = answer_config(model, max_answer_length)
    examples = [
        question_answering.Example(str(number), question, context, (), False)
        for number, (question, context) in enumerate(zip(questions, contexts, strict=True))
    ]
    task = question_answering.QuestionAnswering(unanswerable=True)
    _, rows, outputs = _evaluate(model, params, tokenizer, task, config, examples)
    candidates, null_odds = task.answers(len(examples), rows, outputs)
    results = []
    for found, odds in zip(candidates, null_odds, strict=True):
        best = found[:n_best]
        total = sum(one["probability"] for one in best)
        best = [one | {"probability": one["probability"] / total} for one in best]
        results.append({"answers": best, "null_odds": odds})
    return results


def answer_config(model: Albert, max_answer_length: int = 30) -> question_answering.QuestionAnsweringData:
    """How `answer` reads a context in windows."""
    length = min(WINDOW, model.config.max_position_embeddings)
    return question_answering.QuestionAnsweringData(
        task="squad2",
        max_seq_length=length,
        max_query_length=min(64, length // 4),
        doc_stride=max(1, length // 3),
        max_answer_length=max_answer_length,
        qa_head="plain" if "qa_outputs" in model.heads else "answer_class",
    )


def choose(
    model: Albert, params: Any, tokenizer: Tokenizer, questions: Sequence[tuple[str, str, Sequence[str]]]
) -> list[list[float]]:
    """The probability of each option, for each (passage, question, options).

    Raises:
      InputError: the model has no head for choices, or a question has fewer than two options.
    """
    check_head(model, "choice_classifier")
    limit = len(multiple_choice.LETTERS)
    for number, (_, _, options) in enumerate(questions, 1):
        if not 2 <= len(options) <= limit:
            raise InputError(f"question {number}: expected 2 to {limit} options, got {len(options)}")
    examples = [
        multiple_choice.Example("", passage, question, tuple(options), None, "")
        for passage, question, options in questions
    ]
    task = multiple_choice.MultipleChoice()
    config = multiple_choice.MultipleChoiceData(task="race", max_seq_length=model.config.max_position_embeddings)
    _, _, outputs = _evaluate(model, params, tokenizer, task, config, examples)
    return [row["probabilities"][: len(one.options)].tolist() for row, one in zip(outputs, examples, strict=True)]


def _evaluate(
    model: Albert, params: Any, tokenizer: Tokenizer, task: Any, config: TaskDataConfig, examples: Sequence[Any]
) -> tuple[Split, Any, family.RowOutputs]:
    """The examples as a split, their rows, and what the task computes for each row."""
    split = Split("", examples, model.labels)
    rows = task.rows(split, tokenizer, config)
    batch_size = max(1, min(BATCH_SIZE, len(rows)))
    key = (model, type(task), config)
    if key not in _COMPILED:
        _COMPILED[key] = jax.jit(lambda params, batch: task.outputs(model.apply, params, batch, config))
    return split, rows, family.infer(_COMPILED[key], params, rows, batch_size, config.max_seq_length)


_COMPILED: dict[Any, Callable[..., Any]] = {}
"""Compiled functions of `_evaluate`."""
