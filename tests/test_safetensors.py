"""Files of weights: safetensors in one file and in shards, their checksums, and pickles."""

import functools
import importlib.util
import json
import shutil
import sys
import tempfile
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from safetensors.numpy import load_file, save_file

from albert_jax.config import InputError
from albert_jax.exchange import huggingface, safetensors
from albert_jax.exchange.load import read

from .small_models import assert_same
from .weight_files import (
    FUZZ,
    HF,
    MUTATION,
    QUERY,
    attempt,
    mutated,
    pickled,
    random_weights,
    same_or_refused,
    shapes,
    write,
)


def test_round_trip_in_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files have the form that `transformers` writes."""
    monkeypatch.setattr(safetensors, "SHARD_BYTES", 5000)
    weights = random_weights(sharing="none")
    folder = write(weights, tmp_path / "hf")
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 2
    assert not (folder / "model.safetensors").exists()
    assert_same(read(folder).weights.params, weights.params)


def test_foreign_metadata_is_ignored(golden: Path) -> None:
    """Such as that of torch's distributed checkpoints.  Fails if any table with names of tensors is taken for our checksums."""
    wanted = read(golden).weights.params
    path = golden / "model.safetensors"
    others = {QUERY: {"saved_offsets": [0, 0]}}, {QUERY: "float32"}
    for table in others:
        save_file(load_file(path), path, metadata={"format": "pt", "DCP_SHARDING_INFO": json.dumps(table)})
        assert_same(read(golden).weights.params, wanted)


@pytest.mark.parametrize("table", ["{", "[]", '{"extra": "00000000"}', '"' * 9000])
def test_unreadable_checksums_are_refused(table: str, tmp_path: Path) -> None:
    """Fails if a flipped bit in the table of checksums disables their verification."""
    folder = write(random_weights(), tmp_path / "hf")
    path = folder / "model.safetensors"
    save_file(load_file(path), path, metadata={"format": "pt", safetensors.CHECKSUMS: table})
    with pytest.raises(InputError, match="corrupted: its checksums cannot be read"):
        read(folder)


class FakeTensor:
    """Enough of torch.Tensor for reading weights."""

    def __init__(self, value: np.ndarray) -> None:
        self.value = value

    def float(self) -> "FakeTensor":
        return FakeTensor(self.value.astype(np.float32))

    def numpy(self) -> np.ndarray:
        return self.value


@pytest.fixture
def fake_torch(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module `torch` in which a test sets `load`; the real one is tested by `pytest -m parity`."""
    module = ModuleType("torch")
    module.__spec__ = ModuleSpec("torch", None)
    vars(module)["Tensor"] = FakeTensor
    monkeypatch.setitem(sys.modules, "torch", module)
    return module


def test_pickles_are_read_by_torch_with_tensors_only(golden: Path, fake_torch: ModuleType) -> None:
    """Fails if torch is called without weights_only, or its tensors are not converted to float32."""
    expected = read(golden).weights.params
    stored = {
        name: FakeTensor(value.astype(np.float64)) for name, value in load_file(golden / "model.safetensors").items()
    }
    calls: list[Any] = []

    def load(path: Path, **options: Any) -> Any:
        calls.append((path, options))
        return stored

    vars(fake_torch)["load"] = load
    pickled(golden)
    assert_same(read(golden, allow_pickle=True).weights.params, expected)
    assert calls == [(golden / "pytorch_model.bin", {"map_location": "cpu", "weights_only": True})]


@pytest.mark.parametrize(
    "content", [[1, 2], {"epoch": 3}, {0: FakeTensor(np.ones(2))}], ids=["list", "numbers", "number as key"]
)
def test_pickles_of_other_objects_are_refused(content: Any, golden: Path, fake_torch: ModuleType) -> None:
    vars(fake_torch)["load"] = lambda path, **options: content
    pickled(golden)
    with pytest.raises(
        InputError, match=r"no table of an ALBERT's tensors; save model.state_dict\(\) and nothing else"
    ):
        read(golden, allow_pickle=True)


def test_errors_of_torch_are_one_line(golden: Path, fake_torch: ModuleType) -> None:
    def load(path: Path, **options: Any) -> Any:
        raise ValueError("Unsupported class os.system\nmore lines")

    vars(fake_torch)["load"] = load
    pickled(golden)
    with pytest.raises(InputError, match=r"pytorch_model.bin: torch cannot load it \(Unsupported class os.system\)$"):
        read(golden, allow_pickle=True)


def test_a_pickle_without_torch(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else find_spec(name))
    pickled(golden)
    with pytest.raises(InputError, match="reading a pickle needs torch"):
        read(golden, allow_pickle=True)


@functools.cache
def _exported() -> tuple[bytes, str, dict[str, Any]]:
    """The model.safetensors and config.json that we write for a model, and its parameters."""
    weights = random_weights()
    with tempfile.TemporaryDirectory() as folder:
        huggingface.write(weights, Path(folder))
        return Path(folder, "model.safetensors").read_bytes(), Path(folder, "config.json").read_text(), weights.params


@FUZZ
@given(**MUTATION)
def test_fuzz_our_export(tmp_path_factory: pytest.TempPathFactory, flips: Any, length: int) -> None:
    """The files that we write have checksums in their metadata; the format has none."""
    data, config, params = _exported()
    target = tmp_path_factory.mktemp("fuzz")
    (target / "config.json").write_text(config)
    (target / "model.safetensors").write_bytes(mutated(data, flips, length))
    same_or_refused(target, params)


@FUZZ
@given(**MUTATION)
def test_fuzz_foreign_safetensors(tmp_path_factory: pytest.TempPathFactory, flips: Any, length: int) -> None:
    """Without checksums a changed value cannot be detected; an exception or a changed shape can."""
    target = tmp_path_factory.mktemp("fuzz")
    shutil.copy(HF / "shared" / "config.json", target)
    (target / "model.safetensors").write_bytes(
        mutated((HF / "shared" / "model.safetensors").read_bytes(), flips, length)
    )
    found = attempt(target)
    assert found is None or shapes(found) == shapes(read(HF / "shared").weights.params)


def test_equal_models_are_equal_files(tmp_path: Path) -> None:
    """Fails if the metadata has a random order, as the library writes it."""
    contents = set()
    for _ in range(8):
        safetensors.save([("é", np.ones((2, 3), np.float32)), ("b", np.zeros(4, np.float32))], tmp_path)
        contents.add((tmp_path / "model.safetensors").read_bytes())
    assert len(contents) == 1
    assert np.array_equal(load_file(tmp_path / "model.safetensors")["é"], np.ones((2, 3)))
