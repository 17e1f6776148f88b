"""Configurations: nested dataclasses, read from an experiment file or JSON, with fields overridden by their dotted names.

Each part of the package keeps its own dataclass beside the code that reads it.  This module does not know what the fields
mean, and imports only the standard library.
"""

import ast
import copy
import dataclasses
import difflib
import importlib
import inspect
import json
import re
import runpy
import sys
import tempfile
import traceback
import types
import typing
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


class InputError(ValueError):
    """A user's mistake.  Its message is one line: the field, or the file and line; what is wrong; what to do."""


def first_line(error: BaseException) -> str:
    """The first non-empty line of an exception's message, or the name of its type."""
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)


def without_passwords(text: str) -> str:
    """A text in which addresses such as `https://user:password@host` do not show what comes before the host."""
    return re.sub(r"//[^/\s\"']*@", "//***@", text)


def check_writable(path: Path, field: str) -> None:
    """Check that a file or folder can be written, without writing it.

    Raises:
      InputError: names `field` and the folder that is not writable.
    """
    existing = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    try:
        with path.open("ab") if path.is_file() else tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise InputError(f"{field} {path}: cannot write to {existing}: {error.strerror}") from None


def check_file(option: str, path: Path) -> None:
    """Raise `InputError` unless an option names a file that can be written, in a folder that exists."""
    folder = path.absolute().parent
    if path.is_dir():
        raise InputError(f"{option} {path} is a folder; name a file in it")
    if not folder.is_dir():
        raise InputError(f"{option} {path}: no folder {folder}; create it first")
    check_writable(path, option)


# Dataclass fields


def choice(default: str, values: Collection[str], or_else: str = "") -> Any:
    """A dataclass field that takes one of `values`, such as the keys of a table; `check_fields` checks it.

    `or_else` describes other texts that the field takes; then the dataclass checks the field itself.
    """
    return dataclasses.field(default=default, metadata={"choices": values, "or_else": or_else})


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


def check_choice(name: str, value: Any, choices: Collection[str], or_else: str = "") -> None:
    """Raise an `InputError` that names the field or option, unless `value` is one of `choices`; `or_else` names other values."""
    if not (isinstance(value, str) and value in choices):
        last = f", or {or_else}" if or_else else ""
        raise InputError(f"{name}: unknown value {value!r}; choose one of {', '.join(choices)}{last}")


def check_fields(config: Any) -> None:
    """Check the types and choices of a dataclass, and turn names of variants into instances; for `__post_init__`.

    Raises:
      InputError: names the field and the values it takes.
    """
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        name, value, hint = field.name, getattr(config, field.name), without_none(hints[field.name])
        if (choices := field.metadata.get("choices")) and not field.metadata["or_else"]:
            check_choice(name, value, choices)
        elif variants := field.metadata.get("variants"):
            if type(value) not in variants.values():
                check_choice(name, value, variants)
                object.__setattr__(config, name, variants[value]())
        elif hint in (int, float, str, bool) and not (value is None and hint is not hints[field.name]):
            expected = (int, float) if hint is float else hint
            if not isinstance(value, expected) or (isinstance(value, bool) and hint is not bool):
                raise InputError(f"{name}: expected {hint.__name__}, got {value!r}")


def without_none(hint: Any) -> Any:
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
    kind = without_none(hint)
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


def non_defaults(config: Any, path: str = "") -> list[str]:
    """The dotted fields of a dataclass, and of those in it, whose value is not the default; also those without a default."""
    names = []
    for field in dataclasses.fields(config):
        name, value = f"{path}{field.name}", getattr(config, field.name)
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if "variants" in field.metadata:
            chosen = variant_name(config, field.name)
            if default != chosen and type(default) is not type(value):
                names.append(f"{name}.name")
        if dataclasses.is_dataclass(value):
            names += non_defaults(value, f"{name}.")
        elif value != default:
            names.append(name)
    return names


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
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}") from None
    values = parse_json(path, text)
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a JSON object")
    return values


def parse_json(path: Path, text: str) -> Any:
    """The value of a JSON text; `path` is for messages.

    Raises:
      InputError: it is not JSON; a key occurs twice; it holds NaN or Infinity.
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
        return json.loads(text, object_pairs_hook=unique, parse_constant=raise_error)
    except InputError:
        raise
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not JSON: {error.msg}") from None
    except (RecursionError, ValueError) as error:  # nested too deeply, or a number with thousands of digits
        raise InputError(f"{path}: cannot be read: {first_line(error)}") from None


# Experiment files


def load(cls: type[T], path: str, overrides: Mapping[str, Any] | None = None) -> T:
    """Load the configuration of an experiment file (`config = ...` in Python) or of a run's `config.json`.

    Args:
      cls: the dataclass of the configuration.
      path: the file.
      overrides: dotted field -> value, such as `{"train.seed": 1}`.

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
    return from_dict(cls, override(values, overrides or {}))


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
