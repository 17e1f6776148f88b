"""The command bench."""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from albert_jax.config import InputError, check_choice, check_writable, from_dict, override, to_dict
from albert_jax.parser import Parser

EXAMPLES = """\
  albert-jax bench base --batch-size 8 --length 128   # on whatever device JAX finds
  albert-jax bench base --batch-size 128 --dtype bfloat16 --attention cudnn --unroll 12 --remat none   # an NVIDIA GPU
  albert-jax bench base --batch-size 8 --length 128 --work inference --dtype bfloat16 --peer huggingface
  albert-jax bench base --batch-size 4 --length 128 --work gradients --unroll 12 --json bench.json --profile trace
--help after the size lists all fields of model, objective and optimizer, such as --model.num-hidden-layers 48.
MFU counts the matmul FLOPs of the model, relative to the speed of a large matrix product on the same device.
"""
SHORT_OPTIONS = {
    "objective.max_seq_length": "--length",
    "objective.max_predictions_per_seq": "--predictions",
    "model.dtype": "--dtype",
    "model.remat": "--remat",
    "model.scan_unroll": "--unroll",
    "model.attention_implementation": "--attention",
}


def add_bench_commands(add_command: Callable[..., Parser]) -> None:
    """Add the command of this folder to the command line."""
    summary = "Time a training step or a part of it on synthetic tokens, and show where the time goes."
    parser = add_command("bench SIZE", bench, summary, EXAMPLES)
    text = "base, large, xlarge or xxlarge (version 2), or base-v1, large-v1, ... (version 1, with dropout)"
    parser.add_argument("size", metavar="SIZE", help=text)
    parser.field_class, parser.field_values, parser.aliases = _config_class, _config, SHORT_OPTIONS
    text = "write all measurements as JSON"
    parser.add_argument("--json", dest="json_file", metavar="FILE", type=Path, help=text)
    parser.add_argument("--profile", metavar="DIR", type=Path, help="keep the profile, for TensorBoard or Perfetto")
    text = "also time the same work in transformers and torch, alternating with ours"
    parser.add_argument("--peer", choices=("huggingface", "huggingface-compiled"), help=text)
    text = "dtype of the peer; bfloat16 by autocast (default: as ours)"
    parser.add_argument("--peer-dtype", choices=("float32", "bfloat16"), help=text)
    text = "timed rounds of the peer, of about one second each (default 9)"
    parser.add_argument("--peer-rounds", type=int, default=9, metavar="N", help=text)


def bench(arguments: argparse.Namespace) -> int:
    """Run `albert-jax bench`."""
    from albert_jax.bench.breakdown import breakdown, breakdown_table, lower_bounds
    from albert_jax.bench.measure import measure, results_table

    config = _config(arguments)
    if arguments.profile is not None:
        check_writable(arguments.profile, "--profile")
    if arguments.json_file is not None:
        if arguments.json_file.is_dir():
            raise InputError(f"--json {arguments.json_file}: a folder; name a file in it")
        check_writable(arguments.json_file.parent, "--json")
        arguments.json_file.parent.mkdir(parents=True, exist_ok=True)
    if arguments.peer is not None:
        from albert_jax.bench import peer

        peer.check(config, arguments.peer, arguments.peer_rounds)
        # Set before JAX initializes its backend: torch needs memory on the same device.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    result, benchmark = measure(config)

    def save() -> None:
        if arguments.json_file is not None:
            arguments.json_file.write_text(json.dumps(result, indent=1) + "\n")

    save()  # the profile or the peer may still fail
    result["lower_bounds"] = lower_bounds(config, result["matmul_flops"], result["copy_bytes"])
    if parts := breakdown(benchmark, arguments.profile):
        result["breakdown"] = parts
    else:
        print("no breakdown: the profiler reports nothing for this device", file=sys.stderr)
    if arguments.peer is not None:
        dtype = arguments.peer_dtype or config.model.dtype
        result["peer"] = peer.compare(config, benchmark, arguments.peer, dtype, arguments.peer_rounds)
        result["ratio"] = result["peer"]["ratio"]
    print(results_table(result, f"albert-jax bench {arguments.size}"))
    if parts:
        print(f"\n{breakdown_table(parts, result['lower_bounds'])}")
    if arguments.peer is not None:
        print(f"\n{peer.peer_table(result['peer'])}")
    save()
    return 0


def _config_class() -> type:
    from albert_jax.bench.measure import BenchConfig

    return BenchConfig


def _config(arguments: argparse.Namespace) -> Any:
    """The configuration of a size.  By default 15 % of the tokens are predicted, as in the paper."""
    from albert_jax.bench.measure import BenchConfig
    from albert_jax.model.albert import PRESETS
    from albert_jax.pretraining.objective import ObjectiveConfig

    check_choice("size", arguments.size, PRESETS)
    defaults = BenchConfig(PRESETS[arguments.size], ObjectiveConfig(short_seq_prob=0.0))  # every row is full
    values = override(to_dict(defaults), arguments.overrides)
    if "objective.max_predictions_per_seq" not in arguments.overrides:
        length = str(values["objective"]["max_seq_length"])  # `from_dict` reports what is not a number
        values["objective"]["max_predictions_per_seq"] = max(1, round(0.15 * int(length))) if length.isdecimal() else 1
    return from_dict(BenchConfig, values)
