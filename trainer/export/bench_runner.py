"""Run the candidates of a benchmark in their own processes, in turn on the same texts, within a time budget.

Speed varies with the load of the machine. So all candidates answer the same texts in a round, in alternating order,
and a ratio is computed within a round. The first round is a warm-up if there is time for more.

A candidate is a name: "tutorial…" pads to data.max_length, "…-cuda" runs on a GPU, "…-batch" is int8 in batches. Its
channel is the process that answers for it. A scenario is a batch size and a beam size (1 = greedy).
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
import time
from collections import defaultdict
from collections.abc import Sequence
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

import numpy as np

from trainer.export import bench_worker

ROUNDS = 12  # of a scenario, at most
TARGET_ROUNDS = 8  # into which the time of a scenario is divided
REQUESTS = 50  # of a round, at most
REFERENCES = ("tutorial", "torch")  # of the ratios
PERCENTILES = {50: 2, 95: 20, 99: 100}  # with the least requests, of which one may then be slower
PACKAGE = Path(bench_worker.__file__).parents[2]
Answer = dict[str, Any]


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
        self.answers: defaultdict[str, list[Answer]] = defaultdict(list)  # by candidate
        self._texts = itertools.cycle(texts)
        self._connections: dict[str, Connection] = {}
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `close`
        self._process: subprocess.Popen[bytes] | None = None

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
        self.answers[candidate].append(answer)
        return answer

    def run(self, scenarios: Sequence[tuple[int, int]]) -> None:
        """Measure the scenarios one after another into `courses`, each with an equal share of the time that is left."""
        for number, (batch, beam) in enumerate(scenarios):
            share = (self.until - time.monotonic()) / (len(scenarios) - number)
            try:
                self.courses.append(self._measure(batch, beam, time.monotonic() + share))
            except TimeUp:
                titles = [f"batch {b}, beam {k}" for b, k in scenarios[number:]]
                self.left_out |= dict.fromkeys(titles, "it took longer than the time that was left")
                return

    def _measure(self, batch: int, beam: int, until: float) -> dict[str, Any]:
        rounds: list[dict[str, Answer]] = []
        requests, longest, begun = 1, 0.0, time.monotonic()
        while not rounds or (len(rounds) <= ROUNDS and time.monotonic() + longest < until):
            started = time.monotonic()
            texts = [list(itertools.islice(self._texts, batch)) for _ in range(requests)]
            candidates = [c for c in self.candidates if batch > 1 or not c.endswith("-batch")]
            answers = {c: self._ask(c, texts, beam) for c in candidates[:: -1 if len(rounds) % 2 else 1]}
            rounds.append({candidate: answer for candidate, answer in answers.items() if answer is not None})
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
            "contestants": {name: _cell(name, batch, rounds) for name in candidates if name in self.candidates},
        }


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
        "peak_bytes": largest(answers, "peak_bytes"),
    }
    for other in (other for other in REFERENCES if all(other + device in answers for answers in rounds)):
        ratios = [_rate(answers[candidate]) / _rate(answers[other + device]) for answers in rounds]
        cell[f"times_{other}"] = {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
    return cell


def _rate(answer: Answer) -> float:
    return max(1, answer["tokens"]) / sum(answer["seconds"])


def largest(answers: Sequence[Answer], key: str) -> int | None:
    return max((answer[key] for answer in answers if key in answer), default=None)


def latencies(seconds: Sequence[float]) -> dict[str, float | None]:
    """Return p50_ms, p95_ms and p99_ms; None where there were too few requests."""
    return {
        f"p{p}_ms": float(np.percentile(seconds, p)) * 1000 if len(seconds) >= least else None
        for p, least in PERCENTILES.items()
    }
