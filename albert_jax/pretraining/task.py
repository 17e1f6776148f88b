"""The workload of the training step, from model and objective.  It needs no data."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from albert_jax.config import InputError
from albert_jax.data.sequences import capacity
from albert_jax.model.albert import AlbertConfig
from albert_jax.model.depth import layers_of_step
from albert_jax.model.heads import SENTENCE_CLASSES, Albert, flops_per_token, init_params
from albert_jax.pretraining import objective as objectives
from albert_jax.pretraining.objective import Examples, ObjectiveConfig, Vocabulary
from albert_jax.pretraining.segment_pairs import SENTENCE_OBJECTIVES
from albert_jax.training.partition import Layout
from albert_jax.training.step import Workload


def pretraining_model(config: AlbertConfig, objective: ObjectiveConfig) -> Albert:
    """The model with the pretraining heads; the sentence head has the classes of the objective."""
    classes = SENTENCE_OBJECTIVES[objective.sentence_objective].classes
    return Albert(config, sentence_classes=classes or SENTENCE_CLASSES)


def pretraining_workload(
    model: Albert,
    objective: ObjectiveConfig,
    vocabulary: Vocabulary,
    layout: Layout,
    batches: Any = None,
    evaluate: Any = None,
) -> Workload:
    """The workload of the training step; the loop also needs `batches` and `evaluate` (see `Workload`)."""
    apply = functools.partial(model.apply, gather_set=layout.gather_set)
    return Workload(
        init=functools.partial(init_params, model),
        draw=functools.partial(_draw, model.config, objective, vocabulary),
        loss=functools.partial(objectives.loss, objective, apply, train=True),
        batches=batches,
        evaluate=evaluate,
        flops_per_token=flops_per_token(model.config, objective.max_seq_length, objective.max_predictions_per_seq),
    )


def _draw(
    config: AlbertConfig, objective: ObjectiveConfig, vocabulary: Vocabulary, batch: dict[str, Any], key: Array
) -> Examples:
    """`objectives.draw`, and the number of layers of the step, if it is random."""
    examples = objectives.draw(objective, vocabulary, batch, key)
    return examples | layers_of_step(config.depth_sampling, key, config.num_hidden_layers, len(batch["document"]))


def placeholder_vocabulary(vocab_size: int) -> Vocabulary:
    """A vocabulary with the released special ids, for use without data; every second piece starts a word.

    Raises:
      InputError: `vocab_size` has no room for the special ids.
    """
    if vocab_size <= 4:
        raise InputError(f"model.vocab_size must be above 4, the id of [MASK], got {vocab_size}")
    starts_word = np.arange(vocab_size) % 2 == 0
    return Vocabulary(vocab_size, pad_id=0, cls_id=2, sep_id=3, mask_id=4, starts_word=starts_word)


def batch_shapes(objective: ObjectiveConfig, num_rows: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a batch from the loader."""
    sequence = jax.ShapeDtypeStruct((num_rows, capacity(objective.max_seq_length)), jnp.int32)
    return {"tokens": sequence, "sentence": sequence, "document": jax.ShapeDtypeStruct((num_rows,), jnp.int32)}
