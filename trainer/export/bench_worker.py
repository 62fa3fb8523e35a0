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


def weights(run: Path, candidate: str) -> tuple[Answer, Encode, Any]:
    """Return the same of the trained weights: tutorial, torch, bf16 or compiled, with -cuda on a GPU."""
    import torch

    from trainer.data.target_tokenizer import target_of
    from trainer.engine.trained_run import TrainedRun
    from trainer.recipe_loading import Recipe
    from trainer.rundir import RunDir
    from trainer.task.registry import make_task

    trained = TrainedRun.open(RunDir(run), Recipe)
    recipe, task, model = trained.recipe, trained.task, trained.model
    if candidate.startswith("tutorial"):
        data = recipe.data.model_copy(update={"pad_multiple": recipe.data.max_length})
        settings: Any = recipe.model
        recipe = recipe.model_copy(update={"data": data, "model": settings.model_copy(update={"attention": "auto"})})
    if candidate.startswith("bf16"):
        model.to(torch.bfloat16)

    def answer(texts: Sequence[str], evaluation: dict[str, Any]) -> Records:
        section = recipe.evaluation.model_validate({**evaluation, "tokens_per_batch": sys.maxsize})
        changed = recipe.model_copy(update={"evaluation": section})
        own = make_task(changed, task.tokenizer)
        own.padding = task.padding.also(recipe.data.pad_multiple)
        return TrainedRun(trained.run, changed, own, model).predict(texts)

    if candidate == "compiled":
        model.compile(dynamic=True)
        list(answer(["one", "another"], recipe.evaluation.model_dump()))  # compiles for one text, and for more
    written = target_of(task.tokenizer).backend_tokenizer
    return answer, lambda text: task.encode_lines([text])[0].get("input_ids", ()), written


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


def serve(connection: Connection, run: Path, candidate: str, program: str, imported: float) -> None:
    """Answer jobs until the connection is closed. `imported`: CPU seconds before the fork."""
    opened = None
    while True:
        try:
            job = json.loads(connection.recv_bytes())
        except EOFError:
            return
        try:
            opened = opened or (graphs(run, candidate, program) if of_graphs(candidate) else weights(run, candidate))
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
        if not of_graphs(name):
            import trainer.engine.trained_run  # noqa: F401 - once, before the forks
        imported = time.process_time()
        if os.fork() == 0:
            connection = connections.pop(name)
            for other in connections.values():
                other.close()
            if not name.endswith("-cuda"):
                os.environ["CUDA_VISIBLE_DEVICES"] = ""
            serve(connection, Path(run), name, program, imported)
            break
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
