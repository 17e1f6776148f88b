"""A run of the real train loop on a model that compiles in a blink: linear regression with noise drawn inside the step."""

import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from albert_jax.training import loop
from albert_jax.training.loop import Run, TrainConfig
from albert_jax.training.optim import OptimConfig, Optimizer, make_optimizer
from albert_jax.training.partition import Layout, make_mesh
from albert_jax.training.step import TrainState, Workload

ROWS, INPUTS, OUTPUTS = 16, 8, 256


def batches(start: int, seed: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """This process' rows of the batches after `start`; a batch depends only on seed and step."""
    rows = ROWS // jax.process_count()
    while True:
        inputs = np.random.default_rng([start, seed]).normal(size=(ROWS, INPUTS)).astype(np.float32)
        yield {"inputs": inputs[rows * jax.process_index() :][:rows]}
        start += 1


def init(key: Array) -> dict[str, Array]:
    return {"kernel": jax.random.normal(key, (INPUTS, OUTPUTS)), "bias": jnp.zeros(OUTPUTS)}


def draw(batch: dict[str, Array], key: Array) -> dict[str, Array]:
    noise = jax.vmap(lambda row: jax.random.normal(jax.random.fold_in(key, row), (OUTPUTS,)))(jnp.arange(ROWS))
    return batch | {"noise": noise}


def loss(params: Any, rows: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
    error = jnp.sum(jnp.square(rows["inputs"] @ params["kernel"] + params["bias"] - rows["noise"])) / ROWS
    return error, {"tokens": jnp.array([len(rows["inputs"]), 1.0])}


def evaluate(params: Any) -> dict[str, dict[str, float]]:
    return {"eval": {"bias": float(jnp.sum(jnp.abs(params["bias"])))}, "baselines": {}}


def workload(**fields: Any) -> Workload:
    """The workload of the toy model, with some fields replaced."""
    functions: dict[str, Any] = {
        "init": init,
        "draw": draw,
        "loss": loss,
        "batches": batches,
        "evaluate": evaluate,
        "flops_per_token": 1.0,
    }
    return Workload(**(functions | fields))


def train(run_dir: Path, *, seed: int = 0, **options: Any) -> tuple[TrainState, dict[str, Any]]:
    """Train one run; the options are those of `train_seeds`."""
    (result,) = train_seeds({seed: run_dir}, **options)
    return result


def train_seeds(
    run_dirs: Mapping[int, Path],
    *,
    devices: int = 1,
    sharding: str = "none",
    optimizer: Callable[[], Optimizer] | None = None,
    optim: dict[str, Any] | None = None,
    fields: dict[str, Any] | None = None,
    initial: Callable[[], Any] | None = None,
    **config: Any,
) -> list[tuple[TrainState, dict[str, Any]]]:
    """Train 12 steps in one program, with a checkpoint and an evaluation every 4.

    Args:
      run_dirs: seed -> run folder.
      devices, sharding: of the mesh.
      optimizer: returns the optimizer; by default the one that `optim`, fields of `OptimConfig`, selects.
      optim: fields of `OptimConfig`.
      fields: of `Workload`.
      initial: of `Run`.
      config: fields of `TrainConfig`.
    """
    settings = {
        "num_train_steps": 12,
        "global_batch_size": ROWS,
        "log_every": 1,
        "eval_every": 4,
        "checkpoint_every": 4,
    }
    runs = [
        Run(
            TrainConfig(**(settings | config), seed=seed),
            workload(**({"batches": functools.partial(batches, seed=seed)} | (fields or {}))),
            run_dir,
            initial,
        )
        for seed, run_dir in run_dirs.items()
    ]
    made = OptimConfig(**({"num_warmup_steps": 1, "learning_rate": 0.01} | (optim or {})))
    chosen = optimizer() if optimizer else make_optimizer(made, runs[0].config.num_train_steps, lambda path: False)
    layout = Layout(make_mesh("any", devices), sharding)
    return loop.train(runs, chosen, layout)


def flat(state: TrainState) -> np.ndarray:
    """All numbers of a state, in one array."""
    return np.concatenate([np.ravel(leaf).astype(np.float64) for leaf in jax.tree.leaves(jax.device_get(state))])
