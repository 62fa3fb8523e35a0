"""Upload a large file to S3 in parts. A part that fails is sent again alone.

`put_file` of s3fs sends parts, too, but tries each one for about two seconds only, and then drops all of them: after an
outage of a few seconds a file of gigabytes begins again. Libraries of other stores try parts again for longer, so those
files are sent with `put_file`.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from trainer.data.remote import in_background

PART = 32 << 20  # bytes of a part, unless a file would have more than MOST of them
MOST = 10_000  # parts of a file that S3 accepts
AT_ONCE = 4  # parts that are sent, and in memory
ABORT_SECONDS = 5.0  # parts that are being sent are waited for before an upload is aborted


class Call(Protocol):
    """Calls a method of a file system with retries. `size`: bytes that it moves."""

    def __call__(self, name: str, *args: Any, seconds: float | None = None, size: int = 0, **kwargs: Any) -> Any: ...


def takes_parts(system: Any, size: int) -> bool:
    """Return whether a file of this size is sent to this file system in parts."""
    return size > 2 * PART and hasattr(system, "call_s3")


def upload(system: Any, call: Call, file: Path, path: str, check: Callable[[], None]) -> None:
    """Upload a file.

    Args:
        system: an S3FileSystem.
        call: its methods, with retries.
        file: on this machine.
        path: in the store.
        check: called before each part; what it raises ends the upload.

    Raises:
        StoreError: the store has not answered for too long.
        Exception: the store refuses a part.
    """
    bucket, key, _ = system.split_path(path)
    place: dict[str, Any] = {"Bucket": bucket, "Key": key}
    size = file.stat().st_size
    each = max(PART, -(-size // MOST))
    place["UploadId"] = call("call_s3", "create_multipart_upload", **place)["UploadId"]
    running, sent = deque[Future[dict[str, Any]]](), list[dict[str, Any]]()
    try:
        with file.open("rb") as source:
            for start in range(0, size, each):
                if len(running) == AT_ONCE:
                    sent.append(running.popleft().result())
                check()
                body, number = os.pread(source.fileno(), each, start), len(sent) + len(running) + 1
                running.append(in_background(partial(_part, call, place, number, body)))
        sent += [future.result() for future in running]
        call("call_s3", "complete_multipart_upload", **place, MultipartUpload={"Parts": sent})
    except BaseException:
        wait(running, ABORT_SECONDS)  # a part that arrives later would stay in the bucket
        with contextlib.suppress(Exception):
            call("call_s3", "abort_multipart_upload", **place, seconds=ABORT_SECONDS)
        raise
    system.invalidate_cache(path)


def _part(call: Call, place: dict[str, Any], number: int, body: bytes) -> dict[str, Any]:
    answer = call("call_s3", "upload_part", **place, PartNumber=number, Body=body, size=len(body))
    return {"PartNumber": number, "ETag": answer["ETag"]}
