"""One fine-tuning run repeated with several seeds, and statistics of its metrics over the seeds."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from albert_jax.config import InputError
from albert_jax.finetuning.run import FinetuneConfig, finetune
from albert_jax.reports.run import seeds_table
from albert_jax.training import processes, run_folder

log = logging.getLogger(__name__)


def finetune_seeds(config: FinetuneConfig, seeds: int, allow_data_change: bool = False) -> dict[str, Any]:
    """Run `finetune` with `seeds` seeds, from train.seed on, each in its own folder; finished seeds are not run again.

    Returns:
      The content of `summary.json`: `metrics`, for each dev metric of the best checkpoints its `median`, `mean`, `std` (n - 1),
      `best`, `worst` and `values`; `test`, the same for test files with labels; `degenerate`, the seeds whose predictions are
      constant, which all statistics include; `seeds`; `baselines`.

    Raises:
      InputError, loop.Interrupted: as `finetune`.
    """
    run_dir = Path(config.run_dir).expanduser()
    if (run_dir / "config.json").exists():
        raise InputError(f"--run-dir {run_dir} has a single run; use another folder for {seeds} seeds")
    summaries = {}
    for seed in range(config.train.seed, config.train.seed + seeds):
        log.info("seed %d", seed)
        train = replace(config.train, seed=seed)
        summaries[seed] = finetune(
            replace(config, run_dir=str(run_dir / f"seed-{seed}"), train=train), allow_data_change
        )
    first = next(iter(summaries.values()))
    best = [{name: summary["best"][name] for name in first["eval"]} for summary in summaries.values()]
    tests = {split: [summary["test"][split] for summary in summaries.values()] for split in first.get("test", {})}
    summary = {
        "seeds": list(summaries),
        "degenerate": [seed for seed, summary in summaries.items() if summary["degenerate"]],
        "metrics": {name: values for name, values in _statistics(best).items() if "threshold" not in name},
        "test": {split: _statistics(metrics) for split, metrics in tests.items()},
        "baselines": first["baselines"],
    }
    if processes.is_main():
        run_folder.write_json(run_dir / "summary.json", summary)
    log.info("%s", seeds_table(summary))
    log.info("%s has a folder per seed, and the summary of all", run_dir)
    return summary


def _statistics(metrics: Sequence[dict[str, float]]) -> dict[str, dict[str, Any]]:
    """Statistics of each metric over several runs."""
    table = pd.DataFrame(metrics)
    statistics = table.agg(["median", "mean", "std", "max", "min"]).rename({"max": "best", "min": "worst"}).to_dict()
    return {str(name): {**values, "values": table[name].tolist()} for name, values in statistics.items()}
