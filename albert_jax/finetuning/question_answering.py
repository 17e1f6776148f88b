"""Answers that are spans of a context: SQuAD 1.1 and 2.0, and any file of that form.

Contexts longer than the input are read in windows; answers are found by character offsets, so that what is predicted is
the text as it stands.
"""

import itertools
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from albert_jax.config import InputError, require
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.finetuning import family, files
from albert_jax.finetuning.files import Record, Source, TaskDataConfig
from albert_jax.finetuning.metrics import best_threshold, squad
from albert_jax.finetuning.windows import Context, Window, Windows, locate, tokenized, windows
from albert_jax.pretraining.objective import cross_entropy

log = logging.getLogger(__name__)

NEVER = -1e30
"""The logit of a place where no answer may be."""

SURE = 1e6
"""The odds of no answer where a context has no token that could be one."""


class Example(NamedTuple):
    """One question."""

    id: str
    question: str
    context: str
    answers: tuple[tuple[str, int], ...]
    """Text and first character of each; none where there is no answer."""
    labelled: bool
    """Whether the file says what the answers are."""


@dataclass(frozen=True)
class QuestionAnswering:
    """Extractive answers; with `unanswerable`, there may be none (SQuAD 2.0)."""

    unanswerable: bool = False
    select: str = "f1"
    splits: Mapping[str, str] = field(
        default_factory=lambda: {"train": "train-v1.1.json", "dev": "dev-v1.1.json", "test": "test-v1.1.json"}
    )

    def heads(self, config: TaskDataConfig) -> tuple[str, ...]:
        return ("qa_outputs",) if config.qa_head == "plain" else ("answer_class",)

    def read(
        self, sources: Mapping[str, Source], config: TaskDataConfig
    ) -> tuple[dict[str, list[Any]], tuple[str, ...]]:
        least = config.max_query_length + 3 + 8
        told = f"data.max_query_length {config.max_query_length} leaves no room for a context in max_seq_length"
        require(config.max_seq_length >= least, f"{told} {config.max_seq_length}; at least {least} tokens are needed")
        found: dict[str, list[Any]] = {}
        for split, source in sources.items():
            every = (
                question for where, record in files.records(source, config) for question in _questions(where, record)
            )
            questions = list(itertools.islice(every, source.limit(config)))
            require(bool(questions), f"{source.name}: no question in it")
            family.unique(source, (row.id for row in questions))
            bare = next((row.id for row in questions if not row.labelled), None)
            told = f"{source.name}: question {bare} has no 'answers', which training and dev questions need"
            require(bare is None or source.is_hidden, told)
            found[split] = questions
            without = sum(not row.answers for row in questions if row.labelled)
            told = f"{source.name}: {without} of {len(questions)} questions have no answer"
            require(self.unanswerable or not without, f"{told}; that is --data.task squad2")
        return found, ()

    def texts(self, examples: Sequence[Any]) -> list[str]:
        return [*{row.context: None for row in examples}, *(row.question for row in examples)]

    def rows(
        self,
        examples: Sequence[Any],
        tokenizer: Tokenizer,
        config: TaskDataConfig,
        labels: tuple[str, ...],
        split: str = "",
    ) -> Windows:
        contexts: dict[str, Context] = {}
        found: list[Window] = []
        lost: list[str] = []
        inexact = cut = 0
        for number, (row, ids) in enumerate(
            zip(examples, tokenizer.encode_batch([row.question for row in examples]), strict=True)
        ):
            if row.context not in contexts:
                contexts[row.context] = tokenized(tokenizer, row.context)
            context = contexts[row.context]
            cut += len(ids) > config.max_query_length
            question = np.array(ids[: config.max_query_length], np.int32)
            room = config.max_seq_length - len(question) - 3
            place = None
            if split == "train" and row.answers:
                answer, start = row.answers[0]
                is_there = bool(answer.strip()) and row.context[start : start + len(answer)] == answer
                place = locate(context, answer, start) if is_there else None
                if place is None:
                    lost.append(row.id)
                    continue
                first, last = (context.ranges[at] for at in place)
                inexact += row.context[first[0] : last[1]].strip() != answer.strip()
            for window in windows(number, question, context, room, config.doc_stride):
                inside = place and window.start <= place[0] and place[1] < window.start + window.size
                found.append(window._replace(answer=place if inside else None))
        family.tell_long(split, cut, len(examples), "questions are cut to", config.max_query_length)
        if lost:
            told = f"{split}: {len(lost)} of {len(examples)} answers are not where their contexts say: {lost[0]}"
            require(not config.strict, f"{told} is the first; mend them, or leave them out with --data.strict false")
            log.warning("%s, ...; left out", told)
        if inexact:
            log.info("%s: %d of %d answers begin or end inside a token", split, inexact, len(examples))
        if split == "train":
            outside = len({window.example for window in found}) - len(
                {window.example for window in found if window.answer or not examples[window.example].answers}
            )
            if outside:
                log.warning(
                    "%s: %d answers fit in no window; a larger --data.max-seq-length holds more", split, outside
                )
        return Windows(found, config, (tokenizer.cls_id, tokenizer.sep_id))

    def loss(self, apply: Any, params: Any, batch: family.Batch, train: bool) -> tuple[Array, dict[str, Array]]:
        keys = batch["dropout_keys"] if train else None
        more = {"answer_mask": batch["answer_mask"], "start_positions": batch["start"]}
        outputs = family.run(apply, params, batch, keys, **more)
        start, end = outputs["start_logits"], outputs["end_logits"]
        start, end = (jnp.where(batch["attention_mask"] == 1, logits, NEVER) for logits in (start, end))
        losses = (cross_entropy(start, batch["start"]) + cross_entropy(end, batch["end"])) / 2
        right = (jnp.argmax(start, -1) == batch["start"]) & (jnp.argmax(end, -1) == batch["end"])
        found = {"span_accuracy": right.astype(jnp.float32)}
        if "answer_class_logits" in outputs:
            # squad_utils.py: half of each, so that the scales agree.
            logits, target = outputs["answer_class_logits"], (batch["start"] == 0).astype(jnp.float32)
            entropy = jax.nn.softplus(logits) - logits * target
            losses += entropy / 2
            found["answerable_accuracy"] = ((logits > 0) == (target > 0)).astype(jnp.float32)
        return jnp.sum(losses * batch["scale"]), family.count(batch, **found)

    def outputs(self, apply: Any, params: Any, batch: family.Batch, config: TaskDataConfig) -> family.Outputs:
        """Places of good answers with their scores, [B, candidates], and `null` [B], the score of no answer."""
        outputs = family.run(apply, params, batch, None, answer_mask=batch["answer_mask"])
        allowed = (batch["best"] == 1) & (batch["answer_mask"] == 1)
        if "start_top_index" in outputs:
            start, end = outputs["start_top_index"], outputs["end_top_index"]  # [B, K], [B, K, K]
            scores = outputs["start_top_log_probs"][..., None] + outputs["end_top_log_probs"]
            starts = jnp.broadcast_to(start[..., None], end.shape)
            flat = [value.reshape(len(start), -1) for value in (starts, end, scores)]
            begins = jnp.take_along_axis(allowed, flat[0], axis=1)
            return {
                "start": flat[0],
                "end": flat[1],
                "score": jnp.where(begins, flat[2], NEVER),
                "null": outputs["answer_class_logits"],
            }
        start, end = outputs["start_logits"], outputs["end_logits"]
        most = min(config.n_best_size, start.shape[1])
        start_scores, start_at = jax.lax.top_k(jnp.where(allowed, start, NEVER), most)
        end_scores, end_at = jax.lax.top_k(jnp.where(batch["answer_mask"] == 1, end, NEVER), most)
        shape = (len(start), most, most)
        pairs = [
            jnp.broadcast_to(start_at[:, :, None], shape),
            jnp.broadcast_to(end_at[:, None, :], shape),
            start_scores[:, :, None] + end_scores[:, None, :],
        ]
        flat = [value.reshape(len(start), -1) for value in pairs]
        return {"start": flat[0], "end": flat[1], "score": flat[2], "null": start[:, 0] + end[:, 0]}

    def score(
        self,
        examples: Sequence[Any],
        rows: Windows,
        found: family.Found,
        labels: tuple[str, ...],
        dev: Mapping[str, float] | None = None,
    ) -> family.Scored:
        answers, odds = self.answers(len(examples), rows, found)
        best = {row.id: (n_best[0]["text"] if n_best else "") for row, n_best in zip(examples, answers, strict=True)}
        null = {row.id: value for row, value in zip(examples, odds, strict=True)}
        labelled = all(row.labelled for row in examples)
        gold = {row.id: [text for text, _ in row.answers] for row in examples}
        metrics: dict[str, float] = {}
        predicted = best
        tuned: dict[str, float] = {}
        if self.unanswerable and dev is not None:
            tuned = {"null_threshold": dev["null_threshold"]}
        elif self.unanswerable and labelled:
            exact, _ = best_threshold(best, null, gold, "exact")
            tuned = {"best_exact": exact, "null_threshold": best_threshold(best, null, gold, "f1")[1]}
        if tuned:
            predicted = {name: "" if null[name] > tuned["null_threshold"] else text for name, text in best.items()}
        if labelled:
            metrics = squad(predicted, gold) | tuned
        full = [
            {"id": row.id, "answer": predicted[row.id], "null_odds": null[row.id], "n_best": n_best}
            for row, n_best in zip(examples, answers, strict=True)
        ]
        degenerate = family.all_the_same(list(predicted.values()))
        return family.Scored(metrics, full, degenerate)

    def answers(
        self, examples: int, rows: Windows, found: family.Found
    ) -> tuple[list[list[dict[str, Any]]], list[float]]:
        """For each example its best answers, `text`, `start`, `end` (characters), `score`, `probability` among them; and
        the odds of no answer, the larger the surer.
        """
        config = rows.config
        kept: list[dict[str, dict[str, Any]]] = [{} for _ in range(examples)]
        null = [float("inf")] * examples
        for window, outputs in zip(rows.windows, found, strict=True):
            first = len(window.question) + 2
            start, end, score = (outputs[name] for name in ("start", "end", "score"))
            good = (score > NEVER / 2) & (end >= start) & (end - start < config.max_answer_length)
            null[window.example] = min(null[window.example], float(outputs["null"]))
            for at in np.flatnonzero(good)[np.argsort(-score[good], kind="stable")][: config.n_best_size].tolist():
                begin = int(window.context.ranges[start[at] - first + window.start, 0])
                close = int(window.context.ranges[end[at] - first + window.start, 1])
                text = window.context.text[begin:close]
                before = kept[window.example].get(text)
                if text.strip() and (before is None or before["score"] < score[at]):
                    kept[window.example][text] = {"text": text, "start": begin, "end": close, "score": float(score[at])}
        best = [sorted(texts.values(), key=lambda answer: -answer["score"])[: config.n_best_size] for texts in kept]
        for n_best in best:
            scores = np.exp([answer["score"] - n_best[0]["score"] for answer in n_best])
            for answer, share in zip(n_best, scores / scores.sum() if n_best else (), strict=True):
                answer["probability"] = float(share)
        if config.qa_head == "plain":  # how much better no answer is than the best
            null = [value - n_best[0]["score"] if n_best else SURE for value, n_best in zip(null, best, strict=True)]
        return best, null

    def baseline(self, train: Sequence[Any], dev: Sequence[Any], labels: tuple[str, ...]) -> dict[str, float]:
        """Always no answer, where there may be none."""
        return squad({row.id: "" for row in dev}, {row.id: [text for text, _ in row.answers] for row in dev})

    def write(self, folder: Path, split: str, examples: Sequence[Any], predictions: Sequence[Any]) -> Path:
        """`question: answer` as evaluate-v2.0.py reads it; beside it the n best, and the odds of no answer (its --na-prob-file)."""
        path = folder / f"{split}.json"
        for file, key in ((path, "answer"), (folder / f"{split}.null_odds.json", "null_odds")):
            table = {row["id"]: row[key] for row in predictions}
            file.write_text(json.dumps(table, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        n_best = {row["id"]: row["n_best"] for row in predictions}
        (folder / f"{split}.n_best.json").write_text(json.dumps(n_best, ensure_ascii=False) + "\n", encoding="utf-8")
        return path


def _questions(where: str, record: Record) -> Iterator[Example]:
    """The questions of SQuAD's nested file, of one line that is one question, or of a record of TFDS."""
    last = "its first question"
    try:
        for qa, context in _nested(record) if "data" in record else ((record, record["context"]),):
            answers = qa.get("answers", [])
            if isinstance(answers, dict):
                answers = [dict(zip(answers, values, strict=True)) for values in zip(*answers.values(), strict=True)]
            gold = tuple((answer["text"], answer["answer_start"]) for answer in answers)
            texts = [qa["id"], qa["question"], context, *(text for text, _ in gold)]
            if not all(isinstance(text, str) for text in texts) or not all(type(at) is int for _, at in gold):
                raise TypeError
            yield Example(qa["id"], qa["question"], context, () if qa.get("is_impossible") else gold, "answers" in qa)
            last = f"the question after {qa['id']}"
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"no '{error.args[0]}'" if isinstance(error, KeyError) else "a field of another type"
        raise InputError(f"{where}: {last} is not of SQuAD's form: {what}") from None


def _nested(record: Record) -> Iterator[tuple[Any, Any]]:
    for article in record["data"]:
        for paragraph in article["paragraphs"]:
            for qa in paragraph["qas"]:
                yield qa, paragraph["context"]
