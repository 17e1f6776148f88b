"""The command plan."""

import argparse
import json
import os
from collections.abc import Callable
from typing import Any

from albert_jax.config import load
from albert_jax.parser import Parser

EXAMPLES = """\
  albert-jax plan experiments/pretrain/xxlarge.py --mesh.data 64   # 64 H100 at 40 % of their peak
  albert-jax plan experiments/pretrain/base.py --mesh.data 8 --device 'TPU v3' --mfu 0.5 --tokens 3.3e9
  albert-jax plan experiments/pretrain/base.py --mesh.data 8 --compile   # XLA's figures for the real step
Neither the data nor an accelerator is needed.
"""


def add_plan_commands(add_command: Callable[..., Parser]) -> None:
    """Add the command of this folder to the command line."""
    summary = "Estimate the time, memory and cost of an experiment, and warn of what looks wrong."
    parser = add_command("plan FILE", plan, summary, EXAMPLES)
    parser.add_experiment(_config_class)
    text = (
        "device type, for its peak and memory: H100 (default), H200, A100, 'TPU v3', ...; --mesh.data is their number"
    )
    parser.add_argument("--device", default="H100", metavar="NAME", help=text)
    parser.add_argument("--peak-tflops", type=float, metavar="N", help="peak of a device that is not in the list")
    parser.add_argument("--memory-gb", type=float, metavar="N", help="memory that a run may use on each device")
    parser.add_argument(
        "--mfu", type=float, default=0.4, metavar="N", help="fraction of the peak reached (default 0.4)"
    )
    parser.add_argument(
        "--tokens", type=float, metavar="N", help="tokens in the corpus; shows how often they are repeated"
    )
    text = "number of hosts (default: one for each 8 devices)"
    parser.add_argument("--distributed.num-processes", dest="processes", type=int, metavar="N", help=text)
    text = "compile the real step for the same number of virtual CPU devices"
    parser.add_argument("--compile", action="store_true", help=text)
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")


def plan(arguments: argparse.Namespace) -> int:
    """Run `albert-jax plan`."""
    from albert_jax.plan.estimate import Assumptions, plan
    from albert_jax.plan.printing import plan_json, plan_table

    config: Any = load(_config_class(), arguments.experiment, arguments.overrides)
    assumptions = Assumptions(**{name: getattr(arguments, name) for name in Assumptions.__dataclass_fields__})
    planned = plan(config, assumptions, arguments.compile)
    print(json.dumps(plan_json(planned)) if arguments.json else plan_table(planned, arguments.experiment))
    return 0


def _config_class() -> type:
    os.environ["JAX_PLATFORMS"] = "cpu"  # jax reads it when it is imported: a plan uses no accelerator
    from albert_jax.pretraining.run import PretrainConfig

    return PretrainConfig
