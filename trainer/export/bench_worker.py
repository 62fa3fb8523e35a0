"""The other side of `rankzero bench`: a process that answers batches of texts and says how long each took.

    python contestant.py '{"run": RUN, "artifact": FOLDER or null, "program": FILE, "threads": 2, "channels": {…}}'

A line of JSON comes through a channel's first descriptor, and its answer goes through the second. An artifact is run by
`program`, its run.py as this package writes it, without torch in the process: the run's own run.py is not executed. For
the others torch and transformers are imported once, and the process then forks, before anything is computed: so each
has the memory that it would have alone. What is loaded is loaded at the first line, so that its answer's time is the
cold start.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

Answer = Callable[[Sequence[str], dict[str, Any]], Any]  # texts and the job -> tokens, counted when it is called
CLEAR_REFS, RESET_PEAK = Path("/proc/self/clear_refs"), "5"


class NoGPU(Exception):
    """What a contestant on a GPU ends with where there is none: nothing to tell."""


def graphs(folder: Path, program: Path | None = None) -> Answer:
    """An artifact, run by `program`. int8 answers text by text, as `predict` does, unless the job says "together".

    Without a program the package's own modules run it, which import more.
    """
    artifact = _artifact(folder) if program is None else _module(program).load(folder)

    def answer(texts: Sequence[str], job: dict[str, Any]) -> Any:
        artifact.settings["beam_size"] = job["beam"]
        examples = [artifact.encode(artifact.sides(text)) for text in texts]
        alone = artifact.settings["one_by_one"] and not job["together"]
        groups = [[example] for example in examples] if alone else [examples]
        records = [record for group in groups for record in artifact.predict(group)]
        return lambda: _tokens(records, artifact.tokenizer, [len(example[0]) for example in examples])

    return answer


def _artifact(folder: Path) -> Any:
    from trainer.export.program import load

    return load(folder)


def _module(program: Path) -> Any:
    spec = importlib.util.spec_from_file_location("artifact_run", program)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def weights(run: Path, name: str) -> Answer:
    """The trained weights in torch: fp32, bf16 or compiled; -cuda on a GPU. A job "padded" is the tutorial's way."""
    import torch

    from trainer.engine.trained_run import TrainedRun, choose_attention
    from trainer.export.answers import greedy
    from trainer.recipe_loading import Recipe
    from trainer.rundir import RunDir
    from trainer.task.registry import make_task

    kind, _, device = name.partition("-")
    if device and not torch.cuda.is_available():
        raise NoGPU
    finished = TrainedRun.open(RunDir(run), Recipe)
    recipe = finished.recipe
    model: Any = finished.model.to(device or "cpu")
    attention = getattr(recipe.model, "attention", None)
    if kind == "bf16":
        model.to(torch.bfloat16)

    @functools.cache
    def task_of(padded: bool, beam: int) -> Any:
        data = recipe.data.model_copy(update={"pad_multiple": recipe.data.max_length} if padded else {})
        evaluation = recipe.evaluation.model_copy(update={"beam_size": beam, "generation": greedy(finished.task)})
        changed = recipe.model_copy(update={"data": data, "evaluation": evaluation})
        made = make_task(changed, finished.task.tokenizer)
        made.padding = finished.task.padding.also(data.pad_multiple)
        return made

    @torch.no_grad()
    def answer(texts: Sequence[str], job: dict[str, Any]) -> Any:
        choose_attention(model, "auto" if job["padded"] else attention)  # the tutorial's is the library's own
        task = task_of(job["padded"], job["beam"])
        examples = task.encode_lines(texts)
        batch = {key: tensor.to(device or "cpu") for key, tensor in task.collate(examples).items()}
        records = [task.answer(record) for record in task.predict(model, batch)]  # waits for the GPU
        read = [len(example.get("input_ids", ())) for example in examples]
        return lambda: _tokens(records, task.tokenizer.backend_tokenizer, read)

    if kind == "compiled":
        model.compile(dynamic=True)
        answer(["one", "another"], {"padded": False, "beam": 1})  # a graph for one text, one for more
    return answer


def _tokens(records: Sequence[dict[str, Any]], tokenizer: Any, read: Sequence[int]) -> int:
    """Tokens written in translations, [EOS] with them; else those of the texts that were read. No padding."""
    if "label" in records[0]:
        return sum(read)
    return sum(len(tokenizer.encode(r["prediction"], add_special_tokens=False).ids) + 1 for r in records)


def serve(channel: Sequence[int], make: Callable[[], Answer], imported: float) -> None:
    """Answers until the channel is closed."""
    reading, writing = os.fdopen(channel[0], "rb"), os.fdopen(channel[1], "wb", buffering=0)
    answer: Answer | None = None
    for line in reading:
        job = json.loads(line)
        with contextlib.suppress(OSError):
            CLEAR_REFS.write_text(RESET_PEAK)
        try:
            if answer is None:
                answer = make()
            reply = _timed(answer, job) | {"imported": imported}
        except NoGPU:
            reply = {"error": ""}
        except Exception as error:  # whatever a library meets: this contestant is left out, with the reason
            reply = {"error": f"{type(error).__name__}: {str(error).strip()}"[:500]}
        writing.write((json.dumps(reply | _memory()) + "\n").encode())


def _timed(answer: Answer, job: dict[str, Any]) -> dict[str, Any]:
    seconds, counted = [], []
    for texts in job["requests"]:
        started = time.perf_counter()
        counts = answer(texts, job)
        seconds.append(time.perf_counter() - started)
        counted.append(counts)
    return {"seconds": seconds, "tokens": sum(count() for count in counted)}


def _memory() -> dict[str, Any]:
    """The most that the process has held since the line came, and that its GPU has."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return {"peak_bytes": int(line.split()[1]) * 1024, **_gpu()}
    return {"peak_bytes": None, **_gpu()}


def _gpu() -> dict[str, Any]:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return {}
    return {"gpu": torch.cuda.get_device_name(), "gpu_peak_bytes": torch.cuda.max_memory_allocated()}


def _forks(names: Sequence[str]) -> Iterator[str]:
    """The first name in this process, each other in one that is forked from it; yields one name in each."""
    for name in names[1:]:
        if os.fork() == 0:
            yield name
            return
    yield names[0]


def main() -> None:
    asked = json.loads(sys.argv[1])
    channels, threads, run = asked["channels"], asked["threads"], Path(asked["run"])
    if asked["artifact"]:
        ((_, channel),) = channels.items()
        serve(channel, lambda: graphs(Path(asked["artifact"]), Path(asked["program"])), time.monotonic())
        return
    import torch

    import trainer.engine.trained_run  # noqa: F401 - what every one of them needs, once

    imported = time.monotonic()
    for name in _forks(list(channels)):
        for other in channels.keys() - {name}:
            for descriptor in channels[other]:
                os.close(descriptor)
        torch.set_num_threads(threads)
        serve(channels[name], lambda name=name: weights(run, name), imported)  # type: ignore[misc]
        os._exit(0)


if __name__ == "__main__":
    main()
