"""Fine-tuning: the tasks, their data and metrics, and the job that runs them.

An experiment imports everything it needs from here; nothing heavy is loaded before it is used.
"""

from typing import TYPE_CHECKING

from albert_jax.config import lazy_imports

if TYPE_CHECKING:
    from albert_jax.finetuning.classification import ClassificationData as ClassificationData
    from albert_jax.finetuning.multi_label import MultiLabelData as MultiLabelData
    from albert_jax.finetuning.multiple_choice import MultipleChoiceData as MultipleChoiceData
    from albert_jax.finetuning.question_answering import QuestionAnsweringData as QuestionAnsweringData
    from albert_jax.finetuning.run import FinetuneConfig as FinetuneConfig
    from albert_jax.finetuning.run import finetune as finetune
    from albert_jax.finetuning.token_classification import TokenClassificationData as TokenClassificationData
    from albert_jax.model.albert import AlbertConfig as AlbertConfig
    from albert_jax.training.loop import TrainConfig as TrainConfig
    from albert_jax.training.optim import OptimConfig as OptimConfig
    from albert_jax.training.partition import MeshConfig as MeshConfig

__getattr__ = lazy_imports(__name__)
