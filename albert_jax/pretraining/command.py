"""The commands pretrain, prepare, vocab and probe."""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from albert_jax import pretraining
from albert_jax.config import InputError, check_writable, load
from albert_jax.parser import Parser
from albert_jax.training.command import add_run_options, exit_code, join_processes

PRETRAIN_EXAMPLES = """\
  albert-jax pretrain experiments/pretrain/tiny.py
  albert-jax pretrain experiments/pretrain/tiny.py --train.global-batch-size 256 --model.sharing none --run-dir runs/mine
  albert-jax pretrain experiments/pretrain/small.py --data.source 'text/*.jsonl.gz' --data.vocab spiece.model
  albert-jax pretrain runs/tiny/config.json --run-dir runs/again   # repeats a run
"""
PREPARE_EXAMPLES = """\
  albert-jax prepare experiments/pretrain/small.py --data.source 'text/*.jsonl.gz'
Pretraining prepares the data itself; this command does it in advance, for example on a machine without an accelerator.

For a corpus too large for one machine, --engine beam (pip install 'albert_jax[beam]') writes the same records in the same order.
  albert-jax prepare FILE --engine beam --data.source '/corpus/*.jsonl.gz' --data.vocab spiece.model --data.cache-dir /shared
Every --beam.OPTION VALUE is a pipeline option of Beam.  Switches take true or false; repeat an option to pass a list.
  --beam.direct-running-mode multi_processing --beam.direct-num-workers 16          16 processes on this machine
  --beam.runner DataflowRunner --beam.project P --beam.region europe-west4 --beam.temp-location gs://BUCKET/tmp
    --beam.sdk-container-image IMAGE
  --beam.runner FlinkRunner --beam.flink-master HOST:8081 --beam.environment-type DOCKER --beam.environment-config IMAGE
  --beam.runner SparkRunner --beam.spark-master-url spark://HOST:7077 --beam.environment-type DOCKER
    --beam.environment-config IMAGE
Work is distributed per input file, so split the corpus into many files.  Workers need albert_jax installed (an IMAGE with it)
and must see source and cache at the same paths as this machine, on a mounted file system (not gs://).
"""
VOCAB_EXAMPLES = "  albert-jax vocab experiments/pretrain/small.py spiece.model --data.source 'text/*.jsonl.gz'"
PROBE_EXAMPLES = "  albert-jax probe experiments/pretrain/tiny.py"


def add_pretraining_commands(add_command: Callable[..., Parser]) -> None:
    """Add the commands of this folder to the command line."""
    summary = "Prepare the data, train and evaluate.  Rerunning the command resumes."
    parser = add_command("pretrain FILE", pretrain, summary, PRETRAIN_EXAMPLES)
    parser.add_experiment(lambda: pretraining.PretrainConfig)
    add_run_options(parser)
    parser = add_command(
        "prepare FILE", prepare, "Prepare the data of an experiment; print the folder.", PREPARE_EXAMPLES
    )
    parser.add_experiment(lambda: pretraining.PretrainConfig)
    text = "local: this process (default); beam: the workers of an Apache Beam pipeline"
    parser.add_argument("--engine", default="local", choices=("local", "beam"), help=text)
    parser.free_options = "--beam."
    summary = "Train a SentencePiece vocabulary on an experiment's text, with the flags of the released one."
    parser = add_command("vocab FILE TARGET", vocab, summary, VOCAB_EXAMPLES)
    parser.add_experiment(lambda: pretraining.PretrainConfig)
    parser.add_argument("target", metavar="TARGET", type=Path, help="file to write, such as spiece.model")
    summary = "Measure how well linear classifiers predict the sentence objective on an experiment's data."
    add_command("probe FILE", probe, summary, PROBE_EXAMPLES).add_experiment(lambda: pretraining.PretrainConfig)


def pretrain(arguments: argparse.Namespace) -> int:
    """Run `albert-jax pretrain`."""
    from albert_jax.pretraining.run import pretrain

    config = _config(arguments)
    join_processes(arguments)
    return exit_code(lambda: pretrain(config, arguments.allow_data_change))


def prepare(arguments: argparse.Namespace) -> int:
    """Run `albert-jax prepare`."""
    from albert_jax.data.prepare import prepare

    if arguments.free and arguments.engine != "beam":
        raise InputError("--beam.* options need --engine beam")
    config = _config(arguments)
    options = [(name.replace("-", "_"), value) for name, value in arguments.free]
    beam_options = options if arguments.engine == "beam" else None
    print(prepare(config.data, config.model.vocab_size, beam_options, config.needs_pairs).folder)
    return 0


def vocab(arguments: argparse.Namespace) -> int:
    """Run `albert-jax vocab`."""
    from albert_jax.data.prepare import train_source_vocabulary

    config = _config(arguments)
    if arguments.target.exists():
        raise InputError(f"{arguments.target} exists; name another file, or remove it first")
    check_writable(arguments.target, "target")
    train_source_vocabulary(replace(config.data, vocab=""), arguments.target, config.model.vocab_size)
    return 0


def probe(arguments: argparse.Namespace) -> int:
    """Run `albert-jax probe`."""
    from albert_jax.pretraining import probes

    print(probes.probe_table(probes.probe(_config(arguments))))
    return 0


def _config(arguments: argparse.Namespace) -> Any:
    return load(pretraining.PretrainConfig, arguments.experiment, arguments.overrides)
