"""The corpus of a recipe: rows are cleaned, validation rows are held out, and the task encodes them."""

from __future__ import annotations

import functools
import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from operator import itemgetter
from typing import Any

from trainer.data.cleaning import BadRow, clean_row, cleaner
from trainer.data.counter_rng import key
from trainer.data.dealer import deals_whole_shards
from trainer.data.heads import first_rows
from trainer.data.lane_plan import LanePlan
from trainer.data.lanes import LaneServer
from trainer.data.left_out import LeftOut
from trainer.data.mixing import Mixture
from trainer.data.paths import MISSING, value_at
from trainer.data.quotas import Quotas
from trainer.data.roles import Label
from trainer.data.sources import MixedSource, Source, belongs, open_split
from trainer.data.sources import Row as RawRow
from trainer.data.survey import too_many
from trainer.errors import DataError, UsageError
from trainer.recipe import Recipe
from trainer.task.base import Example, Row, Task

EVAL_WINDOW = 20_000  # rows of a split that are in memory and sorted together
SAMPLED_FROM = 200_000  # first rows of a split that evaluation.max_rows draws from: reading a huge split takes hours


@dataclass(frozen=True)
class EvalBatch:
    """Rows of one evaluation batch, with their ids as in predictions.jsonl.

    Attributes:
        places: of the rows in their window.
        examples: none in a batch of another rank, for `EncodingShare`.
    """

    ids: list[str]
    texts: list[Row]
    examples: list[Example]
    places: list[int]


@dataclass(frozen=True)
class EncodingShare:
    """The part of a window that this rank encodes: rows of the batches it evaluates, others for their lengths only.

    Attributes:
        total: sums numbers over all ranks.
    """

    rank: int
    size: int
    total: Callable[[list[int]], list[int]]


@dataclass(frozen=True)
class MixedRow:
    """A usable training row of `data.mix`."""

    id: tuple[int, int]
    corpus: int  # its number
    texts: Row
    example: Example | None


class Corpus:
    """Cleaned and encoded rows of all splits."""

    def __init__(self, recipe: Recipe, task: Task) -> None:
        self.recipe, self.task, self.roles = recipe, task, task.roles(recipe.task)
        self._clean = cleaner(recipe.data.cleaning)
        self.unchecked = {split for split, facts in task.data.items() if facts.get("check") in ("sample", "off")}
        self._train = open_split(recipe.data, "train", self.roles)
        self._samples: dict[tuple[str, int], list[tuple[str, Row]]] = {}

    @property
    def train(self) -> Source:
        assert self._train is not None, "data.train is required"
        return self._train

    def lanes(self) -> LaneServer:
        """Return the training rows as lanes."""
        data, padding = self.recipe.data, self.task.padding
        plan = LanePlan(
            self.recipe.seed,
            data.lanes,
            data.block_rows,
            data.tokens_per_batch,
            data.rows_per_batch,
            padding.multiple,
            data.order == "shuffled",
            padding.narrowest,
        )
        mixture, whole_shards, tally = None, False, None
        if isinstance(self.train, MixedSource):
            if all(self.quotas.repeat) and self.quotas.epoch_rows is None and self.recipe.loop.max_steps is None:
                raise UsageError(
                    "data.mix: all corpora are repeated, and without their numbers of rows no epoch has an end: set "
                    "loop.max_steps"
                )
            whole = [deals_whole_shards(part, plan) for part in self.train.parts]
            count = self._count_mixed if "train" in self.unchecked else None
            mixture = Mixture(self.train.parts, self.quotas, self._mixed, whole, count)
        else:
            whole_shards = deals_whole_shards(self.train, plan)
            tally = partial(LeftOut.of, data=data) if "train" in self.unchecked else None
        return LaneServer(self.train, plan, self._encode, self._label, whole_shards, self._pack, tally, mixture)

    @property
    def quotas(self) -> Quotas:
        """The proportions of `data.mix`, by the rows that the survey has counted."""
        return Quotas.surveyed(self.recipe.data, self.task.data.get("train", {}))

    def epoch_rows(self) -> int | None:
        """Return the training rows of an epoch; None if they are not known."""
        return self.quotas.expected_rows if self.recipe.data.mix else self.task.data["train"]["rows"]

    def batches(self, split: str, share: EncodingShare | None = None) -> Iterator[list[EvalBatch]]:
        """Yield evaluation batches, a window of rows at a time. They do not depend on the ranks.

        Rows are sorted by length within a window, so that memory is bounded and padding is small.

        Args:
            split: its name.
            share: with it, batches that `DataParallel.rounds` gives to other ranks have no examples. All ranks.

        Raises:
            DataError: the recipe has no such split, or a row is bad.
        """
        # not a loop, whose variable would keep a window in memory while the next one is read
        return map(functools.partial(self._cut, share=share), self._windows(split))

    def _cut(self, window: list[tuple[str, Row]], share: EncodingShare | None) -> list[EvalBatch]:
        """Return the batches of a window."""
        limit, padded = self.recipe.evaluation.tokens_per_batch, self.task.padding.width
        texts = [row for _, row in window]
        examples, lengths = self._measured(texts, share)
        batches = batches_by_length(lengths, padded, limit)
        own = batches if share is None else batches[share.rank :: share.size]
        if missing := [i for batch in own for i in batch if i not in examples]:
            examples |= zip(missing, self.task.encode([texts[i] for i in missing]), strict=True)
        return [
            EvalBatch(
                [window[i][0] for i in batch],
                [texts[i] for i in batch],
                [examples[i] for i in batch] if share is None or number % share.size == share.rank else [],
                batch,
            )
            for number, batch in enumerate(batches)
        ]

    def _measured(self, texts: list[Row], share: EncodingShare | None) -> tuple[dict[int, Example], list[int]]:
        """Return the lengths of all rows of a window, and the examples of the rows that this rank has encoded."""
        if share is not None:
            mine, lengths = range(share.rank, len(texts), share.size), [0] * len(texts)
            encoded, failed = dict[int, Example](), 0
            try:
                encoded = dict(zip(mine, self.task.encode([texts[i] for i in mine]), strict=True)) if mine else {}
            except Exception:  # all ranks raise it below: one rank alone would leave the others waiting
                failed = 1
            for i, example in encoded.items():
                lengths[i] = self.task.length(example)
            *lengths, failures = share.total([*lengths, failed])
            if not failures:
                return encoded, lengths
        examples = self.task.encode(texts)
        return dict(enumerate(examples)), list(map(self.task.length, examples))

    def texts(self, split: str, some: int | None = None) -> Iterator[tuple[str, Row]]:
        """Yield ids and cleaned texts of a split's rows, in order. `data.on_bad_row` decides about bad rows.

        Args:
            split: one that the recipe has.
            some: about so many rows are read, the first ones of every file. None for all.

        Raises:
            DataError: the recipe has no such split, or a row is bad.
        """
        data = self.recipe.data
        source = self.train if split == "train" else open_split(data, split, self.roles)  # type: ignore[arg-type]
        if source is None:
            raise DataError(f"the recipe has no data.{split}; set it to a file pattern below data.root={data.root!r}")
        used = bad = 0
        for row in source if some is None else first_rows(source, some):
            texts = self._cleaned(row, source, split)
            if isinstance(texts, BadRow):
                bad += row.lines
            elif texts is not None:
                used += 1
                yield source.name_of(row.id), texts
        if some is None and split in self.unchecked and too_many(bad, used, data, complete=True):
            raise DataError(
                f"data.{split}: {bad:,} of {used + bad:,} lines are of bad rows, more than "
                f"data.max_bad_fraction={data.max_bad_fraction:g}. data.check=full lists them at the start of a new run"
            )

    def _cleaned(self, row: RawRow, source: Source, split: str, fails: bool = True) -> Row | BadRow | None:
        """Return the cleaned texts of a row, what is wrong with it, or None for a row of another split.

        Raises:
            DataError: the row is bad, `data.on_bad_row` is fail, and `fails`.
        """
        data = source.section(row, self.recipe.data)
        texts = clean_row(row, self.roles, data.columns, self._clean)
        if isinstance(texts, BadRow):
            if data.on_bad_row == "fail" and fails:
                place = texts.describe(source.shards[row.id[0]].name)
                if split not in self.unchecked:
                    raise DataError(place)
                raise DataError(
                    f"data.{split}: {place}. Fix the row, or set data.on_bad_row=skip to leave out up to "
                    f"data.max_bad_fraction={data.max_bad_fraction:g} of all rows"
                )
            return texts
        return texts if belongs(texts, data, split) else None

    def _windows(self, split: str) -> Iterator[list[tuple[str, Row]]]:
        most = self.recipe.evaluation.max_rows
        rows = iter(self.texts(split) if most is None else self._sample(split, most))
        while window := list(islice(rows, EVAL_WINDOW)):
            yield window
            del window  # before the next one is read

    def _sample(self, split: str, most: int) -> list[tuple[str, Row]]:
        """Return at most `most` rows of a split, in order, and the same ones every time: those with the least keys.

        The first rows of a split are often all of one class. The sample is cached: later evaluations read no file.
        """
        if (split, most) not in self._samples:
            rows = enumerate(islice(self.texts(split), max(most, SAMPLED_FROM)))
            least = heapq.nsmallest(most, rows, key=lambda row: key("evaluation", row[1][0]))
            self._samples[split, most] = [row for _, row in sorted(least, key=itemgetter(0))]
        return self._samples[split, most]

    def _mixed(self, corpus: int, row: RawRow) -> MixedRow | BadRow | None:
        """Return a training row of a corpus. None for a row of another split, or what is wrong with it."""
        texts = self._for_training(row)
        return MixedRow(row.id, corpus, texts, row.example) if isinstance(texts, dict) else texts

    def _count_mixed(self, seen: Sequence[tuple[int, Any, Any]]) -> LeftOut:
        """Count rows of the first pass over each corpus: after it the counts are those of a complete survey.

        Where a bad row ends the run, those of later passes count, too: another lane may reach one there first.

        Args:
            seen: pass, row, and what `_mixed` has returned.
        """
        fail = self.recipe.data.on_bad_row == "fail"
        counted = [(row, found) for turn, row, found in seen if not turn or (fail and isinstance(found, BadRow))]
        return LeftOut.of([row for row, _ in counted], [found for _, found in counted], self.recipe.data)

    def _encode(self, rows: list[RawRow | MixedRow]) -> list[tuple[Example, int] | BadRow | None]:
        """Return the example and length of each training row. None for rows of another split, or what is wrong."""
        usable = [row.texts if isinstance(row, MixedRow) else self._for_training(row) for row in rows]
        pairs = [(row, texts) for row, texts in zip(rows, usable, strict=True) if isinstance(texts, dict)]
        encoded = iter(self.task.encode([texts for row, texts in pairs if row.example is None]))
        ready = iter([row.example if row.example is not None else next(encoded) for row, _ in pairs])
        examples = [next(ready) if isinstance(texts, dict) else texts for texts in usable]
        return [(example, self.task.length(example)) if isinstance(example, dict) else example for example in examples]

    def _for_training(self, row: RawRow) -> Row | BadRow | None:
        """Return the texts of a training row as `_cleaned`. Where the survey has not read all rows, none fails here."""
        if "train" not in self.unchecked:
            return self._cleaned(row, self.train, "train")
        texts = self._cleaned(row, self.train, "train", fails=False)
        if isinstance(texts, dict) and (lacking := self.roles.keys() - texts.keys()):  # a column that may be left out
            column = self.train.section(row, self.recipe.data).columns.get(name := min(lacking), name)
            return BadRow(row.id, "is missing", column, ", which data.columns or other rows have")
        return texts

    def _pack(self, examples: list[Example]) -> list[tuple[Example, int, list[int]]]:
        return [(example, self.task.length(example), begun) for example, begun in self.task.pack(examples)]

    def _label(self, row: RawRow | MixedRow) -> str | None:
        """Return the label of a row that is not cleaned yet, to watch how labels are distributed in blocks."""
        role = next((name for name, role in self.roles.items() if isinstance(role, Label)), None)
        if role is None:
            return None
        if isinstance(row, MixedRow):
            return str(row.texts[role])
        value = value_at(row.values, role if row.example is not None else self.recipe.data.columns.get(role, role))
        return None if value is None or value is MISSING else str(value)


def batches_by_length(lengths: Sequence[int], padded: Callable[[int], int], limit: int) -> list[list[int]]:
    """Return the indices of texts in batches of similar lengths.

    A batch has at most `limit` padded tokens, unless one text alone has more.
    """
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if not batches or padded(lengths[i]) * (len(batches[-1]) + 1) > limit:
            batches.append([])
        batches[-1].append(i)
    return batches
