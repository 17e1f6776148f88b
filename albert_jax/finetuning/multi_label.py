"""Classification with any number of labels per text.  For each label, the model predicts yes or no."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from albert_jax.config import InputError
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.finetuning import family
from albert_jax.finetuning.classification import Classification, ClassificationData, Example, Reading, pair_rows
from albert_jax.finetuning.family import LazyRows, Split
from albert_jax.finetuning.files import TaskDataConfig
from albert_jax.finetuning.metrics import METRICS
from albert_jax.finetuning.readers import Record
from albert_jax.pretraining.objective import cross_entropy

THRESHOLD = 0.5
"""A label whose probability is above this is predicted."""


@dataclass(frozen=True)
class MultiLabelData(ClassificationData):
    """Data of a task with several labels per text."""

    label_separator: str = ","
    """Separates the labels in a cell of the label column.  In .jsonl and .parquet the labels may also be a list."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.label_separator:
            raise InputError("label_separator is empty; name the character between labels")


@dataclass(frozen=True)
class MultiLabel(Classification):
    """A task of texts with any number of labels, also none."""

    metrics: tuple[str, ...] = ("micro_f1", "macro_f1")
    select: str = "micro_f1"
    data_config: ClassVar[type[TaskDataConfig]] = MultiLabelData

    def labels(self, train: Sequence[Example] = ()) -> tuple[str, ...]:
        names = sorted({name for row in train for name in row.label})
        if train and not names:
            raise InputError(f"{train[0].id}: no training example has a label")
        return tuple(names)

    def _read_label(self, where: str, record: Record, reading: Reading) -> Any:
        column = reading.columns[2][0]
        value = record.get(column)
        if isinstance(value, list):
            if len(set(map(str, value))) < len(value) or not all(isinstance(part, str | int) for part in value):
                raise InputError(f"{where}: {column} is {value!r:.40}; expected names of labels, not indicators")
            names = list(map(str, value))
        else:
            text = reading.label_text(where, record)
            if reading.hidden and not text.strip():
                return None
            config: Any = reading.config
            names = text.split(config.label_separator)
        return tuple(sorted({self._label(where, name.strip(), reading) for name in names if name.strip()}))

    def rows(self, split: Split, tokenizer: Tokenizer, config: TaskDataConfig) -> LazyRows[int]:
        # [examples, labels, 1]: the last axis of a row's array is that of tokens, which batches pad.
        return pair_rows(split, self._indicators(split, split.labels)[..., None], tokenizer, config.max_seq_length)

    def logits(self, apply: Any, params: Any, batch: family.Batch, keys: Array | None) -> family.Logits:
        """`labels` [B, labels, 2]: the logits of "no" and "yes" for each label."""
        logits = family.apply_model(apply, params, batch, keys)["logits"]
        return {"labels": jnp.stack([jnp.zeros_like(logits), logits], axis=-1)}

    def loss(self, logits: family.Logits, batch: family.Batch) -> tuple[Array, dict[str, Array]]:
        """The mean of the labels' cross-entropies, as BCEWithLogitsLoss."""
        targets = batch["target"][..., 0].astype(jnp.int32)
        losses = jnp.mean(cross_entropy(logits["labels"], targets), axis=1)
        correct = jnp.mean(jnp.argmax(logits["labels"], axis=-1) == targets, axis=1)
        return jnp.sum(losses * batch["scale"]), family.metric_sums(batch, accuracy=correct)

    def outputs(self, apply: Any, params: Any, batch: family.Batch, config: TaskDataConfig) -> family.Outputs:
        """`probabilities` [B, labels]."""
        return {"probabilities": jax.nn.sigmoid(family.apply_model(apply, params, batch, None)["logits"])}

    def score(
        self, split: Split, rows: Any, outputs: family.RowOutputs, tuned: Mapping[str, float] | None = None
    ) -> family.Score:
        predictions = [chosen(row["probabilities"], split.labels) for row in outputs]
        metrics = self._metrics(predictions, split) if split.is_labeled else {}
        return family.Score(metrics, predictions, family.is_constant(predictions))

    def _metrics(self, predictions: Sequence[Any], split: Split) -> dict[str, float]:
        predicted = self._indicators(
            split._replace(examples=[example_of(labels) for labels in predictions]), split.labels
        )
        gold = self._indicators(split, split.labels)
        return {name: METRICS[name](predicted, gold) for name in self.metrics}

    def _indicators(self, split: Split, labels: Sequence[str]) -> np.ndarray:
        """[examples, labels] int8: whether an example has a label."""
        return np.array([[name in (row.label or ()) for name in labels] for row in split.examples], np.int8)

    def baseline(self, train: Split, dev: Split) -> dict[str, float]:
        """The labels that most training examples have, or the most frequent one."""
        counts = Counter(name for row in train.examples for name in row.label)
        frequent = tuple(name for name, count in counts.items() if 2 * count > len(train.examples))
        constant = frequent or (counts.most_common(1)[0][0],)
        return self._metrics([constant] * len(dev.examples), dev)

    def _shown(self, label: Any) -> str:
        return ", ".join(label) or "none"

    def write(self, folder: Path, split: Split, predictions: Sequence[Any]) -> Path:
        """A record with `index` and `labels` per line."""
        path = folder / f"{split.name}.jsonl"
        records = ({"index": number, "labels": names} for number, names in enumerate(predictions))
        path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
        return path


def example_of(labels: tuple[str, ...]) -> Example:
    """An example with these labels."""
    return Example("", "", None, labels)


def chosen(probabilities: np.ndarray, labels: Sequence[str]) -> tuple[str, ...]:
    """The labels whose probability is above the threshold."""
    return tuple(name for name, p in zip(labels, probabilities, strict=True) if p > THRESHOLD)
