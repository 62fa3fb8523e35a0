"""The corpus of a recipe as the engine reads it: raw rows cleaned, held-out rows kept apart, encoded by the task."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from operator import itemgetter

from trainer.data.cleaning import BadRow, clean_row, cleaner
from trainer.data.counter_rng import key
from trainer.data.lanes import LanePlan, LaneServer
from trainer.data.paths import MISSING, value_at
from trainer.data.sources import Row, Source, held_out, open_split
from trainer.errors import DataError
from trainer.recipe import Recipe
from trainer.task.base import Example, Task, Texts

EVAL_WINDOW = 20_000  # rows of a split that are held and sorted together
SAMPLED_FROM = 200_000  # its first ones, of which evaluation.max_rows are taken: reading all of a huge one takes hours


@dataclass(frozen=True)
class EvalBatch:
    """Rows of one evaluation batch; `ids` as they stand in predictions.jsonl."""

    ids: list[str]
    texts: list[Texts]
    examples: list[Example]


class Corpus:
    """Cleaned and encoded rows of all splits."""

    def __init__(self, recipe: Recipe, task: Task) -> None:
        self.recipe, self.task, self.roles = recipe, task, task.roles(recipe.task)
        self._clean = cleaner(recipe.data.cleaning)
        self._train = open_split(recipe.data, "train", self.roles)
        self._samples: dict[tuple[str, int], list[tuple[str, Texts]]] = {}

    @property
    def train(self) -> Source:
        assert self._train is not None, "data.train is required"
        return self._train

    def lanes(self) -> LaneServer:
        """The training rows as lanes."""
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
        whole_shards = deals_whole_shards(self.train, plan)
        return LaneServer(self.train, plan, self._encode, self._label, whole_shards, self._pack)

    def batches(self, split: str) -> Iterator[list[EvalBatch]]:
        """Evaluation batches, fixed before they are dealt to ranks, a window of rows at a time.

        Rows are sorted by length within a window, so that memory is bounded and padding is small.

        Raises:
            DataError: the recipe has no such split, or a row is bad.
        """
        limit, padded = self.recipe.evaluation.tokens_per_batch, self.task.padding.width
        for window in self._windows(split):
            examples = self.task.encode([texts for _, texts in window])
            yield [
                EvalBatch([window[i][0] for i in b], [window[i][1] for i in b], [examples[i] for i in b])
                for b in batches_by_length(list(map(self.task.length, examples)), padded, limit)
            ]

    def texts(self, split: str) -> Iterator[tuple[str, Texts]]:
        """Ids and cleaned texts of a split's rows, in order; bad rows as `data.on_bad_row` says."""
        data = self.recipe.data
        source = self.train if split == "train" else open_split(data, split, self.roles)  # type: ignore[arg-type]
        if source is None:
            raise DataError(f"the recipe has no data.{split}; set it to a file pattern below data.root={data.root!r}")
        for row in source:
            texts = self.cleaned(row)
            if isinstance(texts, BadRow):
                if data.on_bad_row == "fail":
                    raise DataError(texts.describe(source.shards[row.id[0]].name))
                continue
            if self._belongs(texts, split):
                yield source.name_of(row.id), texts

    def cleaned(self, row: Row) -> Texts | BadRow:
        return clean_row(row, self.roles, self.recipe.data.columns, self._clean)

    def _windows(self, split: str) -> Iterator[list[tuple[str, Texts]]]:
        most = self.recipe.evaluation.max_rows
        rows = iter(self.texts(split) if most is None else self._sample(split, most))
        while window := list(islice(rows, EVAL_WINDOW)):
            yield window

    def _sample(self, split: str, most: int) -> list[tuple[str, Texts]]:
        """At most so many rows of a split, in order: those of the least keys, so that they are the same every time.

        The first rows of a split are often all of one class. The sample is kept: later evaluations read no file.
        """
        if (split, most) not in self._samples:
            rows = enumerate(islice(self.texts(split), max(most, SAMPLED_FROM)))
            least = heapq.nsmallest(most, rows, key=lambda row: key("evaluation", row[1][0]))
            self._samples[split, most] = [found for _, found in sorted(least, key=itemgetter(0))]
        return self._samples[split, most]

    def _belongs(self, texts: Texts, split: str) -> bool:
        share = self.recipe.data.validation
        if not isinstance(share, float) or split == "test":
            return True
        return held_out(texts, share) == (split == "validation")

    def _encode(self, rows: list[Row]) -> list[tuple[Example, int] | None]:
        cleaned: list[Texts | None] = []
        for row in rows:
            texts = self.cleaned(row)
            if isinstance(texts, BadRow):
                if self.recipe.data.on_bad_row == "fail":
                    raise DataError(texts.describe(self.train.shards[row.id[0]].name))
                cleaned.append(None)
            else:
                cleaned.append(texts if self._belongs(texts, "train") else None)
        kept = [(row, texts) for row, texts in zip(rows, cleaned, strict=True) if texts is not None]
        encoded = iter(self.task.encode([texts for row, texts in kept if row.example is None]))
        ready = iter([row.example if row.example is not None else next(encoded) for row, _ in kept])
        made = [next(ready) if texts is not None else None for texts in cleaned]
        return [(example, self.task.length(example)) if example is not None else None for example in made]

    def _pack(self, examples: list[Example]) -> list[tuple[Example, int, list[int]]]:
        return [(example, self.task.length(example), begun) for example, begun in self.task.pack(examples)]

    def _label(self, row: Row) -> str | None:
        if "label" not in self.roles:
            return None
        column = "label" if row.example is not None else self.recipe.data.columns.get("label", "label")
        value = value_at(row.values, column)
        return None if value is None or value is MISSING else str(value)


def batches_by_length(lengths: Sequence[int], padded: Callable[[int], int], limit: int) -> list[list[int]]:
    """Numbers of texts in batches of like lengths, each of at most `limit` padded tokens unless one alone has more."""
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if not batches or padded(lengths[i]) * (len(batches[-1]) + 1) > limit:
            batches.append([])
        batches[-1].append(i)
    return batches


def deals_whole_shards(source: Source, plan: LanePlan) -> bool:
    """Whether whole shards go to lanes: there are at least as many as lanes, and every lane gets as much, in bytes.

    The sum for each lane matters, not one shard's size. Shards of unknown size count as equal, so their number must
    be a multiple of the lanes; so do prepared ones, to which rows were dealt in turn.
    """
    shards = source.shards
    if len(shards) < plan.lanes:
        return False
    sizes = [shard.size for shard in shards]
    if any(size is None for size in sizes) or shards[0].format == "prepared":
        return len(shards) % plan.lanes == 0
    known = sorted(size for size in sizes if size is not None)
    smallest = sum(known[: len(known) // plan.lanes])
    largest = sum(heapq.nlargest(-(-len(known) // plan.lanes), known))
    return smallest > 0 and largest <= 1.1 * smallest
