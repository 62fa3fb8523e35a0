"""Contestants of a benchmark in processes of their own, which take turns at the same texts within a time budget.

A speed comes and goes with what else the machine does; so all answer the same texts in the same round, in changing
order, and a ratio is formed within a round. The first round is thrown away where there is time for others.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.export import bench_worker
from trainer.export.program import generated
from trainer.export.sample_sizes import latencies

ROUNDS = 12  # of a course, at most
AIMED = 8  # rounds into which a course's time is divided
REQUESTS = 50  # of a round, at most
SLOW = 0.5  # times the tutorial's speed: slower ones are not asked again
REFERENCES = ("tutorial", "torch")  # every ratio is against one of them
PACKAGE = Path(bench_worker.__file__).parents[2]

Answer = dict[str, Any]
Cell = dict[str, Any]


@dataclass(frozen=True)
class Candidate:
    """A contestant.

    Attributes:
        name: as results call it.
        channel: the process that answers for it; another contestant may have the same.
        padded: every text to data.max_length, with the library's own attention.
        together: int8 in batches.
    """

    name: str
    channel: str
    padded: bool = False
    together: bool = False

    @property
    def device(self) -> str:
        return "cuda" if self.name.endswith("-cuda") else "cpu"


@dataclass(frozen=True)
class Scenario:
    """What is asked: so many texts at once, and how they are decoded (a beam of 1 is greedy search)."""

    batch: int
    beam: int


class TimeUp(Exception):
    """The budget is spent; what has been measured counts."""


class BenchRunner:
    """Starts the processes, asks them, ends them. A contestant that fails is left out, with the reason."""

    def __init__(self, entries: Sequence[Candidate], texts: Sequence[str], threads: int, until: float) -> None:
        """`until`: monotonic time at which everything is ended, whatever it does."""
        self.entries, self.threads, self.until = list(entries), threads, until
        self.left_out: dict[str, str] = {}
        self.cold: dict[str, float] = {}
        self.peaks: dict[str, dict[str, Any]] = {}
        self.gpu: str | None = None
        self._gone: set[str] = set()  # not asked any more
        self._texts = itertools.cycle(texts)
        self._channels: dict[str, tuple[int, int]] = {}
        self._processes: list[subprocess.Popen[bytes]] = []
        self._folder = tempfile.TemporaryDirectory(prefix="rankzero-bench-")
        self._timer = threading.Timer(max(0.0, until - time.monotonic()), self._end)
        self._timer.daemon = True
        self._timer.start()
        self._rates: dict[tuple[int, str], float] = {}  # seconds of a text, by beam and contestant

    # -- processes -----------------------------------------------------------------------------------------------------

    def start(self, channels: Sequence[str], run: Path, artifact: Path | None) -> None:
        """Starts one process for these channels, and has each of them answer one text: that is the cold start."""
        mine, theirs = [], {}
        for name in channels:
            (reading, asked), (answered, writing) = os.pipe(), os.pipe()
            self._channels[name], theirs[name] = (asked, answered), (reading, writing)
            mine += [reading, writing]
        begun = time.monotonic()
        asked_for = {"run": str(run), "artifact": artifact and str(artifact), "threads": self.threads}
        if artifact is not None:
            program = Path(self._folder.name) / f"run-{channels[0]}.py"
            program.write_text(generated(artifact), encoding="utf-8")
            asked_for["program"] = str(program)
        with (Path(self._folder.name) / f"{channels[0]}.txt").open("wb") as said:
            self._processes.append(
                subprocess.Popen(
                    [sys.executable, "-P", bench_worker.__file__, json.dumps({**asked_for, "channels": theirs})],
                    pass_fds=mine, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=self._environment(),
                    start_new_session=True,  # so that forks end with it
                )
            )  # fmt: skip
        for descriptor in mine:
            os.close(descriptor)
        text = next(self._texts)
        for name in channels:
            entry = next(e for e in self.entries if e.channel == name and not (e.padded or e.together))
            asked_at = time.monotonic()
            answer = self._ask(entry, [[text]], Scenario(1, 1))
            if answer is not None:
                # a process that was forked waited for its turn after the import, which it would have made itself
                own = time.monotonic() - asked_at if name != channels[0] else time.monotonic() - begun
                imported = answer["imported"] - begun if name != channels[0] else 0.0
                self.cold[name] = own + imported

    def _environment(self) -> dict[str, str]:
        threads, before = str(self.threads), os.environ.get("PYTHONPATH")
        path = os.pathsep.join(filter(None, (str(PACKAGE), before)))
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
        # looking for a GPU must not begin with CUDA, which does not survive a fork; and MKL's reproducible mode, which
        # this package trains in, takes up to a third of the speed on some processors: a tutorial would not have it
        others = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1", "MKL_CBWR": "", "PYTHONPATH": path}
        return {**os.environ, **dict.fromkeys(names, threads), **others}

    def _end(self) -> None:
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)

    def close(self) -> None:
        self._timer.cancel()
        self._end()
        for process in self._processes:
            process.wait()
        for descriptor in itertools.chain.from_iterable(self._channels.values()):
            os.close(descriptor)
        self._folder.cleanup()

    def _ask(self, entry: Candidate, requests: Sequence[Sequence[str]], course: Scenario) -> Answer | None:
        """The answer; None of a contestant that failed now.

        Raises:
            TimeUp: the processes have been ended.
        """
        asked, answered = self._channels[entry.channel]
        job = {"requests": requests, "beam": course.beam, "padded": entry.padded, "together": entry.together}
        line = b""
        with contextlib.suppress(BrokenPipeError):
            _write(asked, (json.dumps(job) + "\n").encode())
            line = _read_line(answered)
        if not line and time.monotonic() >= self.until:
            raise TimeUp
        answer = json.loads(line) if line else {"error": self._last_words()}
        if "error" in answer:
            self._leave_out(entry, answer["error"])
            return None
        self.gpu = answer.get("gpu", self.gpu)
        peaks = self.peaks.setdefault(entry.name, {"peak_bytes": None, "gpu_peak_bytes": None})
        for key in peaks:
            peaks[key] = max(filter(None, (peaks[key], answer.get(key))), default=None)
        return answer

    def _leave_out(self, entry: Candidate, why: str) -> None:
        """Who shares a process that has died is out as well."""
        for other in [other for other in self.entries if other.channel == entry.channel]:
            if why:
                self.left_out[other.name] = why
            self.entries.remove(other)

    def _last_words(self) -> str:
        texts = [path.read_text(errors="replace").strip() for path in Path(self._folder.name).glob("*.txt")]
        lines = [text.splitlines()[-1] for text in texts if text]
        return f"its process ended: {lines[-1][-300:]}" if lines else "its process ended"

    # -- courses -------------------------------------------------------------------------------------------------------

    def run(self, courses: Sequence[Scenario]) -> Iterator[dict[str, Any]]:
        """Runs the courses in turn, each with its share of the time; one that does not fit is told, not begun."""
        for number, course in enumerate(courses):
            now = time.monotonic()
            left, needed = self.until - now, self._estimate(course)
            if needed > left:
                self.left_out[_title(course)] = f"one round takes about {needed:.0f} s, of which {left:.0f} s were left"
                continue
            # later ones get what a round of theirs takes, but not those that would leave less than half for this one
            later = [need for need in map(self._estimate, courses[number + 1 :]) if needed + need < left]
            share = max(left - sum(later), left / 2) / (len(later) + 1)
            try:
                found = self._course(course, now + share)
            except TimeUp:
                self.left_out[_title(course)] = "it took longer than the time that was left"
                return
            yield found
            self._spare_the_slow(found)

    def _spare_the_slow(self, course: dict[str, Any]) -> None:
        """Who is far behind the tutorial's way, as bf16 on a processor without it, would take the others' time."""
        for name, cell in course["contestants"].items():
            ratio = cell.get("times_tutorial", {"median": 1.0})["median"]
            if ratio < SLOW and name.removesuffix("-cuda") not in REFERENCES:
                self.left_out[f"{name}, after batch {course['batch']}"] = f"{ratio:.2f} times the tutorial's speed"
                self._gone.add(name)

    def _course(self, course: Scenario, until: float) -> dict[str, Any]:
        rounds: list[dict[str, Answer]] = []
        requests, longest, begun = 1, 0.0, time.monotonic()
        while not rounds or (len(rounds) <= ROUNDS and time.monotonic() + longest < min(until, self.until)):
            started = time.monotonic()
            rounds.append(self._round(course, requests, backwards=len(rounds) % 2 == 1))
            longest = max(longest, time.monotonic() - started)
            if len(rounds) == 1:
                fitting = (until - started) / AIMED / longest
                requests = max(1, min(REQUESTS, int(fitting)))
                longest *= requests
        warm = len(rounds) > 2
        rounds = rounds[1:] if warm else rounds
        return {
            "batch": course.batch,
            "beam": course.beam,
            "rounds": len(rounds),
            "warm_up": warm,
            "seconds": round(time.monotonic() - begun, 2),
            "contestants": {entry.name: _cell(entry, course, rounds) for entry in self._taking_part(course)},
        }

    def _taking_part(self, course: Scenario) -> list[Candidate]:
        some = [entry for entry in self.entries if entry.name not in self._gone]
        return [entry for entry in some if course.batch > 1 or not entry.together]

    def _round(self, course: Scenario, count: int, *, backwards: bool) -> dict[str, Answer]:
        requests = [list(itertools.islice(self._texts, course.batch)) for _ in range(count)]
        order, found = self._taking_part(course), {}
        for entry in reversed(order) if backwards else order:
            answer = self._ask(entry, requests, course)
            if answer is not None:
                found[entry.name] = answer
                self._rates[course.beam, entry.name] = sum(answer["seconds"]) / count / course.batch
        return found

    def _estimate(self, course: Scenario) -> float:
        """Seconds of the shortest round, by the latest speed of each; 0 where nothing is known yet."""
        known = [self._rates.get((course.beam, entry.name), 0.0) for entry in self._taking_part(course)]
        return sum(known) * course.batch


def _cell(entry: Candidate, course: Scenario, rounds: Sequence[dict[str, Answer]]) -> Cell:
    """What one contestant did in one course. Ratios are of tokens per second, round by round, on the same device."""
    answers = [found[entry.name] for found in rounds]
    seconds = [second for answer in answers for second in answer["seconds"]]
    device = "-cuda" if entry.device == "cuda" else ""
    ratios = {
        f"times_{other}": _spread([_rate(r[entry.name]) / _rate(r[other + device]) for r in rounds])
        for other in REFERENCES
        if all(other + device in r for r in rounds)
    }
    return {
        "requests": len(seconds), **latencies(seconds),
        "rows_per_second": len(seconds) * course.batch / sum(seconds),
        "tokens_per_second": sum(answer["tokens"] for answer in answers) / sum(seconds),
        "peak_bytes": max(filter(None, (answer["peak_bytes"] for answer in answers)), default=None),
        **ratios,
    }  # fmt: skip


def _rate(answer: Answer) -> float:
    return max(1, answer["tokens"]) / sum(answer["seconds"])


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def _title(course: Scenario) -> str:
    return f"batch {course.batch}, beam {course.beam}"


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _read_line(descriptor: int) -> bytes:
    parts: list[bytes] = []
    while not parts or not parts[-1].endswith(b"\n"):
        part = os.read(descriptor, 1 << 16)
        if not part:
            return b""
        parts.append(part)
    return b"".join(parts)
