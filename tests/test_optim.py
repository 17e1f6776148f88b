"""Optimisers against a numpy oracle and optax, parameter sets against separate tensors, schedules at points worked by hand.

Every docstring names a break that was put into the package and turned the test red.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from albert_jax.config import InputError
from albert_jax.model.albert import AlbertConfig
from albert_jax.model.heads import Albert, param_shapes
from albert_jax.model.sharing import is_stacked
from albert_jax.training.optim import (
    FIRST_NORMS,
    OptimConfig,
    decay_mask,
    make_optimizer,
    make_schedule,
    without_spikes,
)

FLAT: dict[str, Any] = {"learning_rate": 0.1, "schedule": "constant", "num_warmup_steps": 0}

# Path -> shape.  What is under encoder/attention holds two sets.
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
    """Sets of different size, and a kernel and a bias that are 0, as after initialisation."""
    random = np.random.default_rng(1)
    flat = {path: random.normal(size=shape).astype(np.float32) for path, shape in SHAPES.items()}
    flat["encoder/attention/query/kernel"][1] *= 30
    return flat | {path: 0 * flat[path] for path in ("sop_classifier/kernel", "predictions/bias")}


def gradients() -> list[Flat]:
    """Global norms below and above 1 by turns; the pooler's kernel has none, so that its update is the decay alone."""
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
    """Each set of a stacked leaf as a leaf of its own, under a name of its own."""
    apart: Flat = {}
    for path, leaf in flat.items():
        rows = {path.replace("attention", f"attention_{i}"): row for i, row in enumerate(leaf)}
        apart |= rows if "attention" in path else {path: leaf}
    return apart


def assert_close(found: dict, wanted: dict, rtol: float = 2e-5) -> None:
    assert found.keys() == wanted.keys()
    for path, leaf in wanted.items():
        np.testing.assert_allclose(found[path], leaf, rtol=rtol, atol=1e-6, err_msg=path)


def lamb_as_released(config: OptimConfig, num_train_steps: int) -> Flat:
    """google-research/albert lamb_optimizer.py and optimization.py once more, in numpy and float64, tensor by tensor."""
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
                update = update + config.weight_decay * w
                norms = np.linalg.norm(w), np.linalg.norm(update)
                update = update * (norms[0] / norms[1] if all(norms) else 1.0)
            params[path] = w - rate * update
    return params


@pytest.mark.parametrize("weight_decay", [0.01, 0.0])
def test_lamb_as_released(weight_decay: float) -> None:
    """Warm-up, clipping, decay, trust ratio; without decay the pooler's update is 0, so the ratio must be 1 there.

    Fails with bias correction, with epsilon inside the root, with the trust ratio on LayerNorm and biases, without
    clipping, with clipping after the moments, and with one trust ratio for all sets of a leaf.
    """
    config = OptimConfig(learning_rate=0.1, num_warmup_steps=2, weight_decay=weight_decay)
    optimizer = make_optimizer(config, 10, is_stacked)
    found = flatten(run(optimizer.transformation, nest(start()), [nest(step) for step in gradients()]))
    assert_close(separate(found), lamb_as_released(config, 10))


@pytest.mark.parametrize("name", ["lamb", "adamw", "optax_lamb"])
def test_sets_are_updated_as_tensors_of_their_own(name: Any) -> None:
    """Fails if the optimiser is given stacked leaves whole (LAMB's norms), or rows come back in another order."""
    config = OptimConfig(optimizer=name, **FLAT)
    stacked = run(make_optimizer(config, 10, is_stacked)[0], nest(start()), [nest(step) for step in gradients()])
    grads = [nest(separate(step)) for step in gradients()]
    apart = run(make_optimizer(config, 10, lambda _: False)[0], nest(separate(start())), grads)
    assert_close(separate(flatten(stacked)), flatten(apart), rtol=1e-6)


@pytest.mark.parametrize(("name", "of"), [("adamw", optax.adamw), ("optax_lamb", optax.lamb)])
def test_optax_is_passed_through(name: Any, of: Any) -> None:
    """Fails if epsilon or the decay mask is not passed on, or the two betas are exchanged."""
    config = OptimConfig(
        optimizer=name, beta1=0.8, beta2=0.99, epsilon=1e-3, weight_decay=0.3, max_grad_norm=0.5, **FLAT
    )
    params, grads = nest(separate(start())), [nest(separate(step)) for step in gradients()]
    mask = nest({path: path.endswith(DECAYED) for path in separate(start())})
    theirs = optax.chain(
        optax.clip_by_global_norm(0.5), of(0.1, b1=0.8, b2=0.99, eps=1e-3, weight_decay=0.3, mask=mask)
    )
    found = run(make_optimizer(config, 10, lambda _: False).transformation, params, grads)
    assert_close(flatten(found), flatten(run(theirs, params, grads)), rtol=1e-6)


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
    """Shares of the peak.  Fails if the decay counts from the end of the warm-up, or the rate falls below 0 at the end."""
    found = make_schedule(OptimConfig(learning_rate=0.5, schedule=schedule, num_warmup_steps=warmup), steps)
    np.testing.assert_allclose([found(step) / 0.5 for step in points], list(points.values()), rtol=1e-6, atol=1e-7)


IN_THE_MODEL = """embeddings/word_embeddings/embedding embeddings/position_embeddings/embedding
    embeddings/token_type_embeddings/embedding encoder/embedding_hidden_mapping_in/kernel encoder/attention/query/kernel
    encoder/attention/key/kernel encoder/attention/value/kernel encoder/attention/dense/kernel
    encoder/ffn/intermediate/kernel encoder/ffn/output/kernel pooler/kernel predictions/dense/kernel
    sop_classifier/kernel"""


def test_what_decays_in_the_model() -> None:
    """Kernels and tables, not LayerNorm and biases, the MLM head's too.  Fails if either rule of `decays` is left out."""
    params = param_shapes(Albert(AlbertConfig(num_hidden_layers=2, sharing="none")))
    mask = flatten(decay_mask(params))
    assert len(mask) == 32
    assert {name for name, on in mask.items() if on} == set(IN_THE_MODEL.split())


BAD = {name: [math.nan, -1.0, 0.0, math.inf] for name in ("learning_rate", "epsilon", "max_grad_norm")}
BAD |= {"weight_decay": [math.nan, -0.1], "beta1": [1.0], "beta2": [math.nan], "num_warmup_steps": [-1.0]}
MISTAKES: list[Any] = [(field, value) for field, values in BAD.items() for value in values]


@pytest.mark.parametrize(("field", "value"), [*MISTAKES, ("optimizer", "sgd"), ("schedule", "step")])
def test_mistakes_are_told_in_one_line(field: str, value: Any) -> None:
    """Fails if a check is left out."""
    with pytest.raises(InputError) as error:
        OptimConfig(**{field: value})
    assert str(error.value).startswith(field)
    assert str(value) in str(error.value)
    assert "\n" not in str(error.value)


def test_spike_changes_nothing_and_the_next_update_does() -> None:
    """Fails if a spike entered the moments, or the running mean whole, or if a norm that is not finite were hidden as one."""
    spiky = without_spikes(optax.trace(0.9), factor=3.0)
    params = {"kernel": jnp.ones((2, 2))}
    calm, spike = {"kernel": jnp.ones((2, 2))}, {"kernel": 10 * jnp.ones((2, 2))}
    state = spiky.init(params)
    updates, state = spiky.update(spike, state)  # among the first, none is a spike
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
    for _ in range(300):  # norms that stay high are spikes no longer
        _, state = spiky.update(spike, state)
    assert float(state.skipped) == 0
