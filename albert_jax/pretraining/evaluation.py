"""Held-out metrics of a pretraining run, and those of trivial baselines."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from albert_jax.data import loader
from albert_jax.model.heads import Albert
from albert_jax.pretraining import objective as objectives
from albert_jax.pretraining.objective import ObjectiveConfig, Vocabulary
from albert_jax.pretraining.segment_pairs import SENTENCE_OBJECTIVES
from albert_jax.training import partition

EVAL_SEED = 0xA1BE27
"""Held-out pairs and masks are the same in every run, whatever its seed."""

Evaluate = Callable[[Any], dict[str, dict[str, float]]]


def eval_batches(
    rows: loader.Sequences, batch_size: int, max_steps: int, draws: int
) -> Iterator[tuple[int, loader.Batch]]:
    """The batches of an evaluation, each once per draw, with their numbers, which determine the keys of pairs and masks."""
    return enumerate(batch for _ in range(draws) for batch in loader.eval_batches(rows, batch_size, max_steps))


def make_evaluate(
    model: Albert,
    objective: ObjectiveConfig,
    vocabulary: Vocabulary,
    heldout: loader.Sequences,
    token_counts: np.ndarray,
    mesh: Mesh,
    batch_size: int,
    max_steps: int,
    draws: int = 1,
) -> Evaluate:
    """Return `params -> {"eval": metrics, "baseline": metrics of the trivial baseline}`.

    The masked-LM metrics are those of inputs drawn by `objective`.  The sentence head is scored on every sentence objective
    with at most as many classes as it has (paper, Table 5).  Every evaluation uses the same inputs.

    Args:
      model: its `sentence_classes` are those of the objective it is trained on.
      objective: how the held-out inputs are drawn.
      vocabulary: special ids.
      heldout: held-out rows.
      token_counts: [V] occurrences of each piece in the train split.
      mesh: the devices.
      batch_size: rows in a batch, over all devices.
      max_steps: maximum number of batches of rows.
      draws: number of times that pairs and masks are drawn for each batch.
    """
    num_classes = len(model.sentence_classes)
    chances = {name: kind.chance for name, kind in SENTENCE_OBJECTIVES.items() if 0 < len(kind.classes) <= num_classes}

    def step(params: Any, batch: dict[str, Array], number: Array) -> dict[str, Any]:
        params = partition.gathered(params, mesh)
        key = jax.random.fold_in(jax.random.key(EVAL_SEED), number)
        eval_metrics: dict[str, Array] = {}
        baseline: dict[str, Array] = {}
        for name in sorted({objective.sentence_objective, *chances}):
            scored_objective = replace(objective, sentence_objective=name)
            examples = objectives.draw(scored_objective, vocabulary, batch, key)
            if name in chances:
                examples["sentence_labels"] = objectives.sentence_labels(examples, name, model.sentence_classes)
            _, metrics = objectives.loss(scored_objective, model.apply, params, examples, train=False)
            prefixes = [name] * (name in chances) + ["mlm"] * (name == objective.sentence_objective)
            eval_metrics |= {key: value for key, value in metrics.items() if key.rpartition("_")[0] in prefixes}
            if name == objective.sentence_objective:
                baseline = objectives.baseline(token_counts, examples)
        return {"eval": eval_metrics, "baseline": baseline}

    jitted = jax.jit(step, out_shardings=partition.replicated(mesh))

    def evaluate(params: Any) -> dict[str, dict[str, float]]:
        sums: Any = None
        for number, batch in eval_batches(heldout, batch_size, max_steps, draws):
            rows = {name: jax.device_put(value, partition.by_rows(mesh)) for name, value in batch.items()}
            batch_number = jax.device_put(np.uint32(number), partition.replicated(mesh))
            batch_sums = jax.device_get(jitted(params, rows, batch_number))
            sums = batch_sums if sums is None else jax.tree.map(np.add, sums, batch_sums)
        # The weight is 0 if all held-out rows come from one document, because no NSP negative is possible.
        means = {
            part: {name: float(total[0] / total[1]) for name, total in sorted(values.items()) if total[1] > 0}
            for part, values in sums.items()
        }
        means["baseline"] |= {f"{name}_accuracy": chance for name, chance in chances.items()}
        return means

    return evaluate
