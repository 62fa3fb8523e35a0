"""The export stage of a finished run: make each artifact in a temporary folder, check it, and publish it.

    export/onnx/, export/int8/    graphs, tokenizer.json, settings.json, run.py, gate.json; only gate.json if the gate
                                  failed; likewise export/bf16/ and export/safetensors/ (see weights.py)
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

from trainer.cpu_info import bf16_arithmetic
from trainer.engine.trained_run import TrainedRun
from trainer.errors import GateError, RankzeroError
from trainer.export import model_gate
from trainer.export.artifact_integrity import completed, decided, read_gate
from trainer.export.gates import Gate, describe
from trainer.export.onnx import write_artifact
from trainer.export.program import NAME, generated
from trainer.export.provenance import inputs, remove_stale, remove_stale_benchmark, weight_hashes
from trainer.export.quantize import TUNING_ROWS, quantize
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
PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "tokenizers")


def export_run(run: RunDir, overrides: Sequence[str] = (), progress: Progress | None = None) -> list[Path]:
    """Make, check and publish the artifacts that the recipe sets, unless that has been done already.

    Args:
        run: with a model; the caller holds its lock.
        overrides: `key=value`, such as export.gates.int8_accuracy=0.01.
        progress: receives messages; by default they are logged every ten seconds.

    Returns:
        The published folders.

    Raises:
        GateError: artifacts failed their gates and were not published. int8 is not tried if onnx failed.
        UsageError, CheckpointError: no run directory, or no model in it.
    """
    task = TrainedRun.task_of(run, Recipe, overrides)
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
        if name == "int8" and "onnx" in errors:  # int8 is made from it
            shutil.rmtree(run.export / name, ignore_errors=True)
            continue
        try:
            folders[name] = stage.check_model() if name == "model" else stage.publish(name)
        except GateError as error:
            errors[name] = str(error)
    remove_stale_benchmark(run, hashes)
    if errors:  # the answers are kept: another attempt, perhaps with another limit, needs them
        raise GateError("\n".join([*errors.values(), REMEDY]))
    stage.answers_file.unlink(missing_ok=True)
    return [folder for name, folder in folders.items() if name != "model"]


def _wanted(run: RunDir, task: Task, *, has_model: bool) -> list[str]:
    """Return the artifacts to make. Log those that are not possible, and write them to left_out.json."""
    config = task.recipe.export
    reason = why_not(task, run) if config.graphs and has_model else None
    names = config.wanted(graphs=reason is None)
    if "bf16" in names and config.bf16 is None and (why := _why_no_bf16(task)):
        names.remove("bf16")
        log.info("bf16: left out, since %s; export.bf16=true makes it nevertheless", why)
    if reason is None:
        run.left_out.unlink(missing_ok=True)
        return names
    log.info("%s left out: %s", " and ".join(config.graphs), reason)
    run.export.mkdir(parents=True, exist_ok=True)
    write_json(run.left_out, dict.fromkeys(config.graphs, reason))
    for name in config.graphs:  # an earlier version may have tried and failed
        if not (read_gate(run.export / name) or {"passed": True})["passed"]:
            shutil.rmtree(run.export / name)
    return names


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
        self.answers_file = run.export / ".answers.json"
        self._inputs = partial(inputs, run, task, hashes)

    @cached_property
    def rows(self) -> Rows:
        trained = TrainedRun.open(self.run, Recipe, self.overrides)
        return Rows(trained.task, trained.model.cpu().float().eval())

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
        # int8 is made from this folder, and its gate runs the program
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
        make = {"onnx": self._onnx, "int8": self._int8}.get(name) or partial(self._weights, name)
        try:
            gate = make(folder)
        except GateError as error:
            gate = _failed(name, str(error))
        except (RankzeroError, OSError):  # of the run or the machine
            raise
        except Exception as error:  # any error of the libraries with this model
            gate = _failed(name, describe(error))
        gate = completed(gate, folder, started, self._inputs(name), PACKAGES)
        if not gate["passed"]:
            for path in sorted(folder.rglob("*"), reverse=True):  # what is in a folder before it
                path.rmdir() if path.is_dir() else path.unlink()
        write_json(folder / "gate.json", gate)
        return folder

    def _gate(self, name: str, folder: Path) -> Record:
        return Gate(name, folder, self.rows, self.answered, self.progress).run()

    def _weights(self, name: str, folder: Path) -> Record:
        self.task.save_model(self.rows.model, folder, TYPES[name])
        rows = self.rows.all({}) if TYPES[name] == torch.float32 else self.answered
        return WeightsGate(name, folder, self.rows, rows, self.progress).run()

    def _onnx(self, folder: Path) -> Record:
        self.progress("onnx: exporting")
        write_artifact(self.rows.export, self.rows.model, folder)
        return self._gate("onnx", folder)

    def _int8(self, folder: Path) -> Record:
        source, scratch = self.run.export / "onnx", self.run.export / ".fp32"
        if not self.task.recipe.export.onnx:
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir()
            write_artifact(self.rows.export, self.rows.model, scratch)
            source = scratch
        self.progress("int8: quantizing")
        examples = partial(self.rows.tuning_examples, TUNING_ROWS)
        gate = quantize(self.rows.export, source, folder, examples, partial(self._gate, "int8", folder), self.progress)
        before, after = (sum(path.stat().st_size for path in f.glob("*.onnx*")) for f in (source, folder))
        shutil.rmtree(scratch, ignore_errors=True)
        return gate | {"size_ratio": before / after}


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
    """Return a function that logs a message at most every ten seconds."""
    last = 0.0

    def progress(text: str) -> None:
        nonlocal last
        if (now := time.monotonic()) - last >= REPORT_EVERY:
            last = now
            log.info(text)

    return progress
