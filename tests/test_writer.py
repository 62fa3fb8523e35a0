"""Background saves: a snapshot that training cannot touch, one at a time, and no error is lost."""

from __future__ import annotations

import threading

import pytest
import torch

from trainer.engine import writer
from trainer.engine.writer import Writer
from trainer.errors import CheckpointError


def files(value: float = 1.0) -> dict[str, dict[str, torch.Tensor]]:
    return {"model.safetensors": {"w": torch.full((3,), value)}}


def test_training_continues_while_the_snapshot_is_written() -> None:
    go, seen, made = threading.Event(), [], Writer()
    tensors = files()

    def write(found: writer.Files) -> None:
        assert go.wait(20)
        seen.append(found["model.safetensors"]["w"].tolist())

    made.submit(tensors, write)
    assert not seen
    tensors["model.safetensors"]["w"].zero_()  # the next step
    go.set()
    made.wait()
    assert seen == [[1.0, 1.0, 1.0]]


def test_a_second_save_waits_for_the_first() -> None:
    go, order, made = threading.Event(), [], Writer()

    def first(_: writer.Files) -> None:
        go.wait(20)
        order.append("first")

    made.submit(files(), first)
    threading.Timer(0.2, go.set).start()
    made.submit(files(), lambda _: order.append("second"))
    assert order[0] == "first"
    made.wait()
    assert order == ["first", "second"]


def test_an_error_is_raised_once_at_the_next_call() -> None:
    def fail(_: writer.Files) -> None:
        raise CheckpointError("the disk is full")

    made, later = Writer(), []
    made.submit(files(), fail)
    with pytest.raises(CheckpointError, match="disk is full"):
        made.submit(files(), later.append)
    assert not later
    made.submit(files(), later.append)
    made.wait()
    assert len(later) == 1


def test_without_memory_for_a_copy_it_is_written_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "ROOM", 1e30)
    threads, made = [], Writer()
    tensors = files()
    made.submit(tensors, lambda found: threads.append((threading.current_thread(), found)))
    assert threads == [(threading.main_thread(), tensors)]
