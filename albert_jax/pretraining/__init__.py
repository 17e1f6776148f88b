"""Pretraining: sentence pairs, masks and losses, and the job that runs them.

An experiment imports everything it needs from here; nothing heavy is loaded before it is used.
"""

from typing import TYPE_CHECKING

from albert_jax.config import lazy_imports

if TYPE_CHECKING:
    from albert_jax.data.sources import DataConfig as DataConfig
    from albert_jax.model.albert import AlbertConfig as AlbertConfig
    from albert_jax.pretraining.objective import ObjectiveConfig as ObjectiveConfig
    from albert_jax.pretraining.run import PretrainConfig as PretrainConfig
    from albert_jax.pretraining.run import pretrain as pretrain
    from albert_jax.training.loop import TrainConfig as TrainConfig
    from albert_jax.training.optim import OptimConfig as OptimConfig
    from albert_jax.training.partition import MeshConfig as MeshConfig

__getattr__ = lazy_imports(__name__)
