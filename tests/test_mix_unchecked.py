"""Mixed corpora whose rows are checked when they are read (`data.check`): counts, messages and steps."""

from __future__ import annotations

import json
from collections import Counter
from functools import reduce
from itertools import chain, repeat
from operator import add
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lane_helpers import PROPERTY, Item, Place, as_json, epoch_of, places, run, simulated_processes, start
from mix_helpers import LONG, SHORT, mixed, write_corpora
from test_mixing import MixedItem, MixSetup, mix, mixes

from trainer import train
from trainer.data.cleaning import BadRow
from trainer.data.lanes import Bookmark, LanePlan, LaneServer
from trainer.data.left_out import LeftOut
from trainer.data.loader import Loaded
from trainer.data.mixing import Mixture
from trainer.data.sources import open_split
from trainer.data.survey import survey_part
from trainer.data_parallel import DataParallel
from trainer.engine.agreement import agree
from trainer.engine.progress import Progress
from trainer.errors import DataError, UsageError
from trainer.task.registry import roles_of

DATA = {"block_rows": 10, "tokens_per_batch": 64, "max_length": 32, "validation": None, "test": None}
LOOP = {"max_steps": 12, "eval_every": 100, "save_every": 5, "log_every": 4}


@pytest.fixture(autouse=True)
def few_rows_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.data.survey.PART_ROWS", 10)
    monkeypatch.setattr("trainer.data.survey.FILE_ROWS", 10)


# -- lanes -------------------------------------------------------------------------------------------------------------


class Unchecked(MixSetup):
    """A mixture that counts the rows of first passes, as `Corpus` does."""

    def server(self) -> LaneServer:
        def usable(corpus: int, item: Any) -> Any:
            return BadRow(item.id, f"is {item.length}") if item.bad else MixedItem(item.id, item.length, corpus)

        def tally(seen: Any) -> LeftOut:
            first = [found for turn, _, found in seen if not turn]
            bad = [found for found in first if isinstance(found, BadRow)]
            places = tuple(sorted(bad, key=lambda row: row.id))
            return LeftOut(len(first) - len(bad), len(bad), len(bad), len(bad), Counter(b.reason for b in bad), places)

        server = super().server()
        mixture = Mixture(self.parts, self.quotas, usable, self.whole or [False] * len(self.parts), tally)
        server._mixture = mixture
        return server


def counted(world: Unchecked, state: Any, place: Place, steps: int | None = None) -> tuple[list[Any], LeftOut, Any]:
    """Return rows of each step, the sum of all counts, and the state afterwards, as the loop makes them."""
    progress = Progress.from_json(as_json(state))
    groups = [DataParallel(rank, place.ranks).lane_groups(world.plan.lanes, place.fuse) for rank in range(place.ranks)]
    done, left = list[Any](), [LeftOut()]
    while progress.epoch < world.epochs:
        marks = progress.marks
        streams = [
            chain(
                epoch_of(world, own, {lane: marks[lane] for group in own for lane in group}, place.workers),
                repeat([None] * len(own)),
            )
            for own in groups
        ]
        for batches in zip(*streams, strict=True):
            loaded = [one for part in batches for one in part if one is not None]
            left += [one.left for one in loaded if one.left is not None]
            for one in loaded:
                assert not one.left_out, "an epoch of a mixture has usable rows only"
                progress.marks = progress.marks | one.lanes | one.ended
            if not any(one.has_rows for one in loaded):
                break
            done.append({lane: ids for one in loaded for lane, ids in one.ids.items()})
            if len(done) == steps:
                return done, reduce(add, left), progress.to_json(progress.marks)
        progress.next_epoch()
    return done, reduce(add, left), progress.to_json(progress.marks)


@settings(PROPERTY, max_examples=60)
@given(mixes(), st.data())
def test_counts_are_the_same_on_any_ranks_and_after_a_resume(world: MixSetup, data: st.DataObject) -> None:
    unchecked = Unchecked(**vars(world))
    there, here = (data.draw(places(world.plan.lanes)) for _ in range(2))
    with simulated_processes():
        expected = [step.ids for step in run(world, start(world), Place())[0]]
        steps, total, _ = counted(unchecked, start(world), there)
        assert steps == expected, "the same steps as with a survey of all rows"
        stop = data.draw(st.integers(1, max(1, len(steps))))
        begun, before, state = counted(unchecked, start(world), there, stop)
        rest, after, _ = counted(unchecked, state, here)
    assert begun + rest == steps
    assert before + after == total
    rows = [item for part in world.parts for item in part.rows()]
    assert total.rows <= sum(item.bad for item in rows), "no row counts twice"
    assert total.used <= sum(not item.bad for item in rows)
    passes = Counter(row for step in steps for ids in step.values() for row in ids)
    seen = {item.id for item in rows if passes[item.id]}
    assert total.used <= len(seen), "only rows that were served"
    assert total.used == len(seen) or any(world.quotas.repeat) or world.epochs > 1


@pytest.mark.parametrize("epochs", [1, 2])
@pytest.mark.parametrize("rows", [40, 80])
def test_rows_after_the_last_usable_one_of_a_lane_count_once(rows: int, epochs: int) -> None:
    """The last rows of the corpus are bad, with 80 rows after the end of a block. The second epoch begins there."""
    world = Unchecked(**vars(mix([[rows]], [1], [False], epochs=epochs)))
    bad = 6 if rows == 40 else rows - world.plan.lanes * world.plan.edge_after(0, 0)
    assert 0 < bad < rows
    shard = world.parts[0].shards[0]
    shard[-bad:] = [Item(item.id, item.length, bad=True) for item in shard[-bad:]]
    for place in (Place(), Place(2)):
        steps, total, _ = counted(world, start(world), place)
        assert (total.used, total.rows) == (rows - bad, bad)
        assert sum(len(ids) for step in steps for ids in step.values()) == (rows - bad) * epochs


def test_a_note_about_left_out_rows_has_no_corpora() -> None:
    """A lane whose last rows are all left out sends a note without rows in a step in which other lanes have rows."""
    rows = Loaded({0: Bookmark()}, {0: [(0, 1)]}, {0: 1}, {}, 1, 3, 4, targets=2.0, corpora=[(1, 2.0), (0, 0.0)])
    note = Loaded({}, {}, {}, {}, 0, 0, 0, left=LeftOut(0, 2, 2, 2), ended={1: Bookmark(start=3)})
    runtime: Any = SimpleNamespace(main=True, stop=SimpleNamespace(received=None), start_sum=lambda own, _: lambda: own)
    totals = agree(runtime, [rows, note, None], corpora=2, unchecked=True).totals()
    assert (totals.lanes, totals.corpus_rows, totals.corpus_targets) == (1, (1, 0), (2.0, 0.0))
    assert (totals.bad, totals.used) == (2, 0)


# -- before the training -----------------------------------------------------------------------------------------------


def test_each_corpus_has_its_own_sample_and_number_of_rows(tmp_path: Path) -> None:
    root = write_corpora(tmp_path)
    lines = [json.loads(line) for line in (root / "long" / "train.jsonl").read_text().splitlines()]
    pq.write_table(pa.Table.from_pylist(lines), root / "long" / "train.parquet")
    long = {"name": "long", "root": str(root / "long"), "train": "train.parquet", "weight": 2}
    long["columns"] = {"text": "review", "label": "stars"}
    short = {"name": "short", "root": str(root / "short"), "train": "train.jsonl", "weight": 1}
    for held_out, known in ((None, LONG), (0.25, LONG * 3 // 4)):
        made = mixed(root, short, long, data={**DATA, "check": "sample", "validation": held_out})
        roles, source = roles_of(made), open_split(made.data, "train")
        assert source is not None
        counts, rows = survey_part(source, made.data, roles, "train", "content")
        facts = counts.report()
        assert (facts["rows"], rows) == (None, None), "JSON lines do not say how many rows they have"
        assert facts["checked_rows"] == sum(part["checked_rows"] for part in facts["corpora"].values())
        assert [part["rows"] for part in facts["corpora"].values()] == [None, known]
    source = open_split(made.data, "validation")
    assert source is not None
    assert survey_part(source, made.data, roles, "validation")[1] is None


@pytest.mark.parametrize("check", ["sample", "off"])
def test_an_epoch_without_an_end_and_weights_without_rows_are_refused(tmp_path: Path, check: str) -> None:
    root = write_corpora(tmp_path)
    data, loop = {**DATA, "check": check}, {**LOOP, "max_steps": None, "epochs": 1}
    with pytest.raises(UsageError, match=r"loop\.max_steps is required.* or rows_per_epoch of all entries"):
        train(mixed(root, data=data, loop=loop), run=tmp_path / "a")
    short, long = mixed(root).model_dump(mode="json")["data"]["mix"]
    for entry in (short, long):
        entry["weight"] = None
    with pytest.raises(UsageError, match=r"data\.mix_temperature needs the number of rows .* data\.check=full"):
        train(mixed(root, short, long, data={**data, "mix_temperature": 2}, loop=loop), run=tmp_path / "b")


# -- runs --------------------------------------------------------------------------------------------------------------


def spoil(file: Path, *rows: int) -> None:
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        lines[row] = dict.fromkeys(lines[row])
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def test_steps_are_those_of_a_run_that_has_read_all_rows(tmp_path: Path) -> None:
    root = write_corpora(tmp_path)
    spoil(root / "short" / "train.jsonl", 20, SHORT - 1)
    spoil(root / "long" / "train.jsonl", 30)
    data = {**DATA, "on_bad_row": "skip", "max_bad_fraction": 0.2}
    made: dict[str, Any] = {"loop": {**LOOP, "max_steps": 60}, "evaluation": {"splits": []}}
    full = train(mixed(root, data=data, **made), run=tmp_path / "full").path
    tokenizer = {"tokenizer": {"train": None, "pretrained": str(full / "tokenizer")}}
    done = train(mixed(root, data={**data, "check": "sample"}, **made, **tokenizer), run=tmp_path / "part").path
    assert (done / "model" / "model.safetensors").read_bytes() == (full / "model" / "model.safetensors").read_bytes()
    facts, surveyed = (json.loads((path / "manifest.json").read_text())["data"]["train"] for path in (done, full))
    assert (surveyed["check"], facts["check"], facts["rows"]) == ("full", "sample", None)
    found = facts["while_training"]
    assert sum(found["reasons"].values()) == found["bad"] == sum(surveyed["bad_rows"].values()) == 3
    assert found["rows"] == surveyed["rows"] == SHORT + LONG - 3
    assert [example.split(":")[0] for example in found["examples"]] == ["short/train.jsonl"] * 2 + ["long/train.jsonl"]


def test_bad_rows_at_the_end_of_an_epoch_count_once(tmp_path: Path) -> None:
    """The usable rows of each lane end with a block, and bad ones follow. The second epoch begins after them."""
    root = write_corpora(tmp_path)
    only = {"name": "short", "root": str(root / "short"), "train": "train.jsonl", "weight": 1}
    data = {**DATA, "check": "sample", "on_bad_row": "skip", "max_bad_fraction": 0.95}
    made = mixed(root, only, data=data, loop={**LOOP, "max_steps": 100, "epochs": 2}, evaluation={"splits": []})
    made = made.model_copy(update={"loop": made.loop.model_copy(update={"ledger": True})})
    usable = made.data.lanes * LanePlan(made.seed, made.data.lanes, made.data.block_rows, 64, None).edge_after(0, 0)
    spoil(root / "short" / "train.jsonl", *range(usable, SHORT))
    done = train(made, run=tmp_path / "run").path
    found = json.loads((done / "manifest.json").read_text())["data"]["train"]["while_training"]
    assert (found["rows"], found["bad"]) == (usable, SHORT - usable)
    steps = [json.loads(line)["rows"] for line in (done / "ledger.jsonl").read_text().splitlines()]
    served = Counter(row for step in steps for ids in step.values() for row in ids)
    assert served == {f"short/train.jsonl:{row}": 2 for row in range(usable)}


def test_a_bad_row_ends_a_run_with_corpus_and_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.engine.token_counts.SAMPLE", 20)
    root = write_corpora(tmp_path)
    spoil(root / "long" / "train.jsonl", LONG - 1)
    made = mixed(root, data={**DATA, "check": "sample"}, loop={**LOOP, "max_steps": 60})
    with pytest.raises(DataError, match=rf"data\.train: long/train\.jsonl:{LONG - 1} .*Fix the row") as caught:
        train(made, run=tmp_path / "run")
    assert caught.value.exit_code == 3
    assert list((tmp_path / "run" / "checkpoints").glob("step-*")), "the last finished step"


def test_too_many_bad_rows_end_a_run_at_the_end_of_an_epoch(tmp_path: Path) -> None:
    root = write_corpora(tmp_path)
    spoil(root / "short" / "train.jsonl", 20, 30, 40)
    made = mixed(root, data={**DATA, "check": "sample", "on_bad_row": "skip"}, loop={**LOOP, "max_steps": 100})
    with pytest.raises(DataError, match=r"data\.train: 3 of the first \d+ lines .*data\.max_bad_fraction=0\.01"):
        train(made, run=tmp_path / "run")
