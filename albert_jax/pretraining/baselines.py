"""Baselines of the held-out metrics: the scores of simple predictors on the very examples of an evaluation.

They depend on the data and on how examples are drawn, not on the model.  So they are computed once, on the host, and stored
beside the prepared data.
"""

import contextlib
import functools
import hashlib
import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import coo_array, csr_array, vstack

from albert_jax.config import to_dict
from albert_jax.data import loader
from albert_jax.data.prepare import Prepared, read_split, token_counts
from albert_jax.pretraining import probes
from albert_jax.pretraining.evaluation import Draws, drawer, scored_objectives
from albert_jax.pretraining.objective import ObjectiveConfig, Vocabulary, vocabulary_of
from albert_jax.pretraining.segment_pairs import SENTENCE_OBJECTIVES
from albert_jax.training import run_folder

log = logging.getLogger(__name__)

VERSION = 2
"""Increase it with any change of the drawn examples or of a baseline, because results are stored."""

MAX_BIGRAM_TOKENS = 50_000_000
"""Bigrams are counted on at most this many tokens.  More would take minutes and gigabytes, and change the result little."""

CHUNK = 512
"""Number of predictions that the neighbor baseline scores at once."""

UNIGRAM, NEIGHBORS, CHANCE, BAG = "unigram", "neighbors", "chance", "bag of pieces"

Metrics = dict[str, float]


def baselines(
    prepared: Prepared, objective: ObjectiveConfig, num_classes: int, batch_size: int, max_steps: int, draws: int
) -> dict[str, Metrics]:
    """The held-out metrics of each baseline; see `make_evaluate` for the arguments.

    Returns:
      - "unigram": masked-LM loss of the unigram distribution of the train split, and accuracy of its most frequent piece.
      - "neighbors": the same of `neighbor_scores`.
      - "chance": accuracy of each sentence objective that a head with `num_classes` classes is scored on.
      - "bag of pieces": the same of a linear classifier that sees which pieces occur in each segment (see `probes.py`).
    """
    vocabulary = vocabulary_of(prepared.tokenizer)
    sizes = (batch_size, max_steps, draws)

    @functools.cache
    def draw(name: str) -> Draws:
        return drawer(replace(objective, sentence_objective=name), vocabulary)

    def open_split(split: str) -> loader.Sequences:
        single_sentences = not SENTENCE_OBJECTIVES[objective.sentence_objective].needs_pairs
        return loader.open_split(prepared, split, objective.max_seq_length, single_sentences)

    def stored(kind: str, name: str, compute: Callable[[], Any]) -> Any:
        drawn = to_dict(replace(objective, sentence_objective=name))
        key = {"baseline": kind, "version": VERSION, "data": prepared.fingerprint, "objective": drawn, "sizes": sizes}
        return _stored(prepared, key | {"vocab": prepared.tokenizer.sha256}, compute)

    def masked_lm() -> dict[str, Metrics]:
        predictions = masked_pieces(draw(objective.sentence_objective)(open_split("heldout"), *sizes), vocabulary)
        counts = token_counts(prepared)
        unigram = unigram_distribution(counts)
        labels, left, right = predictions
        return {
            UNIGRAM: {
                "mlm_loss": float(-np.log(unigram[labels]).mean()),
                "mlm_accuracy": float((labels == counts.argmax()).mean()),
            },
            NEIGHBORS: neighbor_scores(bigram_counts(prepared), unigram, labels, left, right),
        }

    def bag(name: str) -> float | None:
        train = probes.pairs(draw(name)(open_split("train"), batch_size, probes.train_steps(batch_size)), vocabulary)
        heldout = probes.pairs(draw(name)(open_split("heldout"), *sizes), vocabulary)
        if len(heldout["labels"]) == 0 or len(np.unique(train["labels"])) < 2:  # NSP with a single document in a split
            return None
        return probes.pieces_accuracy(vocabulary.size, train, heldout)

    metrics: dict[str, Metrics] = stored("masked LM", objective.sentence_objective, masked_lm)
    names = scored_objectives(num_classes)
    metrics[CHANCE] = {f"{name}_accuracy": SENTENCE_OBJECTIVES[name].chance for name in names}
    accuracies = {f"{name}_accuracy": stored(BAG, name, functools.partial(bag, name)) for name in names}
    metrics[BAG] = {name: accuracy for name, accuracy in accuracies.items() if accuracy is not None}
    return metrics


def _stored(prepared: Prepared, key: dict[str, Any], compute: Callable[[], Any]) -> Any:
    """`compute()`, or its result of an earlier call with the same key; a file that cannot be read is written again."""
    text = json.dumps(key, sort_keys=True)
    path = prepared.folder / f"baseline-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        content = json.loads(path.read_text())
        if content["key"] == json.loads(text):
            return content["result"]
    log.info("scoring the baselines of the held-out metrics, once for this data and evaluation: %s", key["baseline"])
    result = compute()
    with contextlib.suppress(OSError):  # the folder may be read-only or full; the next run computes it again
        run_folder.write_json(path, {"key": key, "result": result})
    return result


def unigram_distribution(counts: np.ndarray) -> np.ndarray:
    """[V]: the distribution of pieces in the train split.  One is added to each count, so that no piece is impossible."""
    return (counts + 1) / (counts + 1).sum()


def bigram_counts(prepared: Prepared) -> csr_array:
    """[V, V]: number of times that a piece (row) is followed by another (column) in a document of the train split."""
    size = prepared.tokenizer.vocab_size
    total, tokens, documents, length, counted = csr_array((size, size), dtype=np.float64), [], [], 0, 0
    records = read_split(prepared, "train")
    for number, record in enumerate(records):
        tokens.append(record["tokens"])
        documents.append(number)
        length += len(tokens[-1])
        last = number + 1 == len(records) or counted + length >= MAX_BIGRAM_TOKENS
        if last or length >= 2**22:
            pieces = np.concatenate(tokens)
            document = np.repeat(documents, [len(part) for part in tokens])
            same = document[:-1] == document[1:]
            pairs = (np.ones(same.sum()), (pieces[:-1][same], pieces[1:][same]))
            total = total + coo_array(pairs, shape=(size, size)).tocsr()
            counted, length, tokens, documents = counted + length, 0, [], []
        if last:
            break
    return total


def masked_pieces(examples: Iterable[dict[str, np.ndarray]], vocabulary: Vocabulary) -> np.ndarray:
    """[3, predictions]: label, left and right neighbor of each predicted position.

    A neighbor that is itself predicted, or is a special token or padding, is unknown: V.
    """
    predictions = []
    for batch in examples:
        ids, positions = batch["input_ids"], batch["masked_lm_positions"]
        row, slot = np.nonzero(batch["masked_lm_weights"])
        special = np.isin(ids, [vocabulary.cls_id, vocabulary.sep_id]) | (batch["attention_mask"] == 0)
        visible = np.where(special, vocabulary.size, ids)
        visible[row, positions[row, slot]] = vocabulary.size
        visible = np.pad(visible, ((0, 0), (1, 1)), constant_values=vocabulary.size)
        left, right = (visible[row, positions[row, slot] + shift] for shift in (0, 2))
        predictions.append(np.stack([batch["masked_lm_labels"][row, slot], left, right]))
    return np.concatenate(predictions, axis=1)


class Bigrams(NamedTuple):
    """P(w | context) = (ratio[context, w] + backoff[context]) P(w).  The last of V + 1 contexts is the unknown one."""

    ratio: csr_array
    """[V + 1, V]; 0 for bigrams that do not occur."""
    backoff: np.ndarray
    """[V + 1]."""


def neighbor_scores(
    counts: csr_array, unigram: np.ndarray, labels: np.ndarray, left: np.ndarray, right: np.ndarray
) -> Metrics:
    """Masked-LM loss and accuracy of bigrams from both sides: P(w | l, r) is proportional to P(w | l) P(w | r) / P(w).

    This is exact if l and r are independent given w.  An unknown neighbor has no influence: P(w | unknown) = P(w).  Both
    bigram distributions are interpolated with the unigram distribution (see `discounted_bigrams`).

    Args:
      counts: [V, V] bigrams.
      unigram: [V] P(w), all > 0.
      labels: [predictions] the pieces to predict.
      left, right: [predictions] their neighbors; V is unknown.
    """
    after, before = discounted_bigrams(counts, unigram), discounted_bigrams(counts.T.tocsr(), unigram)
    more_after = np.diff(after.ratio.indptr)[left] >= np.diff(before.ratio.indptr)[right]
    losses, correct = np.zeros(len(labels)), np.zeros(len(labels), bool)
    # Frequent pieces have many bigrams.  So of the two neighbors, the one with more is a dense vector, computed once for all
    # predictions beside it, and only the bigrams of the other are visited.
    for dense, sparse, contexts, others, chosen in (
        (after, before, left, right, more_after),
        (before, after, right, left, ~more_after),
    ):
        numbers = np.flatnonzero(chosen)
        numbers = numbers[np.argsort(contexts[numbers], kind="stable")]
        changes = np.flatnonzero(np.diff(contexts[numbers])) + 1
        for group in np.split(numbers, np.union1d(changes, np.arange(CHUNK, len(numbers), CHUNK))):
            if len(group):
                context = contexts[group[0]]
                probability = (dense.ratio[[context]].toarray()[0] + dense.backoff[context]) * unigram
                losses[group], correct[group] = _score(probability, sparse, others[group], labels[group])
    return {"mlm_loss": float(losses.mean()), "mlm_accuracy": float(correct.mean())}


def _score(
    probability: np.ndarray, other: Bigrams, contexts: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Loss of each prediction, and whether its label is the most probable piece.

    The score of a piece is probability (ratio + backoff), where the ratio is mostly 0.

    Args:
      probability: [V] P(w | one neighbor), the same for all predictions.
      other: bigrams of the other neighbor.
      contexts: [predictions] the other neighbor.
      labels: [predictions].
    """
    ratio, backoff = other.ratio[contexts], other.backoff[contexts]
    total = ratio @ probability + backoff
    score = probability[labels] * (ratio[np.arange(len(labels)), labels] + backoff)
    ratio.data = probability[ratio.indices] * (ratio.data + np.repeat(backoff, np.diff(ratio.indptr)))
    largest = np.maximum(ratio.max(axis=1).toarray().reshape(-1), backoff * probability.max())
    return np.log(total) - np.log(score), score >= largest * (1 - 1e-9)


def discounted_bigrams(counts: csr_array, unigram: np.ndarray) -> Bigrams:
    """Absolute discounting: P(w | context) = max(count - d, 0) / total + backoff P(w) (Ney, Essen and Kneser 1994).

    The discount d = n1 / (n1 + 2 n2), where n1 and n2 are the numbers of bigrams that occur once and twice; one is added to
    n1 and n2, so that 0 < d < 1.
    """
    once, twice = (np.sum(counts.data == n) + 1 for n in (1, 2))
    discount = once / (once + 2 * twice)
    ratio = vstack([counts, csr_array((1, counts.shape[1]))], format="csr")
    totals, distinct = np.asarray(ratio.sum(axis=1)), np.diff(ratio.indptr)
    ratio.data = (ratio.data - discount) / np.repeat(totals, distinct) / unigram[ratio.indices]
    return Bigrams(ratio, np.where(totals > 0, discount * distinct / np.maximum(totals, 1), 1.0))
