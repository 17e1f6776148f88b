"""The commands pretrain, prepare, vocab, evaluate and probe."""

import argparse
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from albert_jax import pretraining
from albert_jax.config import InputError, check_choice, check_file, check_writable, load
from albert_jax.exchange.command import add_source, source_options
from albert_jax.parser import Parser
from albert_jax.training.command import add_run_options, exit_code, join_processes

log = logging.getLogger(__name__)

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
EVALUATE_EXAMPLES = """\
  albert-jax evaluate runs/tiny   # repeats the held-out metrics of the run
  albert-jax evaluate albert/albert-base-v2 --data.source 'text/*.txt'   # held-out metrics of any ALBERT on any text
  albert-jax evaluate runs/tiny --pairs blimp/data --share 0.1   # minimal pairs: every tenth pair of a clone of BLiMP
  albert-jax evaluate runs/tiny --pairs mine.csv --masking word --by kind   # columns good, bad and kind
  albert-jax evaluate runs/tiny --perplexity 'text/*.txt'   # pseudo-perplexity of a text, sentence by sentence
How held-out text is read and masked are options too; albert-jax evaluate SOURCE --help lists them.
"""
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
    summary = "Evaluate any ALBERT without fine-tuning: held-out metrics, minimal pairs, pseudo-perplexity."
    parser = add_command("evaluate SOURCE", evaluate, summary, EVALUATE_EXAMPLES)
    add_source(parser)
    text = "file, folder or glob of minimal pairs: lines of JSON (good, bad, kind, or BLiMP's fields), .csv or .tsv"
    parser.add_argument("--pairs", default="", metavar="FILE", help=text)
    text = "text files whose sentences are scored; read like --data.source"
    parser.add_argument("--perplexity", default="", metavar="FILES", help=text)
    text = "fraction of the pairs of each kind, or of the sentences (default 1)"
    parser.add_argument("--share", type=float, default=1.0, metavar="NUMBER", help=text)
    text = "token: mask one token at a time (default); word: also the later tokens of the same word, because they reveal it"
    parser.add_argument("--masking", default="token", metavar="NAME", help=text)
    text = "lines of the table of pairs: phenomenon (default) or kind"
    parser.add_argument("--by", default="phenomenon", choices=("phenomenon", "kind"), help=text)
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write all results to this file, as JSON")
    parser.field_class = heldout_config_class
    parser.field_values = _heldout_config
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


def heldout_config_class() -> type:
    """The fields of `albert-jax evaluate`: those of the held-out text."""
    from albert_jax.pretraining.zero_shot import HeldoutConfig

    return HeldoutConfig


def _heldout_config(arguments: argparse.Namespace) -> Any:
    from albert_jax.pretraining.zero_shot import heldout_config

    return heldout_config(arguments.source, arguments.overrides)


def evaluate(arguments: argparse.Namespace) -> int:
    """Run `albert-jax evaluate`."""
    from albert_jax.exchange.load import read
    from albert_jax.pretraining import minimal_pairs, zero_shot
    from albert_jax.pretraining.pseudo_likelihood import MASKINGS
    from albert_jax.reports.run import heldout_table
    from albert_jax.training.partition import make_mesh

    name, share, masking = arguments.source, arguments.share, arguments.masking
    config = zero_shot.heldout_config(name, arguments.overrides)
    check_choice("--masking", masking, MASKINGS)
    if not 0 < share <= 1:
        raise InputError(f"--share must be in (0, 1], got {share:g}")
    pairs_config = minimal_pairs.PairsConfig(arguments.pairs, share, masking)
    pairs = minimal_pairs.read_pairs(pairs_config, "--pairs") if arguments.pairs else []
    only_heldout = not (arguments.pairs or arguments.perplexity)
    if only_heldout and "data.source" not in arguments.overrides and not zero_shot.run_config(name):
        raise InputError(f"{name}: nothing to evaluate; give --pairs, --perplexity or --data.source")
    if arguments.output:
        check_file("--output", arguments.output)
    mesh, source = make_mesh("any"), read(name, **source_options(arguments))
    for note in source.weights.notes:
        log.warning("%s: %s", name, note)
    results: dict[str, Any] = {}
    if only_heldout or "data.source" in arguments.overrides:
        results = zero_shot.heldout(source, config, mesh, name)
        print(heldout_table(results))
    if arguments.pairs:
        results["pairs"] = zero_shot.pairs_accuracies(source, pairs, masking, mesh, name)
        print(zero_shot.pairs_table(results["pairs"], arguments.by == "kind"))
    if arguments.perplexity:
        data = replace(config.data, source=arguments.perplexity)
        try:
            results["perplexity"] = zero_shot.perplexity(source, data, share, masking, mesh, name)
        except InputError as error:
            raise InputError(str(error).replace("data.source", "--perplexity")) from None
        print(zero_shot.perplexity_table(results["perplexity"]))
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=2) + "\n")
    return 0


def _config(arguments: argparse.Namespace) -> Any:
    return load(pretraining.PretrainConfig, arguments.experiment, arguments.overrides)
