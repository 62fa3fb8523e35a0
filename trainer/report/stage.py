"""The analysis stage of a run: everything that is written beside predictions.jsonl."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from trainer.report.calibration import write_calibration
from trainer.report.confusion import write_confusion
from trainer.report.curves import write_curves
from trainer.report.errors import find_shared_texts, write_errors
from trainer.report.inputs import Inputs, label_names, read_inputs
from trainer.report.report import render_report
from trainer.report.samples import judged_rows, mean_chrf, write_samples
from trainer.report.sections import SHARED_TEXTS
from trainer.report.texts import PERPLEXITY, write_texts
from trainer.rundir import RunDir, write_json


def analyse(
    run: RunDir,
    split: str,
    train_texts: Iterable[str] | None = None,
    labels: Sequence[str] | None = None,
    with_rows: bool | None = None,
) -> list[Path]:
    """Writes confusion matrix, calibration, errors, curves and report.html of a split, from the run's files alone.

    Args:
        run: a run whose split has predictions.jsonl.
        split: validation or test.
        train_texts: cleaned inputs of the training rows, in the form of a record's `input`; read once, as a stream.
            They tell which rows were known from training. None: an earlier answer stays.
        labels: names of the classes in the order in which to show them; None = the model's.
        with_rows: as `write_report` takes it.

    Returns:
        The files written, report.html last.

    Raises:
        DataError: no predictions, or records that do not fit the task.
        UsageError: a task that this analysis does not know.
        Exception: the first failure of a part; the other parts and report.html have been written.
    """
    inputs = read_inputs(run, split)
    parts: list[Callable[[], list[Path]]] = []
    if inputs.kind == "classification":
        names = label_names(inputs.records, labels)
        parts += [
            lambda: write_confusion(inputs.records, names, inputs.folder),
            lambda: write_calibration(inputs.records, inputs.folder),
            lambda: write_errors(inputs.records, names, inputs.folder),
        ]
    elif inputs.kind == "language_modeling":
        parts.append(lambda: write_texts(inputs.records, inputs.folder))
    else:
        parts.append(lambda: write_samples(inputs.records, inputs.folder))
    if train_texts is not None:
        parts.append(lambda: [_write_shared(inputs, train_texts)])
    parts += [lambda: write_curves(inputs), lambda: [render_report(inputs, labels, with_rows=with_rows)]]
    files: list[Path] = []
    failures: list[Exception] = []
    for part in parts:
        try:
            files += part()
        except Exception as error:
            failures.append(error)
    if failures:
        raise failures[0]
    return files


def _write_shared(inputs: Inputs, train_texts: Iterable[str]) -> Path:
    path = inputs.folder / SHARED_TEXTS
    if inputs.kind == "classification":
        found = find_shared_texts(train_texts, inputs.records)
    elif inputs.kind == "language_modeling":
        found = find_shared_texts(train_texts, inputs.records, PERPLEXITY)
    else:
        found = find_shared_texts(train_texts, inputs.records, mean_chrf(judged_rows(inputs.records)))
    write_json(path, found)
    return path
