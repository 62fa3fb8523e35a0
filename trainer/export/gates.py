"""The gates: an artifact is published only after it has been run against the trained weights and agrees with them.

gate.json: {"artifact", "passed", "failed": [names], "checks": {name: {"passed", …numbers}}, "worst_rows": […], …}. A
check that only reports has no limit and is always passed. What is cheap comes first; the whole split is run only when
that has passed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainer.errors import Preempted
from trainer.export.answers import (
    artifact_continued,
    artifact_logits,
    artifact_losses,
    as_artifact,
    chosen_gap,
    first_piece,
    fitting,
    numbers,
    torch_logits,
)
from trainer.export.parity_checks import CUT, JUDGES, SHOWN, Check, Comparison, gap
from trainer.export.program import load
from trainer.export.programs.common import Artifact
from trainer.export.programs.generator import Generator
from trainer.export.rows import ODD, Row, Rows, Say, spread
from trainer.export.subprocess_check import in_fresh_process
from trainer.recipe.sections import GatesConfig
from trainer.task.base import Record

BATCHES = (1, 2, 5, 8, 16)  # rows that are run together, in turn
CONFIDENCE = 1e-3  # a probability from another process, or from the weights where they are not asked for logits


class Gate:
    """One artifact's proof."""

    def __init__(self, name: str, folder: Path, rows: Rows, answered: Sequence[Row], say: Say) -> None:
        """
        Args:
            name: onnx, int8, bf16 or safetensors: which limits hold.
            folder: the artifact, complete.
            rows: with the task and the trained model.
            answered: every row of the split, with what the weights answer.
            say: told how far it is.
        """
        self.name, self.folder, self.rows, self.answered, self.say = name, folder, rows, answered, say
        self.task = rows.task
        self.limits: GatesConfig = rows.task.recipe.export.gates
        self.exact = name in ("onnx", "safetensors")
        self.worst: list[Record] = []

    def verdict(self) -> Record:
        """Runs the checks; never raises because of the artifact, but where the run is told to stop."""
        checks: dict[str, Check] = {}
        for name, check in self.steps().items():
            checks[name] = _guarded(check)
            if not checks[name]["passed"]:
                break
        else:
            checks |= self.whole_split()
        failed = [name for name, check in checks.items() if not check["passed"]]
        return {
            "artifact": self.name,
            "passed": not failed,
            "failed": failed,
            "split": self.rows.split,
            "rows": len(self.answered),
            "checks": checks,
            "worst_rows": self.worst[:SHOWN],
        }

    # -- what is cheap -------------------------------------------------------------------------------------------------

    def steps(self) -> dict[str, Callable[[], Check]]:
        written = {"chosen": self.chosen} if self.task.artifact == "generation" else {}
        return {"loads": self.loads, "dynamic": self.dynamic, "inputs": self.inputs, "logits": self.logits,
                **written, "fresh_process": self.fresh_process}  # fmt: skip

    def loads(self) -> Check:
        self.artifact: Artifact = load(self.folder)
        sizes = {path.name: path.stat().st_size for path in sorted(self.folder.glob("*.onnx*"))}
        return {"passed": True, "bytes": sizes}

    def dynamic(self) -> Check:
        """Batch and lengths are free, and ids and masks int64."""
        wrong, found = [], {}
        for graph, session in self.artifact.sessions.items():
            for put in session.get_inputs():
                found[f"{graph}.{put.name}"] = [put.type, *put.shape]
                free = [*put.shape[:2]] if len(put.shape) == 2 else [*put.shape[::2]][:2]
                kind = "tensor(int64)" if len(put.shape) < 3 else "tensor(float)"
                if put.type != kind or (len(put.shape) > 1 and not all(isinstance(n, str) for n in free)):
                    wrong.append(f"{graph}.{put.name}")
        return {"passed": not wrong, "wrong": wrong, "inputs": found}

    def inputs(self) -> Check:
        """run.py makes the same token ids of every row as the task does."""
        reader = load(self.folder)
        if self.rows.prepared:  # cleaned already
            reader.settings["cleaning"] = []
        wrong = [row for row in self.answered if tuple(reader.encode(row.sides)) != as_artifact(self.task, row.example)]
        odd = [line for line in self._odd() if not self._reads_alike(line)]
        self.worst = [*({"input": line[:CUT]} for line in odd), *({"id": r.id, "input": r.input[:CUT]} for r in wrong)]
        return {"passed": not self.worst, "differ": len(wrong), "limit": 0, "rows": len(self.answered),
                "odd_lines_differ": len(odd), "odd_lines": len(self._odd())}  # fmt: skip

    def _odd(self) -> list[str]:
        """Odd lines, as pairs where the task has them."""
        pair = self.artifact.settings["pair"]
        return [f"{a}\t{b}" for a, b in zip(ODD, reversed(ODD), strict=True)] if pair else list(ODD)

    def _reads_alike(self, line: str) -> bool:
        return tuple(self.artifact.encode(self.artifact.sides(line))) == as_artifact(
            self.task, self.task.encode_lines([line])[0]
        )

    def logits(self) -> Check:
        """Rows of all lengths in batches of several sizes; and each of them alone."""
        chosen: list[Row] = spread(self.answered, lambda row: self.task.length(row.example), self.limits.rows)
        differences, neighbours = [], []
        batches = list(_batches(chosen, lambda row: numbers(self.task, row.example)))
        for batch in batches:
            examples = [row.example for row in batch]
            found, ours = self._logits(examples), torch_logits(self.task, self.rows.model, examples)
            differences += [gap(a, b) for a, b in zip(found, ours, strict=True)]
            alone = [self._logits([example])[0] for example in examples]
            neighbours += [gap(a, b) for a, b in zip(found, alone, strict=True)]
        order = np.argsort([-d for d in differences], kind="stable")
        self.worst = [{"id": chosen[i].id, "input": chosen[i].input[:CUT], "difference": differences[i]} for i in order]
        limit = self.limits.logits if self.exact else None
        lengths = [self.task.length(first_piece(self.task, row.example)) for row in chosen]
        return {
            "passed": limit is None or max(differences) <= limit,
            "largest_difference": max(differences),
            "mean_of_largest": float(np.mean(differences)),
            "limit": limit,
            "batch_neighbours": max(neighbours),  # the same row alone and in a batch
            "rows": len(chosen),
            "batch_sizes": sorted(set(map(len, batches))),
            "lengths": [min(lengths), max(lengths)],
        }

    def chosen(self) -> Check:
        """What a language model's search takes is what the logits, which are judged, say."""
        texts = [self.rows.prompts[row.id] for row in self.answered if row.id in self.rows.prompts]
        largest = max(chosen_gap(self.artifact, [text]) for text in texts)  # type: ignore[arg-type]
        return {"passed": largest <= CONFIDENCE, "largest_difference": largest, "limit": CONFIDENCE}

    def _logits(self, examples: Sequence[Any]) -> list[Any]:
        return artifact_logits(self.task, self.artifact, examples)

    def fresh_process(self) -> Check:
        """run.py where nothing but onnxruntime, tokenizers and numpy can be imported, on odd lines and real ones."""
        lines = [*self._odd(), *(row.line for row in spread(self.answered, lambda row: len(row.line), len(BATCHES)))]
        found, seconds = in_fresh_process(self.folder, lines)
        here = list(self.artifact(lines))
        wrong = [line for line, a, b in zip(lines, found, here, strict=True) if not _same(a, b)]
        self.worst = [{"input": line[:CUT]} for line in wrong]
        return {"passed": not wrong, "differ": len(wrong), "lines": len(lines), "seconds": round(seconds, 2)}

    # -- the whole split -----------------------------------------------------------------------------------------------

    def whole_split(self) -> dict[str, Check]:
        try:
            found = self._answers()
            case = Comparison(self.answered, found, self.exact, self.limits, self.task.recipe.evaluation.bootstrap)
            case.language = getattr(self.task.recipe.task, "trg_language", None)
            checks = JUDGES[self.task.artifact](case)
        except Preempted:
            raise
        except Exception as error:  # whatever onnxruntime meets in a graph
            return {"whole_split": {"passed": False, "error": reason_of(error)}}
        self.worst = case.worst
        return checks

    def _answers(self) -> list[Record]:
        """In the order of `answered`."""
        if isinstance(self.artifact, Generator):
            return self._continued(self.artifact)
        examples: list[Any] = [as_artifact(self.task, row.example) for row in self.answered]
        found: dict[int, Record] = {}
        alone = self.artifact.settings["one_by_one"]
        for batch in self.artifact.batches([len(example[0]) for example in examples], alone):
            found |= zip(batch, self.artifact.predict([examples[i] for i in batch]), strict=True)
            self.say(f"{self.name} on {self.rows.split}: {len(found):,} of {len(examples):,} rows")
        return [found[i] for i in range(len(examples))]

    def _continued(self, artifact: Generator) -> list[Record]:
        """Losses of all documents, and how those go on that the weights have gone on with."""
        losses = artifact_losses(
            self.task,
            artifact,
            [row.example for row in self.answered],
            lambda done: self.say(f"{self.name} on {self.rows.split}: {done:,} pieces of {len(self.answered):,} texts"),
        )
        found: list[Record] = [{"loss": float(loss)} for loss in losses]
        asked = [i for i, row in enumerate(self.answered) if row.id in self.rows.prompts]
        self.say(f"{self.name}: going on with {len(asked):,} texts")
        made = artifact_continued(artifact, [self.rows.prompts[self.answered[i].id] for i in asked])
        for i, record in zip(asked, made, strict=True):
            found[i] |= record
        return found


def _batches(rows: Sequence[Row], count: Callable[[Row], int]) -> Iterator[list[Row]]:
    """Of the sizes in BATCHES in turn; smaller ones where they would hold too many logits."""
    start = turn = 0
    while start < len(rows):
        batch = list(rows[start : start + BATCHES[turn % len(BATCHES)]])
        batch = batch[: fitting(batch, count)]
        yield batch
        start, turn = start + len(batch), turn + 1


def _same(a: Record, b: Record) -> bool:
    """Whether two records of the same line agree: words exactly, numbers to 1e-3."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    return a == b if isinstance(a, str) else abs(a - b) <= CONFIDENCE


def _guarded(check: Callable[[], Check]) -> Check:
    try:
        return check()
    except Preempted:  # is no verdict
        raise
    except Exception as error:  # whatever onnxruntime meets in a graph
        return {"passed": False, "error": reason_of(error)}


def reason_of(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip()}"[:500]
