"""Micro-batches are copied to a GPU while the one before is computed. Here the device is simulated."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hooks
import numpy as np
import pytest
import torch
from processes import read_lines, train
from safetensors.numpy import load_file
from slow import slow_except

from trainer.engine import prefetch
from trainer.engine.prefetch import Prefetcher
from trainer.engine.step import Stepper

QUIET = (
    "loop.max_steps=8", "loop.eval_every=100", "loop.save_every=3", "loop.keep=all", "loop.epochs=null",
    "evaluation.splits=[]", "data.validation=null", "loop.ledger=true", "export.model=false", "export.onnx=false",
    "export.int8=false", "loop.log_every=1",
)  # fmt: skip


def batch_of(value: int) -> dict[str, torch.Tensor]:
    return {"x": torch.full((2,), value), "labels": torch.full((2,), -value)}


# -- order -------------------------------------------------------------------------------------------------------------


def test_a_copy_is_seen_only_after_it_was_waited_for() -> None:
    """The simulated device itself: without a wait there are no values, which is how a missing wait is found."""
    streams = hooks.SlowCopies()
    copied, event = streams.copy(batch_of(3))
    assert copied["x"].tolist() != [3, 3]
    streams.wait(event)
    assert copied["x"].tolist() == [3, 3]


def test_a_copy_begins_before_the_one_in_use_and_is_made_once() -> None:
    streams = hooks.SlowCopies()
    prefetcher = Prefetcher(streams)
    one, two = batch_of(1), batch_of(2)
    prefetcher.start(one)
    assert prefetcher.take(one)["x"].tolist() == [1, 1]
    prefetcher.start(two)
    prefetcher.start(dict(two))  # the same tensors
    more = {**two, "memory": torch.zeros(1)}  # that of a model, which is on the device
    found = prefetcher.take(more)
    assert list(found) == ["x", "labels", "memory"]
    assert found["x"].tolist() == [2, 2]
    assert found["memory"] is more["memory"]
    assert streams.events == ["copy 1", "wait 1", "keep 1", "copy 2", "wait 2", "keep 2"]


def test_a_copy_that_is_not_used_is_replaced() -> None:
    streams = hooks.SlowCopies()
    prefetcher = Prefetcher(streams)
    prefetcher.start(batch_of(1))
    assert prefetcher.take(batch_of(2))["labels"].tolist() == [-2, -2]
    assert streams.events == ["copy 1", "copy 2", "wait 2", "keep 2"]


def steps_of(monkeypatch: pytest.MonkeyPatch, steps: list[list[Any]], *, pause: bool) -> list[str]:
    """What a stepper does with the micro-batches of steps, None = a filler. With `pause` no step is loaded ahead."""
    streams = hooks.SlowCopies()
    monkeypatch.setattr(prefetch, "streams_of", lambda device: streams)
    task = SimpleNamespace(
        filler=lambda: batch_of(0), memory=lambda rows: None, split=lambda batch, parts: [batch],
        recipe=SimpleNamespace(
            seed=1, optim=SimpleNamespace(adversarial=SimpleNamespace(kind="none"), r_drop=0.0),
            loop=SimpleNamespace(compile=False), data=SimpleNamespace(mix=None),
        ),
    )  # fmt: skip
    runtime: Any = SimpleNamespace(engine=SimpleNamespace(objective=None), device=torch.device("cpu"))
    stepper = Stepper(runtime, task, len(steps[0]))  # type: ignore[arg-type]
    streams.events.clear()
    loaded: list[list[Any]] = [
        [
            None if value is None else SimpleNamespace(inputs=batch_of(value), lanes=[value], has_rows=True)
            for value in step
        ]
        for step in steps
    ]
    for number, batches in enumerate(loaded):
        stepper.coming = batches if pause or number + 1 == len(loaded) else loaded[number + 1]
        for one, batch, _ in stepper._on_device(batches, number):
            expected = 0 if one is None else one.lanes[0]
            assert batch["x"].tolist() == [expected] * 2
            streams.events.append(f"use {expected}")
    return streams.events


def test_the_next_micro_batch_is_copied_while_one_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two are on the device: the one in use and the next one, also that of the next step."""
    found = steps_of(monkeypatch, [[1, 2], [3, 4]], pause=False)
    assert found == [
        "copy 1", "wait 1", "keep 1", "copy 2", "use 1", "wait 2", "keep 2", "copy 3", "use 2",
        "wait 3", "keep 3", "copy 4", "use 3", "wait 4", "keep 4", "use 4",
    ]  # fmt: skip


def test_nothing_is_copied_across_an_evaluation_or_a_save(monkeypatch: pytest.MonkeyPatch) -> None:
    found = steps_of(monkeypatch, [[1, 2], [3, None]], pause=True)
    assert found == [
        "copy 1", "wait 1", "keep 1", "copy 2", "use 1", "wait 2", "keep 2", "use 2",
        "copy 3", "wait 3", "keep 3", "use 3", "use 0",
    ]  # fmt: skip


def test_fillers_are_not_copied_and_change_no_order(monkeypatch: pytest.MonkeyPatch) -> None:
    found = steps_of(monkeypatch, [[1, None], [None, 2]], pause=False)
    assert found == [
        "copy 1", "wait 1", "keep 1", "use 1", "copy 2", "use 0", "use 0", "wait 2", "keep 2", "use 2",
    ]  # fmt: skip


def test_a_cpu_copies_nothing() -> None:
    assert prefetch.streams_of(torch.device("cpu")) is None


# -- runs --------------------------------------------------------------------------------------------------------------


def same_files(one: Path, other: Path) -> None:
    folders = [sorted((run / "checkpoints").glob("step-*")) for run in (one, other)]
    assert [folder.name for folder in folders[0]] == [folder.name for folder in folders[1]]
    for a, b in zip(*folders, strict=True):
        for file in [*sorted(a.glob("*.safetensors")), a / "state.json"]:
            assert file.read_bytes() == (b / file.name).read_bytes(), file
    assert read_lines(one / "ledger.jsonl") == read_lines(other / "ledger.jsonl")


ENGINES = [("single", 1), ("ddp", 2), ("zero2", 2), ("fsdp2", 2)]


@pytest.mark.ranks
@pytest.mark.parametrize(("engine", "world"), slow_except(ENGINES, ("single", 1)))
def test_steps_with_prefetched_rows_are_the_same_bits(recipe: Path, tmp_path: Path, engine: str, world: int) -> None:
    """With saves between the steps, the end of epochs, loader processes and the norm that is read later."""
    words = (*QUIET, "data.workers=2")
    for name, hook in (("copied", None), ("ahead", partial(hooks.prefetched, hooks.read_later))):
        later = hooks.read_later if hook is None else hook
        train(recipe, tmp_path / name, *words, world=world, engine=engine, hook=later).check()
    same_files(tmp_path / "copied", tmp_path / "ahead")


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.parametrize("words", [("loop.fuse_lanes=2",), ("loop.eval_every=2", "data.validation=validation.jsonl")])
def test_other_recipes_with_prefetched_rows_are_the_same_bits(
    recipe: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    for name, hook in (("copied", None), ("ahead", hooks.prefetched)):
        train(recipe, tmp_path / name, *QUIET, *words, hook=hook).check()
    same_files(tmp_path / "copied", tmp_path / "ahead")


@pytest.mark.ranks
@pytest.mark.slow
def test_split_micro_batches_are_prefetched(recipe: Path, tmp_path: Path) -> None:
    for name, hook in (("copied", hooks.nothing), ("ahead", hooks.prefetched)):
        run = tmp_path / name
        short = partial(hooks.short_of_memory, 0, 5, 7)
        train(recipe, run, *QUIET, hook=partial(hooks.both, short, hook)).check(75)
        train(recipe, run, *QUIET, hook=hook).check()
    same_files(tmp_path / "copied", tmp_path / "ahead")


@pytest.mark.ranks
def test_a_missing_wait_is_found(recipe: Path, tmp_path: Path) -> None:
    for name, hook in (("right", hooks.prefetched), ("wrong", partial(hooks.prefetched, hooks.no_wait))):
        train(recipe, tmp_path / name, *QUIET, "loop.max_steps=3", hook=hook).check()
    one, other = (load_file(tmp_path / n / "checkpoints/step-00000003/model.safetensors") for n in ("right", "wrong"))
    assert any(not np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.ranks
@pytest.mark.slow
def test_a_stopped_run_with_prefetched_rows_resumes(recipe: Path, tmp_path: Path) -> None:
    """The rows that were copied for the step that was not made are not in the bookmarks."""
    train(recipe, tmp_path / "whole", *QUIET, hook=hooks.prefetched).check()
    stop = partial(hooks.at_micro_batch, 5, 2, 15)
    train(recipe, tmp_path / "parts", *QUIET, hook=partial(hooks.both, stop, hooks.prefetched)).check(75)
    train(recipe, tmp_path / "parts", *QUIET, hook=hooks.prefetched).check()
    last = [run / "checkpoints/step-00000008" for run in (tmp_path / "whole", tmp_path / "parts")]
    assert (last[0] / "model.safetensors").read_bytes() == (last[1] / "model.safetensors").read_bytes()
    assert read_lines(tmp_path / "whole/ledger.jsonl") == read_lines(tmp_path / "parts/ledger.jsonl")
