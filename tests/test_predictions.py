"""The predictions file: order, exactness, and what it refuses."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.errors import DataError, NumericsError
from trainer.evaluation.predictions import in_corpus_order, read_predictions, write_predictions


def record(row_id: str, **values: Any) -> dict[str, Any]:
    return {
        "id": row_id,
        "input": "ein Hund",
        "target": "a dog",
        "prediction": "a dog",
        "loss": 1.5,
        "tokens": 3,
    } | values


def test_order_is_that_of_the_corpus_however_records_arrive(tmp_path: Path) -> None:
    ids = [f"test-0{shard}.jsonl:{row}" for shard in (0, 1) for row in (0, 2, 9, 10, 11, 100)]
    shuffled = random.Random(3).sample(ids, len(ids))
    assert write_predictions(tmp_path / "p.jsonl", map(record, shuffled)) == len(ids)
    assert [r["id"] for r in read_predictions(tmp_path / "p.jsonl")] == ids


def test_ids_of_another_shape_sort_by_their_text() -> None:
    assert [r["id"] for r in in_corpus_order(map(record, ["b:", "b:1", "a", "b:x", "b:²"]))] == [
        "a",
        "b:1",
        "b:",
        "b:x",
        "b:²",
    ]


@given(text=st.text(alphabet=st.one_of(st.characters(), st.sampled_from('\x85\u2028\u2029\r\n\x0b\x0c\x1c"\\'))))
@settings(deadline=None)
def test_any_text_survives_in_one_line(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("p") / "p.jsonl"
    rows = [record("t:0", prediction=text), record("t:1", input=text, probabilities=[0.1, 1e-17])]
    write_predictions(path, rows)
    assert list(read_predictions(path)) == rows
    assert path.read_bytes().count(b"\n") == 2


def test_lines_are_readable_utf8(tmp_path: Path) -> None:
    write_predictions(tmp_path / "p.jsonl", [record("t:0", target="Bär\x85\u2028")])
    assert "Bär\x85\u2028" in (tmp_path / "p.jsonl").read_bytes().decode()


def test_half_a_surrogate_pair_survives(tmp_path: Path) -> None:
    write_predictions(tmp_path / "p.jsonl", [record("t:0", input="\ud800")])
    assert next(read_predictions(tmp_path / "p.jsonl"))["input"] == "\ud800"


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "evaluation" / "test" / "p.jsonl"
    write_predictions(path, [record("t:0")])
    before = path.read_bytes()
    with pytest.raises(NumericsError, match=r"t:1.*loss"):
        write_predictions(path, [record("t:0"), record("t:1", loss=math.nan)])
    with pytest.raises(NumericsError, match="t:1"):
        write_predictions(path, [record("t:1", probabilities=[math.inf])])
    with pytest.raises(DataError, match="t:0"):
        write_predictions(path, [record("t:0"), record("t:0")])
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["p.jsonl"]


@pytest.mark.parametrize("row_id", [None, "", 7])
def test_a_record_without_an_id_is_refused(tmp_path: Path, row_id: Any) -> None:
    with pytest.raises(DataError, match="id"):
        write_predictions(tmp_path / "p.jsonl", [record("t:0") | {"id": row_id}])


def line(**values: Any) -> bytes:
    return json.dumps(record("t:1", **values)).encode()


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (line(id="t:0"), "'t:0' is already in line 1"),
        (line(id=None), "id is None"),
        (line(id=""), "id is ''"),
        (line(loss=None), "loss is None"),
        (line(loss=True), "loss is True"),
        (line()[:-9], "not a JSON object"),
        (line().replace(b"1.5", b"NaN"), "NaN"),
        (line().replace(b"a dog", b"a d\xffg"), "not UTF-8"),
        (b"", "not a JSON object"),
        (b"[1, 2]", "list"),
        (b'{"id": "t:1", "prediction": "x", "loss": 1}', "missing input, target"),
        (b'{"input": "", "target": "", "prediction": "x", "loss": 1}', "missing id"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, second: bytes, message: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(line(id="t:0") + b"\n" + second + b"\n")
    records = read_predictions(path)
    assert next(records)["id"] == "t:0"
    with pytest.raises(DataError, match=rf"p\.jsonl, line 2: .*{message}"):
        next(records)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.jsonl"):
        list(read_predictions(tmp_path / "absent.jsonl"))
