"""Reads of remote stores: retries, time-outs, read-ahead, the block cache, and files that change during a run."""

from __future__ import annotations

import multiprocessing
import os
import random
import threading
import time

import pytest
from fault_store import FaultStore, StatusError, cut, late, raising

from trainer.data import block_cache, formats, remote, remote_file
from trainer.data.block_cache import BlockCache
from trainer.data.root import Root
from trainer.errors import DataError, StoreError, UsageError

URL = "fault://host/train.bin"
CONTENT = random.Random(0).randbytes(1_000_003)


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A store with one file, whose retries do not wait; blocks of 1000 bytes, requests of 8000 at most."""
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "train.bin").write_bytes(CONTENT)
    for module, name, value in (
        *((remote, "FIRST_WAIT", 0.001), (remote, "LONGEST_WAIT", 0.01), (remote, "_answered", {"no store"})),
        *((remote_file, "BLOCK", 1000), (remote_file, "MOST", 8000), (remote_file, "AHEAD", 32000)),
    ):
        monkeypatch.setattr(module, name, value)
    yield FaultStore.reset(tmp_path / "store")
    for thread in threading.enumerate():
        if thread.name == "store":  # reads ahead of a file that was closed
            thread.join(10)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RANKZERO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("RANKZERO_CACHE_GB", "1")
    yield tmp_path / "cache"
    monkeypatch.undo()


def content(url: str = URL) -> bytes:
    with formats.opened(url) as file:
        return file.read()


class SlowDown(OSError):
    """What s3fs makes of 503 SlowDown."""


def slow_down() -> Exception:
    error = SlowDown(16, "Please reduce your request rate")
    error.__cause__ = type("ClientError", (Exception,), {"response": {"ResponseMetadata": {"HTTPStatusCode": 503}}})()
    return error


TRANSIENT = {
    "reset": raising(ConnectionResetError("reset by peer")),
    "time-out": raising(TimeoutError()),
    "429": raising(StatusError(429)),
    "503": raising(StatusError(503)),
    "500": raising(StatusError(500)),
    "SlowDown of s3fs": raising(slow_down()),
    "payload of aiohttp": raising(type("ClientPayloadError", (Exception,), {})()),
    "truncated": cut,
    "empty": lambda body: b"",
}


@pytest.mark.parametrize("kind", TRANSIENT)
def test_errors_that_may_pass_are_tried_again(store, kind):
    store.faults(*3 * [TRANSIENT[kind]])
    assert content() == CONTENT
    assert store.reads[:4] == 4 * [("/train.bin", 0, 8000)]


@pytest.mark.parametrize(
    "error", [StatusError(403), StatusError(404), PermissionError("no"), FileNotFoundError("gone"), ValueError("what")]
)
def test_other_errors_are_raised_at_once(store, error):
    store.faults(raising(error))
    with pytest.raises(type(error)):
        content()
    assert len(store.reads) == 1


def test_not_found_because_of_an_outage_is_tried_again():
    """fsspec's web file system says that there is no file after any error."""
    error = FileNotFoundError("http://host/train.jsonl")
    error.__cause__ = StatusError(503)
    assert remote.is_transient(error)
    error.__cause__ = StatusError(404)
    assert not remote.is_transient(error)


def test_an_outage_ends_with_the_file_the_reason_and_code_1(store, monkeypatch):
    monkeypatch.setenv("RANKZERO_STORE_SECONDS", "0.2")
    store.plan = staticmethod(lambda number: raising(StatusError(503)))
    began = time.monotonic()
    with pytest.raises(StoreError, match=r"fault://.*train.bin, bytes 0 to 8,000.*failed \d+ times.*503") as failed:
        content()
    assert failed.value.exit_code == 1
    assert 0.2 < time.monotonic() - began < 5
    monkeypatch.setenv("RANKZERO_STORE_SECONDS", "0")
    store.reads.clear()
    with pytest.raises(StoreError):
        content()
    assert len(store.reads) == 1
    monkeypatch.setenv("RANKZERO_STORE_SECONDS", "soon")
    with pytest.raises(UsageError, match="RANKZERO_STORE_SECONDS='soon'"):
        content()


def test_a_store_that_never_answered_is_given_up_sooner(store, monkeypatch):
    monkeypatch.setattr(remote, "NEW_STORE", 0.05)
    monkeypatch.setattr(remote, "_answered", set())
    with pytest.raises(StoreError):
        remote.retried(store(), "a file", lambda: raising(ConnectionRefusedError())(b""))


def test_a_call_that_hangs_is_made_again(store, monkeypatch):
    monkeypatch.setattr(remote, "ATTEMPT_SECONDS", 0.2)
    store.faults(late(3))
    began = time.monotonic()
    with formats.opened(URL) as file:
        assert file.read(5000) == CONTENT[:5000]
    assert time.monotonic() - began < 3


def test_any_order_of_reads_gives_the_content(store):
    draw = random.Random(1)
    with formats.opened(URL) as file:
        for _ in range(300):
            if draw.random() < 0.3:
                file.seek(draw.randrange(len(CONTENT) + 10))
            start, size = file.tell(), draw.choice([1, 17, 999, 1000, 1001, 30_000])
            assert file.read(size) == CONTENT[start : start + size]
        file.seek(-7, os.SEEK_END)
        assert file.read() == CONTENT[-7:]


def test_a_reader_that_goes_on_is_read_ahead_of(store):
    with formats.opened(URL) as file:
        for _ in range(12):
            file.read(1000)
        deadline = time.monotonic() + 10
        while sum(end - start for _, start, end in store.reads) < 48_000 and time.monotonic() < deadline:
            time.sleep(0.01)
        ends = [end for _, _, end in store.reads]
        assert 12_000 + 24_000 <= max(ends) <= 12_000 + 48_000  # while the reader computes
        before = len(ends)
        assert file.read(20_000) == CONTENT[12_000:32_000]
        assert not any(start < 32_000 for _, start, _ in store.reads[before:])  # nothing is fetched twice


def test_a_server_that_sends_whole_files_only(store, monkeypatch):
    store.plan = staticmethod(lambda number: lambda body: CONTENT)
    assert content() == CONTENT
    assert len(store.reads) == 1
    monkeypatch.setattr(remote_file, "WHOLE", 1000)
    with pytest.raises(OSError, match="its store sends whole files only, and this one has 1,000,003 bytes"):
        content()


def test_a_short_look_fetches_no_more_than_it_reads(store):
    system, path = formats.located(URL)
    with system.open(path, "rb", block_size=300) as file:
        assert file.read(200) == CONTENT[:200]
    assert store.reads == [("/train.bin", 0, 300)]


def test_a_file_that_changes_is_refused(store, monkeypatch, tmp_path):
    root = Root("fault://host/")
    assert root.match("*.bin", "train") == ["train.bin"]
    (tmp_path / "store" / "train.bin").write_bytes(CONTENT[::-1])
    monkeypatch.setattr(remote, "RECHECK_SECONDS", 0.0)
    with pytest.raises(DataError, match=r"train.bin has changed since this run began \(ETag .* -> ") as failed:
        content(root.url_of("train.bin"))
    assert failed.value.exit_code == 3


def test_a_file_that_changes_between_two_reads_is_refused(store, monkeypatch, tmp_path):
    monkeypatch.setattr(remote, "RECHECK_SECONDS", 0.0)
    with formats.opened(URL) as file:
        assert file.read(500) == CONTENT[:500]
        (tmp_path / "store" / "train.bin").write_bytes(CONTENT[::-1])
        with pytest.raises(DataError, match="has changed"):
            file.read(100_000)


def test_a_file_that_became_shorter_is_not_waited_for(store, tmp_path):
    with formats.opened(URL) as file:
        assert file.read(500) == CONTENT[:500]
        (tmp_path / "store" / "train.bin").write_bytes(CONTENT[:2000])
        with pytest.raises(DataError, match="has changed"):
            file.read(100_000)


def test_a_new_run_takes_files_as_they_are(store, tmp_path):
    assert content() == CONTENT
    (tmp_path / "store" / "train.bin").write_bytes(b"new")
    remote.forget()
    assert content() == b"new"


def test_files_of_two_hosts_are_told_apart(store, cache, tmp_path):
    """The path in a file system does not say which host or account it is of."""
    for account, body in (("one:x@a", b"first"), ("two:y@b", b"other")):
        store.expected = account
        (tmp_path / "store" / "same.txt").write_bytes(body)
        os.utime(tmp_path / "store" / "same.txt", (1, 1))
        root = Root(f"fault://{account}/")
        assert root.match("*.txt", "train") == ["same.txt"]
        assert content(root.url_of("same.txt")) == body


# -- the block cache ---------------------------------------------------------------------------------------------------


def test_cached_blocks_are_not_fetched_again(store, cache):
    assert content() == CONTENT
    requests = len(store.reads)
    assert content() == CONTENT
    assert len(store.reads) == requests
    assert all(path.stat().st_mode & 0o077 == 0 for path in cache.glob("??/*"))  # rows may be confidential


def test_the_cache_of_another_version_is_not_used(store, cache, tmp_path):
    assert content() == CONTENT
    (tmp_path / "store" / "train.bin").write_bytes(CONTENT[::-1])
    remote.forget()
    assert content() == CONTENT[::-1]


def test_a_damaged_block_is_fetched_again(store, cache):
    assert content() == CONTENT
    for path in list(cache.glob("??/*"))[:5]:
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    store.reads.clear()
    assert content() == CONTENT
    assert 1 <= len(store.reads) <= 5


def test_blocks_used_least_recently_are_deleted_first(tmp_path):
    cache = BlockCache(tmp_path / "cache", 10_000)
    for block in range(8):
        cache.put("file", block, bytes(1000))
    old = time.time() - 1000
    for number, block in enumerate(range(8)):
        os.utime(cache._path("file", block), (old + number, old + number))
    assert cache.get("file", 0) == bytes(1000)  # now the one used most recently
    for block in range(8, 12):
        cache.put("file", block, bytes(1000))
    sizes = [path.stat().st_size for path in (tmp_path / "cache").glob("??/*")]
    assert sum(sizes) <= 10_000
    assert cache.get("file", 0) is not None
    assert cache.get("file", 11) is not None
    assert cache.get("file", 1) is None


def test_a_cache_that_cannot_be_written_does_no_harm(store, monkeypatch, tmp_path, caplog):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("RANKZERO_CACHE", str(tmp_path / "file"))
    monkeypatch.setenv("RANKZERO_CACHE_GB", "1")
    with caplog.at_level("WARNING", "rankzero"):
        assert content() == CONTENT
    monkeypatch.undo()
    assert [record.message for record in caplog.records if "RANKZERO_CACHE" in record.message] != []


def test_the_size_of_the_cache_is_a_number(monkeypatch):
    monkeypatch.setenv("RANKZERO_CACHE_GB", "much")
    with pytest.raises(UsageError, match="RANKZERO_CACHE_GB='much'"):
        block_cache.block_cache()
    monkeypatch.undo()


def _read(results):
    FaultStore.plan = staticmethod(lambda number: late(0.02))
    results.put((content() == CONTENT, sum(end - start for _, start, end in FaultStore.reads)))


def test_ranks_of_a_machine_fetch_each_block_once(store, cache):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    ranks = [context.Process(target=_read, args=(results,)) for _ in range(3)]
    for rank in ranks:
        rank.start()
    found = [results.get(timeout=60) for _ in ranks]
    for rank in ranks:
        rank.join(60)
    assert all(right for right, _ in found)
    assert sum(fetched for _, fetched in found) == pytest.approx(len(CONTENT), rel=0.1)
