"""The gate of model/: stock libraries without rankzero load it and give the outputs of the trained weights.

model/gate.json has the keys of every gate.json. If no stock class computes the same, "applicable" is false, "reason"
says why, and nothing is compared. A failed gate leaves model/ in its place, because later commands read it.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from trainer.data.cleaning import cleaner
from trainer.errors import Preempted
from trainer.export.artifact_integrity import files_of, problems, read_gate
from trainer.export.gates import BATCHES, describe
from trainer.export.parity_checks import CUT, SHOWN, Check, largest_gap
from trainer.export.provenance import FORMAT
from trainer.export.rows import Progress, Row, Rows, spread
from trainer.export.subprocess_check import with_stock_libraries
from trainer.files import write_json
from trainer.models.families import padding_of
from trainer.models.stock import stock_form
from trainer.stages import file_facts, unchanged
from trainer.task.base import Record

GENERATED, PIPED = 8, 8  # rows whose texts are generated, and rows of the pipeline
PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "sentence-transformers")
CARD = "README.md"  # is written after the gate


def is_done(folder: Path, inputs: Record) -> bool:
    """Return whether the gate has been decided for the same files and limits."""
    gate = read_gate(folder)
    if gate is None or not unchanged(inputs, gate["inputs"]):
        return False
    if gate["passed"]:
        return not problems(folder)
    return not any("error" in check for check in gate["checks"].values())


def check_model(folder: Path, rows: Rows, inputs: Record, progress: Progress) -> Record:
    """Decide the gate of model/ and write its gate.json, which is returned."""
    started = time.time()
    progress("model: comparing with stock libraries")
    gate = ModelGate(folder, rows).run()
    files = {name: file_facts(folder / name) for name in files_of(folder) if name not in ("gate.json", CARD)}
    versions = {name: importlib.metadata.version(name) for name in PACKAGES if importlib.util.find_spec(_module(name))}
    gate |= {"seconds": round(time.time() - started, 1), "files": files, "inputs": inputs, "versions": versions}
    write_json(folder / "gate.json", {"format": FORMAT, **gate})
    return gate


def _module(package: str) -> str:
    return package.replace("-", "_")


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
        pooling = None if isinstance(form, str) else form.pooling
        try:
            checks = self._compared(pooling)
        except Preempted:
            raise
        except Exception as error:  # any error of the stock libraries with this model
            checks = {"loads": {"passed": False, "error": describe(error)}}
        failed = [name for name, check in checks.items() if not check["passed"]]
        found |= {"passed": not failed, "failed": failed, "rows": checks.get("outputs", {}).get("rows", 0)}
        return {**found, "checks": checks, "worst_rows": self.worst[:SHOWN]}

    def _compared(self, pooling: str | None) -> dict[str, Check]:
        rows = self._chosen()
        batches = self._batches(rows)
        job = self._job(batches, pooling)
        theirs, seconds = with_stock_libraries(job)
        checks: dict[str, Check] = {"loads": {"passed": True, "class": theirs["model"], "seconds": round(seconds, 1)}}
        checks["inputs"] = self._same_inputs(batches, theirs["batches"])
        checks["outputs"] = self._same_outputs(batches, theirs["batches"])
        if "generated" in theirs:
            prompts = [row for row, _ in self._prompts(rows)]
            checks["generated"] = self._same_texts(prompts, theirs["generated"])
        if "pipeline" in theirs:
            checks["pipeline"] = self._same_scores(rows[:PIPED], theirs["pipeline"])
        if "sentence_transformers" in theirs:
            arrays = [np.asarray(logits) for logits in theirs["sentence_transformers"]]
            checks["sentence_transformers"] = self._within(rows[:PIPED], self._ours(rows[:PIPED]), self._shares(arrays))
        return checks

    def _chosen(self) -> list[Row]:
        """Return rows of all lengths that a stock tokenizer truncates as the task does."""
        rows = [row for row in self.rows.all({}) if self.export.stock_reads(row.example)]
        if not rows:
            raise ValueError("every row of the split is cut as only rankzero does, so that none can be compared")
        return spread(rows, lambda row: self.task.length(row.example), self.task.recipe.export.gates.rows)

    def _batches(self, rows: Sequence[Row]) -> list[list[Row]]:
        batches: list[list[Row]] = []
        start = 0
        while start < len(rows):
            size = BATCHES[len(batches) % len(BATCHES)]
            batches.append(list(rows[start : start + size]))
            start += size
        return batches

    def _job(self, batches: Sequence[Sequence[Row]], pooling: str | None) -> Record:
        """Return what stock_program.py reads."""
        rows = [row for batch in batches for row in batch]
        job: Record = {
            "folder": str(self.folder.resolve()),
            "class": "AutoModel" if pooling else self.export.auto_class,
            "pad_id": self.task.pad_id,
            "pooling": pooling,
            "batches": [self._batch(batch) for batch in batches],
            "generate": [{"text": self._texts(row)[0], "limit": limit} for row, limit in self._prompts(rows)],
        }
        texts = [self._texts(row) for row in rows[:PIPED]]
        if pooling is None and self.export.pipeline and self._padding is None:
            job["pipeline"] = {"task": self.export.pipeline, "texts": texts}
        if pooling and len(texts[0]) == 1 and importlib.util.find_spec("sentence_transformers"):
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
        roles = self.task.roles(self.task.recipe.task)
        inputs = [name for name, role in roles.items() if not role.target]
        clean = cleaner([] if self.rows.prepared else self.task.recipe.data.cleaning)
        texts = self.task.tokenized({name: clean(side) for name, side in zip(inputs, row.sides, strict=True)})
        return list(texts.values())

    # -- checks --------------------------------------------------------------------------------------------------------

    def _same_inputs(self, batches: Sequence[Sequence[Row]], theirs: Sequence[Record]) -> Check:
        """Check that the stock tokenizer gives the same token ids."""
        pairs = [
            (row, ids)
            for batch, found in zip(batches, theirs, strict=True)
            for row, ids in zip(batch, found["ids"], strict=True)
        ]
        differ = [row for row, ids in pairs if not self.export.stock_ids_agree(row.example, ids)]
        self.worst += [{"id": row.id, "input": row.input[:CUT]} for row in differ]
        return {"passed": not differ, "differ": len(differ), "limit": 0, "rows": len(pairs)}

    def _same_outputs(self, batches: Sequence[Sequence[Row]], theirs: Sequence[Record]) -> Check:
        rows = [row for batch in batches for row in batch]
        arrays = [np.asarray(output) for found in theirs for output in found["outputs"]]
        return self._within(rows, [array for batch in batches for array in self._ours(batch)], self._shares(arrays))

    def _ours(self, rows: Sequence[Row]) -> list[Any]:
        return self.export.stock_outputs(self.rows.model, [row.example for row in rows])

    def _shares(self, arrays: Sequence[Any]) -> list[Any]:
        return [self.export.stock_share(array) for array in arrays]

    def _within(self, rows: Sequence[Row], ours: Sequence[Any], theirs: Sequence[Any]) -> Check:
        """Check that the largest difference is within the limit."""
        gaps = [largest_gap(a, b) if np.size(a) else 0.0 for a, b in zip(ours, theirs, strict=True)]
        order = np.argsort([-gap for gap in gaps], kind="stable").tolist()
        if max(gaps) > self.limit:
            found = [(rows[i], gaps[i]) for i in order[:SHOWN]]
            self.worst += [{"id": row.id, "input": row.input[:CUT], "difference": gap} for row, gap in found]
        return {
            "passed": max(gaps) <= self.limit,
            "largest_difference": max(gaps),
            "limit": self.limit,
            "rows": len(rows),
        }

    def _same_texts(self, rows: Sequence[Row], theirs: Sequence[str]) -> Check:
        """Report how many texts `generate` writes as `rankzero predict` does. Searches decide ties differently."""
        ours = self.export.stock_texts(self.rows.model, [row.example for row in rows])
        same = [a == b for a, b in zip(ours, theirs, strict=True)]
        self.worst += [
            {"id": row.id, "input": row.input[:CUT], "reference": a[:CUT], "artifact": b[:CUT]}
            for row, a, b in zip(rows, ours, theirs, strict=True)
            if a != b
        ]
        return {"passed": True, "share": sum(same) / len(same), "limit": None, "rows": len(same)}

    def _same_scores(self, rows: Sequence[Row], theirs: Sequence[dict[str, float]]) -> Check:
        """Check the scores of the pipeline by label."""
        batches = map(self.export.answers, [self.rows.model] * len(rows), ([row.example] for row in rows))
        ours = [self.export.stock_scores(answer) for (answer,) in batches]
        values = partial(map, lambda scores: np.array([scores[key] for key in sorted(scores)]))
        if any(a.keys() != b.keys() for a, b in zip(ours, theirs, strict=True)):
            return {"passed": False, "labels": sorted(theirs[0]), "limit": self.limit, "rows": len(rows)}
        return self._within(rows, list(values(ours)), list(values(theirs)))
