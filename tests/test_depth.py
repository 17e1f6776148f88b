"""Random numbers of layers in training, and other numbers of layers in evaluation.

Docstrings name the deliberate breaks that were tried and made the test fail.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from albert_jax.cli import main
from albert_jax.config import InputError
from albert_jax.data.sources import DataConfig
from albert_jax.model.albert import AlbertConfig
from albert_jax.model.depth import DEPTH_SAMPLING, layers_of_step, max_layers
from albert_jax.model.heads import Albert, init_params
from albert_jax.pretraining.run import PretrainConfig, cannot_be_parallel, training_parts
from albert_jax.training import partition
from albert_jax.training import step as train_step
from albert_jax.training.loop import TrainConfig
from albert_jax.training.optim import OptimConfig
from albert_jax.training.partition import MeshConfig

from .small_models import SMALL
from .train_script import BATCH, LENGTH, OBJECTIVE, VOCAB, VOCABULARY, batches

Words = Callable[..., list[str]]
REPEATED: dict[str, dict[str, Any]] = {"all": {}, "cycle": {"sharing": "cycle", "num_hidden_groups": 2}}


def test_numbers_of_layers() -> None:
    """The mean is that of a fixed depth, and drawn numbers have the stated probabilities.  Fails if 0 layers are drawn."""
    for name, probabilities in DEPTH_SAMPLING.items():
        if probabilities is None:
            assert layers_of_step(name, jax.random.key(0), 6, 4) == {}
            continue
        p = probabilities(6)
        assert max_layers(name, 6) == len(p) == 11
        assert p.sum() == pytest.approx(1)
        assert p @ np.arange(1, 12) == pytest.approx(6, abs=0.1)
        drawn = jax.vmap(lambda key, name=name: layers_of_step(name, key, 6, 1)["num_layers"][0])(
            jax.random.split(jax.random.key(1), 20_000)
        )
        np.testing.assert_allclose(np.bincount(drawn, minlength=12)[1:] / 20_000, p, atol=0.015)
        assert probabilities(1).tolist() == [1]


@pytest.mark.parametrize("name", REPEATED)
def test_running_some_layers_is_a_network_of_that_depth(name: str) -> None:
    """Values and gradients, for fewer and for more layers.  Fails if one layer too many or too few runs."""
    config = AlbertConfig(**SMALL | {"num_hidden_layers": 3} | REPEATED[name], depth_sampling="uniform")
    params = jax.jit(lambda: init_params(Albert(config, heads=()), jax.random.key(0)))()
    ids, weights = np.arange(18).reshape(2, 9), np.random.default_rng(0).normal(size=(2, 9, config.hidden_size))

    def loss(params: Any, config: AlbertConfig, num_layers: Any = None) -> jax.Array:
        outputs: Any = Albert(config, heads=()).apply({"params": params}, ids, num_layers=num_layers)
        return jnp.vdot(outputs["last_hidden_state"], weights)

    some = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    for number in (2, 3, 5):
        other = dataclasses.replace(config, num_hidden_layers=number)
        expected = some(params, other)
        actual = some(params, config, np.int32(number))
        np.testing.assert_allclose(actual[0], expected[0], rtol=1e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), actual[1], expected[1])


def parts(devices: int, sharding: str = "none", accumulation: int = 1, depth_sampling: str = "uniform") -> Any:
    fields = SMALL | {"vocab_size": VOCAB, "max_position_embeddings": LENGTH} | REPEATED["cycle"]
    config = PretrainConfig(
        run_dir="unused",
        model=AlbertConfig(**fields, depth_sampling=depth_sampling),
        data=DataConfig(),
        objective=OBJECTIVE,
        optim=OptimConfig(learning_rate=0.02, num_warmup_steps=1),
        train=TrainConfig(num_train_steps=20, global_batch_size=BATCH, gradient_accumulation=accumulation),
        mesh=MeshConfig(devices, sharding),
    )
    return config, training_parts(config, VOCABULARY, partition.make_mesh("cpu", devices))


def losses(devices: int, sharding: str = "none", accumulation: int = 1) -> list[float]:
    _, (workload, optimizer, layout) = parts(devices, sharding, accumulation)
    mesh = layout.mesh
    step = train_step.make_step(workload, optimizer, layout, accumulation)
    state = train_step.make_init(workload, optimizer, layout)(seed := train_step.as_argument(0, mesh))
    result = []
    for batch in batches():
        state, metrics = step(state, partition.put_batch(mesh, batch), seed, partition.device_values(mesh, 0))
        result.append(float(metrics["loss"][0]))
    return result


def test_all_devices_run_the_same_number_of_layers() -> None:
    """Fails if each device or micro-batch draws its own number."""
    np.testing.assert_allclose(losses(8, "parameters", 2), losses(1), atol=1e-5)


def test_steps_draw_different_numbers_of_layers() -> None:
    """The same in all rows of a step, and the loss is that of this number.  Fails if steps run L layers."""
    config, (workload, _, _) = parts(1)
    batch = {name: jnp.asarray(rows) for name, rows in batches()[0].items()}
    params = jax.jit(workload.init)(jax.random.key(0))
    draw, loss = jax.jit(workload.draw), jax.jit(workload.loss)
    seen = {}
    for seed in range(8):
        examples = draw(batch, jax.random.key(seed))
        number = int(examples["num_layers"][0])
        assert (examples["num_layers"] == number).all()
        if number >= 2 and number not in seen:
            fixed = dataclasses.replace(
                config, model=dataclasses.replace(config.model, num_hidden_layers=number, depth_sampling="fixed")
            )
            other, _, _ = training_parts(fixed, VOCABULARY, partition.make_mesh("cpu", 1))
            rows = {name: value for name, value in examples.items() if name != "num_layers"}
            seen[number] = (float(loss(params, examples)[0]), float(jax.jit(other.loss)(params, rows)[0]))
    assert len(seen) >= 3
    for sampled, fixed_loss in seen.values():
        assert sampled == pytest.approx(fixed_loss, rel=1e-5)


def test_seeds_of_random_depths_are_not_parallel() -> None:
    assert cannot_be_parallel(parts(1)[0]).startswith("model.depth_sampling: a program of several seeds would run the ")


def test_evaluated_depths(small: Words, tmp_path: Path) -> None:
    """The depth of training gives the metrics of the evaluation.  Fails if all depths run the same number of layers."""
    run_dir = tmp_path / "run"
    fields = {"train__num_train_steps": 2, "optim__num_warmup_steps": 1, "model__depth_sampling": "poisson"}
    assert main(small(run_dir, **fields, eval_depths="0.5,1", model__num_hidden_layers=2)) == 0
    summary = json.loads((run_dir / "summary.json").read_text())
    assert list(summary["depths"]) == ["1", "2"]
    assert summary["depths"]["2"] == pytest.approx(summary["eval"])
    assert summary["depths"]["1"]["mlm_loss"] != summary["depths"]["2"]["mlm_loss"]
    assert (run_dir / "depths.png").stat().st_size > 5000


MISTAKES: dict[str, dict[str, Any]] = {
    "depth_sampling 'uniform' needs layers that repeat: sharing all or cycle, per_pass none, ": {"sharing": "none"},
    "depth_sampling 'uniform' needs layers that repeat: sharing all or cycle, per_pass": {"sharing": "0,1,0,1"},
    "depth_sampling 'uniform' needs layers that repeat: sharing all or cycle, ": {"sharing": "middle"},
    "depth_sampling 'uniform' needs layers that repeat: sharing": {"per_pass": "norm"},
    "depth_sampling 'uniform' needs layers that repeat": {"inject": True},
    "depth_sampling 'uniform' needs layers": {"layer_weights": True},
}


@pytest.mark.parametrize("message", MISTAKES)
def test_layers_that_do_not_repeat_are_an_error_in_one_line(message: str) -> None:
    with pytest.raises(InputError) as error:
        AlbertConfig(**SMALL | MISTAKES[message], depth_sampling="uniform")
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_depths_that_are_no_numbers(small: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("1,x", "0", "-1", "nan", ","):
        assert main(small(tmp_path / "run", eval_depths=text)) == 2
        assert (
            f"eval_depths: expected factors in (0, 100], separated by commas, got '{text}'" in capsys.readouterr().err
        )
    assert main(small(tmp_path / "run", eval_depths="2", model__sharing="none")) == 2
    assert "eval_depths needs layers that repeat" in capsys.readouterr().err
    cycle = {"model__sharing": "cycle", "model__num_hidden_groups": 2, "model__num_hidden_layers": 2}
    assert main(small(tmp_path / "run", eval_depths="0.5", **cycle)) == 2
    assert "eval_depths 0.5, 1 layers: num_hidden_groups 2 exceeds num_hidden_layers 1" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
