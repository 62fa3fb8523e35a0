"""The public functions: train, evaluate, predict, stream, export, bench, report, ensemble, prepare."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from trainer.baselines import baseline_stage
from trainer.comet_stage import comet as comet
from trainer.data.paths import MISSING, value_at
from trainer.data.python_rows import split_overrides
from trainer.engine.corpus import Corpus
from trainer.engine.runtime import start
from trainer.engine.signals import StopFlag
from trainer.engine.trained_run import TrainedRun
from trainer.errors import RankzeroError, UsageError
from trainer.export.benchmark import bench_run
from trainer.export.provenance import problems_of
from trainer.files import read_json
from trainer.preparation import prepare as prepare
from trainer.recipe import Recipe as BaseRecipe
from trainer.recipe_loading import Recipe, load_recipe
from trainer.report_stages import attempt, card_stage, reason_of, refresh_reports, write_report
from trainer.run import run_recipe
from trainer.run_options import Options, Run, run_path
from trainer.rundir import RunDir
from trainer.synthetic import Remembered, write_synthetic
from trainer.task.base import Line, Task
from trainer.tasks.classification.ensemble import ensemble as average

log = logging.getLogger("rankzero")

NO_METRICS = "evaluation.metrics=[]"  # predictions need none, so code of the user is not imported

DEBUG_OVERRIDES = (
    "loop.max_steps=20",
    "loop.log_every=1",
    "loop.eval_every=10",
    "loop.save_every=10",
    "loop.compile=false",
    "loop.mirror=null",
    "track=[]",
    "data.workers=0",
    "evaluation.max_rows=32",
    "evaluation.baseline=false",
    "export.onnx=false",
    "export.int8=false",
    "export.model=false",
)


def train(
    recipe: str | Path | BaseRecipe,
    overrides: Sequence[str] = (),
    *,
    data: Mapping[str, Any] | None = None,
    run: str | Path | None = None,
    fresh: bool = False,
    allow_change: Sequence[str] = (),
    debug: bool = False,
    profile: bool = False,
    defer: bool = False,
    resume_from: str | None = None,
) -> Run:
    """Train a recipe, or resume it from the newest checkpoint, then evaluate, export and report. All ranks call this.

    Args:
        recipe: a shipped recipe's name, a path, or a `Recipe`.
        overrides: `key=value` in dotted form.
        data: `{"train": rows, "validation": rows, "test": rows}`, which replace the files of the recipe. Rows are a
            list or iterable of dicts, a pandas or polars DataFrame, an Arrow table, or a data set of `datasets`. Rank 0
            writes them to `data/` of the run directory, so that `rankzero train RUN/recipe.yaml --run RUN` resumes.
            Without "validation", a share in the recipe's `data.validation` is held out.
        run: the run directory; runs/<name> by default.
        fresh: start from step 0. An existing run is kept under another name.
        allow_change: keys in which the recipe may differ from the recipe of an existing run directory.
        debug: a slice of the data, deterministic, with anomaly detection.
        profile: write a torch profiler trace into the run directory.
        resume_from: a mirror of a run (`loop.mirror`/NAME), whose newest checkpoint a run directory without checkpoints
            begins with.
        defer: stop after the checkpoint is selected. Another start of the same run evaluates, exports and reports.

    Raises:
        RankzeroError: with its exit code; `Preempted` when stopped by a signal, with everything saved.
    """
    options = Options(Path(run) if run else None, fresh, tuple(allow_change), debug, profile, defer, data, resume_from)
    overrides = [*overrides, *(DEBUG_OVERRIDES if debug else ())]
    if data is None:
        return run_recipe(load_recipe(recipe, overrides), options)
    loaded = load_recipe(recipe, [*overrides, "data.root=data", *split_overrides(data)])
    root = RunDir(run_path(loaded, options)).data.absolute()
    validation = "validation" in data or isinstance(loaded.data.validation, float)
    own = [f"data.root={json.dumps(str(root))}", *([] if validation else ["data.validation=null"])]
    return run_recipe(load_recipe(loaded, own), options)


def evaluate(run: str | Path, *, split: str = "test", overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Evaluate a finished run again: write evaluation/<split>/ and return the scores.

    An existing report and the model card are written again.

    Raises:
        RankzeroError: no such run, no model in it yet, no such split.
    """
    trained = (read_json(RunDir(run).manifest) or {}).get("precision") or "no"
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", trained)
    folder = RunDir(run)
    environment = patch.dict(os.environ, ACCELERATE_MIXED_PRECISION=precision)
    with StopFlag().listening() as stop, environment, contextlib.ExitStack() as held:
        runtime = start(stop)
        try:
            finished = TrainedRun.open(folder, Recipe, overrides)
            runtime.on_main(lambda: held.enter_context(folder.locked()).token)
            scores = finished.evaluate(runtime, split)
            runtime.close()
            if runtime.main:
                made = finished.run
                baseline = functools.partial(make_baselines, made, finished.task, split)
                attempt(f"the baseline of {split}", made, baseline, split)
                if (made.evaluation(split) / "report.html").exists():
                    work = functools.partial(write_report, made, finished.task, finished.model, None, split)
                    attempt(f"the report of {split}", made, work, split)
                attempt("the model card", made, lambda: card_stage(made))
            return scores
        finally:
            runtime.leave()


def make_baselines(run: RunDir, task: Task, split: str) -> None:
    """Write baseline.json of a split that was evaluated again."""
    if (run.evaluation(split) / "baseline.json").exists():
        baseline_stage(run, task, Corpus(task.recipe, task), [split])


def predict(
    run: str | Path, texts: Iterable[Line], *, backend: str = "torch", overrides: Sequence[str] = ()
) -> Iterator[dict[str, Any]]:
    """Yield one record per text, in order and in constant memory: {"text", "prediction", "score"} for translation.

    The record of a truncated text has "truncated": true.

    Args:
        texts: texts, or rows with the columns of the run's inputs: dicts, a pandas or polars DataFrame, an Arrow table,
            or a data set of `datasets`. "text" of a record has the inputs of a row, with tabs between them.
        backend: torch, or a published artifact by its folder in export/: onnx, int8 (one text at a time), bf16, …
        overrides: of the recipe's evaluation, such as `evaluation.generation.temperature=0.8`.

    Raises:
        UsageError: a backend that this run has no artifact for, or overrides for an artifact.
    """
    if backend != "torch":
        from trainer.export.backend import open_artifact

        if overrides:
            raise UsageError(f"predict: settings are for backend torch; {backend} has its own in settings.json")
        yield from open_artifact(RunDir(run), backend)(texts)
    else:
        yield from TrainedRun.open(RunDir(run), Recipe, [*overrides, NO_METRICS]).predict(texts)


def synthesize(
    run: str | Path, texts: Iterable[Line], out: Path, *, backend: str = "torch", overrides: Sequence[str] = ()
) -> str:
    """Write training rows from the predictions of `predict`, with their provenance. Return a message."""
    folder, lines = RunDir(run), Remembered(texts)
    task = TrainedRun.task_of(folder, Recipe, [*overrides, NO_METRICS])
    records = predict(run, lines, backend=backend, overrides=overrides)
    return write_synthetic(folder, task, lines, records, out, backend)


def has_inputs(run: str | Path, row: Mapping[str, Any]) -> bool:
    """Return whether a row has the columns that `predict` reads.

    Raises:
        RankzeroError: no such run.
    """
    columns = TrainedRun.task_of(RunDir(run), Recipe).input_columns.values()
    return all(value_at(row, column) is not MISSING for column in columns)


def stream(
    run: str | Path, texts: Iterable[str], *, backend: str = "torch", overrides: Sequence[str] = ()
) -> Iterator[str]:
    """Yield each text and its continuation by a language model, in pieces as they are generated, and a line end.

    Raises:
        UsageError: another backend than torch, or a task that does not generate text.
    """
    if backend != "torch":
        raise UsageError(f"--stream: backend {backend} does not stream; leave --backend out")
    finished = TrainedRun.open(RunDir(run), Recipe, [*overrides, NO_METRICS])
    for text in texts:
        yield text
        yield from finished.stream(text)
        yield "\n"


def export(run: str | Path, *, overrides: Sequence[str] = ()) -> list[Path]:
    """Write the artifacts of a finished run, each only after it has passed its gate.

    Published artifacts of the same weights are kept, and an interrupted export is resumed.

    Returns:
        The folders of the published artifacts.

    Raises:
        GateError: an artifact failed its gate and was not published.
        RankzeroError: no such run, no model in it yet.
    """
    from trainer.export.stage import export_run

    folder = RunDir(run)
    TrainedRun.task_of(folder, Recipe, overrides)  # refuses a folder that is not a run before anything is written
    with folder.locked():
        try:
            return export_run(folder, overrides)
        finally:
            refresh_reports(folder)


def check_export(run: str | Path) -> list[str]:
    """Return the files of a run that differ from their hashes: artifacts, their weights, checkpoints.

    Raises:
        UsageError: there are no artifacts.
    """
    return problems_of(RunDir(run))


def bench(
    run: str | Path, *, seconds: float = 30.0, threads: int | None = None, compiled: bool = False
) -> dict[str, Any]:
    """Measure the speed of the artifacts of a finished run. Write and return export/benchmark.json.

    Existing reports and the model card are rendered again.

    Raises:
        RankzeroError: no such run, no model in it yet, no evaluated split, or too little time.
    """
    folder = RunDir(run)
    folder.check()  # before anything is written
    with folder.locked():
        found = bench_run(folder, seconds=seconds, threads=threads, compiled=compiled)
        refresh_reports(folder)
    return found


def report(run: str | Path, *, split: str = "test", with_rows: bool = True) -> list[Path]:
    """Write the report of a split of a finished run again, with its figures and tables. Return the files.

    Args:
        with_rows: false: report.html quotes no text, prediction or attention of a row, also when it is rendered later.

    Raises:
        RankzeroError: no such run, no predictions of the split, or a part of the report could not be written.
    """
    finished = TrainedRun.open(RunDir(run), Recipe)
    try:
        corpus = Corpus(finished.recipe, finished.task)
    except RankzeroError as error:
        log.warning("%s; the list of rows that are also in training is not renewed", error)
        corpus = None
    with finished.run.locked():
        try:
            if corpus is not None:
                baseline_stage(finished.run, finished.task, corpus, [split])
            files = write_report(finished.run, finished.task, finished.model, corpus, split, with_rows)
            card_stage(finished.run)
        except RankzeroError:
            raise
        except Exception as error:
            raise RankzeroError(f"{run}: the report of {split} is not complete: {reason_of(error)}") from error
    return files


def ensemble(runs: Sequence[str | Path], *, split: str = "test") -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Average the probabilities of several classifiers. Return records as in predictions.jsonl, and a summary.

    Raises:
        RankzeroError: runs whose rows, targets or labels differ, or that have no predictions of that split.
    """
    task = TrainedRun.task_of(RunDir(runs[0]), Recipe)
    return average([RunDir(run) for run in runs], split, lambda records: task.score(records, 0))
