"""What the commands that train share: options for several processes and changed data, and running under their rules."""

import argparse
import sys
from collections.abc import Callable
from typing import Any

from albert_jax.config import from_dict
from albert_jax.parser import Parser

SHORT_OPTIONS = {"train.loggers": "--log"}
"""Field -> its short option, in all commands that train."""


def add_run_options(parser: Parser) -> None:
    """Add --log, --distributed.* and --allow-data-change."""
    parser.aliases = SHORT_OPTIONS
    text = "resume although the data differs from what the run began with"
    parser.add_argument("--allow-data-change", action="store_true", help=text)
    group = parser.add_argument_group(
        "several processes", "Run the same command in each.  TPU pods, Slurm and Open MPI are detected."
    )
    for name, metavar, text in (
        ("coordinator", "HOST:PORT", "address of process 0, the same in all processes"),
        ("num-processes", "N", "number of processes; 1 runs this one alone, even in a cluster"),
        ("process-id", "I", "index of this process, from 0"),
        ("timeout", "SECONDS", "how long processes wait for each other at the start (default 300)"),
    ):
        group.add_argument(f"--distributed.{name}", dest=name.replace("-", "_"), metavar=metavar, help=text)


def join_processes(arguments: argparse.Namespace) -> None:
    """Join the other processes of the run, if there are any.  Call it before anything else uses jax."""
    from albert_jax.training.processes import DistributedConfig, start

    values = {name: getattr(arguments, name) for name in DistributedConfig.__dataclass_fields__}
    given = {name: value for name, value in values.items() if value is not None}
    start(from_dict(DistributedConfig, given, "distributed"))


def exit_code(run: Callable[[], Any]) -> int:
    """Call `run`, which trains; return the exit code.  If it fails, the other processes end too."""
    from albert_jax.training.loop import Interrupted
    from albert_jax.training.processes import ending_together, is_main

    with ending_together():
        try:
            run()
        except Interrupted as stop:
            if is_main():
                print(f"albert-jax: {stop}", file=sys.stderr)
            return stop.code
    return 0
