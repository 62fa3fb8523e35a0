"""The analysis stage of a run: everything that is written beside predictions.jsonl."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from trainer.analysis.calibration import write_calibration
from trainer.analysis.confusion import write_confusion
from trainer.analysis.curves import write_curves
from trainer.analysis.errors import find_shared_texts, write_errors
from trainer.analysis.inputs import Inputs, label_names, read_inputs
from trainer.analysis.report import render_report
from trainer.analysis.samples import judged_rows, mean_chrf, write_samples
from trainer.analysis.sections import SHARED_TEXTS
from trainer.analysis.texts import PERPLEXITY, write_texts
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
    """
    inputs = read_inputs(run, split)
    files = []
    if inputs.kind == "classification":
        names = label_names(inputs.records, labels)
        files += write_confusion(inputs.records, names, inputs.folder)
        files += write_calibration(inputs.records, inputs.folder)
        files += write_errors(inputs.records, names, inputs.folder)
    elif inputs.kind == "language_modeling":
        files += write_texts(inputs.records, inputs.folder)
    else:
        files += write_samples(inputs.records, inputs.folder)
    if train_texts is not None:
        files.append(_write_shared(inputs, train_texts))
    files += write_curves(inputs)
    return [*files, render_report(inputs, labels, with_rows=with_rows)]


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
