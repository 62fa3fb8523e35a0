"""`rankzero bench`: how fast each artifact answers on this machine, and which to deploy for which batch size.

The texts are those of the test split's predictions, so that a run directory is all that is needed. Everything is told
beside the tutorial's way: eager fp32, every text padded to data.max_length. No torch here: see `contestant`.

export/benchmark.json: {"contestants": {name: {…}}, "courses": [{"batch", "beam", "contestants": {name: {"p50_ms", …,
"times_tutorial": {"median", "low", "high"}}}}], "recommended": {"1": name or null, …}, "not_recommended": {"32": why},
"left_out": {what: why}, …}. A percentile of too few requests is null; "notes" says how many it needs.
"""

from __future__ import annotations

import importlib.metadata
import logging
import platform
import random
import time
from collections.abc import Sequence
from typing import Any

from trainer.cpu_info import cores, cpuinfo
from trainer.data.formats import encodable
from trainer.errors import CheckpointError, DataError, UsageError
from trainer.evaluation.predictions import read_predictions
from trainer.export.artifact_integrity import facts, problems, read_gate
from trainer.export.bench_runner import BenchRunner, Candidate, Scenario, TimeUp
from trainer.export.program import settings_problems
from trainer.export.sample_sizes import missing_percentiles, too_few_rounds
from trainer.recipe import Recipe
from trainer.redaction import shareable
from trainer.rundir import RunDir, read_json, write_json

log = logging.getLogger("rankzero")

FORMAT = 2  # 1 recommended from any number of rounds
SECONDS, LEAST_SECONDS = 30.0, 5.0  # by default, and allowed
BATCHES = (1, 8, 32)
BEAMS = {"classification": (1,), "translation": (1, 5), "text_to_text": (1, 5), "language_modeling": (1,)}
TEXTS = 512  # different ones, at most
PACKAGES = ("torch", "transformers", "onnxruntime", "tokenizers", "numpy")
FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")  # what int8 and bf16 live on
WHAT = {
    "tutorial": "PyTorch, eager, fp32, every text padded to data.max_length",
    "torch": "PyTorch, eager, fp32, padded to the longest of its batch, as `predict` does",
    "bf16": "the same in bf16",
    "compiled": "the same in fp32, torch.compile",
    "onnx": "onnxruntime, fp32",
    "int8": "onnxruntime, int8, text by text, as `predict` and run.py do",
    "int8-batch": "onnxruntime, int8, in batches (run.py --batch)",
}
UNPADDED = WHAT | {  # a text that is gone on with has its new tokens where padding would be
    "tutorial": "PyTorch, eager, fp32, the library's attention",
    "torch": "PyTorch, eager, fp32, as `predict` does",
}
NOT_COMPILED = "classification only: of a decoding the cache has another shape at every position"
NEIGHBOURS = (
    "int8 scales activations anew for each batch, so that in a batch a text's answer depends on its neighbours; the "
    "gate has proven int8 text by text: int8-batch is shown and not recommended"
)
Report = dict[str, Any]


class TooShort(UsageError):
    """Nothing could be measured within the budget."""


def bench_stage(
    run: RunDir,
    recipe_type: type[Recipe],
    *,
    seconds: float = SECONDS,
    threads: int | None = None,
    compiled: bool = False,
) -> Report | None:
    """The benchmark of a run; the one that is there where weights, artifacts, texts and machine are the same.

    Rank zero alone calls it, with the run's lock, after the process group has been closed; it starts processes that
    open the run from its directory. None for a task that has no benchmark, a run without an evaluated split, and where
    the time was too short: a training does not fail for that.
    """
    if not seconds or not _beams(_recipe(run, recipe_type)) or _split(run) is None:
        return None
    known, now = read_json(run.export / "benchmark.json"), _inputs(run, seconds, threads or cores(), compiled)
    if known is not None and {**known["inputs"], "options": None} == {**now, "options": None}:
        return known
    try:
        return bench_run(run, recipe_type, seconds=seconds, threads=threads, compiled=compiled)
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
    """Measures, writes export/benchmark.json and returns what is in it.

    Args:
        run: a run whose model has been written and a split of which has been evaluated; the caller holds its lock.
        recipe_type: as `TrainedRun.open` takes it.
        seconds: for everything, the start of the processes included.
        threads: of each contestant; None = one per core that this process may use.
        compiled: torch.compile as well (classification); it compiles for up to a minute.

    Raises:
        UsageError: no run directory, a task without a benchmark, or too little time for any measure.
        DataError: no evaluated split. CheckpointError: no model yet, or a damaged one.
    """
    begun = time.monotonic()
    threads = cores() if threads is None else threads
    _check(seconds, threads)
    recipe: Any = _recipe(run, recipe_type)
    kind, beams, split = recipe.task.kind, _beams(recipe), _split(run)
    if not beams:
        raise UsageError(f"bench: task {kind} answers nothing here; allowed: {', '.join(BEAMS)} (causal)")
    if split is None:
        raise DataError(f"{run.path} has no evaluated split to take texts from: rankzero evaluate {run.path}")
    inputs = _inputs(run, seconds, threads, compiled)
    texts, lengths = _texts(run, split)
    entries, left_out = _entries(run, kind, compiled)
    contest = BenchRunner(entries, texts, threads, begun + seconds)
    courses: list[Report] = []
    try:
        _start(contest, run)
        courses += contest.run([Scenario(batch, beam) for batch in BATCHES for beam in beams])
    except TimeUp:
        pass
    finally:
        contest.close()
    if not courses:
        raise _too_short(seconds, contest)
    report = {
        "format": FORMAT,
        "inputs": inputs,
        "task": kind,
        "machine": _machine() | ({"gpu": contest.gpu} if contest.gpu else {}),
        "threads": threads,
        "budget_seconds": seconds,
        "seconds": round(time.monotonic() - begun, 1),
        "split": split,
        "texts": len(texts),
        "words": lengths,
        "max_length": recipe.data.max_length,
        "contestants": {e.name: _about(run, kind, e, contest) for e in contest.entries if e.name in contest.peaks},
        "courses": courses,
        **_advice(run, courses, 1 if recipe.evaluation.beam_size == 1 else beams[-1], seconds),
        "left_out": left_out | contest.left_out,
        "notes": missing_percentiles(courses) + [NEIGHBOURS] * any(entry.together for entry in contest.entries),
    }
    run.export.mkdir(parents=True, exist_ok=True)
    write_json(run.export / "benchmark.json", shareable(report))
    return report


def _check(seconds: float, threads: int) -> None:
    if seconds < LEAST_SECONDS:
        why = "the processes alone take some of them"
        raise UsageError(f"--seconds {seconds:g}: allowed are {LEAST_SECONDS:g} or more; {why}")
    if threads < 1:
        raise UsageError(f"--threads {threads}: allowed are 1 or more")


# -- who takes part ----------------------------------------------------------------------------------------------------


def _entries(run: RunDir, kind: str, compiled: bool) -> tuple[list[Candidate], dict[str, str]]:
    """The contestants, and why artifacts are not among them."""
    entries = [Candidate("tutorial", "torch", padded=True), Candidate("torch", "torch"), Candidate("bf16", "bf16")]
    entries += [Candidate("tutorial-cuda", "torch-cuda", padded=True), Candidate("torch-cuda", "torch-cuda")]
    entries += [Candidate("bf16-cuda", "bf16-cuda")]
    left_out, never = {}, run.reasons()
    if compiled and kind == "classification":
        entries.insert(3, Candidate("compiled", "compiled"))
    elif compiled:
        left_out["compiled"] = NOT_COMPILED
    for name in ("onnx", "int8"):
        folder = run.export / name
        if not folder.is_dir():
            left_out[name] = never.get(name) or f"not published: rankzero export {run.path}"
        elif wrong := [*problems(folder), *settings_problems(folder)]:
            left_out[name] = wrong[0]
        else:
            entries.append(Candidate(name, name))
    if any(entry.name == "int8" for entry in entries):
        entries.append(Candidate("int8-batch", "int8", together=True))
    return entries, left_out


def _start(contest: BenchRunner, run: RunDir) -> None:
    channels = list(dict.fromkeys(entry.channel for entry in contest.entries))
    graphs = [channel for channel in channels if channel in ("onnx", "int8")]
    contest.start([channel for channel in channels if channel not in graphs], run.path.resolve(), None)
    for name in graphs:
        contest.start([name], run.path.resolve(), (run.export / name).resolve())


def _too_short(seconds: float, contest: BenchRunner) -> Exception:
    if "torch" in contest.left_out:
        return CheckpointError(f"the trained weights cannot be run: {contest.left_out['torch']}")
    return TooShort(f"--seconds {seconds:g}: too little to measure anything here; give {3 * seconds:g}")


def _about(run: RunDir, kind: str, entry: Candidate, contest: BenchRunner) -> Report:
    """What is told of a contestant once; its cold start is that of its process."""
    name = entry.name.removesuffix("-cuda")
    folder = run.export / entry.channel
    files = sorted(folder.glob("*.onnx*")) if entry.channel in ("onnx", "int8") else run.model.glob("*.safetensors")
    if name == "bf16" and folder.is_dir():
        files = folder.glob("*.safetensors")
    about = {
        "what": (UNPADDED if kind == "language_modeling" else WHAT)[name],
        "device": entry.device,
        "bytes": sum(path.stat().st_size for path in files),
        "cold_start_seconds": round(contest.cold[entry.channel], 2),
        **contest.peaks[entry.name],
        "deployable": _deployable(run, entry.name),
    }
    if entry.together:
        checks = (read_gate(folder) or {})["checks"]
        about["neighbours"] = checks.get("logits", {}).get("batch_neighbours")
    return about


def _deployable(run: RunDir, name: str) -> bool:
    """Whether its gate has passed: the trained weights need none, bf16 does as soon as there is an artifact of it."""
    kind = name.removesuffix("-cuda")
    return kind == "torch" or (kind in ("onnx", "int8", "bf16") and not problems(run.export / kind))


def _advice(run: RunDir, courses: Sequence[Report], beam: int, seconds: float) -> Report:
    """What to deploy for each batch size, null where too little was measured, and why."""
    decoded = [course for course in courses if course["beam"] == beam]
    few = {str(course["batch"]): why for course in decoded if (why := too_few_rounds(course, seconds))}
    return {"recommended": _recommended(run, courses, beam) | dict.fromkeys(few), "not_recommended": few}


def _recommended(run: RunDir, courses: Sequence[Report], beam: int) -> dict[str, str]:
    """By batch size the fastest contestant that may be deployed, decoding as the run does."""
    found = {}
    for course in courses:
        rates = {n: cell["rows_per_second"] for n, cell in course["contestants"].items() if _deployable(run, n)}
        if course["beam"] == beam and rates:
            found[str(course["batch"])] = max(rates, key=rates.__getitem__)
    return found


# -- what it is measured on --------------------------------------------------------------------------------------------


def _recipe(run: RunDir, recipe_type: type[Recipe]) -> Recipe:
    run.check()
    return recipe_type.load(run.recipe)


def _split(run: RunDir) -> str | None:
    return next((s for s in ("test", "validation") if (run.evaluation(s) / "predictions.jsonl").is_file()), None)


def _beams(recipe: Any) -> tuple[int, ...]:
    """By how many hypotheses it answers, each measured; none for a task that has no benchmark."""
    masked = getattr(recipe.task, "objective", None) == "mlm"  # answers nothing
    return () if masked else BEAMS.get(recipe.task.kind, ())


def _texts(run: RunDir, split: str) -> tuple[list[str], Report]:
    """Cleaned texts of the split in an order that is the same each time, and how many words they have."""
    records = read_predictions(run.evaluation(split) / "predictions.jsonl")
    texts = [record["input"] for record in records if encodable(record["input"])]
    if not texts:
        raise DataError(f"{run.evaluation(split) / 'predictions.jsonl'} has no text to ask about")
    chosen = random.Random(0).sample(texts, min(TEXTS, len(texts)))
    words = sorted(len(text.split()) for text in chosen)
    return chosen, {"least": words[0], "median": words[len(words) // 2], "most": words[-1]}


def _inputs(run: RunDir, seconds: float, threads: int, compiled: bool) -> Report:
    """Everything that the figures follow from, but for what else the machine does."""
    files = sorted(run.model.glob("model*.safetensors*"))
    if not files:
        raise CheckpointError(f"{run.path} has no model yet: finish it with `rankzero train` on the same recipe")
    split = _split(run) or ""
    used = [run.recipe, run.tokenizer / "tokenizer.json", run.evaluation(split) / "predictions.jsonl", *files]
    used += [path for name in ("bf16", "onnx", "int8") for path in sorted((run.export / name).glob("*"))]
    return {
        "format": FORMAT,
        "files": {str(path.relative_to(run.path)): facts(path)["sha256"] for path in used},
        "options": {"seconds": seconds, "threads": threads, "compiled": compiled},
        "machine": _machine(),
    }


def _machine() -> Report:
    """Processor, what it can do, cores, versions; no names of hosts or folders."""
    flags = cpuinfo("flags").split()
    return {
        "cpu": cpuinfo("model name") or platform.processor() or platform.machine(),
        "features": [feature for feature in FEATURES if feature in flags],
        "cores": cores(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
