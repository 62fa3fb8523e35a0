"""Batches of cases: drawn by hypothesis, run in forked processes under the guard, made smaller if it fails."""

from __future__ import annotations

import ast
import contextlib
import gc
import logging
import os
import re
import resource
import shutil
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings

from benchmarks.fuzz import ROOT
from benchmarks.fuzz.child import Answer, answers
from benchmarks.fuzz.guard import CANARY, Broken, Guard
from benchmarks.fuzz.kinds import KINDS, Kind
from trainer.errors import RankzeroError

CODES = (1, 2, 3, 4, 5, 6, 75)  # of errors, as docs/reference/exit-codes.md has them
SHRINK_SECONDS = 20.0  # for a smaller case of a failure
Batch = tuple[str, int, int]  # kind, number that decides the draw, cases


@dataclass
class Result:
    """What came of cases of a kind.

    Attributes:
        read, refused: their sum is less than `cases` by those that failed.
        slowest, seconds: of CPU time: the most of a case, and all cases together.
        memory: the most bytes that a case took.
        failures: by what happened, the smallest case and the traceback.
    """

    kind: str
    cases: int = 0
    read: int = 0
    refused: int = 0
    failed: int = 0
    slowest: float = 0.0
    seconds: float = 0.0
    memory: int = 0
    failures: dict[str, tuple[str, str]] = field(default_factory=dict)

    def add(self, other: Result) -> None:
        """Add another batch of the kind."""
        for name in ("cases", "read", "refused", "failed", "seconds"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.slowest, self.memory = max(self.slowest, other.slowest), max(self.memory, other.memory)
        for what, (case, trace) in other.failures.items():
            self.keep(what, case, trace)

    def keep(self, what: str, case: str, trace: str) -> None:
        """Keep the smallest case of a failure."""
        if what not in self.failures or len(case) < len(self.failures[what][0]):
            self.failures[what] = (case, trace)


class Runner:
    """Runs the cases of one kind."""

    def __init__(self, kind: str, place: Path) -> None:
        self.kind, self.place, self.result = KINDS[kind], place, Result(kind)
        self.folder = place / "case"

    def run(self, cases: Sequence[Any]) -> None:
        """Run cases and count what came of them. A process ends after a failure, or after some cases."""
        at = 0
        while at < len(cases):
            group = cases[at : at + self.kind.group]
            for answer in answers(self._calls(group)):
                self._count(cases[at], answer)
                at += 1

    def failure(self, case: Any) -> tuple[str, str] | None:
        """Run one case. Return what is wrong and its traceback, or None."""
        answer = next(answers(self._calls([case])))
        return (answer["problem"], answer.get("trace", "")) if answer["problem"] else None

    def _count(self, case: Any, answer: Answer) -> None:
        result = self.result
        result.cases += 1
        result.seconds += answer.get("seconds", 0.0)
        result.slowest = max(result.slowest, answer.get("seconds", 0.0))
        result.memory = max(result.memory, answer.get("grown", 0))
        if answer["problem"]:
            result.failed += 1
            result.keep(answer["problem"], ascii(case), answer.get("trace", ""))
            return
        result.read += answer["outcome"] == "read"
        result.refused += answer["outcome"] == "refused"

    def _calls(self, cases: Sequence[Any]) -> list[Callable[[], Answer]]:
        """Return the calls of cases in one child."""
        guards: list[Guard] = []

        def play(case: Any) -> Answer:
            if not guards:
                _silence()
                guards.append(Guard(self.place))
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir()
            before = dict(os.environ)
            answer = self._play(case, guards[0])
            os.environ.clear()
            os.environ.update(before)
            return answer

        return [partial(play, case) for case in cases]

    def _play(self, case: Any, guard: Guard) -> Answer:
        """Run a case in this process, which is a child."""
        os.chdir(self.folder)
        outcome, problem, trace, began = "", "", "", time.process_time()
        try:
            with guard.watching():
                outcome = self.kind.check(case, self.folder)
        except RankzeroError as error:
            outcome, problem = "refused", _problem_of(error, guard)
            trace = traceback.format_exc() if problem else ""
        except BaseException as error:  # of the case, or of the guard, which names what was seen
            problem = _where(Broken("; ".join(guard.seen[:3])) if guard.seen else error)
            trace = traceback.format_exc()
        seconds, grown = time.process_time() - began, guard.grown
        if left := [path for path in self.folder.rglob(f"*{CANARY}*") if path.stat().st_size == 0]:
            problem = problem or f"code of an input ran: it made {left[0].name}"
        return {"outcome": outcome, "problem": problem, "trace": trace[-4000:], "grown": grown, "seconds": seconds}

    def shrink(self, number: int, most: int) -> None:
        """Draw the batch again with hypothesis' shrinking, once for each failure, to find smaller cases."""
        for what in list(self.result.failures):
            deadline = time.monotonic() + SHRINK_SECONDS

            def fails(case: Any, what: str = what, deadline: float = deadline) -> None:
                if time.monotonic() < deadline and (failure := self.failure(case)) is not None and failure[0] == what:
                    self.result.keep(what, ascii(case), failure[1])
                    raise Broken(what)

            with contextlib.suppress(BaseException):  # the failure, or that it is gone after the deadline
                drawn(self.kind, number, most, fails, (Phase.generate, Phase.shrink))


def _problem_of(error: RankzeroError, guard: Guard) -> str:
    """Return what is wrong with an error that a user would see, or an empty text."""
    try:
        guard.check()
    except Broken as broken:
        return str(broken)
    text = str(error)
    if error.exit_code not in CODES or not text.strip():
        return f"{type(error).__name__} with code {error.exit_code} and the message {text!r}"
    if "MemoryError" in text or "malloc of size" in text:
        return f"memory of the process ran out: {text[:200]}"
    return ""


def _where(error: BaseException) -> str:
    """Return the type of an error and the last line of this project in it, the same for equal faults."""
    if isinstance(error, Broken):
        return re.sub(r"\d+", "N", str(error).partition(":")[0])[:100]
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if str(ROOT) in frame.filename and "benchmarks" not in frame.filename]
    frame = (own or frames)[-1]
    name = frame.filename.removeprefix(f"{ROOT}/")
    return f"{type(error).__name__} at {name}:{frame.lineno}"


def drawn(kind: Kind, number: int, most: int, call: Callable[[Any], None], phases: Any = (Phase.generate,)) -> None:
    """Draw cases, and call a function with each."""
    checks = list(HealthCheck)
    options = settings(
        max_examples=most, database=None, deadline=None, phases=phases, suppress_health_check=checks,
        verbosity=Verbosity.quiet,
        print_blob=False, report_multiple_bugs=False,
    )  # fmt: skip
    seed(number)(options(given(kind.strategy())(lambda case: call(case))))()


def run_batch(batch: Batch, place: Path) -> Result:
    """Run the cases of a batch in a place that is set up. Return what came of it."""
    kind, number, most = batch
    runner = Runner(kind, place)
    KINDS[kind].prepare(place)
    gc.collect()
    gc.freeze()  # a collection in a child would copy the pages of all objects
    cases: list[Any] = []
    drawn(runner.kind, number, most, cases.append)
    runner.run(cases)
    runner.shrink(number, most)
    return runner.result


def replay(kind: str, text: str, place: Path) -> str:
    """Run one saved case. Return what is wrong with its traceback, or an empty text."""
    KINDS[kind].prepare(place)
    failure = Runner(kind, place).failure(ast.literal_eval(text))
    return "" if failure is None else f"{failure[0]}\n{failure[1]}"


def _silence() -> None:
    """Drop what commands print and log."""
    log = logging.getLogger("rankzero")
    log.handlers, log.propagate = [logging.NullHandler()], False
    sink = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(sink, number)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
