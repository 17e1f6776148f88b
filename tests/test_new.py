"""`albert-jax new`: a copy is the experiment under another name, and nothing is overwritten."""

import ast
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from albert_jax.ablation.planning import resolve
from albert_jax.ablation.table import read_table
from albert_jax.cli import main
from albert_jax.config import load
from albert_jax.finetuning.run import FinetuneConfig
from albert_jax.new.command import EXPERIMENTS, KINDS
from albert_jax.pretraining.run import PretrainConfig

from .conftest import ROOT, refused

TEMPLATES = [
    (kind, path.stem) for kind in KINDS for path in sorted((ROOT / "experiments" / KINDS[kind].folder).glob("*.py"))
]


@pytest.mark.parametrize(("kind", "name"), TEMPLATES)
def test_every_experiment_can_be_copied(kind: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy has the fields or rows of the original, its own run folder, and a docstring with its own command."""
    monkeypatch.chdir(tmp_path)
    assert main(["new", kind, "some/mine.py", "--from", name]) == 0
    original, copy = ROOT / "experiments" / KINDS[kind].folder / f"{name}.py", tmp_path / "some" / "mine.py"
    text = ast.get_docstring(ast.parse(copy.read_text())) or ""
    assert f"albert-jax {KINDS[kind].command} some/mine.py" in text
    assert f"{KINDS[kind].folder}/{name}.py of albert_jax" in text
    if kind == "ablation":
        assert read_table(str(copy)) == read_table(str(original))
        assert resolve(str(copy), scale="tiny").run_dir == "runs/mine-tiny"
        assert {path.name for path in (tmp_path / "some" / "scales").iterdir()} == {"tiny.py", "small.py", "paper.py"}
        return
    config_class: type = PretrainConfig if kind == "pretrain" else FinetuneConfig
    config: Any = load(config_class, str(copy))
    assert config.run_dir == "runs/mine"
    assert replace(config, run_dir=f"runs/{name}") == load(config_class, str(original))


def test_a_copy_is_an_experiment(small: Callable[..., list[str]], tmp_path: Path) -> None:
    """A command takes it with options."""
    copy = tmp_path / "mine.py"
    assert main(["new", "pretrain", str(copy)]) == 0
    assert main(["prepare", str(copy), *small(tmp_path / "run")[2:]]) == 0


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither a file, nor a scale that was changed."""
    mine = tmp_path / "mine.py"
    mine.write_text("mine")
    scale = tmp_path / "scales" / "tiny.py"
    scale.parent.mkdir()
    scale.write_text("changed")
    assert "exists; choose a different file" in refused(["new", "pretrain", str(mine)], capsys)
    assert main(["new", "ablation", str(tmp_path / "table.py")]) == 0
    assert mine.read_text() == "mine"
    assert scale.read_text() == "changed"
    assert (tmp_path / "scales" / "small.py").exists()


def test_invalid_copies_are_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = refused(["new", "pretrain", str(tmp_path / "x.py"), "--from", "sst2"], capsys)
    assert error.startswith("--from: unknown value 'sst2'; choose one of base, hour_128, hour_32, large")
    assert "name it" in refused(["new", "pretrain", str(tmp_path / "x")], capsys)
    assert "invalid choice" in refused(["new", "probe", str(tmp_path / "x.py")], capsys)


def test_the_package_contains_the_experiments() -> None:
    """The link in the package shows every experiment, and the patterns in setup.cfg match them.

    Fails if an experiment is added in a folder that an installed package would lack.
    """
    files = {path.relative_to(ROOT / "experiments") for path in (ROOT / "experiments").glob("*/**/*.py")}
    packaged = {
        path.relative_to(EXPERIMENTS) for glob in ("*/*.py", "ablations/scales/*.py") for path in EXPERIMENTS.glob(glob)
    }
    assert files == packaged
    assert "albert_jax.new = experiments/*/*.py, experiments/ablations/scales/*.py" in (ROOT / "setup.cfg").read_text()
