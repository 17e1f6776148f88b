"""Several seeds of one fine-tuning run: what they come to together."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from albert_jax.config import require
from albert_jax.finetuning.run import FinetuneConfig, finetune
from albert_jax.reports import run as report
from albert_jax.training import processes, run_folder

log = logging.getLogger(__name__)


def finetune_seeds(config: FinetuneConfig, seeds: int, allow_data_change: bool = False) -> dict[str, Any]:
    """`finetune` with `seeds` seeds from train.seed on, one after another, each in a folder of its own; finished ones are kept.

    Returns:
      The content of `summary.json`: for each dev metric of the best checkpoints `median`, `mean`, `std` (over n - 1), `best`,
      `worst` and `values`; `test`, the same of test files with labels; `degenerate`, the seeds whose best predicts always the same; they are counted in all of it.

    Raises:
      InputError, train.Interrupted: as `finetune`.
    """
    run_dir = Path(config.run_dir).expanduser()
    own = run_dir / "config.json"
    require(not own.exists(), f"--run-dir {run_dir} holds a single run; give another for {seeds} seeds")
    summaries = {}
    for seed in range(config.train.seed, config.train.seed + seeds):
        log.info("seed %d", seed)
        folder = run_dir / f"seed-{seed}"
        one = replace(config, run_dir=str(folder), train=replace(config.train, seed=seed))
        summaries[seed] = finetune(one, allow_data_change)
    first = next(iter(summaries.values()))
    metrics = {
        name: _spread([summary["best"][name] for summary in summaries.values()])
        for name in first["eval"]
        if "threshold" not in name
    }
    tests = {
        split: {name: _spread([summary["test"][split][name] for summary in summaries.values()]) for name in table}
        for split, table in first.get("test", {}).items()
    }
    together = {
        "seeds": list(summaries),
        "degenerate": [seed for seed, summary in summaries.items() if summary["degenerate"]],
        "metrics": metrics,
        "test": tests,
        "baseline": first["baseline"],
    }
    if processes.is_main():
        run_folder.write_json(run_dir / "summary.json", together)
    log.info("%s", report.seeds_table(together))
    log.info("a folder a seed, and the summary of all: %s", run_dir)
    return together


def _spread(values: Sequence[float]) -> dict[str, Any]:
    figures = np.array(values)
    return {
        "median": float(np.median(figures)),
        "mean": float(figures.mean()),
        "std": float(figures.std(ddof=1)),
        "best": float(figures.max()),
        "worst": float(figures.min()),
        "values": list(values),
    }
