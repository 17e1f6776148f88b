"""What pretraining asks of the model: batches drawn on device from sequences, and the loss on them.

`draw` runs inside the jitted step, on the global batch, keyed by (seed, step): every epoch sees new pairs and masks, and
they are the same on any number of devices.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from albert_jax.config import check_fields, require
from albert_jax.pretraining import masking, segment_pairs
from albert_jax.pretraining.segment_pairs import PAIRS, Sequence

Examples = dict[str, Array]
Metrics = dict[str, Array]
"""Name -> [2]: sum and weight; they add up over rows, devices and batches."""


@dataclass(frozen=True)
class ObjectiveConfig:
    """How inputs are drawn from text, in the names of the released flags."""

    sentence_objective: str = "sop"
    """Sentence order, next sentence, or the masked-LM loss alone (paper, Table 5)."""
    max_seq_length: int = 512
    """S: [CLS] A [SEP] B [SEP] and padding."""
    max_predictions_per_seq: int = 77
    """P: most pieces predicted in a sequence; 15 % of 512.  (The released command's 20 masks 3.9 %.)"""
    masked_lm_prob: float = 0.15
    """Share of a sequence's tokens that is predicted."""
    ngram: int = 3
    """Most words (or pieces) in a masked span."""
    do_whole_word_mask: bool = True
    """Spans are of whole words; else of pieces."""
    favor_shorter_ngram: bool = True
    """p(n) proportional to 1 / n, else reversed."""
    short_seq_prob: float = 0.1
    """Share of sequences cut to a random length."""

    def __post_init__(self) -> None:
        check_fields(self)
        require(
            self.sentence_objective in PAIRS,
            f"sentence_objective: one of {', '.join(PAIRS)}, got {self.sentence_objective!r}",
        )
        require(self.max_seq_length >= 8, f"max_seq_length must be at least 8, got {self.max_seq_length}")
        require(0 < self.masked_lm_prob < 1, f"masked_lm_prob must be in (0, 1), got {self.masked_lm_prob}")
        require(
            1 <= self.max_predictions_per_seq <= self.max_seq_length,
            f"max_predictions_per_seq must be in [1, max_seq_length], got {self.max_predictions_per_seq}",
        )
        require(self.ngram >= 1, f"ngram must be at least 1, got {self.ngram}")
        require(0 <= self.short_seq_prob <= 1, f"short_seq_prob must be in [0, 1], got {self.short_seq_prob}")


@dataclass(frozen=True)
class Vocabulary:
    """What the device needs to know of the tokenizer."""

    size: int
    pad_id: int
    cls_id: int
    sep_id: int
    mask_id: int
    starts_word: np.ndarray
    """[V] bool: the piece begins a word."""


def row_length(columns: int) -> int:
    """S of inputs that are drawn from sequences of so many columns, C: the other way round of `data.sequences.capacity`."""
    return -(-2 * columns // 3) + 3


def predictions(config: ObjectiveConfig, length: int) -> int:
    """P of inputs of `length`: of shorter ones than `max_seq_length`, no more than masked_lm_prob asks for."""
    if length == config.max_seq_length:
        return config.max_predictions_per_seq
    return min(config.max_predictions_per_seq, max(1, round(length * config.masked_lm_prob)))


def draw(config: ObjectiveConfig, vocabulary: Vocabulary, batch: dict[str, Array], key: Array) -> Examples:
    """Pairs and masks for a batch of sequences (`tokens` [B, C], `sentence` [B, C], `document` [B]).

    S and P follow C, so that sequences with less than `capacity(max_seq_length)` columns make shorter inputs.

    Returns:
      input_ids, attention_mask, token_type_ids [B, S]; masked_lm_positions, masked_lm_labels, masked_lm_weights [B, P];
      sentence_labels, sentence_weights [B]; dropout_keys [B]; and masked_lm_scale, sentence_scale, the weights divided by
      their sum over the whole batch, so that losses of parts of the batch add up to the batch's.
    """
    rows = Sequence(batch["tokens"], batch["sentence"])
    other_key, row_key = jax.random.split(key)
    index, found = segment_pairs.other_rows(other_key, batch["document"])
    # Without another document in the batch there is no negative: an empty row says so.
    others = Sequence(rows.tokens[index], jnp.where(found[:, None], rows.sentence[index], -1))
    starts_word = jnp.asarray(vocabulary.starts_word | (not config.do_whole_word_mask))
    length = row_length(batch["tokens"].shape[1])
    room, most = length - 3, predictions(config, length)

    def one(key: Array, row: Sequence, other: Sequence) -> Examples:
        used_key, pair_key, cut_key, choose_key, hide_key, dropout_key = jax.random.split(key, 6)
        end = segment_pairs.used_length(used_key, row, room, config.short_seq_prob)
        pair = PAIRS[config.sentence_objective](pair_key, row, other, end)
        a, b = segment_pairs.truncate(cut_key, pair.a, pair.b, room, row.tokens.shape[0])
        ids, mask, types = segment_pairs.assemble(
            pair._replace(a=a, b=b), length, vocabulary.cls_id, vocabulary.sep_id, vocabulary.pad_id
        )
        special = (ids == vocabulary.cls_id) | (ids == vocabulary.sep_id) | (mask == 0)
        wanted = masking.budget(jnp.sum(mask), length, config.masked_lm_prob, most)
        real = row.sentence[0] >= 0  # an empty row only fills up a batch
        chosen = masking.choose(
            choose_key,
            starts_word[ids],
            jnp.where(special, -1, types),
            wanted * real,
            most,
            config.ngram,
            config.favor_shorter_ngram,
        )
        masked = masking.hide(hide_key, ids, chosen, most, vocabulary.mask_id, vocabulary.size)
        return {
            "input_ids": masked.input_ids,
            "attention_mask": mask * real,
            "token_type_ids": types,
            "masked_lm_positions": masked.positions,
            "masked_lm_labels": masked.labels,
            "masked_lm_weights": masked.weights,
            "sentence_labels": pair.label,
            "sentence_weights": (real & pair.counts).astype(jnp.float32),
            "dropout_keys": dropout_key,
        }

    examples = jax.vmap(one)(jax.random.split(row_key, len(batch["document"])), rows, others)
    for name in ("masked_lm", "sentence"):
        weights = examples[f"{name}_weights"]
        examples[f"{name}_scale"] = weights / (jnp.sum(weights) + 1e-5)
    return examples


def loss(config: ObjectiveConfig, apply: Any, params: Any, examples: Examples, train: bool) -> tuple[Array, Metrics]:
    """Masked-LM loss plus sentence loss, equally weighted (paper, section 3.1), and metrics.

    Args:
      apply: the model's `apply`.
      examples: rows of what `draw` returned; the losses of a batch's parts add up to the batch's.
      train: with dropout.
    """
    outputs = apply(
        {"params": params},
        examples["input_ids"],
        examples["attention_mask"],
        examples["token_type_ids"],
        examples["masked_lm_positions"],
        dropout_keys=examples["dropout_keys"] if train else None,
    )
    total = jnp.float32(0)
    metrics: Metrics = {"tokens": jnp.stack([jnp.sum(examples["attention_mask"]).astype(jnp.float32), jnp.float32(0)])}
    heads = [("mlm", "prediction_logits", "masked_lm"), (config.sentence_objective, "sop_logits", "sentence")]
    for name, logits, kind in heads:
        labels, weights = examples[f"{kind}_labels"], examples[f"{kind}_weights"]
        losses = cross_entropy(outputs[logits], labels)
        if name != "none":
            total += jnp.sum(losses * examples[f"{kind}_scale"])
            right = (jnp.argmax(outputs[logits], axis=-1) == labels) * weights
            metrics[f"{name}_loss"] = jnp.stack([jnp.sum(losses * weights), jnp.sum(weights)])
            metrics[f"{name}_accuracy"] = jnp.stack([jnp.sum(right), jnp.sum(weights)])
    return total, metrics


def cross_entropy(logits: Array, labels: Array) -> Array:
    """-log softmax(logits)[labels] over the last axis, in float32."""
    logits = logits.astype(jnp.float32)
    picked = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - picked


def baseline(counts: np.ndarray, examples: Examples) -> Metrics:
    """What the masked-LM task gives without a model: the train split's unigram distribution, and its commonest piece.

    `counts` [V]: pieces of the train split; one is added to each so that an unseen piece has a finite loss.
    """
    log_prob = jnp.asarray(np.log((counts + 1) / (counts + 1).sum()), jnp.float32)
    labels, weights = examples["masked_lm_labels"], examples["masked_lm_weights"]
    right = (labels == int(np.argmax(counts))) * weights
    return {
        "mlm_loss": jnp.stack([jnp.sum(-log_prob[labels] * weights), jnp.sum(weights)]),
        "mlm_accuracy": jnp.stack([jnp.sum(right), jnp.sum(weights)]),
    }
