"""Held-out metrics of a pretraining run, on examples that are the same in every evaluation."""

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from albert_jax.config import InputError
from albert_jax.data import loader
from albert_jax.model.albert import AlbertConfig
from albert_jax.model.heads import Albert
from albert_jax.pretraining import diagnostics
from albert_jax.pretraining import objective as objectives
from albert_jax.pretraining.objective import ObjectiveConfig, Vocabulary
from albert_jax.pretraining.segment_pairs import SENTENCE_OBJECTIVES
from albert_jax.training import partition

EVAL_SEED = 0xA1BE27
"""Held-out pairs and masks are the same in every run, whatever its seed."""

Evaluate = Callable[[Any], dict[str, Any]]
Draws = Callable[..., Iterator[dict[str, np.ndarray]]]


def eval_batches(
    rows: loader.Sequences, batch_size: int, max_steps: int, draws: int
) -> Iterator[tuple[int, loader.Batch]]:
    """Yield (number, batch), each batch once per draw.  The number selects the random keys of pairs and masks."""
    return enumerate(batch for _ in range(draws) for batch in loader.eval_batches(rows, batch_size, max_steps))


def eval_key(number: Any) -> Array:
    """The key of pairs and masks of an evaluation batch."""
    return jax.random.fold_in(jax.random.key(EVAL_SEED), number)


def drawer(objective: ObjectiveConfig, vocabulary: Vocabulary) -> Draws:
    """Return `(rows, batch_size, max_steps, draws=1) -> batches`, the examples of an evaluation as numpy arrays."""
    draw = jax.jit(functools.partial(objectives.draw, objective, vocabulary))

    def examples(
        rows: loader.Sequences, batch_size: int, max_steps: int, draws: int = 1
    ) -> Iterator[dict[str, np.ndarray]]:
        for number, batch in eval_batches(rows, batch_size, max_steps, draws):
            batch_examples = draw(batch, eval_key(np.uint32(number)))
            batch_examples.pop("dropout_keys")
            yield jax.device_get(batch_examples)

    return examples


def scored_objectives(num_classes: int) -> list[str]:
    """The sentence objectives on which a sentence head is scored: those with at most as many classes as it has (paper, Table 5)."""
    return [name for name, kind in SENTENCE_OBJECTIVES.items() if 0 < len(kind.classes) <= num_classes]


def make_evaluate(
    model: Albert,
    objective: ObjectiveConfig,
    vocabulary: Vocabulary,
    heldout: loader.Sequences,
    baselines: Mapping[str, Mapping[str, float]],
    mesh: Mesh,
    batch_size: int,
    max_steps: int,
    draws: int = 1,
) -> Evaluate:
    """Return `params -> evaluation`.

    An evaluation has the parts `eval`, the metrics; `examples`, the number of examples that each is a mean over; `baselines`;
    and `diagnostics`, see `diagnostics.py`.  The masked-LM metrics are those of inputs drawn by `objective`.  The sentence
    head is scored on all `scored_objectives`.  Every evaluation uses the same inputs.

    Args:
      model: its `sentence_classes` are those of the objective it is trained on.
      objective: how the held-out inputs are drawn.
      vocabulary: special ids.
      heldout: held-out rows.
      baselines: name -> metrics on the same inputs, see `baselines.py`.
      mesh: the devices.
      batch_size: rows in a batch, over all devices.
      max_steps: maximum number of batches of rows.
      draws: number of times that pairs and masks are drawn for each batch.
    """
    scored = scored_objectives(len(model.sentence_classes))

    def step(params: Any, batch: dict[str, Array], number: Array) -> tuple[dict[str, Array], dict[str, Array]]:
        """The sums and weights of the metrics; and a few rows for the diagnostics, so that only this function draws."""
        params = partition.gathered(params, mesh)
        sums: dict[str, Array] = {}
        rows: dict[str, Array] = {}
        for name in sorted({objective.sentence_objective, *scored}):
            scored_objective = replace(objective, sentence_objective=name)
            examples = objectives.draw(scored_objective, vocabulary, batch, eval_key(number))
            if name in scored:
                examples["sentence_labels"] = objectives.sentence_labels(examples, name, model.sentence_classes)
            _, metrics = objectives.loss(scored_objective, model.apply, params, examples, train=False)
            prefixes = [name] * (name in scored) + ["mlm"] * (name == objective.sentence_objective)
            sums |= {key: value for key, value in metrics.items() if key.rpartition("_")[0] in prefixes}
            if name == objective.sentence_objective:
                rows = {name: examples[name][: diagnostics.ROWS] for name in diagnostics.INPUTS}
        return sums, rows

    def diagnose(params: Any, rows: dict[str, Array]) -> dict[str, Array]:
        return diagnostics.of_rows(model, partition.gathered(params, mesh), rows)

    replicated = partition.replicated(mesh)
    jitted_step, jitted_diagnose = (jax.jit(function, out_shardings=replicated) for function in (step, diagnose))

    def evaluate(params: Any) -> dict[str, Any]:
        sums: dict[str, Any] = {}
        diagnosed: dict[str, Array] = {}
        for number, batch in eval_batches(heldout, batch_size, max_steps, draws):
            rows = {name: jax.device_put(value, partition.by_rows(mesh)) for name, value in batch.items()}
            batch_sums, few_rows = jitted_step(params, rows, jax.device_put(np.uint32(number), replicated))
            if not diagnosed:
                diagnosed = jitted_diagnose(params, few_rows)
            for name, value in jax.device_get(batch_sums).items():
                sums[name] = sums.get(name, 0) + value
        # The weight is 0 if all held-out rows come from one document, because no NSP negative is possible.
        totals = {name: total for name, total in sorted(sums.items()) if total[1] > 0}
        metrics = {name: float(total / weight) for name, (total, weight) in totals.items()}
        return {
            "eval": metrics,
            "examples": {name: float(weight) for name, (_, weight) in totals.items()},
            "baselines": {name: dict(values) for name, values in baselines.items()},
            "diagnostics": diagnostics.named(jax.device_get(diagnosed)) | diagnostics.gains(metrics, baselines),
        }

    return evaluate


def evaluated_depths(model: AlbertConfig, eval_depths: str) -> list[int]:
    """The numbers of layers that `eval_depths` names, such as "0.5,1,2".

    Raises:
      InputError: `eval_depths` is not a list of positive numbers, or the layers do not repeat.
    """
    if not eval_depths:
        return []
    try:
        factors = [float(word) for word in eval_depths.split(",")]
    except ValueError:
        factors = []
    if not factors or not all(0 < factor <= 100 for factor in factors):
        raise InputError(f"eval_depths: expected factors in (0, 100], separated by commas, got {eval_depths!r}")
    model.check_repeats("eval_depths")
    numbers = sorted({max(1, round(factor * model.num_hidden_layers)) for factor in factors})
    for number in numbers:
        try:
            replace(model, num_hidden_layers=number)
        except InputError as error:
            raise InputError(f"eval_depths {eval_depths}, {number} layers: {error}") from None
    return numbers
