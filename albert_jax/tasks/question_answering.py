"""Answers that are spans of a context: SQuAD 1.1 and 2.0, and any file of that form.

Contexts longer than the input are read in windows; answers are found by character offsets, so that what is predicted is
the text as it stands.
"""

import functools
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from albert_jax.config import InputError, require
from albert_jax.data.batches import Row
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.objectives.pretraining import cross_entropy
from albert_jax.tasks import family, files
from albert_jax.tasks.files import Record, Source, TaskDataConfig
from albert_jax.tasks.metrics import best_threshold, squad

log = logging.getLogger(__name__)

NEVER = -1e30
"""The logit of a place where no answer may be."""


class Example(NamedTuple):
    """One question."""

    id: str
    question: str
    context: str
    answers: tuple[tuple[str, int], ...]
    """Text and first character of each; none where there is no answer."""
    labelled: bool
    """Whether the file says what the answers are."""


class Context(NamedTuple):
    """A tokenized context."""

    text: str
    ids: np.ndarray
    ranges: np.ndarray
    """[tokens, 2]: characters [start, end) of each."""


class Window(NamedTuple):
    """One input: a question and a part of its context."""

    example: int
    question: np.ndarray
    context: Context
    start: int
    """First token of the context that is in it."""
    size: int
    best: np.ndarray
    """[size] bool: no other window has more context around this token."""
    answer: tuple[int, int] | None
    """First and last token of the answer, of the whole context; None if it is not in this window."""


@dataclass(frozen=True)
class Windows:
    """`[CLS] question [SEP] window [SEP]`; the answer's place is that of [CLS] where there is none."""

    windows: list[Window]
    config: TaskDataConfig
    special: tuple[int, int]

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """[windows]."""
        return np.array([len(window.question) + window.size + 3 for window in self.windows], np.int32)

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, item: int) -> Row:
        window = self.windows[item]
        cls_id, sep_id = self.special
        first = len(window.question) + 2
        part = window.context.ids[window.start : window.start + window.size]
        ids = np.concatenate([[cls_id], window.question, [sep_id], part, [sep_id]]).astype(np.int32)
        allowed = np.zeros(len(ids), np.int32)
        allowed[first : first + window.size] = 1
        best = np.zeros(len(ids), np.int32)
        best[first : first + window.size] = window.best
        start, end = (0, 0) if window.answer is None else (at - window.start + first for at in window.answer)
        return {
            "input_ids": ids,
            "token_type_ids": (np.arange(len(ids)) >= first).astype(np.int32),
            "answer_mask": allowed,
            "best": best,
            "start": np.int32(start),
            "end": np.int32(end),
            "weights": np.float32(1),
        }


def windows(example: int, question: np.ndarray, context: Context, room: int, stride: int) -> Iterator[Window]:
    """The windows of a context, each of at most `room` tokens, `stride` from one's beginning to the next one's."""
    total = len(context.ids)
    starts = [0]
    while starts[-1] + room < total:
        starts.append(starts[-1] + min(room, stride))
    sizes = [min(room, total - start) for start in starts]
    at = np.arange(total)
    # run_squad_v1.py, _check_is_max_context: the smaller side counts; of equals the longer window.
    scores = np.full((len(starts), total), -np.inf)
    for number, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        inside = slice(start, start + size)
        scores[number, inside] = np.minimum(at[inside] - start, start + size - 1 - at[inside]) + 0.01 * size
    owner = scores.argmax(0) if total else np.zeros(0, int)
    for number, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        yield Window(example, question, context, start, size, owner[start : start + size] == number, None)


def locate(context: Context, answer: str, start: int) -> tuple[int, int] | None:
    """First and last token that an answer's characters touch; None where the characters are of no token."""
    begin, end = start, start + len(answer)
    touching = np.flatnonzero((context.ranges[:, 0] < end) & (context.ranges[:, 1] > begin))
    return (int(touching[0]), int(touching[-1])) if len(touching) else None


def tokenized(tokenizer: Tokenizer, text: str) -> Context:
    """A context with the characters of its tokens."""
    ids, ranges = tokenizer.encode_with_offsets(text)
    return Context(text, np.array(ids, np.int32), np.array(ranges, np.int32).reshape(-1, 2))


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
            most = config.max_train_samples if split == "train" else config.max_eval_samples
            questions: list[Example] = []
            for where, record in files.records(source, config):
                questions += _questions(where, record)
                if most and len(questions) >= most:
                    questions = questions[:most]
                    break
            names = ", ".join(map(str, source.paths)) or source.tfds
            require(bool(questions), f"{names}: no question in it")
            twice = next((name for name, times in Counter(row.id for row in questions).items() if times > 1), None)
            require(twice is None, f"{names}: two questions have the id {twice!r}; predictions go by id")
            found[split] = questions
            without = sum(not row.answers for row in questions if row.labelled)
            told = f"{names}: {without} of {len(questions)} questions have no answer"
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
                place = locate(context, answer, start) if row.context[start : start + len(answer)] == answer else None
                if place is None:
                    lost.append(row.id)
                    continue
                first, last = (context.ranges[at] for at in place)
                inexact += row.context[first[0] : last[1]].strip() != answer.strip()
            for window in windows(number, question, context, room, config.doc_stride):
                inside = place and window.start <= place[0] and place[1] < window.start + window.size
                found.append(window._replace(answer=place if inside else None))
        family.tell_cut(split, cut, len(examples), "questions", config.max_query_length)
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
        found = {"exact": right.astype(jnp.float32)}
        if "answer_class_logits" in outputs:
            # run_squad_v2.py: half of each, so that the scales agree.
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
        degenerate = len(examples) > 1 and len(set(predicted.values())) == 1
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
            null = [value - (n_best[0]["score"] if n_best else NEVER) for value, n_best in zip(null, best, strict=True)]
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
    try:
        if "data" in record:
            for article in record["data"]:
                for paragraph in article["paragraphs"]:
                    for qa in paragraph["qas"]:
                        answers = tuple((a["text"], int(a["answer_start"])) for a in qa.get("answers", ()))
                        if qa.get("is_impossible"):
                            answers = ()
                        yield _checked(qa["id"], qa["question"], paragraph["context"], answers, "answers" in qa)
            return
        told = record.get("answers") or {"text": [], "answer_start": []}
        if isinstance(told, list):
            told = {key: [answer[key] for answer in told] for key in ("text", "answer_start")}
        answers = tuple(zip(told["text"], map(int, told["answer_start"]), strict=True))
        yield _checked(record["id"], record["question"], record["context"], answers, "answers" in record)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        what = f"no '{error.args[0]}'" if isinstance(error, KeyError) else "a field of another type"
        raise InputError(f"{where}: not of SQuAD's form: {what}") from None


def _checked(name: Any, question: Any, context: Any, answers: Any, labelled: bool) -> Example:
    texts = [name, question, context, *(text for text, _ in answers)]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError
    return Example(name, question, context, tuple(answers), labelled)
