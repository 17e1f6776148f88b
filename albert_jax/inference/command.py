"""The commands predict and early-exit."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from albert_jax.config import InputError, check_choice, check_writable
from albert_jax.exchange.command import add_source, source_options
from albert_jax.parser import Parser

EXAMPLES = """\
  albert-jax predict albert/albert-base-v2 'Paris is the [MASK] of France.'
  albert-jax predict runs/tiny --task sentence-order 'It rained.' 'So we stayed in.'   # or lines of two texts and a tab
  albert-jax predict runs/tiny --task embed --file texts.txt --output vectors.npy
  albert-jax predict runs/tiny --task generate 'the function returns' --length 12 --temperature 0.7
  albert-jax predict runs/sst2 'A film to remember.'   # the labels of a fine-tuned run or Hugging Face folder
  albert-jax predict runs/rte --pair 'It rained all day.' 'The sun shone.'   # two texts, or lines of two texts and a tab
  albert-jax predict runs/squad1 'Who wrote it?' 'The book was written by Jane Austen in 1811.'
  albert-jax predict runs/sst2 'A film to remember.' --explain --html explanation.html   # which words decided
  albert-jax predict runs/tiny 'a [MASK] of [MASK]' --passes   # the prediction after each pass of the shared layer
  albert-jax predict runs/race 'Tom has a dog.' 'What has Tom?' 'a cat' 'a dog'
"""

EXIT_EXAMPLES = """\
  albert-jax early-exit runs/sst2   # prints a table; writes early-exit.json and early-exit.png to the run folder
"""


def add_inference_commands(add_command: Callable[..., Parser]) -> None:
    """Add the commands of this folder to the command line."""
    parser = add_command(
        "predict SOURCE [TEXT...]", predict, "Apply a pretrained or fine-tuned model to text.", EXAMPLES
    )
    add_source(parser)
    parser.add_argument(
        "text",
        nargs="*",
        metavar="TEXT",
        help="texts; without any, and without --file, reads lines from standard input",
    )
    parser.add_argument("--file", type=Path, help="file with one text per line")
    text = """fill-mask, sentence-order, embed, generate, classify, entities, answer or choose (default: what the model was
    fine-tuned for, else fill-mask)"""
    parser.add_argument("--task", metavar="NAME", help=text)
    parser.add_argument("--json", action="store_true", help="print one line of JSON per text")
    text = "fill-mask and answer: number of candidates (default 5)"
    parser.add_argument("--top-k", type=int, default=5, metavar="K", help=text)
    parser.add_argument("--pair", action="store_true", help="classify: each two texts are a pair")
    text = """answer: report no answer if its odds are above this (summary.json of a SQuAD 2.0 run has the best
    threshold)"""
    parser.add_argument("--null-threshold", type=float, metavar="NUMBER", help=text)
    text = """classify: stop after the layer at which the prediction is certain enough, such as entropy=0.2 or change=0.3
    (albert-jax early-exit shows what thresholds cost and save)"""
    parser.add_argument("--early-exit", default="", metavar="CRITERION=NUMBER", help=text)
    text = """print the contribution of each word to the predicted class, masked word, entity or answer, by integrated
    gradients; blue words support it, orange words oppose it"""
    parser.add_argument("--explain", action="store_true", help=text)
    text = "like --explain, with this method: integrated-gradients (default) or gradient-x-input (one gradient: faster, less exact)"
    parser.add_argument("--explain-by", default="", metavar="METHOD", help=text)
    text = "with --explain: the class, or the piece at each [MASK], to explain instead of the most probable one"
    parser.add_argument("--target", metavar="NAME", help=text)
    text = "with --explain: also write the explanations as a page that needs no other file"
    parser.add_argument("--html", type=Path, metavar="FILE", help=text)
    text = "fill-mask, classify and sentence-order: also print the prediction after each pass of the layers"
    parser.add_argument("--passes", action="store_true", help=text)
    text = "embed: mean of the hidden states (default), or output of the pooler"
    parser.add_argument("--pooling", default="mean", choices=("mean", "pooler"), help=text)
    parser.add_argument("--output", type=Path, metavar="FILE", help="embed: .npy file to write, float32 [texts, H]")
    text = "generate: number of pieces to append (default 0)"
    parser.add_argument("--length", type=int, default=0, metavar="N", help=text)
    text = "generate: sampling temperature; 0 takes the most likely piece (default 1.0)"
    parser.add_argument("--temperature", type=float, default=1.0, metavar="NUMBER", help=text)
    text = "generate: the same seed gives the same text (default 0)"
    parser.add_argument("--seed", type=int, default=0, metavar="N", help=text)

    summary = "Measure accuracy, layers and time of a fine-tuned classifier whose texts leave early."
    parser = add_command("early-exit RUN", early_exit, summary, EXIT_EXAMPLES)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run of finetune, of a classification task")
    text = "rows per batch (default 32)"
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help=text)


def predict(arguments: argparse.Namespace) -> int:
    """Run `albert-jax predict`."""
    from albert_jax.exchange.load import load
    from albert_jax.inference.answers import ANSWERS, check_output, default_task, read_texts
    from albert_jax.inference.details import check_details, with_details
    from albert_jax.inference.early_exit import read_exit

    if arguments.task is not None:
        check_choice("--task", arguments.task, ANSWERS)
    if arguments.output is not None:
        check_output(arguments.output)
        if arguments.task != "embed":
            raise InputError("--output is for --task embed; other tasks print")
    if arguments.early_exit:
        read_exit(arguments.early_exit)  # before the model is loaded
    check_details(arguments)
    # Texts of the command line are checked before the model is loaded, standard input is read after.
    texts = read_texts(arguments.text, arguments.file) if arguments.text or arguments.file else None
    loaded = load(arguments.source, **source_options(arguments))
    if loaded[2] is None:
        raise InputError(f"{arguments.source} has no vocabulary; name one with --vocab")
    task = arguments.task or default_task(loaded[0])
    if arguments.early_exit and task != "classify":
        raise InputError(f"--early-exit is for the task classify, not {task}")
    texts = texts or read_texts((), None)
    for record, lines in with_details(ANSWERS[task](loaded, texts, arguments), loaded, task, texts, arguments):
        print(json.dumps(record, ensure_ascii=False) if arguments.json else lines)
    return 0


def early_exit(arguments: argparse.Namespace) -> int:
    """Run `albert-jax early-exit`."""
    from albert_jax.inference.exit_curve import draw_exits, exit_table, measure

    if arguments.batch_size < 1:
        raise InputError(f"--batch-size must be at least 1, got {arguments.batch_size}")
    output = arguments.run / "early-exit.json"
    if arguments.run.is_dir():  # `measure` says what is wrong otherwise
        check_writable(output, "early-exit.json")
    results = measure(arguments.run, arguments.batch_size)
    output.write_text(json.dumps(results, indent=2) + "\n")
    draw_exits(results, next(iter(results[0]["metrics"]))).savefig(output.with_suffix(".png"), dpi=150)
    print(exit_table(results))
    print(f"\n{output}, {output.with_suffix('.png').name}")
    return 0
