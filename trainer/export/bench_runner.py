"""Run the candidates of a benchmark in their own processes, in turn on the same texts, within a time budget.

Speed varies with the load of the machine. So all candidates answer the same texts in a round, in alternating order,
and a ratio is computed within a round. The first round is a warm-up if there is time for more.

A scenario is a batch size and a beam size (1 = greedy). A candidate is a name: "tutorial…" pads to data.max_length,
"…-cuda" runs on a GPU, "…-batch" is int8 in batches. Its channel names the process that answers for it.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

import numpy as np

from trainer.export import bench_worker

ROUNDS = 12  # of a scenario, at most
TARGET_ROUNDS = 8  # into which the time of a scenario is divided
REQUESTS = 50  # of a round, at most
SLOW = 0.5  # times the tutorial's speed: slower candidates do not run in the next scenarios
REFERENCES = ("tutorial", "torch")  # of the ratios
PERCENTILES = (50, 95, 99)
PACKAGE = Path(bench_worker.__file__).parents[2]
Answer = dict[str, Any]
Scenario = tuple[int, int]


def channel_of(candidate: str) -> str:
    return candidate.replace("tutorial", "torch").removesuffix("-batch")


class TimeUp(Exception):
    """The budget is spent. What has been measured counts."""


class BenchRunner:
    """Starts the processes and measures. A candidate that fails is left out, with the reason in `left_out`."""

    def __init__(self, candidates: Sequence[str], texts: Sequence[str], threads: int, until: float) -> None:
        """`until`: the monotonic time at which the budget is spent."""
        self.candidates, self.threads, self.until = list(candidates), threads, until
        self.courses: list[dict[str, Any]] = []  # the figures of each scenario
        self.left_out: dict[str, str] = {}
        self.cold: dict[str, float] = {}  # seconds from the start of a channel to its first answer
        self.peaks: dict[str, dict[str, Any]] = {}
        self.gpu: str | None = None
        self._slow: set[str] = set()
        self._texts = itertools.cycle(texts)
        self._connections: dict[str, Connection] = {}
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `close`
        self._process: subprocess.Popen[bytes] | None = None
        self._rates: dict[tuple[int, str], float] = {}  # seconds per text, by beam and candidate

    # -- processes -----------------------------------------------------------------------------------------------------

    def start(self, run: Path, programs: dict[str, str]) -> None:
        """Start the processes, and let each of them answer one text. `programs`: run.py of the artifacts, by name."""
        channels = list(dict.fromkeys(map(channel_of, self.candidates)))
        sockets = {}
        for name in channels:
            self._connections[name], sockets[name] = Pipe()
        fds = {name: socket.fileno() for name, socket in sockets.items()}
        options = {"run": str(run), "threads": self.threads, "channels": fds, "programs": programs}
        path = os.pathsep.join(filter(None, (str(PACKAGE), os.environ.get("PYTHONPATH"))))
        limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"), str(self.threads))
        # the search for a GPU must not initialize CUDA, which does not survive a fork; MKL's reproducible mode, which
        # training sets, takes up to a third of the speed on some processors, and a tutorial would not set it
        others = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1", "MKL_CBWR": "", "PYTHONPATH": path}
        begun = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-P", bench_worker.__file__, json.dumps(options)],
            pass_fds=list(fds.values()), stdin=subprocess.DEVNULL, stdout=self._output, stderr=self._output,
            env={**os.environ, **limits, **others}, start_new_session=True,  # so that its forks end with it
        )  # fmt: skip
        for socket in sockets.values():
            socket.close()
        for name in channels:
            asked = time.monotonic()
            if (answer := self._ask(name, [[next(self._texts)]], 1)) is not None:
                imported = answer["imported"]  # the import counts for every channel, the wait for other channels not
                self.cold[name] = imported - begun + time.monotonic() - max(asked, imported)

    def close(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        for connection in self._connections.values():
            connection.close()
        self._output.close()

    def _ask(self, candidate: str, requests: Sequence[Sequence[str]], beam: int) -> Answer | None:
        """Return the answer, None if the candidate failed.

        Raises:
            TimeUp: there is none within the budget.
        """
        channel = channel_of(candidate)
        connection, job = self._connections[channel], {"candidate": candidate, "beam": beam, "requests": requests}
        try:
            connection.send_bytes(json.dumps(job).encode())
            if not connection.poll(max(0.0, self.until - time.monotonic())):
                raise TimeUp
            answer: Answer = json.loads(connection.recv_bytes())
        except (EOFError, OSError):
            self._output.seek(0)
            lines = self._output.read().decode(errors="replace").strip().split("\n")
            answer = {"error": f"its process ended: {lines[-1][-300:]}".removesuffix(": ")}
        if "error" in answer:
            for other in [other for other in self.candidates if channel_of(other) == channel]:
                self.candidates.remove(other)
                self.left_out[other] = answer["error"]
            return None
        self.gpu = answer.get("gpu", self.gpu)
        peaks = self.peaks.setdefault(candidate, {"peak_bytes": None, "gpu_peak_bytes": None})
        for key in peaks:
            peaks[key] = _largest([peaks[key], answer.get(key)])
        return answer

    # -- measurements --------------------------------------------------------------------------------------------------

    def run(self, scenarios: Sequence[Scenario]) -> None:
        """Measure the scenarios one after another into `courses`. One that does not fit the budget is left out."""
        for number, (batch, beam) in enumerate(scenarios):
            left, needed = self.until - time.monotonic(), self._estimate(batch, beam)
            title = f"batch {batch}, beam {beam}"
            if needed > left:
                self.left_out[title] = f"one round takes about {needed:.0f} s, of which {left:.0f} s were left"
                continue
            later = sum(self._estimate(*other) + needed < left for other in scenarios[number + 1 :])
            try:
                course = self._measure(batch, beam, time.monotonic() + left / (later + 1))
            except TimeUp:
                self.left_out[title] = "it took longer than the time that was left"
                return
            self.courses.append(course)
            for name, cell in course["contestants"].items():
                ratio = cell.get("times_tutorial", {"median": 1.0})["median"]
                if ratio < SLOW and name.removesuffix("-cuda") not in REFERENCES:
                    self.left_out[f"{name}, after batch {batch}"] = f"{ratio:.2f} times the tutorial's speed"
                    self._slow.add(name)

    def _measure(self, batch: int, beam: int, until: float) -> dict[str, Any]:
        rounds: list[dict[str, Answer]] = []
        requests, longest, begun = 1, 0.0, time.monotonic()
        while not rounds or (len(rounds) <= ROUNDS and time.monotonic() + longest < until):
            started = time.monotonic()
            texts = [list(itertools.islice(self._texts, batch)) for _ in range(requests)]
            answers = {}
            for candidate in self._running(batch)[:: -1 if len(rounds) % 2 else 1]:
                if (answer := self._ask(candidate, texts, beam)) is not None:
                    answers[candidate] = answer
                    self._rates[beam, candidate] = sum(answer["seconds"]) / requests / batch
            rounds.append(answers)
            longest = max(longest, time.monotonic() - started)
            if len(rounds) == 1:
                requests = max(1, min(REQUESTS, int((until - started) / TARGET_ROUNDS / longest)))
                longest *= requests
        warm = len(rounds) > 2
        rounds = rounds[1:] if warm else rounds
        return {
            "batch": batch,
            "beam": beam,
            "rounds": len(rounds),
            "warm_up": warm,
            "seconds": round(time.monotonic() - begun, 2),
            "contestants": {name: _cell(name, batch, rounds) for name in self._running(batch)},
        }

    def _running(self, batch: int) -> list[str]:
        return [c for c in self.candidates if c not in self._slow and (batch > 1 or not c.endswith("-batch"))]

    def _estimate(self, batch: int, beam: int) -> float:
        """Seconds of a round of one request, by the latest speeds; 0 if nothing is known yet."""
        return sum(self._rates.get((beam, candidate), 0.0) for candidate in self._running(batch)) * batch


def _cell(candidate: str, batch: int, rounds: Sequence[dict[str, Answer]]) -> dict[str, Any]:
    """The figures of one candidate. Ratios are of tokens per second, round by round, on the same device."""
    answers = [answers[candidate] for answers in rounds]
    seconds = [second for answer in answers for second in answer["seconds"]]
    device = "-cuda" if candidate.endswith("-cuda") else ""
    cell: dict[str, Any] = {
        "requests": len(seconds),
        **latencies(seconds),
        "rows_per_second": len(seconds) * batch / sum(seconds),
        "tokens_per_second": sum(answer["tokens"] for answer in answers) / sum(seconds),
        "peak_bytes": _largest([answer["peak_bytes"] for answer in answers]),
    }
    for other in (other for other in REFERENCES if all(other + device in answers for answers in rounds)):
        ratios = [_rate(answers[candidate]) / _rate(answers[other + device]) for answers in rounds]
        cell[f"times_{other}"] = {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
    return cell


def _rate(answer: Answer) -> float:
    return max(1, answer["tokens"]) / sum(answer["seconds"])


def _largest(values: Sequence[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)


def latencies(seconds: Sequence[float]) -> dict[str, float | None]:
    """Return p50_ms, p95_ms and p99_ms; None where there are fewer requests than `fewest_requests`."""
    return {
        f"p{p}_ms": float(np.percentile(seconds, p)) * 1000 if len(seconds) >= fewest_requests(p) else None
        for p in PERCENTILES
    }


def fewest_requests(percentile: int) -> int:
    """Requests of which one may be slower than the percentile: 2 for p50, 20 for p95, 100 for p99."""
    return math.ceil(100 / (100 - percentile))
