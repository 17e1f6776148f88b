"""The targets of speed on one NVIDIA GPU; each is what `albert-jax bench` measures.

    python experiments/performance.py FOLDER

Needs jax, flax and optax, and for what is beside Hugging Face torch and transformers.  FOLDER gets a JSON file and a table of
each; the summary grows on standard output, by a row in about a minute, two where torch compiles.  Ctrl-C loses none of it.
"""

import os

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch wants memory beside

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))  # albert_jax need not be installed

from albert_jax.bench import breakdown, measuring, peer, table
from albert_jax.bench.measuring import BenchConfig
from albert_jax.model.albert import PRESETS
from albert_jax.pretraining.objective import ObjectiveConfig

PREDICTIONS = {512: 77, 128: 20}


class Run(NamedTuple):
    """One row."""

    size: str
    batch_size: int
    length: int
    work: Literal["step", "gradients", "inference"] = "step"
    peer: str = ""
    parts: bool = False
    """Say where the time goes."""
    options: Mapping[str, Any] = MappingProxyType({})
    """Of the model, beside what is fastest where memory is plenty: all blocks unrolled, and nothing made again."""

    @property
    def name(self) -> str:
        words = [self.size, self.work, f"{self.batch_size}x{self.length}", self.peer, *map(str, self.options.values())]
        return "-".join(word for word in words if word)


RUNS = [
    Run("base", 128, 512, peer="huggingface-compiled"),
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
    Run("base", 128, 512, parts=True),
    Run("xxlarge", 32, 512),
    Run("xlarge", 32, 512),
    Run("base", 128, 512, options={"scan_unroll": 1, "remat": "elementwise"}),
    Run("base", 32, 512, options={"attention_implementation": "xla"}),
]
"""First one that LOG.md has of an H200, to know the machine by; then those that it has not, most telling first."""


def bench_config(run: Run, small: bool) -> BenchConfig:
    """What is timed; with `small` a network and a batch for a CPU."""
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


def measured(run: Run, config: BenchConfig) -> dict[str, Any]:
    """As `measuring.measure`, with `breakdown` and `peer` where they are asked for; what was timed is gone afterwards."""
    found, timed = measuring.measure_compiled(config)
    if run.parts:
        found["breakdown"] = breakdown.breakdown(timed, None)
        found["floors"] = breakdown.floors(config, found["matmul_flops"], found["copy_bytes"])
    if run.peer:
        found["peer"] = peer.compare(config, timed, run.peer, "bfloat16", rounds=5)
    return found


def main() -> None:
    """Runs them one after another; one that fails says so."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--small", action="store_true", help="a small network and batch, for a CPU")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    print(
        "| | tokens/s | ms | MFU of a product | of the data sheet | memory, GB | compile, s | our time to the peer's |"
    )
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for run in RUNS:
        config = bench_config(run, arguments.small)
        try:
            found = measured(run, config)
        except Exception as error:  # the others are wanted all the same
            print(f"| {run.name} | {type(error).__name__}: {str(error)[:200].partition(chr(10))[0]} |", flush=True)
            continue
        finally:
            if torch := sys.modules.get("torch"):
                torch.cuda.empty_cache()  # the next one wants the memory
        (arguments.folder / f"{run.name}.json").write_text(json.dumps(found, indent=1))
        (arguments.folder / f"{run.name}.md").write_text(table.describe(found, run.name) + "\n")
        sheet = f"{found['mfu_of_peak']:.1%}" if found["mfu_of_peak"] else ""
        theirs = found.get("peer")
        ratio = f"{theirs['ratio']:.3f} ({theirs['ratio_min']:.3f} to {theirs['ratio_max']:.3f})" if theirs else ""
        figures = [f"{found['tokens_per_second']:,.0f}", f"{1e3 * found['seconds']:.4g}", f"{found['mfu']:.1%}", sheet]
        figures += [f"{found['memory'] / 1e9:.3g}", f"{found['compile_seconds']:.3g}", ratio]
        print(f"| {run.name} | {' | '.join(figures)} |", flush=True)


if __name__ == "__main__":
    main()
