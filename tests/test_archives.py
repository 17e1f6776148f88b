"""Tar archives of checkpoints: which members are unpacked, and where."""

import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from albert_jax.exchange import archives
from albert_jax.exchange.load import read

from .small_models import assert_same
from .weight_files import GOLDEN, _inner, evil_tar, tar_of


def test_tar_prefix_and_folder_are_the_same(tmp_path: Path) -> None:
    folder = GOLDEN / "tf1" / "inner"
    wanted = read(folder).weights.params
    for source in (tar_of(folder, tmp_path / "a.tar.gz"), folder / "model.ckpt-best", folder / "model.ckpt-best.index"):
        assert_same(read(source).weights.params, wanted)


def test_unpacking_stays_inside_the_folder(tmp_path: Path) -> None:
    """Only the two regular files are unpacked, under the last parts of their names.  Fails if a path or a link is followed."""
    target = tmp_path / "a" / "b" / "target"
    target.mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    archives.unpack(evil_tar(tmp_path / "x.tar"), target)
    assert sorted({*tmp_path.rglob("*")} - {*before, tmp_path / "x.tar"}) == [
        target / "first.index",
        target / "second.index",
    ]
    assert not Path("/second.index").exists()


@pytest.mark.parametrize("name", ["x.tar", "x.gz", "x.bz2", "x.xz"])
def test_unpacked_files_are_complete(name: str, tmp_path: Path) -> None:
    """The file is larger than the limit for headers, and than the chunks that are copied."""
    (tmp_path / "data").write_bytes(np.random.default_rng(0).bytes(3 * 2**20 + 1))
    with tarfile.open(tmp_path / name, f"w:{name[2:].removeprefix('tar')}") as tar:
        tar.add(tmp_path / "data", "folder/data")
    (tmp_path / "out").mkdir()
    archives.unpack(tmp_path / name, tmp_path / "out")
    assert (tmp_path / "out" / "data").read_bytes() == (tmp_path / "data").read_bytes()


def test_tar_written_by_macos(vocabulary: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(GOLDEN / "tf1" / "inner", tmp_path / "tf1"))
    shutil.copy(vocabulary, folder / "30k-clean.model")
    for name in ("._model.ckpt-best.index", "._30k-clean.model"):
        (folder / name).write_bytes(b"metadata of macOS")
    for source in (tar_of(folder, tmp_path / "a.tgz"), folder):
        found = read(source)
        assert_same(found.weights.params, _inner())
        assert found.tokenizer is not None
