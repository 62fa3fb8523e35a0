"""Several processes, jobs of an array and restarts prepare the same bytes, and repeat nothing that is done."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_prepare import ROLES, encoder, recipe

from trainer import api
from trainer.data import prepare as prepare_module
from trainer.data import prepare_spans, prepare_stages, prepare_work
from trainer.data.prepare import prepare
from trainer.data.sources import open_split
from trainer.data.survey import survey
from trainer.errors import DataError, UsageError

ROWS = 700


def lines(rows: int = ROWS, seed: int = 1) -> list[dict[str, str]]:
    draw = random.Random(seed)
    words = [f"wort{i}" for i in range(50)]
    return [
        {"de": " ".join(draw.choices(words, k=4)) + f" {i}", "en": f"line \u2028 {i} &amp;amp;"} for i in range(rows)
    ]


def jsonl(rows: list[dict[str, str]]) -> str:
    """Some lines are blank, which are no rows."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" * (1 + (i % 40 == 0)) for i, row in enumerate(rows))


def set_sizes(monkeypatch: pytest.MonkeyPatch, **sizes: int) -> None:
    for place in (prepare_module, prepare_spans, prepare_stages, prepare_work):
        for name, size in sizes.items():
            if hasattr(place, name):
                monkeypatch.setattr(place, name, size)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same rows in several formats, and chunks, buckets and row groups that are smaller than the files."""
    set_sizes(monkeypatch, INDEXED_BYTES=1000, CHUNK_ROWS=64, BUCKET_ROWS=50, WRITE_ROWS=30)
    root, rows = tmp_path / "files", lines()
    root.mkdir()
    (root / "rows.jsonl").write_text(jsonl(rows))
    (root / "test.jsonl").write_text(jsonl(lines(90, seed=2)))
    with gzip.open(root / "rows.jsonl.gz", "wt") as file:
        file.write(jsonl(rows))
    with (root / "rows.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ["de", "en"])
        table.writeheader()
        table.writerows({**row, "en": row["en"] + "\nsecond line"} for row in rows)
    pq.write_table(pa.Table.from_pylist(rows), root / "rows.parquet", row_group_size=50)
    bad = [json.dumps(row) for row in rows]
    for number in (5, 100, 300, 301, 650):
        bad[number] = '{"de": "no other side"}'
    bad[64] = bad[200] = "nonsense"
    (root / "bad.jsonl").write_text("\n".join(bad))
    return root


def contents(folder: Path) -> dict[str, str]:
    """Return the hash of each file."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}


def source_rows(made: Any, split: str = "train") -> list[tuple[str, ...]]:
    source = open_split(made.data, split)
    return [tuple(row.values.values()) for row in source]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.csv", "rows.parquet"])
def test_chunks_do_not_change_what_is_written(files, tmp_path, monkeypatch, name):
    made = recipe(files, **{"data.train": name, "data.validation": 0.2})
    prepare(made, ROLES, encoder, tmp_path / "chunks")
    set_sizes(monkeypatch, CHUNK_ROWS=10_000, INDEXED_BYTES=10**9)
    prepare(made, ROLES, encoder, tmp_path / "one")
    assert contents(tmp_path / "chunks") == contents(tmp_path / "one")
    about = json.loads((tmp_path / "chunks" / "prepared.json").read_text())
    assert about["splits"]["train"]["rows"] + about["splits"]["validation"]["rows"] == ROWS


def test_bad_rows_are_counted_and_named_as_by_a_survey(files, tmp_path):
    made = recipe(files, **{"data.train": "bad.jsonl", "data.on_bad_row": "skip", "data.max_bad_fraction": 0.1})
    about = prepare(made, ROLES, encoder, tmp_path / "out")
    assert about["splits"]["train"] == survey(open_split(made.data, "train"), made.data, ROLES).report()
    assert about["splits"]["train"]["bad_rows"] == {"column 'en' is missing": 5, "not JSON": 2}
    first = about["splits"]["train"]["bad_examples"][0]
    assert first.startswith("bad.jsonl, 5 rows (line 6 (row 6), line 101 (row 101), line 301 (row 301) and 2 more)")
    strict = recipe(files, **{"data.train": "bad.jsonl"})
    with pytest.raises(DataError) as expected:
        survey(open_split(strict.data, "train"), strict.data, ROLES)
    with pytest.raises(DataError) as found:
        prepare(strict, ROLES, encoder, tmp_path / "strict")
    assert str(found.value) == str(expected.value)


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("method", ["read", "deal", "write"])
def test_an_interrupted_one_resumes_without_repeating(files, tmp_path, monkeypatch, method):
    made = recipe(files, **{"data.train": ["rows.jsonl", "rows.jsonl.gz"]})
    prepare(made, ROLES, encoder, tmp_path / "whole")
    calls: list[Any] = []
    work = getattr(prepare_work.Workspace, method)

    def counted(most: int | None) -> Any:
        def call(self: Any, *args: Any) -> Any:
            if most is not None and len(calls) == most:
                raise Interrupted
            calls.append(args)
            return work(self, *args)

        return call

    monkeypatch.setattr(prepare_work.Workspace, method, counted(3))
    with pytest.raises(Interrupted):
        prepare(made, ROLES, encoder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    folder = tmp_path / ".out.preparing"
    kept = {path: path.stat().st_mtime_ns for path in folder.rglob("*-*") if path.is_file()}
    done = calls[:3]
    calls.clear()
    monkeypatch.setattr(prepare_work.Workspace, method, counted(None))
    if method == "write":
        monkeypatch.setattr(prepare_work.Workspace, "read", None)
        monkeypatch.setattr(prepare_work.Workspace, "deal", None)
        shards = {path: time_ for path, time_ in kept.items() if path.suffix == ".parquet"}
        assert len(shards) == 3
        before = {path.name: time_ for path, time_ in shards.items()}
    prepare(made, ROLES, encoder, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    if method == "write":
        assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in before} == before
    if method != "read":  # a span that is read already is only looked up
        assert not [args for args in calls if args in done]
    assert not folder.exists()


def test_chunks_that_are_read_are_not_read_again(files, tmp_path, monkeypatch):
    made = recipe(files, **{"data.train": ["rows.jsonl", "rows.jsonl.gz"]})
    read, firsts = prepare_work.Workspace._read_chunk, []

    def counted(self: Any, stream: Any, source: Any, span: Any, most: int) -> Any:
        if len(firsts) == 15:
            raise Interrupted
        firsts.append((span.split, span.shard, stream.state()["row"]))
        return read(self, stream, source, span, most)

    monkeypatch.setattr(prepare_work.Workspace, "_read_chunk", counted)
    with pytest.raises(Interrupted):
        prepare(made, ROLES, encoder, tmp_path / "out")
    done = firsts.copy()
    firsts.clear()
    prepare(made, ROLES, encoder, tmp_path / "out")
    assert len(done) == 15
    assert not set(done) & set(firsts)


def test_other_files_or_another_recipe_begin_again(files, tmp_path, monkeypatch):
    made = recipe(files, **{"data.train": "rows.jsonl"})
    prepare(made, ROLES, encoder, tmp_path / "whole")
    write = prepare_work.Workspace.write

    def stop(*_: Any) -> Any:
        raise Interrupted

    for change in ({"seed": 2}, {"data.lanes": 3}, {"data.cleaning": []}):
        monkeypatch.setattr(prepare_work.Workspace, "write", stop)
        with pytest.raises(Interrupted):
            prepare(recipe(files, **{"data.train": "rows.jsonl", **change}), ROLES, encoder, tmp_path / "out")
    monkeypatch.setattr(prepare_work.Workspace, "write", write)
    prepare(made, ROLES, encoder, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize("count", [1, 3])
def test_parts_of_an_array_prepare_the_same(files, tmp_path, count):
    made = recipe(files, **{"data.train": ["rows.jsonl", "rows.csv"]})
    prepare(made, ROLES, encoder, tmp_path / "whole")
    for stage in ("read", "deal", "write"):
        for number in range(count):
            prepare(made, ROLES, encoder, tmp_path / "out", part=(stage, number, count))
    folder = tmp_path / ".out.preparing"
    assert len(list(folder.glob("*.parquet"))) == 5, "all shards are there before the last job"
    prepare(made, ROLES, encoder, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_stage_needs_all_parts_of_the_one_before(files, tmp_path):
    made = recipe(files, **{"data.train": "rows.jsonl"})
    prepare(made, ROLES, encoder, tmp_path / "out", part=("read", 0, 2))
    with pytest.raises(UsageError, match="not all rows of train are read yet"):
        prepare(made, ROLES, encoder, tmp_path / "out", part=("deal", 0, 2))
    with pytest.raises(UsageError, match="is of another recipe or of other files"):
        prepare(
            recipe(files, **{"data.train": "rows.jsonl", "seed": 5}),
            ROLES,
            encoder,
            tmp_path / "out",
            part=("read", 0, 2),
        )


def test_two_commands_do_not_prepare_one_folder(files, tmp_path, monkeypatch):
    made = recipe(files, **{"data.train": "rows.jsonl"})
    caught = []

    def second(*_: Any) -> Any:
        with pytest.raises(UsageError, match="another process prepares") as error:
            prepare(made, ROLES, encoder, tmp_path / "out")
        caught.append(error)
        raise Interrupted

    monkeypatch.setattr(prepare_work.Workspace, "read", second)
    with pytest.raises(Interrupted):
        prepare(made, ROLES, encoder, tmp_path / "out")
    assert caught


def big(folder: Path, rows: int) -> dict[str, Any]:
    """Write a corpus that is large enough for several processes. Return its recipe."""
    folder.mkdir(exist_ok=True)
    (folder / "train.jsonl").write_text(jsonl([{**row, "de": row["de"] * 4} for row in lines(rows)]))
    (folder / "test.jsonl").write_text(jsonl(lines(50, seed=2)))
    return {
        "version": 1,
        "name": "big",
        "task": {"kind": "translation"},
        "data": {"root": str(folder), "train": "train.jsonl", "test": "test.jsonl", "lanes": 4, "max_length": 64,
                 "columns": {"src": "de", "trg": "en"}},
        "tokenizer": {"train": {"vocab_size": 200, "sample_rows": 1000}},
        "model": {"kind": "transformer"},
        "loop": {"epochs": 1},
    }  # fmt: skip


@pytest.mark.slow
def test_processes_write_the_same_bytes_and_survive_a_kill(tmp_path: Path) -> None:
    values = big(tmp_path / "files", 45_000)
    made = module_recipe(values)
    api.prepare(made, out=tmp_path / "one")
    path = tmp_path / "big.json"
    path.write_text(json.dumps(values))
    words = [sys.executable, "-m", "trainer", "prepare", str(path), "--out", str(tmp_path / "two"), "--processes", "2"]
    started = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    folder = tmp_path / ".two.preparing"
    deadline = time.monotonic() + 300
    while not list(folder.glob("train-*.parquet")):
        assert started.poll() is None, started.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    children = [int(pid) for pid in Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()]
    assert len(children) >= 2
    os.kill(started.pid, signal.SIGKILL)
    started.communicate()
    while any(Path(f"/proc/{child}/cmdline").exists() and _runs(child) for child in children):
        assert time.monotonic() < deadline, "a process outlives the first one"
        time.sleep(0.05)
    shards = {path.name: path.stat().st_mtime_ns for path in folder.glob("train-*.parquet")}
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert f"{len(shards)} of 5 shards are kept from an earlier start" in done.stderr
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    assert {name: (tmp_path / "two" / name).stat().st_mtime_ns for name in shards} == shards


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def module_recipe(values: dict[str, Any]) -> Any:
    from trainer.recipe_loading import Recipe

    return Recipe.parse(json.loads(json.dumps(values)))
