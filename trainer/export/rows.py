"""The rows that an artifact is proven on: as the files hold them, as the task encodes them, as the weights answer."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

from trainer.data.paths import value_at
from trainer.data.sources import open_split
from trainer.engine.corpus import Corpus, EvalBatch
from trainer.errors import DataError
from trainer.evaluation.predictions import corpus_order
from trainer.export.answers import prompt, torch_answers, torch_continued
from trainer.task.base import Example, Record, Task

FEW = 1000  # rows: with fewer a verdict says so; as many of the training rows are taken where there are no others
Say = Callable[[str], None]

# What people paste into a box: nothing, a letter, far too much, pictures, markup, another line end, another script.
ODD = (
    "",
    "a",
    " ".join(["word"] * 600),
    "😀😀 👩‍👩‍👧 ok",
    "<p>Good.<br /><br />Bad &amp; <b>ugly</b> &lt;3</p>",
    "before\u0085after",
    "Ünïcödé ﬁ ² \u00a0 日本語 \u200b.",
    "see https://example.org/a?b=c, or mail a.b@example.org!",
)


@dataclass(frozen=True)
class Row:
    """One row of the split.

    Attributes:
        sides: the texts as they stand in the file, one or a pair; cleaned already in a prepared corpus.
        input: as predictions.jsonl shows it.
        answer: what the trained weights say in fp32, with the keys of `rankzero predict`; of a language model's row
            its loss and tokens, and how its beginning is gone on with if it is one of `Rows.prompts`.
    """

    id: str
    sides: list[str]
    input: str
    target: str
    example: Example
    answer: Record

    @property
    def line(self) -> str:
        """As a line of stdin."""
        return "\t".join(re.sub(r"[\t\r\n]+", " ", side) for side in self.sides)


class Rows:
    """The rows of the split that decides: test; validation, or some of the training rows, where there is no other."""

    def __init__(self, task: Task, model: nn.Module) -> None:
        """`model` is on the CPU, in fp32 and in eval mode."""
        self.task, self.model = task, model
        data = task.recipe.data
        self.split = next(split for split in ("test", "validation", "train") if getattr(data, split) is not None)
        self.prepared = False
        self._batches = list(self._read(self.split, FEW if self.split == "train" else None))
        if not self._batches:
            raise DataError(f"data.{self.split} has no row to prove an artifact on")

    def _read(self, split: str, most: int | None) -> Iterator[EvalBatch]:
        recipe = self.task.recipe
        limits = [number for number in (recipe.evaluation.max_rows, most) if number is not None]
        evaluation = recipe.evaluation.model_copy(update={"max_rows": min(limits, default=None)})
        corpus = Corpus(recipe.model_copy(update={"evaluation": evaluation}), self.task)
        for window in corpus.batches(split):
            yield from window

    @property
    def ids(self) -> list[str]:
        return [row_id for batch in self._batches for row_id in batch.ids]

    def tuning_examples(self, most: int) -> list[Example]:
        """Rows that decide nothing: of validation, or of training where there is none or it decides."""
        other = "validation" if self.split == "test" and self.task.recipe.data.validation is not None else "train"
        examples = [example for batch in self._read(other, FEW) for example in batch.examples]
        return spread(examples, self.task.length, most)

    @cached_property
    def prompts(self) -> dict[str, list[int]]:
        """Beginnings of documents of all lengths that a causal language model goes on with, by id."""
        if self.task.artifact != "generation":
            return {}
        rows = [pair for batch in self._batches for pair in zip(batch.ids, batch.examples, strict=True)]
        chosen = spread(rows, lambda row: self.task.length(row[1]), self.task.recipe.export.gates.prompts)
        return {row_id: prompt(self.task, example) for row_id, example in chosen}

    def answers(self, say: Say, model: nn.Module | None = None) -> dict[str, Record]:
        """What the weights answer, by id; or those of another model of the task."""
        found: dict[str, Record] = {}
        model, what = (self.model, "the trained weights") if model is None else (model, "the artifact's weights")
        for batch in self._batches:
            found |= zip(batch.ids, torch_answers(self.task, model, batch.examples), strict=True)
            say(f"{what} on {self.split}: {len(found):,} of {len(self.ids):,} rows")
        if self.prompts:
            say(f"{what}: going on with {len(self.prompts):,} texts")
            made = torch_continued(self.task, model, list(self.prompts.values()))
            for row_id, record in zip(self.prompts, made, strict=True):
                found[row_id] |= record
        return found

    def all(self, answers: dict[str, Record]) -> list[Row]:
        """In the order of the corpus; without answers where there are none."""
        raw, rows = self._raw(), []
        for batch in self._batches:
            for row_id, texts, example in zip(batch.ids, batch.texts, batch.examples, strict=True):
                shown, target = self.task.input_text(texts), self.task.target_text(texts)
                rows.append(Row(row_id, raw[row_id], shown, target, example, answers.get(row_id, {})))
        return sorted(rows, key=lambda row: corpus_order(row.id))

    def _raw(self) -> dict[str, list[str]]:
        """The texts of the rows as they stand in the files, by id."""
        data, wanted = self.task.recipe.data, set(self.ids)
        roles = [role for role in self.task.roles(self.task.recipe.task) if role not in ("label", "trg")]
        source, found = open_split(data, self.split, self.task.roles(self.task.recipe.task)), {}  # type: ignore[arg-type]
        assert source is not None
        for row in source:
            if (row_id := source.name_of(row.id)) in wanted:
                self.prepared = row.example is not None
                columns = {} if self.prepared else data.columns
                found[row_id] = [str(value_at(row.values, columns.get(role, role))) for role in roles]
        return found


def spread(values: Sequence[Any], length: Callable[[Any], int], most: int) -> list[Any]:
    """At most so many of them, of all lengths alike, in an order in which short and long ones are neighbours."""
    ordered = sorted(values, key=length)
    count = min(most, len(ordered))
    chosen = [ordered[round(i * (len(ordered) - 1) / max(1, count - 1))] for i in range(count)]
    random.Random(0).shuffle(chosen)
    return chosen
