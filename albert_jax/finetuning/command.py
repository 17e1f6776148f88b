"""The command finetune."""

import argparse
from collections.abc import Callable
from typing import Any

from albert_jax import finetuning
from albert_jax.config import InputError
from albert_jax.parser import Parser
from albert_jax.training.command import add_run_options, exit_code, join_processes

EXAMPLES = """\
  albert-jax finetune experiments/finetune/sst2.py --init-from albert/albert-base-v2 --data.dir glue/SST-2
  albert-jax finetune experiments/finetune/rte.py --init-from runs/mnli --data.dir glue/RTE --seeds 5
  albert-jax finetune experiments/finetune/text.py --init-from runs/small --data.train-file mine.csv --data.dev-file dev.csv
"""


def add_finetuning_commands(add_command: Callable[..., Parser]) -> None:
    """Add the command of this folder to the command line."""
    summary = "Fine-tune on a task, evaluate and write predictions.  Rerunning the command resumes."
    parser = add_command("finetune FILE", finetune, summary, EXAMPLES)
    parser.add_experiment(lambda: finetuning.FinetuneConfig)
    parser.field_values = _config
    text = "number of seeds (default 1); several give the median, mean and spread of each metric"
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help=text)
    text = """paper (default); large: lower learning rate, for v2 checkpoints of size large and above; tiny: a small model,
    for minutes on two CPU cores.  Values that you set yourself take precedence"""
    parser.add_argument("--scale", default="paper", metavar="NAME", help=text)
    add_run_options(parser)


def finetune(arguments: argparse.Namespace) -> int:
    """Run `albert-jax finetune`."""
    from albert_jax.finetuning.run import finetune
    from albert_jax.finetuning.seeds import finetune_seeds

    if arguments.seeds < 1:
        raise InputError(f"--seeds must be at least 1, got {arguments.seeds}")
    config, changed = _config(arguments), arguments.allow_data_change
    join_processes(arguments)
    if arguments.seeds == 1:
        return exit_code(lambda: finetune(config, changed))
    return exit_code(lambda: finetune_seeds(config, arguments.seeds, changed))


def _config(arguments: argparse.Namespace) -> Any:
    from albert_jax.finetuning.run import load_config

    return load_config(arguments.experiment, arguments.overrides, arguments.scale)
