"""The command bench."""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from albert_jax.config import InputError, check_choice, check_writable, from_dict, load, override, to_dict
from albert_jax.parser import Parser

EXAMPLES = """\
  albert-jax bench base --batch-size 8 --length 128   # on whatever device JAX finds
  albert-jax bench experiments/pretrain/tiny.py       # model, batch, objective and optimizer of an experiment
  albert-jax bench base --batch-size 128 --dtype bfloat16 --attention cudnn --unroll 12 --remat none   # an NVIDIA GPU
  albert-jax bench base --batch-size 8 --length 128 --work inference --dtype bfloat16 --peer huggingface
  albert-jax bench base --batch-size 4 --length 128 --work gradients --unroll 12 --json bench.json --profile trace
--help after the model lists all fields of model, objective and optimizer, such as --model.num-hidden-layers 48.
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
    parser = add_command("bench MODEL", bench, summary, EXAMPLES)
    text = (
        "base, large, xlarge or xxlarge (version 2); base-v1, large-v1, ... (version 1, with dropout); or an experiment "
        "file (.py) or the config.json of a run, of pretraining"
    )
    parser.add_argument("model", metavar="MODEL", help=text)
    parser.field_class, parser.field_values, parser.aliases = _config_class, bench_config, SHORT_OPTIONS
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

    config = bench_config(arguments)
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
    print(results_table(result, f"albert-jax bench {arguments.model}"))
    if parts:
        print(f"\n{breakdown_table(parts, result['lower_bounds'])}")
    if arguments.peer is not None:
        print(f"\n{peer.peer_table(result['peer'])}")
    save()
    return 0


def _config_class() -> type:
    from albert_jax.bench.measure import BenchConfig

    return BenchConfig


def bench_config(arguments: argparse.Namespace) -> Any:
    """The configuration of a size or an experiment file, with the options of the command line.

    Unless the number of predictions is given, it is `masked_lm_prob` of the length (15 %, as in the paper); an experiment file
    gives it for its own length.
    """
    from albert_jax.bench.measure import BenchConfig
    from albert_jax.model.albert import PRESETS
    from albert_jax.pretraining.objective import ObjectiveConfig

    name, overrides = arguments.model, arguments.overrides
    is_file = Path(name).suffix in (".py", ".json")
    if is_file:
        from albert_jax.pretraining.run import PretrainConfig

        experiment: Any = load(PretrainConfig, name)
        defaults = BenchConfig(
            experiment.model, experiment.objective, experiment.optim, batch_size=experiment.train.global_batch_size
        )
        values = to_dict(defaults)
        if overrides.get("work", defaults.work) == "step":
            values["gradient_accumulation"] = experiment.train.gradient_accumulation
    else:
        check_choice("model", name, PRESETS)
        values = to_dict(BenchConfig(PRESETS[name], ObjectiveConfig()))
    values["objective"]["short_seq_prob"] = 0.0  # every row is full
    values = override(values, overrides)
    given = {"objective.max_seq_length", "objective.max_predictions_per_seq"} & overrides.keys()
    if given == {"objective.max_seq_length"} or not (given or is_file):
        config = from_dict(BenchConfig, override(values, {"objective.max_predictions_per_seq": 1}))
        predictions = round(config.objective.masked_lm_prob * config.objective.max_seq_length)
        values["objective"]["max_predictions_per_seq"] = max(1, predictions)
    return from_dict(BenchConfig, values)
