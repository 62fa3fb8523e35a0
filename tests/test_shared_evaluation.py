"""An evaluation is shared by ranks: each row is encoded by few of them, and records are sent in pieces."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from test_corpus import corpus, pairs, recipe, tokenizer, write  # noqa: F401 - a fixture

from trainer.engine import host_group
from trainer.engine.corpus import EncodingShare

WINDOW = 40


class Sum:
    """The sum over threads, one for each rank."""

    def __init__(self, ranks: int) -> None:
        self._parts: list[list[int]] = []
        self._barrier, self._lock = threading.Barrier(ranks, timeout=30), threading.Lock()

    def __call__(self, values: list[int]) -> list[int]:
        with self._lock:
            self._parts.append(values)
        self._barrier.wait()
        total = [sum(column) for column in zip(*self._parts, strict=True)]
        if self._barrier.wait() == 0:
            self._parts.clear()
        self._barrier.wait()
        return total


def of_ranks(ranks: int, work: Callable[[EncodingShare], Any]) -> list[Any]:
    total = Sum(ranks)
    with ThreadPoolExecutor(ranks) as pool:
        return list(pool.map(work, [EncodingShare(rank, ranks, total) for rank in range(ranks)]))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("trainer.engine.corpus.EVAL_WINDOW", WINDOW)
    write(tmp_path, pairs(150), 2)
    return tmp_path


@pytest.mark.parametrize(("ranks", "most"), [(2, 130), (3, 110), (8, 70)])
def test_batches_are_those_of_one_rank(folder: Path, tokenizer: Any, ranks: int, most: int) -> None:  # noqa: F811
    settings = recipe(folder, test="train-*.jsonl")
    expected = list(corpus(settings, tokenizer).batches("test"))

    def batches(share: EncodingShare) -> Any:
        found = corpus(settings, tokenizer)
        encode, encoded = found.task.encode, []
        found.task.encode = lambda rows: encoded.append(len(rows)) or encode(rows)  # type: ignore[method-assign]
        return list(found.batches("test", share)), sum(encoded)

    for rank, (windows, encoded) in enumerate(of_ranks(ranks, batches)):
        assert len(windows) == len(expected) == 4
        for window, alone in zip(windows, expected, strict=True):
            assert [(b.ids, b.texts, b.places) for b in window] == [(b.ids, b.texts, b.places) for b in alone]
            assert [b.examples for b in window[rank::ranks]] == [b.examples for b in alone[rank::ranks]]
            assert not any(b.examples for number, b in enumerate(window) if number % ranks != rank)
        assert encoded < most


def test_a_row_that_cannot_be_encoded_ends_all_ranks_alike(folder: Path, tokenizer: Any) -> None:  # noqa: F811
    settings = recipe(folder, test="train-*.jsonl")

    def failing(share: EncodingShare) -> str:
        found = corpus(settings, tokenizer)
        encode = found.task.encode
        bad = next(texts for number, (_, texts) in enumerate(found.texts("test")) if number == 51)

        def encode_some(rows: Any) -> Any:
            if bad in rows:
                raise ValueError("row 51")
            return encode(rows)

        found.task.encode = encode_some  # type: ignore[method-assign]
        with pytest.raises(ValueError, match="row 51") as caught:
            list(found.batches("test", share))
        return str(caught.value)

    assert of_ranks(3, failing) == ["row 51"] * 3


def test_bytes_are_sent_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    messages: list[torch.Tensor] = []

    class Channel:
        @staticmethod
        def send(tensor: torch.Tensor, **_: Any) -> None:
            messages.append(tensor.clone())

        @staticmethod
        def recv(tensor: torch.Tensor, **_: Any) -> None:
            assert tensor.shape == messages[0].shape
            tensor.copy_(messages.pop(0))

    monkeypatch.setattr(host_group, "dist", Channel)
    monkeypatch.setattr(host_group, "PIECE_BYTES", 4)
    group = host_group.HostGroup.__new__(host_group.HostGroup)
    group._group = None
    for content in (b"", b"abcd", b"abcdefghij\0"):
        group.send(content)
        assert all(len(message) <= 4 for message in messages)
        assert group.receive(1) == content
        assert not messages
