"""Calls to a remote store: time-outs, retries with back-off, and a check that a file has not changed during a run.

Every call goes through `retried`. Errors that may pass (a reset connection, a time-out, 429, 5xx, a body that ends
early) are tried again until the store has not answered for RANKZERO_STORE_SECONDS. Others, such as 403 and 404, are
raised at once. Libraries such as s3fs try again by themselves for some seconds; this is for outages of minutes, and
for stores whose libraries do not.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

from trainer.errors import DataError, StoreError, UsageError

log = logging.getLogger("rankzero")
T = TypeVar("T")

SECONDS = "RANKZERO_STORE_SECONDS"  # environment variable: how long calls are tried again; 0: never
PATIENCE = 300.0  # the default; below launch.hang_seconds, so that a rank that waits is not one that hangs
NEW_STORE = 30.0  # seconds for a store that has not answered yet in this process: its address may be wrong
ATTEMPT_SECONDS = 60.0  # one call
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds between two attempts, doubled each time, with jitter
RECHECK_SECONDS = 10.0  # what a store says about a file is asked again if it is older
# Keys of `info` that change with the content of a file, the surest first.
VERSIONS = (
    *("ETag", "etag", "md5Hash", "content_md5", "checksum", "blob_id", "mtime", "LastModified", "updated"),
    *("last_modified", "modified", "timeModified", "created"),
)
_TRANSIENT_NAMES = re.compile(
    "Timeout|TimedOut|Connection|Disconnected|IncompleteRead|PayloadError|Transport|ProtocolError|ServerError|Throttl"
    "|ServiceUnavailable|TooManyRequests|SlowDown|EndOfStream"
)
_ERRNO = "EIO EBUSY EAGAIN EPIPE ETIMEDOUT ECONNRESET ECONNREFUSED ECONNABORTED ENETUNREACH EHOSTUNREACH ENETDOWN"
_TRANSIENT_ERRNO = frozenset(getattr(errno, name) for name in _ERRNO.split())
_draw = random.Random()  # separate: the global generator belongs to the training
_answered: set[object] = set()
seen: dict[str, tuple[dict[str, Any], float]] = {}  # what a store said about a file, and when it was checked


class Truncated(OSError):
    """A body that ended before its announced end."""


def patience() -> float:
    """Return how many seconds calls to a store are tried again.

    Raises:
        UsageError: the environment variable is not a number of seconds.
    """
    return environment_number(SECONDS, PATIENCE, "a number of seconds is needed, or 0 for a single attempt")


def environment_number(name: str, default: float, needed: str) -> float:
    """Return a number from 0 in an environment variable.

    Raises:
        UsageError: it is something else; the message says what is needed.
    """
    text = os.environ.get(name)
    try:
        number = default if text is None else float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise UsageError(f"{name}={text!r}: {needed}")
    return number


def within(seconds: float, call: Callable[[], T]) -> T:
    """Return what the call returns. A call that takes longer is left alone, in a thread that does not hold the process.

    Raises:
        TimeoutError: it took longer.
    """
    try:
        return in_background(call).result(seconds)
    except TimeoutError as error:
        raise TimeoutError(str(error) or f"no answer in {seconds:g} s") from None


def in_background(call: Callable[[], T]) -> Future[T]:
    """Call in a thread that does not hold the process at its end, unlike those of an executor."""
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True, name="store").start()
    return future


def retried(
    system: Any,
    what: str,
    call: Callable[[], T],
    seconds: float | None = None,
    attempt_seconds: float | None = None,
) -> T:
    """Return what a call to a store returns, trying again after errors that may pass.

    Args:
        system: the file system, for whether it has answered before.
        what: the file, for messages.
        call: makes one attempt.
        seconds: how long to try again; by default `patience()`.
        attempt_seconds: how long one attempt may take; by default ATTEMPT_SECONDS.

    Raises:
        StoreError: the store has not answered for that long.
        Exception: of the call, if another attempt would not help.
    """
    store = getattr(system, "_fs_token", type(system))
    limit = patience() if seconds is None else seconds
    limit = limit if store in _answered else min(limit, NEW_STORE)
    began, wait = time.monotonic(), FIRST_WAIT
    for attempt in itertools.count(1):
        try:
            result = within(attempt_seconds or ATTEMPT_SECONDS, call)
            _answered.add(store)
            return result
        except Exception as error:
            if not is_transient(error):
                raise
            left = began + limit - time.monotonic()
            reason = f"{type(error).__name__}: {error}"
            if left <= 0:
                raise StoreError(
                    f"{what}: its store failed {attempt} times in {time.monotonic() - began:.0f} s, last with "
                    f"{reason}. Check the store and the network, then run the same command again; {SECONDS} sets how "
                    "long a store is waited for"
                ) from error
            pause = min(wait * _draw.uniform(0.5, 1.0), left)
            (log.info if attempt < 3 else log.warning)("%s: %s; next attempt in %.1f s", what, reason, pause)
            time.sleep(pause)
            wait = min(2 * wait, LONGEST_WAIT)
    raise AssertionError


def is_transient(error: BaseException) -> bool:
    """Return whether another attempt may succeed. If an error of the chain has an HTTP status, that decides."""
    chain = list(_chain(error))
    if any(isinstance(one, DataError) or "OfflineMode" in type(one).__name__ for one in chain):
        return False
    for one in chain:
        if (status := _status(one)) is not None:
            return status in (408, 425, 429) or status >= 500
    for one in chain:
        if isinstance(one, TimeoutError | ConnectionError | Truncated | EOFError):
            return True
        if any(_TRANSIENT_NAMES.search(kind.__name__) for kind in type(one).__mro__):
            return True
        if isinstance(one, OSError) and one.errno in _TRANSIENT_ERRNO:
            return True
    return False


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    for _ in range(8):
        if error is None:
            return
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _status(error: BaseException) -> int | None:
    """Return the HTTP status that an error of any client library carries."""
    response = getattr(error, "response", None)
    metadata = response.get("ResponseMetadata", {}) if isinstance(response, Mapping) else {}
    for name in ("status", "status_code", "code"):
        if isinstance(value := getattr(error, name, None), int) and 100 <= value < 600:
            return value
    for value in (getattr(response, "status_code", None), metadata.get("HTTPStatusCode")):
        if isinstance(value, int):
            return value
    return None


# -- versions of files -------------------------------------------------------------------------------------------------


def forget() -> None:
    """Forget what stores have said about files: a new run begins."""
    seen.clear()


def version_of(info: Mapping[str, Any]) -> str | None:
    """Return what a store says about the content of a file: its etag or checksum, or when it was modified."""
    return next((f"{key} {_plain(info[key])}" for key in VERSIONS if info.get(key) is not None), None)


def _plain(value: object) -> str:
    """Return a text that is the same for a value in a listing and in an answer about one file."""
    if isinstance(value, datetime):
        value = value.timestamp()
    if isinstance(value, int | float):
        return f"{value:.3f}".removesuffix(".000")
    return str(value).removeprefix("W/").strip('"')


def identity(system: Any, url: str) -> str:
    """Return what names a file. A URL alone may lack host and account. It may hold credentials: it is not written."""
    return f"{url} {sorted(system.storage_options.items(), key=str)}"


def check_version(system: Any, url: str, info: Mapping[str, Any]) -> None:
    """Compare what a store says about a file with what it said first in this run, and remember when.

    Raises:
        DataError: the file has changed.
    """
    facts = {key: info[key] for key in ("size", *VERSIONS) if info.get(key) is not None}
    file = identity(system, url)
    first = seen.get(file, (facts, 0.0))[0]
    sure = next((key for key in VERSIONS if key in first and key in facts), "size")
    for key in ("size", sure):
        if key in first and key in facts and _plain(first[key]) != _plain(facts[key]):
            raise DataError(
                f"{url} has changed since this run began ({key} {_plain(first[key])} -> {_plain(facts[key])}): restore "
                "the file, or start with --fresh. The positions of the lanes belong to the files as they were"
            )
    seen[file] = ({**facts, **first}, time.monotonic())


def describe(system: Any, path: str, url: str) -> dict[str, Any]:
    """Return what the store says about a file or folder, after a comparison with what it said first in this run.

    Raises:
        DataError: the file has changed since this run began.
        StoreError: the store has not answered for too long.
    """
    info = dict(retried(system, url, partial(system.info, path)))
    if info.get("type") == "file":
        check_version(system, url, info)
    return info


def recheck(system: Any, path: str, url: str, seconds: float | None = None) -> dict[str, Any]:
    """Do the same, without asking if the last answer is not older than some seconds, by default RECHECK_SECONDS."""
    facts, checked = seen.get(identity(system, url), ({}, 0.0))
    if "size" in facts and time.monotonic() - checked < (RECHECK_SECONDS if seconds is None else seconds):
        return facts
    if facts:
        system.invalidate_cache(system._parent(path))  # a listing may be as old as the run
    return describe(system, path, url)
