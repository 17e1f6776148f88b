"""Files of named tensors: model.safetensors, whole or in shards, read and written; pytorch_model.bin where that is allowed.

Decides what is trusted of a file and how damage is told; knows no tensor by its name.
"""

import contextlib
import importlib.util
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from albert_jax.config import InputError, read_json, require
from albert_jax.exchange.archives import check_weights, is_pickle
from albert_jax.exchange.weights import Shape, Tensors

SHARD_BYTES = 2 * 2**30
"""A larger model is written in several files, so that writing takes little memory beyond the model."""
CHECKSUMS = "crc32c"
"""Key of the file's metadata under which we write one checksum a tensor, and verify it where it is found."""


def open_weights(folder: Path, allow_pickle: bool) -> Tensors:
    """The tensors of a Hugging Face folder.

    Raises:
      InputError: files that are missing, damaged or no weights, or a pickle that is not allowed.
    """
    if any((folder / name).exists() for name in ("model.safetensors", "model.safetensors.index.json")):
        return _Safetensors(folder)
    pickled = folder / "pytorch_model.bin"
    have = ", ".join(sorted(path.name for path in folder.iterdir())[:8])
    require(pickled.exists(), f"{folder}: no model.safetensors there; it holds {have}")
    check_weights(pickled)
    way = "get model.safetensors, or say --allow-pickle if you trust where it is from"
    require(allow_pickle, f"{pickled}: refusing a pickle, which can run code as it is loaded; {way}")
    return _Pickled(pickled)


def save(tensors: Sequence[tuple[str, np.ndarray]], folder: Path) -> None:
    """Writes model.safetensors; above `SHARD_BYTES` several files and the index that transformers reads."""
    shards: list[list[tuple[str, np.ndarray]]] = [[]]
    size = 0
    for name, value in tensors:
        if size and size + value.nbytes > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append((name, value))
        size += value.nbytes
    where: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        whole = {name: np.ascontiguousarray(value) for name, value in shard}
        sums = json.dumps({name: _crc(value) for name, value in whole.items()})
        save_file(whole, folder / file, metadata={"format": "pt", CHECKSUMS: sums})
        shutil.copymode(folder / "config.json", folder / file)  # safetensors writes for the owner alone
        where |= dict.fromkeys(whole, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(value.nbytes for _, value in tensors)}, "weight_map": where}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


class _Safetensors:
    """The tensors of one model.safetensors, or of those that an index names."""

    def __init__(self, folder: Path) -> None:
        files, index = [folder / "model.safetensors"], folder / "model.safetensors.index.json"
        where: dict[str, str] = {}
        if not files[0].exists() and index.exists():
            where = read_json(index).get("weight_map", {})
            require(isinstance(where, dict) and bool(where), f"{index}: no table 'weight_map' in it")
            for name in where.values():
                plain = isinstance(name, str) and Path(name).name == name and name not in ("", ".", "..")
                require(plain, f"{index}: {name!r} is not the name of a file beside it; refused")
            files = [folder / name for name in sorted(set(where.values()))]
        self.path = str(index if where else files[0])
        self._open: dict[str, Any] = {}
        self._sums: dict[str, str] = {}
        for path in files:
            check_weights(path)
            require(not is_pickle(path), f"{path} is a pickle under the name of safetensors; refused")
            with _told(path):
                file = safe_open(str(path), framework="numpy")
                names = set(file.keys())
                self._sums |= _checksums(file.metadata(), names, path)
            claimed = {name for name, owner in where.items() if owner == path.name} if where else names
            require(claimed == names, f"{self.path}: it and {path.name} differ in {sorted(claimed ^ names)[:4]}")
            self._open |= dict.fromkeys(sorted(names), file)  # a message is the same every time
        self.shapes: Mapping[str, Shape] = {
            name: tuple(file.get_slice(name).get_shape()) for name, file in self._open.items()
        }

    def read(self, name: str) -> np.ndarray:
        with _told(Path(self.path)):
            value = self._open[name].get_tensor(name)
        if name in self._sums:
            intact = _crc(value) == self._sums[name]
            require(intact, f"{self.path}: {name} is damaged (checksum differs); copy it again")
        return value


class _Pickled:
    """The tensors of a pytorch_model.bin, read by torch with nothing but tensors allowed."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        require(importlib.util.find_spec("torch") is not None, f"{path}: reading a pickle needs torch; install it")
        import torch

        try:
            stored = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise InputError(f"{path}: torch refuses it ({str(error).splitlines()[0][:120]})") from None
        known = isinstance(stored, dict) and all(
            isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in stored.items()
        )
        require(
            known, f"{path}: it holds something else than a table of tensors by name; save model.state_dict() alone"
        )
        self._stored = {name: value.float().numpy() for name, value in stored.items()}
        self.shapes: Mapping[str, Shape] = {name: value.shape for name, value in self._stored.items()}

    def read(self, name: str) -> np.ndarray:
        return self._stored[name]


def _crc(value: np.ndarray) -> str:
    return f"{google_crc32c.value(np.ascontiguousarray(value).tobytes()):08x}"


def _checksums(metadata: dict[str, str] | None, names: set[str], path: Path) -> dict[str, str]:
    """The checksum of each tensor; nothing where the file carries none."""
    metadata = metadata or {}
    # A flipped bit in the key must not switch checking off: a table under another name is ours if it looks like it.
    ours = CHECKSUMS if CHECKSUMS in metadata else next((key for key in metadata if _sums(metadata[key])), None)
    if ours is None:
        return {}
    found = _sums(metadata[ours])
    require(
        found is not None and found.keys() == names, f"{path}: damaged: its checksums cannot be read; copy it again"
    )
    assert found is not None  # for the type checker
    return found


def _sums(text: str) -> dict[str, str] | None:
    """The table of name to checksum that a text is; None if it is none.  A damaged sum or two leave it one."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        return None
    right = sum(re.fullmatch("[0-9a-f]{8}", value) is not None for value in found.values())
    return found if 2 * right > len(found) else None


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """Tells of a damaged safetensors file in one line."""
    try:
        yield
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        reason = str(error).splitlines()[0][:160]
        raise InputError(f"{path}: damaged, or not safetensors ({reason}); download it again") from None
