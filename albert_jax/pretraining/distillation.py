"""A teacher: the student also learns the teacher's predictions, in pretraining those at the masked positions.

Hinton et al., arXiv 1503.02531; for hidden states, Jiao et al., arXiv 1909.10351, without its learned projection.
"""

import hashlib
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from albert_jax.config import InputError, check_fields
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.exchange.load import check_vocabulary, read
from albert_jax.exchange.weights import Weights
from albert_jax.model.albert import AlbertConfig
from albert_jax.model.heads import Albert
from albert_jax.model.tree import leaves
from albert_jax.pretraining import objective as objectives
from albert_jax.pretraining.objective import Examples, Metrics, ObjectiveConfig
from albert_jax.training.step import Workload

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DistillationConfig:
    """A teacher, whose predictions the student learns besides the true ones."""

    teacher: str = ""
    """Anything that `albert_jax.load` reads, with the same vocabulary, such as a run folder; in fine-tuning, a model that was
    fine-tuned on the same task.  Empty: no teacher."""
    weight: float = 1.0
    """Weight of the cross-entropy with the teacher's predictions (for a regression, of the squared difference); the other losses
    have weight 1."""
    temperature: float = 2.0
    """Both predictions are softened: their logits are divided by this number."""
    hidden_weight: float = 0.0
    """Weight of the mean squared difference between the student's hidden states and the teacher's, of which layer i of L
    is compared with layer i L' / L of the teacher's L'.  Both need the same hidden_size."""

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("weight", "hidden_weight"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"{name} must be finite and >= 0, got {value}")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise InputError(f"temperature must be finite and > 0, got {self.temperature}")

    def check_teacher_given(self) -> None:
        """Raise `InputError` if there are settings, but no teacher."""
        if not self.teacher and self != DistillationConfig():
            raise InputError("distillation has settings, but no teacher; name one with --distillation.teacher")

    def check_depth(self, model: AlbertConfig) -> None:
        """Raise `InputError` if hidden states are to be compared, and their number is random."""
        if self.hidden_weight and model.depth_sampling != "fixed":
            raise InputError("distillation.hidden_weight needs model.depth_sampling fixed")


def read_teacher(
    config: DistillationConfig,
    model: Albert,
    tokenizer: Tokenizer,
    length: int,
    heads: Sequence[str],
) -> Weights:
    """Read the teacher, and check that it fits the student.

    Args:
      config: with a teacher.
      model: the student.
      tokenizer: of the data.
      length: tokens in a sequence.
      heads: whose predictions the student learns.

    Raises:
      InputError: the source cannot be read; it has another vocabulary, no such heads, other classes, too few positions, or
        hidden states of another size.
    """
    field, source = f"distillation.teacher {config.teacher}", read(config.teacher)
    for note in source.weights.notes:
        log.info("%s: %s", config.teacher, note)
    check_teacher(config, model, length, heads, source.weights.model)
    check_vocabulary(field, source, tokenizer)
    return source.weights


HEADS_TAUGHT = ("predictions",)
"""The heads whose predictions the student learns in pretraining."""


def digest(teacher: Weights) -> str:
    """SHA-256 of a teacher's parameters: a run that resumes must have the same."""
    state = hashlib.sha256()
    for path, leaf in leaves(teacher.params).items():
        state.update("/".join(path).encode() + np.ascontiguousarray(leaf).tobytes())
    return state.hexdigest()


def check_teacher(
    config: DistillationConfig, model: Albert, length: int, heads: Sequence[str], teacher: Albert
) -> None:
    """The checks of `read_teacher` apart from the pieces of the vocabulary."""
    field, student, stored = f"distillation.teacher {config.teacher}", model.config, teacher.config
    if stored.vocab_size != student.vocab_size:
        raise InputError(f"{field}: its vocab_size is {stored.vocab_size}, the student's {student.vocab_size}")
    if missing := [head for head in heads if head not in teacher.heads]:
        raise InputError(
            f"{field}: it has no head {', '.join(missing)}; its heads are {', '.join(teacher.heads) or 'none'}"
        )
    if model.labels != teacher.labels and "predictions" not in heads:
        raise InputError(
            f"{field}: its classes are {', '.join(teacher.labels)}, those of the data {', '.join(model.labels)}"
        )
    if model.multi_label != teacher.multi_label:
        kind = "several labels" if teacher.multi_label else "one class"
        raise InputError(f"{field}: it gives each text {kind}, unlike the student")
    if stored.max_position_embeddings < length:
        raise InputError(f"{field}: it has {stored.max_position_embeddings} positions, the sequences have {length}")
    if config.hidden_weight and stored.hidden_size != student.hidden_size:
        raise InputError(
            f"{field}: its hidden_size is {stored.hidden_size}, the student's {student.hidden_size}; set distillation.hidden_weight to 0"
        )


def with_teacher(
    workload: Workload,
    config: DistillationConfig,
    objective: ObjectiveConfig,
    apply: Callable[..., Any],
    teacher: Weights,
) -> Workload:
    """The workload with the distillation loss.  The teacher's parameters are an argument of the step, not constants of the program.

    Args:
      workload: of the student.
      config: the weights of the losses.
      objective: of the student.
      apply: the student's `apply`.
      teacher: see `read_teacher`.
    """
    model, teacher_params = with_heads(teacher, HEADS_TAUGHT)

    def draw(batch: dict[str, Array], key: Array) -> Examples:
        examples = workload.draw(batch, key)
        mask = examples["attention_mask"].astype(jnp.float32)
        return examples | {"token_scale": mask / jnp.maximum(jnp.sum(mask), 1.0)}

    def loss(params: Any, examples: Examples, frozen: Any) -> tuple[Array, Metrics]:
        hidden = config.hidden_weight > 0
        outputs = objectives.outputs(apply, params, examples, train=True, output_hidden_states=hidden)
        total, metrics = objectives.loss_of_outputs(objective, outputs, examples)
        inputs = {name: value for name, value in examples.items() if name != "num_layers"}
        taught = objectives.outputs(model.apply, frozen, inputs, train=False, output_hidden_states=hidden)
        soft = soft_cross_entropy(outputs["prediction_logits"], taught["prediction_logits"], config.temperature)
        total += config.weight * jnp.sum(soft * examples["masked_lm_scale"])
        weights = examples["masked_lm_weights"]
        metrics["distillation_loss"] = jnp.stack([jnp.sum(soft * weights), jnp.sum(weights)])
        if hidden:
            difference = hidden_difference(outputs["hidden_states"], taught["hidden_states"])
            total += config.hidden_weight * jnp.sum(difference * examples["token_scale"])
            mask = examples["attention_mask"].astype(jnp.float32)
            metrics["hidden_loss"] = jnp.stack([jnp.sum(difference * mask), jnp.sum(mask)])
        return total, metrics

    return replace(workload, draw=draw, loss=loss, frozen=(teacher_params,))


def with_heads(teacher: Weights, heads: Sequence[str]) -> tuple[Albert, dict[str, Any]]:
    """The teacher's model and parameters without its other heads."""
    kept = {name: leaves for name, leaves in teacher.params.items() if name in ("embeddings", "encoder", *heads)}
    return teacher.model.clone(heads=tuple(heads)), kept


def soft_cross_entropy(logits: Array, teacher_logits: Array, temperature: float) -> Array:
    """Cross-entropy [..., V] -> [...] with the teacher's softened predictions, times the squared temperature, in float32."""
    student = jax.nn.log_softmax(logits.astype(jnp.float32) / temperature)
    teacher = jax.nn.softmax(teacher_logits.astype(jnp.float32) / temperature)
    return -jnp.sum(teacher * student, axis=-1) * temperature**2


def hidden_difference(states: Array, teacher_states: Array) -> Array:
    """The mean squared difference [B, S] of hidden states [L + 1, B, S, H] and [L' + 1, B, S, H], over layers 1 to L and H."""
    depth, teacher_depth = len(states) - 1, len(teacher_states) - 1
    layers = jnp.array([round(i * teacher_depth / depth) for i in range(1, depth + 1)])
    difference = states[1:].astype(jnp.float32) - teacher_states[layers].astype(jnp.float32)
    return jnp.mean(jnp.square(difference), axis=(0, -1))
