"""Diagnostics of the unigram plateau: compared with numpy, and the warning that follows from them."""

import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

from albert_jax.cli import main
from albert_jax.pretraining import diagnostics

from .small_models import random_model

WARNING = "so far the model only knows how frequent each piece is"


def test_diagnostics_of_rows() -> None:
    """As plain loops over pairs of positions, heads and layers.

    Fails if padding counts, a position is compared with itself, or a row without text changes the mean.
    """
    model, params, _ = random_model()
    random = np.random.default_rng(0)
    lengths = [10, 7, 0, 3]
    mask = (np.arange(10) < np.array(lengths)[:, None]).astype(np.int32)
    ids = random.integers(5, 500, mask.shape).astype(np.int32)
    rows = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    outputs = jax.jit(lambda: model.apply({"params": params}, ids, mask, output_attentions=True))()
    hidden, weights = (np.asarray(outputs[name], np.float64) for name in ("last_hidden_state", "attentions"))
    similarities, entropies = [], []
    for row, length in enumerate(lengths):
        if length == 0:
            continue
        states = [h / np.linalg.norm(h) for h in hidden[row, :length]]
        similarities.append(np.mean([states[i] @ states[j] for i in range(length) for j in range(length) if i != j]))
        p = weights[:, row, :, :length, :length]
        entropies.append(
            -np.sum(np.where(p > 0, p * np.log(np.maximum(p, 1e-300)), 0), -1).mean((1, 2)) / np.log(length)
        )
    actual = diagnostics.named(jax.jit(lambda: diagnostics.of_rows(model, params, rows))())
    assert actual["hidden_similarity"] == pytest.approx(np.mean(similarities), abs=1e-5)
    layers = [actual[f"attention_entropy_layer_{layer}"] for layer in (1, 2)]
    np.testing.assert_allclose(layers, np.mean(entropies, axis=0), atol=1e-5)
    assert 0 < min(layers) < 0.99


def test_uniform_attention_and_parallel_states() -> None:
    """The values on the plateau, whatever the padding."""
    mask = np.array([1, 1, 1, 0])
    hidden = np.outer([1, 2, 3, 4], [3.0, 4.0])
    hidden[3] = [-4, 3]
    assert diagnostics.hidden_similarity(hidden, mask) == pytest.approx(1)
    uniform = np.tile(mask / 3, (2, 1, 4, 1))
    np.testing.assert_allclose(diagnostics.attention_entropy(uniform, mask), [1, 1], rtol=1e-6)


@pytest.fixture(scope="module")
def patterns(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents of one sentence, which repeats: so that a model is better than the unigram distribution after some steps."""
    path = tmp_path_factory.mktemp("patterns") / "corpus.jsonl"
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    texts = [
        "\n".join([" ".join(words[start:] + words[:start]) + "."] * lines)
        for start in range(10)
        for lines in range(8, 28)
    ]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.mark.parametrize(("learning_rate", "warnings"), [(0.02, 0), (1e-6, 1)], ids=["learns", "stuck"])
def test_a_run_on_the_plateau_warns_once(
    learning_rate: float,
    warnings: int,
    patterns: Path,
    short: Callable[..., list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Not before the warm-up is over."""
    words = short(
        tmp_path / "run",
        data__source=patterns,
        model__vocab_size=32,
        optim__optimizer="muon",
        optim__learning_rate=learning_rate,
        train__num_train_steps=40,
        train__eval_every=20,
        train__checkpoint_every=40,
        objective__short_seq_prob=0,
    )
    assert main(words) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    found = [line.partition(" ")[2] for line in capsys.readouterr().err.splitlines() if WARNING in line]
    assert len(found) == warnings, found
    if found:
        assert found[0].startswith("step 20: the held-out masked-LM loss ")
        assert "an update of a shared layer takes effect 2 times), or with --optim.optimizer muon" in found[0]
        assert found[0].endswith(f"see {diagnostics.PAGE}")
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    evaluations = [record for record in records if "eval/mlm_loss" in record]
    assert len(evaluations) == 2
    for record in evaluations:
        gain = summary["baselines"]["unigram"]["mlm_loss"] - record["eval/mlm_loss"]
        assert record["diagnostics/gain_over_unigram"] == pytest.approx(gain)
