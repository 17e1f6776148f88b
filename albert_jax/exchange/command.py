"""The options of every command that reads a model."""

import argparse
from typing import Any

from albert_jax.parser import Parser


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
