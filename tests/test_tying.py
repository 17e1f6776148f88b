"""Sharing during a part of a run.

Docstrings name the deliberate breaks that were tried and made the test fail.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from albert_jax.config import InputError
from albert_jax.data.sources import DataConfig
from albert_jax.model.albert import AlbertConfig
from albert_jax.pretraining.run import PretrainConfig, training_parts
from albert_jax.pretraining.tied_layers import TyingConfig
from albert_jax.training import partition
from albert_jax.training import step as train_step
from albert_jax.training.loop import TrainConfig
from albert_jax.training.optim import OPTIMIZERS, AdamSettings, OptimConfig
from albert_jax.training.tying import Ties, tie_fresh, tie_trained

from .small_models import SMALL, assert_same
from .train_script import BATCH, LENGTH, OBJECTIVE, VOCAB, VOCABULARY, batches


def config(sharing: str, tying: TyingConfig, optimizer: str = "lamb") -> PretrainConfig:
    fields = SMALL | {
        "num_hidden_layers": 3,
        "vocab_size": VOCAB,
        "max_position_embeddings": LENGTH,
        "sharing": sharing,
    }
    return PretrainConfig(
        run_dir="unused",
        model=AlbertConfig(**fields, remat="none"),
        data=DataConfig(),
        objective=OBJECTIVE,
        optim=OptimConfig(optimizer=optimizer, learning_rate=0.02, num_warmup_steps=1, max_grad_norm=0.1),
        train=TrainConfig(num_train_steps=20, global_batch_size=BATCH),
        tying=tying,
    )


def states(config: PretrainConfig) -> tuple[list[float], list[Any]]:
    """The loss of each of five steps, and the parameters before and after each."""
    mesh = partition.make_mesh("cpu", 1)
    workload, optimizer, layout = training_parts(config, VOCABULARY, mesh)
    step = train_step.make_step(workload, optimizer, layout, 1)
    state = train_step.make_init(workload, optimizer, layout)(seed := train_step.as_argument(0, mesh))
    losses, params = [], [jax.device_get(state.params)]
    for batch in batches():
        state, metrics = step(state, partition.put_batch(mesh, batch), seed, partition.device_values(mesh, 0))
        losses.append(float(metrics["loss"][0]))
        params.append(jax.device_get(state.params))
    return losses, params


def copies_are_equal(params: Any, tolerance: float = 0.0) -> bool:
    parts = [params["encoder"][part] for part in ("attention", "ffn")]
    return all(np.abs(leaf - leaf[:1]).max() <= tolerance for leaf in jax.tree.leaves(parts))


@pytest.mark.parametrize("optimizer", ["lamb", pytest.param("muon", marks=pytest.mark.long)])
def test_tied_layers_learn_as_shared_layers(optimizer: str) -> None:
    """Losses and parameters, with clipped gradients; copies stay equal bit for bit.

    Fails if the norm counts each copy, or if each copy gets only the gradient of its layer.
    """
    shared = states(config("all", TyingConfig(), optimizer))
    tied = states(config("none", TyingConfig(sharing="all"), optimizer))
    np.testing.assert_allclose(tied[0], shared[0], rtol=1e-5)
    for name in ("attention", "ffn"):
        jax.tree.map(
            lambda copies, one: np.testing.assert_allclose(copies, np.repeat(one, 3, axis=0), atol=1e-5),
            tied[1][-1]["encoder"][name],
            shared[1][-1]["encoder"][name],
        )
    assert all(map(copies_are_equal, tied[1]))


def test_unshare_and_share_during_a_run() -> None:
    """Fails if ties begin or end a step too early or too late."""
    never = states(config("none", TyingConfig()))[1]
    until = states(config("none", TyingConfig(sharing="all", end=0.1)))[1]
    assert [copies_are_equal(params) for params in until] == [True, True, True, False, False, False]
    later = states(config("none", TyingConfig(sharing="ffn", start=0.1)))[1]
    assert_same(later[2], never[2])
    # Parameters that were separate become equal up to rounding.
    ffn = later[3]["encoder"]
    spread = {
        part: np.ptp(ffn[part][name]["kernel"], axis=0).max()
        for part, name in (("attention", "query"), ("ffn", "output"))
    }
    assert spread["ffn"] < 1e-6 < spread["attention"]


class Averaged(AdamSettings):
    """SGD that evaluates half of the parameters, to see which state `eval_params` gets."""

    def transformation(self, schedule: Any) -> Any:
        return optax.chain(optax.trace(0.9), optax.scale_by_learning_rate(schedule))

    def eval_params(self, opt_state: Any, params: Any) -> Any:
        assert isinstance(opt_state[0], optax.TraceState)
        return jax.tree.map(lambda leaf: leaf / 2, params)


def test_parameters_to_evaluate(monkeypatch: pytest.MonkeyPatch) -> None:
    """`eval_params` of an optimizer gets its own state.  Fails if it gets that of the ties."""
    monkeypatch.setitem(OPTIMIZERS, "averaged", Averaged)
    tied = config("none", TyingConfig(sharing="all", end=0.5), "averaged")
    workload, optimizer, _ = training_parts(tied, VOCABULARY, partition.make_mesh("cpu", 1))
    params = jax.eval_shape(workload.init, jax.random.key(0))
    assert jax.eval_shape(lambda p: optimizer.eval_params(optimizer.transformation.init(p), p), params) == params


def test_trained_parameters_are_tied_from_the_beginning() -> None:
    """By their mean, if tying starts at update 0.  Fails if they are tied only after the first update, or by the first copy."""
    groups = {("encoder", "ffn", "output", "bias"): (0, 1, 0)}
    params = {"encoder": {"ffn": {"output": {"bias": jnp.array([[1.0], [5.0], [3.0]])}}}, "other": jnp.ones(3)}
    mean, first = tie_trained(Ties(groups, 0, 4), params), tie_fresh(Ties(groups, 0, 4), params)
    assert mean["encoder"]["ffn"]["output"]["bias"].ravel().tolist() == [2, 5, 2]
    assert first["encoder"]["ffn"]["output"]["bias"].ravel().tolist() == [1, 5, 1]
    assert tie_trained(Ties(groups, 1, 4), params) is params


MISTAKES = {
    "start and end must be fractions with 0 <= start < end <= 1, got 0.0 and 30.0": (
        "none",
        {"sharing": "all", "end": 30.0},
    ),
    "start and end must be fractions with 0 <= start < end <= 1, got 0.4": (
        "none",
        {"sharing": "all", "start": 0.4, "end": 0.3},
    ),
    "sharing is none, so the other fields have no effect; set it to all": ("none", {"end": 0.5}),
    "tying.num_hidden_groups must be in [1, ": ("none", {"sharing": "cycle", "num_hidden_groups": 0}),
    "tying.num_hidden_groups 9 exceeds num_hidden_layers 3": ("none", {"sharing": "cycle", "num_hidden_groups": 9}),
    "tying.num_hidden_groups 3 needs sharing to be one of ": ("none", {"sharing": "all", "num_hidden_groups": 3}),
    "tying.sharing: unknown value 'most'": ("none", {"sharing": "most"}),
    "tying.sharing '0,1': expected one number per layer (num_hidden_layers 3), got 2": ("none", {"sharing": "0,1"}),
    "tying.sharing '0,1,0': layers that always share attention by": ("all", {"sharing": "0,1,0"}),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_are_errors_in_one_line(message: str) -> None:
    sharing, fields = MISTAKES[message]
    with pytest.raises(InputError) as error:
        config(sharing, TyingConfig(**fields))
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
