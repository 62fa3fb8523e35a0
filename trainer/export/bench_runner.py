"""Let the candidates of a benchmark answer the same texts in rounds, each in its own process, within a time budget.

    python bench_runner.py RUN '{ARTIFACT: PROGRAM, …}' '{CANDIDATE: SOCKET, …}'

starts the processes, which are forks. Artifacts are run by their PROGRAM (module:class) of this package, without torch,
never by the run.py of the run directory. The others are the trained weights; torch is imported once for them. Jobs and
answers are JSON messages. A model is loaded at the first job.

Speed varies with the load of the machine. So a ratio is computed within a round. The first round is a warm-up if there
is time for more.
"""

from __future__ import annotations

import contextlib
import json
import os
import pkgutil
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import cycle, islice
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

import numpy as np

ROUNDS = 8  # besides the warm-up
REQUESTS = 50  # batches of a round, at most
WORKER = __file__  # the program of the processes
PACKAGE = str(Path(__file__).parents[2])
Figures = dict[str, Any]
Records = Iterable[dict[str, Any]]
# Of a candidate: records of texts with a section `evaluation`, the tokens that are read of a text, and the tokenizer of
# what is written.
Opened = tuple[Callable[[Sequence[str], dict[str, Any]], Records], Callable[[str], Sequence[int]], Any]


class TimeUp(Exception):
    """The budget is spent. What has been measured counts."""


class Candidate:
    """A process that answers texts. After an error, `error` is the reason, and there are no more answers."""

    def __init__(self, name: str, connection: Connection) -> None:
        self.name, self._connection = name, connection
        self.error, self.answers = "", list[Figures]()

    def ask(self, until: float, **job: Any) -> Figures | None:
        """Return the answer, None after an error. Raises TimeUp if there is none at the monotonic time `until`."""
        if self.error:
            return None
        try:
            self._connection.send_bytes(json.dumps(job).encode())
            if not self._connection.poll(max(0.0, until - time.monotonic())):
                raise TimeUp
            answer: Figures = json.loads(self._connection.recv_bytes())
        except (EOFError, OSError):
            answer = {"error": "its process ended"}
        self.error = answer.get("error", "")
        if self.error:
            return None
        self.answers.append(answer)
        return answer


@contextlib.contextmanager
def started(names: Sequence[str], run: Path, programs: Mapping[str, type], threads: int) -> Iterator[list[Candidate]]:
    """Start the processes, and end them with the block. `programs`: the classes of the artifacts among them."""
    env = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"), str(threads))
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (PACKAGE, env.get("PYTHONPATH"))))
    env["MKL_CBWR"] = ""  # the reproducible mode, which training sets, takes up to a third of the speed
    env["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # the search for a GPU must not initialize CUDA before a fork
    pipes = {name: Pipe() for name in names}
    fds = {name: theirs.fileno() for name, (_, theirs) in pipes.items()}
    classes = {name: f"{program.__module__}:{program.__qualname__}" for name, program in programs.items()}
    arguments = [str(run), json.dumps(classes), json.dumps(fds)]
    process = subprocess.Popen(
        [sys.executable, "-P", WORKER, *arguments], pass_fds=list(fds.values()), env=env,
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
) -> list[Figures]:
    """Return the figures for each scenario, a batch size and an `evaluation` section, for which there was enough time.

    All models must have answered a first text at the monotonic time `started`, or there are none. `until` is the end.
    """
    source = cycle(texts)
    rounds: list[list[dict[str, Figures | None]]] = [[] for _ in scenarios]
    size, seconds_per_text = 1, 0.0  # of a scenario in a round: `size` texts, or one batch if that is more
    with contextlib.suppress(TimeUp):
        for candidate in candidates:
            candidate.ask(started, texts=[next(source)], batch=1, evaluation=scenarios[0][1])
        for number in range(1 + ROUNDS):
            for answers, (batch, evaluation) in zip(rounds, scenarios, strict=True):
                begun, requests = time.monotonic(), max(1, min(REQUESTS, size // batch))
                job = {"texts": list(islice(source, requests * batch)), "batch": batch, "evaluation": evaluation}
                taking_part = [c for c in candidates if batch > 1 or not c.name.endswith("-batch")]
                answers.append({c.name: c.ask(until, **job) for c in taking_part})
                seconds_per_text += (time.monotonic() - begun) / batch
            if number == 0:
                size = int((until - time.monotonic()) / ROUNDS / seconds_per_text)
    pairs = zip(rounds, scenarios, strict=True)
    return [_course(batch, section["beam_size"], answers) for answers, (batch, section) in pairs if answers]


def _course(batch: int, beam: int, rounds: Sequence[dict[str, Figures | None]]) -> Figures:
    warm_up = len(rounds) > 1
    rounds = rounds[warm_up:]
    answers: dict[str, Any] = {name: [one[name] for one in rounds] for name in rounds[0]}
    answers = {name: own for name, own in answers.items() if all(own)}
    seconds = round(sum(sum(answer["seconds"]) for own in answers.values() for answer in own), 2)
    cells = {name: _cell(name, batch, answers) for name in answers}
    facts = {"batch": batch, "beam": beam, "rounds": len(rounds), "warm_up": warm_up, "seconds": seconds}
    return {**facts, "contestants": cells}


def _cell(candidate: str, batch: int, rounds: dict[str, list[Figures]]) -> Figures:
    """The figures of one candidate. Ratios are of the seconds of the same round, on the same device."""
    answers = rounds[candidate]
    seconds = [second for answer in answers for second in answer["seconds"]]
    cell: Figures = {
        "requests": len(seconds),
        **latencies(seconds),
        "rows_per_second": len(seconds) * batch / sum(seconds),
        "tokens_per_second": sum(answer["tokens"] for answer in answers) / sum(seconds),
        "peak_bytes": answers[-1]["peak_bytes"],
    }
    for name in ("baseline", "torch"):
        reference = rounds.get(f"{name}-cuda" if candidate.endswith("-cuda") else name)
        if reference is not None:
            ratios = [sum(a["seconds"]) / sum(b["seconds"]) for a, b in zip(reference, answers, strict=True)]
            cell[f"times_{name}"] = {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
    return cell


def latencies(seconds: Sequence[float]) -> dict[str, float | None]:
    """Return p50_ms, p95_ms and p99_ms; None with too few requests for one to be slower."""
    enough = {p: len(seconds) * (100 - p) >= 100 for p in (50, 95, 99)}
    return {f"p{p}_ms": float(np.percentile(seconds, p)) * 1000 if enough[p] else None for p in enough}


# -- in the processes --------------------------------------------------------------------------------------------------


def graphs(run: Path, candidate: str, program: str) -> Opened:
    """Return an artifact's answers, encoding and target tokenizer. int8 answers text by text, int8-batch does not."""
    artifact = pkgutil.resolve_name(program).load(run / "export" / candidate.partition("-")[0])

    def answer(texts: Sequence[str], evaluation: dict[str, Any]) -> Records:
        artifact.settings |= {"beam_size": evaluation["beam_size"], "tokens_per_batch": sys.maxsize}
        records: Records = artifact(texts, batch=candidate.endswith("-batch"))
        return records

    return answer, lambda text: artifact.encode(artifact.sides(text))[0], artifact.target_tokenizer


def timed(opened: Opened, texts: Sequence[str], batch: int, evaluation: Any) -> Figures:
    """Seconds of each batch, tokens written (or read) of all, CPU seconds and peak memory since the process began."""
    answer, encode, tokenizer = opened
    result: Figures = {"seconds": [], "tokens": 0}
    for start in range(0, len(texts), batch):
        began = time.perf_counter()
        records = list(answer(texts[start : start + batch], evaluation))
        result["seconds"].append(time.perf_counter() - began)
        result.setdefault("cpu_seconds", time.process_time())
        for record in records:
            written = record.get("prediction")
            ids = encode(record["text"]) if written is None else tokenizer.encode(written, add_special_tokens=False).ids
            result["tokens"] += len(ids) + (written is not None)  # with its end
    result["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_initialized():
        result["gpu_peak_bytes"] = torch.cuda.max_memory_allocated()
    return result


def serve(connection: Connection, load: Callable[[], Opened], imported: float) -> None:
    """Answer jobs until the connection is closed. `load` opens the model. `imported`: CPU seconds before the fork."""
    opened = None
    while True:
        job = json.loads(connection.recv_bytes())
        try:
            opened = opened or load()
            reply = timed(opened, **job)
            reply["cpu_seconds"] += imported
        except Exception as error:  # any error of a library: the candidate is left out, with the reason
            reply = {"error": f"{type(error).__name__}: {str(error).strip()}"[:500]}
        connection.send_bytes(json.dumps(reply).encode())


def main(run: str, programs: str, sockets: str) -> None:
    connections, classes = {name: Connection(fd) for name, fd in json.loads(sockets).items()}, json.loads(programs)
    for name in sorted(connections, key=lambda name: name not in classes):  # first those without torch
        if name in classes:
            load = partial(graphs, Path(run), name, classes[name])
        else:
            from trainer.export.bench_weights import weights  # loads torch once, before the forks

            load = partial(weights, Path(run), name)
        imported = time.process_time()
        if os.fork() == 0:
            connection = connections.pop(name)
            for other in connections.values():
                other.close()
            if name in classes:  # a server has no torch, which some runtimes import where it is installed
                for library in ("torch", "transformers"):
                    sys.modules[library] = None  # type: ignore[assignment]
            if not name.endswith("-cuda"):
                os.environ["CUDA_VISIBLE_DEVICES"] = ""
            with contextlib.suppress(EOFError):
                serve(connection, load, imported)
            break
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
