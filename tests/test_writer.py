"""Background saves: a snapshot that training cannot touch, one at a time, and no error is lost."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from trainer.engine import writer
from trainer.engine.saving import Share
from trainer.engine.writer import Writer
from trainer.errors import CheckpointError

Content = dict[str, dict[str, torch.Tensor]]


def content(value: float = 1.0) -> Content:
    return {"model.safetensors": {"w": torch.full((3,), value)}}


def new_writer() -> Writer:
    """The writer of one process that holds the whole state."""
    engine = SimpleNamespace(spec=SimpleNamespace(sharded=False))
    runtime: Any = SimpleNamespace(world=1, rank=0, main=True, engine=engine, on_main=lambda work: work())
    return Writer(runtime)


def save(made: Writer, tensors: Content, write: Callable[[Share], Any]) -> None:
    made.save(tensors, {}, lambda share, ranks: write(share))


def test_training_continues_while_the_snapshot_is_written() -> None:
    go, seen, made = threading.Event(), [], new_writer()
    tensors = content()

    def write(share: Share) -> None:
        assert go.wait(20)
        seen.append(share.files["model.safetensors"]["w"].tolist())  # type: ignore[union-attr]

    save(made, tensors, write)
    assert not seen
    tensors["model.safetensors"]["w"].zero_()  # the next step
    go.set()
    made.wait()
    assert seen == [[1.0, 1.0, 1.0]]


def test_a_second_save_waits_for_the_first() -> None:
    go, order, made = threading.Event(), [], new_writer()

    def first(_: Share) -> None:
        go.wait(20)
        order.append("first")

    save(made, content(), first)
    threading.Timer(0.2, go.set).start()
    save(made, content(), lambda _: order.append("second"))
    assert order[0] == "first"
    made.wait()
    assert order == ["first", "second"]


def test_an_error_is_raised_once_at_the_next_call() -> None:
    def fail(_: Share) -> None:
        raise CheckpointError("the disk is full")

    made, later = new_writer(), []
    save(made, content(), fail)
    with pytest.raises(CheckpointError, match="disk is full"):
        save(made, content(), later.append)
    assert not later
    save(made, content(), later.append)
    made.wait()
    assert len(later) == 1


def test_without_memory_for_a_copy_it_is_written_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "ROOM", 1e30)
    threads, made = [], new_writer()
    tensors = content()
    save(made, tensors, lambda share: threads.append((threading.current_thread(), share.files)))
    assert threads == [(threading.main_thread(), tensors)]
