"""Let the candidates of a benchmark answer the same texts in rounds, each in its own process, within a time budget.

Speed varies with the load of the machine. So a ratio is computed within a round. The first round is a warm-up if there
is time for more.
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
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

import numpy as np

from trainer.export import bench_worker

ROUNDS = 8  # besides the warm-up
REQUESTS = 50  # batches of a round, at most
REFERENCES = ("tutorial", "torch")  # of the ratios
PACKAGE = str(Path(bench_worker.__file__).parents[2])
Answer = dict[str, Any]


class TimeUp(Exception):
    """The budget is spent. What has been measured counts."""


class Candidate:
    """A process that answers texts. After an error, `error` is the reason, and there are no more answers."""

    def __init__(self, name: str, connection: Connection) -> None:
        self.name, self._connection = name, connection
        self.error, self.answers = "", list[Answer]()

    def ask(self, texts: Sequence[str], batch: int, evaluation: Any, until: float) -> Answer | None:
        """Return the answer, None after an error. Raises TimeUp if there is none at the monotonic time `until`."""
        if self.error:
            return None
        try:
            job = {"texts": texts, "batch": batch, "evaluation": evaluation}
            self._connection.send_bytes(json.dumps(job).encode())
            if not self._connection.poll(max(0.0, until - time.monotonic())):
                raise TimeUp
            answer: Answer = json.loads(self._connection.recv_bytes())
        except (EOFError, OSError):
            answer = {"error": "its process ended"}
        self.error = answer.get("error", "")
        if self.error:
            return None
        self.answers.append(answer)
        return answer


@contextlib.contextmanager
def started(names: Sequence[str], run: Path, program: type, threads: int) -> Iterator[list[Candidate]]:
    """Start the processes, and end them with the block. `program`: the class of the artifacts."""
    env = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"), str(threads))
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (PACKAGE, env.get("PYTHONPATH"))))
    env["MKL_CBWR"] = ""  # the reproducible mode, which training sets, takes up to a third of the speed
    env["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # the search for a GPU must not initialize CUDA before a fork
    pipes = {name: Pipe() for name in names}
    fds = {name: theirs.fileno() for name, (_, theirs) in pipes.items()}
    arguments = [str(run), f"{program.__module__}:{program.__qualname__}", json.dumps(fds)]
    process = subprocess.Popen(
        [sys.executable, "-P", bench_worker.__file__, *arguments], pass_fds=list(fds.values()), env=env,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,  # so that its forks end with it
    )  # fmt: skip
    try:
        for _, theirs in pipes.values():
            theirs.close()
        yield [Candidate(name, ours) for name, (ours, _) in pipes.items()]
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def measure(
    candidates: Sequence[Candidate],
    scenarios: Sequence[tuple[int, Any]],
    texts: Sequence[str],
    started: float,
    until: float,
) -> list[dict[str, Any]]:
    """Return the figures for each batch size and `evaluation` section for which there was enough time.

    Args:
        candidates: their processes.
        scenarios: batch sizes with `evaluation` sections.
        texts: to answer.
        started: the monotonic time at which all models must have answered a first text. Else there are no figures.
        until: the monotonic time of the end.
    """
    source = itertools.cycle(texts)
    rounds: list[list[dict[str, Any]]] = [[] for _ in scenarios]
    size, seconds_per_text = 1, 0.0  # of a scenario in a round: `size` texts, or one batch if that is more
    with contextlib.suppress(TimeUp):
        for candidate in candidates:
            candidate.ask([next(source)], 1, scenarios[0][1], started)
        for number in range(1 + ROUNDS):
            for answers, (batch, evaluation) in zip(rounds, scenarios, strict=True):
                begun, requests = time.monotonic(), max(1, min(REQUESTS, size // batch))
                some = list(itertools.islice(source, requests * batch))
                taking_part = [c for c in candidates if batch > 1 or not c.name.endswith("-batch")]
                answers.append({c.name: c.ask(some, batch, evaluation, until) for c in taking_part})
                seconds_per_text += (time.monotonic() - begun) / batch
            if number == 0:
                size = int((until - time.monotonic()) / ROUNDS / seconds_per_text)
    return [
        _course(batch, evaluation["beam_size"], answers)
        for answers, (batch, evaluation) in zip(rounds, scenarios, strict=True) if answers
    ]  # fmt: skip


def _course(batch: int, beam: int, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    warm_up = len(rounds) > 1
    rounds = rounds[warm_up:]
    answers = {name: [one[name] for one in rounds] for name in rounds[0] if all(one[name] for one in rounds)}
    return {
        "batch": batch,
        "beam": beam,
        "rounds": len(rounds),
        "warm_up": warm_up,
        "seconds": round(sum(sum(answer["seconds"]) for name in answers for answer in answers[name]), 2),
        "contestants": {name: _cell(name, batch, answers) for name in answers},
    }


def _cell(candidate: str, batch: int, rounds: dict[str, list[Answer]]) -> dict[str, Any]:
    """The figures of one candidate. Ratios are of the seconds of the same round, on the same device."""
    answers = rounds[candidate]
    seconds = [second for answer in answers for second in answer["seconds"]]
    cell: dict[str, Any] = {
        "requests": len(seconds),
        **latencies(seconds),
        "rows_per_second": len(seconds) * batch / sum(seconds),
        "tokens_per_second": sum(answer["tokens"] for answer in answers) / sum(seconds),
        "peak_bytes": answers[-1].get("peak_bytes"),
    }
    for name in REFERENCES:
        reference = rounds.get(f"{name}-cuda" if candidate.endswith("-cuda") else name)
        if reference is not None:
            ratios = [sum(a["seconds"]) / sum(b["seconds"]) for a, b in zip(reference, answers, strict=True)]
            cell[f"times_{name}"] = {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
    return cell


def latencies(seconds: Sequence[float]) -> dict[str, float | None]:
    """Return p50_ms, p95_ms and p99_ms; None with too few requests for one to be slower."""
    enough = {p: len(seconds) * (100 - p) >= 100 for p in (50, 95, 99)}
    return {f"p{p}_ms": float(np.percentile(seconds, p)) * 1000 if enough[p] else None for p in enough}
