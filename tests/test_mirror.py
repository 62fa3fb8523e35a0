"""Copies of checkpoints in the background, and runs that are resumed from them."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from conftest import write_corpus, write_recipe
from fault_store import FaultStore, StatusError, late, raising

from trainer import cli
from trainer.data import remote
from trainer.engine import checkpoint, mirror, multipart
from trainer.engine.mirror import Mirror, fetch
from trainer.errors import CheckpointError, UsageError
from trainer.rundir import RunDir

URL = "fault://host/mirrors"
MORE = ["evaluation.max_rows=4", "data.test=null", "loop.eval_every=2", "loop.save_every=1", "loop.max_steps=4"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = write_corpus(tmp_path_factory.mktemp("corpus"), train=120, validation=6)
    return write_recipe(folder / "tiny.yaml", folder)


@pytest.fixture(scope="module")
def trained(recipe, tmp_path_factory):
    """A run with the checkpoints of steps 1 to 4, of which 4 is the best."""
    run = tmp_path_factory.mktemp("trained") / "run"
    assert train(recipe, run, "loop.keep=all") == 0
    return run


@pytest.fixture
def store(tmp_path, monkeypatch):
    for module, name, value in (
        *((remote, "FIRST_WAIT", 0.001), (remote, "LONGEST_WAIT", 0.01), (remote, "_answered", set())),
        *((mirror, "POLL_SECONDS", 0.02), (mirror, "RETRY_SECONDS", 0.05)),
    ):
        monkeypatch.setattr(module, name, value)
    (tmp_path / "store").mkdir()
    yield FaultStore.reset(tmp_path / "store")
    for thread in threading.enumerate():
        if thread.name == "mirror":  # its wait was given up
            thread.join(10)
    monkeypatch.undo()


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the run with its first two checkpoints only."""
    shutil.copytree(trained, tmp_path / "run")
    for step in (3, 4):
        shutil.rmtree(checkpoint.path_of(tmp_path / "run" / "checkpoints", step))
    return RunDir(tmp_path / "run")


def train(recipe: Path, run: Path, *overrides: str, **options: object) -> int:
    return cli.run_app(lambda: cli.train(str(recipe), [*MORE, *overrides], run=run, **options))


def mirrored(store: type[FaultStore]) -> list[int]:
    return checkpoint.steps(store.folder / "mirrors" / "run")


def add(run: RunDir, trained: Path, step: int) -> None:
    to = checkpoint.path_of(run.checkpoints, step)
    shutil.copytree(checkpoint.path_of(trained / "checkpoints", step), to.with_name(".saving-x"))
    to.with_name(".saving-x").rename(to)


def test_the_newest_checkpoint_and_those_it_needs_are_copied_with_the_manifest_last(run, store, trained):
    copies = Mirror(run, URL)
    assert copies.finish()
    assert mirrored(store) == [2]
    there = store.folder / "mirrors" / "run"
    assert checkpoint.fault(there / "step-00000002") is None
    assert (there / "tokenizer" / "tokenizer.json").read_bytes() == (run.tokenizer / "tokenizer.json").read_bytes()
    assert store.calls[-2].endswith("/step-00000002/manifest.json")  # then its size is compared
    assert not (run.checkpoints / mirror.LINKED).exists()


def test_copies_are_deleted_as_in_the_run_directory(run, store, trained):
    copies = Mirror(run, URL)
    wait_for(lambda: mirrored(store) == [2])
    add(run, trained, 3)  # needs the best one, 2
    wait_for(lambda: mirrored(store) == [2, 3])
    checkpoint.clean(run.checkpoints, 2, [4])
    shutil.rmtree(checkpoint.path_of(run.checkpoints, 2))
    add(run, trained, 4)
    assert copies.finish()
    assert mirrored(store) == checkpoint.steps(run.checkpoints) == [3, 4]


def test_a_copy_is_deleted_that_the_run_deletes_after_the_last_copy(run, store, trained):
    shutil.rmtree(checkpoint.path_of(run.checkpoints, 2))
    copies = Mirror(run, URL)
    wait_for(lambda: mirrored(store) == [1])
    add(run, trained, 2)
    wait_for(lambda: copies._is_complete())
    assert mirrored(store) == [1, 2]  # the training cleans up after the save, and here after the copy
    shutil.rmtree(checkpoint.path_of(run.checkpoints, 1))
    assert copies.finish()
    assert mirrored(store) == [2]


def test_files_may_grow_while_they_are_sent(run, store, caplog):
    """Lines of steps that follow are left out. Compared with the grown file, no copy of the file was right."""
    before = {name: (run.path / name).read_bytes() for name in ("metrics.jsonl", "manifest.json")}

    def grow(path: str) -> None:
        if (name := path.rpartition("/")[2]) in before and "step-" not in path:
            with (run.path / name).open("a", encoding="utf-8") as file:
                file.write("\n")

    store.put_plan = staticmethod(grow)
    assert Mirror(run, URL).finish()
    assert "cannot be reached or written" not in caplog.text
    there = store.folder / "mirrors" / "run"
    assert {name: (there / name).read_bytes() for name in before} == before
    assert not (run.checkpoints / mirror.LINKED).exists()


def wait_for(condition, seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.02)
    assert condition()


def test_a_failing_mirror_warns_and_is_tried_again(run, store, trained, caplog):
    broken = [True]
    store.put_plan = staticmethod(lambda path: raising(StatusError(403)) if broken else None)
    with caplog.at_level("WARNING", "rankzero"):
        copies = Mirror(run, URL)
        wait_for(
            lambda: any("cannot be reached or written" in r.message and "403" in r.message for r in caplog.records)
        )
        broken.clear()
        assert copies.finish()
    assert checkpoint.fault(store.folder / "mirrors" / "run" / "step-00000002") is None


def test_the_wait_for_a_mirror_that_is_down_is_bounded(run, store, monkeypatch, caplog):
    monkeypatch.setattr(mirror, "FAILING_SECONDS", 0.3)
    store.put_plan = staticmethod(lambda path: raising(StatusError(403)))
    copies = Mirror(run, URL)
    began = time.monotonic()
    assert not copies.finish()
    assert time.monotonic() - began < 10
    assert "lacks the newest checkpoint" in caplog.text
    assert mirrored(store) == []


def test_a_stop_does_not_wait_for_a_slow_mirror(run, store, monkeypatch):
    monkeypatch.setattr(mirror, "AT_STOP_SECONDS", 0.1)
    store.put_plan = staticmethod(lambda path: late(2.0))
    copies = Mirror(run, URL)
    began = time.monotonic()
    assert not copies.finish(lambda: True)
    assert time.monotonic() - began < 2.0


def test_a_checkpoint_may_be_deleted_while_it_is_copied(run, store, trained):
    store.put_plan = staticmethod(lambda path: late(0.2))
    copies = Mirror(run, URL)
    wait_for(lambda: any("put" in call for call in store.calls))
    add(run, trained, 3)
    shutil.rmtree(checkpoint.path_of(run.checkpoints, 1))
    wait_for(lambda: mirrored(store) == [2])
    store.put_plan = staticmethod(lambda path: None)
    assert copies.finish()
    for step in mirrored(store):
        assert checkpoint.fault(checkpoint.path_of(store.folder / "mirrors" / "run", step)) is None


@pytest.fixture
def parts(store, monkeypatch):
    """Large files are sent in parts of 40,000 bytes, two at once. Return how often each part was sent."""
    monkeypatch.setattr(multipart, "PART", 40_000)
    monkeypatch.setattr(multipart, "AT_ONCE", 2)
    return lambda: Counter(call.partition(" ")[2] for call in store.calls if call.startswith("upload_part"))


def numbers(run: RunDir) -> Counter[str]:
    """Return the parts of the checkpoint of step 2, each sent once."""
    files = (checkpoint.path_of(run.checkpoints, 2)).glob("*.safetensors")
    counts = [-(-file.stat().st_size // multipart.PART) for file in files]
    assert min(counts) >= 3
    return Counter(str(number) for count in counts for number in range(1, count + 1))


def test_a_failed_part_is_sent_again_alone(run, store, parts):
    faults = {2: [StatusError(503), ConnectionResetError()], 3: [TimeoutError()]}
    store.part_plan = staticmethod(lambda number: raising(faults[number].pop(0)) if faults.get(number) else None)
    assert Mirror(run, URL).finish()
    assert checkpoint.fault(store.folder / "mirrors" / "run" / "step-00000002") is None
    assert parts() == numbers(run) + Counter({"2": 2, "3": 1})
    assert store.uploads == {}


def test_parts_that_arrive_in_another_order(run, store, parts):
    store.part_plan = staticmethod(lambda number: late(0.2) if number == 1 else None)
    assert Mirror(run, URL).finish()
    assert checkpoint.fault(store.folder / "mirrors" / "run" / "step-00000002") is None
    assert parts() == numbers(run)


def test_an_upload_that_is_refused_is_aborted_and_begins_again_later(run, store, parts, caplog):
    refused = [2, 2]
    store.part_plan = staticmethod(
        lambda number: raising(StatusError(403)) if number in refused and not refused.remove(number) else None
    )
    assert Mirror(run, URL).finish()
    assert caplog.text.count("cannot be reached or written") == 2
    assert sum(call.startswith("abort_multipart_upload") for call in store.calls) == 2
    assert store.uploads == {}
    assert checkpoint.fault(store.folder / "mirrors" / "run" / "step-00000002") is None


def test_a_stop_ends_an_upload_between_two_parts(run, store, parts, monkeypatch):
    monkeypatch.setattr(mirror, "AT_STOP_SECONDS", 0.1)
    store.part_plan = staticmethod(lambda number: late(0.3))
    assert not Mirror(run, URL).finish(lambda: True)
    wait_for(lambda: any(call.startswith("abort_multipart_upload") for call in store.calls))
    assert store.uploads == {}
    assert sum(parts().values()) < 6


def test_an_incomplete_copy_does_not_count(run, store, tmp_path, monkeypatch):
    store.put_plan = staticmethod(lambda path: raising(StatusError(403)) if path.endswith("manifest.json") else None)
    copies = Mirror(run, URL)
    wait_for(lambda: mirrored(store) == [2])
    monkeypatch.setattr(mirror, "FAILING_SECONDS", 0.0)
    assert not copies.finish()
    fresh = RunDir(tmp_path / "fresh")
    fresh.create()
    with pytest.raises(CheckpointError, match="no complete checkpoint: there is none; name the folder"):
        fetch(f"{URL}/run", fresh)
    assert list(fresh.checkpoints.iterdir()) == []


def test_a_place_of_another_run_is_refused(run, store):
    assert Mirror(run, URL).finish()
    manifest = json.loads(run.manifest.read_text())
    run.manifest.write_text(json.dumps({**manifest, "started": "another time"}))
    with pytest.raises(UsageError, match="has checkpoints of another run") as refused:
        Mirror(run, URL)
    assert refused.value.exit_code == 2


def test_a_damaged_copy_is_left_out(run, store, trained, tmp_path, caplog):
    add(run, trained, 3)
    assert Mirror(run, URL).finish()
    there = checkpoint.path_of(store.folder / "mirrors" / "run", 3) / "model.safetensors"
    content = bytearray(there.read_bytes())
    content[-1] ^= 1
    there.write_bytes(content)
    fresh = RunDir(tmp_path / "fresh")
    fresh.create()
    fetch(f"{URL}/run", fresh)
    assert checkpoint.steps(fresh.checkpoints) == [2]
    assert "model.safetensors has another SHA-256" in caplog.text
    shutil.rmtree(checkpoint.path_of(store.folder / "mirrors" / "run", 2))
    shutil.rmtree(fresh.checkpoints / "step-00000002")
    remote.forget()
    with pytest.raises(CheckpointError, match=r"no complete checkpoint: .*another SHA-256") as failed:
        fetch(f"{URL}/run", fresh)
    assert failed.value.exit_code == 4


def test_files_of_a_mirror_stay_in_the_run_directory(run, store, tmp_path, monkeypatch):
    """A bucket may have keys such as step-00000002/../../x."""
    assert Mirror(run, URL).finish()
    fresh = RunDir(tmp_path / "fresh")
    fresh.create()
    find = store.find
    more = "/mirrors/run/step-00000002/../../../../escaped"
    monkeypatch.setattr(store, "find", lambda self, path, **kwargs: [*find(self, path, **kwargs), more])
    with pytest.raises(CheckpointError, match="is not in the checkpoint"):
        fetch(f"{URL}/run", fresh)
    assert not (tmp_path / "escaped").exists()


def test_a_run_directory_with_checkpoints_is_left_alone_unless_a_fetch_was_interrupted(run, store, trained, caplog):
    copies = Mirror(run, URL)
    assert copies.finish()
    store.reads.clear()
    with caplog.at_level("INFO", "rankzero"):
        fetch(f"{URL}/run", run)
    assert "--resume-from is not used" in caplog.text
    assert store.reads == []
    (run.checkpoints / mirror.FETCHED).mkdir()  # killed between its renames
    shutil.rmtree(checkpoint.path_of(run.checkpoints, 2))
    fetch(f"{URL}/run", run)
    assert checkpoint.newest(run.checkpoints) == 2
    assert not (run.checkpoints / mirror.FETCHED).exists()


def test_a_run_resumed_from_a_mirror_ends_with_the_same_weights(recipe, trained, store, tmp_path):
    first, second = tmp_path / "first" / "run", tmp_path / "second" / "run"
    average = ("optim.averaging.kind=last", "optim.averaging.last=2")
    assert train(recipe, first, f"loop.mirror={URL}", *average, "loop.max_steps=3") == 0
    assert mirrored(store) == [2, 3]  # both are averaged, so that 3 needs 2
    more = {"resume_from": f"{URL}/run", "allow_change": ["loop.max_steps"]}
    assert train(recipe, second, f"loop.mirror={URL}2", *average, **more) == 0
    for name in ("model.safetensors", "optimizer.safetensors"):
        expected = (trained / "checkpoints" / "step-00000004" / name).read_bytes()
        assert (second / "checkpoints" / "step-00000004" / name).read_bytes() == expected
    lines = [json.loads(line) for line in RunDir(second).metrics.read_text().splitlines()]
    assert [line["step"] for line in lines if "lr" in line] == [1, 2, 3, 4]
