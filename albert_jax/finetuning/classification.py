"""One text or two, one class or one number: GLUE and a user's own tables."""

import functools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
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
from albert_jax.finetuning import family, files
from albert_jax.finetuning.files import Record, Source, TaskDataConfig
from albert_jax.finetuning.metrics import METRICS

SPLITS = {"train": "train.tsv", "dev": "dev.tsv", "test": "test.tsv"}
NUMBER = "score"
"""The one label of a regression."""
HIDDEN = ("-1", "-1.0")
"""What stands for a label that is hidden in some forms of GLUE's test files; in others there is none."""


class Example(NamedTuple):
    """One row of a task's table."""

    where: str
    text: str
    text_pair: str | None
    label: Any
    """The class as the file has it, or a number; None where it is hidden."""


@dataclass(frozen=True)
class Pairs:
    """`[CLS] text [SEP]` or `[CLS] text [SEP] pair [SEP]`; the longer text loses its end where both do not fit."""

    first: list[np.ndarray]
    second: list[np.ndarray | None]
    targets: np.ndarray
    lengths: np.ndarray
    special: tuple[int, int]

    def __len__(self) -> int:
        return len(self.first)

    def __getitem__(self, item: int) -> Row:
        cls_id, sep_id = self.special
        a, b = self.first[item], self.second[item]
        parts = ([cls_id], a, [sep_id]) if b is None else ([cls_id], a, [sep_id], b, [sep_id])
        ids = np.concatenate(parts, dtype=np.int32, casting="unsafe")
        types = (np.arange(len(ids)) >= len(a) + 2).astype(np.int32)
        return {
            "input_ids": ids,
            "token_type_ids": types,
            "target": self.targets[item],
            "weights": np.float32(1),
        }


def pair_rows(
    texts: Sequence[tuple[str, str | None]],
    targets: np.ndarray,
    tokenizer: Tokenizer,
    max_seq_length: int,
    split: str = "",
) -> Pairs:
    """Rows of texts, with a target each."""
    a = tokenizer.encode_batch([first for first, _ in texts])
    b = tokenizer.encode_batch([second or "" for _, second in texts])
    first: list[np.ndarray] = []
    second: list[np.ndarray | None] = []
    cut = 0
    for (_, pair), one, two in zip(texts, a, b, strict=True):
        room = max_seq_length - (2 if pair is None else 3)
        keep, other = fit(len(one), 0 if pair is None else len(two), room)
        cut += keep < len(one) or other < len(two)
        first.append(np.array(one[:keep], np.int32))
        second.append(None if pair is None else np.array(two[:other], np.int32))
    family.tell_long(split, cut, len(texts), "inputs lose the end that does not fit", max_seq_length)
    lengths = np.array(
        [len(one) + 2 + (0 if two is None else len(two) + 1) for one, two in zip(first, second, strict=True)], np.int32
    )
    return Pairs(first, second, targets, lengths, (tokenizer.cls_id, tokenizer.sep_id))


def fit(first: int, second: int, room: int) -> tuple[int, int]:
    """How much of two texts is kept where tokens are taken off the longer one's end (the second's, of equals) until both fit.

    google-research/albert classifier_utils.py, _truncate_seq_pair.
    """
    over = first + second - room
    if over <= 0:
        return first, second
    alone = min(over, abs(first - second))
    first, second = (first - alone, second) if first > second else (first, second - alone)
    both = over - alone
    return first - both // 2, second - (both + 1) // 2


@dataclass(frozen=True)
class Classification:
    """A task of texts and classes, or, without classes, of numbers.

    Columns are named as they stand in any of the forms that a data set is distributed in: the first that is there counts.
    """

    text: tuple[str, ...] = ()
    """Empty: --data.text-column, with --data.text-pair-column and --data.label-column."""
    text_pair: tuple[str, ...] = ()
    label: tuple[str, ...] = ("label",)
    labels: Mapping[str, str] = field(default_factory=dict)
    """A class in the files -> its name.  Empty: the classes are those of the training file."""
    regression: bool = False
    metrics: tuple[str, ...] = ("accuracy",)
    select: str = "accuracy"
    splits: Mapping[str, str] = field(default_factory=lambda: SPLITS)
    header: tuple[str, ...] = ()
    """The columns, where the training file has no header."""
    server: Mapping[str, str] = field(default_factory=dict)
    """Split -> the file that the benchmark's server expects."""

    def heads(self, config: TaskDataConfig) -> tuple[str, ...]:
        return "pooler", "classifier"

    def read(
        self, sources: Mapping[str, Source], config: TaskDataConfig
    ) -> tuple[dict[str, list[Any]], tuple[str, ...]]:
        columns = self.text, self.text_pair, self.label
        if not self.text:
            pair = (config.text_pair_column,) if config.text_pair_column else ()
            columns = (config.text_column,), pair, (config.label_column,)
        found: dict[str, list[Any]] = {}
        values = dict(self.labels)
        for split, source in sources.items():
            known = None if split == "train" and not self.labels else values
            example = functools.partial(self._example, columns, known, source.is_hidden)
            found[split] = files.read(source, config, example, self.header)
            if split == "train" and not values and not self.regression:
                values |= {name: name for name in sorted({str(row.label) for row in found[split]}, key=_numbers_first)}
                told = f"{source.name}: all examples are of one class, {next(iter(values))!r}"
                require(len(values) > 1, told)
        return found, (NUMBER,) if self.regression else tuple(values.values())

    def _example(
        self,
        columns: tuple[tuple[str, ...], ...],
        values: Mapping[str, str] | None,
        hidden: bool,
        where: str,
        record: Record,
    ) -> Example:
        """One row; `values` are the classes that are known, None where the training file is to say them."""
        text, pair, label = columns
        told = _column(where, record, label, optional=hidden)
        require(hidden or bool(told), f"{where}: no label")
        if hidden and self.text and told in HIDDEN:
            told = None
        one = _column(where, record, text) or ""
        two = _column(where, record, pair) if pair else None
        return Example(where, one, two, self._label(where, told, values) if told else None)

    def _label(self, where: str, told: str, values: Mapping[str, str] | None) -> Any:
        """The class's name, or a number."""
        if self.regression:
            try:
                number = float(told)
            except ValueError:
                number = math.nan
            require(math.isfinite(number), f"{where}: label {told!r} is not a number")
            return number
        if values is None or told in values.values():
            return told
        if told not in values and self.labels and told.isdecimal() and int(told) < len(values):
            return list(values.values())[int(told)]  # as Hugging Face numbers them
        require(told in values, f"{where}: label {told!r} is not one of {', '.join(values)}")
        return values[told]

    def texts(self, examples: Sequence[Any]) -> list[str]:
        return [text for row in examples for text in (row.text, row.text_pair) if text]

    def rows(
        self,
        examples: Sequence[Any],
        tokenizer: Tokenizer,
        config: TaskDataConfig,
        labels: tuple[str, ...],
        split: str = "",
    ) -> Pairs:
        if self.regression:
            targets = np.array([row.label or 0.0 for row in examples], np.float32)
        else:
            numbers = {label: number for number, label in enumerate(labels)}
            targets = np.array([numbers.get(row.label, 0) for row in examples], np.int32)
        texts = [(row.text, row.text_pair) for row in examples]
        return pair_rows(texts, targets, tokenizer, config.max_seq_length, split)

    def loss(self, apply: Any, params: Any, batch: family.Batch, train: bool) -> tuple[Array, dict[str, Array]]:
        logits = family.run(apply, params, batch, batch["dropout_keys"] if train else None)["logits"]
        if self.regression:
            losses = jnp.square(logits[:, 0] - batch["target"])
            return jnp.sum(losses * batch["scale"]), family.count(batch, squared_error=losses)
        return family.class_loss(logits, batch)

    def outputs(self, apply: Any, params: Any, batch: family.Batch, config: TaskDataConfig) -> family.Outputs:
        """`probabilities` [B, labels], or `score` [B]."""
        logits = family.run(apply, params, batch, None)["logits"]
        return {"score": logits[:, 0]} if self.regression else {"probabilities": jax.nn.softmax(logits)}

    def score(
        self,
        examples: Sequence[Any],
        rows: Any,
        found: family.Found,
        labels: tuple[str, ...],
        dev: Mapping[str, float] | None = None,
    ) -> family.Scored:
        if self.regression:
            values = np.array([float(row["score"]) for row in found])
            gold = [row.label for row in examples]
            predictions: list[Any] = values.tolist()
            degenerate = bool(
                np.std(values) < 0.01 * max(float(np.std([g for g in gold if g is not None] or [1])), 1e-6)
            )
        else:
            values = np.array([int(np.argmax(row["probabilities"])) for row in found])
            numbers = {label: number for number, label in enumerate(labels)}
            gold = [None if row.label is None else numbers[row.label] for row in examples]
            predictions = [labels[value] for value in values.tolist()]
            degenerate = family.all_the_same(predictions)
        if any(value is None for value in gold):
            return family.Scored({}, predictions, degenerate)
        metrics = {name: METRICS[name](values, np.array(gold)) for name in self.metrics}
        return family.Scored(metrics, predictions, degenerate)

    def baseline(self, train: Sequence[Any], dev: Sequence[Any], labels: tuple[str, ...]) -> dict[str, float]:
        """Always the training file's commonest class, or its mean."""
        if self.regression:
            values = np.full(len(dev), np.mean([row.label for row in train]))
            return {name: METRICS[name](values, np.array([row.label for row in dev])) for name in self.metrics}
        commonest = labels.index(Counter(row.label for row in train).most_common(1)[0][0])
        gold = np.array([labels.index(row.label) for row in dev])
        return {name: METRICS[name](np.full(len(dev), commonest), gold) for name in self.metrics}

    def write(self, folder: Path, split: str, examples: Sequence[Any], predictions: Sequence[Any]) -> Path:
        """`index<TAB>prediction`, classes as the files spell them (GLUE)."""
        path = folder / self.server.get(split, f"{split}.tsv")
        spelled = {name: value for value, name in self.labels.items()}
        rows = [
            f"{number}\t{f'{value:.3f}' if self.regression else spelled.get(value, value)}\n"
            for number, value in enumerate(predictions)
        ]
        path.write_text("index\tprediction\n" + "".join(rows), encoding="utf-8")
        return path


def _column(where: str, record: Record, names: tuple[str, ...], optional: bool = False) -> str | None:
    for name in names:
        if name in record:
            value = record[name]
            if isinstance(value, bool) or not isinstance(value, (str, int, float)):
                raise InputError(f"{where}: {name} is {value!r:.40}, no text")
            return str(value)
    require(optional, f"{where}: no column {' or '.join(names)}; there are {', '.join(record)}")
    return None


def _numbers_first(name: str) -> tuple[bool, float, str]:
    try:
        return False, float(name), name
    except ValueError:
        return True, 0.0, name
