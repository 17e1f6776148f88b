"""Shell completion: a script that knows every command, option, field and choice.  It starts no Python, so it is fast."""

import importlib.util
from collections.abc import Iterable

from albert_jax.config import InputError
from albert_jax.parser import Parser

SHELLS = ("bash", "zsh")


def completion_script(shell: str, parser: Parser, commands: Iterable[Parser]) -> str:
    """The completion script of a shell.

    Args:
      shell: one of `SHELLS`.
      parser: the parser of the whole command line.
      commands: the parsers of its commands; the fields of experiments are added to them.

    Raises:
      InputError: shtab is missing.
    """
    if importlib.util.find_spec("shtab") is None:
        raise InputError("completion needs shtab: pip install 'albert_jax[completion]'")
    import shtab

    for command in commands:
        if command.field_class:
            command.add_fields(command.field_class())
        for action in command._actions:
            if action.choices is None:
                action.choices = getattr(action, "values", None)
            is_path = (action.metavar or action.dest.upper()) in ("FILE", "DIR") or not action.option_strings
            if action.choices is None and action.nargs != 0 and is_path:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    return shtab.complete(parser, shell)
