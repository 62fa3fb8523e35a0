"""A small Hub on 127.0.0.1 for uploads: repositories, commits, and the storage of large files."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_" + "Q" * 30
LARGE = (".safetensors", ".onnx", ".png")  # files that go to the storage of large files


class FakeHub(ThreadingHTTPServer):
    """The state of the Hub.

    Attributes:
        files: repository -> path -> bytes, as committed.
        stored: SHA-256 -> bytes of the storage of large files.
        puts: SHA-256 of each upload to it, in order.
        failing: how many uploads succeed before all others fail; None = all succeed.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.commits: list[dict[str, Any]] = []
        self.stored: dict[str, bytes] = {}
        self.puts: list[str] = []
        self.failing: int | None = None
        self.requests: list[str] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def sha(self) -> str:
        return hashlib.sha1(str(len(self.commits)).encode(), usedforsecurity=False).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body, path = self.rfile.read(int(self.headers["Content-Length"])), unquote(urlsplit(self.path).path)
        if not self._allowed():
            return
        if path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            self._validate(json.loads(body)["content"])
        elif found := re.fullmatch(r"/api/models/(.+)/preupload/main", path):
            self._answer({"files": [self._mode(found[1], file["path"]) for file in json.loads(body)["files"]]})
        elif found := re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", path):
            self._answer({"transfer": "basic", "objects": [self._object(o) for o in json.loads(body)["objects"]]})
        elif found := re.fullmatch(r"/api/models/(.+)/commit/main", path):
            self._commit(found[1], [json.loads(line) for line in body.splitlines()])
        else:
            self._answer({"error": "not found"}, 404)

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if not self._allowed():
            return
        info = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/main)?", path)
        if tree := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/main", path):
            kept = self.server.files[tree[1]].items()
            self._answer([{"type": "file", "path": name, "oid": "0" * 40, "size": len(data)} for name, data in kept])
        elif info and info[1] in self.server.files:
            siblings = [{"rfilename": name} for name in self.server.files[info[1]]]
            private = self.server.private[info[1]]
            self._answer({"id": info[1], "sha": self.server.sha(), "private": private, "siblings": siblings})
        else:
            self._answer({"error": "not found"}, 404)

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        oid = self.path.rpartition("/")[2]
        with self.server.lock:
            broken = self.server.failing is not None and len(self.server.puts) >= self.server.failing
            if not broken:
                assert hashlib.sha256(content).hexdigest() == oid
                self.server.stored[oid] = content
                self.server.puts.append(oid)
        self._answer({"error": f"no space, {TOKEN}"} if broken else {}, 400 if broken else 200)

    def _allowed(self) -> bool:
        self.server.requests.append(self.path)
        allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if not allowed:
            self._answer({"error": f"wrong token {self.headers.get('Authorization')}"}, 401)
        return allowed

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.server.files:
            self._answer({"error": "exists", "url": f"{self.server.url}/{name}"}, 409)
            return
        self.server.files[name] = {".gitattributes": b"*.safetensors filter=lfs\n"}
        self.server.private[name] = asked["visibility"] == "private"
        self._answer({"url": f"{self.server.url}/{name}"})

    def _validate(self, content: str) -> None:
        """Check a card as the Hub does: a model-index has names, tasks, data sets with a type, and metrics."""
        found, wrong = yaml.safe_load(content.split("---\n")[1]), []
        for model in found.get("model-index", []):
            for result in model["results"]:
                wrong += [key for key in ("task", "dataset", "metrics") if key not in result]
                wrong += [key for key in ("type", "name") if not result["dataset"].get(key)]
                wrong += [m for m in result["metrics"] if not m.get("type") or not isinstance(m["value"], int | float)]
        errors = [{"message": f"model-index lacks {what}"} for what in wrong]
        self._answer({"errors": errors, "warnings": []}, 400 if errors else 200)

    def _mode(self, repo: str, path: str) -> dict[str, Any]:
        large, old = path.endswith(LARGE), self.server.files[repo].get(path)
        git = b"" if old is None else b"blob %d\0" % len(old) + old
        oid = hashlib.sha256(old or b"") if large else hashlib.sha1(git, usedforsecurity=False)
        known = {"oid": oid.hexdigest()} if old is not None else {}
        return {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, **known}

    def _object(self, asked: dict[str, Any]) -> dict[str, Any]:
        oid = asked["oid"]
        actions = {"actions": {"upload": {"href": f"{self.server.url}/store/{oid}"}}}
        return {"oid": oid, "size": asked["size"], **({} if oid in self.server.stored else actions)}

    def _commit(self, repo: str, lines: list[dict[str, Any]]) -> None:
        files = dict(self.server.files[repo])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.stored[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        self.server.files[repo] = files
        self.server.commits.append(lines[0]["value"])
        self._answer(
            {"commitUrl": f"{self.server.url}/{repo}/commit/{self.server.sha()}", "commitOid": self.server.sha()}
        )

    def _answer(self, value: Any, code: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None:
        """Print nothing."""


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    server = FakeHub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
