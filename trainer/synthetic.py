"""Training rows from the predictions of a run, for back-translation, distillation and pseudo-labels.

A row has the columns that the run was trained on: its input as it was read, and the prediction as the target. So a run
from English to German makes rows that a recipe from German to English reads with its own columns.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from trainer.data.paths import value_at
from trainer.data.roles import BadValue, Role
from trainer.errors import DataError, UsageError
from trainer.evaluation.predictions import json_line
from trainer.export.provenance import weight_hashes
from trainer.files import make_parents, replacing, write_json
from trainer.rundir import RunDir
from trainer.stages import file_facts
from trainer.task.base import Line, Record, Task

SUFFIX = ".provenance.json"  # of the file next to the rows
# Keys of evaluation that change no prediction.
NO_SETTINGS = ("splits", "max_rows", "tokens_per_batch", "metrics", "bootstrap", "bleu_tokenizer", "document_column")


class Remembered:
    """Lines that were read and whose prediction has not been written yet, oldest first."""

    def __init__(self, lines: Iterable[Line]) -> None:
        self._lines, self._waiting = lines, deque[Line]()
        self.digest, self.count = hashlib.sha256(), 0

    def __iter__(self) -> Iterator[Line]:
        for line in self._lines:
            self._waiting.append(line)
            self.digest.update(json.dumps(line, ensure_ascii=True, default=str).encode() + b"\n")
            self.count += 1
            yield line

    def answered(self) -> Line:
        """Return the line of the next prediction."""
        return self._waiting.popleft()


def write_synthetic(
    run: RunDir, task: Task, lines: Remembered, records: Iterable[Record], out: Path, backend: str
) -> str:
    """Write training rows and their provenance. Return a message.

    Left out are rows whose input was cut or could not be read, and predictions that the role cannot have, such as empty
    texts. They are counted.

    Args:
        run: that predicts.
        task: of the run.
        lines: what `records` are the predictions of.
        records: of `predict`, one per line.
        out: a file of JSON lines.
        backend: that predicts, for the provenance.

    Raises:
        UsageError: the task predicts no single value, or the file is not called .jsonl.
        DataError: no row is left.
    """
    if out.suffix != ".jsonl":
        raise UsageError(f"--rows {out}: the file has JSON lines, so its name ends in .jsonl")
    name, role = target_of(task)
    columns = {**task.input_columns, name: task.recipe.data.columns.get(name, name)}
    make_parents(out)
    rows, left_out = 0, Counter[str]()
    with replacing(out) as file:
        for record in records:
            found = _row(task, lines.answered(), record, columns[name], role)
            if isinstance(found, str):
                left_out[found] += 1
                continue
            file.write(json_line(found).encode())
            rows += 1
        if not rows:
            raise DataError(f"--rows {out}: no row is left of {lines.count}: {_counted(left_out) or 'no input'}")
    document = {
        "format": 1, "file": out.name, "sha256": file_facts(out)["sha256"], "rows": rows, "left_out": dict(left_out),
        "columns": columns, "predicted": name, "input": {"rows": lines.count, "sha256": lines.digest.hexdigest()},
        "run": {
            "name": task.recipe.name, "step": run.stages().get("model", {}).get("step"),
            "recipe_sha256": file_facts(run.recipe)["sha256"], "weights": weight_hashes(run),
        },
        "backend": backend, "settings": task.recipe.evaluation.model_dump(mode="json", exclude=set(NO_SETTINGS)),
        "rankzero": version("rankzero"),
    }  # fmt: skip
    write_json(out.with_name(out.name + SUFFIX), document)
    more = f", {left_out.total():,} left out ({_counted(left_out)})" if left_out else ""
    return f"written: {out}, {rows:,} rows{more}; {out.name}{SUFFIX} says how they were made"


def target_of(task: Task) -> tuple[str, Role]:
    """Return the role that the task predicts.

    Raises:
        UsageError: there is none, or more than one.
    """
    roles = task.roles(task.recipe.task)
    targets = [name for name, role in roles.items() if role.target and not role.optional]
    if len(targets) != 1 or not task.input_columns:
        what = ", ".join(targets) or "no column"
        raise UsageError(f"--rows: task {task.kind} predicts {what}; rows can be made by tasks that predict one column")
    return targets[0], roles[targets[0]]


def _row(task: Task, line: Line, record: Record, column: str, role: Role) -> dict[str, Any] | str:
    """Return the row of a prediction, or why it is left out."""
    if "error" in record:
        return "cannot be read"
    if record.get("truncated"):
        return "input is cut"
    prediction = task.written_target(record)
    try:
        role.convert(prediction, str)
    except BadValue as error:
        return f"prediction {error.reason}"
    inputs: Sequence[str] = [*task.input_columns.values()]
    values = (
        {name: value_at(line, name) for name in inputs} if isinstance(line, Mapping) else {inputs[0]: record["text"]}
    )
    return {**values, column: prediction}


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{number:,} x {reason}" for reason, number in counts.most_common())
