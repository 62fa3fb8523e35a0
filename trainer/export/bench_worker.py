"""Answer texts for `rankzero bench` as candidates, and measure how long each batch takes.

    python bench_worker.py RUN PROGRAM '{CANDIDATE: SOCKET, …}'

Each candidate has its own process, forked from this one. Artifacts are run by PROGRAM (module:class) of this package,
without torch, never by the run.py of the run directory. The others are the trained weights; torch is imported once for
them. Jobs and answers are JSON messages. A model is loaded at the first job.
"""

from __future__ import annotations

import contextlib
import json
import os
import pkgutil
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

Records = Iterable[dict[str, Any]]
Answer = Callable[[Sequence[str], dict[str, Any]], Records]  # texts, section `evaluation` of the recipe
Encode = Callable[[str], Sequence[int]]  # a text -> the tokens that are read


def graphs(run: Path, candidate: str, program: str) -> tuple[Answer, Encode, Any]:
    """Return an artifact's answers, encoding and target tokenizer. int8 answers text by text, int8-batch does not."""
    artifact = pkgutil.resolve_name(program).load(run / "export" / candidate.removesuffix("-batch"))

    def answer(texts: Sequence[str], evaluation: dict[str, Any]) -> Records:
        artifact.settings |= {"beam_size": evaluation["beam_size"], "tokens_per_batch": sys.maxsize}
        records: Records = artifact(texts, batch=candidate.endswith("-batch"))
        return records

    return answer, lambda text: artifact.encode(artifact.sides(text))[0], artifact.target_tokenizer


def measure(opened: tuple[Answer, Encode, Any], texts: Sequence[str], batch: int, evaluation: Any) -> dict[str, Any]:
    """Seconds of each batch, tokens written (or read) of all, CPU seconds and peak memory since the process began."""
    answer, encode, tokenizer = opened
    result: dict[str, Any] = {"seconds": [], "tokens": 0}
    for start in range(0, len(texts), batch):
        started = time.perf_counter()
        records = list(answer(texts[start : start + batch], evaluation))
        result["seconds"].append(time.perf_counter() - started)
        result.setdefault("cpu_seconds", time.process_time())
        for record in records:
            written = record.get("prediction")
            ids = encode(record["text"]) if written is None else tokenizer.encode(written, add_special_tokens=False).ids
            result["tokens"] += len(ids) + (written is not None)  # with its end
    with contextlib.suppress(OSError):
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        result["peak_bytes"] = int(status["VmHWM"].split()[0]) * 1024
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_initialized():
        result["gpu_peak_bytes"] = torch.cuda.max_memory_allocated()
    return result


def serve(connection: Connection, load: Callable[[], tuple[Answer, Encode, Any]], imported: float) -> None:
    """Answer jobs until the connection is closed. `load` opens the model. `imported`: CPU seconds before the fork."""
    opened = None
    while True:
        try:
            job = json.loads(connection.recv_bytes())
        except EOFError:
            return
        try:
            opened = opened or load()
            reply = measure(opened, **job)
            reply["cpu_seconds"] += imported
        except Exception as error:  # any error of a library: the candidate is left out, with the reason
            reply = {"error": f"{type(error).__name__}: {str(error).strip()}"[:500]}
        connection.send_bytes(json.dumps(reply).encode())


def of_graphs(candidate: str) -> bool:
    return candidate.startswith(("onnx", "int8"))


def main(run: str, program: str, sockets: str) -> None:
    connections = {name: Connection(fd) for name, fd in json.loads(sockets).items()}
    for name in sorted(connections, key=of_graphs, reverse=True):
        load = partial(graphs, Path(run), name, program)
        if not of_graphs(name):
            from trainer.export.bench_weights import weights  # loads torch once, before the forks

            load = partial(weights, Path(run), name)
        imported = time.process_time()
        if os.fork() == 0:
            connection = connections.pop(name)
            for other in connections.values():
                other.close()
            if not name.endswith("-cuda"):
                os.environ["CUDA_VISIBLE_DEVICES"] = ""
            serve(connection, load, imported)
            break
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
