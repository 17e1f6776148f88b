"""Read named tensors into a parameter tree and write them back, by a table of names; strict in both directions.

Knows no file format: `huggingface_names.py` and `tf1.py` hold the tables, and a `Tensors` object reads the file.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import numpy as np

from albert_jax.config import InputError
from albert_jax.model.albert import AlbertConfig
from albert_jax.model.heads import HEADS, POOLED, SENTENCE_CLASSES, Albert, param_shapes
from albert_jax.model.sharing import is_stacked
from albert_jax.model.tree import Path, leaves, nested

Shape = tuple[int, ...]


class Name(NamedTuple):
    """The name of one of our parameters in another format."""

    tensor: str
    """{group} and {inner} stand for the numbers of a parameter set, where the format has one tensor per set."""
    transposed: bool = False
    """Whether the format stores the two axes in reverse order."""


class Tensors(Protocol):
    """A file of named tensors, read one at a time."""

    path: str

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """Name -> shape."""

    def read(self, name: str) -> np.ndarray:
        """One tensor, in the dtype of the file."""


class Renamed:
    """The tensors of a file under other names."""

    def __init__(self, tensors: Tensors, stored_names: Mapping[str, str]) -> None:
        self.path = tensors.path
        self.shapes: Mapping[str, Shape] = {name: tensors.shapes[stored] for name, stored in stored_names.items()}
        self._tensors, self._stored_names = tensors, stored_names

    def read(self, name: str) -> np.ndarray:
        return self._tensors.read(self._stored_names[name])


class Mapped(NamedTuple):
    """One line of a conversion report: a tensor of a file and the parameter that it holds."""

    tensor: str
    shape: Shape
    parameter: str


@dataclass
class Weights:
    """A model with its parameters in host memory, and a record of where they came from."""

    model: Albert
    params: dict[str, Any]
    """Nested dict of float32 arrays."""
    mapped: list[Mapped] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    """Tensors and settings of the source that the model does not have, each with the reason."""
    notes: list[str] = field(default_factory=list)
    """Surprising facts about this import."""

    def with_config(self, config: AlbertConfig, **changes: Any) -> "Weights":
        """A copy whose model has a different config, and with `changes` of the other fields."""
        return replace(self, model=self.model.clone(config=config), **changes)


class Slot(NamedTuple):
    """The place of one tensor in the parameter tree."""

    tensor: str
    shape: Shape
    """Shape in the file."""
    path: Path
    set_number: int | None
    """Row of a parameter that stacks parameter sets; None for other parameters."""
    transposed: bool

    def view(self, leaf: np.ndarray) -> np.ndarray:
        """The part of the parameter `leaf` that the tensor holds, in the layout of the file."""
        part = leaf if self.set_number is None else leaf[self.set_number]
        return part.T if self.transposed else part

    def mapped(self) -> Mapped:
        """The line of the conversion report."""
        number = "" if self.set_number is None else f"[{self.set_number}]"
        return Mapped(self.tensor, self.shape, "/".join(self.path) + number)


def slots(model: Albert, table: Mapping[str, Name]) -> list[Slot]:
    """The place of every tensor of a model, for a format whose names are in `table`."""
    inner = model.config.inner_group_num
    places = []
    for path, leaf in leaves(param_shapes(model)).items():
        name = table["/".join(path)]
        stacked = is_stacked(path)
        shape = leaf.shape[1:] if stacked else leaf.shape
        for number in range(leaf.shape[0] if stacked else 1):
            tensor = name.tensor.format(group=number // inner, inner=number % inner)
            stored = shape[::-1] if name.transposed else shape
            places.append(Slot(tensor, stored, path, number if stacked else None, name.transposed))
    return places


def present_heads(tensors: Tensors, table: Mapping[str, Name]) -> tuple[str, ...]:
    """The heads for which the file has any tensor, in the order of `HEADS`.

    Raises:
      InputError: a head reads the pooler, and the file has no pooler.
    """
    present = {parameter.split("/")[0] for parameter, name in table.items() if name.tensor in tensors.shapes}
    readers = [head for head in POOLED if head in present]
    if readers and "pooler" not in present:
        pooler = table["pooler/kernel"].tensor
        raise InputError(f"{tensors.path}: 1 missing: '{pooler}', which {', '.join(readers)} reads")
    return tuple(name for name in HEADS if name in present)


def num_classes(tensors: Tensors, bias: str) -> int:
    """The number of classes of a classifier, given the name of its bias; 0 if the file does not have it."""
    shape = tensors.shapes.get(bias, ())
    return shape[0] if len(shape) == 1 else 0


def sentence_classes(count: int) -> tuple[str, ...]:
    """Names for the classes of a sentence head whose file does not name them."""
    return SENTENCE_CLASSES if count in (0, len(SENTENCE_CLASSES)) else default_labels(count)


def default_labels(count: int) -> tuple[str, ...]:
    """Hugging Face's names for classes without names."""
    return tuple(f"LABEL_{i}" for i in range(count))


def collect(model: Albert, tensors: Tensors, table: Mapping[str, Name]) -> tuple[dict[str, Any], list[Mapped]]:
    """Read every parameter of `model`; the file must hold these tensors and no others.

    Raises:
      InputError: tensors are missing, unknown or of a different shape (all are named, before any is read), or a tensor
        holds anything but finite numbers.
    """
    places = slots(model, table)
    _check_names([slot.tensor for slot in places], tensors)
    for slot in places:
        shape = tuple(tensors.shapes[slot.tensor])
        if shape != slot.shape:
            message = f"{tensors.path}: {slot.tensor} has shape {shape}, config says {slot.shape}"
            raise InputError(message + _shape_hint(shape, slot.shape))
    flat = {path: np.empty(leaf.shape, np.float32) for path, leaf in leaves(param_shapes(model)).items()}
    for slot in places:
        value, target = tensors.read(slot.tensor), slot.view(flat[slot.path])
        if value.dtype.kind != "f" and value.dtype.name != "bfloat16":
            raise InputError(f"{tensors.path}: {slot.tensor} is {value.dtype}, not floating point")
        target[...] = value
        if not np.isfinite(target).all():
            raise InputError(f"{tensors.path}: {slot.tensor} holds NaN or infinity")
    return nested(flat), [slot.mapped() for slot in places]


def named_tensors(weights: Weights, table: Mapping[str, Name]) -> list[tuple[Mapped, np.ndarray]]:
    """The tensors of a parameter tree under the names of `table`, as views of its arrays."""
    flat = leaves(weights.params)
    return [(slot.mapped(), slot.view(flat[slot.path])) for slot in slots(weights.model, table)]


def _check_names(expected: list[str], tensors: Tensors) -> None:
    missing = [name for name in expected if name not in tensors.shapes]
    known = set(expected)
    unknown = [name for name in tensors.shapes if name not in known]
    if len(missing) == len(expected):
        raise InputError(
            f"{tensors.path}: 0 of {len(expected)} expected tensors found; the file has names such as {_first(unknown)}, "
            f"ALBERT has names such as {_first(expected)}"
        )
    if missing:
        raise InputError(f"{tensors.path}: {len(missing)} missing: {_first(missing)}; unknown: {_first(unknown)}")
    if unknown:
        raise InputError(f"{tensors.path}: {len(unknown)} unknown: {_first(unknown)}; ALBERT has no such tensors")


def _first(names: list[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:4])
    return f"{shown} and {len(names) - 4} more" if len(names) > 4 else shown or "none"


def _shape_hint(stored: Shape, expected: Shape) -> str:
    if stored == expected[::-1]:
        return "; it is transposed"
    differ = [f"{a} for {b}" for a, b in zip(stored, expected, strict=False) if a != b]
    return f"; config.json and weights belong to different models ({', '.join(differ)})" if differ else ""
