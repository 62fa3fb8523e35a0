"""`rankzero bench`: measure how fast each artifact answers on this machine, and recommend one for each batch size.

The texts are inputs of an evaluated split, so that a run directory is all that is needed. Every speed is compared with
the tutorial's way: eager fp32, every text padded to data.max_length.

export/benchmark.json: {"contestants": {name: {…}}, "courses": [{"batch", "beam", "contestants": {name: {"p50_ms", …,
"times_tutorial": {"median", "low", "high"}}}}], "recommended": {"1": name or null, …}, "not_recommended": {"32": why},
"left_out": {what: why}, …}. A percentile of too few requests is null; "notes" says how many it needs.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import math
import platform
import random
import time
from collections.abc import Sequence
from typing import Any

import torch

from trainer.cpu_info import EMULATED, bf16_arithmetic, cores, cpuinfo
from trainer.data.roles import encodable
from trainer.errors import CheckpointError, DataError, UsageError
from trainer.evaluation.predictions import read_predictions
from trainer.export.artifact_integrity import problems, read_gate
from trainer.export.bench_runner import PERCENTILES, BenchRunner, TimeUp, channel_of, largest
from trainer.export.program import generated
from trainer.export.task_export import TaskExport
from trainer.files import read_json, write_json
from trainer.models.folder import weight_files
from trainer.recipe import Recipe
from trainer.redaction import shareable
from trainer.rundir import RunDir
from trainer.stages import file_facts, unchanged
from trainer.task.registry import task_class

log = logging.getLogger("rankzero")

FORMAT = 2  # 1 recommended from any number of rounds
SECONDS, LEAST_SECONDS = 30.0, 5.0  # the default, and the least that is allowed
BATCHES = (1, 8, 32)
LEAST_ROUNDS = 5  # for a recommendation: by luck the slower of two wins all five in 3%
TEXTS = 512  # at most
PACKAGES = ("torch", "transformers", "onnxruntime", "tokenizers", "numpy")
FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")  # that speed up int8 and bf16
WHAT = {
    "tutorial": "PyTorch, eager, fp32, every text padded to data.max_length",
    "torch": "PyTorch, eager, fp32, padded to the longest of its batch, as `predict` does",
    "bf16": "the same in bf16",
    "compiled": "the same in fp32, torch.compile",
    "onnx": "onnxruntime, fp32",
    "int8": "onnxruntime, int8, text by text, as `predict` and run.py do",
    "int8-batch": "onnxruntime, int8, in batches (run.py --batch)",
}
UNPADDED = WHAT | {  # new tokens follow the text where padding would be
    "tutorial": "PyTorch, eager, fp32, the library's attention",
    "torch": "PyTorch, eager, fp32, as `predict` does",
}
NEIGHBOURS = (
    "int8 scales activations for each batch, so that in a batch a text's answer depends on its neighbours; the gate "
    "has checked int8 text by text: int8-batch is shown and not recommended"
)
Report = dict[str, Any]


class TooShort(UsageError):
    """Nothing could be measured within the budget."""


def bench_stage(run: RunDir, recipe_type: type[Recipe], *, seconds: float = SECONDS, **options: Any) -> Report | None:
    """Measure a run unless its weights, artifacts, texts and machine are those of its benchmark.json.

    Only rank zero calls it, with the run's lock, after the process group has been closed. None: the task has no
    benchmark, no split has been evaluated, or the time was too short, which does not fail a training.
    """
    if not seconds or not _exporter(run, recipe_type).beams or _split(run) is None:
        return None
    known = read_json(run.export / "benchmark.json")
    if known is not None and unchanged(_inputs(run), known["inputs"]):
        return known
    try:
        return bench_run(run, recipe_type, seconds=seconds, **options)
    except TooShort as error:
        log.warning("no benchmark: %s", error)
        return None


def bench_run(
    run: RunDir,
    recipe_type: type[Recipe],
    *,
    seconds: float = SECONDS,
    threads: int | None = None,
    compiled: bool = False,
) -> Report:
    """Measure, write export/benchmark.json and return its content.

    Args:
        run: with a model and an evaluated split; the caller holds its lock.
        recipe_type: as for `TrainedRun.open`.
        seconds: for everything, the start of the processes included.
        threads: of each candidate; None = one per core that this process may use.
        compiled: measure torch.compile as well, which compiles for up to a minute.

    Raises:
        UsageError: no run directory, a task without a benchmark, or too little time.
        DataError: no evaluated split. CheckpointError: no model yet, or a damaged one.
    """
    begun = time.monotonic()
    threads = cores() if threads is None else threads
    if seconds < LEAST_SECONDS:
        raise UsageError(f"--seconds {seconds:g}: allowed are {LEAST_SECONDS:g} or more; starting processes takes some")
    if threads < 1:
        raise UsageError(f"--threads {threads}: allowed are 1 or more")
    export, split, recipe = _exporter(run, recipe_type), _split(run), recipe_type.load(run.recipe)
    kind = getattr(recipe.task, "kind", None)
    if not export.beams:
        raise UsageError(f"bench: this run's task ({kind}) has no answers to measure")
    if split is None:
        raise DataError(f"{run.path} has no evaluated split to take texts from: rankzero evaluate {run.path}")
    inputs = _inputs(run) | {"options": {"seconds": seconds, "threads": threads, "compiled": compiled}}
    texts, words = _texts(run, split)
    candidates, programs, left_out = _candidates(run, export, compiled)
    runner = BenchRunner(candidates, texts, threads, begun + seconds)
    _measure(runner, run, programs, export.beams, seconds)
    beam = 1 if recipe.evaluation.beam_size == 1 else export.beams[-1]
    report = {
        "format": FORMAT,
        "inputs": inputs,
        "task": kind,
        "machine": _machine() | ({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
        "threads": threads,
        "budget_seconds": seconds,
        "seconds": round(time.monotonic() - begun, 1),
        "split": split,
        "texts": len(texts),
        "words": words,
        "max_length": recipe.data.max_length,
        "contestants": {c: _about(run, export, c, runner) for c in runner.candidates if c in runner.answers},
        "courses": runner.courses,
        **_recommendations(run, runner.courses, beam, seconds),
        "left_out": left_out | runner.left_out,
        "notes": _missing_percentiles(runner.courses) + [NEIGHBOURS] * ("int8-batch" in runner.candidates),
    }
    run.export.mkdir(parents=True, exist_ok=True)
    write_json(run.export / "benchmark.json", shareable(report))
    return report


def _measure(runner: BenchRunner, run: RunDir, programs: dict[str, str], beams: Sequence[int], seconds: float) -> None:
    with contextlib.closing(runner), contextlib.suppress(TimeUp):
        runner.start(run.path.resolve(), programs)
        runner.run([(batch, beam) for batch in BATCHES for beam in beams])
    if not runner.courses and "torch" in runner.left_out:
        raise CheckpointError(f"the trained weights cannot be run: {runner.left_out['torch']}")
    if not runner.courses:
        raise TooShort(f"--seconds {seconds:g}: too little to measure anything here; give {3 * seconds:g}")


# -- candidates --------------------------------------------------------------------------------------------------------


def _candidates(
    run: RunDir, export: type[TaskExport], compiled: bool
) -> tuple[list[str], dict[str, str], dict[str, str]]:
    """Return the candidates, the run.py of artifacts among them, and why other artifacts are left out."""
    programs, left_out, impossible = {}, {}, run.reasons()
    names = ["tutorial", "torch", "bf16", *["compiled"] * (compiled and export.compiles)]
    names += ["tutorial-cuda", "torch-cuda", "bf16-cuda"] * torch.cuda.is_available()
    if not bf16_arithmetic() and not (run.export / "bf16").is_dir():
        names.remove("bf16")
        left_out["bf16"] = EMULATED
    if compiled and not export.compiles:
        left_out["compiled"] = "not for this task: while decoding, the cache has another shape at every position"
    for name in ("onnx", "int8"):
        folder = run.export / name
        if not folder.is_dir():
            left_out[name] = impossible.get(name) or f"not published: rankzero export {run.path}"
        elif wrong := problems(folder):
            left_out[name] = wrong[0]
        else:
            try:
                programs[name] = generated(export, folder)
            except Exception as error:  # whatever is in the file
                left_out[name] = f"{folder / 'settings.json'} cannot be used: {error}"
    return [*names, *programs, *["int8-batch"] * ("int8" in programs)], programs, left_out


def _about(run: RunDir, export: type[TaskExport], name: str, runner: BenchRunner) -> Report:
    """Facts of a candidate that do not depend on the batch size."""
    kind, device = name.removesuffix("-cuda"), "cuda" if name.endswith("-cuda") else "cpu"
    folder = run.export / channel_of(kind)
    files = folder if folder.is_dir() else run.model
    about = {
        "what": (WHAT if export.pads_to_max_length else UNPADDED)[kind],
        "device": device,
        "bytes": sum(p.stat().st_size for p in files.rglob("*") if ".onnx" in p.name or p.suffix == ".safetensors"),
        "cold_start_seconds": round(runner.cold[channel_of(name)], 2),
        **{key: largest(runner.answers[name], key) for key in ("peak_bytes", "gpu_peak_bytes")},
        "deployable": _deployable(run, name),
    }
    if name == "int8-batch":
        about["neighbours"] = (read_gate(folder) or {})["checks"].get("logits", {}).get("batch_neighbours")
    return about


def _deployable(run: RunDir, name: str) -> bool:
    """Whether its gate has passed. The trained weights need none."""
    kind = name.removesuffix("-cuda")
    return kind == "torch" or (kind in ("onnx", "int8", "bf16") and not problems(run.export / kind))


def _recommendations(run: RunDir, courses: Sequence[Report], beam: int, seconds: float) -> Report:
    """By batch size the fastest deployable candidate, decoding as the run does, or why there is none."""
    recommended: dict[str, str | None] = {}
    reasons = {}
    for course in (course for course in courses if course["beam"] == beam):
        batch, rounds = str(course["batch"]), course["rounds"]
        rates = {n: cell["rows_per_second"] for n, cell in course["contestants"].items() if _deployable(run, n)}
        if rates:
            recommended[batch] = max(rates, key=rates.__getitem__)
        if rounds < LEAST_ROUNDS:
            recommended[batch] = None
            need = math.ceil(seconds * (LEAST_ROUNDS + 1) / rounds)
            what = "1 round was" if rounds == 1 else f"{rounds} rounds were"
            reasons[batch] = f"{what} measured, {LEAST_ROUNDS} are needed: give it more time (about --seconds {need})"
    return {"recommended": recommended, "not_recommended": reasons}


def _missing_percentiles(courses: Sequence[Report]) -> list[str]:
    """A note on percentiles that are null, if there are any."""
    cells = [cell for course in courses for cell in course["contestants"].values()]
    missing = [p for p in PERCENTILES if any(cell[f"p{p}_ms"] is None for cell in cells)]
    needed = ", ".join(f"p{p} needs {PERCENTILES[p]}" for p in missing)
    return [f"A percentile is left out where there were too few requests: {needed}"] if missing else []


# -- inputs ------------------------------------------------------------------------------------------------------------


def _exporter(run: RunDir, recipe_type: type[Recipe]) -> type[TaskExport]:
    run.check()
    return task_class(recipe_type.load(run.recipe)).exporter() or TaskExport


def _split(run: RunDir) -> str | None:
    return next((s for s in ("test", "validation") if (run.evaluation(s) / "predictions.jsonl").is_file()), None)


def _texts(run: RunDir, split: str) -> tuple[list[str], Report]:
    """Return cleaned texts of the split in an order that is always the same, and their numbers of words."""
    path = run.evaluation(split) / "predictions.jsonl"
    texts = [record["input"] for record in read_predictions(path) if encodable(record["input"])]
    if not texts:
        raise DataError(f"{path} has no text that could be measured")
    chosen = random.Random(0).sample(texts, min(TEXTS, len(texts)))
    words = sorted(len(text.split()) for text in chosen)
    return chosen, {"least": words[0], "median": words[len(words) // 2], "most": words[-1]}


def _inputs(run: RunDir) -> Report:
    """Return everything that the figures depend on, except the options and the load of the machine."""
    weights = weight_files(run.model)
    if not weights:
        raise CheckpointError(f"{run.path} has no model yet: finish it with `rankzero train` on the same recipe")
    files = [run.recipe, run.tokenizer / "tokenizer.json", *weights]
    files += [run.evaluation(_split(run) or "") / "predictions.jsonl"]
    files += [path for name in ("bf16", "onnx", "int8") for path in sorted((run.export / name).glob("*"))]
    hashes = {str(path.relative_to(run.path)): file_facts(path)["sha256"] for path in files}
    return {"format": FORMAT, "files": hashes, "machine": _machine()}


def _machine() -> Report:
    """Processor, its features, cores and versions; no names of hosts or folders."""
    flags = cpuinfo("flags").split()
    return {
        "cpu": cpuinfo("model name") or platform.processor() or platform.machine(),
        "features": [feature for feature in FEATURES if feature in flags],
        "cores": cores(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
