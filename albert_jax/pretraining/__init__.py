"""Pretraining: sentence pairs, masks and losses, and the job that runs them.

An experiment imports everything it needs from here; nothing heavy is loaded before it is used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from albert_jax.data.sources import DataConfig as DataConfig
    from albert_jax.model.albert import AlbertConfig as AlbertConfig
    from albert_jax.pretraining.objective import ObjectiveConfig as ObjectiveConfig
    from albert_jax.pretraining.run import PretrainConfig as PretrainConfig
    from albert_jax.pretraining.run import pretrain as pretrain
    from albert_jax.training.loop import TrainConfig as TrainConfig
    from albert_jax.training.optim import OptimConfig as OptimConfig
    from albert_jax.training.partition import MeshConfig as MeshConfig

_MODULES = {
    "AlbertConfig": "albert_jax.model.albert",
    "DataConfig": "albert_jax.data.sources",
    "MeshConfig": "albert_jax.training.partition",
    "ObjectiveConfig": "albert_jax.pretraining.objective",
    "OptimConfig": "albert_jax.training.optim",
    "PretrainConfig": "albert_jax.pretraining.run",
    "TrainConfig": "albert_jax.training.loop",
    "pretrain": "albert_jax.pretraining.run",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
