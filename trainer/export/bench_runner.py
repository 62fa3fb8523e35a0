"""Run the candidates of a benchmark in their own processes, in turn on the same texts, within a time budget.

Speed varies with the load of the machine. So all candidates answer the same texts in a round, in alternating order,
and a ratio is computed within a round. The first round is a warm-up if there is time for more.
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
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, NamedTuple

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


class Candidate(NamedTuple):
    """What is measured: `channel` names its process, `padded`: to data.max_length, `together`: int8 in batches."""

    name: str
    channel: str
    padded: bool = False
    together: bool = False

    @property
    def device(self) -> str:
        return "cuda" if self.name.endswith("-cuda") else "cpu"


class Scenario(NamedTuple):
    """So many texts per request, decoded with a beam of this size (1 = greedy)."""

    batch: int
    beam: int

    def __str__(self) -> str:
        return f"batch {self.batch}, beam {self.beam}"


class TimeUp(Exception):
    """The budget is spent. What has been measured counts."""


class BenchRunner:
    """Starts the processes and measures. A candidate that fails is left out, with the reason in `left_out`."""

    def __init__(self, candidates: Sequence[Candidate], texts: Sequence[str], threads: int, until: float) -> None:
        """`until`: the monotonic time at which the budget is spent."""
        self.candidates, self.threads, self.until = list(candidates), threads, until
        self.left_out: dict[str, str] = {}
        self.cold: dict[str, float] = {}  # seconds from the start of a channel to its first answer
        self.peaks: dict[str, dict[str, Any]] = {}
        self.gpu: str | None = None
        self._slow: set[str] = set()
        self._texts = itertools.cycle(texts)
        self._connections: dict[str, Connection] = {}
        self._processes: list[subprocess.Popen[bytes]] = []
        self._folder = tempfile.TemporaryDirectory(prefix="rankzero-bench-")
        self._rates: dict[tuple[int, str], float] = {}  # seconds per text, by beam and candidate

    # -- processes -----------------------------------------------------------------------------------------------------

    def start(self, channels: Sequence[str], run: Path, artifact: Path | None = None, program: str = "") -> None:
        """Start one process for these channels, and let each of them answer one text."""
        folder, first = Path(self._folder.name), channels[0]
        (file := folder / f"run-{first}.py").write_text(program, encoding="utf-8")
        pipes = {name: Pipe() for name in channels}
        self._connections |= {name: ours for name, (ours, _) in pipes.items()}
        sockets = {name: theirs.fileno() for name, (_, theirs) in pipes.items()}
        options = {"run": str(run), "artifact": artifact and str(artifact), "program": str(file)}
        command = json.dumps({**options, "threads": self.threads, "channels": sockets})
        begun = time.monotonic()
        with (folder / f"{first}.txt").open("wb") as output:
            self._processes.append(
                subprocess.Popen(
                    [sys.executable, "-P", bench_worker.__file__, command],
                    pass_fds=list(sockets.values()), stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                    env=self._environment(), start_new_session=True,  # so that its forks can be ended with it
                )
            )  # fmt: skip
        for _, theirs in pipes.values():
            theirs.close()
        for name in channels:
            candidate = next(c for c in self.candidates if c.channel == name and not (c.padded or c.together))
            asked = time.monotonic()
            if (answer := self._ask(candidate, [[next(self._texts)]], 1)) is not None:
                # the import, which the channels share, and its own work
                imported = max(answer["imported"], begun)
                self.cold[name] = imported - begun + time.monotonic() - max(asked, imported)

    def _environment(self) -> dict[str, str]:
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
        path = os.pathsep.join(filter(None, (str(PACKAGE), os.environ.get("PYTHONPATH"))))
        # the search for a GPU must not initialize CUDA, which does not survive a fork; MKL's reproducible mode, which
        # training sets, takes up to a third of the speed on some processors, and a tutorial would not set it
        others = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1", "MKL_CBWR": "", "PYTHONPATH": path}
        return {**os.environ, **dict.fromkeys(names, str(self.threads)), **others}

    def close(self) -> None:
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for connection in self._connections.values():
            connection.close()
        self._folder.cleanup()

    def _ask(self, candidate: Candidate, requests: Sequence[Sequence[str]], beam: int) -> Answer | None:
        """Return the answer, None if the candidate failed.

        Raises:
            TimeUp: there is none within the budget.
        """
        connection = self._connections[candidate.channel]
        job = {"requests": requests, "beam": beam, "padded": candidate.padded, "together": candidate.together}
        try:
            connection.send_bytes(json.dumps(job).encode())
            if not connection.poll(max(0.0, self.until - time.monotonic())):
                raise TimeUp
            answer: Answer = json.loads(connection.recv_bytes())
        except (EOFError, OSError):
            answer = {"error": self._last_output()}
        if "error" in answer:
            for other in [other for other in self.candidates if other.channel == candidate.channel]:
                self.candidates.remove(other)
                if answer["error"]:
                    self.left_out[other.name] = answer["error"]
            return None
        self.gpu = answer.get("gpu", self.gpu)
        peaks = self.peaks.setdefault(candidate.name, {"peak_bytes": None, "gpu_peak_bytes": None})
        for key in peaks:
            peaks[key] = max(filter(None, (peaks[key], answer.get(key))), default=None)
        return answer

    def _last_output(self) -> str:
        texts = [path.read_text(errors="replace").strip() for path in Path(self._folder.name).glob("*.txt")]
        lines = [text.splitlines()[-1] for text in texts if text]
        return f"its process ended: {lines[-1][-300:]}" if lines else "its process ended"

    # -- measurements --------------------------------------------------------------------------------------------------

    def run(self, scenarios: Sequence[Scenario]) -> Iterator[dict[str, Any]]:
        """Measure the scenarios one after another. One that does not fit the budget is left out."""
        for number, scenario in enumerate(scenarios):
            left, needed = self.until - time.monotonic(), self._estimate(scenario)
            if needed > left:
                self.left_out[str(scenario)] = f"one round takes about {needed:.0f} s, of which {left:.0f} s were left"
                continue
            later = sum(self._estimate(other) + needed < left for other in scenarios[number + 1 :])
            try:
                course = self._measure(scenario, time.monotonic() + left / (later + 1))
            except TimeUp:
                self.left_out[str(scenario)] = "it took longer than the time that was left"
                return
            yield course
            for name, cell in course["contestants"].items():
                ratio = cell.get("times_tutorial", {"median": 1.0})["median"]
                if ratio < SLOW and name.removesuffix("-cuda") not in REFERENCES:
                    self.left_out[f"{name}, after batch {scenario.batch}"] = f"{ratio:.2f} times the tutorial's speed"
                    self._slow.add(name)

    def _measure(self, scenario: Scenario, until: float) -> dict[str, Any]:
        rounds: list[dict[str, Answer]] = []
        requests, longest, begun = 1, 0.0, time.monotonic()
        while not rounds or (len(rounds) <= ROUNDS and time.monotonic() + longest < until):
            started = time.monotonic()
            rounds.append(self._round(scenario, requests, backwards=len(rounds) % 2 == 1))
            longest = max(longest, time.monotonic() - started)
            if len(rounds) == 1:
                requests = max(1, min(REQUESTS, int((until - started) / TARGET_ROUNDS / longest)))
                longest *= requests
        warm = len(rounds) > 2
        rounds = rounds[1:] if warm else rounds
        return {
            "batch": scenario.batch,
            "beam": scenario.beam,
            "rounds": len(rounds),
            "warm_up": warm,
            "seconds": round(time.monotonic() - begun, 2),
            "contestants": {c.name: _cell(c, scenario.batch, rounds) for c in self._running(scenario)},
        }

    def _running(self, scenario: Scenario) -> list[Candidate]:
        return [c for c in self.candidates if c.name not in self._slow and (scenario.batch > 1 or not c.together)]

    def _round(self, scenario: Scenario, count: int, *, backwards: bool) -> dict[str, Answer]:
        requests = [list(itertools.islice(self._texts, scenario.batch)) for _ in range(count)]
        answers = {}
        for candidate in self._running(scenario)[:: -1 if backwards else 1]:
            if (answer := self._ask(candidate, requests, scenario.beam)) is not None:
                answers[candidate.name] = answer
                self._rates[scenario.beam, candidate.name] = sum(answer["seconds"]) / count / scenario.batch
        return answers

    def _estimate(self, scenario: Scenario) -> float:
        """Seconds of a round of one request, by the latest speeds; 0 if nothing is known yet."""
        rates = [self._rates.get((scenario.beam, candidate.name), 0.0) for candidate in self._running(scenario)]
        return sum(rates) * scenario.batch


def _cell(candidate: Candidate, batch: int, rounds: Sequence[dict[str, Answer]]) -> dict[str, Any]:
    """The figures of one candidate. Ratios are of tokens per second, round by round, on the same device."""
    answers = [answers[candidate.name] for answers in rounds]
    seconds = [second for answer in answers for second in answer["seconds"]]
    device = "-cuda" if candidate.device == "cuda" else ""
    ratios = {
        f"times_{other}": _spread([_rate(r[candidate.name]) / _rate(r[other + device]) for r in rounds])
        for other in REFERENCES
        if all(other + device in r for r in rounds)
    }
    return {
        "requests": len(seconds),
        **latencies(seconds),
        "rows_per_second": len(seconds) * batch / sum(seconds),
        "tokens_per_second": sum(answer["tokens"] for answer in answers) / sum(seconds),
        "peak_bytes": max(filter(None, (answer["peak_bytes"] for answer in answers)), default=None),
        **ratios,
    }


def _rate(answer: Answer) -> float:
    return max(1, answer["tokens"]) / sum(answer["seconds"])


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def latencies(seconds: Sequence[float]) -> dict[str, float | None]:
    """Return p50_ms, p95_ms and p99_ms; None where there are fewer requests than `fewest_requests`."""
    return {
        f"p{p}_ms": float(np.percentile(seconds, p)) * 1000 if len(seconds) >= fewest_requests(p) else None
        for p in PERCENTILES
    }


def fewest_requests(percentile: int) -> int:
    """Requests of which one may be slower than the percentile: 2 for p50, 20 for p95, 100 for p99."""
    return math.ceil(100 / (100 - percentile))
