"""A start on a large corpus reads a listing and the first rows; fingerprints; `prepare --verify`."""

from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import tiny_recipe, write_rows

from benchmarks import counting_store, large_corpus
from benchmarks.counting_store import CountingStore, Repeated
from trainer.api import prepare
from trainer.data import fingerprints, heads, remote
from trainer.data.fingerprints import fingerprint
from trainer.data.sources import open_split
from trainer.data.tokenization import train_tokenizer
from trainer.engine.setup import survey_data
from trainer.errors import DataError, UsageError
from trainer.files import read_json, write_json
from trainer.recipe.sections import DataConfig, TokenizerTraining
from trainer.recipe_loading import Recipe, load_recipe
from trainer.rundir import RunDir

FILES, EACH = 12, 3_000_000


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(large_corpus.WORDS * 3, TokenizerTraining(vocab_size=80), 128).save_pretrained(folder)
    return folder


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """A split of more than a megabyte is large."""
    monkeypatch.setattr(fingerprints, "FINGERPRINT_BYTES", 1_000_000)


# -- what a start reads ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_requests_and_bytes_of_a_start_and_a_resume(tmp_path, tokenizer, large, kind):
    content = large_corpus.json_lines() if kind == "jsonl" else large_corpus.parquet()
    size = EACH if kind == "jsonl" else len(content)
    CountingStore.fill({f"corpus/train-{i:02d}.{kind}": Repeated(content, size) for i in range(FILES)})
    made = large_corpus.recipe(2, 128, f"*.{kind}", tokenizer)
    found = large_corpus.case(kind, made, tmp_path, 0.0)
    assert found["checked_rows"] > 100 * FILES
    assert found["rows"] == (None if kind == "jsonl" else FILES * 200_000)
    start, resume = found["start"], found["resume"]
    assert start["requests"]["list"] <= 10
    assert start["requests"]["get"] <= FILES * (10 if kind == "jsonl" else 30)
    assert start["bytes"] < FILES * (700_000 if kind == "jsonl" else 5_000_000), "of files of any size"
    if kind == "parquet":  # it reads a row group of each lane
        return
    assert resume["bytes"] <= resume["most_bytes"], "a block of each lane"
    assert resume["requests"]["get"] <= 8 * made.data.lanes


def test_a_start_asks_the_store_nothing_that_the_listing_has_said(tmp_path, tokenizer, large, monkeypatch):
    """However long ago that was: a busy machine takes minutes."""
    monkeypatch.setattr(remote, "RECHECK_SECONDS", 0.0)
    lines = large_corpus.json_lines()
    CountingStore.fill({f"corpus/train-{i:02d}.jsonl": Repeated(lines, EACH) for i in range(FILES)})
    run = RunDir(tmp_path / "run")
    run.create()
    large_corpus.begin(run, large_corpus.recipe(2, 128, "*.jsonl", tokenizer))
    requests = CountingStore.counts.requests
    assert requests["head"] <= 8, "for prepared.json"
    assert requests["get"] > FILES


@pytest.fixture(scope="module")
def table() -> bytes:
    return large_corpus.parquet()


@pytest.fixture
def few_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first rows of a Parquet file, 1.4 MB, may take 400 kB of each."""
    monkeypatch.setattr(heads, "TABLE_BYTES", 1)
    monkeypatch.setattr(heads, "HEAD_SHARE", 1 / 40)


def test_rows_of_one_of_several_parquet_files_are_read_where_a_page_is_large(
    tmp_path, tokenizer, large, few_bytes, table
):
    CountingStore.fill({f"corpus/train-{i:02d}.parquet": Repeated(table, len(table)) for i in range(FILES)})
    facts = survey_data(RunDir(tmp_path / "run"), large_corpus.recipe(2, 128, "*.parquet", tokenizer))["train"]
    assert (facts["rows"], facts["check"]) == (FILES * 200_000, "sample"), "every footer is read"
    assert 10_000 <= facts["checked_rows"] < 13_000, "of three files"
    assert CountingStore.counts.bytes < FILES * 2**17 + 3 * 2_500_000


def test_every_parquet_file_has_its_columns_checked(tmp_path, tokenizer, large, few_bytes, table):
    other = io.BytesIO()
    pq.write_table(pa.table({"src": ["a"] * 50, "target": ["b"] * 50}), other)
    files = {f"corpus/train-{i:02d}.parquet": Repeated(table, len(table)) for i in range(FILES)}
    files["corpus/train-05.parquet"] = Repeated(other.getvalue(), len(other.getvalue()))
    CountingStore.fill(files)
    made = large_corpus.recipe(2, 128, "*.parquet", tokenizer)
    with pytest.raises(DataError, match=r"no row of train-05\.parquet has a column 'trg'.*target"):
        survey_data(RunDir(tmp_path / "run"), made)
    other = io.BytesIO()
    pq.write_table(pa.table({"src": ["a"] * 50, "trg": [b"b"] * 50}), other)
    CountingStore.fill(files | {"corpus/train-05.parquet": Repeated(other.getvalue(), len(other.getvalue()))})
    remote.forget()
    with pytest.raises(DataError, match=r"train-05\.parquet .*column 'trg' has the type binary"):
        survey_data(RunDir(tmp_path / "run"), made)
    text = b'{"src": "a", "trg": "b"}\n' * 9
    CountingStore.fill(files | {"corpus/train-05.parquet": Repeated(text, len(text))})
    remote.forget()
    with pytest.raises(DataError, match=r"train-05\.parquet .*is not a Parquet file"):
        survey_data(RunDir(tmp_path / "run"), made)


def test_a_small_corpus_is_read_as_before(tmp_path, tokenizer):
    CountingStore.fill({"corpus/train-0.jsonl": Repeated(large_corpus.json_lines(), len(large_corpus.json_lines()))})
    made = large_corpus.recipe(2, 128, "*.jsonl", tokenizer)
    facts = survey_data(RunDir(tmp_path / "run"), made)["train"]
    assert (facts["rows"], facts["check"], facts["fingerprint_of"]) == (4000, "full", "content")
    source = open_split(made.data, "train")
    assert source is not None
    assert facts["fingerprint"] == fingerprint(source)
    assert "checked_rows" not in facts


def test_a_store_whose_files_cannot_be_read_again_from_their_start(tmp_path, tokenizer, large, monkeypatch):
    """A server without ranges: the form of a file and its first rows take two requests."""

    def seek(file: Any, place: int, whence: int = 0) -> int:
        if (place, whence) != (file.loc, 0):
            raise ValueError("Cannot seek")
        return place

    entry = CountingStore._entry
    monkeypatch.setattr(CountingStore, "_entry", lambda store, path: entry(store, path) | {"partial": False})
    monkeypatch.setattr(counting_store.CountedFile, "seek", seek)
    CountingStore.fill({"corpus/train-0.jsonl": Repeated(large_corpus.json_lines(), EACH)})
    facts = survey_data(RunDir(tmp_path / "run"), large_corpus.recipe(2, 128, "*.jsonl", tokenizer))["train"]
    assert facts["checked_rows"] > 100


# -- fingerprints ------------------------------------------------------------------------------------------------------


def lines(folder: Path, name: str = "train.jsonl", rows: int = 20) -> Any:
    write_rows(folder / name, rows)
    return open_split(DataConfig(root=str(folder), train="*.jsonl"), "train")


def test_a_listing_changes_with_names_sizes_and_times(tmp_path):
    path = tmp_path / "train.jsonl"

    def listed() -> str:
        source = open_split(DataConfig(root=str(tmp_path), train="*.jsonl"), "train")
        assert source is not None
        return fingerprint(source, "listing")

    lines(tmp_path)
    first = listed()
    assert first == listed()
    stat = path.stat()
    path.write_bytes(path.read_bytes())
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert listed() == first
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert listed() != first
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    path.rename(tmp_path / "other.jsonl")
    assert listed() != first


def test_a_listing_of_a_store_has_its_etags():
    prints = []
    for etag in ("1", "1", "2"):
        remote.forget()  # of another run
        CountingStore.fill({"corpus/a.jsonl": Repeated(b"{}\n", 300, etag)})
        source = open_split(DataConfig(root="counted://corpus", train="*.jsonl"), "train")
        assert source is not None
        prints.append(fingerprint(source, "listing"))
        assert CountingStore.counts.requests["get"] == 0
    assert prints[0] == prints[1] != prints[2]


# -- runs and --verify -------------------------------------------------------------------------------------------------


def run_of(folder: Path, tmp_path: Path, **data: Any) -> tuple[RunDir, Recipe, dict[str, Any]]:
    """A run directory with the manifest of a first start."""
    data = {"validation": None, "test": None, **data}
    made = Recipe.parse(tiny_recipe(folder, data=data))
    run = RunDir(tmp_path / "run")
    run.create()
    run.recipe.write_text(made.to_yaml(), encoding="utf-8")
    found = survey_data(run, made)
    write_json(run.manifest, {"data": found})
    return run, made, found["train"]


@pytest.fixture
def tiny_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprints, "FINGERPRINT_BYTES", 100)
    monkeypatch.setattr("trainer.data.survey.PART_ROWS", 5)
    monkeypatch.setattr("trainer.data.survey.FILE_ROWS", 5)


def test_a_resume_compares_in_the_way_of_the_first_start(tmp_path, tiny_limit, monkeypatch):
    lines(tmp_path / "corpus")
    run, made, facts = run_of(tmp_path / "corpus", tmp_path)
    assert (facts["fingerprint_of"], facts["check"], facts["rows"]) == ("listing", "sample", None)
    monkeypatch.setattr(fingerprints, "FINGERPRINT_BYTES", 10**9)
    assert survey_data(run, made)["train"] == facts
    (tmp_path / "corpus" / "train.jsonl").touch()
    with pytest.raises(
        DataError, match=r"fingerprint of names, sizes, and etags .*`rankzero prepare RECIPE --verify"
    ) as caught:
        survey_data(run, made)
    assert caught.value.exit_code == 3


def test_runs_of_earlier_versions_resume(tmp_path, tiny_limit):
    source = lines(tmp_path / "corpus")
    run, made, _ = run_of(tmp_path / "corpus", tmp_path, check="full")
    old = {"rows": 20, "bad_rows": {}, "labels": {}, "fingerprint": fingerprint(source)}
    write_json(run.manifest, {"data": {"train": old}})
    (tmp_path / "corpus" / "train.jsonl").touch()
    assert survey_data(run, made)["train"] == old, "their content was hashed, whatever its size"
    lines(tmp_path / "corpus", rows=21)
    with pytest.raises(DataError, match="fingerprint of content"):
        survey_data(run, made)


def test_verify_records_a_full_hash_and_accepts_a_copy(tmp_path, tiny_limit):
    lines(tmp_path / "corpus")
    run, made, facts = run_of(tmp_path / "corpus", tmp_path)
    assert "are listed as recorded" in prepare(made, verify=True, run=run.path)
    known = (read_json(run.manifest) or {})["data"]["train"]
    assert known == facts | {"content_fingerprint": fingerprint(lines(tmp_path / "again"), "content")}
    assert "agrees, SHA-256" in prepare(made, verify=True, run=run.path)

    shutil.copytree(tmp_path / "corpus", tmp_path / "copy", copy_function=shutil.copy)
    os.utime(tmp_path / "copy" / "train.jsonl", ns=(5, 5))
    moved = Recipe.parse(tiny_recipe(tmp_path / "copy", data={"validation": None, "test": None}))
    with pytest.raises(DataError, match="has changed since this run began"):
        survey_data(run, moved)
    assert "as in a copy" in prepare(moved, verify=True, run=run.path)
    assert survey_data(run, moved)["train"]["rows"] is None

    content = bytearray((tmp_path / "copy" / "train.jsonl").read_bytes())
    content[20:21] = b"#"
    (tmp_path / "copy" / "train.jsonl").write_bytes(content)
    os.utime(tmp_path / "copy" / "train.jsonl", ns=(5, 5))
    assert survey_data(run, moved), "a change that keeps size and time is not seen by a listing"
    with pytest.raises(DataError, match="the content of 1 files differs") as caught:
        prepare(moved, verify=True, run=run.path)
    assert caught.value.exit_code == 3


def test_verify_without_a_hash_to_compare_with(tmp_path, tiny_limit):
    lines(tmp_path / "corpus")
    run, made, _ = run_of(tmp_path / "corpus", tmp_path)
    (tmp_path / "corpus" / "train.jsonl").touch()
    before = run.manifest.read_bytes()
    with pytest.raises(DataError, match="no hash of the content was recorded"):
        prepare(made, verify=True, run=run.path)
    assert run.manifest.read_bytes() == before
    with pytest.raises(UsageError, match="--run names a run directory for --verify"):
        prepare(made, run=run.path)


def test_verify_a_prepared_corpus(tmp_path):
    write_rows(tmp_path / "corpus" / "train.jsonl", 60)
    made = Recipe.parse(tiny_recipe(tmp_path / "corpus", data={"validation": None, "test": None}))
    with pytest.raises(UsageError, match=r"has no prepared\.json"):
        prepare(made, verify=True, out=tmp_path / "prepared")
    prepare(made, out=tmp_path / "prepared")
    assert "data.train: the content of 1 files agrees" in prepare(made, verify=True, out=tmp_path / "prepared")
    write_rows(tmp_path / "corpus" / "train.jsonl", 60, seed=1)
    with pytest.raises(DataError, match="the content of 1 files differs"):
        prepare(made, verify=True, out=tmp_path / "prepared")


def test_a_large_prepared_corpus_says_its_rows(tmp_path, monkeypatch):
    write_rows(tmp_path / "corpus" / "train.jsonl", 60)
    made = Recipe.parse(tiny_recipe(tmp_path / "corpus", data={"validation": None, "test": None}))
    prepare(made, out=tmp_path / "prepared")
    monkeypatch.setattr("trainer.data.survey.PART_ROWS", 4)
    monkeypatch.setattr("trainer.data.survey.FILE_ROWS", 4)
    prepared = tmp_path / "prepared"
    settings: dict[str, Any] = {
        "data": {"validation": None, "test": None, "check": "sample"},
        "loop": {"max_steps": None, "epochs": 1},
    }
    facts = survey_data(RunDir(tmp_path / "run"), Recipe.parse(tiny_recipe(prepared, **settings)))["train"]
    assert (facts["rows"], facts["check"]) == (60, "sample")
    json.dumps(facts)


def test_tasks_that_need_counts_refuse_to_read_no_row(tmp_path):
    section = {"kind": "classification", "labels": ["a", "b"]}
    model = {"kind": "encoder", "d_model": 32, "layers": 1, "heads": 2, "feed_forward": 64}
    base = tiny_recipe(tmp_path, data={"columns": {}, "test": None, "check": "off"}) | {"model": model}
    with pytest.raises(UsageError, match=r"data\.check=off: task\.class_weights=balanced"):
        load_recipe(Recipe.parse(base | {"task": section | {"class_weights": "balanced"}}))
    regression = {"kind": "classification", "mode": "regression", "targets": ["value"]}
    with pytest.raises(UsageError, match=r"data\.check=off: task\.mode regression"):
        load_recipe(Recipe.parse(base | {"task": regression}))
