"""Pretraining as the train step sees it: model and objective put together, whatever the data is."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from albert_jax.config import require
from albert_jax.data.sequences import capacity
from albert_jax.model.albert import AlbertConfig
from albert_jax.model.heads import Albert, flops_per_token, init_params
from albert_jax.pretraining import objective as pretraining
from albert_jax.pretraining.objective import ObjectiveConfig, Vocabulary
from albert_jax.training.partition import Layout
from albert_jax.training.step import Workload


def make_task(
    model_config: AlbertConfig,
    objective: ObjectiveConfig,
    vocabulary: Vocabulary,
    layout: Layout,
    batches: Any = None,
    evaluate: Any = None,
) -> Workload:
    """What the train step is made of; for the loop with `batches` and `evaluate`, as `Workload` says."""
    model = Albert(model_config)
    apply = functools.partial(model.apply, gather_set=layout.gather_set)
    return Workload(
        init=functools.partial(init_params, model),
        draw=functools.partial(pretraining.draw, objective, vocabulary),
        loss=functools.partial(pretraining.loss, objective, apply, train=True),
        batches=batches,
        evaluate=evaluate,
        flops_per_token=flops_per_token(model_config, objective.max_seq_length, objective.max_predictions_per_seq),
    )


def some_vocabulary(vocab_size: int) -> Vocabulary:
    """One of this size with the released ids, where no data is at hand: every other piece starts a word.

    Raises:
      InputError: it has no room for the ids.
    """
    require(vocab_size > 4, f"model.vocab_size must be above 4, the id of [MASK], got {vocab_size}")
    starts_word = np.arange(vocab_size) % 2 == 0
    return Vocabulary(vocab_size, pad_id=0, cls_id=2, sep_id=3, mask_id=4, starts_word=starts_word)


def batch_shapes(objective: ObjectiveConfig, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Of what the loader makes, for so many rows."""
    sequence = jax.ShapeDtypeStruct((rows, capacity(objective.max_seq_length)), jnp.int32)
    return {"tokens": sequence, "sentence": sequence, "document": jax.ShapeDtypeStruct((rows,), jnp.int32)}
