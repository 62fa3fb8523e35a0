"""The gate of model/: stock libraries without rankzero load it and give the outputs of the trained weights.

model/gate.json has the keys of every gate.json. If no stock class computes the same, "applicable" is false, "reason"
says why, and nothing is compared. A failed gate leaves model/ in its place, because later commands read it.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from trainer.data.cleaning import cleaner
from trainer.errors import Preempted
from trainer.export.gates import batches, describe
from trainer.export.parity_checks import CUT, SHOWN, Check, largest_gap, shown
from trainer.export.rows import Row, Rows, spread
from trainer.export.subprocess_check import with_stock_libraries
from trainer.models.families import padding_of
from trainer.models.stock import stock_form
from trainer.task.base import Record

GENERATED, PIPED = 8, 8  # rows whose texts are generated, and rows of the pipeline
PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "sentence-transformers")


class ModelGate:
    """The comparison of one model/ with the trained weights."""

    def __init__(self, folder: Path, rows: Rows) -> None:
        self.folder, self.rows, self.export, self.task = folder, rows, rows.export, rows.task
        self.limit = float(rows.task.recipe.export.gates.model)
        self.worst: list[Record] = []

    def run(self) -> Record:
        """Return the result. An error of the stock libraries is a failed check; only `Preempted` is raised."""
        found: Record = {"artifact": "model", "applicable": True, "reason": None, "split": self.rows.split}
        found["padding"] = self._padding
        config = self.task.model_config(self.rows.model)
        form = stock_form(self.rows.model, config, self.task.special_ids)
        reason = form if isinstance(form, str) else self.export.stock_problem(self.rows.model)
        if reason is not None:
            return {**found, "applicable": False, "reason": reason, "passed": True, "failed": [], "checks": {}}
        try:
            checks = self._compared(None if isinstance(form, str) else form.pooling)
        except Preempted:
            raise
        except Exception as error:  # any error of the stock libraries with this model
            checks = {"loads": {"passed": False, "error": describe(error)}}
        failed = [name for name, check in checks.items() if not check["passed"]]
        found |= {"passed": not failed, "failed": failed, "rows": checks.get("outputs", {}).get("rows", 0)}
        return {**found, "checks": checks, "worst_rows": self.worst[:SHOWN]}

    def _compared(self, pooling: str | None) -> dict[str, Check]:
        rows = self._chosen()
        groups = list(batches(rows, lambda row: self.export.logit_count(row.example)))
        theirs, seconds = with_stock_libraries(self._job(rows, groups, pooling))
        checks: dict[str, Check] = {"loads": {"passed": True, "class": theirs["model"], "seconds": round(seconds, 1)}}
        checks["inputs"] = self._same_inputs(rows, [ids for found in theirs["batches"] for ids in found["ids"]])
        outputs = [output for found in theirs["batches"] for output in found["outputs"]]
        checks["outputs"] = self._same_outputs(
            rows, [array for group in groups for array in self._ours(group)], outputs
        )
        few = rows[:PIPED]
        if "generated" in theirs:
            checks["generated"] = self._same_texts([row for row, _ in self._prompts(rows)], theirs["generated"])
        if "pipeline" in theirs:
            checks["pipeline"] = self._same_scores(few, theirs["pipeline"])
        if "sentence_transformers" in theirs:
            checks["sentence_transformers"] = self._same_outputs(few, self._ours(few), theirs["sentence_transformers"])
        return checks

    def _chosen(self) -> list[Row]:
        """Return rows of all lengths that a stock tokenizer truncates as the task does."""
        rows = [row for row in self.rows.all({}) if self.export.stock_reads(row.example)]
        if not rows:
            raise ValueError("every row of the split is cut as only rankzero does, so that none can be compared")
        return spread(rows, lambda row: self.task.length(row.example), self.task.recipe.export.gates.rows)

    def _job(self, rows: Sequence[Row], groups: Sequence[Sequence[Row]], pooling: str | None) -> Record:
        """Return what stock_program.py reads."""
        job: Record = {
            "folder": str(self.folder.resolve()),
            "class": "AutoModel" if pooling else self.export.auto_class,
            "pad_id": self.task.pad_id,
            "pooling": pooling,
            "batches": [self._batch(group) for group in groups],
            "generate": [{"text": self._texts(row)[0], "limit": limit} for row, limit in self._prompts(rows)],
        }
        texts = [self._texts(row) for row in rows[:PIPED]]
        if pooling is None and self.export.pipeline and self._padding is None:
            job["pipeline"] = {"task": self.export.pipeline, "texts": texts}
        if pooling and len(texts[0]) == 1 and find_spec("sentence_transformers"):
            job["sentence_transformers"] = texts
        return job

    def _prompts(self, rows: Sequence[Row]) -> list[tuple[Row, int]]:
        limits = list(self.export.stock_limits([row.example for row in rows]).items())[:GENERATED]
        return [(rows[i], limit) for i, limit in limits]

    def _batch(self, batch: Sequence[Row]) -> Record:
        examples = [row.example for row in batch]
        longest = max(len(self.export.encoded(example)[0]) for example in examples)
        return {
            "texts": [self._texts(row) for row in batch],
            **({} if self._padding is None else {"width": self.task.padding.width(longest)}),
            **self.export.stock_labels(examples),
        }

    @property
    def _padding(self) -> Record | None:
        """The widths of batches on which the outputs of the model's family depend, None if they do not."""
        config = getattr(getattr(self.rows.model, "trunk", self.rows.model), "config", None)
        needed = padding_of(config, training=False)
        if needed.multiple == needed.narrowest == 1:
            return None
        return {"multiple": self.task.padding.multiple, "narrowest": self.task.padding.narrowest}

    def _texts(self, row: Row) -> list[str]:
        """Return the texts of a row, cleaned, with what the task writes before them."""
        clean = cleaner([] if self.rows.prepared else self.task.recipe.data.cleaning)
        sides = zip(self.task.input_columns, map(clean, row.sides), strict=True)
        return list(self.task.tokenized(dict(sides)).values())

    # -- checks --------------------------------------------------------------------------------------------------------

    def _same_inputs(self, rows: Sequence[Row], theirs: Sequence[Sequence[int]]) -> Check:
        """Check that the stock tokenizer gives the same token ids."""
        pairs = zip(rows, theirs, strict=True)
        differ = [row for row, ids in pairs if not self.export.stock_ids_agree(row.example, ids)]
        self.worst += map(shown, differ)
        return {"passed": not differ, "differ": len(differ), "limit": 0, "rows": len(rows)}

    def _ours(self, rows: Sequence[Row]) -> list[Any]:
        return self.export.stock_outputs(self.rows.model, [row.example for row in rows])

    def _same_outputs(self, rows: Sequence[Row], ours: Sequence[Any], theirs: Sequence[Any]) -> Check:
        return self._within(rows, ours, [self.export.stock_share(np.asarray(output)) for output in theirs])

    def _within(self, rows: Sequence[Row], ours: Sequence[Any], theirs: Sequence[Any]) -> Check:
        """Check that the largest difference is within the limit."""
        gaps = [largest_gap(a, b) if np.size(a) else 0.0 for a, b in zip(ours, theirs, strict=True)]
        passed = max(gaps) <= self.limit
        if not passed:
            order = np.argsort([-gap for gap in gaps], kind="stable").tolist()
            self.worst += [shown(rows[i], difference=gaps[i]) for i in order[:SHOWN]]
        return {"passed": passed, "largest_difference": max(gaps), "limit": self.limit, "rows": len(rows)}

    def _same_texts(self, rows: Sequence[Row], theirs: Sequence[str]) -> Check:
        """Report how many texts `generate` writes as `rankzero predict` does. Searches decide ties differently."""
        ours = self.export.stock_texts(self.rows.model, [row.example for row in rows])
        differ = [(row, a, b) for row, a, b in zip(rows, ours, theirs, strict=True) if a != b]
        self.worst += [shown(row, reference=a[:CUT], artifact=b[:CUT]) for row, a, b in differ]
        same = len(rows) - len(differ)
        return {"passed": True, "share": same / len(rows), "limit": None, "rows": len(rows)}

    def _same_scores(self, rows: Sequence[Row], theirs: Sequence[dict[str, float]]) -> Check:
        """Check the scores of the pipeline by label."""
        answers = (self.export.answers(self.rows.model, [row.example])[0] for row in rows)
        ours = [self.export.stock_scores(answer) for answer in answers]
        if any(a.keys() != b.keys() for a, b in zip(ours, theirs, strict=True)):
            return {"passed": False, "labels": sorted(theirs[0]), "limit": self.limit, "rows": len(rows)}
        sides = ([np.array([scores[key] for key in sorted(scores)]) for scores in side] for side in (ours, theirs))
        return self._within(rows, *sides)
