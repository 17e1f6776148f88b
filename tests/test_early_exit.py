"""Early exit: a row that leaves after k layers has the prediction of k layers.

Docstrings name the deliberate breaks that were tried and made the test fail.
"""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from albert_jax.cli import main
from albert_jax.config import InputError
from albert_jax.inference.early_exit import EarlyExit, check_model, classify_early, read_exit
from albert_jax.model.albert import AlbertConfig
from albert_jax.model.heads import Albert, param_shapes

from .conftest import refused
from .small_models import SMALL
from .synthetic_tasks import summary

MODELS: dict[str, dict[str, Any]] = {
    "all": {},
    "groups": {"sharing": "groups", "num_hidden_groups": 2},
    "attention": {"sharing": "attention"},
    "two blocks per layer": {"inner_group_num": 2, "inject": True},
    "E = H": {"embedding_size": 16},
    "norm": {"per_pass": "norm"},
    "embedding, inject": {"per_pass": "embedding", "inject": True},
    "lora, cycle": {"per_pass": "lora", "sharing": "cycle", "num_hidden_groups": 3},
    "random depth": {"depth_sampling": "uniform"},
}


def classifier(seed: int = 0, **changes: Any) -> tuple[Albert, Any]:
    """A classifier with random parameters, large enough that rows differ in their entropy."""
    model = Albert(AlbertConfig(**SMALL | changes), ("pooler", "classifier"), ("a", "b", "c"))
    random = np.random.default_rng(seed)
    return model, jax.tree.map(
        lambda leaf: (random.normal(size=leaf.shape) * 0.5).astype(np.float32), param_shapes(model)
    )


def batch_of(rows: int) -> dict[str, np.ndarray]:
    """Rows of different lengths; the last is empty, as `collate` fills up batches."""
    random = np.random.default_rng(1)
    lengths = np.array([*random.integers(3, 13, rows - 1), 0])
    mask = (np.arange(12) < lengths[:, None]).astype(np.int32)
    return {
        "input_ids": random.integers(1, 40, (rows, 12)) * mask,
        "attention_mask": mask,
        "token_type_ids": random.integers(0, 2, (rows, 12)) * mask,
    }


def after_each_layer(model: Albert, params: Any, batch: dict[str, np.ndarray]) -> tuple[np.ndarray, dict[str, Any]]:
    """The probabilities [L, B, classes] after each layer of the usual forward pass, and the values of the criteria [L, B]."""

    @jax.jit
    def states_of(params: Any) -> Any:
        return model.apply({"params": params}, **batch, output_hidden_states=True)["hidden_states"]

    @jax.jit
    def logits_of(params: Any, state: Any) -> Any:
        return model.apply({"params": params}, **batch, last_hidden_state=state)["logits"]

    states = np.asarray(states_of(params))
    probabilities = np.stack([np.asarray(jax.nn.softmax(logits_of(params, state))) for state in states[1:]])
    mask = batch["attention_mask"]
    moved = np.linalg.norm(states[1:] - states[:-1], axis=-1) / np.linalg.norm(states[:-1], axis=-1)
    change = (moved * mask).sum(-1) / np.maximum(mask.sum(-1), 1)
    return probabilities, {"entropy": -(probabilities * np.log(probabilities)).sum(-1), "change": change}


@pytest.mark.parametrize("name", MODELS)
def test_rows_leave_with_the_prediction_of_their_layer(name: str) -> None:
    """For thresholds at which rows leave at different layers; batches shrink.

    Fails if a layer read another set, rows were mixed up when a batch shrinks, or the heads read the layer before.
    """
    model, params = classifier(**MODELS[name])
    batch, depth = batch_of(9), model.config.num_hidden_layers
    wanted, values = after_each_layer(model, params, batch)
    full, layers = classify_early(model, params, batch, EarlyExit("layers", 2 * depth))
    np.testing.assert_allclose(full[:-1], wanted[-1, :-1], atol=1e-5)
    assert layers.tolist() == [depth] * 8 + [0]
    for criterion in ("entropy", "change"):

        def first_below(threshold: float, values: np.ndarray = values[criterion]) -> np.ndarray:
            is_below = values <= threshold
            return np.where(is_below.any(axis=0), is_below.argmax(axis=0), depth - 1)

        thresholds = np.quantile(values[criterion][:, :-1], np.linspace(0.05, 0.95, 19)) + 1e-4
        threshold = float(max(thresholds, key=lambda threshold: len(set(first_below(threshold)[:-1]))))
        found, layers = classify_early(model, params, batch, EarlyExit(criterion, threshold))
        first = first_below(threshold)
        assert layers[:-1].tolist() == (first[:-1] + 1).tolist()
        assert len(set(layers[:-1].tolist())) > 1, "all rows leave at the same layer; change the seed"
        np.testing.assert_allclose(found[:-1], wanted[first, np.arange(9)][:-1], atol=1e-5)


def test_fewer_layers_are_a_shallower_network() -> None:
    model, params = classifier()
    batch = batch_of(4)
    for depth in (1, 3):
        shallow = model.clone(config=AlbertConfig(**SMALL | {"num_hidden_layers": depth}))
        wanted, _ = after_each_layer(shallow, params, batch)
        found, layers = classify_early(model, params, batch, EarlyExit("layers", depth))
        assert layers.tolist() == [depth] * 3 + [0]
        np.testing.assert_allclose(found[:-1], wanted[-1, :-1], atol=1e-5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("entropy", "'' is not a number"),
        ("entropy=x", "'x' is not a number"),
        ("surprise=1", "criterion: unknown value 'surprise'"),
        ("change=-1", "threshold must be finite and >= 0, got -1"),
        ("change=nan", "threshold must be finite"),
        ("layers=0", "layers must be a whole number, at least 1, got 0"),
        ("layers=2.5", "layers must be a whole number, at least 1, got 2.5"),
    ],
)
def test_rules_that_cannot_be_read(text: str, message: str) -> None:
    with pytest.raises(InputError, match=r"^--early-exit") as error:
        read_exit(text)
    assert message in str(error.value)


def test_models_that_cannot_exit_early() -> None:
    config = AlbertConfig(**SMALL)
    regression = Albert(config, ("pooler", "classifier"), ("score",))
    for model in (Albert(config), regression):
        with pytest.raises(InputError, match="fine-tuned to give each text one class"):
            check_model(model)
    with pytest.raises(InputError, match="this model has layer_weights"):
        check_model(classifier(layer_weights=True)[0])


def test_table_and_figure_of_a_run(finetuned_sst2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With all layers, both ways of running have the run's dev accuracy."""
    run_dir = finetuned_sst2 / "run"
    assert main(["early-exit", str(run_dir), "--batch-size", "8"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| leaves when | mean layers | accuracy | seconds | time |"
    results = json.loads((run_dir / "early-exit.json").read_text())
    assert len(results) == 1 + 2 + 2 * 5
    best = summary(run_dir)["best"]["accuracy"]
    assert [one["metrics"]["accuracy"] for one in results if one["layers"] == 2][:2] == [best] * 2
    assert results[1] | {"seconds": 0} == results[1] | {
        "criterion": "layers",
        "threshold": 1,
        "layers": 1,
        "seconds": 0,
    }
    assert any(1 < one["layers"] < 2 for one in results)
    assert (run_dir / "early-exit.png").stat().st_size > 10_000
    assert main(["predict", str(run_dir), "--early-exit", "layers=1", "--json", "this large text"]) == 0
    assert json.loads(capsys.readouterr().out)["layers"] == 1
    message = refused(["predict", str(run_dir), "--early-exit", "entropy", "this large text"], capsys)
    assert "write CRITERION=THRESHOLD, such as entropy=0.2" in message
    assert "not the folder of a fine-tuned run" in refused(["early-exit", str(finetuned_sst2)], capsys)
