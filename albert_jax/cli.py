"""The command line: one subcommand a job.  Heavy imports wait until a job needs them."""

import argparse
import dataclasses
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from albert_jax.config import InputError, load

EPILOG = """\
Any field of an experiment can be overridden: --train.global-batch-size 256, --data.source 'text/*.jsonl.gz', --model.sharing none.
  albert-jax pretrain experiments/pretrain/tiny.py --help   lists the fields, their meaning and this experiment's values.
A run folder's config.json is an experiment too: albert-jax pretrain runs/tiny/config.json --run-dir runs/again
"""


class _Parser(argparse.ArgumentParser):
    """Its mistakes are told like all others: in one line."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")


def main(words: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0, 2 for input that cannot be used, 128 + n for signal n."""
    words = sys.argv[1:] if words is None else list(words)
    parser = _parser()
    if words[1:2] and words[0] in ("pretrain", "prepare", "vocab") and {"-h", "--help"} & set(words[2:]):
        return _help(words[0], words[1])
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True)
    logging.getLogger("albert_jax").setLevel(logging.INFO)
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax and TFDS tell their every step
    try:
        plain, overrides = _split(words)
        arguments = parser.parse_args(plain)
        return arguments.job(arguments, overrides)
    except InputError as error:
        print(f"albert-jax: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("albert-jax: interrupted; the same command starts where this one was", file=sys.stderr)
        return 128 + signal.SIGINT


def _split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words that argparse reads, and the overrides with their values, wherever they stand."""
    plain: list[str] = []
    overrides: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or word == "--help":
            plain.append(word)
            continue
        overrides.append(word)
        if "=" not in word and rest:
            overrides.append(rest.pop(0))
    return plain, overrides


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = _Parser(
        prog="albert-jax",
        description="Pretrain and study ALBERT in JAX.",
        epilog=EPILOG,
        formatter_class=raw,
        allow_abbrev=False,
    )
    jobs = parser.add_subparsers(required=True, metavar="JOB")

    def job(name: str, run: object, summary: str) -> argparse.ArgumentParser:
        sub = jobs.add_parser(
            name, help=summary, description=summary, epilog=EPILOG, formatter_class=raw, allow_abbrev=False
        )
        sub.set_defaults(job=run)
        return sub

    experiment = "experiment file (.py) or a run's config.json; --help after it lists its fields"
    job("pretrain", _pretrain, "Prepare the data, train, evaluate; the same command again resumes.").add_argument(
        "experiment", help=experiment
    )
    job("prepare", _prepare, "Only prepare the data of an experiment, and print the folder.").add_argument(
        "experiment", help=experiment
    )
    vocab = job("vocab", _vocab, "Train a SentencePiece vocabulary on an experiment's source, with the released flags.")
    vocab.add_argument("experiment", help=experiment)
    vocab.add_argument("target", type=Path, help="file to write, such as spiece.model")
    job("report", _report, "Draw a run's curves again and print its last numbers.").add_argument("run_dir", type=Path)
    return parser


def _help(job: str, experiment: str) -> int:
    import tyro

    from albert_jax.pretrain import PretrainConfig

    try:
        config = load(PretrainConfig, experiment)
    except InputError as error:
        print(f"albert-jax: error: {error}", file=sys.stderr)
        return 2
    kept = (tyro.conf.FlagConversionOff, tyro.conf.AvoidSubcommands)
    tyro.cli(PretrainConfig, default=config, args=["--help"], prog=f"albert-jax {job} {experiment}", config=kept)
    return 0


def _pretrain(arguments: argparse.Namespace, overrides: list[str]) -> int:
    from albert_jax.pretrain import PretrainConfig, pretrain
    from albert_jax.train import Interrupted

    try:
        pretrain(load(PretrainConfig, arguments.experiment, overrides))
    except Interrupted as stop:
        print(f"albert-jax: {stop}", file=sys.stderr)
        return 128 + stop.signum
    return 0


def _prepare(arguments: argparse.Namespace, overrides: list[str]) -> int:
    from albert_jax.data.prepare import prepare
    from albert_jax.pretrain import PretrainConfig

    config = load(PretrainConfig, arguments.experiment, overrides)
    print(prepare(config.data, config.model.vocab_size).folder)
    return 0


def _vocab(arguments: argparse.Namespace, overrides: list[str]) -> int:
    from albert_jax.config import check_writable, require
    from albert_jax.data.prepare import vocabulary
    from albert_jax.pretrain import PretrainConfig

    config = load(PretrainConfig, arguments.experiment, overrides)
    require(not arguments.target.exists(), f"{arguments.target} exists; name another file, or remove it first")
    check_writable(arguments.target, "target")
    vocabulary(dataclasses.replace(config.data, vocab=""), arguments.target, config.model.vocab_size)
    return 0


def _report(arguments: argparse.Namespace, overrides: list[str]) -> int:
    from albert_jax import report
    from albert_jax.config import read_json, require

    require(not overrides, f"unexpected argument '{' '.join(overrides)}'")
    print(report.plot_curves(arguments.run_dir))
    summary = arguments.run_dir / "summary.json"
    if summary.exists():
        print(report.table(read_json(summary)))
    return 0
