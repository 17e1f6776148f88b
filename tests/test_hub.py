"""Models by their id from the hub: the real client talks to a server of the tests on this machine."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from .conftest import ROOT

pytest.importorskip("huggingface_hub", reason="needs the extra 'hub'")

GOLDEN = ROOT / "tests" / "golden" / "huggingface" / "shared"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
MODEL = "some/albert"


class Hub(http.server.BaseHTTPRequestHandler):
    """The part of the hub's interface that fetching a model needs; it can serve corrupted weights or close the connection."""

    files: dict[str, bytes]
    damaged = False
    cut = False

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith(f"/api/models/{MODEL}/revision/"):
            known = path.rsplit("/", 1)[1] in ("main", COMMIT)
            self.answer(json.dumps({"id": MODEL, "sha": COMMIT}).encode() if known else None, "RevisionNotFound")
        elif path.startswith(f"/api/models/{MODEL}/tree/"):
            self.answer(json.dumps([self.entry(name) for name in self.files]).encode())
        elif path.startswith(f"/{MODEL}/resolve/{COMMIT}/"):
            self.serve(path.rsplit("/", 1)[1])
        else:
            self.answer(None, "RepoNotFound")

    def entry(self, name: str) -> dict[str, object]:
        data = self.files[name]
        entry: dict[str, object] = {"type": "file", "path": name, "size": len(data), "oid": "0" * 40}
        if name.endswith(".safetensors"):
            entry["lfs"] = {"oid": self.hash(name), "size": len(data), "pointerSize": 130}
        return entry

    def hash(self, name: str) -> str:
        return hashlib.sha256(self.files[name]).hexdigest()

    def serve(self, name: str) -> None:
        data = self.files[name]
        if self.damaged and name.endswith(".safetensors"):
            data = data[:-1] + bytes([data[-1] ^ 1])
        if self.cut and name.endswith(".safetensors") and self.command == "GET":
            self.close_connection = True
            return
        large = name.endswith(".safetensors")
        etag = self.hash(name) if large else hashlib.sha1(data).hexdigest()
        self.answer(data, etag=etag, large=large)

    def answer(self, data: bytes | None, code: str = "", etag: str = "", large: bool = False) -> None:
        self.send_response(404 if data is None else 200)
        if data is None:
            self.send_header("X-Error-Code", code)
        if etag:
            self.send_header("X-Linked-Etag" if large else "ETag", f'"{etag}"')
            self.send_header("X-Linked-Size", str(len(data or b"")))
            self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(data or b"")))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data or b"")


@pytest.fixture
def hub() -> Iterator[str]:
    Hub.files = {path.name: path.read_bytes() for path in GOLDEN.iterdir() if path.name != "outputs.safetensors"}
    Hub.files["run.py"] = b"raise SystemExit('never fetched')"
    Hub.files["fp16/model.safetensors"] = Hub.files["model.safetensors"]
    Hub.files["optimizer.safetensors"] = b"never fetched"
    Hub.damaged = Hub.cut = False
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def convert(source: str, target: Path, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`albert-jax convert` in a child process: the client reads its settings as it is imported."""
    settings = {"HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"} | environment
    words = [sys.executable, "-m", "albert_jax", "convert", source, str(target)]
    return subprocess.run(words, env=os.environ | settings, capture_output=True, text=True, timeout=300, check=False)


def test_fetched_once_and_pinned(hub: str, tmp_path: Path) -> None:
    """By name, by commit, and again without network; fails if anything but weights, configs and vocabulary is fetched."""
    home = tmp_path / "home"
    first = convert(MODEL, tmp_path / "one", home, HF_ENDPOINT=hub)
    assert first.returncode == 0, first.stderr
    assert f"note: revision {COMMIT}; '{MODEL}@{COMMIT}' always means this one" in first.stdout
    fetched = {path.name for path in home.glob("hub/models--some--albert/snapshots/*/*")}
    assert fetched == {"config.json", "model.safetensors"}
    pinned = convert(f"{MODEL}@{COMMIT}", tmp_path / "two", home, HF_ENDPOINT=hub)
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
    Hub.files = {name: Hub.files.get(name, b"x") for name in (*files, "pytorch_model.bin")}
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
