"""A data set of the Hub: its files in a folder, in the cache of huggingface_hub, and behind a local endpoint."""

from __future__ import annotations

import functools
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

NAME, COMMIT = "me/reviews", "a1" * 20
CONFIGS = """---
license: mit
configs:
- config_name: long
  data_files:
  - split: train
    path: long/train-*
  - split: unlabeled
    path: [long/extra-0.parquet, long/extra-1.parquet]
- config_name: short
  default: true
  data_dir: s
  data_files: {train: "*.parquet"}
---
# Reviews
"""


def rows(name: str, count: int) -> list[dict[str, Any]]:
    return [{"text": f"{name} {i} was good", "label": i % 2} for i in range(count)]


def write(folder: Path, files: dict[str, int], card: str = "") -> Path:
    """Write Parquet or JSON lines files of so many rows, and a README.md."""
    for name, count in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(rows(name, count)), path)
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows(name, count)))
    if card:
        (folder / "README.md").write_text(card)
    return folder


def cached(cache: Path, commit: str = COMMIT, branch: str = "main") -> Path:
    """Return the folder of a snapshot in a cache, to which the branch points."""
    repository = cache / f"datasets--{NAME.replace('/', '--')}"
    reference = repository / "refs" / branch
    reference.parent.mkdir(parents=True, exist_ok=True)
    reference.write_text(commit)
    return repository / "snapshots" / commit


class _Hub(BaseHTTPRequestHandler):
    """The routes of the Hub that read a data set. Each branch is a folder of its name below `root`."""

    root: Path
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        info = re.fullmatch(rf"/api/datasets/{NAME}(?:/revision/(.+))?", path)
        tree = re.fullmatch(rf"/api/datasets/{NAME}/tree/([0-9a-f]{{40}})/?(.*)", path)
        file = re.fullmatch(rf"/datasets/{NAME}/resolve/([0-9a-f]{{40}})/(.+)", path)
        if info:
            folder = self.folder(info[1] or "main")
            self.answer({"id": NAME, "sha": self.commit(folder)} if folder.is_dir() else None)
        elif tree:
            found = [
                self.entry(path)
                for path in (self.folder(tree[1]) / tree[2]).glob("**/*" if "recursive=true" in self.path else "*")
            ]
            self.answer(found if found else None)
        elif file and (self.folder(file[1]) / file[2]).is_file():
            self.send((self.folder(file[1]) / file[2]).read_bytes(), file[1])
        else:
            self.answer(None)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        paths = re.findall(r"paths=([^&]+)", body) or json.loads(body)["paths"]
        revision = unquote(urlsplit(self.path).path).rpartition("/")[2]
        found = [self.folder(revision) / unquote(path) for path in ([paths] if isinstance(paths, str) else paths)]
        self.answer([self.entry(path) for path in found if path.exists()])

    def commit(self, folder: Path) -> str:
        return COMMIT if folder.name == "main" else "c0" * 20

    def folder(self, revision: str) -> Path:
        names = {COMMIT: "main", "c0" * 20: "refs/convert/parquet"}
        return self.root / names.get(revision, revision)

    def entry(self, path: Path) -> dict[str, Any]:
        base = self.root / "main"
        name = str(path.relative_to(base if path.is_relative_to(base) else self.root / "refs/convert/parquet"))
        if path.is_dir():
            return {"type": "directory", "path": name, "oid": "0" * 40}
        return {"type": "file", "path": name, "oid": "0" * 40, "size": path.stat().st_size}

    def answer(self, value: Any) -> None:
        missing = {"X-Error-Code": "EntryNotFound" if "tree" in self.path or "resolve" in self.path else "RepoNotFound"}
        content = json.dumps(value if value is not None else {"error": "not found"}).encode()
        self.send(content, "", 200 if value is not None else 404, missing if value is None else {})

    def send(self, content: bytes, etag: str, code: int = 200, headers: dict[str, str] | None = None) -> None:
        if span := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            content = content[int(span[1]) : int(span[2] or len(content)) + 1]
            code = 206
        self.send_response(code)
        for name, value in {"Content-Length": str(len(content)), "ETag": f'"{etag}"', **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None:
        """Print nothing."""


@contextmanager
def hub(root: Path) -> Iterator[str]:
    """Serve the folders main/ and refs/convert/parquet/ of `root` as the branches of a data set."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(type("Hub", (_Hub,), {"root": root})))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
