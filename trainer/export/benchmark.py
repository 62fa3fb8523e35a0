"""`rankzero bench`: measure how fast each artifact answers on this machine, and recommend one for each batch size.

The texts are inputs of an evaluated split. Every speed is compared with the candidate "baseline": eager fp32,
every text padded to data.max_length.

export/benchmark.json: {"contestants": {name: {…}}, "courses": [{"batch", "beam", "contestants": {name: {"p50_ms", …,
"times_baseline": {"median", "low", "high"}}}}], "recommended": {"1": name or null, …}, "not_recommended": {"32": why},
"left_out": {what: why}, …}. A percentile of too few requests is null.
"""

from __future__ import annotations

import importlib.metadata
import logging
import math
import platform
import random
import time
from collections.abc import Sequence
from datetime import datetime
from importlib.util import find_spec
from typing import Any

import onnxruntime
import torch

from trainer.artifact_kinds import KINDS, TORCH
from trainer.cpu_info import EMULATED, bf16_arithmetic, cores, cpuinfo
from trainer.data.roles import encodable
from trainer.engine.trained_run import TrainedRun
from trainer.errors import CheckpointError, DataError, UsageError
from trainer.evaluation.predictions import read_predictions
from trainer.export.artifact_integrity import problems, read_gate
from trainer.export.bench_runner import Candidate, measure, started
from trainer.export.gates import GRAPHS
from trainer.files import read_json, write_json
from trainer.models.folder import weight_files
from trainer.recipe_loading import Recipe
from trainer.redaction import shareable
from trainer.rundir import RunDir
from trainer.stages import file_facts, unchanged

log = logging.getLogger("rankzero")

FORMAT = 3  # 1 recommended from any number of rounds, 2 named the baseline otherwise
SECONDS, LEAST_SECONDS = 30.0, 5.0  # the default, and the least that is allowed
WORTH_SECONDS = 12.0  # below it, little but the start of the processes is measured
BATCHES = (1, 8, 32)
START_SHARE = 0.5  # of the time after a training: if starting the processes takes longer, nothing is measured
LEAST_ROUNDS = 5  # for a recommendation: by luck the slower of two wins all five in 3%
TEXTS = 512  # at most
PACKAGES = ("torch", "transformers", "onnxruntime", "openvino", "ctranslate2", "tokenizers", "numpy")
FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")  # that speed up int8 and bf16
WHAT = {
    "baseline": "PyTorch, eager, fp32, {}",
    "torch": "PyTorch, eager, fp32, as `predict` does",
    "compiled": "the same in fp32, torch.compile",
    "int8-batch": "onnxruntime, int8, in batches (run.py --batch)",
    **{kind.name: kind.what for kind in KINDS.values()},
}
FEW = "A percentile is left out where there were too few requests: p50 needs 2, p95 needs 20, p99 needs 100"
NEIGHBOURS = (
    "int8 scales activations for each batch, so that in a batch a text's answer depends on its neighbours; the gate "
    "has checked int8 text by text: int8-batch is shown and not recommended"
)
Report = dict[str, Any]


def bench_stage(run: RunDir, *, seconds: float = SECONDS, **options: Any) -> Report | None:
    """Measure a run unless its weights, artifacts, texts and machine are those of its benchmark.json.

    Only rank zero calls it, with the run's lock, after the process group has been closed. None: the task has no
    benchmark, no split has been evaluated, or the time was too short, which does not fail a training.
    """
    if not seconds or not _export(run).beams or _split(run) is None:
        return None
    known = read_json(run.export / "benchmark.json")
    if known is not None and unchanged(_inputs(run), known["inputs"]):
        return known
    try:
        return bench_run(run, seconds=seconds, start_share=START_SHARE, **options)
    except UsageError as error:
        log.warning("no benchmark: %s", error)
        return None


def bench_seconds(run: RunDir, setting: float | None) -> float:
    """Return the seconds of the benchmark after a training: `export.bench`, or by the time since the first start.

    A tenth of that time is at most SECONDS. Less than WORTH_SECONDS measure nothing, so that short runs have none.
    """
    if setting is not None:
        return setting
    manifest = read_json(run.manifest) or {}
    starts = [start["started"] for start in (*manifest.get("starts", ()), manifest) if "started" in start]
    if not starts:
        return SECONDS
    elapsed = time.time() - min(datetime.fromisoformat(one).timestamp() for one in starts)
    seconds = min(SECONDS, elapsed / 10)
    if seconds >= WORTH_SECONDS:
        return seconds
    log.info("no benchmark after a run of %.0f s: `rankzero bench %s` measures the speed", elapsed, run.path)
    return 0.0


def bench_run(
    run: RunDir,
    *,
    seconds: float = SECONDS,
    threads: int | None = None,
    compiled: bool = False,
    start_share: float = 1.0,
) -> Report:
    """Measure an evaluated run, whose lock is held. Write export/benchmark.json and return its content.

    Args:
        seconds: for everything, the start of the processes included.
        threads: of each candidate; None = one per core that this process may use.
        compiled: measure torch.compile as well, which compiles for up to a minute.
        start_share: part of `seconds` in which the processes must have started.

    Raises:
        RankzeroError: no such run, no model, no evaluated split, no answers to measure, or too little time.
    """
    begun, threads = time.monotonic(), cores() if threads is None else threads
    if seconds < LEAST_SECONDS:
        raise UsageError(f"--seconds {seconds:g}: allowed are {LEAST_SECONDS:g} or more; starting processes takes some")
    if threads < 1:
        raise UsageError(f"--threads {threads}: allowed are 1 or more")
    export, split = _export(run), _split(run)
    recipe = export.task.recipe
    if not export.beams:
        raise UsageError(f"bench: this run's task ({export.task.kind}) has no answers to measure")
    if split is None:
        raise DataError(f"{run.path} has no evaluated split to take texts from: rankzero evaluate {run.path}")
    options = {"seconds": seconds, "threads": threads, "compiled": compiled}
    report = {
        "format": FORMAT,
        "inputs": _inputs(run) | {"options": options},
        "task": export.task.kind,
        "machine": _machine(),
        "threads": threads,
        "budget_seconds": seconds,
        "split": split,
        "max_length": recipe.data.max_length,
        **_measured(run, export, _texts(run, split), (begun + seconds * start_share, begun + seconds), options),
        "seconds": round(time.monotonic() - begun, 1),
    }
    beam = 1 if recipe.evaluation.beam_size == 1 else export.beams[-1]
    report |= _recommendations(run, report["courses"], beam, seconds)
    run.export.mkdir(parents=True, exist_ok=True)
    write_json(run.export / "benchmark.json", shareable(report))
    return report


def _measured(run: RunDir, export: Any, texts: list[str], until: tuple[float, float], options: Report) -> Report:
    """Return the part of the report that candidates and texts give. `until`: the ends of the start and of all."""
    words = sorted(len(text.split()) for text in texts)
    names, left_out = _candidates(run, export, options["compiled"])
    sections = [export.evaluation(beam).model_dump(mode="json") for beam in export.beams]
    scenarios = [(batch, section) for batch in BATCHES for section in sections]
    kinds = {name: KINDS[kind] for name in names if (kind := name.partition("-")[0]) in KINDS}
    programs = {name: export.program_for(kind.runtime) for name, kind in kinds.items() if kind.runtime != TORCH}
    with started(names, run.path.resolve(), programs, options["threads"]) as candidates:
        courses = measure(candidates, scenarios, texts, *until)
    left_out |= {candidate.name: candidate.error for candidate in candidates if candidate.error}
    if not courses and "torch" in left_out:
        raise CheckpointError(f"the trained weights cannot be run: {left_out['torch']}")
    if not courses:
        more = f"`rankzero bench RUN --seconds {math.ceil(3 * options['seconds'])}`"
        raise UsageError(f"{options['seconds']:.0f} seconds are too few to measure anything on this machine: {more}")
    for batch, section in scenarios[len(courses) :]:
        left_out[f"batch {batch}, beam {section['beam_size']}"] = "it took longer than the time that was left"
    cells = [(name, cell) for course in courses for name, cell in course["contestants"].items()]
    measured, few = dict(cells).keys(), any(cell["p99_ms"] is None for _, cell in cells)
    return {
        "texts": len(texts),
        "words": {"least": words[0], "median": words[len(words) // 2], "most": words[-1]},
        "contestants": {c.name: _about(run, export, c) for c in candidates if c.name in measured},
        "courses": courses,
        "left_out": left_out,
        "notes": [FEW] * few + [NEIGHBOURS] * ("int8-batch" in measured),
    }


def _candidates(run: RunDir, export: Any, compiled: bool) -> tuple[list[str], dict[str, str]]:
    """Return the candidates, and why others are left out.

    "…-cuda" runs on a GPU, "int8-batch" in batches.
    """
    names, left_out, impossible, recipe = ["baseline", "torch"], {}, run.reasons(), Recipe.load(run.recipe)
    if bf16_arithmetic() or (run.export / "bf16").is_dir():
        names.append("bf16")
    else:
        left_out["bf16"] = EMULATED
    names += [f"{name}-cuda" for name in ("baseline", "torch", "bf16")] * torch.cuda.is_available()
    if compiled and export.compiles:
        names.append("compiled")
    elif compiled:
        left_out["compiled"] = "not for this task: while decoding, the cache has another shape at every position"
    for kind in (kind for kind in KINDS.values() if kind.runtime != TORCH):
        name, folder = kind.name, run.export / kind.name
        if not folder.is_dir():
            if name in impossible or getattr(recipe.export, name):
                left_out[name] = impossible.get(name) or f"not published: rankzero export {run.path}"
        elif wrong := problems(folder):
            left_out[name] = wrong[0]
        elif kind.device == "cpu":
            names += [name, *[f"{name}-batch"] * kind.one_by_one]
        elif gpu_runtime():
            names.append(f"{name}-{kind.device}")
        else:
            left_out[name] = "it is for GPUs, and this onnxruntime supports no GPU"
    return names, left_out


def gpu_runtime() -> bool:
    """Whether onnxruntime computes on a GPU."""
    return torch.cuda.is_available() and "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def _about(run: RunDir, export: Any, candidate: Candidate) -> Report:
    """Facts of a candidate that do not depend on the batch size."""
    name, last = candidate.name, candidate.answers[-1]
    kind, _, device = name.partition("-")
    folder = run.export / kind
    files = [*(folder if folder.is_dir() else run.model).rglob("*")]
    about = {
        "what": WHAT.get(name, WHAT[kind]).format(export.baseline),
        "device": "cuda" if device == "cuda" else "cpu",
        "bytes": sum(p.stat().st_size for p in files if p.suffix in (*GRAPHS, ".safetensors")),
        "cold_start_seconds": round(candidate.answers[0]["cpu_seconds"], 2),
        **{key: last.get(key) for key in ("peak_bytes", "gpu_peak_bytes")},
        "deployable": _deployable(run, name),
    }
    if name.endswith("-batch"):
        about["neighbours"] = (read_gate(folder) or {})["checks"].get("logits", {}).get("batch_neighbours")
    return about


def _deployable(run: RunDir, name: str) -> bool:
    """Whether its gate has passed. The trained weights need none."""
    kind = name.removesuffix("-cuda")
    return kind == "torch" or (kind in KINDS and not problems(run.export / kind))


def _recommendations(run: RunDir, courses: Sequence[Report], beam: int, seconds: float) -> Report:
    """By batch size the fastest deployable candidate, decoding as the run does, or why there is none."""
    recommended: dict[str, str | None] = {}
    reasons = {}
    for course in (course for course in courses if course["beam"] == beam):
        batch, rounds = str(course["batch"]), course["rounds"]
        rates = {n: cell["rows_per_second"] for n, cell in course["contestants"].items() if _deployable(run, n)}
        if rounds < LEAST_ROUNDS:
            recommended[batch] = None
            need = math.ceil(seconds * (LEAST_ROUNDS + 1) / rounds)
            reasons[batch] = f"{rounds} of {LEAST_ROUNDS} rounds: give it more time (about --seconds {need})"
        elif rates:
            recommended[batch] = max(rates, key=rates.__getitem__)
    return {"recommended": recommended, "not_recommended": reasons}


def _export(run: RunDir) -> Any:
    task = TrainedRun.task_of(run, Recipe)
    return task.exporter()(task)


def _split(run: RunDir) -> str | None:
    return next((s for s in ("test", "validation") if (run.evaluation(s) / "predictions.jsonl").is_file()), None)


def _texts(run: RunDir, split: str) -> list[str]:
    """Return cleaned texts of the split in an order that is always the same."""
    path = run.evaluation(split) / "predictions.jsonl"
    texts = [record["input"] for record in read_predictions(path) if encodable(record["input"])]
    if not texts:
        raise DataError(f"{path} has no text that could be measured")
    return random.Random(0).sample(texts, min(TEXTS, len(texts)))


def _inputs(run: RunDir) -> Report:
    """Return everything that the figures depend on, except the options and the load of the machine."""
    weights = weight_files(run.model)
    if not weights:
        raise CheckpointError(f"{run.path} has no model yet: finish it with `rankzero train` on the same recipe")
    files = [run.recipe, *run.tokenizer_files, *weights]
    files += [run.evaluation(_split(run) or "") / "predictions.jsonl"]
    artifacts = [path for name in KINDS for path in sorted((run.export / name).rglob("*"))]
    files += [path for path in artifacts if path.is_file()]
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
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES if find_spec(name)},
        **({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
    }
