"""Read and write model.safetensors, as one file or in shards; read pytorch_model.bin if that is allowed.

Decides which files are trusted and how corruption is detected; knows no tensor names.

The safetensors format has no checksums, so we add a CRC-32C per tensor to the metadata of our files.  Other readers ignore it.
"""

import contextlib
import importlib.util
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from albert_jax.config import InputError, first_line, read_json
from albert_jax.exchange.archives import check_weights, is_pickle
from albert_jax.exchange.weights import Shape, Tensors

SHARD_BYTES = 2 * 2**30
"""A larger model is written in several files, so that writing needs little memory beyond the model."""
CHECKSUMS = "crc32c"
"""Key of a file's metadata that holds a JSON table: tensor name -> CRC-32C in hexadecimal."""


def has_weights(folder: Path) -> bool:
    """Whether a folder has weights that `open_weights` opens."""
    names = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
    return any((folder / name).exists() for name in names)


def open_weights(folder: Path, allow_pickle: bool) -> Tensors:
    """Open the weights of a Hugging Face folder.

    Raises:
      InputError: a file is missing, corrupted or not weights, or it is a pickle and `allow_pickle` is false.
    """
    if any((folder / name).exists() for name in ("model.safetensors", "model.safetensors.index.json")):
        return _Safetensors(folder)
    pickled = folder / "pytorch_model.bin"
    if not pickled.exists():
        names = ", ".join(sorted(path.name for path in folder.iterdir())[:8])
        raise InputError(f"{folder}: no model.safetensors; the folder holds {names}")
    check_weights(pickled)
    if not allow_pickle:
        raise InputError(
            f"{pickled}: refusing to load a pickle, which can run code; get model.safetensors, or convert it if you trust its "
            "source: 'albert-jax convert SOURCE TARGET --allow-pickle'"
        )
    return _Pickled(pickled)


def save(tensors: Sequence[tuple[str, np.ndarray]], folder: Path) -> None:
    """Write model.safetensors, or several files of up to `SHARD_BYTES` and the index that transformers reads."""
    shards: list[list[tuple[str, np.ndarray]]] = [[]]
    size = 0
    for name, value in tensors:
        if size and size + value.nbytes > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append((name, value))
        size += value.nbytes
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        contiguous = {name: np.ascontiguousarray(value) for name, value in shard}
        checksums = json.dumps({name: _checksum(value) for name, value in contiguous.items()})
        (folder / file).touch()
        mode = (folder / file).stat().st_mode
        save_file(contiguous, folder / file, metadata={"format": "pt", CHECKSUMS: checksums})
        _sort_metadata(folder / file)
        (folder / file).chmod(mode)  # safetensors makes it readable for the owner only
        weight_map |= dict.fromkeys(contiguous, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(value.nbytes for _, value in tensors)}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _sort_metadata(path: Path) -> None:
    """Sort the metadata, which safetensors writes in random order, so that equal models are equal files."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= size:  # otherwise safetensors writes JSON in a different way, and the file stays as it is
            file.seek(8)
            file.write(text.ljust(size))


class _Safetensors:
    """The tensors of one model.safetensors, or of the shards that an index names."""

    def __init__(self, folder: Path) -> None:
        single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
        weight_map = {} if single.exists() else _weight_map(index)
        paths = [folder / name for name in sorted(set(weight_map.values()))] or [single]
        self.path = str(index if weight_map else single)
        self._files: dict[str, Any] = {}
        self._checksums: dict[str, str] = {}
        for path in paths:
            check_weights(path)
            if is_pickle(path):
                raise InputError(f"{path} is a pickle with the name of a safetensors file; refused")
            with _corruption_reported(path):
                file = safe_open(str(path), framework="numpy")
                names = sorted(file.keys())
                self._checksums |= _checksums(file.metadata() or {}, names, path)
            listed = sorted(name for name, shard in weight_map.items() if shard == path.name) if weight_map else names
            if listed != names:
                differing = sorted(set(listed) ^ set(names))[:4]
                raise InputError(f"{self.path}: it and {path.name} list different tensors: {differing}")
            self._files |= dict.fromkeys(names, file)
        self.shapes: Mapping[str, Shape] = {
            name: tuple(file.get_slice(name).get_shape()) for name, file in self._files.items()
        }

    def read(self, name: str) -> np.ndarray:
        with _corruption_reported(Path(self.path)):
            value = self._files[name].get_tensor(name)
        if name in self._checksums and _checksum(value) != self._checksums[name]:
            raise InputError(f"{self.path}: {name} is corrupted (checksum differs); copy the file again")
        return value


def _weight_map(index: Path) -> dict[str, str]:
    """The table of tensor -> file in an index; files must be in the folder of the index."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index}: no table 'weight_map'")
    for name in weight_map.values():
        if not isinstance(name, str) or Path(name).name != name or name in ("", ".", ".."):
            raise InputError(f"{index}: {name!r} is not the name of a file in this folder; refused")
    return weight_map


class _Pickled:
    """The tensors of a pytorch_model.bin; torch loads it with `weights_only`, so no other objects are created."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        if importlib.util.find_spec("torch") is None:
            raise InputError(f"{path}: reading a pickle needs torch; install it")
        import torch

        try:
            stored = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise InputError(f"{path}: torch cannot load it ({first_line(error)[:120]})") from None
        tables = list(_tables(stored))
        if len(tables) != 1:
            problem = (
                "no table of an ALBERT's tensors" if not tables else f"{len(tables)} tables of an ALBERT's tensors"
            )
            raise InputError(f"{path}: {problem}; save model.state_dict() and nothing else")
        self._stored = {
            name: value.float().numpy()
            for name, value in tables[0].items()
            if isinstance(name, str) and isinstance(value, torch.Tensor)
        }
        self.shapes: Mapping[str, Shape] = {name: value.shape for name, value in self._stored.items()}

    def read(self, name: str) -> np.ndarray:
        return self._stored[name]


def _tables(stored: Any) -> Iterator[dict[Any, Any]]:
    """The tables in nested tables that hold word embeddings, such as that in {"model": ..., "optimizer": ...}."""
    if isinstance(stored, dict):
        if any(isinstance(name, str) and name.endswith("word_embeddings.weight") for name in stored):
            yield stored
        else:
            for value in stored.values():
                yield from _tables(value)


def _checksum(value: np.ndarray) -> str:
    return f"{google_crc32c.value(np.ascontiguousarray(value).tobytes()):08x}"


def _checksums(metadata: Mapping[str, str], names: list[str], path: Path) -> dict[str, str]:
    """The checksum of each tensor; empty if the file has none."""
    if CHECKSUMS not in metadata:
        return {}
    try:
        checksums = json.loads(metadata[CHECKSUMS])
    except (ValueError, RecursionError):
        checksums = None
    if not isinstance(checksums, dict) or sorted(checksums) != names:
        raise InputError(f"{path}: corrupted: its checksums cannot be read; copy the file again")
    return checksums


@contextlib.contextmanager
def _corruption_reported(path: Path) -> Iterator[None]:
    """Report errors of the safetensors library in one line."""
    try:
        yield
    except InputError:
        raise
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        reason = first_line(error)[:160]
        raise InputError(f"{path}: corrupted, or not safetensors ({reason}); download it again") from None
