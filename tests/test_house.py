"""The house stays as CONTRIBUTING.md draws it: who imports whom, and every experiment file can be launched."""

import ast
import dataclasses
from pathlib import Path
from typing import Any

import jax
import pytest

from albert_jax.config import load
from albert_jax.finetune import FinetuneConfig
from albert_jax.model.heads import Albert, param_shapes
from albert_jax.pretrain import PretrainConfig
from albert_jax.tasks.table import TASKS

from .conftest import ROOT

PACKAGE = ROOT / "albert_jax"

# Folder or module -> what of the package it may import, beside itself.
MAY_IMPORT = {
    "config": set(),
    "data": {"config"},
    "model": {"config"},
    "optim": {"config"},
    "objectives": {"config"},
    "tasks": {"config", "data", "objectives"},
    "partition": {"config", "optim"},
    "processes": {"config"},
    "checkpoint": {"config", "damage", "processes"},
    "damage": {"config"},
    "run_folder": {"config"},
    "meter": {"config", "partition", "run_folder", "train_step"},
    "train_step": {"partition", "optim"},
    "train": {"config", "partition", "processes", "checkpoint", "run_folder", "meter", "optim", "train_step"},
    "report": {"config", "run_folder"},
    "convert": {"config", "model"},
    "exchange": {"config", "convert", "data", "model", "checkpoint", "run_folder"},
    "predict": {"config", "data", "model"},
    "predict_task": {"config", "data", "model", "tasks"},
    "answers": {"config", "data", "model", "predict", "predict_task"},
    "inspection": {"config", "data", "model"},
    "pretrain_task": {"config", "data", "model", "objectives", "partition", "train_step"},
    "bench": {"config", "convert", "model", "objectives", "optim", "partition", "pretrain_task", "train_step"},
    "pretrain": {
        "config",
        "data",
        "model",
        "objectives",
        "optim",
        "partition",
        "processes",
        "checkpoint",
        "run_folder",
        "train",
        "train_step",
        "pretrain_task",
        "report",
        "convert",
        "exchange",
    },
    "finetune": {
        "config",
        "data",
        "model",
        "tasks",
        "optim",
        "partition",
        "processes",
        "checkpoint",
        "run_folder",
        "train",
        "train_step",
        "report",
        "exchange",
    },
    "plan": {
        "report",
        "config",
        "model",
        "objectives",
        "optim",
        "partition",
        "pretrain",
        "pretrain_task",
        "train_step",
    },
    "seeds": {"config", "finetune", "processes", "report", "run_folder"},
    "comparison": {"config", "report", "run_folder"},
    "figures": {"comparison", "run_folder"},
    "probes": {"config", "data", "objectives", "pretrain"},
    "ablation": {"config", "model", "partition", "run_folder", "comparison", "pretrain", "finetune", "report", "train"},
    "ablate": {
        "config",
        "report",
        "ablation",
        "checkpoint",
        "comparison",
        "data",
        "exchange",
        "figures",
        "finetune",
        "pretrain",
        "probes",
        "run_folder",
        "tasks",
        "train",
    },
    "cli": {"config", "jobs"},
    "jobs": {
        "bench",
        "model",
        "objectives",
        "config",
        "data",
        "pretrain",
        "finetune",
        "plan",
        "seeds",
        "report",
        "processes",
        "train",
        "exchange",
        "answers",
        "ablation",
        "ablate",
        "comparison",
        "figures",
        "probes",
    },
    "__main__": {"cli"},
    "__init__": {"exchange"},
}
# Package -> the parts that may import it; others are free.
ONLY = {
    "flax": {"model"},
    "orbax": {"checkpoint"},
    "etils": {"checkpoint", "run_folder"},
    "grain": {"data"},
    "tensorflow_datasets": {"data", "tasks"},
    "apache_beam": {"data"},
    "sentencepiece": {"data"},
    "sentencex": {"data"},
    "optax": {"optim"},
    "jax": {
        "model",
        "objectives",
        "optim",
        "partition",
        "checkpoint",
        "damage",
        "processes",
        "meter",
        "train",
        "train_step",
        "pretrain_task",
        "bench",
        "pretrain",
        "plan",
        "finetune",
        "tasks",
        "convert",
        "exchange",
        "predict",
        "predict_task",
        "inspection",
        "probes",
    },
    "tyro": {"jobs"},
    "sklearn": {"tasks", "probes"},
    "scipy": {"tasks", "probes"},
    "matplotlib": {"report", "inspection", "figures"},
    "submitit": {"ablate"},
    "safetensors": {"convert"},
    "google_crc32c": {"convert"},
    "huggingface_hub": {"convert"},
    "torch": {"convert", "bench"},
    "transformers": {"convert", "bench"},
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
