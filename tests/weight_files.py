"""Models and files of weights, good and corrupted, that several test files use."""

import functools
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from albert_jax.config import InputError, read_json
from albert_jax.exchange import huggingface
from albert_jax.exchange.load import read
from albert_jax.exchange.weights import Weights
from albert_jax.model.albert import AlbertConfig
from albert_jax.model.heads import PRETRAINING, SENTENCE_CLASSES, Albert, param_shapes
from albert_jax.model.tree import leaves

from .conftest import USUAL_FUSION
from .golden.make_huggingface import inputs
from .small_models import SMALL, assert_same

GOLDEN = Path(__file__).parent / "golden"
HF = GOLDEN / "huggingface"


@functools.cache
def _jitted(model: Albert) -> Callable[..., Any]:
    return jax.jit(model.apply, compiler_options={"xla_backend_optimization_level": 0, **USUAL_FUSION})


def outputs(weights: Weights) -> dict[str, np.ndarray]:
    """The outputs for the inputs of the golden files."""
    return jax.device_get(_jitted(weights.model)({"params": weights.params}, **inputs()))


def random_weights(
    heads: tuple[str, ...] = PRETRAINING,
    labels: tuple[str, ...] = (),
    sentence_classes: tuple[str, ...] = SENTENCE_CLASSES,
    **changes: Any,
) -> Weights:
    """A small model whose parameters all differ."""
    model = Albert(AlbertConfig(**SMALL | changes), heads, labels, sentence_classes)
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(np.float32) * 0.3, param_shapes(model))
    return Weights(model, params)


def write(weights: Weights, folder: Path) -> Path:
    folder.mkdir()
    huggingface.write(weights, folder)
    return folder


def tar_of(folder: Path, target: Path, name: str = "albert_tiny") -> Path:
    with tarfile.open(target, "w:gz") as tar:
        tar.add(folder, name)
    return target


def rewrite(folder: Path, change: Callable[[dict[str, np.ndarray]], Any], **config: Any) -> Path:
    """A golden folder with changed tensors and config."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    stored = read_json(folder / "config.json")
    (folder / "config.json").write_text(json.dumps({k: v for k, v in (stored | config).items() if v is not None}))
    return folder


def into(name: str, content: bytes) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes(content)


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


QUERY = "albert.encoder.albert_layer_groups.0.albert_layers.0.attention.query.weight"


def evil_tar(path: Path) -> Path:
    with tarfile.open(path, "w") as tar:
        tar.addfile(tarfile.TarInfo("../../first.index"))
        tar.addfile(tarfile.TarInfo("/second.index"))
        for name, kind in (("albert_config.json", tarfile.SYMTYPE), ("config.json", tarfile.LNKTYPE)):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, "/etc/passwd"
            tar.addfile(link)
    return path


def mutated(data: bytes, flips: list[tuple[int, int]], length: int) -> bytes:
    changed = bytearray(data[: max(0, len(data) - length)])
    for place, bit in flips:
        if changed:
            changed[place % len(changed)] ^= 1 << bit
    return bytes(changed)


FUZZ = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


MUTATION = dict(
    flips=st.lists(st.tuples(st.integers(0, 2**31), st.integers(0, 7)), max_size=3),
    length=st.one_of(st.just(0), st.integers(0, 4000)),
)


def attempt(folder: Path) -> dict[str, Any] | None:
    """The parameters of a folder, or None if they are refused by an error of one line."""
    try:
        return read(folder).weights.params
    except InputError as error:
        if "\n" in str(error):
            raise
        return None


def same_or_refused(folder: Path, wanted: dict[str, Any]) -> None:
    """Check that a folder is refused by an error of one line, or gives exactly the parameters `wanted`."""
    params = attempt(folder)
    if params is not None:
        assert_same(params, wanted)


def shapes(params: dict[str, Any]) -> dict[tuple[str, ...], Any]:
    return {path: leaf.shape for path, leaf in leaves(params).items()}


@functools.cache
def _inner() -> dict[str, Any]:
    return read(GOLDEN / "tf1" / "inner").weights.params
