"""Optimizers against a numpy oracle and optax, parameter sets against separate tensors, schedules against hand-computed points.

Docstrings name the deliberate breaks that were tried and made the test fail.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from albert_jax.config import InputError, from_dict, override, to_dict
from albert_jax.model.albert import AlbertConfig
from albert_jax.model.heads import HEADS, Albert, param_shapes
from albert_jax.model.sharing import is_stacked
from albert_jax.training.optim import (
    FIRST_NORMS,
    OPTIMIZERS,
    AdamW,
    Lamb,
    Lion,
    Muon,
    OptaxLamb,
    OptimConfig,
    decay_mask,
    is_hidden_kernel,
    make_optimizer,
    make_schedule,
    skip_spikes,
)
from albert_jax.training.paths import path_names

from .small_models import one_set_shapes

FLAT: dict[str, Any] = {"learning_rate": 0.1, "schedule": "constant", "num_warmup_steps": 0}

# Path -> shape.  Parameters under encoder/attention stack two sets.
SHAPES = {"embeddings/words/embedding": (7, 4), "embeddings/LayerNorm/scale": (4,), "pooler/kernel": (3, 3)}
SHAPES |= {"encoder/attention/query/kernel": (2, 4, 3), "encoder/attention/query/bias": (2, 3), "pooler/bias": (3,)}
SHAPES |= {"encoder/attention/LayerNorm/bias": (2, 3), "predictions/bias": (7,), "sop_classifier/kernel": (3, 2)}
DECAYED = ("kernel", "embedding")

Flat = dict[str, np.ndarray]


def nest(flat: dict[str, Any]) -> dict:
    tree: dict = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        functools.reduce(lambda node, parent: node.setdefault(parent, {}), parents, tree)[name] = leaf
    return tree


def flatten(tree: Any) -> dict[str, Any]:
    return {"/".join(key.key for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def start() -> Flat:
    """Two sets of different scale, and a kernel and a bias that are 0, as after initialization."""
    random = np.random.default_rng(1)
    flat = {path: random.normal(size=shape).astype(np.float32) for path, shape in SHAPES.items()}
    flat["encoder/attention/query/kernel"][1] *= 30
    return flat | {path: 0 * flat[path] for path in ("sop_classifier/kernel", "predictions/bias")}


def gradients() -> list[Flat]:
    """Global norms alternate between below and above 1.  The pooler kernel gets no gradient: its update is weight decay alone."""
    random = np.random.default_rng(2)

    def draw(path: str, size: float) -> np.ndarray:
        return (size * (path != "pooler/kernel") * random.normal(size=SHAPES[path])).astype(np.float32)

    return [{path: draw(path, size) for path in SHAPES} for size in (0.02, 1, 0.05, 2, 0.01, 0.5)]


def run(transformation: optax.GradientTransformation, params: Any, grads: list[Any]) -> Any:
    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # compiles 3 times faster
    def update(params: Any, state: Any, step: Any) -> Any:
        updates, state = transformation.update(step, state, params)
        return optax.apply_updates(params, updates), state

    state = transformation.init(params)
    for step in grads:
        params, state = update(params, state, step)
    return params


def separate(flat: Flat) -> Flat:
    """Make each set of a stacked leaf a leaf with its own name."""
    apart: Flat = {}
    for path, leaf in flat.items():
        rows = {path.replace("attention", f"attention_{i}"): row for i, row in enumerate(leaf)}
        apart |= rows if "attention" in path else {path: leaf}
    return apart


def assert_close(actual: dict, expected: dict, rtol: float = 2e-5) -> None:
    assert actual.keys() == expected.keys()
    for path, leaf in expected.items():
        np.testing.assert_allclose(actual[path], leaf, rtol=rtol, atol=1e-6, err_msg=path)


def lamb_as_released(config: OptimConfig, num_train_steps: int) -> Flat:
    """google-research/albert lamb_optimizer.py and optimization.py in numpy and float64, tensor by tensor."""
    params = {path: leaf.astype(np.float64) for path, leaf in separate(start()).items()}
    m, v = ({path: np.zeros_like(leaf) for path, leaf in params.items()} for _ in range(2))
    for step, stacked in enumerate(gradients()):
        warming = step < config.num_warmup_steps
        rate = config.learning_rate * (step / config.num_warmup_steps if warming else 1 - step / num_train_steps)
        grads = {path: leaf.astype(np.float64) for path, leaf in separate(stacked).items()}
        clip = max(1.0, math.sqrt(sum((g**2).sum() for g in grads.values())))
        for path, w in params.items():
            g = grads[path] / clip
            m[path], v[path] = 0.9 * m[path] + 0.1 * g, 0.999 * v[path] + 0.001 * g**2
            update = m[path] / (np.sqrt(v[path]) + 1e-6)
            if path.endswith(DECAYED):
                update = update + config.optimizer.weight_decay * w
                norms = np.linalg.norm(w), np.linalg.norm(update)
                update = update * (norms[0] / norms[1] if all(norms) else 1.0)
            params[path] = w - rate * update
    return params


@pytest.mark.parametrize("weight_decay", [0.01, 0.0])
def test_lamb_as_released(weight_decay: float) -> None:
    """Warmup, clipping, decay and trust ratio agree.  Without decay the pooler's update is 0, and its trust ratio must be 1.

    Fails with bias correction, with epsilon inside the root, with the trust ratio on LayerNorm and biases, without
    clipping, with clipping after the moments, and with one trust ratio for all sets of a leaf.
    """
    config = OptimConfig(optimizer=Lamb(weight_decay=weight_decay), learning_rate=0.1, num_warmup_steps=2)
    optimizer = make_optimizer(config, 10, is_stacked)
    actual = flatten(run(optimizer.transformation, nest(start()), [nest(step) for step in gradients()]))
    assert_close(separate(actual), lamb_as_released(config, 10))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_set_is_updated_as_a_separate_tensor(name: str) -> None:
    """Fails if the optimizer gets stacked leaves (LAMB's norms differ), or rows come back in a different order."""
    config = OptimConfig(optimizer=name, **FLAT)
    stacked = run(make_optimizer(config, 10, is_stacked)[0], nest(start()), [nest(step) for step in gradients()])
    grads = [nest(separate(step)) for step in gradients()]
    apart = run(make_optimizer(config, 10, lambda _: False)[0], nest(separate(start())), grads)
    assert_close(separate(flatten(stacked)), flatten(apart), rtol=1e-6)


@pytest.mark.parametrize(
    ("rule", "reference"),
    [(AdamW, optax.adamw), (OptaxLamb, optax.lamb), (Lion, optax.lion)],
    ids=["adamw", "lamb", "lion"],
)
def test_optax_gets_all_settings(rule: Any, reference: Any) -> None:
    """Fails if epsilon or the decay mask is not passed on, or the two betas are swapped."""
    epsilon = {} if rule is Lion else {"epsilon": 1e-3}
    settings = rule(beta1=0.8, beta2=0.98, weight_decay=0.3, **epsilon)
    config = OptimConfig(optimizer=settings, max_grad_norm=0.5, **FLAT)
    params, grads = nest(separate(start())), [nest(separate(step)) for step in gradients()]
    mask = nest({path: path.endswith(DECAYED) for path in separate(start())})
    given = {"eps": epsilon["epsilon"]} if epsilon else {}
    direct = optax.chain(
        optax.clip_by_global_norm(0.5), reference(0.1, b1=0.8, b2=0.98, weight_decay=0.3, mask=mask, **given)
    )
    updated = run(make_optimizer(config, 10, lambda _: False).transformation, params, grads)
    assert_close(flatten(updated), flatten(run(direct, params, grads)), rtol=1e-6)


def newton_schulz(matrix: np.ndarray) -> np.ndarray:
    """The orthogonalization of https://kellerjordan.github.io/posts/muon, on the smaller side."""
    x = matrix / (np.linalg.norm(matrix) + 1e-8)
    x = x.T if matrix.shape[0] > matrix.shape[1] else x
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def muon_in_numpy(config: OptimConfig) -> Flat:
    """Muon with Nesterov momentum for kernels of hidden layers, AdamW at half its rate for the rest, in float64."""
    rule, rate = config.optimizer, config.learning_rate
    params = {path: leaf.astype(np.float64) for path, leaf in separate(start()).items()}
    m, v = ({path: np.zeros_like(leaf) for path, leaf in params.items()} for _ in range(2))
    for step, stacked in enumerate(gradients(), 1):
        grads = {path: leaf.astype(np.float64) for path, leaf in separate(stacked).items()}
        clip = max(1.0, math.sqrt(sum((g**2).sum() for g in grads.values())))
        for path, w in params.items():
            g = grads[path] / clip
            decay = rule.weight_decay * w if path.endswith(DECAYED) else 0.0
            if path.endswith("kernel") and path.startswith(("encoder", "pooler")):
                m[path] = rule.beta * m[path] + (1 - rule.beta) * g
                momentum = rule.beta * m[path] / (1 - rule.beta ** (step + 1)) + (1 - rule.beta) * g / (
                    1 - rule.beta**step
                )
                update = 0.2 * math.sqrt(max(w.shape)) * newton_schulz(momentum)
                params[path] = w - rate * (update + decay)
            else:
                m[path] = rule.adam_beta1 * m[path] + (1 - rule.adam_beta1) * g
                v[path] = rule.adam_beta2 * v[path] + (1 - rule.adam_beta2) * g**2
                second = np.sqrt(v[path] / (1 - rule.adam_beta2**step)) + rule.epsilon
                update = m[path] / (1 - rule.adam_beta1**step) / second
                params[path] = w - rate * rule.adam_learning_rate_ratio * (update + decay)
    return params


def test_muon() -> None:
    """Fails with Muon on embeddings or classifiers, with one orthogonalization for all sets, with decay of biases, or with a
    scale that depends on the shape of the kernel."""
    config = OptimConfig(optimizer=Muon(adam_learning_rate_ratio=0.5, weight_decay=0.1), **FLAT)
    optimizer = make_optimizer(config, 10, is_stacked)
    actual = flatten(run(optimizer.transformation, nest(start()), [nest(step) for step in gradients()]))
    assert_close(separate(actual), muon_in_numpy(config), rtol=1e-4)


@dataclasses.dataclass(frozen=True)
class ScheduleFree:
    """A rule that evaluates averaged parameters."""

    beta1: float = 0.9

    def transformation(self, schedule: Any) -> Any:
        return optax.contrib.schedule_free(optax.sgd(0.1), 0.1, self.beta1)

    def eval_params(self, opt_state: Any, params: Any) -> Any:
        return optax.contrib.schedule_free_eval_params(opt_state, params)


@pytest.mark.parametrize("skip_spikes", [0.0, 5.0])
def test_eval_params_of_an_averaging_optimizer(monkeypatch: pytest.MonkeyPatch, skip_spikes: float) -> None:
    """Stacked sets come back stacked.  Fails if the state is unwrapped wrongly, or `eval_params` stays the identity."""
    monkeypatch.setitem(OPTIMIZERS, "schedule_free", ScheduleFree)
    config = OptimConfig(optimizer="schedule_free", max_grad_norm=1e9, skip_spikes=skip_spikes, **FLAT)
    optimizer = make_optimizer(config, 10, is_stacked)
    rule = ScheduleFree()
    params, reference = nest(start()), nest(separate(start()))
    state, reference_state = optimizer.transformation.init(params), rule.transformation(None).init(reference)
    for step in gradients():
        updates, state = optimizer.transformation.update(nest(step), state, params)
        params = optax.apply_updates(params, updates)
        updates, reference_state = rule.transformation(None).update(nest(separate(step)), reference_state, reference)
        reference = optax.apply_updates(reference, updates)
    averaged = flatten(optimizer.eval_params(state, params))
    assert_close(separate(averaged), flatten(rule.eval_params(reference_state, reference)))
    assert not np.allclose(
        averaged["encoder/attention/query/kernel"], flatten(params)["encoder/attention/query/kernel"]
    )
    plain = make_optimizer(OptimConfig(**FLAT), 10, is_stacked)
    assert plain.eval_params(None, params) is params


RELEASED = {0: 0.0, 1: 1 / 3125, 3124: 3124 / 3125, 3125: 0.975, 62_500: 0.5, 125_000: 0.0, 200_000: 0.0}
COSINE = {0: 0.0, 1: 0.5, 2: 0.5 + math.sqrt(0.5) / 2, 4: 0.5, 6: 0.5 - math.sqrt(0.5) / 2, 8: 0.0}


@pytest.mark.parametrize(
    ("schedule", "warmup", "steps", "points"),
    [
        ("linear", 3125, 125_000, RELEASED),
        ("linear", 0, 10, {0: 1.0, 5: 0.5, 10: 0.0}),
        ("cosine", 2, 8, COSINE),
        ("constant", 4, 8, {0: 0.0, 3: 0.75, 4: 1.0, 8: 1.0, 100: 1.0}),
    ],
)
def test_schedules(schedule: Any, warmup: int, steps: int, points: dict[int, float]) -> None:
    """Fractions of the peak rate.  Fails if the decay counts from the end of the warmup, or the rate falls below 0 at the end."""
    actual = make_schedule(OptimConfig(learning_rate=0.5, schedule=schedule, num_warmup_steps=warmup), steps)
    np.testing.assert_allclose([actual(step) / 0.5 for step in points], list(points.values()), rtol=1e-6, atol=1e-7)


DECAYED_IN_THE_MODEL = """embeddings/word_embeddings/embedding embeddings/position_embeddings/embedding
    embeddings/token_type_embeddings/embedding encoder/embedding_hidden_mapping_in/kernel encoder/attention/query/kernel
    encoder/attention/key/kernel encoder/attention/value/kernel encoder/attention/dense/kernel
    encoder/ffn/intermediate/kernel encoder/ffn/output/kernel pooler/kernel predictions/dense/kernel
    sop_classifier/kernel"""


def test_which_parameters_decay() -> None:
    """Kernels and embeddings decay; LayerNorms and biases do not.  Fails if vectors decay too."""
    mask = flatten(decay_mask(one_set_shapes(Albert(AlbertConfig(num_hidden_layers=2, sharing="none")))))
    assert len(mask) == 32
    assert {name for name, on in mask.items() if on} == set(DECAYED_IN_THE_MODEL.split())


HIDDEN_KERNELS = """encoder/embedding_hidden_mapping_in encoder/attention/query encoder/attention/key encoder/attention/value
    encoder/attention/dense encoder/ffn/intermediate encoder/ffn/output pooler predictions/dense answer_class/end_dense
    answer_class/answer_dense"""


def test_which_parameters_muon_orthogonalizes() -> None:
    """Kernels of the encoder and of the dense layers of all heads, not embeddings and classifiers."""
    params = param_shapes(Albert(AlbertConfig(num_hidden_layers=2, sharing="none"), tuple(HEADS)))
    paths = [path_names(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    kernels = {"/".join(path) for path in paths if is_hidden_kernel(path)}
    assert kernels == {f"{name}/kernel" for name in HIDDEN_KERNELS.split()}


BAD: dict[str, list[Any]] = {name: [math.nan, -1.0, 0.0, math.inf] for name in ("learning_rate", "max_grad_norm")}
BAD |= {"num_warmup_steps": [-1.0], "optimizer": ["sgd"], "schedule": ["step"], "skip_spikes": [0.5]}
BAD_SETTINGS: dict[str, list[Any]] = {
    "epsilon": [math.nan, -1.0, 0.0],
    "weight_decay": [math.nan, -0.1],
    "beta1": [1.0],
    "beta2": [math.nan],
}
MISTAKES: list[Any] = [(OptimConfig, field, value) for field, values in BAD.items() for value in values]
MISTAKES += [(Lamb, field, value) for field, values in BAD_SETTINGS.items() for value in values]


@pytest.mark.parametrize(("kind", "field", "value"), MISTAKES)
def test_invalid_values_are_refused_in_one_line(kind: Any, field: str, value: Any) -> None:
    """Fails if a check is left out."""
    with pytest.raises(InputError) as error:
        kind(**{field: value})
    assert str(error.value).startswith(field)
    assert str(value) in str(error.value)
    assert "\n" not in str(error.value)


def test_settings_belong_to_the_selected_optimizer() -> None:
    """Choosing another optimizer gives its defaults; a setting that it lacks is an error.

    Fails if settings of the previous optimizer are carried over, or unknown ones are ignored.
    """
    base = {"optimizer": {"name": "lamb", "beta2": 0.5}, "learning_rate": 0.1}
    base = override(base, {"optimizer": "adamw"})
    assert from_dict(OptimConfig, base).optimizer == AdamW()
    config = from_dict(OptimConfig, {"optimizer": {"name": "adamw", "beta2": "0.98"}})
    assert config.optimizer == AdamW(beta2=0.98)
    assert from_dict(OptimConfig, to_dict(config)) == config
    assert from_dict(OptimConfig, {"optimizer": "lion"}).optimizer.beta2 == 0.99
    with pytest.raises(InputError, match="epsilon"):
        from_dict(OptimConfig, {"optimizer": {"name": "lion", "epsilon": 1e-6}})


def test_a_spike_is_skipped_and_the_next_update_is_applied() -> None:
    """Fails if a spike enters the moments, or enters the running mean unclipped, or if a norm that is not finite is skipped."""
    spiky = skip_spikes(optax.trace(0.9), factor=3.0)
    params = {"kernel": jnp.ones((2, 2))}
    calm, spike = {"kernel": jnp.ones((2, 2))}, {"kernel": 10 * jnp.ones((2, 2))}
    state = spiky.init(params)
    updates, state = spiky.update(spike, state)  # the first updates are never skipped
    assert float(updates["kernel"][0, 0]) == 10
    for _ in range(FIRST_NORMS):
        _, state = spiky.update(calm, state)
    before = state
    updates, state = spiky.update(spike, state)
    assert not np.any(updates["kernel"])
    assert float(state.skipped) == 1
    jax.tree.map(np.testing.assert_array_equal, state.inner, before.inner)
    assert before.mean_norm < state.mean_norm < 1.1 * before.mean_norm
    updates, state = spiky.update(calm, state)
    assert np.all(updates["kernel"])
    assert float(state.skipped) == 0
    updates, _ = spiky.update({"kernel": jnp.full((2, 2), jnp.nan)}, state)
    assert np.isnan(updates["kernel"]).all()
    for _ in range(300):  # norms that stay high stop being spikes
        _, state = spiky.update(spike, state)
    assert float(state.skipped) == 0
