"""Answer batches of texts for `rankzero bench`, and measure how long each takes.

    python bench_worker.py '{"run": RUN, "threads": 2, "channels": {NAME: FD}, "programs": {NAME: TEXT}}'

Jobs and answers are JSON messages through the socket of a channel. Every channel has its own process, forked from this
one. Channels with a program are artifacts: each is run by a run.py that this package has generated, without torch in
the process, never by the run directory's own. The others are the trained weights; torch is imported once for them. A
model is loaded at the first job: that is the cold start.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

Job = dict[str, Any]  # "candidate", "beam", "requests": [[text, …], …]
Answer = Callable[[Sequence[str], Job], Callable[[], int]]  # returns a function that counts the tokens


def _module(program: str) -> Any:
    """Import the text of a program that this package has generated."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "artifact_run.py"
        file.write_text(program, encoding="utf-8")
        spec = importlib.util.spec_from_file_location("artifact_run", file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


def graphs(folder: Path, program: str) -> Answer:
    """Return the answers of an artifact. int8 answers text by text, as `predict` does; int8-batch does not."""
    artifact = _module(program).load(folder)

    def answer(texts: Sequence[str], job: Job) -> Callable[[], int]:
        artifact.settings |= {"beam_size": job["beam"], "tokens_per_batch": sys.maxsize}
        records = list(artifact(texts, batch=job["candidate"].endswith("-batch")))
        read = (len(artifact.encode(artifact.sides(text))[0]) for text in texts)
        return lambda: _tokens(records, artifact.tokenizer, read)

    return answer


def weights(run: Path, channel: str) -> Answer:
    """Return the answers of the trained weights: torch, bf16 or compiled, with -cuda on a GPU."""
    import torch

    from trainer.engine.trained_run import TrainedRun, choose_attention
    from trainer.recipe_loading import Recipe
    from trainer.rundir import RunDir
    from trainer.task.registry import make_task

    kind, _, device = channel.partition("-")
    trained = TrainedRun.open(RunDir(run), Recipe)
    recipe, export = trained.recipe, trained.task.exporter()(trained.task)  # type: ignore[misc]
    model: Any = trained.model.to(device or "cpu", torch.bfloat16 if kind == "bf16" else None)

    @functools.cache
    def task_of(padded: bool, beam: int) -> Any:
        data = recipe.data.model_copy(update={"pad_multiple": recipe.data.max_length} if padded else {})
        changed = recipe.model_copy(update={"data": data, "evaluation": export.evaluation(beam)})
        task = make_task(changed, trained.task.tokenizer)
        task.padding = trained.task.padding.also(data.pad_multiple)
        return task

    @torch.no_grad()
    def answer(texts: Sequence[str], job: Job) -> Callable[[], int]:
        padded = job["candidate"].startswith("tutorial")
        choose_attention(model, "auto" if padded else getattr(recipe.model, "attention", None))
        task = task_of(padded, job["beam"])
        examples = task.encode_lines(texts)
        batch = {key: tensor.to(device or "cpu") for key, tensor in task.collate(examples).items()}
        records = [task.answer(record) for record in task.predict(model, batch)]  # waits for the GPU
        read = (len(example.get("input_ids", ())) for example in examples)
        return lambda: _tokens(records, task.tokenizer.backend_tokenizer, read)

    if kind == "compiled":
        model.compile(dynamic=True)
        answer(["one", "another"], {"candidate": channel, "beam": 1})  # compiles for one text, and for more
    return answer


def _tokens(records: Sequence[dict[str, Any]], tokenizer: Any, read: Iterable[int]) -> int:
    """Count generated tokens with their end; where nothing is generated the tokens that were read, without padding."""
    if "prediction" not in records[0]:
        return sum(read)
    return sum(len(tokenizer.encode(r["prediction"], add_special_tokens=False).ids) + 1 for r in records)


def serve(connection: Connection, make: Callable[[], Answer], imported: float) -> None:
    """Answer jobs until the connection is closed."""
    answer: Answer | None = None
    while True:
        try:
            job = json.loads(connection.recv_bytes())
        except EOFError:
            return
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # reset VmHWM
        try:
            answer = answer or make()
            reply = {**_measure(answer, job), "imported": imported}
        except Exception as error:  # any error of a library: the candidate is left out, with the reason
            reply = {"error": f"{type(error).__name__}: {str(error).strip()}"[:500]}
        connection.send_bytes(json.dumps(reply).encode())


def _measure(answer: Answer, job: Job) -> dict[str, Any]:
    """Seconds of each request, tokens of all, and the peak memory of the process and its GPU."""
    seconds, counts = [], []
    for texts in job["requests"]:
        started = time.perf_counter()
        counts.append(answer(texts, job))
        seconds.append(time.perf_counter() - started)
    result: dict[str, Any] = {"seconds": seconds, "tokens": sum(count() for count in counts)}
    with contextlib.suppress(OSError):
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        result["peak_bytes"] = int(status["VmHWM"].split()[0]) * 1024
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        result["gpu_peak_bytes"] = torch.cuda.max_memory_allocated()
    return result


def _fork(names: Iterable[str]) -> str | None:
    """Fork a process for each name. Return the name in it, None in this process."""
    return next((name for name in names if os.fork() == 0), None)


def main() -> None:
    options = json.loads(sys.argv[1])
    run, programs = Path(options["run"]), options["programs"]
    channels = {name: Connection(fd) for name, fd in options["channels"].items()}
    channel, imported = _fork(programs), time.monotonic()
    if channel is None:
        import torch

        import trainer.engine.trained_run  # noqa: F401 - before the fork, so that it is imported once

        imported = time.monotonic()
        channel = _fork(channels.keys() - programs.keys())
        torch.set_num_threads(options["threads"])
    for name, connection in channels.items():
        if name != channel:
            connection.close()
    if channel is not None:
        make = functools.partial(weights, run, channel)
        if channel in programs:
            make = functools.partial(graphs, run / "export" / channel, programs[channel])
        serve(channels[channel], make, imported)
    os._exit(0)


if __name__ == "__main__":
    main()
