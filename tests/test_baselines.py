"""The baselines of held-out metrics, compared with plain computations, and their cache."""

import dataclasses
import itertools
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_array

from albert_jax.config import load
from albert_jax.data import loader
from albert_jax.data.prepare import Prepared, prepare, read_split, token_counts
from albert_jax.pretraining import baselines as module
from albert_jax.pretraining import probes
from albert_jax.pretraining.baselines import baselines, bigram_counts, masked_pieces, neighbor_scores
from albert_jax.pretraining.evaluation import drawer
from albert_jax.pretraining.objective import vocabulary_of
from albert_jax.pretraining.run import PretrainConfig

from .conftest import overrides_of


@pytest.fixture(scope="module")
def config(small: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> PretrainConfig:
    words = small(tmp_path_factory.mktemp("run"))
    return load(PretrainConfig, words[1], overrides_of(PretrainConfig, words[2:]))


@pytest.fixture(scope="module")
def prepared(config: PretrainConfig) -> Prepared:
    return prepare(config.data, config.model.vocab_size)


def score(config: PretrainConfig, prepared: Prepared, draws: int = 1) -> dict[str, dict[str, float]]:
    return baselines(prepared, config.objective, 2, config.train.eval_batch_size, config.max_eval_steps, draws)


def test_neighbor_scores() -> None:
    """As the dense computation with normalized products.

    Fails if the backoff, the normalization or an unknown neighbor is wrong, or a piece that neither neighbor was seen with cannot
    win.
    """
    random, size = np.random.default_rng(0), 9
    counts = random.poisson(0.7, (size, size)).astype(float)
    counts[3] = 0  # a context without bigrams
    unigram = random.dirichlet(np.ones(size) / 2)
    once, twice = np.sum(counts == 1) + 1, np.sum(counts == 2) + 1
    discount = once / (once + 2 * twice)

    def given(table: np.ndarray, context: int) -> np.ndarray:
        if context == size or table[context].sum() == 0:
            return unigram
        row = np.maximum(table[context] - discount, 0) / table[context].sum()
        return row + (1 - row.sum()) * unigram

    labels, left, right = np.array(list(np.ndindex(size, size + 1, size + 1))).T
    losses, correct = [], []
    for label, l, r in zip(labels, left, right, strict=True):  # noqa: E741
        probability = given(counts, l) * given(counts.T, r) / unigram
        losses.append(-np.log(probability[label] / probability.sum()))
        correct.append(probability[label] >= probability.max() * (1 - 1e-9))
    actual = neighbor_scores(csr_array(counts), unigram, labels, left, right)
    assert actual["mlm_loss"] == pytest.approx(np.mean(losses), rel=1e-9)
    assert actual["mlm_accuracy"] == pytest.approx(np.mean(correct))


def test_masked_neighbors_are_unknown(config: PretrainConfig, prepared: Prepared) -> None:
    """Compared position by position.  Fails if a random replacement of a predicted neighbor, or [CLS], counts as known."""
    vocabulary = vocabulary_of(prepared.tokenizer)
    objective = dataclasses.replace(config.objective, masked_lm_prob=0.5, max_predictions_per_seq=16)
    rows = loader.open_split(prepared, "heldout", 32)
    batches = list(drawer(objective, vocabulary)(rows, 16, 3))
    expected, found_unknown = [], 0
    for batch in batches:
        for row in range(len(batch["input_ids"])):
            ids = [int(piece) for piece in batch["input_ids"][row]]
            weights = batch["masked_lm_weights"][row]
            positions = [int(p) for p, weight in zip(batch["masked_lm_positions"][row], weights, strict=True) if weight]
            visible = {
                position: piece
                for position, piece in enumerate(ids)
                if position not in positions and piece not in (vocabulary.cls_id, vocabulary.sep_id, vocabulary.pad_id)
            }
            for slot, position in enumerate(positions):
                neighbors = [visible.get(position + shift, vocabulary.size) for shift in (-1, 1)]
                found_unknown += vocabulary.size in neighbors
                expected.append([int(batch["masked_lm_labels"][row, slot]), *neighbors])
    assert masked_pieces(batches, vocabulary).T.tolist() == expected
    assert found_unknown > 100


def test_bigrams_are_counted_within_documents(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: Counter[tuple[int, int]] = Counter()
    tokens = 0
    for number, record in enumerate(read_split(prepared, "train")):
        pieces = record["tokens"].tolist()
        counts.update(itertools.pairwise(pieces))
        tokens += len(pieces)
        if number == 9:
            break
    monkeypatch.setattr(module, "MAX_BIGRAM_TOKENS", tokens)  # ten documents
    found = bigram_counts(prepared).tocoo()
    assert dict(zip(zip(*(axis.tolist() for axis in found.coords), strict=True), found.data, strict=True)) == counts


def test_baselines_are_those_of_the_evaluation(config: PretrainConfig, prepared: Prepared) -> None:
    """Unigram loss and accuracy of the drawn labels; the bag of pieces is that of `probe`."""
    found = score(config, prepared, draws=2)
    batches = drawer(config.objective, vocabulary_of(prepared.tokenizer))(
        loader.open_split(prepared, "heldout", 32), config.train.eval_batch_size, config.max_eval_steps, 2
    )
    labels = np.concatenate([batch["masked_lm_labels"][batch["masked_lm_weights"] > 0] for batch in batches])
    counts = token_counts(prepared)
    losses = -np.log((counts[labels] + 1) / np.sum(counts + 1))
    assert found["unigram"]["mlm_loss"] == pytest.approx(losses.mean())
    assert found["unigram"]["mlm_accuracy"] == pytest.approx(np.mean(labels == counts.argmax()))
    assert found["neighbors"]["mlm_loss"] < found["unigram"]["mlm_loss"] - 0.5
    assert found["chance"] == {"sop_accuracy": 0.5, "nsp_accuracy": 0.5}
    probe = probes.probe(dataclasses.replace(config, eval_draws=2))
    assert found["bag of pieces"]["sop_accuracy"] == probe["pieces"]


def test_baselines_are_stored(config: PretrainConfig, prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    """For each way of drawing.  A corrupt file is written again.  Fails if the key lacks the number of draws."""
    first = score(config, prepared)
    assert score(config, prepared, draws=2)["unigram"] != first["unigram"]
    files: list[Path] = sorted(prepared.folder.glob("baseline-*.json"))
    with monkeypatch.context() as patch:
        for name in ("drawer", "bigram_counts"):
            patch.setattr(module, name, pytest.fail)
        assert score(config, prepared) == first
    for path in files:
        text = path.read_text()
        path.write_text(text[: len(text) // 2])
    assert score(config, prepared) == first
    repaired = [path for path in files if json.loads(path.read_text() if path.read_text().endswith("}\n") else "null")]
    assert len(repaired) == 3  # one for the masked LM, one for each sentence objective
