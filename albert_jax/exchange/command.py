"""The command convert, and the options of every command that reads a model."""

import argparse
import json
from collections.abc import Callable
from typing import Any

from albert_jax.config import InputError, check_choice, from_dict
from albert_jax.parser import Parser

EXAMPLES = """\
  albert-jax convert albert_base_v2.tar.gz albert-base-v2   # Google's checkpoint -> Hugging Face folder
  albert-jax convert runs/tiny exported   # a run -> Hugging Face folder
  albert-jax convert exported runs/unshared --to albert_jax --sharing none --num-hidden-layers 24
  albert-jax convert runs/unshared runs/lora --to albert_jax --sharing all --per-pass lora --per-pass.rank 8
"""


def add_exchange_commands(add_command: Callable[..., Parser]) -> None:
    """Add the command of this folder to the command line."""
    summary = "Write any ALBERT as a Hugging Face folder, or as a model folder of this package."
    parser = add_command("convert SOURCE TARGET", convert, summary, EXAMPLES)
    add_source(parser)
    parser.add_argument("target", metavar="TARGET", help="folder to create")
    text = "huggingface (default); albert_jax: a folder that --init-from, predict and load read like a run"
    parser.add_argument("--to", default="huggingface", choices=("huggingface", "albert_jax", "stablehlo"), help=text)
    text = "change how layers share parameters: all, attention, none, ..., or a table of sets such as 0,1,2,1"
    parser.add_argument("--sharing", metavar="NAME", help=text)
    text = "number of parameter sets, for --sharing groups, cycle, ..."
    parser.add_argument("--num-hidden-groups", type=int, metavar="N", help=text)
    text = """change the per-pass parameters of shared layers: none, norm, scale, embedding or lora; --per-pass.rank 8
    and others set its fields"""
    parser.add_argument("--per-pass", metavar="NAME", help=text)
    parser.free_options = "--per-pass."
    text = "how a parameter set is made from different layers: average (default), or stepwise (one of the layers)"
    parser.add_argument("--initialization", default="average", metavar="NAME", help=text)
    text = "change the depth: each layer is repeated, or layers are left out"
    parser.add_argument("--num-hidden-layers", type=int, metavar="N", help=text)
    text = "gelu_new (tanh form) or gelu (erf form), where the source names the wrong one"
    parser.add_argument("--hidden-act", metavar="NAME", help=text)
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def add_source(parser: Parser) -> None:
    """Add the argument `source`, a model in any form, and the options for reading it."""
    text = """a Hugging Face folder or hub id (albert/albert-base-v2; @REVISION pins it); the folder, tar or prefix of a
    checkpoint from Google; or a run folder"""
    parser.add_argument("source", metavar="SOURCE", help=text)
    text = "vocabulary to use instead of the source's: a SentencePiece model, vocab.txt or tokenizer.json"
    parser.add_argument("--vocab", default="", metavar="FILE", help=text)
    text = "initialize pretraining heads that the source lacks at random"
    parser.add_argument("--init-missing", action="store_true", help=text)
    text = "read pytorch_model.bin, with torch, if the source has no other weights; unsafe for files you do not trust"
    parser.add_argument("--allow-pickle", action="store_true", help=text)


def source_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The values of the options of `add_source`, for `load` and `convert`."""
    return {name: getattr(arguments, name) for name in ("vocab", "init_missing", "allow_pickle")}


def convert(arguments: argparse.Namespace) -> int:
    """Run `albert-jax convert`."""
    from albert_jax.exchange.convert import convert, report_text
    from albert_jax.model.per_pass import PER_PASS

    names = ("sharing", "num_hidden_groups", "num_hidden_layers", "hidden_act")
    changes = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    if arguments.free and arguments.per_pass is None:
        raise InputError(f"--per-pass.{arguments.free[0][0]} needs --per-pass NAME")
    if arguments.per_pass is not None:
        check_choice("--per-pass", arguments.per_pass, PER_PASS)
        changes["per_pass"] = from_dict(PER_PASS[arguments.per_pass], dict(arguments.free), "--per-pass")
    report = convert(
        arguments.source,
        arguments.target,
        to=arguments.to,
        initialization=arguments.initialization,
        **source_options(arguments),
        **changes,
    )
    print(json.dumps(report) if arguments.json else report_text(report))
    return 0
