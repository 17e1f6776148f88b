"""The house stays as CONTRIBUTING.md draws it: who imports whom, and every experiment file can be launched."""

import ast
import dataclasses
from pathlib import Path
from typing import Any

import jax
import pytest

from albert_jax.config import load
from albert_jax.finetuning.run import FinetuneConfig
from albert_jax.finetuning.tasks import TASKS
from albert_jax.model.heads import Albert, param_shapes
from albert_jax.pretraining.run import PretrainConfig

from .conftest import ROOT

PACKAGE = ROOT / "albert_jax"

# Folder, or module of the root -> what of the package it may import, beside itself.
MAY_IMPORT = {
    "config": set(),
    "data": {"config"},
    "model": {"config"},
    "training": {"config"},
    "exchange": {"config", "data", "model", "training"},
    "reports": {"config", "training"},
    "pretraining": {"config", "data", "model", "training", "exchange", "reports"},
    "finetuning": {"config", "data", "model", "training", "exchange", "reports", "pretraining"},
    "bench": {"config", "model", "training", "exchange", "reports", "pretraining"},
    "plan": {"config", "model", "training", "reports", "pretraining"},
    "inference": {"config", "data", "model", "exchange", "finetuning"},
    "ablation": {"config", "data", "model", "training", "exchange", "reports", "pretraining", "finetuning"},
    "cli": {
        "ablation",
        "bench",
        "config",
        "data",
        "exchange",
        "finetuning",
        "inference",
        "model",
        "plan",
        "pretraining",
        "reports",
        "training",
        "jobs",
    },
    "jobs": {
        "ablation",
        "bench",
        "config",
        "data",
        "exchange",
        "finetuning",
        "inference",
        "model",
        "plan",
        "pretraining",
        "reports",
        "training",
    },
    "__main__": {"cli"},
    "__init__": {"exchange"},
}
# Package -> the folders that may import it; others are free.
ONLY = {
    "flax": {"model"},
    "orbax": {"training"},
    "etils": {"training"},
    "grain": {"data"},
    "tensorflow_datasets": {"data", "finetuning"},
    "apache_beam": {"data"},
    "sentencepiece": {"data"},
    "sentencex": {"data"},
    "optax": {"training"},
    "jax": {"model", "training", "exchange", "pretraining", "finetuning", "bench", "plan", "inference"},
    "tyro": {"jobs"},
    "sklearn": {"finetuning", "pretraining"},
    "scipy": {"finetuning", "pretraining"},
    "matplotlib": {"reports", "inference"},
    "submitit": {"ablation"},
    "safetensors": {"exchange"},
    "google_crc32c": {"exchange"},
    "huggingface_hub": {"exchange"},
    "torch": {"exchange", "bench"},
    "transformers": {"exchange", "bench"},
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


KINDS: dict[str, Any] = {"pretrain": PretrainConfig, "finetune": FinetuneConfig, "scales": PretrainConfig}
"""Folder of experiments -> what they are; tables are `test_ablation.py`'s."""


@pytest.mark.parametrize(
    "path",
    [path for path in sorted((ROOT / "experiments").glob("*/**/*.py")) if path.parent.name != "ablations"],
    ids=lambda path: f"{path.parent.name}-{path.stem}",
)
def test_experiment_can_be_built(path: Path) -> None:
    """Under 100 lines, says its command, and its model can be made."""
    kind = KINDS[path.parent.name]
    job = "finetune" if kind is FinetuneConfig else "pretrain"
    config: Any = load(kind, str(path))
    assert len(path.read_text().splitlines()) < 100
    assert f"albert-jax {job} {path.relative_to(ROOT)}" in (ast.get_docstring(ast.parse(path.read_text())) or "")
    shapes = param_shapes(Albert(config.model))
    assert jax.tree.leaves(shapes)
    assert dataclasses.asdict(config)["run_dir"] == f"runs/{path.stem}"


def test_every_task_has_its_recipe() -> None:
    """A file of its own name, which names the task."""
    for task in TASKS:
        config = load(FinetuneConfig, str(ROOT / "experiments" / "finetune" / f"{task}.py"))
        assert config.data.task == task
