"""Fine-tuning: the tasks, their data and metrics, and the job that runs them.

An experiment imports everything it needs from here; nothing heavy is loaded before it is used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from albert_jax.finetuning.classification import ClassificationData as ClassificationData
    from albert_jax.finetuning.multiple_choice import MultipleChoiceData as MultipleChoiceData
    from albert_jax.finetuning.question_answering import QuestionAnsweringData as QuestionAnsweringData
    from albert_jax.finetuning.run import FinetuneConfig as FinetuneConfig
    from albert_jax.finetuning.run import finetune as finetune
    from albert_jax.finetuning.token_classification import TokenClassificationData as TokenClassificationData
    from albert_jax.model.albert import AlbertConfig as AlbertConfig
    from albert_jax.training.loop import TrainConfig as TrainConfig
    from albert_jax.training.optim import OptimConfig as OptimConfig
    from albert_jax.training.partition import MeshConfig as MeshConfig

_MODULES = {
    "AlbertConfig": "albert_jax.model.albert",
    "ClassificationData": "albert_jax.finetuning.classification",
    "FinetuneConfig": "albert_jax.finetuning.run",
    "MeshConfig": "albert_jax.training.partition",
    "MultipleChoiceData": "albert_jax.finetuning.multiple_choice",
    "OptimConfig": "albert_jax.training.optim",
    "QuestionAnsweringData": "albert_jax.finetuning.question_answering",
    "TokenClassificationData": "albert_jax.finetuning.token_classification",
    "TrainConfig": "albert_jax.training.loop",
    "finetune": "albert_jax.finetuning.run",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
