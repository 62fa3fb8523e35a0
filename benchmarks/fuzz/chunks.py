"""Chunks of cases in a process of their own: drawn by hypothesis, run under the guard, made smaller if they fail."""

from __future__ import annotations

import ast
import contextlib
import logging
import os
import re
import shutil
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings

from benchmarks.fuzz import ROOT
from benchmarks.fuzz.guard import CANARY, Broken, Guard
from benchmarks.fuzz.kinds import KINDS, Kind
from trainer.errors import RankzeroError

CODES = (1, 2, 3, 4, 5, 6, 75)  # of errors, as docs/reference/exit-codes.md has them
SHRINK_SECONDS = 8.0  # for a smaller case of a failure
CURRENT = "current.txt"  # kind and case that run, for the parent
Chunk = tuple[str, int, int]  # kind, number that decides the draw, cases


@dataclass
class Result:
    """What came of a chunk. `failures`: by what happened, the smallest case and the traceback."""

    kind: str
    cases: int = 0
    read: int = 0
    refused: int = 0
    slowest: float = 0.0
    memory: int = 0
    failures: dict[str, tuple[str, str]] = field(default_factory=dict)


class Runner:
    """Runs the cases of one kind in this process."""

    def __init__(self, kind: str, place: Path, guard: Guard) -> None:
        self.name, self.kind = kind, KINDS[kind]
        self.place, self.result = place, Result(kind)
        self.folder, self.guard = place / "case", guard
        self.kind.prepare(place)
        guard.begin()

    def run(self, case: Any) -> tuple[str, str] | None:
        """Run one case. Return what is wrong and its traceback, or None."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        os.chdir(self.folder)
        (self.place / CURRENT).write_text(f"{self.name}\n{case!a}\n")
        began, before = time.process_time(), dict(os.environ)
        try:
            with self.guard.watching():
                outcome = self.kind.check(case, self.folder)
        except RankzeroError as error:
            outcome = "refused"
            if problem := self._problem_of(error):
                return problem, traceback.format_exc()
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # of the case, or of the guard, which names what was seen
            return _where(Broken("; ".join(self.guard.seen[:3])) if self.guard.seen else error), traceback.format_exc()
        finally:
            os.environ.clear()
            os.environ.update(before)
            os.chdir(self.place)
            self.result.slowest = max(self.result.slowest, time.process_time() - began)
            self.result.memory = max(self.result.memory, self.guard.grown)
        if left := [path for path in self.folder.rglob(f"*{CANARY}*") if path.stat().st_size == 0]:
            return f"code of an input ran: it made {left[0].name}", ""
        self.result.read += outcome == "read"
        self.result.refused += outcome == "refused"
        return None

    def _problem_of(self, error: RankzeroError) -> str:
        try:
            self.guard.check()
        except Broken as broken:
            return str(broken)
        text = str(error)
        if error.exit_code not in CODES or not text.strip():
            return f"{type(error).__name__} with code {error.exit_code} and the message {text!r}"
        if "MemoryError" in text or "malloc of size" in text:
            return f"memory of the process ran out: {text[:200]}"
        return ""

    def count(self, case: Any) -> None:
        """Run and count a case, and keep its failure."""
        self.result.cases += 1
        if (failure := self.run(case)) is not None:
            self._keep(failure, case)

    def _keep(self, failure: tuple[str, str], case: Any) -> None:
        text, known = ascii(case), self.result.failures.get(failure[0])
        if known is None or len(text) < len(known[0]):
            self.result.failures[failure[0]] = (text, failure[1])

    def shrink(self, number: int, most: int) -> None:
        """Draw the chunk again with hypothesis' shrinking, once for each failure, to find smaller cases."""
        for what in list(self.result.failures):
            deadline = time.monotonic() + SHRINK_SECONDS
            counted = (self.result.read, self.result.refused)

            def fails(case: Any, what: str = what, deadline: float = deadline) -> None:
                if time.monotonic() < deadline and (failure := self.run(case)) is not None and failure[0] == what:
                    self._keep(failure, case)
                    raise Broken(what)

            with contextlib.suppress(BaseException):  # the failure, or that it is gone after the deadline
                _drawn(self.kind, number, most, fails, (Phase.generate, Phase.shrink))
            self.result.read, self.result.refused = counted


def _where(error: BaseException) -> str:
    """Return the type of an error and the last line of this project in it, the same for equal faults."""
    if isinstance(error, Broken):
        return re.sub(r"\d+", "N", str(error).partition(":")[0])[:100]
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if str(ROOT) in frame.filename and "benchmarks" not in frame.filename]
    frame = (own or frames)[-1]
    name = frame.filename.removeprefix(f"{ROOT}/")
    return f"{type(error).__name__} at {name}:{frame.lineno}"


def _drawn(kind: Kind, number: int, most: int, call: Any, phases: Any = (Phase.generate,)) -> None:
    checks = list(HealthCheck)
    options = settings(
        max_examples=most, database=None, deadline=None, phases=phases, suppress_health_check=checks,
        verbosity=Verbosity.quiet,
        print_blob=False, report_multiple_bugs=False,
    )  # fmt: skip
    seed(number)(options(given(kind.strategy())(call)))()


def run_chunks(chunks: Sequence[Chunk], place: Path) -> Iterator[Result]:
    """Run the cases of each chunk, and yield what came of it."""
    guard = Guard(place)
    for kind, number, most in chunks:
        with _silent():
            runner = Runner(kind, place, guard)
            _drawn(runner.kind, number, most, runner.count)
            runner.shrink(number, most)
        yield runner.result


def replay(kind: str, text: str, place: Path) -> str:
    """Run one saved case. Return what is wrong with its traceback, or an empty text."""
    with _silent():
        failure = Runner(kind, place, Guard(place)).run(ast.literal_eval(text))
    return "" if failure is None else f"{failure[0]}\n{failure[1]}"


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Send what commands print and log to a file, for which two descriptors are replaced."""
    log = logging.getLogger("rankzero")
    log.handlers, log.propagate = [logging.NullHandler()], False
    kept = [os.dup(1), os.dup(2)]
    with tempfile.TemporaryFile() as sink:
        os.dup2(sink.fileno(), 1)
        os.dup2(sink.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept[0], 1)
            os.dup2(kept[1], 2)
            for descriptor in kept:
                os.close(descriptor)
