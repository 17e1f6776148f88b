"""The command new."""

import argparse
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import albert_jax
from albert_jax.config import InputError, check_choice, check_writable
from albert_jax.parser import Parser

EXPERIMENTS = Path(__file__).parent / "experiments"

EXAMPLES = """\
  albert-jax new pretrain mine.py   # a copy of tiny; then: albert-jax pretrain mine.py
  albert-jax new finetune mine/reviews.py --from sst2
  albert-jax new ablation mine/rates.py --from optimizer   # the scales are copied to mine/scales
"""


class Kind(NamedTuple):
    """A kind of experiment."""

    folder: str
    """The folder in `experiments/`."""
    default: str
    """The experiment that is copied without --from."""
    command: str
    """The command that runs it."""


KINDS = {
    "pretrain": Kind("pretrain", "tiny", "pretrain"),
    "finetune": Kind("finetune", "text", "finetune"),
    "ablation": Kind("ablations", "sharing", "ablate"),
}


def add_new_commands(add_command: Callable[..., Parser]) -> None:
    """Add the command of this folder to the command line."""
    summary = "Copy an experiment as a starting point.  Nothing is overwritten."
    parser = add_command("new KIND FILE", new, summary, EXAMPLES)
    text = "pretrain, finetune, or ablation (a table, whose scales are copied too)"
    parser.add_argument("kind", metavar="KIND", choices=tuple(KINDS), help=text)
    parser.add_argument("target", metavar="FILE", type=Path, help="file to write, such as mine.py")
    defaults = ", ".join(f"{name}: {kind.default}" for name, kind in KINDS.items())
    text = f"the experiment to copy (default {defaults}); an unknown name prints the choices"
    parser.add_argument("--from", dest="template", metavar="NAME", help=text)


def new(arguments: argparse.Namespace) -> int:
    """Run `albert-jax new`."""
    kind, target = KINDS[arguments.kind], arguments.target.expanduser()
    folder = EXPERIMENTS / kind.folder
    name = arguments.template or kind.default
    check_choice("--from", name, sorted(path.stem for path in folder.glob("*.py")))
    if target.suffix != ".py":
        raise InputError(f"{target}: an experiment is a Python file; name it {target.with_suffix('.py')}")
    if os.path.lexists(target):
        raise InputError(f"{target} exists; choose a different file, or remove it first")
    check_writable(target, "FILE")
    copies = {folder / f"{name}.py": target}
    if kind.folder == "ablations":
        copies |= {path: target.parent / "scales" / path.name for path in sorted((folder / "scales").glob("*.py"))}
    for source, copy in copies.items():
        if copy.exists():  # a scale that was copied with a different table
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(
            _adapted(source, {f"experiments/{path.relative_to(EXPERIMENTS)}": to for path, to in copies.items()}, copy)
        )
        print(copy)
    print(f"\nrun it with: albert-jax {kind.command} {target}   (its docstring has more commands)")
    return 0


def _adapted(source: Path, names: dict[str, Path], copy: Path) -> str:
    """The text of an experiment, with its commands, run folder and docstring for the copy."""
    original = f"experiments/{source.relative_to(EXPERIMENTS)}"
    text = source.read_text()
    for name, path in names.items():
        text = text.replace(f" {name}", f" {shlex.quote(str(path))}")
    text = text.replace(f'run_dir="runs/{source.stem}"', f'run_dir="runs/{copy.stem}"')
    version = albert_jax.__version__
    end = text.index('"""', 3)
    origin = f"\nCopied from {original} of albert_jax {version}; numbers above are those of that file.\n"
    return f"{text[:end]}{origin}{text[end:]}"
