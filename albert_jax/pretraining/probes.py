"""Shortcut probes: how well linear classifiers solve the sentence objective without understanding the text.

Only a sentence-order accuracy above theirs is evidence of understanding: public runs with 99 % are explained by leaks in
segment lengths, punctuation or case.
"""

import functools
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from albert_jax.data import loader
from albert_jax.data.prepare import prepare
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.pretraining.evaluation import drawer
from albert_jax.pretraining.objective import Vocabulary, vocabulary_of
from albert_jax.pretraining.segment_pairs import SENTENCE_OBJECTIVES
from albert_jax.reports.tables import markdown_table

if TYPE_CHECKING:
    from albert_jax.pretraining.run import PretrainConfig

MAX_TRAIN_PAIRS = 20_000
"""Maximum number of pairs that the classifiers are fitted to."""

SENTENCE_ENDS = (".", "!", "?", "。", "！", "？")
"""Pieces that end a sentence."""

Pairs = dict[str, np.ndarray]
"""`input_ids` and `token_type_ids` [pairs, S], `is_text` [pairs, S] (no special token, no padding), `labels` [pairs]."""


def probe(config: "PretrainConfig") -> dict[str, Any]:
    """Fit the classifiers to training pairs and score them on held-out pairs.

    Args:
      config: for the data and the sentence objective; if that has no classes, SOP is used.

    Returns:
      `objective`; `chance`; the accuracies `shapes` (from lengths, punctuation and digits of both segments) and `pieces` (from
      bags of pieces); `standard_error` of the accuracy of guessing; `train_pairs`, `heldout_pairs`.

    Raises:
      InputError: as `prepare`.
    """
    name = config.objective.sentence_objective
    if not SENTENCE_OBJECTIVES[name].classes:
        name = next(name for name, kind in SENTENCE_OBJECTIVES.items() if kind.classes)
    prepared = prepare(config.data, config.model.vocab_size)
    vocabulary = vocabulary_of(prepared.tokenizer)
    draw, size = drawer(replace(config.objective, sentence_objective=name), vocabulary), config.train.eval_batch_size
    train_rows, heldout_rows = (
        loader.open_split(prepared, split, config.objective.max_seq_length) for split in ("train", "heldout")
    )
    train = pairs(draw(train_rows, size, train_steps(size)), vocabulary)
    heldout = pairs(draw(heldout_rows, size, config.max_eval_steps, config.eval_draws), vocabulary)
    count, chance = len(heldout["labels"]), SENTENCE_OBJECTIVES[name].chance
    return {
        "objective": name,
        "chance": chance,
        "shapes": shapes_accuracy(prepared.tokenizer, train, heldout),
        "pieces": pieces_accuracy(vocabulary.size, train, heldout),
        "standard_error": (chance * (1 - chance) / count) ** 0.5,
        "train_pairs": len(train["labels"]),
        "heldout_pairs": count,
    }


def train_steps(batch_size: int) -> int:
    """Number of batches of training pairs."""
    return -(-MAX_TRAIN_PAIRS // batch_size)


def shapes_accuracy(tokenizer: Tokenizer, train: Pairs, heldout: Pairs) -> float:
    """Held-out accuracy of a linear classifier of lengths, punctuation and digits."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return _accuracy(functools.partial(_shapes, _kinds_of_pieces(tokenizer)), classifier, train, heldout)


def pieces_accuracy(vocab_size: int, train: Pairs, heldout: Pairs) -> float:
    """Held-out accuracy of a linear classifier of the pieces that occur in each segment."""
    from sklearn.linear_model import LogisticRegression

    classifier = LogisticRegression(C=0.1, max_iter=1000)
    return _accuracy(functools.partial(_bags, vocab_size), classifier, train, heldout)


def _accuracy(features: Callable[[Pairs], Any], classifier: Any, train: Pairs, heldout: Pairs) -> float:
    classifier.fit(features(train), train["labels"])
    return float(classifier.score(features(heldout), heldout["labels"]))


def pairs(examples: Iterable[dict[str, np.ndarray]], vocabulary: Vocabulary) -> Pairs:
    """The pairs of all batches that have a weight, with the original pieces instead of masks."""
    batches = [_unmasked(batch, vocabulary) for batch in examples]
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def _unmasked(examples: dict[str, np.ndarray], vocabulary: Vocabulary) -> Pairs:
    ids = examples["input_ids"].copy()
    row, slot = np.nonzero(examples["masked_lm_weights"])
    ids[row, examples["masked_lm_positions"][row, slot]] = examples["masked_lm_labels"][row, slot]
    batch = {
        "input_ids": ids,
        "token_type_ids": examples["token_type_ids"],
        "is_text": (examples["attention_mask"] > 0) & ~np.isin(ids, [vocabulary.cls_id, vocabulary.sep_id]),
        "labels": examples["sentence_labels"],
    }
    return {name: value[examples["sentence_weights"] > 0] for name, value in batch.items()}


def _kinds_of_pieces(tokenizer: Tokenizer) -> dict[str, np.ndarray]:
    """Kind -> [V], 1 for pieces of that kind."""
    texts = [piece.removeprefix("▁") for piece in tokenizer.pieces(range(tokenizer.vocab_size))]
    rules = {
        "punctuation": lambda text: text != "" and not any(c.isalnum() for c in text),
        "end": lambda text: text in SENTENCE_ENDS,
        "digit": lambda text: any(c.isdigit() for c in text),
    }
    kinds = {name: np.array([rule(text) for text in texts], np.float32) for name, rule in rules.items()}
    return kinds | {"word": tokenizer.starts_word.astype(np.float32)}


def _shapes(kinds: dict[str, np.ndarray], pairs: Pairs) -> np.ndarray:
    """[pairs, features]: for each segment its length, the count of each kind of piece, the kinds of its first and last piece."""
    ids, columns = pairs["input_ids"], []
    rows = np.arange(len(ids))
    for segment in (0, 1):
        inside = pairs["is_text"] & (pairs["token_type_ids"] == segment)
        first, last = inside.argmax(1), ids.shape[1] - 1 - inside[:, ::-1].argmax(1)
        columns.append(inside.sum(1))
        for is_kind in kinds.values():
            columns += [(is_kind[ids] * inside).sum(1), is_kind[ids[rows, first]], is_kind[ids[rows, last]]]
    return np.stack(columns, 1)


def _bags(vocab_size: int, pairs: Pairs) -> Any:
    """[pairs, 2 V] sparse: whether each piece occurs in A, and in B."""
    from scipy.sparse import csr_matrix, hstack

    segments = []
    for segment in (0, 1):
        row, position = np.nonzero(pairs["is_text"] & (pairs["token_type_ids"] == segment))
        cells = (np.ones(len(row)), (row, pairs["input_ids"][row, position]))
        segments.append(csr_matrix(cells, (len(pairs["input_ids"]), vocab_size)).minimum(1))
    return hstack(segments).tocsr()


def probe_table(result: dict[str, Any]) -> str:
    """The result of `probe` as Markdown."""
    names = {"shapes": "lengths, punctuation, digits", "pieces": "bags of pieces", "chance": "chance"}
    header = [f"{result['objective'].upper()} from", "held-out accuracy"]
    table = markdown_table(header, [[label, f"{result[name]:.4f}"] for name, label in names.items()])
    return (
        f"{table}\n\nlinear classifiers, fitted to {result['train_pairs']:,} pairs, scored on "
        f"{result['heldout_pairs']:,} held-out pairs; standard error of guessing {result['standard_error']:.4f}"
    )
