"""The pretraining objective: examples drawn on device from rows of sentences, and the loss on them.

`draw` runs inside the jitted step on the global batch, with a key of (seed, step).  Every epoch has new pairs and masks.  They
are the same for any number of devices, processes and micro-batches, because each row has its own key.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from albert_jax.config import InputError, check_fields, choice
from albert_jax.pretraining import masking, segment_pairs
from albert_jax.pretraining.segment_pairs import SENTENCE_OBJECTIVES, Sequence

if TYPE_CHECKING:  # `bench` runs without sentencepiece
    from albert_jax.data.tokenizer import Tokenizer

Examples = dict[str, Array]
Metrics = dict[str, Array]
"""Name -> [2]: sum and weight, which are summed over rows, devices and batches."""


@dataclass(frozen=True)
class ObjectiveConfig:
    """How inputs are drawn from text.  Most names are those of the released flags."""

    sentence_objective: str = choice("sop", SENTENCE_OBJECTIVES)
    """sop: sentence-order prediction; nsp: next-sentence prediction; sso: both, as three classes; none: masked LM only (paper, Table 5)."""
    max_seq_length: int = 512
    """S: length of [CLS] A [SEP] B [SEP] with padding."""
    max_predictions_per_seq: int = 77
    """P: maximum number of pieces to predict per sequence; 77 is 15 % of 512.  The released command's 20 is only 3.9 %."""
    masked_lm_prob: float = 0.15
    """Fraction of a sequence's tokens to predict."""
    ngram: int = 3
    """Maximum number of words (or pieces) in a masked span."""
    do_whole_word_mask: bool = True
    """Mask whole words, not pieces."""
    favor_shorter_ngram: bool = True
    """The probability of a span of n words is proportional to 1 / n; otherwise to 1 / (ngram + 1 - n)."""
    short_seq_prob: float = 0.1
    """Fraction of sequences that are cut to a random length."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.max_seq_length < 8:
            raise InputError(f"max_seq_length must be at least 8, got {self.max_seq_length}")
        if not 0 < self.masked_lm_prob < 1:
            raise InputError(f"masked_lm_prob must be in (0, 1), got {self.masked_lm_prob}")
        if not 1 <= self.max_predictions_per_seq <= self.max_seq_length:
            raise InputError(
                f"max_predictions_per_seq must be in [1, max_seq_length], got {self.max_predictions_per_seq}"
            )
        if self.ngram < 1:
            raise InputError(f"ngram must be at least 1, got {self.ngram}")
        if not 0 <= self.short_seq_prob <= 1:
            raise InputError(f"short_seq_prob must be in [0, 1], got {self.short_seq_prob}")


@dataclass(frozen=True)
class Vocabulary:
    """The properties of the tokenizer that the device needs."""

    size: int
    pad_id: int
    cls_id: int
    sep_id: int
    mask_id: int
    starts_word: np.ndarray
    """[V] bool: whether the piece starts a word."""


def vocabulary_of(tokenizer: "Tokenizer") -> Vocabulary:
    """The `Vocabulary` of a tokenizer."""
    t = tokenizer
    return Vocabulary(t.vocab_size, t.pad_id, t.cls_id, t.sep_id, t.mask_id, t.starts_word)


def row_length(columns: int) -> int:
    """The sequence length S of inputs drawn from rows of C tokens: the inverse of `data.sequences.capacity`."""
    return -(-2 * columns // 3) + 3


def max_predictions(config: ObjectiveConfig, length: int) -> int:
    """P for inputs of `length`: `max_predictions_per_seq`, but at most length x masked_lm_prob below `max_seq_length`."""
    if length == config.max_seq_length:
        return config.max_predictions_per_seq
    return min(config.max_predictions_per_seq, max(1, round(length * config.masked_lm_prob)))


def draw(config: ObjectiveConfig, vocabulary: Vocabulary, batch: dict[str, Array], key: Array) -> Examples:
    """Draw pairs and masks for a batch of rows: `tokens` [B, C], `sentence` [B, C], `document` [B].

    S and P follow from C.  Rows with fewer than `capacity(max_seq_length)` columns (length buckets) give shorter inputs, drawn
    as in a run with that `max_seq_length`.

    Returns:
      input_ids, attention_mask, token_type_ids [B, S]; masked_lm_positions, masked_lm_labels, masked_lm_weights [B, P];
      sentence_labels, sentence_weights [B]; dropout_keys [B]; and masked_lm_scale, sentence_scale: the weights divided by
      their sum over the batch, so that the losses of micro-batches sum to the loss of the batch.
    """
    rows = Sequence(batch["tokens"], batch["sentence"])
    other_key, row_key = jax.random.split(key)
    index, has_other = segment_pairs.other_rows(other_key, batch["document"])
    # If the batch has only one document, the other row is empty: no negative is possible.
    others = Sequence(rows.tokens[index], jnp.where(has_other[:, None], rows.sentence[index], -1))
    starts_word = jnp.asarray(vocabulary.starts_word | (not config.do_whole_word_mask))
    length = row_length(batch["tokens"].shape[1])
    room, num_predictions = length - 3, max_predictions(config, length)

    def draw_row(key: Array, row: Sequence, other: Sequence) -> Examples:
        used_key, pair_key, cut_key, choose_key, mask_key, dropout_key = jax.random.split(key, 6)
        end = segment_pairs.used_length(used_key, row, room, config.short_seq_prob)
        pair = SENTENCE_OBJECTIVES[config.sentence_objective].make_pair(pair_key, row, other, end)
        a, b = segment_pairs.truncate(cut_key, pair.a, pair.b, room, row.tokens.shape[0])
        ids, mask, types = segment_pairs.assemble(
            pair._replace(a=a, b=b), length, vocabulary.cls_id, vocabulary.sep_id, vocabulary.pad_id
        )
        special = (ids == vocabulary.cls_id) | (ids == vocabulary.sep_id) | (mask == 0)
        budget = masking.prediction_budget(jnp.sum(mask), length, config.masked_lm_prob, num_predictions)
        has_text = row.sentence[0] >= 0  # false for the rows that fill up the last batch of an evaluation
        chosen = masking.choose(
            choose_key,
            starts_word[ids],
            jnp.where(special, -1, types),
            budget * has_text,
            num_predictions,
            config.ngram,
            config.favor_shorter_ngram,
        )
        masked = masking.hide(mask_key, ids, chosen, num_predictions, vocabulary.mask_id, vocabulary.size)
        return {
            "input_ids": masked.input_ids,
            "attention_mask": mask * has_text,
            "token_type_ids": types,
            "masked_lm_positions": masked.positions,
            "masked_lm_labels": masked.labels,
            "masked_lm_weights": masked.weights,
            "sentence_labels": pair.label,
            "sentence_weights": (has_text & pair.has_weight).astype(jnp.float32),
            "dropout_keys": dropout_key,
        }

    examples = jax.vmap(draw_row)(jax.random.split(row_key, len(batch["document"])), rows, others)
    for name in ("masked_lm", "sentence"):
        weights = examples[f"{name}_weights"]
        examples[f"{name}_scale"] = weights / (jnp.sum(weights) + 1e-5)
    return examples


def loss(config: ObjectiveConfig, apply: Any, params: Any, examples: Examples, train: bool) -> tuple[Array, Metrics]:
    """Masked-LM loss plus sentence loss with equal weights (paper, section 3.1), and metrics.

    Args:
      config: for the sentence objective.
      apply: the model's `apply`.
      params: the model's parameters.
      examples: the result of `draw`, or some of its rows; optionally with `num_layers` [B], the same number in all rows.
      train: use dropout.
    """
    return loss_of_outputs(config, outputs(apply, params, examples, train), examples)


def outputs(apply: Any, params: Any, examples: Examples, train: bool, **options: Any) -> Examples:
    """The outputs of a model for `examples`; see `loss`."""
    if "num_layers" in examples:
        options["num_layers"] = examples["num_layers"][0]
    return apply(
        {"params": params},
        examples["input_ids"],
        examples["attention_mask"],
        examples["token_type_ids"],
        examples["masked_lm_positions"],
        dropout_keys=examples["dropout_keys"] if train else None,
        **options,
    )


def loss_of_outputs(config: ObjectiveConfig, outputs: Examples, examples: Examples) -> tuple[Array, Metrics]:
    """`loss`, given the outputs of the model."""
    total = jnp.float32(0)
    metrics: Metrics = {"tokens": jnp.stack([jnp.sum(examples["attention_mask"]).astype(jnp.float32), jnp.float32(0)])}
    heads = [("mlm", "prediction_logits", "masked_lm")]
    if SENTENCE_OBJECTIVES[config.sentence_objective].classes:
        heads.append((config.sentence_objective, "sop_logits", "sentence"))
    for name, logits, kind in heads:
        labels, weights = examples[f"{kind}_labels"], examples[f"{kind}_weights"]
        losses = cross_entropy(outputs[logits], labels)
        total += jnp.sum(losses * examples[f"{kind}_scale"])
        correct = (jnp.argmax(outputs[logits], axis=-1) == labels) * weights
        metrics[f"{name}_loss"] = jnp.stack([jnp.sum(losses * weights), jnp.sum(weights)])
        metrics[f"{name}_accuracy"] = jnp.stack([jnp.sum(correct), jnp.sum(weights)])
    return total, metrics


def cross_entropy(logits: Array, labels: Array) -> Array:
    """-log softmax(logits)[labels] over the last axis, in float32."""
    logits = logits.astype(jnp.float32)
    label_logits = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - label_logits


def sentence_labels(examples: Examples, objective: str, head_classes: tuple[str, ...]) -> Array:
    """Convert the labels of `objective` to the classes of a sentence head that was trained on a different objective.

    Classes are matched by name.  A class that the head lacks becomes the head's last class.  So a head can be scored on every
    objective with at most as many classes (paper, Table 5).
    """
    classes = SENTENCE_OBJECTIVES[objective].classes
    last = len(head_classes) - 1
    indices = [head_classes.index(name) if name in head_classes else last for name in classes]
    return jnp.asarray(indices, jnp.int32)[examples["sentence_labels"]]
