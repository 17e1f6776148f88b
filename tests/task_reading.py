"""Reading the data of fine-tuning tasks, for several test files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from albert_jax.data.tokenizer_files import open_tokenizer
from albert_jax.finetuning import (
    files,
)
from albert_jax.finetuning.family import read_splits
from albert_jax.finetuning.tasks import TASKS

from .conftest import GOLDEN_TOKENIZER

TOKENIZER = open_tokenizer(GOLDEN_TOKENIZER / "spiece.model")


def config(task: str = "sst2", **fields: Any) -> Any:
    """The data settings of a task, with short inputs."""
    short = {"max_seq_length": 32} | ({"max_query_length": 8} if task.startswith("squad") else {})
    return TASKS[task].data_config(task=task, **(short | fields))


def read_with(chosen: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The examples of each split, and the names of the classes."""
    task = TASKS[chosen.task]
    splits = read_splits(task, files.find(chosen, task.splits), chosen)
    return {name: split.examples for name, split in splits.items()}, splits["train"].labels


def read(task: str, folder: Path, **fields: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    return read_with(config(task, dir=str(folder), **fields))


def line(file: str, number: int, text: str) -> Callable[[Path], object]:
    """Replace a line of a file; `number` counts from 1."""

    def change(folder: Path) -> None:
        lines = (folder / file).read_text().split("\n")
        lines[number - 1] = text
        (folder / file).write_text("\n".join(lines))

    return change
