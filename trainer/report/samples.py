"""A few predictions of a run, as lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from trainer.evaluation.predictions import read_predictions
from trainer.files import read_json
from trainer.report.task_report import open_report
from trainer.rundir import RunDir


def sample_lines(run: RunDir, most: int = 5) -> Iterator[str]:
    """Yield the inputs, predictions and targets of a few rows of the last evaluated split."""
    for split in ("test", "validation"):
        path = run.evaluation(split) / "predictions.jsonl"
        continued = read_json(path.with_name("samples.json"))  # of a language model
        if continued is not None:
            for row in continued["rows"][:most]:
                yield f"  {row['prompt']}\n    -> {row['continuation']}\n    == {row['reference']}"
            return
        if path.exists():
            shown = open_report(run, split, with_records=False).shown
            for record in islice(read_predictions(path), most):
                text = record["input"]
                yield f"  {text}\n    -> {shown(record['prediction'], text)}\n    == {shown(record['target'], text)}"
            return
