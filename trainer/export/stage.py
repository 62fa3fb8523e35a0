"""The export stage of a finished run: each artifact is built beside its place, proven, and then put there at once.

    export/onnx/, export/int8/    graphs, tokenizer.json, settings.json, run.py, gate.json; of one that failed its gate
                                  only gate.json; export/bf16/, export/safetensors/ likewise (see weights.py)
    export/left_out.json          what there can be none of, and why
    export/.onnx.making-…         in progress; when gate.json is in it, it is complete and only has to be renamed
    export/.answers.json          what the trained weights say on the split, until all artifacts are done

A stage killed at any point is completed by running it again. Rank zero alone runs it, and holds the run's lock.
"""

from __future__ import annotations

import importlib.metadata
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path

import torch

from trainer.cpu_info import bf16_arithmetic
from trainer.engine.trained_run import TrainedRun
from trainer.errors import GateError, RankzeroError
from trainer.export.artifact_integrity import facts, problems, read_gate
from trainer.export.gates import Gate, reason_of
from trainer.export.onnx import write_artifact
from trainer.export.parity_checks import JUDGES
from trainer.export.program import NAME, generated
from trainer.export.provenance import FORMAT, inputs, remove_stale, remove_stale_benchmark, sources, weights
from trainer.export.quantize import TUNING_ROWS, quantized
from trainer.export.rows import Row, Rows, Say
from trainer.export.unsupported import why_not
from trainer.export.weights import TYPES, WeightsGate, write_weights
from trainer.lock import check_held
from trainer.recipe import Recipe
from trainer.rundir import RunDir, publish, read_json, workspace, write_json
from trainer.task.base import Record, Task

log = logging.getLogger("rankzero")

SAY_EVERY = 10.0  # seconds
REMEDY = "export.gates changes the thresholds; export.onnx=false export.int8=false leaves the artifacts out"
PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "tokenizers")


def export_run(
    run: RunDir, recipe_type: type[Recipe], overrides: Sequence[str] = (), say: Say | None = None
) -> list[Path]:
    """Builds, proves and publishes the artifacts that the recipe asks for, unless that has been done already.

    Args:
        run: a run whose model has been written; the caller holds its lock.
        recipe_type: as `TrainedRun.open` takes it.
        overrides: `key=value`, such as export.gates.int8_accuracy=0.01.
        say: told how far it is; by default the log, every ten seconds.

    Returns:
        The folders published; none where the task has nothing to export.

    Raises:
        GateError: artifacts failed their gates and were kept out; there is no int8 of what failed as ONNX.
        UsageError, CheckpointError: no run directory, or no model in it.
    """
    task = TrainedRun.task_of(run, recipe_type, overrides)
    held = weights(run)
    check_held(run.path)
    remove_stale(run, held)
    wanted = _wanted(run, task, has_model=bool(held))
    if not wanted:
        return []
    stage = _Stage(run, task, held, lambda: TrainedRun.open(run, recipe_type, overrides), say or throttled(log.info))
    run.export.mkdir(parents=True, exist_ok=True)
    folders: list[Path] = []
    failed: dict[str, str] = {}
    for name in wanted:
        if name == "int8" and "onnx" in failed:  # of which it would be made
            shutil.rmtree(run.export / name, ignore_errors=True)
            continue
        try:
            folders.append(stage.publish(name))
        except GateError as error:
            failed[name] = str(error)
    remove_stale_benchmark(run, held)
    if failed:  # another try, perhaps with another limit, needs the answers again
        raise GateError("\n".join([*failed.values(), REMEDY]))
    stage.answers_file.unlink(missing_ok=True)
    return folders


def _wanted(run: RunDir, task: Task, *, has_model: bool) -> list[str]:
    """The artifacts to make; says what the recipe asks for and cannot be had, and writes it down for the pages."""
    export = task.recipe.export
    reason = why_not(task, run) if export.graphs and has_model else None
    wanted = export.wanted(graphs=reason is None) if task.artifact in JUDGES else []
    if "bf16" in wanted and export.bf16 is None and not (bf16_arithmetic() or torch.cuda.is_available()):
        wanted.remove("bf16")  # nothing to gain, and its proof would take longer than all others'
        log.info("bf16: left out, since this machine has no bf16 arithmetic; export.bf16=true makes it nevertheless")
    if reason is None:
        run.left_out.unlink(missing_ok=True)
        return wanted
    log.info("%s left out: %s", " and ".join(export.graphs), reason)
    run.export.mkdir(parents=True, exist_ok=True)
    write_json(run.left_out, dict.fromkeys(export.graphs, reason))
    for name in export.graphs:  # what an earlier version tried and failed
        if not (read_gate(run.export / name) or {"passed": True})["passed"]:
            shutil.rmtree(run.export / name)
    return wanted


class _Stage:
    """The artifacts of one run; what they share is made once, when it is first needed."""

    def __init__(
        self, run: RunDir, task: Task, held: dict[str, str], opened: Callable[[], TrainedRun], say: Say
    ) -> None:
        """`held`: names and hashes of the run's weights."""
        self.run, self.task, self._opened, self.say = run, task, opened, say
        self.answers_file = run.export / ".answers.json"
        self._inputs = partial(inputs, task, sources(run, task, held))

    @cached_property
    def rows(self) -> Rows:
        finished = self._opened()
        return Rows(finished.task, finished.model.cpu().float().eval())

    @cached_property
    def answered(self) -> list[Row]:
        """Every row with what the weights say of it, from an earlier start where there was one."""
        kept, of = read_json(self.answers_file), self._inputs("answers")
        if kept is None or kept["inputs"] != of:
            kept = {"inputs": of, "answers": self.rows.answers(self.say)}
            write_json(self.answers_file, kept)
        return self.rows.all(kept["answers"])

    def publish(self, name: str) -> Path:
        """Makes the artifact, unless there is one of the same inputs that is whole, or has been refused."""
        place = self.run.export / name
        if not self._done(name, place):
            complete = [path for path in self.run.export.glob(f".{name}.making-*") if self._done(name, path)]
            making = complete[0] if complete else workspace(place)
            if not complete:
                self._make(name, making)
            publish(making, place)
        verdict: Record = read_gate(place) or {}
        if not verdict["passed"]:
            raise GateError(_explain(place, verdict))
        return place

    def _done(self, name: str, folder: Path) -> bool:
        verdict = read_gate(folder)
        if verdict is None or verdict["inputs"] != self._inputs(name):
            return False
        if verdict["passed"]:
            program = folder / NAME  # it is executed by the gate of what is made of this artifact
            return not problems(folder) and (name in TYPES or program.read_text("utf-8") == generated(folder))
        # numbers would be the same again, what a library met need not be
        return not any("error" in told for told in (verdict, *verdict["checks"].values()))

    def _make(self, name: str, folder: Path) -> None:
        """The artifact and, last, its verdict."""
        started = time.time()
        make = {"onnx": self._onnx, "int8": self._int8}.get(name) or partial(self._of_weights, name)
        try:
            verdict = make(folder)
        except GateError as error:
            verdict = _failed(name, str(error))
        except (RankzeroError, OSError):  # of the run or the machine
            raise
        except Exception as error:  # whatever the libraries meet in a model
            verdict = _failed(name, reason_of(error))
        files = {path.name: facts(path) for path in sorted(folder.iterdir())}
        if not verdict["passed"]:
            for file in files:
                (folder / file).unlink()
        about = {"inputs": self._inputs(name), "versions": {p: importlib.metadata.version(p) for p in PACKAGES}}
        seconds = round(time.time() - started, 1)
        write_json(folder / "gate.json", {"format": FORMAT, **verdict, "seconds": seconds, "files": files, **about})

    def _gate(self, name: str, folder: Path) -> Record:
        return Gate(name, folder, self.rows, self.answered, self.say).verdict()

    def _of_weights(self, name: str, folder: Path) -> Record:
        write_weights(self.task, self.rows.model, folder, TYPES[name])
        rows = self.rows.all({}) if TYPES[name] == torch.float32 else self.answered
        return WeightsGate(name, folder, self.rows, rows, self.say).verdict()

    def _onnx(self, folder: Path) -> Record:
        self.say("onnx: exporting")
        write_artifact(self.task, self.rows.model, folder)
        return self._gate("onnx", folder)

    def _int8(self, folder: Path) -> Record:
        source, scratch = self.run.export / "onnx", self.run.export / ".fp32"
        if not self.task.recipe.export.onnx:
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir()
            write_artifact(self.task, self.rows.model, scratch)
            source = scratch
        self.say("int8: quantizing")
        verdict = quantized(
            self.task,
            source,
            folder,
            lambda: self.rows.tuning_examples(TUNING_ROWS),
            lambda: self._gate("int8", folder),
            self.say,
        )
        before, after = (sum(path.stat().st_size for path in f.glob("*.onnx*")) for f in (source, folder))
        shutil.rmtree(scratch, ignore_errors=True)
        return verdict | {"size_ratio": before / after}


def _failed(name: str, error: str) -> Record:
    return {"artifact": name, "passed": False, "failed": ["export"], "error": error, "checks": {}}


def _explain(place: Path, verdict: Record) -> str:
    """Which checks failed, with their numbers, and the rows that differ most."""
    lines = [
        f"{place.name} failed its gate and is kept out of {place.parent}; all numbers are in {place / 'gate.json'}"
    ]
    if "error" in verdict:
        lines.append(f"  {verdict['error']}")
    for name in verdict["failed"]:
        facts = verdict["checks"].get(name, {})
        numbers = (f"{k} {v:.6g}" if isinstance(v, float) else f"{k} {v}" for k, v in facts.items() if k != "passed")
        lines.append(f"  {name}: {', '.join(n for n in numbers if len(n) < 300)}")
    for row in verdict.get("worst_rows", [])[:3]:
        lines.append("  differs most: " + ", ".join(f"{key} {value!r}" for key, value in row.items()))
    return "\n".join(lines)


def throttled(tell: Callable[[str], None]) -> Say:
    """Passes on what is said, at most every ten seconds."""
    last = 0.0

    def say(text: str) -> None:
        nonlocal last
        if (now := time.monotonic()) - last >= SAY_EVERY:
            last = now
            tell(text)

    return say
