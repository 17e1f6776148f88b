"""What a fine-tuned model says of text: classes, entities, answers, choices.

Every function takes `(model, params, tokenizer)` as `exchange.load` returns them, of a run of ours or of anybody's.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from albert_jax.config import require
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.finetuning import classification, family, multiple_choice, question_answering, token_classification
from albert_jax.finetuning.family import Split
from albert_jax.finetuning.files import TaskDataConfig
from albert_jax.finetuning.metrics import spans
from albert_jax.model.heads import Albert

BATCH_SIZE = 32
WINDOW = 384
"""Tokens of a window in which answers are looked for (google-research/albert README), where the model takes as many."""


def classify(
    model: Albert,
    params: Any,
    tokenizer: Tokenizer,
    texts: str | Sequence[str],
    text_pairs: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """For each text, or pair of texts, `label`, `probability` and `probabilities` of all labels; or the `score` of a regression.

    Raises:
      InputError: a model without a classifier of texts.
    """
    _needs(model, "classifier")
    first = [texts] if isinstance(texts, str) else list(texts)
    second: Sequence[str | None] = [None] * len(first) if text_pairs is None else text_pairs
    require(len(first) == len(second), f"{len(first)} texts and {len(second)} text pairs")
    task = classification.Classification(regression=len(model.labels) == 1)
    examples = [classification.Example("", text, pair, None) for text, pair in zip(first, second, strict=True)]
    config = _config(model, classification.ClassificationData, "text")
    rows = task.rows(Split("", examples, model.labels), tokenizer, config)
    found = _found(model, params, task, rows, config)
    if task.regression:
        return [{"score": float(row["score"])} for row in found]
    answers = []
    for row in found:
        table = dict(zip(model.labels, row["probabilities"].tolist(), strict=True))
        label = max(table, key=lambda name: table[name])
        answers.append({"label": label, "probability": table[label], "probabilities": table})
    return answers


def entities(
    model: Albert, params: Any, tokenizer: Tokenizer, texts: str | Sequence[str]
) -> list[list[dict[str, Any]]]:
    """For each text its entities: `type`, `text`, characters `start` and `end`, and `probability`, the least of its words'.

    Words are runs of letters and digits, and every other sign by itself.  Long texts are read in several parts.

    Raises:
      InputError: a model without a classifier of tokens.
    """
    _needs(model, "token_classifier")
    texts = [texts] if isinstance(texts, str) else list(texts)
    words = [list(token_classification.WORDS.finditer(text)) for text in texts]
    examples = [token_classification.Example("", tuple(word.group() for word in found), None) for found in words]
    task = token_classification.TokenClassification()
    config = _config(model, token_classification.TokenClassificationData, "ner")
    split = Split("", examples, model.labels)
    rows = task.rows(split, tokenizer, config)
    tagged = task.tags(split, rows, _found(model, params, task, rows, config))
    answers = []
    for text, places, (tags, probabilities) in zip(texts, words, tagged, strict=True):
        own = []
        for first, end, kind in spans(tags):
            start, stop = places[first].start(), places[end - 1].end()
            found = {"type": kind, "text": text[start:stop], "start": start, "end": stop}
            own.append(found | {"probability": min(probabilities[first:end])})
        answers.append(own)
    return answers


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
    """For each question and its context, `answers`, the best first, and `null_odds`.

    Returns:
      `answers`: at most `n_best`, each with `text`, characters `start` and `end` of the context, `score`, and its
      `probability` among them; `null_odds`: how much more the model believes that there is none, in nats.

    Raises:
      InputError: a model without a head for answers.
    """
    _needs(model, "qa_outputs", "answer_class")
    require(n_best >= 1, f"n_best must be at least 1, got {n_best}")
    questions, contexts = ([some] if isinstance(some, str) else list(some) for some in (questions, contexts))
    require(len(questions) == len(contexts), f"{len(questions)} questions and {len(contexts)} contexts")
    most = min(WINDOW, model.config.max_position_embeddings)
    config = question_answering.QuestionAnsweringData(
        task="squad2",
        max_seq_length=most,
        max_query_length=min(64, most // 4),
        doc_stride=max(1, most // 3),
        max_answer_length=max_answer_length,
        qa_head="plain" if "qa_outputs" in model.heads else "answer_class",
    )
    examples = [
        question_answering.Example(str(number), question, context, (), False)
        for number, (question, context) in enumerate(zip(questions, contexts, strict=True))
    ]
    task = question_answering.QuestionAnswering(unanswerable=True)
    rows = task.rows(Split("", examples), tokenizer, config)
    answers, odds = task.answers(len(examples), rows, _found(model, params, task, rows, config))
    best = [found[:n_best] for found in answers]
    for found in best:  # shares among those that are told
        total = sum(one["probability"] for one in found)
        for one in found:
            one["probability"] /= total
    return [{"answers": found, "null_odds": value} for found, value in zip(best, odds, strict=True)]


def choose(
    model: Albert, params: Any, tokenizer: Tokenizer, questions: Sequence[tuple[str, str, Sequence[str]]]
) -> list[list[float]]:
    """For each (passage, question, options), the probability of every option.

    Raises:
      InputError: a model without a head for choices, or fewer than two options.
    """
    _needs(model, "choice_classifier")
    for number, (_, _, options) in enumerate(questions, 1):
        most = len(multiple_choice.LETTERS)
        require(2 <= len(options) <= most, f"question {number}: 2 to {most} options are read, got {len(options)}")
    examples = [
        multiple_choice.Example("", passage, question, tuple(options), None, "")
        for passage, question, options in questions
    ]
    task = multiple_choice.MultipleChoice()
    config = _config(model, multiple_choice.MultipleChoiceData, "race")
    rows = task.rows(Split("", examples), tokenizer, config)
    found = _found(model, params, task, rows, config)
    return [row["probabilities"][: len(example.options)].tolist() for row, example in zip(found, examples, strict=True)]


def _config(model: Albert, kind: Callable[..., Any], task: str) -> Any:
    return kind(task=task, max_seq_length=model.config.max_position_embeddings)


def _found(model: Albert, params: Any, task: Any, rows: Any, config: TaskDataConfig) -> family.RowOutputs:
    step = _STEPS.setdefault(
        (model, type(task), config), jax.jit(lambda params, batch: task.outputs(model.apply, params, batch, config))
    )
    size = max(1, min(BATCH_SIZE, len(rows)))
    return family.infer(step, params, rows, size, config.max_seq_length)


_STEPS: dict[Any, Callable[..., Any]] = {}
"""What is compiled for a model; its labels tell a regression."""


def _needs(model: Albert, *heads: str) -> None:
    have = ", ".join(model.heads) or "none"
    told = f"this needs a model fine-tuned with the head {' or '.join(heads)}; this model's heads: {have}"
    require(bool(set(heads) & set(model.heads)), told)
