"""Models by their id from the hub: the real client talks to a server of the tests on this machine."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from .conftest import ROOT

pytest.importorskip("huggingface_hub", reason="needs the extra 'hub'")

from .hub_server import Hub, client_settings, serving

GOLDEN = ROOT / "tests" / "golden" / "huggingface" / "shared"
MODEL = "some/albert"


@pytest.fixture
def hub() -> Iterator[str]:
    files = {path.name: path.read_bytes() for path in GOLDEN.iterdir() if path.name != "outputs.safetensors"}
    files |= {"run.py": b"raise SystemExit('never fetched')", "optimizer.safetensors": b"never fetched"}
    files["fp16/model.safetensors"] = files["model.safetensors"]
    Hub.reset(MODEL, files)
    with serving() as address:
        yield address


def convert(source: str, target: Path, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`albert-jax convert` in a child process: the client reads its settings as it is imported."""
    settings = client_settings(str(home)) | environment
    words = [sys.executable, "-m", "albert_jax", "convert", source, str(target)]
    return subprocess.run(words, env=os.environ | settings, capture_output=True, text=True, timeout=300, check=False)


def test_fetched_once_and_pinned(hub: str, tmp_path: Path) -> None:
    """By name, by commit, and again without network; fails if anything but weights, configs and vocabulary is fetched."""
    home, commit = tmp_path / "home", Hub.commit()
    first = convert(MODEL, tmp_path / "one", home, HF_ENDPOINT=hub)
    assert first.returncode == 0, first.stderr
    assert f"note: revision {commit}; '{MODEL}@{commit}' always means this one" in first.stdout
    fetched = {path.name for path in home.glob("hub/models--some--albert/snapshots/*/*")}
    assert fetched == {"config.json", "model.safetensors"}
    pinned = convert(f"{MODEL}@{commit}", tmp_path / "two", home, HF_ENDPOINT=hub)
    assert pinned.returncode == 0, pinned.stderr
    offline = convert(MODEL, tmp_path / "three", home, HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stderr
    wanted = load_file(GOLDEN / "model.safetensors")
    for name in ("one", "two", "three"):
        found = load_file(tmp_path / name / "model.safetensors")
        assert all(np.array_equal(found[key], value) for key, value in wanted.items())


@pytest.mark.parametrize("files", [(), ("config.json",), ("tf_model.h5", "run.py")], ids=str)
def test_a_repository_without_weights(hub: str, tmp_path: Path, files: tuple[str, ...]) -> None:
    """The error names --allow-pickle; a pickle is not fetched without it."""
    Hub.branches["main"] = {name: Hub.branches["main"].get(name, b"x") for name in (*files, "pytorch_model.bin")}
    found = convert(MODEL, tmp_path / "out", tmp_path / "home", HF_ENDPOINT=hub)
    assert found.returncode == 2
    assert "no model.safetensors on the hub" in found.stderr
    assert "--allow-pickle" in found.stderr
    assert "Traceback" not in found.stderr


def test_a_connection_that_is_cut(hub: str, tmp_path: Path) -> None:
    Hub.cut = True
    found = convert(MODEL, tmp_path / "out", tmp_path / "home", HF_ENDPOINT=hub)
    assert found.returncode == 2
    assert "albert-jax: error: some/albert: no such folder, and the hub cannot provide it" in found.stderr
    assert "Traceback" not in found.stderr


@pytest.mark.parametrize(
    ("source", "damaged", "message"),
    [
        (MODEL, True, "SHA-256 is "),
        ("some/other", False, "some/other: no such folder, and the hub cannot provide it"),
        (f"{MODEL}@v9", False, "the hub cannot provide it"),
        ("nobody's model", False, "nobody's model: no such file or folder"),
    ],
)
def test_errors_are_one_line(hub: str, tmp_path: Path, source: str, damaged: bool, message: str) -> None:
    Hub.damaged = damaged
    found = convert(source, tmp_path / "out", tmp_path / "home", HF_ENDPOINT=hub)
    lines = [line for line in found.stderr.splitlines() if "albert-jax: error: " in line]
    assert found.returncode == 2
    assert len(lines) == 1
    assert message in lines[0]
    assert "Traceback" not in found.stderr
    assert not (tmp_path / "out").exists()
