"""The parser of the command line: argparse, with the fields of a dataclass as options and errors in one line."""

import argparse
import ast
import collections
import contextlib
import dataclasses
import difflib
import functools
import inspect
import itertools
import re
import textwrap
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from albert_jax.config import InputError, load, variant_name, without_none


class Parser(argparse.ArgumentParser):
    """An argparse parser whose options can be the fields of a dataclass.  Its errors are `InputError`s."""

    field_class: Callable[[], type] | None = None
    """Imports the dataclass whose fields are options; called only when they are needed, since the import is slow."""
    field_values: Callable[[argparse.Namespace], Any]
    """Returns the configuration whose values `--help` shows, given the arguments."""
    aliases: Mapping[str, str] = {}
    """Dotted field -> a shorter option for it."""
    run: Callable[[argparse.Namespace], int]
    """Runs the command; returns the exit code."""
    free_options: str = ""
    """If not empty: any option that starts with this, such as `--beam.`, is collected in `arguments.free`."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **settings)
        self.set_defaults(overrides={}, free=[])

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")

    def add_experiment(self, field_class: Callable[[], type]) -> None:
        """Add the argument `experiment`, whose fields are options."""
        text = "experiment file (.py) or the config.json of a run; add --help to list its fields, which are options too"
        self.add_argument("experiment", metavar="FILE", help=text)
        self.field_class = field_class
        self.field_values = lambda arguments: load(field_class(), arguments.experiment, arguments.overrides)

    def add_fields(self, cls: type, config: Any = None, path: str = "", about: str = "") -> None:
        """Add an option for each field of `cls`, such as `--train.global-batch-size`, unless the option exists already.

        `parse` stores the text of the options in `arguments.overrides`, by dotted field; `from_dict` converts it.

        Args:
          cls: the dataclass.
          config: the instance whose values the help shows.  Without it, a `variant` field adds the fields of all its dataclasses.
          path: the dotted field that holds the dataclass.
          about: the docstring of that field.
        """
        hints, docs = typing.get_type_hints(cls), _docstrings(cls)
        group = self.add_argument_group(f"fields of {path}" if path else "fields", about)
        for field in dataclasses.fields(cls):
            name = f"{path}.{field.name}" if path else field.name
            kind, value, text = without_none(hints[field.name]), getattr(config, field.name, None), docs[field.name]
            variants = field.metadata.get("variants", {})
            if dataclasses.is_dataclass(kind) and not variants:
                self.add_fields(typing.cast(type, kind), value, name, text)
                continue
            choices = field.metadata.get("choices", variants)
            shown = variant_name(config, field.name) if variants and config is not None else value
            or_else = f", or {field.metadata['or_else']}" if field.metadata.get("or_else") else ""
            text += f"  One of {', '.join(choices)}{or_else}." if choices else ""
            shown = str(shown).lower() if kind is bool else "empty" if shown == "" else shown
            text += "" if config is None else f"  ({shown})"
            metavar = "NAME" if choices else {int: "INT", float: "NUMBER", bool: "true|false"}.get(kind, "TEXT")
            options = [f"--{name.replace('_', '-')}", *([self.aliases[name]] if name in self.aliases else [])]
            with contextlib.suppress(argparse.ArgumentError):
                action = group.add_argument(
                    *options, dest=name, action=_Override, metavar=metavar, help=text.strip().replace("%", "%%")
                )
                action.values = ("true", "false") if kind is bool else tuple(choices) or None  # type: ignore[attr-defined]
            for one in variants.values() if config is None else [type(value)] if variants else []:
                self.add_fields(one, value, name)

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """Parse `words`.  An option may be written with `_` or `-`, before or after the arguments.

        Raises:
          InputError: an unknown option, with the nearest known one; a missing or unexpected argument.
        """
        words = _normalized(words)
        for option in {word.partition("=")[0] for word in words if word.startswith(self.free_options or "no option")}:
            name = option.removeprefix(self.free_options)
            self.add_argument(option, dest="free", action="append", type=functools.partial(_named, name))
        arguments, rest = self.parse_known_intermixed_args(words)
        known = [option for option in self._option_string_actions if option.startswith("--")]
        for word in rest:
            option = word.partition("=")[0]
            if not option.startswith("--"):
                continue
            if fields := [other for other in known if other.startswith(f"{option}.")]:
                raise InputError(f"{option} is a section; set one of its fields: {', '.join(fields)}")
            near = difflib.get_close_matches(option, known, n=1, cutoff=0.5)
            advice = f"did you mean {near[0]}?" if near else f"see {self.prog} --help"
            raise InputError(f"unknown option {option}; {advice}")
        if rest:
            raise InputError(f"unexpected argument '{rest[0]}'; see {self.prog} --help")
        return arguments


class _Override(argparse.Action):
    """Stores the text of a field in `arguments.overrides`."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        namespace.overrides = namespace.overrides | {self.dest: values}


def _named(name: str, text: str) -> tuple[str, str]:
    return name, text


def _normalized(words: Sequence[str]) -> list[str]:
    """Write '-' in the names of options.  Join negative numbers to their option, because argparse takes them for options."""
    result: list[str] = []
    for number, word in enumerate(words):
        if word == "--":
            return [*result, *words[number:]]
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            result.append(name.replace("_", "-") + equals + value)
        elif re.match(r"-(\d|\.\d|inf|nan)", word) and result and re.fullmatch("--[^=]+", result[-1]):
            result[-1] += f"={word}"
        else:
            result.append(word)
    return result


@functools.cache
def _docstrings(cls: type) -> Mapping[str, str]:
    """Field -> its docstring, the string below it in the source of the class; empty if it has none."""
    docs: dict[str, str] = collections.defaultdict(str)
    for kind in filter(dataclasses.is_dataclass, reversed(cls.__mro__)):
        source = typing.cast(ast.ClassDef, ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0])
        for before, after in itertools.pairwise(source.body):
            if (
                isinstance(before, ast.AnnAssign)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
            ):
                docs[ast.unparse(before.target)] = " ".join(str(after.value.value).split())
    return docs
