"""The parts of the pretraining job around the step: held-out evaluation and shortcut probes."""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from albert_jax.config import InputError, load
from albert_jax.data import loader
from albert_jax.data.prepare import Prepared, prepare
from albert_jax.model.heads import init_params, stacked_shapes
from albert_jax.pretraining import objective as objectives
from albert_jax.pretraining import probes
from albert_jax.pretraining.baselines import baselines
from albert_jax.pretraining.evaluation import EVAL_SEED, make_evaluate
from albert_jax.pretraining.objective import ObjectiveConfig, vocabulary_of
from albert_jax.pretraining.run import PretrainConfig, pretrain
from albert_jax.pretraining.segment_pairs import SENTENCE_OBJECTIVES
from albert_jax.pretraining.task import pretraining_model
from albert_jax.training.partition import Layout, make_mesh

from .conftest import overrides_of

KNOWN_WORDS = ["the", "list", "of", "text", "which", "is", "a", "case", "object", "value", "method", "function", "name"]


def sentence(random: np.random.Generator, length: int) -> str:
    return " ".join(random.choice(KNOWN_WORDS, length)) + "."


LEAKS: dict[str, Callable[[np.random.Generator], list[str]]] = {
    # The first sentence starts with a special word; sentences grow longer; no leak.  All pairs fit uncut: the rest of a
    # truncated sentence is shorter than its neighbors, which is a leak too.
    "words": lambda random: ["indeed " + sentence(random, 3), *(sentence(random, 3) for _ in range(3))],
    "shapes": lambda random: [sentence(random, length) for length in (1, 1, 6, 7)],
    "none": lambda random: [sentence(random, 3) for _ in range(4)],
}


@pytest.mark.parametrize("leak", LEAKS)
def test_probes_find_a_leak(leak: str, small: Callable[..., list[str]], tmp_path: Path) -> None:
    """If words or lengths reveal the order, their probe finds it; otherwise both are at chance.

    Fails if the masked pieces stay masked, or the labels belong to other pairs.
    """
    random = np.random.default_rng(0)
    documents = ["\n".join(LEAKS[leak](random)) for _ in range(400)]
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    words = small(tmp_path / "run", data__source=corpus, model__vocab_size=38, max_eval_steps=100)[1:]
    words += ["--objective.max-seq-length", "128", "--model.max-position-embeddings", "128"]
    result = probes.probe(
        load(PretrainConfig, words[0], overrides_of(PretrainConfig, [*words[1:], "--data.eval-fraction", "0.3"]))
    )
    assert result["heldout_pairs"] > 80
    if leak == "none":
        assert abs(result["shapes"] - 0.5) < 4 * result["standard_error"]
        assert abs(result["pieces"] - 0.5) < 4 * result["standard_error"]
    else:
        assert result["pieces" if leak == "words" else "shapes"] > 0.85
    assert f"| bags of pieces | {result['pieces']:.4f} |" in probes.probe_table(result)


@pytest.fixture(scope="module")
def config(small: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> PretrainConfig:
    words = small(tmp_path_factory.mktemp("run"))
    return load(PretrainConfig, words[1], overrides_of(PretrainConfig, words[2:]))


@pytest.fixture(scope="module")
def prepared(config: PretrainConfig) -> Prepared:
    return prepare(config.data, config.model.vocab_size)


@functools.cache
def evaluate(config: PretrainConfig, prepared: Prepared, devices: int = 1) -> dict[str, Any]:
    """Evaluate fresh parameters, sharded over devices."""
    model = pretraining_model(config.model, config.objective)
    heldout = loader.open_split(prepared, "heldout", 32)
    objective = config.eval_objective or config.objective
    sizes = config.train.eval_batch_size, config.max_eval_steps, config.eval_draws
    vocabulary, mesh = vocabulary_of(prepared.tokenizer), make_mesh("any", devices)
    metrics_of_baselines = baselines(prepared, objective, len(model.sentence_classes), *sizes)
    evaluator = make_evaluate(model, objective, vocabulary, heldout, metrics_of_baselines, mesh, *sizes)
    params = init_params(model, jax.random.key(0))
    shapes = Layout(mesh, "parameters", stacked_shapes(model)).placed("params", params)
    return evaluator(jax.device_put(params, jax.tree.map(lambda leaf: leaf.sharding, shapes)))


def test_eval_objective(config: PretrainConfig, prepared: Prepared) -> None:
    """Held-out inputs are drawn by `eval_objective`, whatever the run is trained on.

    Fails if the training objective is used for either the inputs or the baseline.
    """
    other = dataclasses.replace(config.objective, masked_lm_prob=0.4, max_predictions_per_seq=13)
    with_other = evaluate(dataclasses.replace(config, eval_objective=other), prepared)
    assert with_other == evaluate(dataclasses.replace(config, objective=other), prepared)
    assert with_other["eval"] != evaluate(config, prepared)["eval"]
    with pytest.raises(
        InputError, match=r"eval_objective\.max_seq_length 64 differs from objective\.max_seq_length 32"
    ):
        dataclasses.replace(config, eval_objective=dataclasses.replace(other, max_seq_length=64))


def test_documents_of_one_sentence(small: Callable[..., list[str]], tmp_path: Path) -> None:
    """A run without a sentence objective trains on them and is evaluated on them; a run with one refuses them.

    Fails if a sentence objective is scored on them.
    """
    random = np.random.default_rng(0)
    corpus = tmp_path / "tweets.txt"
    corpus.write_text("".join(sentence(random, 3) + "\n" for _ in range(300)))
    fields = {
        "data__txt_documents": 1,
        "model__vocab_size": 38,
        "model__num_hidden_layers": 1,
        "model__max_position_embeddings": 64,
        "objective__max_seq_length": 64,
        "train__num_train_steps": 6,
        "optim__num_warmup_steps": 2,
    }
    words = small(tmp_path / "run", data__source=corpus, data__cache_dir=tmp_path / "cache", **fields)
    config = load(PretrainConfig, words[1], overrides_of(PretrainConfig, words[2:]))
    with pytest.raises(InputError, match=r"0 of 300 documents have two sentences.*sentence-objective none"):
        pretrain(config)
    config = dataclasses.replace(config, objective=dataclasses.replace(config.objective, sentence_objective="none"))
    summary = pretrain(config)
    assert set(summary["eval"]) == {"mlm_accuracy", "mlm_loss"}
    assert summary["examples"]["mlm_loss"] > 20
    sop = ObjectiveConfig(max_seq_length=64, max_predictions_per_seq=5)
    with pytest.raises(InputError, match=r"0 of 2\d\d documents of 'train' have two sentences"):
        pretrain(dataclasses.replace(config, run_dir=str(tmp_path / "sop"), objective=sop))


def test_sharded_parameters_are_evaluated_alike(config: PretrainConfig, prepared: Prepared) -> None:
    """Metrics and diagnostics of unshared layers on four devices equal those on one.  Fails if rows are diagnosed twice."""
    unshared = dataclasses.replace(config, model=dataclasses.replace(config.model, sharing="none"))
    one, four = evaluate(unshared, prepared), evaluate(unshared, prepared, devices=4)
    assert one.keys() == four.keys()
    for part, metrics in one.items():
        assert metrics.keys() == four[part].keys()
        if part != "baselines":
            np.testing.assert_allclose(list(four[part].values()), list(metrics.values()), rtol=1e-5)
    assert len(one["diagnostics"]) == 3 + config.model.num_hidden_layers


def test_more_draws_are_more_examples(config: PretrainConfig, prepared: Prepared) -> None:
    """An evaluation with two draws is the mean over its batches, each with the keys of two numbers.

    Fails if a draw repeats or replaces the first.
    """
    model, vocabulary = pretraining_model(config.model, config.objective), vocabulary_of(prepared.tokenizer)
    params = init_params(model, jax.random.key(0))
    rows = loader.open_split(prepared, "heldout", 32)
    batches = list(loader.eval_batches(rows, config.train.eval_batch_size, config.max_eval_steps))
    draw = jax.jit(functools.partial(objectives.draw, config.objective, vocabulary))
    sums = np.zeros(2)
    for number, batch in enumerate(batches + batches):
        examples = draw(batch, jax.random.fold_in(jax.random.key(EVAL_SEED), number))
        sums += np.asarray(objectives.loss(config.objective, model.apply, params, examples, train=False)[1]["mlm_loss"])
    metrics = evaluate(dataclasses.replace(config, eval_draws=2), prepared)["eval"]
    assert metrics["mlm_loss"] == pytest.approx(sums[0] / sums[1], rel=1e-5)
    assert metrics["mlm_loss"] != evaluate(config, prepared)["eval"]["mlm_loss"]


@pytest.mark.parametrize("name", ["sso", "none"])
def test_heads_are_scored_on_every_objective_they_have_classes_for(
    name: str, config: PretrainConfig, prepared: Prepared
) -> None:
    """The head has the objective's classes, and is scored on all objectives with at most as many.

    Fails if the head always has two classes, or chance is always 0.5.
    """
    objective = dataclasses.replace(config.objective, sentence_objective=name)
    metrics = evaluate(dataclasses.replace(config, objective=objective), prepared)
    num_classes = max(len(SENTENCE_OBJECTIVES[name].classes), 2)
    scored = {other for other, kind in SENTENCE_OBJECTIVES.items() if 0 < len(kind.classes) <= num_classes}
    accuracies = {f"{other}_accuracy" for other in scored} | {"mlm_accuracy"}
    assert {key for key in metrics["eval"] if key.endswith("accuracy")} == accuracies
    assert set().union(*metrics["baselines"].values()) >= accuracies
    for other in scored:
        chance = metrics["baselines"]["chance"][f"{other}_accuracy"]
        assert chance == pytest.approx(1 / len(SENTENCE_OBJECTIVES[other].classes))
        assert metrics["eval"][f"{other}_loss"] == pytest.approx(np.log(num_classes), abs=0.1)


def test_experiments_need_one_import() -> None:
    """Every name that an experiment uses comes from `albert_jax.pretraining`."""
    namespace: dict[str, Any] = {}
    names = "AlbertConfig, DataConfig, MeshConfig, ObjectiveConfig, OptimConfig, PretrainConfig, TrainConfig, pretrain"
    exec(f"from albert_jax.pretraining import {names}", namespace)
    assert namespace["PretrainConfig"] is PretrainConfig
