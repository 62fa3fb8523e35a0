"""Rows that are checked when they are read: same steps, counts and messages as with a survey of all rows."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import sentence_pair, tiny_recipe, write_rows
from hypothesis import given
from hypothesis import strategies as st
from lane_helpers import (
    PROPERTY,
    LaneSetup,
    Place,
    as_json,
    collate,
    count,
    lane_setups,
    places,
    simulated_processes,
    start,
)
from processes import status
from processes import train as on_ranks

from trainer import train
from trainer.data.cleaning import BadRow
from trainer.data.lanes import LaneServer
from trainer.data.left_out import LeftOut
from trainer.data.loader import load_epoch
from trainer.data.roles import Text
from trainer.data.sources import open_split
from trainer.data.survey import FEW, survey_part, too_many
from trainer.data_parallel import DataParallel
from trainer.engine.progress import Progress
from trainer.errors import DataError, UsageError
from trainer.recipe.loop_sections import LoopConfig
from trainer.recipe.sections import DataConfig
from trainer.recipe_loading import Recipe

ROLES = {"src": Text(), "trg": Text(target=True)}


# -- lanes -------------------------------------------------------------------------------------------------------------


def tally(rows: list[Any], encoded: list[Any]) -> LeftOut:
    bad = [found for found in encoded if isinstance(found, BadRow)]
    used = len(rows) - len(bad)
    return LeftOut(
        used,
        len(bad),
        len(bad),
        len(bad),
        Counter(row.reason for row in bad),
        tuple(sorted(bad, key=lambda b: b.id)[:5]),
    )


def encode(rows: list[Any]) -> list[Any]:
    return [BadRow(row.id, f"is {row.length}") if row.bad else ({"x": [1] * row.length}, row.length) for row in rows]


def counted(world: LaneSetup, state: Any, place: Place, steps: int | None = None) -> tuple[list[Any], LeftOut, Any]:
    """Return rows of each step, the sum of all counts, and the state afterwards, for one epoch on simulated ranks."""
    progress = Progress.from_json(as_json(state))
    groups = [DataParallel(rank, place.ranks).lane_groups(world.plan.lanes, place.fuse) for rank in range(place.ranks)]
    server = LaneServer(world.source, world.plan, encode, None, world.whole_shards, None, tally)
    options: Any = {"inputs": ["x"], "workers": place.workers, "prefetch": 2, "pin_memory": False}
    streams = [load_epoch(server, collate, count, own, progress.marks, **options) for own in groups]
    total, done = LeftOut(), list[Any]()
    while True:
        batches = [loaded for stream in streams for loaded in next(stream, []) if loaded is not None]
        for loaded in batches:
            total += loaded.left or LeftOut()
            progress.left_out += loaded.left_out
            progress.marks.update(loaded.lanes | loaded.ended)
        if not any(loaded.has_rows for loaded in batches):
            return done, total, progress.to_json(progress.marks)
        done.append({lane: ids for loaded in batches for lane, ids in loaded.ids.items()})
        if len(done) == steps:
            return done, total, progress.to_json(progress.marks)


@PROPERTY
@given(st.data())
def test_counts_are_those_of_all_rows_on_any_ranks_after_a_resume(data: st.DataObject) -> None:
    world = data.draw(lane_setups())
    there, here = (data.draw(places(world.plan.lanes)) for _ in range(2))
    rows = world.source.rows()
    expected = tally(rows, encode(rows))
    with simulated_processes():
        uninterrupted, total, state = counted(world, start(world), there)
        assert total == expected
        assert state.get("left_out", 0) == expected.rows
        stop = data.draw(st.integers(1, max(1, len(uninterrupted))))
        begun, before, state = counted(world, start(world), there, stop)
        rest, after, state = counted(world, state, here)
    assert begun + rest == uninterrupted
    assert before + after == expected
    assert state.get("left_out", 0) == expected.rows


def test_the_share_of_a_training_is_exact_where_rows_are_left_out() -> None:
    progress = Progress.start(1)
    progress.rows, progress.left_out = 70, 20
    assert progress.share(LoopConfig(epochs=2), 100, 5 + 5, 1) == 0.5
    assert "left_out" not in Progress.start(1).to_json(Progress.start(1).marks), "state.json is as before"


# -- the part that is read before --------------------------------------------------------------------------------------


def part(folder: Path, **more: Any) -> Any:
    data = DataConfig(root=str(folder), train="*.jsonl", columns={"src": "de", "trg": "en"}, check="sample", **more)
    source = open_split(data, "train")
    assert source is not None
    return survey_part(source, data, ROLES, "train")


def with_bad(path: Path, rows: int, *bad: int) -> Path:
    lines = write_rows(path, rows).read_text(encoding="utf-8").splitlines()
    for at in bad:
        lines[at] = json.dumps({"de": f"Satz {at}", "en": None})
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_the_first_rows_of_every_file_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.data.survey.PART_ROWS", 20)
    monkeypatch.setattr("trainer.data.survey.FILE_ROWS", 10)
    for name in "abc":
        write_rows(tmp_path / f"{name}.jsonl", 50)
    counts, rows = part(tmp_path)
    assert (counts.shard_rows, counts.rows, counts.complete, rows) == ([10, 10, 10], 30, False, None)
    with_bad(tmp_path / "c.jsonl", 50, 4, 20)
    with pytest.raises(DataError, match=r'c\.jsonl, line 5 \(row 5\), column "en": is null\. Fix the row'):
        part(tmp_path)
    counts, _ = part(tmp_path, on_bad_row="skip")
    assert dict(counts.bad) == {"column 'en' is null": 1}, "one of 30 is not yet more than 1% of a large corpus"
    with_bad(tmp_path / "c.jsonl", 50, *range(50))
    with_bad(tmp_path / "b.jsonl", 50, *range(50))
    with_bad(tmp_path / "a.jsonl", 50, *range(50))
    with pytest.raises(DataError, match="no usable row"):
        part(tmp_path, on_bad_row="skip", max_bad_fraction=0.9)


def test_a_small_split_is_read_to_its_end(tmp_path):
    write_rows(tmp_path / "a.jsonl", 9)
    counts, rows = part(tmp_path)
    assert (counts.complete, counts.rows, rows) == (True, 9, 9)
    with pytest.raises(DataError, match=r"data\.lanes=10 is more than the 9 rows"):
        part(tmp_path, lanes=10)


def test_long_rows_are_bounded_by_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.data.survey.PART_ROWS", 100)
    lines = [json.dumps({"de": "x" * 20_000, "en": "y"}) for _ in range(100)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    assert part(tmp_path)[0].read == 4, "64 kB"


def test_when_bad_rows_are_too_many():
    data = DataConfig(root="x", train="y", max_bad_fraction=0.01)
    assert too_many(2, 98, data, complete=True)
    assert not too_many(2, 98, data, complete=False)
    assert not too_many(FEW // 100, 0, data, complete=False)
    assert too_many(FEW // 100 + 1, 0, data, complete=False)
    assert too_many(301, 29_699, data, complete=False)


# -- runs --------------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def few_rows_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.data.survey.PART_ROWS", 10)
    monkeypatch.setattr("trainer.data.survey.FILE_ROWS", 10)


def recipe(folder: Path, **sections: dict[str, Any]) -> Recipe:
    sections["data"] = {"validation": None, "test": None, "block_rows": 16, **sections.get("data", {})}
    sections["evaluation"] = {"splits": []}
    return Recipe.parse(tiny_recipe(folder, **sections))


def weights(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


def state(run: Path, step: int) -> dict[str, Any]:
    return dict(json.loads((run / "checkpoints" / f"step-{step:08d}" / "state.json").read_text()))


@pytest.mark.parametrize("check", ["sample", "off"])
def test_steps_are_those_of_a_run_that_has_read_all_rows(tmp_path, check):
    with_bad(tmp_path / "train.jsonl", 120, 40, 77, 119)
    settings: dict[str, Any] = {
        "data": {"on_bad_row": "skip", "max_bad_fraction": 0.1},
        "loop": {"max_steps": 14, "save_every": 3},
        "tokenizer": {"train": {"kind": "byte_bpe", "vocab_size": 300}},
    }
    full = train(recipe(tmp_path, **settings), run=tmp_path / "full").path
    settings["tokenizer"] = {"train": None, "pretrained": str(full / "tokenizer")}
    settings["data"]["check"] = check
    run = train(recipe(tmp_path, **settings), run=tmp_path / check).path
    assert weights(run) == weights(full)
    facts, surveyed = (json.loads((path / "manifest.json").read_text())["data"]["train"] for path in (run, full))
    assert (surveyed["check"], facts["check"], facts["rows"]) == ("full", check, None)
    assert facts["checked_rows"] == (10 if check == "sample" else 0)
    assert facts["while_training"]["reasons"] == surveyed["bad_rows"] == {"column 'en' is null": 3}
    assert (facts["while_training"]["rows"], facts["while_training"]["bad"]) == (surveyed["rows"], 3)
    assert facts["while_training"]["examples"][0] == 'train.jsonl:40 (row 41), column "en": is null'
    assert facts["fingerprint"] == surveyed["fingerprint"]
    assert "unchecked" not in state(full, 14)


def test_a_bad_row_ends_a_run_with_its_place_and_a_checkpoint(tmp_path, monkeypatch):
    with_bad(tmp_path / "train.jsonl", 200, 150, 151)
    made = recipe(tmp_path, data={"check": "sample"})
    with pytest.raises(DataError, match=r"data\.train: train\.jsonl:150 .* is null\. Fix the row") as caught:
        train(made, run=tmp_path / "counted")  # where tokens are counted
    assert not list((tmp_path / "counted" / "checkpoints").iterdir())
    monkeypatch.setattr("trainer.engine.token_counts.SAMPLE", 20)
    with pytest.raises(
        DataError, match=r'data\.train: train\.jsonl:15[01] \(row 15[12]\), column "en": is null'
    ) as caught:
        train(made, run=tmp_path / "run")
    assert caught.value.exit_code == status(tmp_path / "run")["exit_code"] == 3
    saved = max(int(path.name[5:]) for path in (tmp_path / "run" / "checkpoints").glob("step-*"))
    assert saved > 3, "the last finished step"
    lenient = ["data.on_bad_row=skip", "data.max_bad_fraction=0.02"]
    allowed = ["data.on_bad_row", "data.max_bad_fraction"]
    done = train(made, lenient, run=tmp_path / "run", allow_change=allowed)
    once = train(made, lenient, run=tmp_path / "once")
    assert weights(done.path) == weights(once.path)
    assert state(done.path, 12)["unchecked"] == state(once.path, 12)["unchecked"]


def test_too_many_bad_rows_end_a_run_at_the_end_of_an_epoch(tmp_path):
    with_bad(tmp_path / "train.jsonl", 100, 50, 60, 70)
    made = recipe(tmp_path, data={"check": "sample", "on_bad_row": "skip"}, loop={"max_steps": 50})
    message = (
        r"3 of the first 100 lines .* more than data\.max_bad_fraction=0\.01:\n  3 x column 'en' is null\nThe first"
    )
    with pytest.raises(DataError, match=message):
        train(made, run=tmp_path / "run")


def test_rows_that_nobody_knows_need_max_steps(tmp_path):
    write_rows(tmp_path / "train.jsonl", 100)
    for check in ("sample", "off"):
        made = recipe(tmp_path, data={"check": check}, loop={"max_steps": None, "epochs": 1})
        with pytest.raises(
            UsageError, match=rf"loop\.max_steps is required: .*data\.check={check}.*data\.check=full"
        ) as caught:
            train(made, run=tmp_path / "run")
        assert caught.value.exit_code == 2


def test_rows_of_metadata_make_exact_epochs(tmp_path):
    """With bad rows, a held-out share and a rate that ends at zero with the last row."""
    rows = [sentence_pair(random.Random(i)) for i in range(150)]
    rows[33]["en"] = rows[120]["en"] = None  # type: ignore[assignment]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet", row_group_size=40)
    made = recipe(
        tmp_path,
        data={
            "train": "train.parquet",
            "validation": 0.2,
            "check": "sample",
            "on_bad_row": "skip",
            "max_bad_fraction": 0.1,
        },
        loop={"max_steps": None, "epochs": 2, "eval_every": 1000, "save_every": 4},
        optim={"schedule": "linear"},
    )
    run = train(made, run=tmp_path / "run")
    facts = json.loads((run.path / "manifest.json").read_text())["data"]["train"]
    assert (facts["rows"], facts["check"]) == (150, "sample")
    ended = state(run.path, run.step)
    assert ended["rows"] + ended["left_out"] == 2 * 150
    assert facts["while_training"]["rows"] * 2 == ended["rows"]
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    used = [row for line in lines for row in [line.get("lr")] if row is not None]
    assert used[-1] < used[0] / 10


@pytest.mark.ranks
@pytest.mark.slow
def test_counts_and_messages_do_not_depend_on_ranks(tmp_path):
    with_bad(tmp_path / "train.jsonl", 200, 40, 77, 150, 199)
    settings = tmp_path / "r.yaml"
    data = {"validation": None, "test": None, "block_rows": 16, "check": "off", "on_bad_row": "skip"}
    made = tiny_recipe(
        tmp_path, data=data | {"max_bad_fraction": 0.1}, loop={"max_steps": 14}, evaluation={"splits": []}
    )
    settings.write_text(json.dumps(made))
    states = []
    for ranks in (1, 2):
        on_ranks(settings, tmp_path / f"run-{ranks}", world=ranks).check()
        states.append(state(tmp_path / f"run-{ranks}", 14)["unchecked"])
    on_ranks(settings, tmp_path / "both", "loop.max_steps=5", world=2).check()
    on_ranks(settings, tmp_path / "both", "loop.max_steps=14", "--allow-change", "loop.max_steps", world=1).check()
    states.append(state(tmp_path / "both", 14)["unchecked"])
    assert states[0] == states[1] == states[2]
    assert states[0]["reasons"] == {"column 'en' is null": 4}
    texts = []
    for ranks in (1, 2):
        run = tmp_path / f"fail-{ranks}"
        on_ranks(settings, run, "data.on_bad_row=fail", world=ranks).check(3)
        texts.append((status(run)["error"], sorted(path.name for path in (run / "checkpoints").glob("step-*"))))
    assert texts[0] == texts[1]
    assert "train.jsonl:" in texts[0][0]
