"""The command line: finds the command, parses its options, runs it, and turns errors into one line and an exit code.

The commands and their options are in the `command.py` of each folder.  Nothing slow is imported here or there: jax is loaded
only when a command runs, or lists the fields of an experiment.
"""

import argparse
import errno
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from albert_jax.ablation.command import add_ablation_commands
from albert_jax.bench.command import add_bench_commands
from albert_jax.completion import SHELLS, completion_script
from albert_jax.config import InputError
from albert_jax.finetuning.command import add_finetuning_commands
from albert_jax.inference.command import add_inference_commands
from albert_jax.new.command import add_new_commands
from albert_jax.parser import Parser
from albert_jax.plan.command import add_plan_commands
from albert_jax.pretraining.command import add_pretraining_commands
from albert_jax.publish.command import add_publish_commands
from albert_jax.reports.command import add_report_commands

EPILOG = """\
albert-jax COMMAND --help        describes a command and its options
albert-jax COMMAND FILE --help   also lists the fields of the experiment in FILE, each of which is an option
"""
COMPLETION_EXAMPLES = """\
  albert-jax completion bash   # write it to a file, and add 'source FILE' to ~/.bashrc
  albert-jax completion zsh   # write it to a file _albert-jax in a folder of $fpath
"""
HELP = {"-h", "--help"}


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
      The exit code: 0 for success, and for a run that saved its state after SIGTERM; 1 if rows of an ablation failed; 2 for a
      user's mistake; 128 + n after a different signal n.
    """
    words = sys.argv[1:] if words is None else list(words)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True)
    logging.getLogger("albert_jax").setLevel(logging.INFO)
    for name in ("absl", "apache_beam"):  # Orbax and TFDS (both log to absl) and Beam log every detail
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        code = _run(words)
        sys.stdout.flush()  # so that a broken pipe raises here, not when the process ends
        return code
    except InputError as error:
        print(f"albert-jax: error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the flush at exit does not fail too
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        reason = f"{error.filename or 'a file'}: {os.strerror(error.errno)}; make room"
        print(f"albert-jax: error: {reason}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("albert-jax: interrupted; rerun the command to start again", file=sys.stderr)
        return 128 + signal.SIGINT


def _run(words: list[str]) -> int:
    parser, commands = parsers()
    if not words or words[0] in HELP:
        parser.print_help()
        return 0 if words else 2
    name, *rest = words
    if name not in commands:
        raise InputError(f"unknown command {name!r}; choose one of {', '.join(commands)}")
    command = commands[name]
    options = rest[: rest.index("--")] if "--" in rest else rest
    needs_help = not HELP.isdisjoint(options)
    rest = [word for word in rest if not (needs_help and word in HELP)]
    if needs_help and not (command.field_class and rest):
        command.print_help()
        return 0
    if command.field_class:
        command.add_fields(command.field_class())
    arguments = command.parse(rest)
    if not needs_help:
        return command.run(arguments)
    config = command.field_values(arguments)
    documented = parsers()[1][name]
    documented.add_fields(type(config), config)
    documented.print_help()
    return 0


def parsers() -> tuple[Parser, dict[str, Parser]]:
    """The parser for `albert-jax --help`, and a parser for each command."""
    parser = Parser(
        prog="albert-jax", description="Pretrain, fine-tune, convert and study ALBERT in JAX.", epilog=EPILOG
    )
    subparsers = parser.add_subparsers(metavar="COMMAND")

    def add_command(usage: str, run: Callable[[Any], int], summary: str, examples: str) -> Parser:
        """Add a command; `usage` is its name and the names of its positional arguments."""
        name, text = usage.partition(" ")[0], f"examples:\n{examples}"
        command = subparsers.add_parser(name, help=summary, description=summary, epilog=text)
        command.usage, command.run = f"albert-jax {usage} [OPTIONS]", run
        return command

    for add_commands in (
        add_pretraining_commands,
        add_finetuning_commands,
        add_ablation_commands,
        add_new_commands,
        add_report_commands,
        add_publish_commands,
        add_inference_commands,
        add_plan_commands,
        add_bench_commands,
    ):
        add_commands(add_command)
    summary = "Print a script that completes commands, options, fields and choices in a shell."
    command = add_command("completion SHELL", _print_completion, summary, COMPLETION_EXAMPLES)
    command.add_argument("shell", metavar="SHELL", choices=SHELLS, help="bash or zsh")
    return parser, dict(subparsers.choices)


def _print_completion(arguments: argparse.Namespace) -> int:
    parser, commands = parsers()
    print(completion_script(arguments.shell, parser, commands.values()))
    return 0
