"""The rows on which artifacts are checked: texts as in the files, encoded by the task, answered by the weights."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from torch import nn

from trainer.data.paths import value_at
from trainer.data.sources import open_split
from trainer.engine.corpus import Corpus, EvalBatch
from trainer.errors import DataError
from trainer.evaluation.order import corpus_order
from trainer.task.base import Example, Record, Task

FEW = 1000  # rows: gate.json notes if there are fewer; so many training rows are taken if there is no other split
Progress = Callable[[str], None]  # receives messages on how far a long step is

# Texts that users paste into a form: empty, one letter, too long, emoji, markup, other line ends and scripts.
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
        sides: its input texts as in the file, one or a pair; already cleaned in a prepared corpus.
        input: as predictions.jsonl shows it.
        answer: of the trained weights in fp32, see `TaskExport.answers` and `TaskExport.more_answers`.
    """

    id: str
    sides: list[str]
    input: str
    target: str
    example: Example
    answer: Record

    @property
    def line(self) -> str:
        """The row as a line of stdin."""
        return "\t".join(re.sub(r"[\t\r\n]+", " ", side) for side in self.sides)


class Rows:
    """The rows of the test split; without one of validation; without that some of the training rows."""

    def __init__(self, task: Task, model: nn.Module, split: str | None = None, most: int | None = None) -> None:
        """`model` is on the CPU, in fp32 and in eval mode. `split`: another one. `most`: a sample of so many rows."""
        self.task, self.model, self.export = task, model, task.exporter()(task)
        data = task.recipe.data
        first = next(name for name in ("test", "validation", "train") if getattr(data, name) is not None)
        self.split = first if split is None else split
        self.prepared = False  # whether the texts are cleaned already; known after `all`
        self._batches = list(self._read(self.split, FEW if self.split == "train" and most is None else most))
        if not self._batches:
            raise DataError(f"data.{self.split} has no row to check an artifact on")

    def _read(self, split: str, most: int | None) -> Iterator[EvalBatch]:
        recipe = self.task.recipe
        limits = [number for number in (recipe.evaluation.max_rows, most) if number is not None]
        evaluation = recipe.evaluation.model_copy(update={"max_rows": min(limits, default=None)})
        corpus = Corpus(recipe.model_copy(update={"evaluation": evaluation}), self.task)
        return chain.from_iterable(corpus.batches(split))

    @property
    def tuning_split(self) -> str:
        """The split on which no artifact is checked: validation if it is free, or training."""
        return "validation" if self.split == "test" and self.task.recipe.data.validation is not None else "train"

    def tuning_examples(self, most: int) -> list[Example]:
        """Return examples of `tuning_split` of all lengths."""
        examples = [example for batch in self._read(self.tuning_split, FEW) for example in batch.examples]
        return spread(examples, self.task.length, most)

    def tuning_rows(self, most: int, progress: Progress) -> list[Row]:
        """Return the first rows of `tuning_split`, with the answers of the weights."""
        other = Rows(self.task, self.model, self.tuning_split, most)
        return other.all(other.answers(progress))

    def answers(self, progress: Progress, model: nn.Module | None = None) -> dict[str, Record]:
        """Return the answers of the trained weights by row id, or those of another model of the task."""
        examples = {row_id: e for batch in self._batches for row_id, e in zip(batch.ids, batch.examples, strict=True)}
        answers: dict[str, Record] = {}
        model, name = (self.model, "the trained weights") if model is None else (model, "the artifact's weights")
        for batch in self._batches:
            answers |= zip(batch.ids, self.export.answers(model, batch.examples), strict=True)
            progress(f"{name} on {self.split}: {len(answers):,} of {len(examples):,} rows")
        for row_id, more in self.export.more_answers(model, examples, lambda text: progress(f"{name}: {text}")).items():
            answers[row_id] |= more
        return answers

    def all(self, answers: dict[str, Record]) -> list[Row]:
        """Return all rows in the order of the corpus, with their answers if there are any."""
        sides, rows = self._sides(), []
        for batch in self._batches:
            for row_id, texts, example in zip(batch.ids, batch.texts, batch.examples, strict=True):
                shown, target = self.task.input_text(texts), self.task.target_text(texts)
                rows.append(Row(row_id, sides[row_id], shown, target, example, answers.get(row_id, {})))
        return sorted(rows, key=lambda row: corpus_order(row.id))

    def _sides(self) -> dict[str, list[str]]:
        """Input texts of the rows as in the files, by row id."""
        data, wanted = self.task.recipe.data, {row_id for batch in self._batches for row_id in batch.ids}
        roles, sides = list(self.task.input_columns), dict[str, list[str]]()
        source = open_split(data, self.split, self.task.roles(self.task.recipe.task))  # type: ignore[arg-type]
        assert source is not None
        for row in source:
            if (row_id := source.name_of(row.id)) in wanted:
                self.prepared = row.example is not None
                columns = source.section(row, data).columns if row.example is None else {}
                raw = [value_at(row.values, columns.get(name, name)) for name in roles]
                sides[row_id] = [json.dumps(value) if isinstance(value, list) else str(value) for value in raw]
                if len(sides) == len(wanted):
                    break
        return sides


def spread(values: Sequence[Any], length: Callable[[Any], int], most: int) -> list[Any]:
    """Pick at most `most` values evenly over all lengths, in an order that mixes short and long ones."""
    ordered = sorted(values, key=length)
    count = min(most, len(ordered))
    chosen = [ordered[round(i * (len(ordered) - 1) / max(1, count - 1))] for i in range(count)]
    random.Random(0).shuffle(chosen)
    return chosen
