"""Configurations: nested dataclasses, read from an experiment file or JSON and overridden on the command line.

Each part of the package keeps its own dataclass beside the code that reads it.  This module does not know what the fields
mean, and imports only the standard library.
"""

import argparse
import ast
import collections
import contextlib
import copy
import dataclasses
import difflib
import functools
import importlib
import inspect
import itertools
import json
import re
import runpy
import sys
import tempfile
import textwrap
import traceback
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")


class InputError(ValueError):
    """A user's mistake.  Its message is one line: the field, or the file and line; what is wrong; what to do."""


def first_line(error: BaseException) -> str:
    """The first non-empty line of an exception's message, or the name of its type."""
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)


def check_writable(path: Path, field: str) -> None:
    """Check that a file or folder can be created, without creating it.

    Raises:
      InputError: names `field` and the folder that is not writable.
    """
    existing = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise InputError(f"{field} {path}: cannot write to {existing}: {error.strerror}") from None


# Dataclass fields


def choice(default: str, values: Collection[str]) -> Any:
    """A dataclass field that takes one of `values`, such as the keys of a table; `check_fields` checks it."""
    return dataclasses.field(default=default, metadata={"choices": values})


def variant(default: Any, table: Mapping[str, type]) -> Any:
    """A dataclass field that holds one of several dataclasses, each with its own fields, chosen by name.

    In Python the field takes an instance, or the name of a dataclass, which means its defaults.  In JSON it is an object with
    the key `name`.  On the command line `--optim.optimizer lion` chooses a dataclass with its defaults, and
    `--optim.optimizer.beta2 0.98` sets a field of it.  `check_fields` turns names into instances.  If `default` is
    `dataclasses.MISSING`, the field is required.
    """
    return dataclasses.field(default=default, metadata={"variants": table})


def variant_name(config: Any, field: str) -> str:
    """The name of the dataclass that a `variant` field holds."""
    table = config.__dataclass_fields__[field].metadata["variants"]
    return next(name for name, kind in table.items() if type(getattr(config, field)) is kind)


def check_choice(name: str, value: Any, choices: Collection[str]) -> None:
    """Raise an `InputError` that names the field or option, unless `value` is one of `choices`."""
    if not (isinstance(value, str) and value in choices):
        raise InputError(f"{name}: unknown value {value!r}; choose one of {', '.join(choices)}")


def check_fields(config: Any) -> None:
    """Check the types and choices of a dataclass, and turn names of variants into instances; for `__post_init__`.

    Raises:
      InputError: names the field and the values it takes.
    """
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        name, value, hint = field.name, getattr(config, field.name), _without_none(hints[field.name])
        if choices := field.metadata.get("choices"):
            check_choice(name, value, choices)
        elif variants := field.metadata.get("variants"):
            if type(value) not in variants.values():
                check_choice(name, value, variants)
                object.__setattr__(config, name, variants[value]())
        elif hint in (int, float, str, bool) and not (value is None and hint is not hints[field.name]):
            expected = (int, float) if hint is float else hint
            if not isinstance(value, expected) or (isinstance(value, bool) and hint is not bool):
                raise InputError(f"{name}: expected {hint.__name__}, got {value!r}")


def _without_none(hint: Any) -> Any:
    """`X` for the type hint `X | None`."""
    return typing.get_args(hint)[0] if isinstance(hint, types.UnionType) else hint


# Nested dicts, as in JSON


def to_dict(config: Any) -> dict[str, Any]:
    """Convert a configuration to the nested dict that is written to JSON.  Tuples become lists."""

    def table(value: Any) -> dict[str, Any]:
        values = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        for field in dataclasses.fields(value):
            if "variants" in field.metadata:
                values[field.name] = {"name": variant_name(value, field.name)} | table(values[field.name])
        return values

    return json.loads(json.dumps(config, default=table))


def from_dict(cls: type[T], values: dict[str, Any], path: str = "") -> T:
    """Build the dataclass `cls` from a nested dict.  A string is converted to the type of its field.

    The dataclass checks its values itself, by `check_fields` in `__post_init__`.

    Raises:
      InputError: an unknown key, a missing key or an invalid value; names the dotted path of the field.
    """
    if not isinstance(values, dict):
        raise InputError(f"{path or 'config'}: expected a table of fields, got {values!r}")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    prefix = f"{path}." if path else ""
    for key in values:
        if key not in fields:
            raise InputError(f"unknown key '{prefix}{key}'{_suggestion(str(key), fields)}")
    for name, field in fields.items():
        if name not in values and field.default is field.default_factory is dataclasses.MISSING:
            raise InputError(f"{prefix}{name} has no default: give it a value")
    read = {
        key: _read(hints[key], fields[key].metadata.get("variants"), value, f"{prefix}{key}")
        for key, value in values.items()
    }
    try:
        return cls(**read)
    except InputError as error:
        raise InputError(f"{prefix}{error}") from None


def _read(hint: Any, variants: Mapping[str, type] | None, value: Any, path: str) -> Any:
    """Convert `value` to the type of its field.  If that is impossible, return it as it is; `check_fields` then raises."""
    if variants:
        fields = dict(value) if isinstance(value, dict) else {"name": value}
        name = fields.pop("name", None)
        return from_dict(variants[name], fields, path) if isinstance(name, str) and name in variants else name
    kind = _without_none(hint)
    if dataclasses.is_dataclass(kind):
        return None if value is None and kind is not hint else from_dict(typing.cast(type, kind), value, path)
    if kind is float and type(value) is int:
        return float(value)
    if kind is str and isinstance(value, Path):
        return str(value)
    if kind is bool and isinstance(value, str):
        return {"true": True, "false": False}.get(value.lower(), value)
    if kind in (int, float) and isinstance(value, str):
        try:
            return kind(value)
        except ValueError:
            return value
    return value


def _suggestion(word: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else f"; known: {', '.join(known)}"


def override(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of nested `values` with some dotted fields replaced.  Unknown fields are added; `from_dict` then raises."""
    result = copy.deepcopy(dict(values))
    # The shortest names come first: a variant is chosen before its fields are set.
    for name, value in sorted(overrides.items(), key=lambda item: item[0].count(".")):
        *sections, field = name.split(".")
        table = result
        for section in sections:
            # A variant may be given by name, and an optional section may be None.
            if not isinstance(table.get(section), dict):
                table[section] = {"name": table[section]} if isinstance(table.get(section), str) else {}
            table = table[section]
        table[field] = value
    return result


def flat(values: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Flatten a nested dict to a dict from dotted field to value."""
    fields: dict[str, Any] = {}
    for key, value in values.items():
        fields |= flat(value, f"{path}{key}.") if isinstance(value, dict) else {f"{path}{key}": value}
    return fields


def differences(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> list[str]:
    """The differences between two nested dicts, each as `section.field: old -> new`."""
    lines = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            lines += differences(before, after, f"{path}{key}.")
        elif before != after:
            lines.append(f"{path}{key}: {before!r} -> {after!r}")
    return lines


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
      InputError: the file cannot be read, or is not a JSON object in UTF-8; a key occurs twice; it holds NaN or Infinity.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table: dict[str, Any] = {}
        for key, value in pairs:
            if key in table:
                raise InputError(f"{path}: duplicate key '{key}'")
            table[key] = value
        return table

    def raise_error(constant: str) -> None:
        raise InputError(f"{path}: {constant} is not JSON")

    try:
        values = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=unique, parse_constant=raise_error)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not JSON: {error.msg}") from None
    except (RecursionError, ValueError) as error:  # nested too deeply, or a number with thousands of digits
        raise InputError(f"{path}: cannot be read: {first_line(error)}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a JSON object")
    return values


# Experiment files


def load(cls: type[T], path: str, overrides: Mapping[str, Any] | Sequence[str] = ()) -> T:
    """Load the configuration of an experiment file (`config = ...` in Python) or of a run's `config.json`.

    Args:
      cls: the dataclass of the configuration.
      path: the file.
      overrides: dotted field -> value, such as `{"train.seed": 1}`; or command-line words, such as `["--train.seed", "1"]`.

    Raises:
      InputError: the file does not exist or sets no `config`; or as `from_dict`.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(f"{path}: no such experiment file")
    if file.suffix == ".json":
        stored = read_json(file)
        if stored.get("job") == "convert":
            raise InputError(
                f"{path} describes a converted model, not an experiment; name an experiment, with --init-from {file.parent}"
            )
        values = stored.get("config")
        if not isinstance(values, dict):
            raise InputError(f"{path}: the key 'config' is missing; name the config.json of a run folder")
    else:
        config = run_file(path).get("config")
        if not isinstance(config, cls):
            raise InputError(f"{path}: must set 'config' to a {cls.__name__}")
        values = to_dict(config)
    return from_dict(cls, override(values, read_overrides(cls, overrides)))


def read_overrides(cls: type, overrides: Mapping[str, Any] | Sequence[str]) -> Mapping[str, Any]:
    """Convert command-line words to a mapping from dotted field to text; return a mapping as it is."""
    if isinstance(overrides, Mapping):
        return overrides
    parser = Parser(prog="albert-jax", add_help=False)
    parser.add_fields(cls)
    return parser.parse(overrides).overrides


def run_file(path: str) -> dict[str, Any]:
    """Run a Python file; return its global variables.  An exception in it becomes an `InputError` with file and line."""
    try:
        return runpy.run_path(path)
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        number = error.lineno if isinstance(error, SyntaxError) else (lines or [None])[-1]
        name = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
        raise InputError(f"{path}:{number}: {name}{first_line(error)}") from None


def lazy_imports(package: str) -> Callable[[str], Any]:
    """Return the `__getattr__` (PEP 562) of a package that imports a name only when it is used.

    The names are those that its `__init__.py` imports under `if TYPE_CHECKING:`, where type checkers see them too.
    """
    statements = ast.walk(ast.parse(inspect.getsource(sys.modules[package])))
    imports = [statement for statement in statements if isinstance(statement, ast.ImportFrom)]
    modules = {alias.name: str(statement.module) for statement in imports for alias in statement.names}

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}; import modules by their full names")
        return getattr(importlib.import_module(modules[name]), name)

    return get


# The command line


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
            kind, value, text = _without_none(hints[field.name]), getattr(config, field.name, None), docs[field.name]
            variants = field.metadata.get("variants", {})
            if dataclasses.is_dataclass(kind) and not variants:
                self.add_fields(typing.cast(type, kind), value, name, text)
                continue
            choices = field.metadata.get("choices", variants)
            shown = variant_name(config, field.name) if variants and config is not None else value
            text += f"  One of {', '.join(choices)}." if choices else ""
            shown = str(shown).lower() if kind is bool else "empty" if shown == "" else shown
            text += "" if config is None else f"  ({shown})"
            metavar = "NAME" if choices else {int: "INT", float: "NUMBER", bool: "true|false"}.get(kind, "TEXT")
            options = [f"--{name.replace('_', '-')}", *([self.aliases[name]] if name in self.aliases else [])]
            with contextlib.suppress(argparse.ArgumentError):
                group.add_argument(
                    *options, dest=name, action=_Override, metavar=metavar, help=text.strip().replace("%", "%%")
                )
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
