"""Measure training and inference speed on one NVIDIA GPU, with the code of `albert-jax bench`.

    python experiments/performance.py FOLDER

Run it again to measure the rows that are not in FOLDER yet.  It needs jax, flax and optax; torch and transformers for the rows that
are compared with Hugging Face.  Each row takes about a minute, or two if torch compiles.  It is printed, and stored in FOLDER as JSON
and as a table, as soon as it is measured.
"""

import os

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch needs memory on the same device

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))  # albert_jax need not be installed

from albert_jax.bench.breakdown import breakdown, breakdown_table, lower_bounds
from albert_jax.bench.measure import BenchConfig, measure, results_table
from albert_jax.bench.peer import check, compare, peer_table
from albert_jax.config import first_line
from albert_jax.model.albert import PRESETS
from albert_jax.pretraining.objective import ObjectiveConfig

PREDICTIONS = {512: 77, 128: 20}
"""Sequence length -> masked positions."""


class Run(NamedTuple):
    """One row."""

    size: str
    batch_size: int
    length: int
    work: str = "step"
    peer: str = ""
    profile: bool = False
    """Also measure where the time goes."""
    options: Mapping[str, Any] = MappingProxyType({})
    """Fields of the model that differ from the fastest setting with enough memory: all blocks unrolled, no remat."""

    @property
    def name(self) -> str:
        options = [f"{name}-{value}" for name, value in self.options.items()]
        words = [self.size, self.work, f"{self.batch_size}x{self.length}", self.peer, *options]
        return "-".join(word for word in words if word)


RUNS = [
    Run("base", 128, 512, peer="huggingface-compiled"),
    Run("base", 128, 512, options={"fused_kernels": True}),
    Run("large", 64, 512),
    Run("base", 64, 512, "inference", "huggingface-compiled"),
    Run("base", 512, 128),
    Run("base", 1, 128, "inference", "huggingface-compiled"),
    Run("base", 32, 512, peer="huggingface"),
    Run("base", 64, 128, "inference", "huggingface-compiled"),
    Run("base", 1, 512, "inference", "huggingface-compiled"),
    Run("xxlarge", 128, 128),
    Run("xlarge", 128, 128),
    Run("large", 256, 128),
    Run("base", 128, 512, profile=True),
    Run("xxlarge", 32, 512),
    Run("xlarge", 32, 512),
    Run("base", 128, 512, options={"scan_unroll": 1, "remat": "elementwise"}),
    Run("base", 32, 512, options={"attention_implementation": "xla"}),
]
"""The first row is already in LOG.md, so that machines can be compared.  The others follow by importance."""


def bench_config(run: Run, small: bool) -> BenchConfig:
    """The configuration of a row; with `small`, a model and batch for a CPU."""
    fastest: dict[str, Any] = dict(
        dtype="bfloat16", attention_implementation="cudnn", remat="none", scan_unroll=PRESETS[run.size].depth
    )
    model = dataclasses.replace(PRESETS[run.size], **{**fastest, **run.options})
    predictions = PREDICTIONS[run.length]
    objective = ObjectiveConfig(max_seq_length=run.length, max_predictions_per_seq=predictions, short_seq_prob=0.0)
    if small:
        sizes: Any = dict(hidden_size=64, num_attention_heads=4, intermediate_size=128, num_hidden_layers=2)
        model = dataclasses.replace(model, **sizes, attention_implementation="xla")
        return BenchConfig(model, objective, batch_size=2, work=run.work, rounds=1)
    return BenchConfig(model, objective, batch_size=run.batch_size, work=run.work, rounds=3)


def measure_row(run: Run, config: BenchConfig) -> tuple[dict[str, Any], list[str]]:
    """Measure one row; return the results and their tables.  Its device memory is free afterwards."""
    if run.peer:
        check(config, run.peer, rounds=5)
    results, benchmark = measure(config)
    tables = [results_table(results, run.name)]
    if run.profile:
        results["lower_bounds"] = lower_bounds(config, results["matmul_flops"], results["copy_bytes"])
        results["breakdown"] = breakdown(benchmark, None)
        tables.append(breakdown_table(results["breakdown"], results["lower_bounds"]))
    if run.peer:
        results["peer"] = compare(config, benchmark, run.peer, "bfloat16", rounds=5)
        tables.append(peer_table(results["peer"]))
    return results, tables


def main() -> None:
    """Measure all rows.  If one fails, print its error and continue."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--small", action="store_true", help="a small model and batch, for a CPU")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    print(
        "| | tokens/s | ms | MFU | MFU by data sheet | memory, GB | compile, s | compile from cache, s | our time / peer's time |"
    )
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    for run in RUNS:
        if (arguments.folder / f"{run.name}.json").exists():
            continue
        try:
            results, tables = measure_row(run, bench_config(run, arguments.small))
        except Exception as error:
            print(f"| {run.name} | {type(error).__name__}: {first_line(error)[:200]} |", flush=True)
            continue
        finally:
            if torch := sys.modules.get("torch"):
                torch.cuda.empty_cache()  # for the next row
        (arguments.folder / f"{run.name}.json").write_text(json.dumps(results, indent=1))
        (arguments.folder / f"{run.name}.md").write_text("\n\n".join(tables) + "\n")
        peak = f"{results['mfu_of_peak']:.1%}" if results["mfu_of_peak"] else ""
        peer = results.get("peer")
        ratio = f"{peer['ratio']:.3f} ({peer['ratio_min']:.3f} to {peer['ratio_max']:.3f})" if peer else ""
        cells = [
            f"{results['tokens_per_second']:,.0f}",
            f"{1e3 * results['seconds']:.4g}",
            f"{results['mfu']:.1%}",
            peak,
        ]
        compile_times = [f"{results[name]:.3g}" for name in ("compile_seconds", "warm_compile_seconds")]
        cells += [f"{results['memory'] / 1e9:.3g}", *compile_times, ratio]
        print(f"| {run.name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
