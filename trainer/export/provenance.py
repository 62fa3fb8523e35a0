"""What the artifacts of a run were made from, and whether the run still holds the same."""

from __future__ import annotations

import hashlib
import logging
import shutil
from pathlib import Path
from typing import Any

from trainer.artifact_kinds import KINDS, TORCH
from trainer.engine import checkpoint
from trainer.errors import CheckpointError, UsageError
from trainer.export.artifact_integrity import FORMAT, problems, read_gate
from trainer.export.program import source
from trainer.export.runtimes import DEFAULT
from trainer.files import inside, read_json
from trainer.models.folder import weight_files
from trainer.rundir import RunDir
from trainer.stages import digest, file_facts
from trainer.task.base import Task

log = logging.getLogger("rankzero")

EXACT = ("logits", "margin", "identical", "bleu", "perplexity")  # export.gates of artifacts that must equal the weights
LOSSY = ("int8_bleu", "int8_perplexity", "int8_accuracy")  # of artifacts that may lose a little quality
LIMITS = {"model": ("model",)} | {k.name: (EXACT if k.exact else LOSSY) + (k.logit_limit,) for k in KINDS.values()}


def problems_of(run: RunDir) -> list[str]:
    """Return what has changed since the gates passed or the model card was written: artifacts, weights, checkpoints.

    Raises:
        UsageError: there are no artifacts.
    """
    folders = [path for path in sorted(run.export.glob("[!.]*")) if path.is_dir()]
    folders += [run.model] if (run.model / "gate.json").exists() else []
    on_card = run.stages().get("card", {}).get("of", {})
    if not folders and not any(name.startswith("export/") for name in on_card):
        raise UsageError(f"{run.path} has no artifacts; make them with `rankzero export {run.path}`")
    lines = [problem for folder in folders for problem in problems(folder)]
    hashes = weight_hashes(run)
    other = [folder for folder in folders if _weights_of(folder) != hashes]
    lines += [f"{path} was not made from the weights in {run.model}; run `rankzero export` again" for path in other]
    for name, sha256 in on_card.items():
        path = inside(run.path, name)
        if path is None:
            lines.append(f"{run.manifest} names {name!r}, which is not in the run")
        elif file_facts(path)["sha256"] != sha256:
            lines.append(f"{path} is missing or not the file that the model card describes")
    faults = (checkpoint.fault(checkpoint.path_of(run.checkpoints, step)) for step in checkpoint.steps(run.checkpoints))
    return lines + list(filter(None, faults))


def remove_stale(run: RunDir, hashes: dict[str, str]) -> None:
    """Remove artifacts of other weights, which would be served and recommended as those of the run's."""
    for gate in run.export.glob("[!.]*/gate.json") if hashes else ():
        if _weights_of(gate.parent) != hashes:
            log.warning("%s was made from other weights: removed", gate.parent)
            shutil.rmtree(gate.parent)


def remove_stale_benchmark(run: RunDir, hashes: dict[str, str]) -> None:
    """Remove a benchmark of other weights or artifacts. An artifact is compared by its gate.json, which has hashes."""
    path = run.export / "benchmark.json"
    if (benchmark := read_json(path)) is None:
        return
    files = benchmark["inputs"]["files"]
    weights = {name.removeprefix("model/"): sha256 for name, sha256 in files.items() if name.startswith("model/")}
    gates = {name: sha256 for name, sha256 in files.items() if name.endswith("/gate.json")}
    if weights != hashes or any(file_facts(run.path / name)["sha256"] != sha256 for name, sha256 in gates.items()):
        log.info("%s is of other artifacts: removed; `rankzero bench %s` measures these", path, run.path)
        path.unlink()


def _weights_of(artifact: Path) -> Any:
    return (read_gate(artifact) or {}).get("inputs", {}).get("model")


def inputs(run: RunDir, task: Task, hashes: dict[str, str], name: str) -> dict[str, Any]:
    """Return everything that an artifact and its gate depend on; of the limits, those that apply to it.

    Raises:
        CheckpointError: there are no weights yet.
    """
    if not hashes:
        raise CheckpointError(f"{run.path} has no model yet: finish it with `rankzero train` on the same recipe")
    kind, cleaning = KINDS.get(name), task.recipe.data.cleaning
    runtime = DEFAULT if kind is None or kind.runtime == TORCH else kind.runtime
    program = task.exporter().program_for(runtime)
    recipe = task.recipe.model_dump(mode="json")
    data = {k: recipe["data"][k] for k in ("columns", "cleaning", "max_length", "pad_multiple", "validation", "test")}
    used = ("rows", "prompts", "split_rows", *LIMITS.get(name, ()))
    gates = {key: limit for key, limit in recipe["export"]["gates"].items() if key in used and limit is not None}
    relevant = [recipe["task"], recipe["model"], data, recipe["evaluation"], gates]
    splits = (read_json(run.manifest) or {}).get("data", {})
    return {
        "format": FORMAT,
        "model": hashes,
        "tokenizer": " ".join(file_facts(path)["sha256"] for path in run.tokenizer_files),
        "rows": {split: survey["fingerprint"] for split, survey in splits.items()},
        "program": hashlib.sha256(source(program, cleaning, runtime).encode()).hexdigest() if program else None,
        "recipe": digest(relevant),
    }


def weight_hashes(run: RunDir) -> dict[str, str]:
    """Return names and hashes of the run's weight files. They may be gigabytes: call it once."""
    return {str(path.relative_to(run.model)): file_facts(path)["sha256"] for path in weight_files(run.model)}
