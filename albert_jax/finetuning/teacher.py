"""Fine-tuning with a teacher: the student also learns the teacher's predictions for the task (arXiv 1503.02531)."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
from jax import Array

from albert_jax.exchange.weights import Weights
from albert_jax.finetuning.family import Batch, Family, Logits, metric_sums
from albert_jax.pretraining.distillation import DistillationConfig, hidden_difference, soft_cross_entropy, with_heads
from albert_jax.training.step import Workload


def with_teacher(
    workload: Workload, config: DistillationConfig, task: Family, apply: Callable[..., Any], teacher: Weights, data: Any
) -> Workload:
    """The workload with the distillation loss; the teacher's parameters are an argument of the step.

    Args:
      workload: of the student.
      config: the weights of the losses.
      task: an entry of `TASKS`.
      apply: the student's `apply`.
      teacher: a model that was fine-tuned on the same task.
      data: the task's data settings.
    """
    model, teacher_params = with_heads(teacher, task.heads(data))

    def draw(batch: Batch, key: Array) -> Any:
        mask = batch["attention_mask"].astype(jnp.float32)
        return workload.draw(dict(batch), key) | {"token_scale": mask / jnp.maximum(jnp.sum(mask), 1.0)}

    def loss(params: Any, batch: Batch, frozen: Any) -> tuple[Array, dict[str, Array]]:
        states: list[Array] = []

        def recording(model_apply: Callable[..., Any]) -> Callable[..., Any]:
            def run(*inputs: Any, **options: Any) -> Any:
                outputs = model_apply(*inputs, output_hidden_states=True, **options)
                states.append(outputs["hidden_states"])
                return outputs

            return run if config.hidden_weight else model_apply

        student = task.logits(recording(apply), params, batch, batch["dropout_keys"])
        fixed_depth = {name: value for name, value in batch.items() if name != "num_layers"}
        taught = task.logits(recording(model.apply), frozen, fixed_depth, None)
        total, metrics = task.loss(student, batch)
        soft = prediction_difference(student, taught, config.temperature, batch["scale"].ndim)
        total += config.weight * jnp.sum(soft * batch["scale"])
        metrics["distillation_loss"] = metric_sums(batch, soft=soft)["soft"]
        if config.hidden_weight:
            mask, scale = batch["attention_mask"].astype(jnp.float32), batch["token_scale"]
            difference = hidden_difference(*states).reshape(mask.shape)
            total += config.hidden_weight * jnp.sum(difference * scale)
            metrics["hidden_loss"] = jnp.stack([jnp.sum(difference * mask), jnp.sum(mask)])
        return total, metrics

    return replace(workload, draw=draw, loss=loss, frozen=(teacher_params,))


def prediction_difference(logits: Logits, teacher_logits: Logits, temperature: float, ndim: int) -> Array:
    """Soft cross-entropy with the teacher, or the squared difference of scores, of `ndim` axes.

    A task with several predictions per row, such as start and end of an answer, or several labels, has their mean.
    """
    differences = [
        soft_cross_entropy(student, teacher_logits[name], temperature)
        if student.shape[-1] > 1
        else jnp.square(student - teacher_logits[name])[..., 0]
        for name, student in logits.items()
    ]
    means = [jnp.mean(each, axis=tuple(range(ndim, each.ndim))) for each in differences]
    return sum(means[1:], means[0]) / len(means)
