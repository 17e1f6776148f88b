"""Classification or regression of one text or a pair: GLUE, and the user's own tables."""

import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from albert_jax.config import InputError, choice
from albert_jax.data.batches import Row
from albert_jax.data.tokenizer import Tokenizer, fit
from albert_jax.finetuning import family
from albert_jax.finetuning.columns import USUAL_NAMES, cell, normalized
from albert_jax.finetuning.family import LazyRows, Split
from albert_jax.finetuning.files import Source, TaskDataConfig
from albert_jax.finetuning.metrics import METRICS
from albert_jax.finetuning.readers import Record, maybe_records

log = logging.getLogger(__name__)

SPLITS = {"train": "train.tsv", "dev": "dev.tsv", "test": "test.tsv"}
SCORE = "score"
"""The only label of a regression task."""
BOOLEANS = {"false": "0", "true": "1"}
"""Boolean labels of tasks with the classes 0 and 1."""
HIDDEN_LABELS = ("-1", "-1.0")
"""Labels of test examples in some distributions of GLUE; others have no labels."""


@dataclass(frozen=True)
class ClassificationData(TaskDataConfig):
    """Data of a classification or regression task."""

    malformed: str = choice("error", ("error", "skip"))
    """On a training or dev line that cannot be read: stop, or skip and count it."""
    text_column: str = "text"
    """Tasks 'text' and 'regression': the column with the text."""
    text_pair_column: str = ""
    """Likewise: the column with the second text, if there is one."""
    label_column: str = "label"
    """Likewise: the column with the class or the number."""


class Example(NamedTuple):
    """One row of a table."""

    id: str
    """`file:line`."""
    text: str
    text_pair: str | None
    label: Any
    """The name of the class, or a number; None if hidden."""

    @property
    def is_labeled(self) -> bool:
        """Whether the label is known."""
        return self.label is not None


class Reading(NamedTuple):
    """How the records of one split become examples."""

    config: ClassificationData
    columns: tuple[tuple[str, ...], ...]
    """Names of the columns of the text, the second text and the label; the first that exists is used."""
    options: tuple[str, ...]
    """The options that name these columns, for messages; empty if the task names them."""
    labels: tuple[str, ...]
    """The classes; empty while the training file defines them."""
    forms: dict[str, str]
    """Normalized class -> its name; the first form in the training file is the name of all ("1" and "1.0")."""
    hidden: bool
    """Whether labels may be missing."""

    def label_text(self, where: str, record: Record) -> str:
        """The text of the label; empty if it is missing."""
        if self.hidden and not set(self.columns[2]) & set(record):
            return ""
        return cell(where, record, self.columns[2], self.options[2], is_label=True)


def pair_rows(split: Split, targets: np.ndarray, tokenizer: Tokenizer, max_seq_length: int) -> LazyRows[int]:
    """The rows of a split's texts; if a pair does not fit, the longer text is truncated."""
    texts: list[list[np.ndarray]] = []
    truncated = 0
    encoded = tokenizer.encode_batch([row.text for row in split.examples])
    encoded_pairs = tokenizer.encode_batch([row.text_pair or "" for row in split.examples])
    for row, a, b in zip(split.examples, encoded, encoded_pairs, strict=True):
        is_pair = row.text_pair is not None
        a_size, b_size = fit(len(a), len(b) if is_pair else 0, max_seq_length - (3 if is_pair else 2))
        truncated += a_size < len(a) or b_size < len(b)
        texts.append([np.array(ids, np.int32) for ids in ([a[:a_size], b[:b_size]] if is_pair else [a[:a_size]])])
    family.log_long(split, truncated, "inputs are truncated to", max_seq_length)
    lengths = np.array([sum(map(len, parts)) + len(parts) + 1 for parts in texts], np.int32)

    def build(number: int) -> Row:
        return tokenizer.join(*texts[number]) | {"target": targets[number], "weights": np.float32(1)}

    return LazyRows(range(len(texts)), lengths, build)


@dataclass(frozen=True)
class Classification:
    """A task of texts with a class, or with a number.

    Distributions of a data set name columns differently; the first name that exists is used.
    """

    text: tuple[str, ...] = ()
    """Empty: the columns are data.text_column, data.text_pair_column and data.label_column."""
    text_pair: tuple[str, ...] = ()
    label: tuple[str, ...] = ("label",)
    classes: Mapping[str, str] = field(default_factory=dict)
    """Class in the files -> its name.  Empty: the classes are those of the training file."""
    regression: bool = False
    metrics: tuple[str, ...] = ("accuracy",)
    select: str = "accuracy"
    splits: Mapping[str, str] = field(default_factory=lambda: SPLITS)
    header: tuple[str, ...] = ()
    """The columns, if the files have no header line."""
    server: Mapping[str, str] = field(default_factory=dict)
    """Split -> name of the predictions file that the benchmark's server expects."""
    data_config: ClassVar[type[TaskDataConfig]] = ClassificationData

    def heads(self, config: ClassificationData) -> tuple[str, ...]:
        return "pooler", "classifier"

    def labels(self, train: Sequence[Example] = ()) -> tuple[str, ...]:
        if self.regression:
            return (SCORE,)
        if self.classes or not train:
            return tuple(self.classes.values())
        names = sorted({row.label for row in train}, key=_numbers_first)
        if len(names) == 1:
            raise InputError(f"{train[0].id}: all training examples have the class {names[0]!r}; need at least two")
        return tuple(names)

    def examples(self, source: Source, config: ClassificationData, labels: tuple[str, ...]) -> Iterator[Example]:
        columns = self.text, self.text_pair, self.label
        if not self.text:
            pair = (config.text_pair_column,) if config.text_pair_column else ()
            columns = (config.text_column,), pair, (config.label_column,)
        options = tuple(USUAL_NAMES) if not self.text else ("", "", "")
        forms = {normalized(label): label for label in labels}
        reading = Reading(config, columns, options, labels, forms, source.is_hidden)
        skipped: list[InputError] = []
        for where, record in maybe_records(source, config, self.header):
            try:
                if isinstance(record, InputError):
                    raise record
                example = self._example(where, record, reading)
            except InputError as error:
                if source.is_hidden:  # never skipped: servers count the lines of predictions
                    raise
                if config.malformed == "error":
                    if "--data." in str(error):  # it says which option to use
                        raise
                    raise InputError(f"{error}; fix it, or skip such lines with --data.malformed skip") from None
                skipped.append(error)
                continue
            yield example
        if skipped:
            log.warning("%s: %d lines skipped, the first: %s", source.split, len(skipped), skipped[0])

    def _example(self, where: str, record: Record, reading: Reading) -> Example:
        text, text_pair = (
            cell(where, record, names, option) if names else None
            for names, option in zip(reading.columns[:2], reading.options[:2], strict=True)
        )
        return Example(where, text or "", text_pair, self._read_label(where, record, reading))

    def _read_label(self, where: str, record: Record, reading: Reading) -> Any:
        """The label of a record; None if it is hidden."""
        label = reading.label_text(where, record)
        if reading.hidden and self.text and label in HIDDEN_LABELS:
            label = ""
        if not label.strip() and not reading.hidden:
            raise InputError(f"{where}: no label")
        return self._label(where, label, reading) if label.strip() else None

    def _label(self, where: str, value: str, reading: Reading) -> Any:
        """The number, or the name of the class."""
        forms = reading.forms
        if self.regression:
            try:
                number = float(value)
            except ValueError:
                number = math.nan
            if not math.isfinite(number):
                raise InputError(f"{where}: label {value!r} is not a number")
            return number
        key = normalized(value)
        if key in self.classes:
            return self.classes[key]
        if not reading.labels:
            forms.setdefault(key, value.strip())
        if key in forms:
            return forms[key]
        boolean = BOOLEANS.get(key.lower(), "")
        if boolean in self.classes:
            return self.classes[boolean]
        if boolean in forms:
            return forms[boolean]
        if self.classes and key.isdecimal() and int(key) < len(reading.labels):
            return reading.labels[int(key)]  # Hugging Face's data sets number the classes
        raise InputError(f"{where}: label {value!r} is not one of {', '.join(self.classes or reading.labels)}")

    def texts(self, examples: Sequence[Example]) -> list[str]:
        return [text for row in examples for text in (row.text, row.text_pair) if text]

    def rows(self, split: Split, tokenizer: Tokenizer, config: TaskDataConfig) -> LazyRows[int]:
        if self.regression:
            targets = np.array([row.label or 0.0 for row in split.examples], np.float32)
        else:
            numbers = {label: number for number, label in enumerate(split.labels)}
            targets = np.array([numbers.get(row.label, 0) for row in split.examples], np.int32)
        return pair_rows(split, targets, tokenizer, config.max_seq_length)

    def logits(self, apply: Any, params: Any, batch: family.Batch, keys: Array | None) -> family.Logits:
        """`class` [B, labels]; for a regression `score` [B, 1]."""
        logits = family.apply_model(apply, params, batch, keys)["logits"]
        return {"score" if self.regression else "class": logits}

    def loss(self, logits: family.Logits, batch: family.Batch) -> tuple[Array, dict[str, Array]]:
        if self.regression:
            losses = jnp.square(logits["score"][:, 0] - batch["target"])
            return jnp.sum(losses * batch["scale"]), family.metric_sums(batch, squared_error=losses)
        return family.class_loss(logits["class"], batch)

    def outputs(self, apply: Any, params: Any, batch: family.Batch, config: TaskDataConfig) -> family.Outputs:
        """`probabilities` [B, labels], or `score` [B]."""
        logits = self.logits(apply, params, batch, None)
        if self.regression:
            return {"score": logits["score"][:, 0]}
        return {"probabilities": jax.nn.softmax(logits["class"])}

    def score(
        self, split: Split, rows: Any, outputs: family.RowOutputs, tuned: Mapping[str, float] | None = None
    ) -> family.Score:
        if self.regression:
            predictions: list[Any] = [float(row["score"]) for row in outputs]
            gold_std = np.std([row.label for row in split.examples if row.is_labeled] or [1])
            degenerate = bool(np.std(predictions) < 0.01 * max(float(gold_std), 1e-6))
        else:
            predictions = [split.labels[int(np.argmax(row["probabilities"]))] for row in outputs]
            degenerate = family.is_constant(predictions)
        return family.Score(self._metrics(predictions, split) if split.is_labeled else {}, predictions, degenerate)

    def _metrics(self, predictions: Sequence[Any], split: Split) -> dict[str, float]:
        """Metrics of predicted classes (by name) or numbers."""
        gold = [row.label for row in split.examples]
        if not self.regression:
            numbers = {label: number for number, label in enumerate(split.labels)}
            predictions, gold = ([numbers[label] for label in labels] for labels in (predictions, gold))
        return {name: METRICS[name](np.array(predictions), np.array(gold)) for name in self.metrics}

    def baseline(self, train: Split, dev: Split) -> dict[str, float]:
        """The most frequent class or the mean of the training examples."""
        labels = [row.label for row in train.examples]
        constant = np.mean(labels) if self.regression else Counter(labels).most_common(1)[0][0]
        return self._metrics([constant] * len(dev.examples), dev)

    def shown(self, example: Example, prediction: Any) -> dict[str, str]:
        texts = {"text": example.text} | ({"second text": example.text_pair} if example.text_pair else {})
        return texts | {"expected": self._shown(example.label), "predicted": self._shown(prediction)}

    def _shown(self, label: Any) -> str:
        return f"{label:.2f}" if self.regression else str(label)

    def write(self, folder: Path, split: Split, predictions: Sequence[Any]) -> Path:
        """`index<TAB>prediction`, with the classes as in the files (GLUE)."""
        path = folder / self.server.get(split.name, f"{split.name}.tsv")
        in_files = {name: value for value, name in self.classes.items()}
        lines = ["index\tprediction"]
        for number, value in enumerate(predictions):
            lines.append(f"{number}\t{f'{value:.3f}' if self.regression else in_files.get(value, value)}")
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path


def _numbers_first(name: str) -> tuple[bool, float, str]:
    try:
        return False, float(name), name
    except ValueError:
        return True, 0.0, name
