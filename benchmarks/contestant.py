"""The contestant's side of a benchmark: a process that trains or streams in blocks, and waits between them.

Every contestant is a process of its own (its own torch settings, allocator and oneDNN caches) that talks over its
pipes: a line on stdin asks for a block, a line of JSON on stdout answers it, the end of stdin ends it. While one
contestant works the others sleep in `readline`, so blocks are interleaved on one machine without sharing its cores.
Standard library only: JoeyNMT's interpreter imports it too.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

LIBRARIES = (
    "torch", "transformers", "accelerate", "lightning", "sentence-transformers", "joeynmt", "eole", "datasets", "numpy",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Return the versions of the libraries that this environment has."""
    found = {}
    for name in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def read_rows(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the training rows as token ids, see benchmarks/peers/jobs.py."""
    with Path(settings["rows"]).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _claim_stdout() -> Callable[[Mapping[str, Any]], None]:
    """Keeps the real stdout for answers; whatever a library prints goes to stderr from now on."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(values: Mapping[str, Any]) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    return answer


class Meter:
    """Counts what the steps of a training loop hold, and waits between blocks.

    The loop calls `start` before its first optimizer step and `step` after each one. A block is over with the first
    step that brings it to the requested number of tokens; loading batches falls inside the block, waiting does not.

    Attributes:
        translate: translates the test rows with the weights as they are. It returns texts, or lists of token ids, in
            the order of the rows.
        save: writes the weights as they are into a folder, as `save_pretrained` does.
    """

    translate: Callable[[], Sequence[Any]] | None = None
    save: Callable[[str], Any] | None = None

    def __init__(self) -> None:
        self._answer = _claim_stdout()
        self._goal = 0
        self._began = self._cpu_began = 0.0
        self._sums: dict[str, int] = {}
        self._losses: list[float] = []

    def start(self) -> None:
        """Report that everything is built, and wait for the first block.

        Raises:
            SystemExit: no more blocks are wanted.
        """
        self._answer({"ready": True, "versions": versions()})
        self._wait()

    def step(self, *, rows: int, tokens: int, positions: int, loss: float | None) -> None:
        """Count an optimizer step.

        Args:
            rows: rows of the step, such as sentence pairs.
            tokens: non-padding tokens of all inputs, [EOS] included, [BOS] not: the same for all contestants.
            positions: all positions computed in encoder and decoder, padding included.
            loss: mean loss per target token, None where it is not known at this step; only to see that it learns.
        """
        for name, value in (("steps", 1), ("rows", rows), ("tokens", tokens), ("positions", positions)):
            self._sums[name] = self._sums.get(name, 0) + value
        self._losses += [] if loss is None else [loss]
        if self._sums["tokens"] >= self._goal:
            self.synchronize()
            seconds = time.perf_counter() - self._began
            cpu_seconds = time.process_time() - self._cpu_began
            loss = sum(self._losses) / len(self._losses) if self._losses else None
            facts = self.end()
            self._answer({**self._sums, "loss": loss, "seconds": seconds, "cpu_seconds": cpu_seconds, **facts})
            self._wait()

    def synchronize(self) -> None:
        """Wait until the device has done the work of the steps."""

    def begin(self, *, profile: bool) -> None:
        """Prepare a block. `profile`: record what the device does."""

    def end(self) -> Mapping[str, Any]:
        """Return what else is known of the block."""
        return {}

    def _translations(self) -> dict[str, Any]:
        assert self.translate is not None
        began, cpu_began = time.perf_counter(), time.process_time()
        texts = list(self.translate())
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
        return {"rows": len(texts), "seconds": seconds, "cpu_seconds": cpu_seconds, "texts": texts}

    def _saved(self, folder: str) -> dict[str, Any]:
        assert self.save is not None
        self.save(folder)
        return {"saved": True}

    def _wait(self) -> None:
        while (line := sys.stdin.readline().strip()).startswith(("translate", "save ")):
            request, _, folder = line.partition(" ")
            self._answer(self._translations() if request == "translate" else self._saved(folder))
        if not line:
            raise SystemExit(0)
        size = int(line)
        self._goal, self._sums, self._losses = abs(size), {}, []
        self.begin(profile=size < 0)
        self._began, self._cpu_began = time.perf_counter(), time.process_time()


def serve_blocks(block: Callable[[int], Mapping[str, Any]]) -> None:
    """Answers each request, a number, with what `block` measures for it, until stdin ends."""
    answer = _claim_stdout()
    answer({"ready": True})
    for line in sys.stdin:
        answer(block(int(line)))


def serve_passes(one_pass: Callable[[int], Iterable[tuple[int, int, int]]]) -> None:
    """Answers requests for passes over a corpus until stdin ends.

    Args:
        one_pass: given the number of the pass, from 0, yields for each micro-batch the rows, the tokens without
            padding, and the positions with it. Building the loader and starting its workers belong to the pass.
    """
    answer = _claim_stdout()
    answer({"ready": True})
    done = 0
    for line in sys.stdin:
        sums, first = [0, 0, 0, 0], 0.0
        began = time.perf_counter()
        for number in range(done, done + int(line)):
            for counts in one_pass(number):
                first = first or time.perf_counter() - began
                sums = [a + b for a, b in zip(sums, (1, *counts), strict=True)]
        done += int(line)
        seconds = time.perf_counter() - began
        named = dict(zip(("batches", "rows", "tokens", "positions"), sums, strict=True))
        answer({**named, "seconds": seconds, "first_batch_seconds": first})


def serve_decoding(settings: Mapping[str, Any], decode: Callable[[Sequence[Any], int], Sequence[int]]) -> None:
    """Answers requests for a kind of decoding (its number in settings["kinds"]) until stdin ends.

    Args:
        settings: with "rows", a file of {"src": ids, "new": tokens to write}, and "kinds": batch, beam and rows.
        decode: translates a batch of such rows with a beam and gives the tokens that it has written for each.
    """
    answer = _claim_stdout()
    with Path(settings["rows"]).open(encoding="utf-8") as file:
        corpus = [json.loads(line) for line in file]
    answer({"ready": True})
    for line in sys.stdin:
        kind = settings["kinds"][int(line)]
        rows = sorted(corpus[: kind["rows"]], key=lambda row: len(row["src"]))
        began = time.perf_counter()
        written = [
            count
            for start in range(0, len(rows), kind["batch"])
            for count in decode(rows[start : start + kind["batch"]], kind["beam"])
        ]
        seconds = time.perf_counter() - began
        if written != [row["new"] for row in rows]:
            raise SystemExit(f"wrong lengths: {written} for {[row['new'] for row in rows]}")
        answer({"rows": len(rows), "tokens": sum(written), "seconds": seconds})
