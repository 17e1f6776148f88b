"""Experiments as frozen dataclasses: read from a Python file or JSON, overridden from the command line, written back to JSON.

Decides how a configuration is read, checked and compared; knows nothing of what the fields mean.  Each part of the
package keeps its own dataclass beside the code that reads it.  Standard library only.
"""

import dataclasses
import difflib
import json
import runpy
import tempfile
import traceback
import typing
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


class InputError(ValueError):
    """Something the user gave cannot be used.  One line: the field or the file and line, what is wrong, the way out."""


def require(condition: bool, message: str) -> None:
    """Raises `InputError(message)` unless the condition holds."""
    if not condition:
        raise InputError(message)


def first_line(error: BaseException) -> str:
    """The first non-empty line of an exception's message, or the name of its type."""
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)


def check_writable(path: Path, field: str) -> None:
    """Refuses a file or folder that could not be made; leaves nothing behind.

    Raises:
      InputError: naming `field`, and the folder that cannot be written to.
    """
    existing = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise InputError(f"{field} {path}: cannot write to {existing}: {error.strerror}") from None


def choice(default: str, values: Collection[str]) -> Any:
    """A dataclass field that takes one of `values`, such as the keys of a table; `check_fields` checks it."""
    return dataclasses.field(default=default, metadata={"choices": values})


def variant(default: str, table: Mapping[str, type]) -> Any:
    """A dataclass field that holds one of several dataclasses, each with fields of its own, chosen by name.

    In Python the field takes an instance, or a name for that dataclass with its defaults.  In JSON it is a table with the
    key `name`.  On the command line `--optim.optimizer lion` chooses one, and drops the fields of the one before;
    `--optim.optimizer.beta2 0.98` sets a field of it.  `check_fields` turns names into instances.
    """
    return dataclasses.field(default=default, metadata={"variants": table})


def variant_name(config: Any, field: str) -> str:
    """The name of the dataclass that a `variant` field holds."""
    table = config.__dataclass_fields__[field].metadata["variants"]
    return next(name for name, kind in table.items() if type(getattr(config, field)) is kind)


def check_fields(config: Any) -> None:
    """Check types and choices of a dataclass, and turn names of variants into instances; for `__post_init__`.

    Raises:
      InputError: names the field, and says what it takes.
    """
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        name, value, hint = field.name, getattr(config, field.name), hints[field.name]
        if choices := field.metadata.get("choices"):
            _check_choice(name, value, choices)
        elif variants := field.metadata.get("variants"):
            if type(value) not in variants.values():
                _check_choice(name, value, variants)
                object.__setattr__(config, name, variants[value]())
        elif hint in (int, float, str, bool):
            expected = (int, float) if hint is float else hint
            if not isinstance(value, expected) or (isinstance(value, bool) and hint is not bool):
                raise InputError(f"{name}: expected {hint.__name__}, got {value!r}")


def _check_choice(name: str, value: Any, choices: Collection[str]) -> None:
    if not (isinstance(value, str) and value in choices):
        raise InputError(f"{name}: unknown value {value!r}; choose one of {', '.join(choices)}")


def to_dict(config: Any) -> dict[str, Any]:
    """The nested dict of a configuration as it is written to JSON: tuples become lists."""

    def plain(value: Any) -> Any:
        if not dataclasses.is_dataclass(value):
            return value
        table = {}
        for field in dataclasses.fields(value):
            table[field.name] = plain(getattr(value, field.name))
            if "variants" in field.metadata:
                table[field.name] = {"name": variant_name(value, field.name)} | table[field.name]
        return table

    return json.loads(json.dumps(plain(config), default=dataclasses.asdict))


def from_dict(cls: type[T], values: dict[str, Any], path: str = "") -> T:
    """Builds the dataclass `cls` from a nested dict, strictly.

    Raises:
      InputError: an unknown key (with the nearest known one), a missing one, a value of the wrong type, or whatever
        the dataclass itself refuses; fields are named by their dotted path.
    """
    require(isinstance(values, dict), f"{path or 'config'}: expected a table of fields, got {values!r}")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    dot = f"{path}." if path else ""
    for key in values:
        require(key in fields, f"unknown key '{dot}{key}'{_hint(key, fields)}")
    for name, field in fields.items():
        optional = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        require(name in values or optional, f"{dot}{name} has no default: give it a value")
    built = {key: _typed(hints[key], value, f"{dot}{key}", fields[key].metadata) for key, value in values.items()}
    try:
        return cls(**built)
    except InputError as error:
        raise InputError(f"{dot}{error}") from None


def _typed(hint: Any, value: Any, path: str, metadata: Mapping[str, Any]) -> Any:
    """`value`, checked against the type `hint`; text from the command line is read as that type."""
    if "variants" in metadata:
        table = value if isinstance(value, dict) else {"name": value}
        _check_choice(path, table.get("name"), metadata["variants"])
        fields = {key: one for key, one in table.items() if key != "name"}
        return from_dict(metadata["variants"][table["name"]], fields, path)
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, path)
    choices = typing.get_args(hint)
    if type(None) in choices:  # a section that may be left out
        return None if value is None else _typed(choices[0], value, path, metadata)
    try:
        if hint is bool:
            return {"true": True, "false": False}[str(value).lower()]
        if hint is int and (isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool))):
            return int(value)
        if hint is float and isinstance(value, (str, int, float)) and not isinstance(value, bool):
            return float(value)
        if hint is str and isinstance(value, (str, Path)):
            return str(value)
    except (ValueError, KeyError):
        pass
    raise InputError(f"{path}: expected {hint.__name__}, got {value!r}")


def _hint(word: Any, known: Any) -> str:
    near = difflib.get_close_matches(str(word), [str(k) for k in known], n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else f"; known: {', '.join(map(str, known))}"


def load(cls: type[T], path: str, overrides: Sequence[str] = ()) -> T:
    """The configuration in an experiment file (`config = ...` in Python, or a run's `config.json`), with overrides.

    `overrides` are command-line words: `--train.global-batch-size 256` or `--train.global-batch-size=256`.

    Raises:
      InputError: the file is not there or holds no `config`, or as `from_dict`.
    """
    file = Path(path)
    require(file.is_file(), f"{path}: no such experiment file")
    if file.suffix == ".json":
        stored = read_json(file)
        told = f"{path}: a model that 'albert-jax convert' wrote, no experiment"
        require(stored.get("job") != "convert", f"{told}; name one, with --init-from {file.parent}")
        require(
            isinstance(stored.get("config"), dict),
            f"{path}: no table 'config' in it; a run folder's config.json is wanted",
        )
        values = stored["config"]
    else:
        found = run_file(path).get("config")
        require(isinstance(found, cls), f"{path}: it must set 'config' to a {cls.__name__}")
        values = to_dict(found)
    return from_dict(cls, _override(values, overrides))


def run_file(path: str) -> dict[str, Any]:
    """What an experiment file defines.  Its mistakes are the user's: told by file and line, without a traceback."""
    try:
        return runpy.run_path(path)
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        number = error.lineno if isinstance(error, SyntaxError) else (lines or [None])[-1]
        what = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        raise InputError(f"{path}:{number}: {what.splitlines()[0]}") from None


def _override(values: dict[str, Any], words: Sequence[str]) -> dict[str, Any]:
    """A copy of nested `values` with the command line's words put in; unknown names are left for `from_dict` to refuse."""
    values = json.loads(json.dumps(values))
    # The shortest names first: a variant is chosen before its fields are set.
    for name, text in sorted(read_words(words).items(), key=lambda word: word[0].count(".")):
        put(values, name, text)
    return values


def read_words(words: Sequence[str]) -> dict[str, str]:
    """Command-line words as dotted field -> text: `--train.seed 1` and `--train.seed=1` give `{"train.seed": "1"}`.

    Raises:
      InputError: a word that is no option, or an option without its value.
    """
    found = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        require(word.startswith("--"), f"unexpected argument '{word}'; options look like --train.seed 1")
        name, equals, text = word[2:].partition("=")
        if not equals:
            require(bool(rest), f"--{name} needs a value")
            text = rest.pop(0)
        found[name.replace("-", "_")] = text
    return found


def put(values: dict[str, Any], name: str, value: Any) -> None:
    """Sets the dotted field `name` of nested `values` in place.

    Raises:
      InputError: there is no such field, or it is a section.
    """
    *sections, key = name.split(".")
    table = values
    for section in sections:
        require(isinstance(table.get(section), dict), f"unknown key '{name}'{_hint(section, table)}")
        table = table[section]
    if "name" in table and sections:  # a variant: from_dict knows its fields
        table[key] = value
        return
    require(key in table, f"unknown key '{name}'{_hint(key, table)}")
    if isinstance(table[key], dict) and "name" in table[key]:
        table[key] = {"name": value}
        return
    if isinstance(table[key], dict):
        raise InputError(f"--{name.replace('_', '-')} is a section; its fields: {', '.join(table[key])}")
    table[key] = value


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
      InputError: it cannot be read, is not UTF-8, not JSON, a key given twice, or NaN and Infinity, which JSON does not have.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table: dict[str, Any] = {}
        for key, value in pairs:
            if key in table:
                raise InputError(f"{path}: duplicate key '{key}'")
            table[key] = value
        return table

    def refuse(constant: str) -> None:
        raise InputError(f"{path}: {constant} is not JSON")

    try:
        found = json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not JSON: {error.msg}") from None
    except RecursionError:
        raise InputError(f"{path}: not read: it is nested too deep") from None
    except ValueError as error:  # a number of thousands of digits
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not read: {str(error).partition(';')[0]}") from None
    require(isinstance(found, dict), f"{path}: expected a JSON object")
    return found


def flat(values: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Nested values by their dotted fields."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{path}{key}.") if isinstance(value, dict) else {f"{path}{key}": value}
    return found


def differences(old: dict[str, Any], new: dict[str, Any], path: str = "") -> list[str]:
    """What differs between two nested dicts, as `section.field: old -> new`."""
    found = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            found += differences(before, after, f"{path}{key}.")
        elif before != after:
            found.append(f"{path}{key}: {before!r} -> {after!r}")
    return found
