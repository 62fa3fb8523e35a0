"""What the report and the model card of a run ask its task. The defaults give a new task a plain report."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from trainer.evaluation.predictions import Record, json_line
from trainer.evaluation.resampling import Resampled, resampled_losses
from trainer.files import read_json, write_atomically, write_json
from trainer.redaction import shareable
from trainer.report.run_files import read_history, read_recipe, read_records
from trainer.rundir import RunDir
from trainer.task.metrics import Metric
from trainer.task.registry import class_of_kind

log = logging.getLogger("rankzero")

USAGE = """\
from transformers import {auto}, AutoTokenizer

model = {auto}.from_pretrained("{path}")
tokenizer = AutoTokenizer.from_pretrained("{path}")"""
NOTHING = "(none)"  # an empty list of labels or entities
MOST_ROWS = 200_000  # that a report analyzes
SHOWN = 6  # rows with the largest loss in the plain report, and as many with the smallest


class Section(NamedTuple):
    """A section of report.html: its id and title, the template of its content, and the values for it."""

    key: str
    title: str
    template: str
    data: Mapping[str, Any]


class Measure(NamedTuple):
    """A score of any rows of the split: its key in JSON, its name, and how it is written."""

    key: str
    name: str
    form: str
    score: Callable[[Sequence[Record]], float]
    better: Literal["min", "max"] = "max"


@dataclass(frozen=True)
class TaskReport:
    """The files of one split of one run, and what is specific to its task, for which a task has its own subclass."""

    run: RunDir
    split: str
    metrics: tuple[Metric, ...]
    recipe: dict[str, Any]
    manifest: dict[str, Any]
    status: dict[str, Any]
    scores: dict[str, Any]
    history: list[dict[str, Any]]
    records: list[Record] = field(default_factory=list)

    folders: ClassVar[tuple[Path, ...]] = ()  # with the templates of `sections`
    pools: ClassVar[bool] = False  # the model pools the states of a text, by model.pooling
    beam_search: ClassVar[bool] = False  # predictions are decoded with evaluation.beam_size
    bench_baseline: ClassVar[str] = "every text padded to {length:,} tokens"  # of `rankzero bench`
    long_texts: ClassVar[str] = "are cut as in training"  # what happens to texts longer than data.max_length
    units: ClassVar[str] = "texts"  # the inputs of rows, in a sentence

    @property
    def folder(self) -> Path:
        """evaluation/<split>/ of the run."""
        return self.run.evaluation(self.split)

    @property
    def rows_scored(self) -> int:
        """The rows behind the scores: all of the split, also if there are more than the report analyzes."""
        rows = self.scores.get("rows")
        return rows if type(rows) is int else len(self.records)

    @property
    def recipe_text(self) -> str:
        """recipe.yaml as a page shows it."""
        return str(shareable(self.run.recipe.read_text(encoding="utf-8")))

    @property
    def kind(self) -> str:
        return str(self.recipe["task"]["kind"])

    @property
    def stage(self) -> dict[str, Any]:
        """Which weights the run uses, from the manifest."""
        found: dict[str, Any] = self.manifest.get("stages", {}).get("model", {})
        return found

    @property
    def pipeline(self) -> str:
        """The name of the task on the Hugging Face Hub."""
        return self.kind

    @property
    def auto_class(self) -> str | None:
        """The class of transformers that loads the weights."""
        return None

    def usage(self, path: str, pooling: str | None) -> str:
        """Return Python code that uses model/ with a stock library.

        Args:
            path: of model/ in the code.
            pooling: that of the sentence-transformers layout, or None for a class with its own head.
        """
        if not self.auto_class:
            return ""
        return USAGE.format(auto=self.auto_class, path=path)

    def read_record(self, record: Record) -> Record:
        """What the report needs of a line of predictions.jsonl; input, target and prediction as text.

        Raises:
            DataError: a record of this task must have more; names its id.
        """
        values = {key: record[key] for key in ("input", "target", "prediction")}
        return {**record, **{key: v if isinstance(v, str) else json.dumps(v) for key, v in values.items()}}

    def shown(self, value: Any, text: str) -> str:
        """Return a prediction or a target as a line of text.

        Args:
            value: a text, a number, a list of texts, or numbers by name, as in predictions.jsonl.
            text: the input of the row.
        """
        if isinstance(value, dict):
            return ", ".join(f"{name} {self.shown(number, text)}" for name, number in value.items())
        if isinstance(value, list):
            return ", ".join(map(str, value)) or NOTHING
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    def files(self) -> list[Callable[[], list[Path]]]:
        """Functions that write more files into evaluation/<split>/ and return their paths. One may fail alone."""
        return []

    def sections(self, with_rows: bool) -> list[Section]:
        """Sections of report.html between the learning curves and attention; no row is quoted unless `with_rows`."""
        if not with_rows:
            return []
        rows = sorted(self.records, key=lambda record: -record["loss"])
        groups = [[*map(_sample, part)] for part in (rows[:SHOWN], rows[SHOWN:][-SHOWN:][::-1])]
        return [Section("samples", "Rows worth reading", "plain.html.jinja", {"groups": groups})]

    def measure(self) -> Measure | None:
        """The score that is compared between rows known from training and others; None = they are not searched."""
        return None

    def resampled(self, records: Iterable[Record]) -> Resampled:
        """Return the scores of records as functions of how often each row is drawn, for a paired bootstrap.

        Args:
            records: of predictions.jsonl, in the order of the corpus.
        """
        numbers = [(record["loss"], record.get("tokens", 1)) for record in records]
        return resampled_losses(*zip(*numbers, strict=True))

    def row_score(self, record: Record) -> float:
        """Return how good the prediction of a row is; higher is better. By default by `measure`, or by the loss."""
        measure = self.measure()
        if measure is None:
            return -float(record["loss"]) / max(1, record.get("tokens", 1))
        return measure.score([record]) * (1 if measure.better == "max" else -1)

    def compared(self) -> dict[str, Any]:
        """Return what must be equal in runs whose scores are compared, by name."""
        return {"task.kind": self.kind}

    def metric_label(self, key: str) -> str:
        """The name of a score in pages; the key of one that the task does not know."""
        return next((spec.label for spec in self.metrics if spec.key == key), key)

    def goal(self) -> tuple[str, str]:
        """What the model was trained to do (after "trained to"), and the name of training rows."""
        return f"do the task {self.kind}", "rows"

    def baseline(self) -> str:
        """A sentence on what a trivial model would score; empty = none."""
        return ""

    def row_groups(self, rows: Mapping[str, int]) -> dict[str, int]:
        """Training rows by group, from the counts of the labels in the files."""
        return dict(rows)


def open_report(run: RunDir, split: str, *, with_records: bool = True, most: int | None = MOST_ROWS) -> TaskReport:
    """Read all that the report of a split needs; without records the split need not have been evaluated.

    Args:
        most: records that are read, and are all in memory; None for all. A warning says that there are more.

    Raises:
        DataError: no run directory, a split that was not evaluated, or a record that is not one of its task.
        UsageError: a task that is not known.
        CheckpointError: a JSON file of the run is damaged.
    """
    recipe = shareable(read_recipe(run))
    task = class_of_kind(recipe["task"]["kind"])
    report: TaskReport = task.reporter()(
        run=run,
        split=split,
        metrics=(*task.metric_specs, *_user_metrics(recipe)),
        recipe=recipe,
        manifest=shareable(read_json(run.manifest) or {}),
        status=read_json(run.status) or {},
        scores=read_json(run.evaluation(split) / "metrics.json") or {},
        history=read_history(run.metrics),
    )
    if with_records:
        records = read_records(run, split)
        report.records.extend(map(report.read_record, islice(records, most)))
        if most is not None and next(records, None) is not None:
            log.warning(
                "report of %s: its tables, figures and lists are of the first %s rows, its scores of all",
                split,
                f"{most:,}",
            )
    return report


def _user_metrics(recipe: Mapping[str, Any]) -> list[Metric]:
    """Return the metrics of `evaluation.metrics` by their names. Their code is not needed for a report."""
    keys = [str(name).partition(":")[2] for name in recipe.get("evaluation", {}).get("metrics", [])]
    return [Metric(key, None, key.replace("_", " ").capitalize()) for key in keys]


def write_errors(folder: Path, rows: Sequence[dict[str, Any]], summary: Mapping[str, Any]) -> list[Path]:
    """Write errors.jsonl, a line for each row, and errors.json, the summary."""
    write_atomically(folder / "errors.jsonl", "".join(map(json_line, rows)))
    write_json(folder / "errors.json", summary)
    return [folder / "errors.jsonl", folder / "errors.json"]


def _sample(record: Record) -> dict[str, Any]:
    lines = [(key.capitalize(), [(record[key], "")]) for key in ("input", "target", "prediction")]
    return {"lines": lines, "note": f"{record['id']} · loss {record['loss']:.2f}"}
