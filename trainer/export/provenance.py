"""What the artifacts of a run were made of, and whether that is what the run holds now."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from typing import Any

from trainer.engine import checkpoint
from trainer.errors import CheckpointError, UsageError
from trainer.export.artifact_integrity import facts, problems, read_gate
from trainer.export.program import PROGRAMS, digest
from trainer.rundir import RunDir, inside, read_json
from trainer.task.base import Task

log = logging.getLogger("rankzero")

FORMAT = 2
SAME = ("logits", "margin", "identical", "bleu", "perplexity")  # gates of what has to be as the weights are
CHEAPER = ("int8_bleu", "int8_perplexity", "int8_accuracy")  # of what may cost a little
LIMITS = {"onnx": SAME, "safetensors": SAME, "int8": CHEAPER, "bf16": CHEAPER}


def problems_of(run: RunDir) -> list[str]:
    """What is not as it was when it was proven, or told of in the model card: artifacts, weights, checkpoints, figures.

    Raises:
        UsageError: there are no artifacts.
    """
    folders = [path for path in sorted(run.export.glob("[!.]*")) if path.is_dir()]
    told = run.stages().get("card", {}).get("of", {})
    if not folders and not any(name.startswith("export/") for name in told):
        raise UsageError(f"{run.path} has no artifacts; make them with `rankzero export {run.path}`")
    found = [problem for folder in folders for problem in problems(folder)]
    held = weights(run)
    for folder in folders:
        if (read_gate(folder) or {}).get("inputs", {}).get("model") != held:
            found.append(f"{run.model} does not hold the weights that {folder} was made of: `rankzero export` again")
    paths = {name: inside(run.path, name) for name in told}
    found += [f"{run.manifest} names {name!r}, which is not in the run" for name, path in paths.items() if path is None]
    changed = [path for name, path in paths.items() if path is not None and facts(path)["sha256"] != told[name]]
    found += [f"{path} is missing or not what the model card tells of" for path in changed]
    for step in checkpoint.steps(run.checkpoints):
        if why := checkpoint.fault(checkpoint.path_of(run.checkpoints, step)):
            found.append(why)
    return found


def remove_stale(run: RunDir, held: dict[str, str]) -> None:
    """Takes away what was made of other weights than the run's: it would be served, and recommended, as theirs."""
    for gate in run.export.glob("[!.]*/gate.json") if held else ():
        if (read_gate(gate.parent) or {}).get("inputs", {}).get("model") != held:
            log.warning("%s was made of other weights: removed", gate.parent)
            shutil.rmtree(gate.parent)


def remove_stale_benchmark(run: RunDir, held: dict[str, str]) -> None:
    """The same of speeds: they would recommend what has changed or gone since they were measured.

    An artifact is told by its gate.json, which holds the hashes of the rest.
    """
    path = run.export / "benchmark.json"
    if (known := read_json(path)) is None:
        return
    files = known["inputs"]["files"]
    weighed = {name.removeprefix("model/"): digest for name, digest in files.items() if name.startswith("model/")}
    gates = {name: digest for name, digest in files.items() if name.endswith("/gate.json")}
    if weighed != held or any(facts(run.path / name)["sha256"] != digest for name, digest in gates.items()):
        log.info("%s is of other artifacts: removed; `rankzero bench %s` measures these", path, run.path)
        path.unlink()


def sources(run: RunDir, task: Task, held: dict[str, str]) -> dict[str, Any]:
    """What all artifacts are made of, and proven on."""
    if not held:
        raise CheckpointError(f"{run.path} has no model yet: finish it with `rankzero train` on the same recipe")
    surveyed = (read_json(run.manifest) or {}).get("data", {})
    return {
        "format": FORMAT,
        "model": held,
        "tokenizer": facts(run.tokenizer / "tokenizer.json")["sha256"],
        "rows": {split: known["fingerprint"] for split, known in surveyed.items()},
        "program": digest(task.artifact, task.recipe.data.cleaning) if task.artifact in PROGRAMS else None,
    }


def inputs(task: Task, made_of: dict[str, Any], name: str) -> dict[str, Any]:
    """Everything that an artifact and its verdict follow from; of the gates those that decide on it."""
    recipe = task.recipe.model_dump(mode="json")
    data = {k: recipe["data"][k] for k in ("columns", "cleaning", "max_length", "pad_multiple", "validation", "test")}
    deciding = LIMITS.get(name, ())
    gates = {k: limit for k, limit in recipe["export"]["gates"].items() if k in ("rows", "prompts", *deciding)}
    relevant = [recipe["task"], recipe["model"], data, recipe["evaluation"], gates]
    return {**made_of, "recipe": hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()}


def weights(run: RunDir) -> dict[str, str]:
    """Names and hashes of the files that hold the run's weights; computed once, they may be gigabytes."""
    return {path.name: facts(path)["sha256"] for path in sorted(run.model.glob("model*.safetensors*"))}
