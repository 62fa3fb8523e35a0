"""A process of `rankzero bench`: it answers batches of texts and measures how long each takes.

    python bench_worker.py '{"run": RUN, "artifact": FOLDER, "program": FILE, "threads": 2, "channels": {NAME: FD}}'

A job and its answer are JSON messages through the socket of a channel. Without an artifact, channels are the trained
weights in torch: torch and transformers are imported once, and the process then forks for each channel, so that each
has its own memory. An artifact is run by `program`, a run.py that this package has written, without torch in the
process; the run.py in the run directory is not executed. A model is loaded at the first job: that is the cold start.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

Answer = Callable[[Sequence[str], dict[str, Any]], Callable[[], int]]  # texts and job -> function that counts tokens


class NoGPU(Exception):
    """There is no GPU for this channel, which is nothing to report."""


def graphs(folder: Path, program: Path) -> Answer:
    """Return the answers of an artifact. int8 answers text by text, as `predict` does, unless the job is "together"."""
    spec = importlib.util.spec_from_file_location("artifact_run", program)
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    artifact = module.load(folder)

    def answer(texts: Sequence[str], job: dict[str, Any]) -> Callable[[], int]:
        artifact.settings["beam_size"] = job["beam"]
        examples = [artifact.encode(artifact.sides(text)) for text in texts]
        one_by_one = artifact.settings["one_by_one"] and not job["together"]
        groups = [[example] for example in examples] if one_by_one else [examples]
        records = [record for group in groups for record in artifact.predict(group)]
        return lambda: _tokens(records, artifact.tokenizer, [len(example[0]) for example in examples])

    return answer


def weights(run: Path, name: str) -> Answer:
    """Return the answers of the trained weights: torch, bf16 or compiled, with -cuda on a GPU."""
    import torch

    from trainer.engine.trained_run import TrainedRun, choose_attention
    from trainer.recipe_loading import Recipe
    from trainer.rundir import RunDir
    from trainer.task.registry import make_task

    kind, _, device = name.partition("-")
    if device and not torch.cuda.is_available():
        raise NoGPU
    trained = TrainedRun.open(RunDir(run), Recipe)
    recipe, exporter = trained.recipe, trained.task.exporter()
    model: Any = trained.model.to(device or "cpu", torch.bfloat16 if kind == "bf16" else None)
    attention = getattr(recipe.model, "attention", None)

    @functools.cache
    def task_of(padded: bool, beam: int) -> Any:
        data = recipe.data.model_copy(update={"pad_multiple": recipe.data.max_length} if padded else {})
        evaluation = exporter(trained.task).evaluation(beam)  # type: ignore[misc]
        task = make_task(recipe.model_copy(update={"data": data, "evaluation": evaluation}), trained.task.tokenizer)
        task.padding = trained.task.padding.also(data.pad_multiple)
        return task

    @torch.no_grad()
    def answer(texts: Sequence[str], job: dict[str, Any]) -> Callable[[], int]:
        choose_attention(model, "auto" if job["padded"] else attention)  # the tutorial uses the library's default
        task = task_of(job["padded"], job["beam"])
        examples = task.encode_lines(texts)
        batch = {key: tensor.to(device or "cpu") for key, tensor in task.collate(examples).items()}
        records = [task.answer(record) for record in task.predict(model, batch)]  # waits for the GPU
        read = [len(example.get("input_ids", ())) for example in examples]
        return lambda: _tokens(records, task.tokenizer.backend_tokenizer, read)

    if kind == "compiled":
        model.compile(dynamic=True)
        answer(["one", "another"], {"padded": False, "beam": 1})  # compiles for one text, and for more
    return answer


def _tokens(records: Sequence[dict[str, Any]], tokenizer: Any, read: Sequence[int]) -> int:
    """Count generated tokens with their end; where nothing is generated the tokens that were read, without padding."""
    if "prediction" not in records[0]:
        return sum(read)
    return sum(len(tokenizer.encode(r["prediction"], add_special_tokens=False).ids) + 1 for r in records)


def serve(connection: Connection, make: Callable[[], Answer], imported: float) -> None:
    """Answer jobs until the connection is closed."""
    answer: Answer | None = None
    with contextlib.suppress(EOFError):
        while True:
            job = json.loads(connection.recv_bytes())
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")  # reset the peak
            try:
                answer = answer or make()
                reply = _timed(answer, job) | {"imported": imported, **_memory()}
            except NoGPU:
                reply = {"error": ""}
            except Exception as error:  # any error of a library: the candidate is left out, with the reason
                reply = {"error": f"{type(error).__name__}: {str(error).strip()}"[:500]}
            connection.send_bytes(json.dumps(reply).encode())


def _timed(answer: Answer, job: dict[str, Any]) -> dict[str, Any]:
    seconds, counts = [], []
    for texts in job["requests"]:
        started = time.perf_counter()
        counts.append(answer(texts, job))
        seconds.append(time.perf_counter() - started)
    return {"seconds": seconds, "tokens": sum(count() for count in counts)}


def _memory() -> dict[str, Any]:
    """Peak memory of the process since the job came, and of its GPU."""
    peak = None
    with contextlib.suppress(OSError):
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        peak = int(status["VmHWM"].split()[0]) * 1024
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return {"peak_bytes": peak}
    gpu_peak = torch.cuda.max_memory_allocated()
    return {"peak_bytes": peak, "gpu": torch.cuda.get_device_name(), "gpu_peak_bytes": gpu_peak}


def main() -> None:
    options = json.loads(sys.argv[1])
    channels, run = {name: Connection(fd) for name, fd in options["channels"].items()}, Path(options["run"])
    if options["artifact"]:
        (connection,) = channels.values()
        serve(connection, lambda: graphs(Path(options["artifact"]), Path(options["program"])), time.monotonic())
        return
    import torch

    import trainer.engine.trained_run  # noqa: F401 - before the fork, so that every channel has it

    imported = time.monotonic()
    mine, *others = channels
    for name in others:
        if os.fork() == 0:
            mine = name
            break
    for name in channels.keys() - {mine}:
        channels[name].close()
    torch.set_num_threads(options["threads"])
    serve(channels[mine], lambda: weights(run, mine), imported)
    os._exit(0)


if __name__ == "__main__":
    main()
