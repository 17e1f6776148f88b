"""The interface of a task family, and what the families share: reading splits, parts of their losses, inference over rows."""

import itertools
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from tqdm import tqdm

from albert_jax.config import InputError
from albert_jax.data.batches import Row, Rows, eval_batches
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.finetuning.files import Source, TaskDataConfig
from albert_jax.model.albert import AlbertConfig
from albert_jax.model.depth import layers_of_step
from albert_jax.pretraining.objective import cross_entropy

log = logging.getLogger(__name__)

T = TypeVar("T")
Batch = Mapping[str, Array]
Outputs = dict[str, Array]
Logits = dict[str, Array]
"""Name -> logits with the classes on the last axis.  One class means a score."""
RowOutputs = list[dict[str, np.ndarray]]
"""For each row, the values that `Family.outputs` computed for it."""


class Split(NamedTuple):
    """The examples of one split."""

    name: str
    examples: Sequence[Any]
    labels: tuple[str, ...] = ()
    """Names of the classes; empty for families without classes."""

    @property
    def is_labeled(self) -> bool:
        """Whether the labels of all examples are known."""
        return all(example.is_labeled for example in self.examples)


class Score(NamedTuple):
    """Metrics and predictions of a model on one split."""

    metrics: dict[str, float]
    """Empty if the split has no labels."""
    predictions: list[Any]
    """One per example, for `Family.write`."""
    degenerate: bool
    """True if the predictions are (almost) constant, as those of an untrained model."""


class Family(Protocol):
    """A task; an entry of `TASKS`.  `Classification` is the simplest implementation."""

    @property
    def data_config(self) -> type[TaskDataConfig]:
        """The family's data settings."""

    @property
    def splits(self) -> Mapping[str, str]:
        """Split -> glob of its files: `train`, one or more that begin with `dev`, and others, which are predicted."""

    @property
    def select(self) -> str:
        """The metric of the first dev split that selects the best checkpoint; larger is better."""

    def heads(self, config: Any) -> tuple[str, ...]:
        """The heads of the model (`model.heads.HEADS`)."""

    def examples(self, source: Source, config: Any, labels: tuple[str, ...]) -> Iterator[Any]:
        """Read the examples of one split.

        Args:
          labels: the classes; for the training split, those that are known before it is read.

        Raises:
          InputError: files or lines that cannot be read; labels that the training examples do not have.
        """

    def labels(self, train: Sequence[Any] = ()) -> tuple[str, ...]:
        """Names of the classes, given the training examples; before they are read, those that the task defines."""

    def texts(self, examples: Sequence[Any]) -> list[str]:
        """All text of the examples, for training a vocabulary."""

    def rows(self, split: Split, tokenizer: Tokenizer, config: Any) -> Rows:
        """The model inputs of a split, one or more per example."""

    def logits(self, apply: Any, params: Any, batch: Batch, keys: Array | None) -> Logits:
        """What the loss reads of the model; `keys` [B] for dropout, or None.  Calls `apply` once."""

    def loss(self, logits: Logits, batch: Batch) -> tuple[Array, dict[str, Array]]:
        """Loss and metrics of a batch, as the train loop expects them."""

    def outputs(self, apply: Any, params: Any, batch: Batch, config: Any) -> Outputs:
        """The model outputs that `score` needs, [B, ...] each; runs jitted."""

    def score(self, split: Split, rows: Any, outputs: RowOutputs, tuned: Mapping[str, float] | None = None) -> Score:
        """Metrics and predictions from the outputs of all rows of a split.

        Args:
          tuned: metrics of the dev split.  Thresholds are taken from them, so that test labels are not used for tuning;
            if None, thresholds are tuned on this split.
        """

    def baseline(self, train: Split, dev: Split) -> dict[str, float]:
        """Metrics of a trivial baseline, such as the most frequent class."""

    def shown(self, example: Any, prediction: Any) -> dict[str, str]:
        """A labeled example in a report: column -> text, with the columns `expected` and `predicted`."""

    def write(self, folder: Path, split: Split, predictions: Sequence[Any]) -> Path:
        """Write predictions in the format of the benchmark's server; return the file."""


def read_splits(task: Family, sources: Mapping[str, Source], config: TaskDataConfig) -> dict[str, Split]:
    """Read all splits, `train` first, each limited to the configured number of examples.

    Raises:
      InputError: as `Family.examples`; a split without examples; training or dev examples without a label.
    """
    splits: dict[str, Split] = {}
    labels = task.labels()
    for name, source in sources.items():
        examples = list(itertools.islice(task.examples(source, config, labels), source.limit(config)))
        if not examples:
            raise InputError(f"{source.name}: no examples")
        unlabeled = next((example.id for example in examples if not example.is_labeled), None)
        if unlabeled is not None and not source.is_hidden:
            raise InputError(f"{source.name}: no label for {unlabeled}; all training and dev examples need one")
        if name == "train":
            labels = task.labels(examples)
        splits[name] = Split(name, examples, labels)
    return splits


def unique_ids(source: Source, examples: Iterator[Any]) -> Iterator[Any]:
    """Yield the examples; raise InputError if an id repeats, because prediction files are keyed by id."""
    seen = set()
    for example in examples:
        if example.id in seen:
            raise InputError(f"{source.name}: two questions have the id {example.id!r}; make ids unique")
        seen.add(example.id)
        yield example


@dataclass(frozen=True)
class LazyRows(Generic[T]):
    """Rows that are built when they are read."""

    items: Sequence[T]
    lengths: np.ndarray
    build: Callable[[T], Row]
    """The row of an item."""

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> Row:
        return self.build(self.items[number])


def apply_model(apply: Any, params: Any, batch: Batch, dropout_keys: Array | None, **inputs: Array) -> Outputs:
    """The model's outputs for a batch of rows."""
    if "num_layers" in batch:
        inputs["num_layers"] = batch["num_layers"][0]
    return apply(
        {"params": params},
        batch["input_ids"],
        batch["attention_mask"],
        batch["token_type_ids"],
        dropout_keys=dropout_keys,
        **inputs,
    )


def draw(config: AlbertConfig, batch: Batch, key: Array) -> Outputs:
    """Add `dropout_keys` [B], `scale`, the weights divided by their sum over the global batch, and a random number of layers."""
    rows = len(batch["input_ids"])
    scale = batch["weights"] / jnp.maximum(jnp.sum(batch["weights"]), 1)
    drawn = {"scale": scale, "dropout_keys": jax.random.split(key, rows)}
    return dict(batch) | drawn | layers_of_step(config.depth_sampling, key, config.num_hidden_layers, rows)


def train_loss(task: Family, apply: Any, params: Any, batch: Batch) -> tuple[Array, dict[str, Array]]:
    """Loss and metrics of a batch from `draw`, with dropout."""
    return task.loss(task.logits(apply, params, batch, batch["dropout_keys"]), batch)


def metric_sums(batch: Batch, **values: Array) -> dict[str, Array]:
    """Metrics as the loop accumulates them: the number of tokens, and (weighted sum, sum of weights) of each value."""
    weights = batch["weights"]
    tokens = jnp.stack([jnp.sum(batch["attention_mask"]).astype(jnp.float32), jnp.float32(0)])
    sums = {name: jnp.stack([jnp.sum(value * weights), jnp.sum(weights)]) for name, value in values.items()}
    return {"tokens": tokens} | sums


def class_loss(logits: Array, batch: Batch) -> tuple[Array, dict[str, Array]]:
    """Cross-entropy of [..., classes] with `target` [...], and accuracy."""
    losses = cross_entropy(logits, batch["target"])
    correct = (jnp.argmax(logits, axis=-1) == batch["target"]).astype(jnp.float32)
    return jnp.sum(losses * batch["scale"]), metric_sums(batch, accuracy=correct)


def is_constant(predictions: Sequence[Any]) -> bool:
    """True if more than 99 % of several predictions are equal."""
    return len(predictions) > 1 and Counter(predictions).most_common(1)[0][1] > 0.99 * len(predictions)


def infer(
    step: Callable[[Any, Any], Outputs],
    params: Any,
    rows: Rows,
    batch_size: int,
    max_seq_length: int,
    put: Callable[[Any], Any] = lambda batch: batch,
) -> RowOutputs:
    """Run `step(params, batch)` over all rows; return each row's outputs, in the order of the rows."""
    row_outputs: RowOutputs = [{} for _ in range(len(rows))]
    total = -(-len(rows) // batch_size)

    def fetch(numbers: np.ndarray, outputs: Outputs) -> None:
        arrays = jax.device_get(outputs)
        for at, number in enumerate(numbers.tolist()):
            row_outputs[number] = {name: value[at] for name, value in arrays.items()}

    pending: list[tuple[np.ndarray, Outputs]] = []
    batches = eval_batches(rows, batch_size, max_seq_length)
    for numbers, batch in tqdm(batches, total=total, unit="batch", leave=False, disable=None if total > 10 else True):
        pending.append((numbers, step(params, put(batch))))
        if len(pending) > 1:  # fetched one batch late, so that the device does not wait
            fetch(*pending.pop(0))
    for batch_outputs in pending:
        fetch(*batch_outputs)
    return row_outputs


def log_long(split: Split, count: int, message: str, limit: int) -> None:
    """Log how many examples of a split exceed a length, and what is done with them."""
    if count:
        log.info(
            "%s%d of %d %s %d tokens",
            f"{split.name}: " if split.name else "",
            count,
            len(split.examples),
            message,
            limit,
        )
