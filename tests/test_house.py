"""The import rules of CONTRIBUTING.md hold, and every experiment file can be launched."""

import ast
import sys
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

COMMANDS = {path.parent.name for path in PACKAGE.glob("*/command.py")}
"""Folders that have commands."""

# Folder, or module of the root -> what it may import of the package, besides itself.  A `command.py` also imports `parser`.
MAY_IMPORT = {
    "config": set(),
    "parser": {"config"},
    "completion": {"config", "parser"},
    "new": {"config"},
    "data": {"config"},
    "model": {"config"},
    "training": {"config"},
    "exchange": {"config", "data", "model", "training"},
    "reports": {"config", "training"},
    "pretraining": {"config", "data", "model", "training", "exchange", "reports"},
    "finetuning": {"config", "data", "model", "training", "exchange", "reports", "pretraining"},
    "bench": {"config", "model", "training", "exchange", "reports", "pretraining"},
    "plan": {"config", "model", "training", "reports", "pretraining"},
    "inference": {"config", "data", "model", "exchange", "reports", "finetuning"},
    "publish": {"config", "data", "model", "training", "exchange", "reports", "pretraining", "finetuning"},
    "ablation": {"config", "parser", "data", "model", "training", "exchange", "reports", "pretraining", "finetuning"},
    "cli": {"config", "parser", "completion"} | COMMANDS,
    "__main__": {"cli"},
    "__init__": {"config", "exchange"},
}
# Package -> the folders that may import it.  Packages that are not listed may be imported anywhere.
ONLY = {
    "flax": {"model"},
    "orbax": {"training"},
    "etils": {"training"},
    "grain": {"data"},
    "tensorflow_datasets": {"data", "finetuning"},
    "apache_beam": {"data"},
    "sentencepiece": {"data"},
    "sentencex": {"data"},
    "pyarrow": {"data", "finetuning"},
    "zstandard": {"data"},
    "datasets": {"data"},
    "tokenizers": {"data"},
    "regex": {"finetuning"},
    "optax": {"training"},
    "tensorboardX": {"training"},
    "wandb": {"training"},
    "mlflow": {"training"},
    "jax": {"model", "training", "exchange", "pretraining", "finetuning", "bench", "plan", "inference", "publish"},
    "sklearn": {"finetuning", "pretraining"},
    "scipy": {"finetuning", "pretraining", "reports"},
    "matplotlib": {"reports", "inference"},
    "submitit": {"ablation"},
    "shtab": {"completion"},
    "safetensors": {"exchange"},
    "google_crc32c": {"exchange"},
    "huggingface_hub": {"exchange", "publish"},
    "torch": {"exchange", "bench"},
    "transformers": {"exchange", "bench"},
    "tensorflow": set(),
}


def imports(tree: ast.AST) -> set[str]:
    """The full names of the modules that a syntax tree imports, inside functions too."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= (
                {f"{node.module}.{alias.name}" for alias in node.names}
                if node.module == "albert_jax"
                else {node.module or ""}
            )
    return found


def module_id(path: Path) -> str:
    """The name of a parametrized test: the path in the package."""
    return str(path.relative_to(PACKAGE))


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=module_id)
def test_who_imports_whom(path: Path) -> None:
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    tree = ast.parse(path.read_text())
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    read = {node.attr for node in attributes if isinstance(node.value, ast.Name) and node.value.id == "albert_jax"}
    assert read <= {"__version__"}, f"{path.name} reads {read} from albert_jax; import its module"
    for name in imports(tree):
        top, *rest = name.split(".")
        if top == "albert_jax" and rest:
            allowed = {part} | MAY_IMPORT[part] | ({"parser"} if path.name == "command.py" else set())
            assert rest[0] in allowed, f"{path.name} imports {name}"
        assert part in ONLY.get(top, {part}), f"{path.name} imports {top}"


@pytest.mark.parametrize("path", [PACKAGE / "cli.py", *sorted(PACKAGE.glob("*/command.py"))], ids=module_id)
def test_commands_are_quick_to_import(path: Path) -> None:
    """At module level they import config, parser, other commands and the standard library.  Fails if one imports jax there."""
    statements = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
    for name in (name for node in statements for name in imports(node)):
        light = name in (
            "albert_jax",
            "albert_jax.config",
            "albert_jax.parser",
            "albert_jax.completion",
            "albert_jax.pretraining",
            "albert_jax.exchange",
            "albert_jax.finetuning",
        ) or name.endswith(".command")
        assert light or name.partition(".")[0] in sys.stdlib_module_names, name


@pytest.mark.parametrize("path", sorted((ROOT / "tests").glob("test_*.py")), ids=lambda path: path.stem)
def test_no_test_file_imports_another(path: Path) -> None:
    """What test files share is in conftest.py, or in a module that holds no tests."""
    names = imports(ast.parse(path.read_text()))
    assert not [name for name in names if name.removeprefix("tests.").startswith("test_")]


def test_the_map_is_complete() -> None:
    parts = {
        path.name.removesuffix(".py")
        for path in PACKAGE.iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert parts == MAY_IMPORT.keys()


KINDS: dict[str, Any] = {"pretrain": PretrainConfig, "finetune": FinetuneConfig, "scales": PretrainConfig}
"""Folder of experiments -> the class of their configurations.  `test_ablation.py` tests the tables."""


@pytest.mark.parametrize(
    "path",
    [path for path in sorted((ROOT / "experiments").glob("*/**/*.py")) if path.parent.name != "ablations"],
    ids=lambda path: f"{path.parent.name}-{path.stem}",
)
def test_experiment_can_be_built(path: Path) -> None:
    """It has at most 99 lines, its docstring shows its command, and its model has the sizes of its config.

    Fails if `param_shapes` ignores a field, or if the file sets the run folder of another experiment.
    """
    kind = KINDS[path.parent.name]
    job = "finetune" if kind is FinetuneConfig else "pretrain"
    config: Any = load(kind, str(path))
    assert len(path.read_text().splitlines()) < 100
    assert f"albert-jax {job} {path.relative_to(ROOT)}" in (ast.get_docstring(ast.parse(path.read_text())) or "")
    table = param_shapes(Albert(config.model))["embeddings"]["word_embeddings"]
    assert [leaf.shape for leaf in jax.tree.leaves(table)] == [(config.model.vocab_size, config.model.embedding_size)]
    assert config.run_dir == f"runs/{'scale-' if path.parent.name == 'scales' else ''}{path.stem}"


def test_every_task_has_its_recipe() -> None:
    """Every task has an experiment file of the same name, which names the task."""
    for task in TASKS:
        config = load(FinetuneConfig, str(ROOT / "experiments" / "finetune" / f"{task}.py"))
        assert config.data.task == task
