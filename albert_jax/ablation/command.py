"""The command ablate."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from albert_jax import pretraining
from albert_jax.config import InputError, load
from albert_jax.parser import Parser
from albert_jax.training.command import SHORT_OPTIONS, exit_code

EXAMPLES = """\
  albert-jax ablate experiments/ablations/sharing.py --scale tiny --seeds 5 --dry-run   # shows rows, counts and cost
  albert-jax ablate experiments/ablations/sharing.py --scale tiny --seeds 5   # runs them; rerunning resumes
  albert-jax ablate experiments/ablations/sharing.py --seeds 5 --tune optim.learning-rate=2e-3,5e-3,1e-2   # best rate per row
  albert-jax ablate experiments/ablations/sharing.py --scale small --data.source 'corpus/*.jsonl.gz' --data.vocab spiece.model
  albert-jax ablate experiments/ablations/depth.py --rows '6 layers from' --budget flops   # one row and those it starts from
  albert-jax ablate experiments/ablations/sharing.py --finetune 'experiments/finetune/sst2.py --data.dir glue/SST-2'
Fields of the scale's experiment are options too, and apply to all rows: --train.num-train-steps 500.
"""


def add_ablation_commands(add_command: Callable[..., Parser]) -> None:
    """Add the command of this folder to the command line."""
    parser = add_command(
        "ablate TABLE", ablate, "Train every row of an ablation table.  Rerunning the command resumes.", EXAMPLES
    )
    text = "a file such as experiments/ablations/sharing.py; add --help to list its rows and all fields"
    parser.add_argument("table", metavar="TABLE", help=text)
    parser.field_class, parser.field_values = lambda: pretraining.PretrainConfig, _describe_table
    parser.aliases = SHORT_OPTIONS
    parser.add_argument(
        "--scale", default="tiny", metavar="NAME", help="a file in the folder 'scales' beside the table (default tiny)"
    )
    text = "seeds per row (default 1; at least 5 for a table that makes a claim)"
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help=text)
    text = """every row runs at its own best value of an optimizer setting, selected by held-out MLM loss with a seed that is not
    counted (repeatable: all combinations)"""
    parser.add_argument("--tune", action="append", default=[], metavar="FIELD=VALUE,VALUE", help=text)
    text = "compare the other rows with the row whose label is TEXT or contains it (default: the first)"
    parser.add_argument("--reference", default="", metavar="TEXT", help=text)
    text = """what all rows have in common: tokens (default), flops, time (steps are timed first) or params (widths are
    adjusted)"""
    parser.add_argument("--budget", default="tokens", metavar="NAME", help=text)
    text = "only rows whose label is TEXT or contains it, and those they start from (repeatable)"
    parser.add_argument("--rows", action="append", default=[], metavar="TEXT", help=text)
    text = "arguments of 'albert-jax finetune', quoted; fine-tunes every row (repeatable)"
    parser.add_argument("--finetune", action="append", default=[], metavar="ARGUMENTS", help=text)
    text = "train the seeds of a row in one program; on CPUs it is slower than one seed after another, the default"
    parser.add_argument("--parallel-seeds", action="store_true", help=text)
    parser.add_argument("--run-dir", default="", metavar="DIR", help="folder of the table (default runs/TABLE-SCALE)")
    parser.add_argument("--dry-run", action="store_true", help="only show rows, parameter counts and cost")
    text = "here: one run after another (default); slurm: a Slurm job per run"
    parser.add_argument("--launcher", default="here", choices=("here", "slurm"), help=text)
    text = """option of the Slurm jobs, in submitit's names: timeout_min (default 5), gpus_per_node, slurm_partition
    (repeatable)"""
    parser.add_argument("--slurm", action="append", default=[], metavar="NAME=VALUE", help=text)


def ablate(arguments: argparse.Namespace) -> int:
    """Run `albert-jax ablate`."""
    from albert_jax.ablation import cost, planning
    from albert_jax.ablation.run import ablate, submit
    from albert_jax.reports import comparison

    names = ("scale", "seeds", "budget", "rows", "tune", "reference", "finetune", "run_dir", "overrides")
    plan = planning.resolve(arguments.table, **{name: getattr(arguments, name) for name in names})
    if arguments.dry_run:
        print(cost.cost_table(plan))
        return 0
    if arguments.launcher == "slurm":
        jobs = submit(plan, dict(_slurm_option(text) for text in arguments.slurm), arguments.parallel_seeds)
        print(f"{len(jobs)} jobs: {' '.join(jobs)}\nalbert-jax report {plan.run_dir}   shows their progress")
        return 0
    if arguments.slurm:
        raise InputError("--slurm needs --launcher slurm")
    tables: list[Any] = []
    code = exit_code(lambda: tables.append(ablate(plan, arguments.parallel_seeds)))
    for table in tables:
        print(comparison.comparison_table(table))
        print(
            f"\ntables (.md, .csv) and figures (.png, .svg): {plan.run_dir}",
            file=sys.stderr,
        )
        failed = table.runs[table.runs["state"].str.startswith("failed")]
        code = int(failed["row"].isin([row.label for row in plan.rows]).any())
    return code


def _slurm_option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"--slurm {text}: expected NAME=VALUE, such as timeout_min=120")
    return name, int(value) if value.isdecimal() else value


def _describe_table(arguments: argparse.Namespace) -> Any:
    """Print the rows of the table; return the scale's experiment, whose fields the help lists below them."""
    from albert_jax.ablation import table

    print(table.table_help(arguments.table), end="\n\n")
    experiment = Path(arguments.table).parent / "scales" / f"{arguments.scale}.py"
    return load(pretraining.PretrainConfig, str(experiment), arguments.overrides)
