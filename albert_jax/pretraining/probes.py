"""Shortcut probes: how well sentence order can be told without reading, from shapes and from words alone.

A sentence-order accuracy means something only above what a linear classifier gets from segment lengths, punctuation and case,
or from bags of pieces: public runs with 99 % are explained by such leaks, not by language.
"""

import functools
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from albert_jax.data import loader
from albert_jax.data.prepare import prepare
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.pretraining import objective as pretraining
from albert_jax.pretraining.run import EVAL_SEED, PretrainConfig, describe

TRAIN_PAIRS = 20_000
"""Most pairs that the classifiers are fitted to."""

ENDS = (".", "!", "?", "。", "！", "？")
"""Pieces that end a sentence."""


def probe(config: PretrainConfig) -> dict[str, Any]:
    """Accuracies, on held-out pairs, of linear classifiers that see next to nothing of the text.

    Args:
      config: whose data and sentence objective are probed; SOP where it has none.

    Returns:
      `objective`; `case`, whether the vocabulary has any; `shapes`, from lengths, punctuation, digits and case of both
      segments; `pieces`, from which pieces occur in each; `standard_error` of a coin on so many pairs; `train_pairs`,
      `heldout_pairs`.

    Raises:
      InputError: as `prepare`.
    """
    from scipy.sparse import csr_matrix, hstack
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    kind = config.objective.sentence_objective
    objective = replace(config.objective, sentence_objective="sop" if kind == "none" else kind)
    prepared = prepare(config.data, config.model.vocab_size)
    draw = jax.jit(functools.partial(pretraining.draw, objective, describe(prepared)))
    size = config.train.eval_batch_size

    def pairs(split: str, steps: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """What the model would read, nothing hidden, and the labels."""
        sequences = loader.open_split(prepared, split, objective.max_seq_length)
        found = []
        for number, batch in enumerate(loader.eval_batches(sequences, size, steps)):
            key = jax.random.fold_in(jax.random.key(EVAL_SEED), number)
            examples = jax.device_get(draw(batch, key))
            row, slot = np.nonzero(examples["masked_lm_weights"])
            ids = examples["input_ids"].copy()
            ids[row, examples["masked_lm_positions"][row, slot]] = examples["masked_lm_labels"][row, slot]
            examples["input_ids"] = ids
            found.append({name: value[examples["sentence_weights"] > 0] for name, value in examples.items()})
        whole = {name: np.concatenate([part[name] for part in found]) for name in ("input_ids", "token_type_ids")}
        whole["inside"] = np.concatenate([part["attention_mask"] for part in found]) > 0
        special = [prepared.tokenizer.cls_id, prepared.tokenizer.sep_id]
        whole["inside"] &= ~np.isin(whole["input_ids"], special)
        return whole, np.concatenate([part["sentence_labels"] for part in found])

    fitted, asked = pairs("train", -(-TRAIN_PAIRS // size)), pairs("heldout", config.max_eval_steps)
    kinds = _kinds(prepared.tokenizer)

    def bags(examples: dict[str, np.ndarray]) -> Any:
        """[rows, 2 V]: whether a piece occurs in A, and in B."""
        halves = []
        for segment in (0, 1):
            row, place = np.nonzero(examples["inside"] & (examples["token_type_ids"] == segment))
            cells = (np.ones(len(row)), (row, examples["input_ids"][row, place]))
            halves.append(csr_matrix(cells, (len(examples["input_ids"]), config.model.vocab_size)).minimum(1))
        return hstack(halves).tocsr()

    accuracies = {}
    for name, features, classifier in (
        (
            "shapes",
            functools.partial(_shapes, kinds),
            make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
        ),
        ("pieces", bags, LogisticRegression(C=0.1, max_iter=1000)),
    ):
        classifier.fit(features(fitted[0]), fitted[1])
        accuracies[name] = float(classifier.score(features(asked[0]), asked[1]))
    count = len(asked[1])
    error = 0.5 / count**0.5
    counts = {"train_pairs": len(fitted[1]), "heldout_pairs": count}
    told = {"objective": objective.sentence_objective, "case": not prepared.tokenizer.lower_case}
    return told | accuracies | {"standard_error": error} | counts


def _kinds(tokenizer: Tokenizer) -> dict[str, np.ndarray]:
    """Kind of piece -> [V], 1 where a piece is of it."""
    texts = [piece.removeprefix("▁") for piece in tokenizer.pieces(range(tokenizer.vocab_size))]
    rules = {
        "punctuation": lambda text: text != "" and not any(c.isalnum() for c in text),
        "end": lambda text: text in ENDS,
        "digit": lambda text: any(c.isdigit() for c in text),
        "upper": lambda text: text[:1].isupper(),
    }
    found = {name: np.array([rule(text) for text in texts], np.float32) for name, rule in rules.items()}
    return found | {"word": tokenizer.starts_word.astype(np.float32)}


def _shapes(kinds: dict[str, np.ndarray], examples: dict[str, np.ndarray]) -> np.ndarray:
    """[rows, features]: of each segment its length, how many pieces of each kind, and the kinds of its first and last one."""
    ids, columns = examples["input_ids"], []
    rows = np.arange(len(ids))
    for segment in (0, 1):
        inside = examples["inside"] & (examples["token_type_ids"] == segment)
        first, last = inside.argmax(1), ids.shape[1] - 1 - inside[:, ::-1].argmax(1)
        columns.append(inside.sum(1))
        for of in kinds.values():
            columns += [(of[ids] * inside).sum(1), of[ids[rows, first]], of[ids[rows, last]]]
    return np.stack(columns, 1)


def table(found: dict[str, Any]) -> str:
    """What `probe` found, as Markdown."""
    rows = {
        "lengths, punctuation, digits" + ", case" * found["case"]: found["shapes"],
        "bags of pieces": found["pieces"],
        "no model": 0.5,
    }
    head = f"| {found['objective'].upper()} from | held-out accuracy |"
    lines = [head, "|---|---|", *(f"| {name} | {value:.4f} |" for name, value in rows.items())]
    told = f"linear classifiers, {found['train_pairs']:,} pairs to fit, {found['heldout_pairs']:,} held out"
    return "\n".join([*lines, "", f"{told}: a coin's standard error is {found['standard_error']:.4f}"])
