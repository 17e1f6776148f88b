"""A server on this machine with the part of the Hugging Face hub's interface that fetching and pushing a model needs.

The real client talks to it.  It can serve corrupted weights, close the connection, and refuse a commit.
"""

import base64
import contextlib
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

import yaml

TOKEN = "hf_secret"
"""The token with which a client may push."""
LARGE = (".safetensors", "spiece.model")
"""Ends of the names of files that are uploaded through LFS."""


def git_hash(data: bytes) -> str:
    """The hash by which Git names a file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Hub(http.server.BaseHTTPRequestHandler):
    """One repository.  Its state is in the class, because each request has its own instance."""

    model = ""
    """The name of the repository; empty: there is none yet."""
    branches: dict[str, dict[str, bytes]]
    """Branch -> name of a file -> content."""
    commits: list[tuple[str, str, list[str]]]
    """Branch, message and changed files of each commit."""
    uploads: dict[str, bytes]
    """SHA-256 -> a large file."""
    private: Any
    damaged = False
    cut = False
    refused_branch = ""

    @classmethod
    def reset(cls, model: str = "", files: dict[str, bytes] | None = None) -> None:
        """Start with one repository, or none."""
        cls.model, cls.branches, cls.commits, cls.uploads = model, {"main": files or {}}, [], {}
        cls.damaged, cls.cut, cls.refused_branch, cls.private = False, False, "", None

    @classmethod
    def commit(cls, branch: str = "main") -> str:
        """The name of a branch's last commit."""
        contents = {name: git_hash(data) for name, data in cls.branches[branch].items()}
        return git_hash(json.dumps([branch, contents], sort_keys=True).encode())

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        if not self.model or not path.startswith((f"/api/models/{self.model}/", f"/{self.model}/resolve/")):
            return self.answer(None, "RepoNotFound")
        revision, _, name = path.split(f"{self.model}/", 1)[1].partition("/")[2].partition("/")
        branch = next((one for one in self.branches if revision in (one, self.commit(one))), None)
        if branch is None:
            self.answer(None, "RevisionNotFound")
        elif path.startswith(f"/api/models/{self.model}/revision/"):
            self.answer(json.dumps({"id": self.model, "sha": self.commit(branch)}).encode())
        elif path.startswith(f"/api/models/{self.model}/tree/"):
            files = self.branches[branch]
            self.answer(json.dumps([self.entry(name, data) for name, data in files.items()]).encode())
        else:
            self.serve(name, branch)

    def do_PUT(self) -> None:
        data = self.body()
        assert self.path == f"/upload/{hashlib.sha256(data).hexdigest()}"
        self.uploads[self.path.rsplit("/", 1)[1]] = data
        self.answer(b"")

    def do_POST(self) -> None:
        data, path = self.body(), unquote(self.path.partition("?")[0])
        if path == "/api/validate-yaml":
            return self.validate(json.loads(data)["content"])
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            return self.answer(b'{"error": "Invalid username or password."}', status=401)
        if path == "/api/repos/create":
            request = json.loads(data)
            exists, type(self).model = bool(self.model), f"{request['organization'] or 'user'}/{request['name']}"
            type(self).private = self.private or request.get("visibility")
            address = f"http://{self.headers['Host']}/{self.model}"
            return self.answer(json.dumps({"url": address}).encode(), status=409 if exists else 200)
        if path == f"/{self.model}.git/info/lfs/objects/batch":
            objects = [self.instructions(one) for one in json.loads(data)["objects"]]
            return self.answer(json.dumps({"transfer": "basic", "objects": objects}).encode())
        action, _, branch = path.removeprefix(f"/api/models/{self.model}/").partition("/")
        if action == "branch":
            exists = branch in self.branches
            self.branches.setdefault(branch, dict(self.branches["main"]))
            return self.answer(b"{}", status=409 if exists else 200)
        files = self.branches[branch]
        if action == "preupload":
            answers = [self.upload_mode(one["path"], files) for one in json.loads(data)["files"]]
            return self.answer(json.dumps({"files": answers}).encode())
        assert action == "commit", path
        if branch == self.refused_branch:
            return self.answer(b'{"error": "Storage is full."}', status=403)
        header, *changes = [json.loads(line) for line in data.splitlines()]
        for change in changes:
            value = change["value"]
            content = self.uploads[value["oid"]] if change["key"] == "lfsFile" else base64.b64decode(value["content"])
            files[value["path"]] = content
        self.commits.append((branch, header["value"]["summary"], [one["value"]["path"] for one in changes]))
        address = f"http://{self.headers['Host']}/{self.model}/commit/{self.commit(branch)}"
        self.answer(json.dumps({"success": True, "commitOid": self.commit(branch), "commitUrl": address}).encode())

    def validate(self, card: str) -> None:
        """As the hub: the metadata is YAML, and has a known license."""
        metadata = yaml.safe_load(card.split("---\n")[1])
        errors = (
            [] if metadata.get("license") in ("apache-2.0", "mit") else [{"message": '"license" must be one of ...'}]
        )
        self.answer(json.dumps({"errors": errors, "warnings": []}).encode(), status=400 if errors else 200)

    def upload_mode(self, name: str, files: dict[str, bytes]) -> dict[str, Any]:
        large = name.endswith(LARGE)
        oid = self.hash(files[name]) if large and name in files else git_hash(files[name]) if name in files else None
        return {"path": name, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid}

    def instructions(self, one: dict[str, Any]) -> dict[str, Any]:
        actions = {"upload": {"href": f"http://{self.headers['Host']}/upload/{one['oid']}"}}
        return one | ({} if one["oid"] in self.uploads else {"actions": actions})

    def entry(self, name: str, data: bytes) -> dict[str, object]:
        entry: dict[str, object] = {"type": "file", "path": name, "size": len(data), "oid": "0" * 40}
        if name.endswith(".safetensors"):
            entry["lfs"] = {"oid": self.hash(data), "size": len(data), "pointerSize": 130}
        return entry

    def hash(self, data: bytes) -> str:
        return hashlib.sha256(data).hexdigest()

    def serve(self, name: str, branch: str) -> None:
        data, large = self.branches[branch][name], name.endswith(".safetensors")
        etag = self.hash(data) if large else hashlib.sha1(data).hexdigest()
        if self.damaged and large:
            data = data[:-1] + bytes([data[-1] ^ 1])
        if self.cut and large and self.command == "GET":
            self.close_connection = True
            return
        self.answer(data, etag=etag, large=large, commit=self.commit(branch))

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"] or 0))

    def answer(
        self,
        data: bytes | None,
        code: str = "",
        etag: str = "",
        large: bool = False,
        commit: str = "",
        status: int = 200,
    ) -> None:
        self.send_response(404 if data is None else status)
        if data is None:
            self.send_header("X-Error-Code", code)
        if status >= 400 and data:
            self.send_header("X-Error-Message", str(json.loads(data).get("error")))
        if etag:
            self.send_header("X-Linked-Etag" if large else "ETag", f'"{etag}"')
            self.send_header("X-Linked-Size", str(len(data or b"")))
            self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", str(len(data or b"")))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data or b"")


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """Run the server; yields its address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def client_settings(home: str, address: str = "") -> dict[str, str]:
    """The environment of a child process whose client uses the server.  The client reads it as it is imported."""
    settings = {"HF_HOME": home, "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": ""}
    return settings | ({"HF_ENDPOINT": address} if address else {})
