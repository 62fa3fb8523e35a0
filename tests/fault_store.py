"""A remote store for tests: files of a folder behind fault://user:password@host/…, with faults that a test plans."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem
from fsspec.registry import register_implementation
from fsspec.spec import AbstractFileSystem


class StatusError(Exception):
    """An answer of the store, as client libraries have them."""

    def __init__(self, status: int, url: str = "") -> None:
        super().__init__(f"{status} for {url}")
        self.status = status


Fault = Callable[[bytes], bytes]  # gets the body, returns another one or raises


def raising(error: Exception) -> Fault:
    def fault(body: bytes) -> bytes:
        raise error

    return fault


def late(seconds: float) -> Fault:
    def fault(body: bytes) -> bytes:
        time.sleep(seconds)
        return body

    return fault


def cut(body: bytes) -> bytes:
    return body[:-3]


class FaultStore(AbstractFileSystem):
    """The store. Its state is that of the class: instances of all threads share it."""

    protocol = "fault"
    folder: Path  # what is behind the store
    plan: Callable[[int], Fault | None]  # the number of a read -> what happens to it
    put_plan: Callable[[str], Fault | None]  # the path of a file that is stored -> what happens
    expected: str  # user:password@host of all reads
    reads: list[tuple[str, int | None, int | None]]  # path, start, end
    calls: list[str]  # of the methods that are not reads
    part_plan: Callable[[int], Fault | None]  # the number of a part of a large file -> what happens
    uploads: dict[str, dict[int, bytes]]  # parts of files that are not complete, by upload

    @classmethod
    def reset(cls, folder: Path) -> type[FaultStore]:
        cls.folder, cls.expected, cls.reads, cls.calls = folder, "", [], []
        cls.plan, cls.put_plan = staticmethod(lambda number: None), staticmethod(lambda path: None)
        cls.part_plan, cls.uploads = staticmethod(lambda number: None), {}
        return cls

    @classmethod
    def faults(cls, *faults: Fault) -> None:
        """Let these happen to the next reads, one to each."""
        left, first = list(faults), len(cls.reads)
        cls.plan = staticmethod(lambda n: left[n - first] if n - first < len(left) else None)

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(one) for one in path]
        if "://" in str(path):
            path = "/" + str(path).partition("://")[2].partition("/")[2]
        return str(path).rstrip("/")

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, Any]:
        host = path.partition("://")[2].partition("/")[0]
        return {"account": host} if "@" in host else {}

    def __init__(self, account: str = "", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.account, self._local = account, LocalFileSystem(auto_mkdir=True)

    def _place(self, path: str) -> str:
        return f"{self.folder}{self._strip_protocol(path)}"

    def _info(self, entry: dict[str, Any]) -> dict[str, Any]:
        name, etag = str(entry["name"])[len(str(self.folder)) :], f"{entry['mtime']}-{entry['size']}"
        return {"name": name, "type": entry["type"], "size": entry["size"], "ETag": f'"{etag}"'}

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        self.calls.append("info")
        return self._info(self._local.info(self._place(path)))

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> Any:
        self.calls.append("ls")
        found = [self._info(entry) for entry in self._local.ls(self._place(path), detail=True)]
        return found if detail else [entry["name"] for entry in found]

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        assert self.account == self.expected, "the credentials of the URL did not reach the store"
        number = len(self.reads)
        self.reads.append((path, start, end))
        fault = type(self).plan(number)
        body = self._local.cat_file(self._place(path), start=start, end=end)
        return body if fault is None else fault(body)

    def put_file(self, lpath: str, rpath: str, **kwargs: Any) -> None:
        self.calls.append(f"put {self._strip_protocol(rpath)}")
        if (fault := type(self).put_plan(self._strip_protocol(rpath))) is not None:
            fault(b"")
        self._local.put_file(lpath, self._place(rpath))

    def split_path(self, path: str) -> tuple[str, str, None]:
        bucket, _, key = self._strip_protocol(path).lstrip("/").partition("/")
        return bucket, key, None

    def call_s3(self, method: str, *, Bucket: str, Key: str, UploadId: str = "", **values: Any) -> dict[str, Any]:
        """Send a file in parts, as S3FileSystem does."""
        name = f"{method} {values.get('PartNumber', Key)}"
        self.calls.append(name)
        if method == "create_multipart_upload":
            self.uploads[str(len(self.calls))] = {}
            return {"UploadId": str(len(self.calls))}
        if method == "abort_multipart_upload":
            del self.uploads[UploadId]
            return {}
        if method == "upload_part":
            number, body = values["PartNumber"], values["Body"]
            fault = type(self).part_plan(number)
            self.uploads[UploadId][number] = body if fault is None else fault(body)
            return {"ETag": f"{number} of {UploadId}"}
        parts, sent = values["MultipartUpload"]["Parts"], self.uploads.pop(UploadId)
        assert parts == [{"PartNumber": n, "ETag": f"{n} of {UploadId}"} for n in sorted(sent)]
        place = Path(self._place(f"/{Bucket}/{Key}"))
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(b"".join(body for _, body in sorted(sent.items())))
        return {}

    def rm(self, path: str, recursive: bool = False, maxdepth: int | None = None) -> None:
        self._local.rm(self._place(path), recursive=recursive)

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        raise AssertionError("files of a remote store are read in blocks")


register_implementation("fault", FaultStore, clobber=True)
