"""Batches of cases: drawn by hypothesis, each run in a forked child under the guard, made smaller if it fails."""

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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings

from benchmarks.fuzz import ROOT
from benchmarks.fuzz.child import in_child
from benchmarks.fuzz.guard import CANARY, SECONDS, Broken, Guard
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

    def run(self, case: Any) -> tuple[str, str] | None:
        """Run one case and count what came of it. Return what is wrong and its traceback, or None."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        ended = in_child(lambda: self._play(case))
        answer = ended.answer or {"outcome": "", "problem": f"its process died: {ended.how}", "trace": "", "grown": 0}
        self.result.slowest = max(self.result.slowest, ended.seconds)
        self.result.seconds += ended.seconds
        self.result.memory = max(self.result.memory, answer["grown"])
        if answer["problem"]:
            self.result.failed += 1
            return answer["problem"], answer["trace"]
        self.result.read += answer["outcome"] == "read"
        self.result.refused += answer["outcome"] == "refused"
        return None

    def _play(self, case: Any) -> dict[str, Any]:
        """Run a case in this process, which is its child."""
        _silence()
        os.chdir(self.folder)
        guard = Guard(self.place)
        outcome, problem, trace = "", "", ""
        try:
            with guard.watching():
                outcome = self.kind.check(case, self.folder)
        except RankzeroError as error:
            outcome, problem = "refused", _problem_of(error, guard)
            trace = traceback.format_exc() if problem else ""
        except BaseException as error:  # of the case, or of the guard, which names what was seen
            problem = _where(Broken("; ".join(guard.seen[:3])) if guard.seen else error)
            trace = traceback.format_exc()
        if left := [path for path in self.folder.rglob(f"*{CANARY}*") if path.stat().st_size == 0]:
            problem = problem or f"code of an input ran: it made {left[0].name}"
        return {"outcome": outcome, "problem": problem, "trace": trace[-4000:], "grown": guard.grown}

    def count(self, case: Any) -> None:
        """Run and count a case, and keep its failure."""
        self.result.cases += 1
        if (failure := self.run(case)) is not None:
            self.result.keep(failure[0], ascii(case), failure[1])

    def shrink(self, number: int, most: int) -> None:
        """Draw the batch again with hypothesis' shrinking, once for each failure, to find smaller cases."""
        for what in list(self.result.failures):
            again, deadline = Runner(self.result.kind, self.place), time.monotonic() + SHRINK_SECONDS

            def fails(case: Any, what: str = what, again: Runner = again, deadline: float = deadline) -> None:
                if time.monotonic() < deadline and (failure := again.run(case)) is not None and failure[0] == what:
                    self.result.keep(what, ascii(case), failure[1])
                    raise Broken(what)

            with contextlib.suppress(BaseException):  # the failure, or that it is gone after the deadline
                _drawn(self.kind, number, most, fails, (Phase.generate, Phase.shrink))


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


def _drawn(kind: Kind, number: int, most: int, call: Any, phases: Any = (Phase.generate,)) -> None:
    checks = list(HealthCheck)
    options = settings(
        max_examples=most, database=None, deadline=None, phases=phases, suppress_health_check=checks,
        verbosity=Verbosity.quiet,
        print_blob=False, report_multiple_bugs=False,
    )  # fmt: skip
    seed(number)(options(given(kind.strategy())(call)))()


def run_batch(batch: Batch, place: Path) -> Result:
    """Run the cases of a batch in a place that is set up. Return what came of it."""
    kind, number, most = batch
    runner = Runner(kind, place)
    KINDS[kind].prepare(place)
    gc.collect()
    gc.freeze()  # a collection in a child would copy the pages of all objects
    _drawn(runner.kind, number, most, runner.count)
    runner.shrink(number, most)
    return runner.result


def replay(kind: str, text: str, place: Path) -> str:
    """Run one saved case. Return what is wrong with its traceback, or an empty text."""
    KINDS[kind].prepare(place)
    failure = Runner(kind, place).run(ast.literal_eval(text))
    return "" if failure is None else f"{failure[0]}\n{failure[1]}"


def _silence() -> None:
    """Drop what commands print and log, and limit the CPU time, also where no line of Python ends a case."""
    log = logging.getLogger("rankzero")
    log.handlers, log.propagate = [logging.NullHandler()], False
    sink = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(sink, number)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (int(SECONDS) + 5, int(SECONDS) + 5))
