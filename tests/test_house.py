"""The house stays as CONTRIBUTING.md draws it: who imports whom, and every experiment file can be launched."""

import ast
import dataclasses
from pathlib import Path

import jax
import pytest

from albert_jax.config import load
from albert_jax.model.heads import Albert, param_shapes
from albert_jax.pretrain import PretrainConfig

from .conftest import ROOT

PACKAGE = ROOT / "albert_jax"

# Folder or module -> what of the package it may import, beside itself.
MAY_IMPORT = {
    "config": set(),
    "data": {"config"},
    "model": {"config"},
    "optim": {"config"},
    "objectives": {"config"},
    "partition": {"config"},
    "checkpoint": {"config"},
    "run_folder": {"config"},
    "train": {"config", "partition", "checkpoint", "run_folder", "optim"},
    "report": {"config", "run_folder"},
    "convert": {"config", "model"},
    "exchange": {"config", "convert", "data", "model", "checkpoint", "run_folder"},
    "predict": {"config", "data", "model"},
    "answers": {"config", "data", "model", "predict"},
    "inspection": {"config", "data", "model"},
    "pretrain": {
        "config",
        "data",
        "model",
        "objectives",
        "optim",
        "partition",
        "checkpoint",
        "run_folder",
        "train",
        "report",
        "convert",
        "exchange",
    },
    "cli": {"config", "data", "pretrain", "report", "train", "exchange", "answers"},
    "__main__": {"cli"},
    "__init__": {"exchange"},
}
# Package -> the parts that may import it; others are free.
ONLY = {
    "flax": {"model"},
    "orbax": {"checkpoint"},
    "grain": {"data"},
    "tensorflow_datasets": {"data"},
    "sentencepiece": {"data"},
    "sentencex": {"data"},
    "optax": {"optim"},
    "jax": {
        "model",
        "objectives",
        "optim",
        "partition",
        "checkpoint",
        "train",
        "pretrain",
        "convert",
        "exchange",
        "predict",
        "inspection",
    },
    "tyro": {"cli"},
    "matplotlib": {"report", "inspection"},
    "safetensors": {"convert"},
    "google_crc32c": {"convert"},
    "huggingface_hub": {"convert"},
    "torch": {"convert"},
    "transformers": {"convert"},
    "tensorflow": set(),
}


def imports(path: Path) -> set[str]:
    """Full names of the modules that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= (
                {f"{node.module}.{alias.name}" for alias in node.names}
                if node.module == "albert_jax"
                else {node.module or ""}
            )
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_who_imports_whom(path: Path) -> None:
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for name in imports(path):
        top, *rest = name.split(".")
        if top == "albert_jax":
            assert rest[0] == part or rest[0] in MAY_IMPORT[part], f"{path.name} imports {name}"
        assert part in ONLY.get(top, {part}), f"{path.name} imports {top}"


def test_the_map_is_complete() -> None:
    parts = {
        path.name.removesuffix(".py")
        for path in PACKAGE.iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert parts == MAY_IMPORT.keys()


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").rglob("*.py")), ids=lambda path: path.stem)
def test_experiment_can_be_built(path: Path) -> None:
    """Under 100 lines, says its command, and its model can be made."""
    config = load(PretrainConfig, str(path))
    assert len(path.read_text().splitlines()) < 100
    assert f"albert-jax pretrain {path.relative_to(ROOT)}" in (ast.get_docstring(ast.parse(path.read_text())) or "")
    shapes = param_shapes(Albert(config.model))
    assert jax.tree.leaves(shapes)
    assert dataclasses.asdict(config)["run_dir"] == f"runs/{path.stem}"
