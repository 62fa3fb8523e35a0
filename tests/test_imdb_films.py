"""Complete films of IMDB held out (benchmarks/imdb_films.py)."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import pytest

from benchmarks import imdb_films


def test_blocks_of_successive_reviews_are_held_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row is in one of the files, as it was."""
    shards = tmp_path / "imdb" / "shards"
    shards.mkdir(parents=True)
    rows = [{"id": number, "text": f"{label} {number}", "label": label} for label in "ab" for number in range(3600)]
    for shard in (0, 1):
        with gzip.open(shards / f"train-0000{shard}-of-00002.jsonl.gz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows[shard::2])
    monkeypatch.setattr(sys, "argv", ["imdb_films", "--data", str(tmp_path), "--out", str(tmp_path / "rows")])
    imdb_films.main()
    train, held = (
        [json.loads(line) for line in (tmp_path / "rows" / f"{name}.jsonl").read_text().splitlines()]
        for name in ("train", "validation")
    )
    wanted = {*range(400), *range(3125, 3525)}
    assert {(row["label"], row["id"]) for row in held} == {(label, number) for label in "ab" for number in wanted}
    assert sorted([*train, *held], key=lambda row: (row["label"], row["id"])) == rows
