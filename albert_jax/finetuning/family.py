"""What the families of tasks have in common: their interface, the pieces of their losses, and inference over rows."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from tqdm import tqdm

from albert_jax.config import require
from albert_jax.data.batches import Rows, eval_batches
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.finetuning.files import Source, TaskDataConfig
from albert_jax.pretraining.objective import cross_entropy

log = logging.getLogger(__name__)

Batch = Mapping[str, Array]
Outputs = dict[str, Array]
Found = list[dict[str, np.ndarray]]
"""For each row, what `outputs` gave for it."""


class Scored(NamedTuple):
    """What a model came to on one split."""

    metrics: dict[str, float]
    """Empty where the split has no labels."""
    predictions: list[Any]
    """An example each, for `write`."""
    degenerate: bool
    """Whether the predictions are what no training at all would give: always the same."""


class Family(Protocol):
    """A task of some family; an entry of `TASKS`.  `Classification` is the plainest one to read."""

    @property
    def splits(self) -> Mapping[str, str]:
        """Split -> glob of its files: `train`, one or more that begin with `dev`, and others, which are to be predicted."""

    @property
    def select(self) -> str:
        """The metric of the first dev split that the best checkpoint is chosen by, the larger the better."""

    def heads(self, config: TaskDataConfig) -> tuple[str, ...]:
        """What stands on the encoder (`model.heads.HEADS`)."""

    def read(
        self, sources: Mapping[str, Source], config: TaskDataConfig
    ) -> tuple[dict[str, list[Any]], tuple[str, ...]]:
        """The examples of each split, and the names of the classes.

        Raises:
          InputError: files or lines that cannot be read; labels that the training examples do not have.
        """

    def texts(self, examples: Sequence[Any]) -> list[str]:
        """All text of some examples, for a vocabulary."""

    def rows(
        self, examples: Sequence[Any], tokenizer: Tokenizer, config: TaskDataConfig, labels: tuple[str, ...], split: str
    ) -> Rows:
        """The model's inputs for some examples, one or more an example."""

    def loss(self, apply: Any, params: Any, batch: Batch, train: bool) -> tuple[Array, dict[str, Array]]:
        """As `train_step.Task.loss`."""

    def outputs(self, apply: Any, params: Any, batch: Batch, config: TaskDataConfig) -> Outputs:
        """What `score` needs of the model, [B, ...] each; runs jitted."""

    def score(
        self,
        examples: Sequence[Any],
        rows: Any,
        found: Found,
        labels: tuple[str, ...],
        dev: Mapping[str, float] | None = None,
    ) -> Scored:
        """Metrics and predictions from the outputs for all rows of a split.

        What is tuned, such as a threshold, is tuned on these examples, or taken from `dev`, the metrics of those it was
        tuned on.
        """

    def baseline(self, train: Sequence[Any], dev: Sequence[Any], labels: tuple[str, ...]) -> dict[str, float]:
        """The metrics without a model, such as those of the commonest class."""

    def write(self, folder: Path, split: str, examples: Sequence[Any], predictions: Sequence[Any]) -> Path:
        """Writes predictions as the benchmark's server takes them; returns the file."""


def run(apply: Any, params: Any, batch: Batch, dropout_keys: Array | None, **more: Array) -> Outputs:
    """The model on a batch of rows."""
    return apply(
        {"params": params},
        batch["input_ids"],
        batch["attention_mask"],
        batch["token_type_ids"],
        dropout_keys=dropout_keys,
        **more,
    )


def draw(batch: Batch, key: Array) -> Outputs:
    """A training batch with `dropout_keys` [B], and `scale`: its weights divided by their sum over the whole batch."""
    scale = batch["weights"] / jnp.maximum(jnp.sum(batch["weights"]), 1)
    return dict(batch) | {"scale": scale, "dropout_keys": jax.random.split(key, len(batch["input_ids"]))}


def count(batch: Batch, **of_rows: Array) -> dict[str, Array]:
    """Metrics as the loop adds them up: the tokens, and the weighted sum of each value with the weights' sum."""
    weights = batch["weights"]
    tokens = jnp.stack([jnp.sum(batch["attention_mask"]).astype(jnp.float32), jnp.float32(0)])
    means = {name: jnp.stack([jnp.sum(value * weights), jnp.sum(weights)]) for name, value in of_rows.items()}
    return {"tokens": tokens} | means


def class_loss(logits: Array, batch: Batch) -> tuple[Array, dict[str, Array]]:
    """Cross-entropy of [..., classes] with `target` [...], and accuracy."""
    losses = cross_entropy(logits, batch["target"])
    right = (jnp.argmax(logits, axis=-1) == batch["target"]).astype(jnp.float32)
    return jnp.sum(losses * batch["scale"]), count(batch, accuracy=right)


def all_the_same(predictions: Sequence[Any]) -> bool:
    """Whether more than 99 % of the predictions are one: what a run gives that never left the commonest class."""
    commonest = Counter(predictions).most_common(1)
    return len(predictions) > 1 and commonest[0][1] > 0.99 * len(predictions)


def unique(source: Source, ids: Iterable[str]) -> None:
    """Refuses two questions of one name, for predictions go by names.

    Raises:
      InputError: as said.
    """
    twice = next((name for name, times in Counter(ids).items() if times > 1), None)
    require(twice is None, f"{source.name}: two questions have the id {twice!r}; predictions go by id")


def infer(
    step: Callable[[Any, Any], Outputs],
    params: Any,
    rows: Rows,
    batch_size: int,
    max_seq_length: int,
    put: Callable[[Any], Any] = lambda batch: batch,
) -> Found:
    """`step(params, batch)` over all rows: for each row, in their order, its part of the outputs.

    Outputs are fetched one batch late, so that the device does not wait.
    """
    found: Found = [{} for _ in range(len(rows))]
    batches = -(-len(rows) // batch_size)
    pending: tuple[np.ndarray, Outputs] | None = None

    def fetch(chosen: np.ndarray, outputs: Outputs) -> None:
        arrays = jax.device_get(outputs)
        for at, number in enumerate(chosen.tolist()):
            found[number] = {name: value[at] for name, value in arrays.items()}

    for chosen, batch in tqdm(
        eval_batches(rows, batch_size, max_seq_length),
        total=batches,
        unit="batch",
        leave=False,
        disable=None if batches > 10 else True,
    ):
        outputs = step(params, put(batch))
        if pending is not None:
            fetch(*pending)
        pending = chosen, outputs
    if pending is not None:
        fetch(*pending)
    return found


def tell_long(split: str, long: int, total: int, what: str, limit: int) -> None:
    """Says how many of a split's texts were too long, and what becomes of them."""
    if long:
        log.info("%s%d of %d %s %d tokens", f"{split}: " * bool(split), long, total, what, limit)
