"""Google's checkpoints: golden files of TensorFlow, and one-line errors for corrupted ones.

`tests/golden/make_tf1.py` wrote the golden files; outputs agree to 1e-5.
"""

import gzip
import json
import shutil
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from albert_jax.config import InputError
from albert_jax.exchange import tensor_bundle, tf1
from albert_jax.exchange.load import read
from albert_jax.exchange.released_config import OPTIONAL, REQUIRED
from albert_jax.exchange.tensor_bundle import TensorBundle
from albert_jax.exchange.weights import named_tensors

from .small_models import assert_near, assert_same
from .weight_files import (
    FUZZ,
    GOLDEN,
    HF,
    MUTATION,
    _inner,
    evil_tar,
    into,
    mutated,
    outputs,
    random_weights,
    same_or_refused,
    tar_of,
    write,
)


@pytest.mark.parametrize(("case", "same"), [("inner", "inner"), ("hub", "shared")])
def test_golden_tensorflow(case: str, same: str) -> None:
    """Files that TensorFlow wrote give the outputs of transformers.  Fails if "gelu" is the erf form, or an optimizer's slot is read as a weight."""
    found = read(GOLDEN / "tf1" / case).weights
    wanted = load_file(HF / same / "outputs.safetensors")
    got = outputs(found)
    names = wanted.keys() & got.keys()
    assert names == (wanted.keys() if case == "inner" else {"last_hidden_state"})
    assert_near(f"tf1 {case}", got, {name: wanted[name] for name in names})
    notes = " ".join(found.notes)
    assert "gelu_new here" in notes
    assert ("has no predictions, sop_classifier" in notes) == (case == "hub")
    assert sum("of the optimizer" in line for line in found.skipped) == (7 if case == "inner" else 0)


def keras_name(name: str, layers: int) -> str:
    """The name of a LayerNorm in checkpoints of the code with Keras layers, given ours with the number of the layer."""
    if name.startswith("cls/"):
        return name.replace("LayerNorm", f"layer_normalization_{2 * layers + 1}")
    if "/layer_" not in name:
        return name.replace("LayerNorm", "layer_normalization")
    layer = int(name.split("/layer_")[1].split("/")[0])
    group = f"group_0_{layer}" if layer else "group_0"
    number = 2 * layer + (2 if "LayerNorm_1" in name else 1)
    name = name.replace("LayerNorm_1", "LayerNorm").replace("LayerNorm", f"layer_normalization_{number}")
    return name.replace(f"/layer_{layer}/", f"/{group}/layer_{layer}/")


class InMemory:
    """A TensorBundle without a file."""

    def __init__(self, tensors: dict[str, Any]) -> None:
        self.path, self.tensors = "model.ckpt", tensors
        self.shapes = {name: value.shape for name, value in tensors.items()}

    def read(self, name: str) -> Any:
        return self.tensors[name]


def test_layer_norms_of_keras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints in which each layer has its own LayerNorms, by names as in google-research/albert issue 241.

    Fails if the two LayerNorms of a layer were exchanged, or all layers read those of the first.
    """
    weights = random_weights(per_pass="norm", hidden_act="gelu_new")
    tensors = {mapped.tensor: value for mapped, value in named_tensors(weights, tf1.NAMES)}
    stored = {keras_name(name, 4): value for name, value in tensors.items()}
    assert "bert/encoder/transformer/group_0_3/layer_3/inner_group_0/layer_normalization_8/gamma" in stored
    assert "bert/encoder/transformer/group_0/layer_0/inner_group_0/layer_normalization_1/beta" in stored
    assert "bert/embeddings/layer_normalization/beta" in stored
    assert "cls/predictions/transform/layer_normalization_9/gamma" in stored
    stored["bert/encoder/transformer/group_0/layer_0/inner_group_0/layer_normalization_1/gamma/adam_m"] = np.zeros(16)
    config = {name: getattr(weights.model.config, name) for name in (*REQUIRED, *OPTIONAL)}
    (tmp_path / "albert_config.json").write_text(json.dumps(config))
    (tmp_path / "model.ckpt.index").write_bytes(b"")
    monkeypatch.setattr(tf1, "TensorBundle", lambda prefix: InMemory(stored))
    found = read(tmp_path).weights
    assert_same(found.params, weights.params)
    assert_same(outputs(found), outputs(weights))
    first = next(name for name in stored if "layer_3/" in name and name.endswith("normalization_7/gamma"))
    stored[first.replace("normalization_7", "normalization_9")] = stored.pop(first)
    with pytest.raises(InputError, match=r"1 missing: .*layer_3/inner_group_0/LayerNorm/gamma'; unknown: .*layer_norm"):
        read(tmp_path)
    assert "each layer has its own LayerNorms: per_pass norm" in found.notes
    exported = read(write(found, tmp_path / "exported")).weights
    assert_near("own LayerNorms, exported", outputs(exported), outputs(weights))


def tar_with(path: Path, *names: str, **pax: str) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.pax_headers = pax
            tar.addfile(info)
    return path


def damaged(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        target = Path(shutil.copytree(GOLDEN / "tf1" / "inner", folder / "tf1"))
        (target / name).write_bytes(change((target / name).read_bytes()))
        return target

    return make


def bomb(folder: Path) -> Path:
    """A small index whose entries share a long prefix, so that it would expand to very many bytes."""

    def varint(value: int) -> bytes:
        return bytes([value & 0x7F | 0x80, value >> 7]) if value > 0x7F else bytes([value])

    def block(entries: bytes) -> bytes:
        whole = entries + struct.pack("<II", 0, 1) + b"\0"
        return whole + struct.pack("<I", tensor_bundle._masked_crc(whole))

    name = b"x" * 4000
    entries = varint(0) + varint(4000) + varint(0) + name + (varint(3999) + varint(1) + varint(0) + b"y") * 600
    data = block(entries)
    handle = varint(0) + bytes([(len(data) - 5) & 0x7F | 0x80, (len(data) - 5) >> 7])
    top = block(varint(0) + varint(1) + varint(len(handle)) + b"z" + handle)
    footer = varint(0) + varint(0) + varint(len(data)) + varint(len(top) - 5)
    (folder / "albert_config.json").write_bytes((GOLDEN / "tf1" / "inner" / "albert_config.json").read_bytes())
    (folder / "m.index").write_bytes(data + top + footer.ljust(40, b"\0") + struct.pack("<Q", tensor_bundle.MAGIC))
    return folder


INDEX, DATA = "model.ckpt-best.index", "model.ckpt-best.data-00000-of-00001"


def without(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        target = Path(shutil.copytree(GOLDEN / "tf1" / "inner", folder / "tf1"))
        (target / name).unlink()
        return target

    return make


BAD_TF1: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a flipped bit": (
        damaged(DATA, lambda b: b[:5000] + bytes([b[5000] ^ 4]) + b[5001:]),
        "is corrupted .checksum differs.; copy it again",
    ),
    "data cut short": (damaged(DATA, lambda b: b[:-50]), "is incomplete: .* the file at"),
    "data is a pointer": (damaged(DATA, lambda b: b"version https://git-lfs.github.com/"), "a Git LFS pointer"),
    "index cut short": (damaged(INDEX, lambda b: b[:-9]), "index: corrupted, or no TensorFlow checkpoint index"),
    "index is a page": (damaged(INDEX, lambda b: b"<html>"), "a web page"),
    "index flipped": (damaged(INDEX, lambda b: b[:90] + b"\0\0" + b[92:]), "the checksum of a block differs"),
    "no data": (without(DATA), "no such file; a checkpoint is its .index and all of its .data files"),
    "no config": (without("albert_config.json"), "no albert_config.json;"),
    "other heads": (
        damaged("albert_config.json", lambda b: b.replace(b'"hidden_size": 16', b'"hidden_size": 32')),
        "shape",
    ),
    "evil tar": (
        lambda folder: evil_tar(folder / "x.tar"),
        r"x.tar: several checkpoints \(first.index, second.index\)",
    ),
    "tar without config": (
        lambda folder: tar_with(folder / "x.tgz", "m.index"),
        r"/x.tgz: no albert_config.json;",
    ),
    "one name twice": (lambda folder: tar_with(folder / "x.tgz", "a/m.index", "b/m.index"), "two files named m.index"),
    "tar that is a bomb": (
        lambda folder: tar_with(folder / "x.tgz", "m.index", comment="x" * 2**23),
        r"x.tgz: not a complete tar archive \(a header of 8,389",
    ),
    "index that is a bomb": (bomb, "corrupted, or no TensorFlow checkpoint index .a name of 4000 bytes"),
    "too long a name": (lambda folder: Path("the text, its source forgotten " * 20), "no such file or folder"),
    "no such user": (lambda folder: Path("~nobody-of-this-name/model"), "no such file or folder"),
    "no tar": (
        lambda folder: into("x.tar.gz", gzip.compress(b"no"))(folder) and folder / "x.tar.gz",
        "not a complete tar",
    ),
    "tar cut short": (
        lambda folder: (
            into("y.tgz", tar_of(GOLDEN / "tf1" / "inner", folder / "z.tgz").read_bytes()[:9000])(folder)
            and folder / "y.tgz"
        ),
        "not a complete tar archive|incomplete",
    ),
    "nothing there": (lambda folder: folder / "not here", "not here: no such file or folder"),
    "an empty folder": (lambda folder: folder, "no Hugging Face folder or run folder"),
}


@pytest.mark.parametrize("case", BAD_TF1)
def test_errors_of_a_checkpoint_are_one_line(case: str, tmp_path: Path) -> None:
    make, message = BAD_TF1[case]
    with pytest.raises(InputError, match=message) as caught:
        read(make(tmp_path))
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value) or case in ("too long a name", "no such user")


@FUZZ
@given(name=st.sampled_from([INDEX, DATA]), **MUTATION)
def test_fuzz_tensorflow(tmp_path_factory: pytest.TempPathFactory, name: str, flips: Any, length: int) -> None:
    """With flipped or missing bytes, there is an error of one line, or the values are unchanged: TensorFlow's files have checksums."""
    folder = GOLDEN / "tf1" / "inner"
    target = tmp_path_factory.mktemp("fuzz")
    for path in folder.iterdir():
        data = path.read_bytes()
        (target / path.name).write_bytes(mutated(data, flips, length) if path.name == name else data)
    same_or_refused(target, _inner())


def test_bundle_reads_dtypes() -> None:
    """int64, as the step has it, and bfloat16."""
    bundle = TensorBundle(GOLDEN / "tf1" / "inner" / "model.ckpt-best")
    assert bundle.read("global_step") == 7
    assert load_file(HF / "head_of_128" / "model.safetensors")["albert.pooler.bias"].dtype == ml_dtypes.bfloat16
