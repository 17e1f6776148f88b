"""Evaluation of a fine-tuning run: dev metrics while it trains, then predictions of the best parameters for every split."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from albert_jax.data.batches import Rows
from albert_jax.finetuning import family
from albert_jax.finetuning.family import Split
from albert_jax.model.heads import Albert, param_shapes
from albert_jax.training import checkpoint, partition, processes, run_folder

NUM_EXAMPLES = 5
"""How many examples with right predictions, and how many with wrong ones, a report shows."""
MAX_SHOWN_CHARACTERS = 400


class Evaluation:
    """Evaluates and predicts the splits of a task, except the training split."""

    def __init__(
        self,
        config: Any,
        task: family.Family,
        splits: Mapping[str, Split],
        rows: Mapping[str, Rows],
        model: Albert,
        mesh: Mesh,
    ) -> None:
        self.config, self.task, self.splits, self.rows, self.model, self.mesh = config, task, splits, rows, model, mesh
        self.dev = [split for split in splits if split.startswith("dev")]
        self.step = jax.jit(
            lambda params, batch: task.outputs(model.apply, partition.gathered(params, mesh), batch, config.data),
            out_shardings=partition.replicated(mesh),
        )
        self.baseline = self._merged({split: task.baseline(splits["train"], splits[split]) for split in self.dev})
        # With several dev splits, metric names end with the split's name, and the first split selects the best step.
        self.select = next(iter(self._merged({split: {task.select: 0.0} for split in self.dev})))

    def evaluate(self, params: Any) -> dict[str, Any]:
        """Dev metrics and those of the trivial baseline, for the train loop."""
        metrics = {split: self._score(params, split).metrics for split in self.dev}
        return {"eval": self._merged(metrics), "baselines": {"trivial": self.baseline}}

    def conclude(self, run_dir: Path) -> dict[str, Any]:
        """Write the predictions of the best parameters for all splits; return what the summary says about them."""
        shapes = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=partition.replicated(self.mesh)),
            param_shapes(self.model),
        )
        params = checkpoint.restore_params(run_dir / "best", shapes)
        scores = {split: self._score(params, split) for split in self.dev}
        tuned = scores[self.dev[0]].metrics
        others = [split for split in self.splits if split not in ("train", *self.dev)]
        scores |= {split: self._score(params, split, tuned) for split in others}
        summary: dict[str, Any] = {
            "select": self.select,
            "degenerate": all(scores[split].degenerate for split in self.dev),
            "predictions": [],
        }
        if test := {split: scores[split].metrics for split in others if scores[split].metrics}:
            summary["test"] = test
        if processes.is_main():
            folder, dev = run_dir / "predictions", self.dev[0]
            folder.mkdir(exist_ok=True)
            for split, score in scores.items():
                summary["predictions"].append(str(self.task.write(folder, self.splits[split], score.predictions)))
            run_folder.write_json(
                run_dir / run_folder.EXAMPLES_FILE, shown_examples(self.task, self.splits[dev], scores[dev].predictions)
            )
        return summary

    def _score(self, params: Any, split: str, tuned: dict[str, float] | None = None) -> family.Score:
        """Score every example of a split; `tuned` as in `Family.score`."""
        batch_size, length = self.config.train.eval_batch_size, self.config.data.max_seq_length
        outputs = family.infer(self.step, params, self.rows[split], batch_size, length, self._put)
        return self.task.score(self.splits[split], self.rows[split], outputs, tuned)

    def _put(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """Shard a global batch, which every process has, over its rows."""
        return {name: jax.device_put(value, partition.by_rows(self.mesh)) for name, value in batch.items()}

    def _merged(self, metrics: dict[str, dict[str, float]]) -> dict[str, float]:
        """The metrics of all dev splits in one table."""
        if len(self.dev) == 1:
            return metrics[self.dev[0]]
        return {
            f"{name}_{split.removeprefix('dev_')}": value
            for split, table in metrics.items()
            for name, value in table.items()
        }


def shown_examples(task: family.Family, split: Split, predictions: Sequence[Any]) -> dict[str, Any]:
    """Examples of a split for the run's report, in the form of `EXAMPLES_FILE`."""
    rows = list(map(task.shown, split.examples, predictions))
    right = [row for row in rows if row["expected"] == row["predicted"]][:NUM_EXAMPLES]
    wrong = [row for row in rows if row["expected"] != row["predicted"]][:NUM_EXAMPLES]
    caption = f"{split.name}: the first {NUM_EXAMPLES} that are predicted as expected, then the first {NUM_EXAMPLES} that are not."
    return {"caption": caption, "rows": [{name: _cut(text) for name, text in row.items()} for row in right + wrong]}


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= MAX_SHOWN_CHARACTERS else f"{text[:MAX_SHOWN_CHARACTERS]} ..."
