"""Configurations: from files, nested dicts and the command line, and back."""

import argparse
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from albert_jax.config import (
    InputError,
    check_fields,
    check_writable,
    choice,
    differences,
    first_line,
    flat,
    from_dict,
    load,
    override,
    read_json,
    run_file,
    to_dict,
    variant,
)
from albert_jax.parser import Parser

from .conftest import assert_input_error, overrides_of


@dataclass(frozen=True)
class Circle:
    """A variant."""

    radius: float = 1.0
    """Distance from the center."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Square:
    """Another variant."""

    width: int = 2

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Section:
    """A section, required or optional."""

    rate: float = 0.1
    """Learning rate, 100 %
    of it."""
    color: str = choice("red", ("red", "green"))
    bright: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        if self.rate == 7:
            raise InputError("rate must not be 7")


@dataclass(frozen=True)
class Config:
    """A configuration with a field of each kind."""

    name: str
    """The name."""
    section: Section
    shape: Any = variant("circle", {"circle": Circle, "square": Square})
    optional: Section | None = None
    """Overrides of the section."""
    limit: int | None = None
    steps: int = field(default=3)

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Names:
    """A field of two words."""

    two_words: str = ""


CONFIG = Config("a", Section())


def parser(**attributes: Any) -> Parser:
    made = Parser(prog="albert-jax job")
    made.add_argument("experiment")
    made.add_argument("text", nargs="*")
    for name, value in attributes.items():
        setattr(made, name, value)
    made.add_fields(Config)
    return made


def build(overrides: dict[str, Any]) -> Config:
    return from_dict(Config, override(to_dict(CONFIG), overrides))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--section.rate", "1e-3"], {"section.rate": "1e-3"}),
        (["--section.rate=1e-3"], {"section.rate": "1e-3"}),
        (["--section.rate", "-1e-3"], {"section.rate": "-1e-3"}),
        (["--section.rate", "-.5", "--steps", "-4"], {"section.rate": "-.5", "steps": "-4"}),
        (["--section.rate", "-inf"], {"section.rate": "-inf"}),
        (["--name", "two words"], {"name": "two words"}),
        (["--name=--dashes"], {"name": "--dashes"}),
        (["--name", ""], {"name": ""}),
        (["--steps", "1", "--steps", "2"], {"steps": "2"}),
        (["--shape", "square", "--shape.width", "5"], {"shape": "square", "shape.width": "5"}),
        (["--optional.rate", "2"], {"optional.rate": "2"}),
    ],
)
def test_options_are_fields(words: list[str], expected: dict[str, str]) -> None:
    """They may stand before, between and after the positional arguments."""
    for order in (["FILE", *words], [*words, "FILE", "text"], ["FILE", "text", *words, "more", "--", "--text"]):
        arguments = parser().parse(order)
        assert arguments.overrides == expected
        assert arguments.experiment == "FILE"
        assert arguments.text == [word for word in order if word in ("text", "more", "--text")]


def test_underscores_and_dashes_are_the_same_in_names_only() -> None:
    job = Parser()
    job.add_fields(Names)
    assert job.parse(["--two_words", "a_b", "--two-words=c_d"]).overrides == {"two_words": "c_d"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--section.rat", "1"], "unknown option --section.rat; did you mean --section.rate?"),
        (["--sektion.rate=1"], "unknown option --sektion.rate; did you mean --section.rate?"),
        (["--zzzzzzzz", "1"], "unknown option --zzzzzzzz; see albert-jax job --help"),
        (["--section", "1"], "--section is a section; set one of its fields: --section.rate, --section.color"),
        (["--steps"], "argument --steps: expected one argument; see albert-jax job --help"),
        (["--step", "1"], "unknown option --step; did you mean --steps?"),
    ],
)
def test_unknown_options_are_refused(words: list[str], message: str) -> None:
    """Fails if abbreviations are accepted, or if an unknown option is ignored."""
    with pytest.raises(InputError) as error:
        parser().parse(["FILE", *words])
    assert str(error.value).startswith(message)


def test_free_options_are_collected() -> None:
    """Options with the prefix may have any name and may be repeated; others may not."""
    words = ["FILE", "--beam.runner", "R", "--beam.experiments=a", "--beam.experiments", "b", "--steps", "1"]
    arguments = parser(free_options="--beam.").parse(words)
    assert sorted(arguments.free) == [("experiments", "a"), ("experiments", "b"), ("runner", "R")]
    assert arguments.overrides == {"steps": "1"}
    with pytest.raises(InputError, match=r"unknown option --beam\.runner"):
        parser().parse(words)


def test_options_of_the_job_take_precedence_over_fields() -> None:
    job = Parser()
    job.add_argument("--name", default="")
    job.add_fields(Config)
    arguments = job.parse(["--name", "b", "--steps", "4"])
    assert (arguments.name, arguments.overrides) == ("b", {"steps": "4"})


def test_help_shows_docstrings_choices_and_values() -> None:
    """Of a variant it shows the fields of the dataclass that the configuration holds."""
    job = Parser()
    job.aliases = {"steps": "--short"}
    job.add_fields(Config, build({"shape": "square", "section.bright": "true", "name": ""}))
    text = " ".join(job.format_help().split())
    assert "--name TEXT The name. (empty)" in text
    assert "--section.rate NUMBER Learning rate, 100 % of it. (0.1)" in text
    assert "--section.color NAME One of red, green. (red)" in text
    assert "--section.bright true|false (true)" in text
    assert "--shape NAME One of circle, square. (square)" in text
    assert "--shape.width INT (2)" in text
    assert "--shape.radius" not in text
    assert "fields of optional: Overrides of the section. --optional.rate NUMBER" in text
    assert "--short INT (3)" in text


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"section.rate": "fast"}, "section.rate: expected float, got 'fast'"),
        ({"steps": "1.5"}, "steps: expected int, got '1.5'"),
        ({"steps": True}, "steps: expected int, got True"),
        ({"limit": "many"}, "limit: expected int, got 'many'"),
        ({"section.bright": "perhaps"}, "section.bright: expected bool, got 'perhaps'"),
        ({"name": 3}, "name: expected str, got 3"),
        ({"section.color": "blue"}, "section.color: unknown value 'blue'; choose one of red, green"),
        ({"section.colour": "red"}, "unknown key 'section.colour'; did you mean 'color'?"),
        ({"sektion.rate": 1}, "unknown key 'sektion'; did you mean 'section'?"),
        ({"section": 3}, "section: expected a table of fields, got 3"),
        ({"steps.more": 3}, "steps: expected int, got {'more': 3}"),
        ({"section.rate": 7}, "section.rate must not be 7"),
        ({"optional.rate": 7}, "optional.rate must not be 7"),
        ({"shape": "triangle"}, "shape: unknown value 'triangle'; choose one of circle, square"),
        ({"shape.width": 3}, "unknown key 'shape.width'; known: radius"),
        ({"shape.radius": "x"}, "shape.radius: expected float, got 'x'"),
        ({"shape": {"radius": 3}}, "shape: unknown value None; choose one of circle, square"),
    ],
)
def test_mistakes_name_the_field(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        build(overrides)
    assert str(error.value) == message


def test_required_fields_must_be_there() -> None:
    with pytest.raises(InputError, match="section has no default: give it a value"):
        from_dict(Config, {"name": "a"})


def test_overrides_are_typed() -> None:
    words = {"section.rate": "2", "section.bright": "True", "limit": "5", "name": "7", "steps": "-1"}
    assert build(words) == Config("7", Section(rate=2.0, bright=True), limit=5, steps=-1)
    assert type(build({"section.rate": 2}).section.rate) is float
    assert build({"name": Path("a/b")}).name == "a/b"
    assert build({"limit": None}).limit is None


def test_variants_are_chosen_by_name() -> None:
    """A new choice starts from its defaults, and its fields are set after it whatever the order of the words."""
    assert build({"shape": "square"}).shape == Square()
    assert build({"shape.width": "5", "shape": "square"}).shape == Square(5)
    assert build({"shape": {"name": "square", "width": 4}}).shape == Square(4)
    assert Config("a", Section(), "square").shape == Square()
    larger = Config("a", Section(), Circle(3.0))
    assert from_dict(Config, override(to_dict(larger), {"shape": "circle"})).shape == Circle()
    assert from_dict(Config, override(to_dict(larger), {"shape.radius": 4})).shape == Circle(4.0)


def test_optional_sections_start_from_their_defaults() -> None:
    assert build({"optional.color": "green"}).optional == Section(color="green")


@pytest.mark.parametrize("config", [CONFIG, Config("b", Section(0.5), Square(7), Section(bright=True), 3)])
def test_to_dict_and_back(config: Config) -> None:
    values = to_dict(config)
    assert from_dict(Config, json.loads(json.dumps(values))) == config
    assert values["shape"]["name"] in ("circle", "square")


@dataclass(frozen=True)
class Several:
    """Configurations inside a tuple."""

    configs: tuple[Config, ...]


def test_to_dict_keeps_the_names_of_variants_inside_tuples() -> None:
    assert to_dict(Several((CONFIG,))) == {"configs": [to_dict(CONFIG)]}


def test_override_leaves_its_argument_alone() -> None:
    values = to_dict(CONFIG)
    override(values, {"section.rate": 5, "shape": "square"})
    assert values == to_dict(CONFIG)


def test_load_takes_overrides(tmp_path: Path) -> None:
    stored = tmp_path / "config.json"
    stored.write_text(json.dumps({"config": to_dict(CONFIG)}))
    expected = Config("a", Section(0.5), steps=4)
    assert load(Config, str(stored), overrides_of(Config, ["--section.rate", "0.5", "--steps=4"])) == expected
    assert load(Config, str(stored), {"section.rate": 0.5, "steps": "4"}) == expected
    assert load(Config, str(stored)) == CONFIG


def test_differences_name_the_fields() -> None:
    old, new = to_dict(CONFIG), to_dict(build({"section.rate": 3, "shape": "square"}))
    assert differences(old, new) == [
        "section.rate: 0.1 -> 3.0",
        "shape.name: 'circle' -> 'square'",
        "shape.radius: 1.0 -> None",
        "shape.width: None -> 2",
    ]
    assert differences(old, old) == []
    assert flat(old)["section.rate"] == 0.1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "file.json:1: not JSON"),
        (b'{"a": 1,\n "a": 2}', "duplicate key 'a'"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": "\xe9"}', "not UTF-8 at byte 7"),
        (b"[1]", "expected a JSON object"),
        (b'{"a":' * 100_000, "maximum recursion depth"),
        (b'{"a": ' + b"1" * 5000 + b"}", "Exceeds the limit"),
    ],
    ids=range(7),
)
def test_files_that_are_not_json(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_json(path)


def test_errors_of_experiment_files_have_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("x = 1\n\nraise ValueError('no\\nsecond line')\n")
    with pytest.raises(InputError) as error:
        run_file(str(path))
    assert str(error.value) == f"{path}:3: ValueError: no"


@pytest.mark.parametrize(
    ("error", "line"),
    [(ValueError("\n  a \nb"), "a"), (ValueError(), "ValueError"), (OSError(2, "gone"), "[Errno 2] gone")],
)
def test_first_line(error: Exception, line: str) -> None:
    assert first_line(error) == line


def test_parser_is_argparse() -> None:
    """Options and types of argparse keep their meaning."""
    job = Parser(prog="p")
    job.add_argument("--count", type=int, default=2)
    assert job.parse([]) == argparse.Namespace(count=2, overrides={}, free=[])
    with pytest.raises(InputError, match="invalid int value"):
        job.parse(["--count", "x"])


def test_a_file_that_exists_can_be_written_again(tmp_path: Path) -> None:
    """Its content stays; a folder in its place, or a file as its folder, cannot be written."""
    path = tmp_path / "results.json"
    path.write_text("{}")
    check_writable(path, "--output")
    assert path.read_text() == "{}"
    assert_input_error(lambda: check_writable(path / "more.json", "--output"), "--output", "results.json")
