"""Answers that are spans of a context: SQuAD 1.1 and 2.0, and any file in that format.

Contexts longer than the input are read in windows.  Answers are located by character offsets, so a predicted answer is an
exact substring of the context.
"""

import functools
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from albert_jax.config import InputError, choice
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.finetuning import family, files, squad_format
from albert_jax.finetuning.family import Split
from albert_jax.finetuning.files import Source, TaskDataConfig
from albert_jax.finetuning.metrics import best_threshold, squad
from albert_jax.finetuning.squad_format import Example
from albert_jax.finetuning.windows import Context, Window, WindowRows, locate, tokenize, window_row, windows
from albert_jax.pretraining.objective import cross_entropy

log = logging.getLogger(__name__)

MASKED = -1e30
"""The logit of a position that cannot be an answer."""

CERTAIN = 1e6
"""The odds of no answer for a context that has no candidate answer."""

MIN_CONTEXT = 8
"""Tokens of context that a window must have room for."""


@dataclass(frozen=True)
class QuestionAnsweringData(TaskDataConfig):
    """Data of a question-answering task."""

    doc_stride: int = 128
    """Tokens from the start of one window to the start of the next."""
    max_query_length: int = 64
    """Longer questions are truncated."""
    max_answer_length: int = 30
    """Maximum number of tokens of an answer."""
    n_best_size: int = 20
    """Number of candidate answers per question."""
    qa_head: str = choice("plain", ("plain", "answer_class"))
    """Start and end scores only, or the released SQuAD 2.0 head, which also classifies whether there is an answer."""
    strict: bool = False
    """Stop at a training answer that is not in its context, instead of leaving it out and counting it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        files.check_minimum(self, 1, "doc_stride", "max_query_length", "max_answer_length", "n_best_size")
        minimum = self.max_query_length + 3 + MIN_CONTEXT
        if self.max_seq_length < minimum:
            raise InputError(
                f"max_seq_length {self.max_seq_length} has no room for a question of max_query_length "
                f"{self.max_query_length} and a context; it must be at least {minimum}"
            )


@dataclass(frozen=True)
class QuestionAnswering:
    """Extractive question answering; with `unanswerable`, a question may have no answer (SQuAD 2.0)."""

    unanswerable: bool = False
    select: str = "f1"
    splits: Mapping[str, str] = field(
        default_factory=lambda: {
            "train": "train-v1.1.json|train-*.parquet",
            "dev": "dev-v1.1.json|validation-*.parquet",
            "test": "test-v1.1.json",
        }
    )
    data_config: ClassVar[type[TaskDataConfig]] = QuestionAnsweringData

    def heads(self, config: QuestionAnsweringData) -> tuple[str, ...]:
        return ("qa_outputs",) if config.qa_head == "plain" else ("answer_class",)

    def labels(self, train: Sequence[Example] = ()) -> tuple[str, ...]:
        return ()

    def examples(self, source: Source, config: QuestionAnsweringData, labels: tuple[str, ...]) -> Iterator[Example]:
        for row in family.unique_ids(source, squad_format.questions(source, config)):
            if row.is_labeled and not row.answers and not self.unanswerable:
                raise InputError(
                    f"{source.name}: question {row.id} has no answer; use --data.task squad2 for such files"
                )
            yield row

    def texts(self, examples: Sequence[Example]) -> list[str]:
        return [*{row.context: None for row in examples}, *(row.question for row in examples)]

    def rows(self, split: Split, tokenizer: Tokenizer, config: QuestionAnsweringData) -> WindowRows:
        contexts: dict[str, Context] = {}
        rows: list[Window] = []
        truncated = inexact = outside = 0
        missing: list[str] = []
        questions = tokenizer.encode_batch([row.question for row in split.examples])
        for number, (row, ids) in enumerate(zip(split.examples, questions, strict=True)):
            if row.context not in contexts:
                contexts[row.context] = tokenize(tokenizer, row.context)
            context = contexts[row.context]
            truncated += len(ids) > config.max_query_length
            question = np.array(ids[: config.max_query_length], np.int32)
            room = config.max_seq_length - len(question) - 3
            question_windows = list(windows(number, question, context, room, config.doc_stride))
            if split.name == "train" and row.answers:
                tokens = locate(context, *row.answers[0])
                if tokens is None:
                    missing.append(row.id)
                    continue
                first, last = (context.ranges[at] for at in tokens)
                inexact += row.context[first[0] : last[1]].strip() != row.answers[0][0].strip()
                question_windows = [
                    window._replace(answer=tokens)
                    if window.start <= tokens[0] and tokens[1] < window.start + window.size
                    else window
                    for window in question_windows
                ]
                outside += not any(window.answer for window in question_windows)
            rows += question_windows
        family.log_long(split, truncated, "questions are truncated to", config.max_query_length)
        if missing:
            count = f"{len(missing)} of {len(split.examples)} answers"
            problem = f"{split.name}: {count} are not in their contexts, the first: {missing[0]}"
            if config.strict:
                raise InputError(f"{problem}; fix them, or leave them out with --data.strict false")
            log.warning("%s; left out", problem)
        if inexact:
            log.info("%s: %d of %d answers begin or end inside a token", split.name, inexact, len(split.examples))
        if outside:
            log.warning("%s: %d answers fit in no window; increase --data.max-seq-length", split.name, outside)
        lengths = np.array([len(window.question) + window.size + 3 for window in rows], np.int32)
        return WindowRows(rows, lengths, functools.partial(window_row, tokenizer), config)

    def logits(self, apply: Any, params: Any, batch: family.Batch, keys: Array | None) -> family.Logits:
        """`start` and `end` [B, S], the end given the true start; with the head `answer_class` also `unanswerable` [B, 2]."""
        inputs = {"answer_mask": batch["answer_mask"], "start_positions": batch["start"]}
        outputs = family.apply_model(apply, params, batch, keys, **inputs)
        logits = {
            name: jnp.where(batch["attention_mask"] == 1, outputs[f"{name}_logits"], MASKED)
            for name in ("start", "end")
        }
        if "answer_class_logits" in outputs:
            yes = outputs["answer_class_logits"]
            logits["unanswerable"] = jnp.stack([jnp.zeros_like(yes), yes], axis=-1)
        return logits

    def loss(self, logits: family.Logits, batch: family.Batch) -> tuple[Array, dict[str, Array]]:
        targets = {name: batch[name] for name in ("start", "end")} | {"unanswerable": (batch["start"] == 0).astype(int)}
        # squad_utils.py weights all three losses by 0.5.
        losses = sum(cross_entropy(logits[name], targets[name]) for name in logits) / 2
        correct = {name: jnp.argmax(logits[name], axis=-1) == targets[name] for name in logits}
        metrics = {"span_accuracy": (correct["start"] & correct["end"]).astype(jnp.float32)}
        if "unanswerable" in logits:
            metrics["answerable_accuracy"] = correct["unanswerable"].astype(jnp.float32)
        return jnp.sum(losses * batch["scale"]), family.metric_sums(batch, **metrics)

    def outputs(self, apply: Any, params: Any, batch: family.Batch, config: QuestionAnsweringData) -> family.Outputs:
        """Candidate answers `start`, `end` and `score` [B, candidates], and `null` [B], the score of no answer."""
        outputs = family.apply_model(apply, params, batch, None, answer_mask=batch["answer_mask"])
        allowed = (batch["best"] == 1) & (batch["answer_mask"] == 1)
        if "start_top_index" in outputs:
            starts, ends = outputs["start_top_index"], outputs["end_top_index"]  # [B, K], [B, K, K]
            scores = outputs["start_top_log_probs"][..., None] + outputs["end_top_log_probs"]
            scores = jnp.where(jnp.take_along_axis(allowed, starts, axis=1)[..., None], scores, MASKED)
            null = outputs["answer_class_logits"]
        else:
            start, end = outputs["start_logits"], outputs["end_logits"]
            candidates = min(config.n_best_size, start.shape[1])
            start_scores, starts = jax.lax.top_k(jnp.where(allowed, start, MASKED), candidates)
            end_scores, ends = jax.lax.top_k(jnp.where(batch["answer_mask"] == 1, end, MASKED), candidates)
            scores = start_scores[:, :, None] + end_scores[:, None, :]
            ends = jnp.broadcast_to(ends[:, None, :], scores.shape)
            null = start[:, 0] + end[:, 0]
        pairs = {"start": jnp.broadcast_to(starts[:, :, None], scores.shape), "end": ends, "score": scores}
        return {name: value.reshape(len(value), -1) for name, value in pairs.items()} | {"null": null}

    def score(
        self, split: Split, rows: WindowRows, outputs: family.RowOutputs, tuned: Mapping[str, float] | None = None
    ) -> family.Score:
        answers, odds = self.answers(len(split.examples), rows, outputs)
        ids = [row.id for row in split.examples]
        predicted = {id_: best[0]["text"] if best else "" for id_, best in zip(ids, answers, strict=True)}
        null_odds = dict(zip(ids, odds, strict=True))
        gold = {row.id: [text for text, _ in row.answers] for row in split.examples}
        threshold: dict[str, float] = {}
        if self.unanswerable and tuned is not None:
            threshold = {"null_threshold": tuned["null_threshold"]}
        elif self.unanswerable and split.is_labeled:
            best_exact, _ = best_threshold(predicted, null_odds, gold, "exact")
            threshold = {
                "best_exact": best_exact,
                "null_threshold": best_threshold(predicted, null_odds, gold, "f1")[1],
            }
        if threshold:
            predicted = {i: "" if null_odds[i] > threshold["null_threshold"] else text for i, text in predicted.items()}
        predictions = [
            {"id": id_, "answer": predicted[id_], "null_odds": null_odds[id_], "n_best": n_best}
            for id_, n_best in zip(ids, answers, strict=True)
        ]
        metrics = squad(predicted, gold) | threshold if split.is_labeled else {}
        return family.Score(metrics, predictions, family.is_constant(list(predicted.values())))

    def answers(
        self, count: int, rows: WindowRows, outputs: family.RowOutputs
    ) -> tuple[list[list[dict[str, Any]]], list[float]]:
        """The best answers of each example, and the odds that it has none.

        Returns:
          For each of `count` examples, best first: dicts of `text`, `start` and `end` (characters), `score`, `probability` (among
          these answers).  Larger odds: the model is surer that there is no answer.
        """
        config: QuestionAnsweringData = rows.config
        candidates: list[dict[str, dict[str, Any]]] = [{} for _ in range(count)]
        null = [float("inf")] * count
        for window, row in zip(rows.items, outputs, strict=True):
            start, end, score = row["start"], row["end"], row["score"]
            null[window.example] = min(null[window.example], float(row["null"]))
            valid = (score > MASKED / 2) & (end >= start) & (end - start < config.max_answer_length)
            # Positions in the row -> tokens of the context.
            ranges, offset = window.context.ranges, window.start - len(window.question) - 2
            by_text = candidates[window.example]
            for at in np.flatnonzero(valid)[np.argsort(-score[valid], kind="stable")][: config.n_best_size].tolist():
                first, last = int(ranges[start[at] + offset, 0]), int(ranges[end[at] + offset, 1])
                text = window.context.text[first:last]
                if text.strip() and (text not in by_text or by_text[text]["score"] < score[at]):
                    by_text[text] = {"text": text, "start": first, "end": last, "score": float(score[at])}
        best = [
            sorted(texts.values(), key=lambda answer: -answer["score"])[: config.n_best_size] for texts in candidates
        ]
        for n_best in filter(None, best):
            scores = np.exp([answer["score"] - n_best[0]["score"] for answer in n_best])
            for answer, probability in zip(n_best, scores / scores.sum(), strict=True):
                answer["probability"] = float(probability)
        if config.qa_head == "plain":  # the score of no answer, relative to the best answer
            null = [value - n_best[0]["score"] if n_best else CERTAIN for value, n_best in zip(null, best, strict=True)]
        return best, null

    def baseline(self, train: Split, dev: Split) -> dict[str, float]:
        """Predict no answer for every question."""
        return squad(
            {row.id: "" for row in dev.examples}, {row.id: [t for t, _ in row.answers] for row in dev.examples}
        )

    def shown(self, example: Example, prediction: Any) -> dict[str, str]:
        answers, predicted = [text for text, _ in example.answers] or [""], prediction["answer"]
        expected = predicted if predicted in answers else answers[0]
        texts = {"context": example.context, "question": example.question}
        return texts | {"expected": expected or "no answer", "predicted": predicted or "no answer"}

    def write(self, folder: Path, split: Split, predictions: Sequence[Any]) -> Path:
        """Three JSON files keyed by id: the answers (read by evaluate-v2.0.py), null_odds (its --na-prob-file), and n_best."""
        path = folder / f"{split.name}.json"
        names = {
            "answer": path.name,
            "null_odds": f"{split.name}.null_odds.json",
            "n_best": f"{split.name}.n_best.json",
        }
        for key, name in names.items():
            table = {row["id"]: row[key] for row in predictions}
            indent = None if key == "n_best" else 1
            (folder / name).write_text(json.dumps(table, ensure_ascii=False, indent=indent) + "\n", encoding="utf-8")
        return path
