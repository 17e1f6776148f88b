"""The command convert."""

import argparse
import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from albert_jax.config import InputError, check_choice, first_line, from_dict, read_json
from albert_jax.exchange import FORMATS
from albert_jax.exchange.command import add_source, source_options
from albert_jax.parser import Parser

EXAMPLES = """\
  albert-jax convert albert_base_v2.tar.gz albert-base-v2   # Google's checkpoint -> Hugging Face folder
  albert-jax convert runs/tiny exported   # a run -> Hugging Face folder
  albert-jax convert exported runs/unshared --to albert_jax --sharing none --num-hidden-layers 24
  albert-jax convert runs/unshared runs/lora --to albert_jax --sharing all --per-pass lora --per-pass.rank 8
  albert-jax convert runs/tiny program --to stablehlo   # runs with jax alone, see program/README.md
  albert-jax convert runs/tiny exported --push-to-hub USER/albert-tiny --license apache-2.0 --revisions all
"""


def add_publish_commands(add_command: Callable[..., Parser]) -> None:
    """Add the command of this folder to the command line."""
    summary = "Write any ALBERT as a Hugging Face folder, a StableHLO program or a model folder of this package; publish a run."
    parser = add_command("convert SOURCE TARGET", convert, summary, EXAMPLES)
    add_source(parser)
    parser.add_argument("target", metavar="TARGET", help="folder to create")
    text = """huggingface (default); albert_jax: a folder that --init-from, predict and load read like a run; stablehlo: a
    program that runs with jax alone"""
    parser.add_argument("--to", default="huggingface", choices=FORMATS, help=text)
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
    group = parser.add_argument_group(
        "Hugging Face hub", "Converting a run to a Hugging Face folder also writes a model card, TARGET/README.md."
    )
    text = """push the run to this repository, as the branch main; if TARGET exists from an earlier conversion of the run with the
    same options, it is pushed as it is, with your changes to README.md"""
    group.add_argument("--push-to-hub", default="", metavar="NAME", help=text)
    text = "license of the published model, such as apache-2.0; required with --push-to-hub"
    group.add_argument("--license", default="", metavar="NAME", help=text)
    text = """checkpoints of the run to push as branches step-N: all, or steps such as 0,500; step 0 has the random parameters
    before training"""
    group.add_argument("--revisions", default="", metavar="STEPS", help=text)
    group.add_argument(
        "--private", action="store_true", help="if the repository does not exist yet, create it as private"
    )


def convert(arguments: argparse.Namespace) -> int:
    """Run `albert-jax convert`."""
    from albert_jax.exchange.convert import convert, report_text
    from albert_jax.exchange.load import read

    conversion = _changes(arguments) | {"initialization": arguments.initialization}
    source, target, name = arguments.source, Path(arguments.target).expanduser(), arguments.push_to_hub
    run_dir = Path(source).expanduser()
    has_card = arguments.to == "huggingface" and _is_run(run_dir)
    has_hub = importlib.util.find_spec("huggingface_hub") is not None
    if not name:
        if arguments.license or arguments.revisions or arguments.private:
            raise InputError("--license, --revisions and --private need --push-to-hub NAME")
        report = convert(source, target, to=arguments.to, **source_options(arguments), **conversion)
        if has_card and has_hub:
            from albert_jax.publish.card import write_card

            try:
                write_card(run_dir, target, report)
            except (InputError, KeyError) as error:  # the model is written, and the report is not lost
                report["notes"].append(f"no model card (README.md): {first_line(error)}")
        elif has_card:
            report["notes"].append("no model card (README.md): it needs pip install 'albert_jax[hub]'")
        print(json.dumps(report) if arguments.json else report_text(report))
        return 0
    if arguments.to != "huggingface":
        raise InputError("--push-to-hub needs --to huggingface")
    if not has_card:
        raise InputError(f"--push-to-hub: SOURCE must be a run folder; {source} is not one")
    if not has_hub:
        raise InputError("--push-to-hub needs huggingface_hub: pip install 'albert_jax[hub]'")
    from albert_jax.publish import push
    from albert_jax.publish.card import write_card
    from albert_jax.publish.revisions import chosen_steps

    push.check(name, arguments.license, run_dir)
    steps = chosen_steps(run_dir, arguments.revisions)
    final = read(source, **source_options(arguments))
    if os.path.lexists(target):
        push.check_unchanged(final, target, **conversion)
        report = read_json(target / "conversion.json")
    else:
        report = convert(final, target, **conversion)
        print(json.dumps(report) if arguments.json else report_text(report))
    if not (target / "README.md").is_file():
        write_card(run_dir, target, report)
    print(push.push(final, run_dir, target, name, arguments.license, steps, arguments.private, conversion))
    return 0


def _is_run(folder: Path) -> bool:
    path = folder / "config.json"
    if not path.is_file() or "job" not in (stored := read_json(path)):
        return False
    from albert_jax.publish.revisions import JOBS

    return stored["job"] in JOBS


def _changes(arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields of the model that the conversion changes."""
    from albert_jax.model.per_pass import PER_PASS

    names = ("sharing", "num_hidden_groups", "num_hidden_layers", "hidden_act")
    changes = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    if arguments.free and arguments.per_pass is None:
        raise InputError(f"--per-pass.{arguments.free[0][0]} needs --per-pass NAME")
    if arguments.per_pass is not None:
        check_choice("--per-pass", arguments.per_pass, PER_PASS)
        changes["per_pass"] = from_dict(PER_PASS[arguments.per_pass], dict(arguments.free), "--per-pass")
    return changes
