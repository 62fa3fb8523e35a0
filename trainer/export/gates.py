"""Gates: an artifact is published only after its answers have been compared with those of the trained weights.

gate.json: {"artifact", "passed", "failed": [names], "checks": {name: {"passed", …}}, "worst_rows": […], …}. A check
with limit null only reports and always passes. Cheap checks come first. The whole split follows only if they pass.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from trainer.artifact_kinds import KINDS, RUNTIMES
from trainer.errors import Preempted
from trainer.export.artifact import Array, Artifact
from trainer.export.parity_checks import CUT, SHOWN, TOLERANCE, Check, Comparison, largest_gap, shown
from trainer.export.program import load
from trainer.export.rows import ODD, Progress, Row, Rows, spread
from trainer.export.subprocess_check import in_fresh_process
from trainer.recipe.output_sections import GatesConfig
from trainer.task.base import Example, Record

BATCHES = (1, 2, 5, 8, 16)  # batch sizes, in turn
MOST_LOGITS = 2**27  # in memory at once
GRAPHS = (".onnx", ".data", ".xml", ".bin")  # files that a runtime opens
T = TypeVar("T")
Step = tuple[str, Callable[[], Check]]


class Gate:
    """The checks of one artifact."""

    def __init__(self, name: str, folder: Path, rows: Rows, answered: Sequence[Row], progress: Progress) -> None:
        """
        Args:
            name: a key of KINDS; decides which limits apply.
            folder: the complete artifact.
            rows: with the task and the trained model.
            answered: every row of the split, with the answer of the weights.
        """
        self.name, self.folder, self.rows, self.answered, self.progress = name, folder, rows, answered, progress
        self.task, self.export = rows.task, rows.export
        self.limits: GatesConfig = rows.task.recipe.export.gates
        self.kind = KINDS[name]
        self.exact = self.kind.exact
        self.worst: list[Record] = []

    def run(self) -> Record:
        """Run the checks. An error of the artifact is a failed check; only `Preempted` is raised."""
        checks: dict[str, Check] = {}
        for name, check in self.quick_checks():
            checks[name] = _result(check)
            if not checks[name]["passed"]:
                break
        else:
            checks |= self.split_checks()
        failed = [name for name, check in checks.items() if not check["passed"]]
        found = {"artifact": self.name, "passed": not failed, "failed": failed, "split": self.rows.split}
        return {**found, "rows": len(self.answered), "checks": checks, "worst_rows": self.worst[:SHOWN]}

    # -- checks of a few rows ------------------------------------------------------------------------------------------

    def quick_checks(self) -> Iterator[Step]:
        yield "loads", self.loads
        yield "dynamic", self.dynamic
        yield "inputs", self.inputs
        yield "logits", self.logits
        yield from self.export.extra_checks(self.artifact, self.answered).items()
        yield "fresh_process", self.fresh_process

    def loads(self) -> Check:
        self.artifact: Artifact = load(self.export, self.folder)
        return {"passed": True, "bytes": {path.name: path.stat().st_size for path in graph_files(self.folder)}}

    def dynamic(self) -> Check:
        """Check that batch size and lengths are free, and ids and masks int64."""
        wrong, inputs = [], {}
        for graph, session in self.artifact.sessions.items():
            for tensor in session.get_inputs():
                name, rank = f"{graph}.{tensor.name}", len(tensor.shape)
                inputs[name] = [tensor.type, *tensor.shape]
                free = tensor.shape[:2] if rank == 2 else tensor.shape[:3:2]  # (batch, length) or (batch, …, length)
                dtype = "tensor(int64)" if rank < 3 else "tensor(float)"
                if tensor.type != dtype or (rank > 1 and not all(isinstance(size, str) for size in free)):
                    wrong.append(name)
        return {"passed": not wrong, "wrong": wrong, "inputs": inputs}

    def inputs(self) -> Check:
        """Check that run.py and the task encode every row alike, and odd lines too."""
        reader = copy.copy(self.artifact)
        if self.rows.prepared:
            reader.settings = reader.settings | {"cleaning": []}
        differ = [row for row in self.answered if reader.encode(row.sides) != self.export.encoded(row.example)]
        lines, artifact = self._odd(), self.artifact
        encoded = [self.export.encoded(self.task.encode_lines([line])[0]) for line in lines]
        odd = [a for a, b in zip(lines, encoded, strict=True) if artifact.encode(artifact.sides(a)) != b]
        self.worst = [*({"input": line[:CUT]} for line in odd), *map(shown, differ)]
        found = {"passed": not self.worst, "differ": len(differ), "limit": 0, "rows": len(self.answered)}
        return {**found, "odd_lines_differ": len(odd), "odd_lines": len(lines)}

    def _odd(self) -> list[str]:
        """Odd lines; for a task with two inputs, pairs of them."""
        if len(self.answered[0].sides) == 1:
            return list(ODD)
        return [f"{a}\t{b}" for a, b in zip(ODD, reversed(ODD), strict=True)]

    def logits(self) -> Check:
        """Compare logits of rows of all lengths, in batches of several sizes, and each row alone."""
        chosen: list[Row] = spread(self.answered, lambda row: self.task.length(row.example), self.limits.rows)
        differences, neighbours, sizes = [], [], set()
        for batch in batches([row.example for row in chosen], self.export.logit_count):
            logits, ours = self.artifact_logits(batch), self.reference_logits(batch)
            alone = [self.artifact_logits([example])[0] for example in batch]
            differences += [largest_gap(a, b) / self.scale(b) for a, b in zip(logits, ours, strict=True)]
            neighbours += [largest_gap(a, b) for a, b in zip(logits, alone, strict=True)]
            sizes.add(len(batch))
        order = np.argsort([-d for d in differences], kind="stable")
        self.worst = [shown(chosen[i], difference=differences[i]) for i in order]
        limit: float | None = getattr(self.limits, self.kind.logit_limit, None)
        lengths = [self.task.length(self.export.compared(row.example)) for row in chosen]
        return {
            "passed": limit is None or max(differences) <= limit,
            "largest_difference": max(differences),
            "mean_of_largest": float(np.mean(differences)),
            "limit": limit,
            "batch_neighbours": max(neighbours),  # of a row alone and in a batch
            "rows": len(chosen),
            "batch_sizes": sorted(sizes),
            "lengths": [min(lengths), max(lengths)],
        }

    def scale(self, logits: Array) -> float:
        """By which differences are divided: 1, or the largest logit of a row where rounding is relative to it."""
        return max(1.0, float(np.abs(logits).max())) if self.kind.logit_limit == "fp16_logits" else 1.0

    def reference_logits(self, examples: Sequence[Example]) -> list[Array]:
        return self.export.torch_logits(self.rows.model, examples)

    def artifact_logits(self, examples: Sequence[Example]) -> list[Array]:
        return self.export.artifact_logits(self.artifact, examples)

    def fresh_process(self) -> Check:
        """Run run.py where only its runtime, tokenizers and numpy can be imported, on odd lines and real ones."""
        lines = [*self._odd(), *(row.line for row in spread(self.answered, lambda row: len(row.line), len(BATCHES)))]
        records, seconds = in_fresh_process(self.folder, lines, modules=RUNTIMES[self.kind.runtime].modules)
        here = list(self.artifact(lines))
        wrong = [line for line, a, b in zip(lines, records, here, strict=True) if not _same(a, b)]
        self.worst = [{"input": line[:CUT]} for line in wrong]
        return {"passed": not wrong, "differ": len(wrong), "lines": len(lines), "seconds": round(seconds, 2)}

    # -- the whole split -----------------------------------------------------------------------------------------------

    def split_checks(self) -> dict[str, Check]:
        def compare() -> Check:
            resamples = self.task.recipe.evaluation.bootstrap
            comparison = Comparison(self.answered, self.answers(), self.exact, self.limits, resamples)
            checks, self.worst = self.export.compare(comparison)
            return {"passed": True, "checks": checks}

        result = _result(compare)
        return result["checks"] if result["passed"] else {"whole_split": result}

    def answers(self) -> list[Record]:
        """Return the artifact's answers to `answered`, in order."""
        return self.export.artifact_answers(
            self.artifact, self.answered, lambda text: self.progress(f"{self.name} on {self.rows.split}: {text}")
        )


def graph_files(folder: Path) -> list[Path]:
    """Return the files of an artifact that its runtime opens, and those of its weights."""
    return [path for path in sorted(folder.iterdir()) if path.suffix in GRAPHS]


def batches(rows: Sequence[T], logit_count: Callable[[T], int]) -> Iterator[Sequence[T]]:
    """Yield batches of the sizes in BATCHES in turn, smaller ones where their logits would take too much memory."""
    sizes = cycle(BATCHES)
    while rows:
        batch = fitting(rows[: next(sizes)], logit_count)
        yield batch
        rows = rows[len(batch) :]


def fitting(rows: Sequence[T], logit_count: Callable[[T], int]) -> Sequence[T]:
    """Return the first of these rows whose logits, padded to the largest count, fit the memory; at least one."""
    size = len(rows)
    while size > 1 and size * max(map(logit_count, rows[:size])) > MOST_LOGITS:
        size -= 1
    return rows[:size]


def _same(a: Any, b: Any) -> bool:
    """Whether two records of the same line agree: words exactly, numbers within `TOLERANCE`."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(_same, a, b))
    return a == b if isinstance(a, str) else abs(a - b) <= TOLERANCE * max(1.0, abs(a))


def _result(check: Callable[[], Check]) -> Check:
    try:
        return check()
    except Preempted:  # the run has been stopped; nothing is known about the artifact
        raise
    except Exception as error:  # any error of onnxruntime with this graph
        return {"passed": False, "error": describe(error)}


def describe(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip()}"[:500]


class SearchGate(Gate):
    """The gate of a runtime that implements the search. It gives log probabilities of a target, no logits."""

    def quick_checks(self) -> Iterator[Step]:
        return ((name, check) for name, check in super().quick_checks() if name != "dynamic")

    def reference_logits(self, examples: Sequence[Example]) -> list[Array]:
        return [np.log(shares) for shares in self.export.stock_outputs(self.rows.model, examples)]

    def artifact_logits(self, examples: Sequence[Example]) -> list[Array]:
        return self.export.artifact_log_probs(self.artifact, examples)
