"""From named tensors to a parameter tree and back, by a table of names; strict both ways.

Knows nothing of formats: `huggingface.py` and `tf1.py` bring the tables, and something that reads a tensor by its name.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from albert_jax.config import InputError, require
from albert_jax.model.heads import HEADS, POOLED, Albert, param_shapes
from albert_jax.model.sharing import is_stacked
from albert_jax.model.tree import leaves, nested

Shape = tuple[int, ...]


class Name(NamedTuple):
    """What one of our parameters is called elsewhere."""

    theirs: str
    """With {group} and {inner} where there is one tensor a parameter set."""
    transposed: bool = False
    """Whether they store it with its two axes the other way round."""


class Tensors(Protocol):
    """A file of named tensors; nothing is read before `read`."""

    path: str
    shapes: Mapping[str, Shape]

    def read(self, name: str) -> np.ndarray:
        """One tensor, in its own dtype."""


class Mapped(NamedTuple):
    """A line of the report: one tensor there and what it is here."""

    theirs: str
    shape: Shape
    ours: str


@dataclass
class Weights:
    """A model with its parameters in host memory, and how they were come by."""

    model: Albert
    params: dict[str, Any]
    """Nested dict of float32 arrays."""
    mapped: list[Mapped] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    """Tensors and settings that were not taken, each with the reason."""
    notes: list[str] = field(default_factory=list)
    """What a user should know of this import."""


def tensor_names(model: Albert, table: Mapping[str, Name]) -> dict[tuple[str, ...], tuple[Shape, list[str]]]:
    """For each parameter of `model`, the shape of one set of it and the names of the tensors that hold its sets."""
    inner = model.config.inner_group_num
    found = {}
    for path, leaf in leaves(param_shapes(model)).items():
        theirs = table["/".join(path)].theirs
        if is_stacked(path):
            names = [theirs.format(group=i // inner, inner=i % inner) for i in range(leaf.shape[0])]
            found[path] = (leaf.shape[1:], names)
        else:
            found[path] = (leaf.shape, [theirs])
    return found


def present_heads(tensors: Tensors, table: Mapping[str, Name]) -> tuple[str, ...]:
    """The heads of which the file has any tensor, in the order of `HEADS`.

    Raises:
      InputError: one that reads the pooler is there, and the pooler is not.
    """
    found = {ours.split("/")[0] for ours, name in table.items() if name.theirs in tensors.shapes}
    needing = [head for head in POOLED if head in found]
    pooler = table["pooler/kernel"].theirs
    require("pooler" in found or not needing, f"{tensors.path}: 1 missing: '{pooler}', which {', '.join(needing)} read")
    return tuple(name for name in HEADS if name in found)


def collect(model: Albert, tensors: Tensors, table: Mapping[str, Name]) -> tuple[dict[str, Any], list[Mapped]]:
    """Reads every parameter of `model`, and checks that the file holds no others.

    Raises:
      InputError: tensors that are missing, unknown or of another shape, all named, before any is read; one that holds
        anything but finite numbers.
    """
    wanted = tensor_names(model, table)
    names = {name: path for path, (_, sets) in wanted.items() for name in sets}
    missing = [name for name in names if name not in tensors.shapes]
    unknown = [name for name in tensors.shapes if name not in names]
    if len(missing) == len(names):
        raise InputError(
            f"{tensors.path}: 0 of {len(names)} expected tensors found; its names look like {_some(unknown)}, "
            f"ALBERT's like {_some(list(names))}"
        )
    require(not missing, f"{tensors.path}: {len(missing)} missing: {_some(missing)}; unknown: {_some(unknown)}")
    require(not unknown, f"{tensors.path}: {len(unknown)} unknown: {_some(unknown)}; nothing of ALBERT has these names")
    for path, (shape, sets) in wanted.items():
        stored = shape[::-1] if table["/".join(path)].transposed else shape
        for name in sets:
            have = tuple(tensors.shapes[name])
            require(
                have == stored, f"{tensors.path}: {name} has shape {have}, config says {stored}{_hint(have, stored)}"
            )
    flat: dict[tuple[str, ...], np.ndarray] = {}
    mapped: list[Mapped] = []
    for path, (shape, sets) in wanted.items():
        transposed = table["/".join(path)].transposed
        array = np.empty((len(sets), *shape), np.float32)
        for number, name in enumerate(sets):
            value = tensors.read(name)
            require(
                value.dtype.kind == "f" or value.dtype.name == "bfloat16", f"{tensors.path}: {name} is {value.dtype}"
            )
            array[number] = value.T if transposed else value
            require(bool(np.isfinite(array[number]).all()), f"{tensors.path}: {name} holds NaN or infinity")
            row = f"[{number}]" if is_stacked(path) else ""
            mapped.append(Mapped(name, tuple(value.shape), "/".join(path) + row))
        flat[path] = array if is_stacked(path) else array[0]
    return nested(flat), mapped


def spread(weights: Weights, table: Mapping[str, Name]) -> Iterator[tuple[Mapped, np.ndarray]]:
    """The tensors of a parameter tree by the names of `table`, as views: nothing is copied."""
    wanted = tensor_names(weights.model, table)
    for path, leaf in leaves(weights.params).items():
        ours = "/".join(path)
        for number, name in enumerate(wanted[path][1]):
            value = leaf[number] if is_stacked(path) else leaf
            value = value.T if table[ours].transposed else value
            yield Mapped(name, value.shape, f"{ours}[{number}]" if is_stacked(path) else ours), value


def _some(names: list[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:4])
    return f"{shown} and {len(names) - 4} more" if len(names) > 4 else shown or "none"


def _hint(have: Shape, want: Shape) -> str:
    if have == want[::-1]:
        return "; it is transposed"
    differ = [f"{a} for {b}" for a, b in zip(have, want, strict=False) if a != b]
    return f"; config.json and weights are of two models ({', '.join(differ)})" if differ else ""
