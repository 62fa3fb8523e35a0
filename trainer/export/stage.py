"""The export stage of a finished run: make each artifact in a temporary folder, check it, and publish it.

    export/onnx/, export/int8/    graphs, tokenizer.json, settings.json, run.py, serve.py, Dockerfile, gate.json; only
                                  gate.json if the gate failed; likewise the others of trainer.artifact_kinds
    export/left_out.json          the artifacts that are not possible, and why
    export/.onnx.making-…         in progress; complete once gate.json is in it, and then only renamed
    export/.answers.json          answers of the trained weights on the split, until all artifacts are made

A killed stage is completed by running it again. Only rank zero runs it, with the run's lock held.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path

import torch

from trainer.artifact_kinds import KINDS, ONNX, TORCH
from trainer.cpu_info import bf16_arithmetic
from trainer.engine.trained_run import TrainedRun
from trainer.errors import GateError, RankzeroError
from trainer.export import model_gate
from trainer.export.artifact_integrity import completed, decided, read_gate
from trainer.export.conversions import Conversion, convert, export_graphs, why_not_kind
from trainer.export.gates import Gate, SearchGate, describe, graph_files
from trainer.export.program import NAME, generated
from trainer.export.provenance import inputs, remove_stale, remove_stale_benchmark, weight_hashes
from trainer.export.rows import Progress, Row, Rows
from trainer.export.weights import TYPES, WeightsGate
from trainer.files import publish, read_json, workspace, write_json
from trainer.lock import check_held
from trainer.models.families import family_of
from trainer.recipe_loading import Recipe
from trainer.rundir import RunDir
from trainer.task.base import Record, Task

log = logging.getLogger("rankzero")

REPORT_EVERY = 10.0  # seconds
REMEDY = (
    "export.gates changes the thresholds; export.onnx=false export.int8=false leaves the artifacts out, and "
    "export.model=false the check of model/"
)
PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "tokenizers")  # and those of the kind


def export_run(run: RunDir, overrides: Sequence[str] = (), progress: Progress | None = None) -> list[Path]:
    """Make, check and publish the artifacts that the recipe sets, unless that has been done already.

    Args:
        run: with a model; the caller holds its lock.
        overrides: `key=value`, such as export.gates.int8_accuracy=0.01.
        progress: receives messages; by default they are logged every ten seconds.

    Returns:
        The published folders.

    Raises:
        GateError: artifacts failed their gates and were not published. What is made from onnx is not tried if onnx
            failed.
        UsageError, CheckpointError: no run directory, no model in it, or a package for an artifact is not installed.
    """
    task = TrainedRun.task_of(run, Recipe, overrides)
    task.recipe.export.check_packages()
    hashes = weight_hashes(run)
    check_held(run.path)
    remove_stale(run, hashes)
    names = _wanted(run, task, has_model=bool(hashes))
    names = ["model"] * (task.recipe.export.model and bool(hashes)) + names
    if not names:
        return []
    stage = _Stage(run, task, hashes, overrides, progress or log_progress())
    run.export.mkdir(parents=True, exist_ok=True)
    folders: dict[str, Path] = {}
    errors: dict[str, str] = {}
    for name in names:
        if name != "model" and KINDS[name].from_graphs and ONNX in errors:
            shutil.rmtree(run.export / name, ignore_errors=True)
            continue
        try:
            folders[name] = stage.check_model() if name == "model" else stage.publish(name)
        except GateError as error:
            errors[name] = str(error)
    stage.remove_scratch()
    remove_stale_benchmark(run, hashes)
    if errors:  # the answers are kept: another attempt, perhaps with another limit, needs them
        raise GateError("\n".join([*errors.values(), REMEDY]))
    stage.answers_file.unlink(missing_ok=True)
    return [folder for name, folder in folders.items() if name != "model"]


def _wanted(run: RunDir, task: Task, *, has_model: bool) -> list[str]:
    """Return the artifacts to make. Log those that are not possible.

    left_out.json has those that the run's own recipe asks for: an override of one export is not part of the run.
    """
    config = task.recipe.export
    reason = why_not(task, run) if config.graphs and has_model else None
    names = config.wanted(graphs=reason is None)
    reasons = dict.fromkeys(config.graphs, reason) if reason is not None else {}
    if has_model:
        reasons |= {name: why for name in names if (why := why_not_kind(KINDS[name], task, run)) is not None}
    if "bf16" in names and config.bf16 is None and (why := _why_no_bf16(task)):
        names.remove("bf16")
        log.info("bf16: left out, since %s; export.bf16=true makes it nevertheless", why)
    own = Recipe.load(run.recipe).export
    if kept := {name: why for name, why in reasons.items() if getattr(own, name)}:
        run.export.mkdir(parents=True, exist_ok=True)
        write_json(run.left_out, kept)
    else:
        run.left_out.unlink(missing_ok=True)
    for why in dict.fromkeys(reasons.values()):
        log.info("%s left out: %s", " and ".join(name for name, own in reasons.items() if own == why), why)
    for name in reasons:  # an earlier version may have tried and failed
        if not (read_gate(run.export / name) or {"passed": True})["passed"]:
            shutil.rmtree(run.export / name)
    return [name for name in names if name not in reasons]


def why_not(task: Task, run: RunDir) -> str | None:
    """Return why the model of a run has no ONNX graph, as a part of a sentence; None if no reason is known.

    Any other error of the exporter fails the gate. tests/test_export_families.py fails once a reason is outdated.
    """
    export = task.exporter()
    if export.program is None:
        return export.no_graphs
    config = read_json(run.model / "config.json") or {}
    config = config.get("trunk", config)
    reason = family_of(config).export_problem(config)
    return None if reason is None else f"{config['model_type']}: {reason}"


def impossible(task: Task, run: RunDir) -> dict[str, str]:
    """Return by name why this run cannot have artifacts, as parts of sentences."""
    graphs = why_not(task, run)
    reasons = {name: (graphs if kind.graphs else None) or why_not_kind(kind, task, run) for name, kind in KINDS.items()}
    return {name: why for name, why in reasons.items() if why is not None}


def _why_no_bf16(task: Task) -> str | None:
    if not task.exporter()(task).fits_bf16:
        return "numbers of this size have too few digits in bf16"
    # without bf16 arithmetic it is no faster, and its check takes longer than all others
    return None if bf16_arithmetic() or torch.cuda.is_available() else "this machine has no bf16 arithmetic"


class _Stage:
    """The artifacts of one run. What several of them need is computed once, when first used."""

    def __init__(
        self, run: RunDir, task: Task, hashes: dict[str, str], overrides: Sequence[str], progress: Progress
    ) -> None:
        self.run, self.task, self.overrides, self.progress = run, task, overrides, progress
        self.answers_file, self._scratch = run.export / ".answers.json", run.export / ".fp32"
        self._inputs = partial(inputs, run, task, hashes)

    @cached_property
    def rows(self) -> Rows:
        trained = TrainedRun.open(self.run, Recipe, self.overrides)
        model, limits = trained.model.cpu().float().eval(), trained.task.recipe.export.gates
        return Rows(trained.task, model, most=limits.split_rows)

    @cached_property
    def answered(self) -> list[Row]:
        """Every row with the answer of the weights, from an interrupted start if there was one."""
        saved, current = read_json(self.answers_file), self._inputs("answers")
        if saved is None or saved["inputs"] != current:
            saved = {"inputs": current, "answers": self.rows.answers(self.progress)}
            write_json(self.answers_file, saved)
        return self.rows.all(saved["answers"])

    # -- whether it has to be made -------------------------------------------------------------------------------------

    def publish(self, name: str) -> Path:
        """Make the artifact and put it in its place, unless it has been made, or refused, from the same inputs."""
        place = self.run.export / name
        if not self._done(name, place):
            complete = (path for path in self.run.export.glob(f".{name}.making-*") if self._done(name, path))
            publish(next(complete, None) or self._make(name, workspace(place)), place)
        return _passed(place)

    def _done(self, name: str, folder: Path) -> bool:
        gate = decided(folder, self._inputs(name))
        if gate is None or not gate["passed"] or name in TYPES:
            return gate is not None
        # others are made from this folder, and their gates run the program
        return (folder / NAME).read_text("utf-8") == generated(self.task.exporter(), folder)

    def check_model(self) -> Path:
        """Decide the gate of model/, unless that is done."""
        started, now, folder = time.time(), self._inputs("model"), self.run.model
        if decided(folder, now) is None:
            self.progress("model: comparing with stock libraries")
            gate = model_gate.ModelGate(folder, self.rows).run()
            write_json(folder / "gate.json", completed(gate, folder, started, now, model_gate.PACKAGES))
        return _passed(folder)

    # -- making it -----------------------------------------------------------------------------------------------------

    def _make(self, name: str, folder: Path) -> Path:
        """Write the artifact and, last, gate.json."""
        started = time.time()
        kind = KINDS[name]
        try:
            gate = self._weights(name, folder) if kind.runtime == TORCH else self._converted(name, folder)
        except GateError as error:
            gate = _failed(name, str(error))
        except (RankzeroError, OSError):  # of the run or the machine
            raise
        except Exception as error:  # any error of the libraries with this model
            gate = _failed(name, describe(error))
        packages = dict.fromkeys((*PACKAGES, *kind.modules))
        gate = completed(gate, folder, started, self._inputs(name), list(packages))
        if not gate["passed"]:
            for path in sorted(folder.rglob("*"), reverse=True):  # what is in a folder before it
                path.rmdir() if path.is_dir() else path.unlink()
        write_json(folder / "gate.json", gate)
        self.progress(f"{name}: {'passed' if gate['passed'] else 'failed'} its gate")
        return folder

    def _gate(self, name: str, folder: Path) -> Record:
        gate = SearchGate if KINDS[name].own_search else Gate
        return gate(name, folder, self.rows, self.answered, self.progress).run()

    def _weights(self, name: str, folder: Path) -> Record:
        self.task.save_model(self.rows.model, folder, TYPES[name])
        rows = self.rows.all({}) if TYPES[name] == torch.float32 else self.answered
        return WeightsGate(name, folder, self.rows, rows, self.progress).run()

    def _converted(self, name: str, folder: Path) -> Record:
        self.progress(f"{name}: converting")
        source = self._graphs if KINDS[name].from_graphs else None
        gate = partial(self._gate, name, folder)
        found = convert(Conversion(KINDS[name], self.rows, source, folder, gate, self.progress))
        if source is None:
            return found
        before, after = (sum(path.stat().st_size for path in graph_files(f)) for f in (source, folder))
        return found | {"size_ratio": before / after}

    @cached_property
    def _graphs(self) -> Path:
        """The fp32 graphs from which others are made: export/onnx, or a folder that is removed at the end."""
        if self.task.recipe.export.onnx:
            return self.run.export / ONNX
        self.remove_scratch()
        self._scratch.mkdir()
        export_graphs(self.rows, self._scratch)
        return self._scratch

    def remove_scratch(self) -> None:
        shutil.rmtree(self._scratch, ignore_errors=True)


def _failed(name: str, error: str) -> Record:
    return {"artifact": name, "passed": False, "failed": ["export"], "error": error, "checks": {}}


def _passed(place: Path) -> Path:
    """Raise GateError if a gate has failed, with the numbers of its checks, and the rows that differ most."""
    gate: Record = read_gate(place) or {}
    if gate["passed"]:
        return place
    what = "and stock libraries should not load it" if place.name == "model" else f"and is not in {place.parent}"
    lines = [f"{place.name} failed its gate {what}; all numbers are in {place / 'gate.json'}"]
    if "error" in gate:
        lines.append(f"  {gate['error']}")
    for name in gate["failed"]:
        check = gate["checks"].get(name, {})
        numbers = (f"{k} {v:.6g}" if isinstance(v, float) else f"{k} {v}" for k, v in check.items() if k != "passed")
        lines.append(f"  {name}: {', '.join(n for n in numbers if len(n) < 300)}")
    for row in gate.get("worst_rows", [])[:3]:
        lines.append("  differs most: " + ", ".join(f"{key} {value!r}" for key, value in row.items()))
    raise GateError("\n".join(lines))


def log_progress() -> Progress:
    """Return a function that logs a message every ten seconds at most, and the last one of each work that it logs.

    Messages of the same work have the same text before the first colon.
    """
    last, work, logged, waiting = -REPORT_EVERY, "", False, ""

    def progress(text: str) -> None:
        nonlocal last, work, logged, waiting
        if (name := text.partition(":")[0]) != work:
            if waiting:
                log.info(waiting)
            work, logged, waiting = name, False, ""
        if (now := time.monotonic()) - last >= REPORT_EVERY:
            last, logged, waiting = now, True, ""
            log.info(text)
        elif logged:
            waiting = text

    return progress
