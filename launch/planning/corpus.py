"""What the training rows look like: counted, sampled, and run through the recipe's own lanes and `collate`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from launch.planning.rehearsal import Shapes
from launch.planning.sample import Sample
from trainer.data.counter_rng import uniform
from trainer.data.labels import label_form
from trainer.data.lanes import Bookmark
from trainer.data.loader import Loaded, load_epoch, owned_lanes
from trainer.data.paths import value_at
from trainer.data.prepare import prepared_tokenizer
from trainer.data.sources import Row, Source, open_split
from trainer.data.tokenization import TrainingTexts, load_tokenizer, train_tokenizer
from trainer.engine.corpus import Corpus
from trainer.errors import DataError
from trainer.recipe import Recipe, changed_keys, read_yaml
from trainer.rundir import RunDir, read_json
from trainer.task.base import Task
from trainer.task.registry import make_task, roles_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

LEARNT = 5_000  # rows that a tokenizer is trained on, to have lengths


@dataclass(frozen=True)
class Data:
    """What the rows are, and where that is known from.

    Attributes:
        rows: of one epoch.
        rows_from, vocabulary_from: for people.
        sampled: rows that were run through the lanes; all of them where `whole`.
        steps: optimizer steps of an epoch.
        tokens: of an epoch, source and target, without padding.
        padded: the same, with padding.
        largest: shapes of the micro-batches that may need most memory (of `loop.fuse_lanes` lanes, where fused).
    """

    rows: int
    rows_from: str
    vocabulary: int
    vocabulary_from: str
    sampled: int
    whole: bool
    steps: int
    tokens: int
    padded: int
    largest: list[Shapes]


def look(recipe: Recipe, run: RunDir) -> tuple[Task, Data]:
    """The task with a tokenizer of the right size, and what its rows are.

    Raises:
        DataError: no data, or fewer rows than lanes.
        UsageError: a pretrained tokenizer cannot be had.
    """
    source = open_split(recipe.data, "train")
    assert source is not None, "data.train is required"
    sample = Sample(source).fill()
    before = run if _agrees(recipe, run) else None
    tokenizer, origin, trained_here = _tokenizer(recipe, sample, before)
    task = make_task(recipe, tokenizer, {"train": {"labels": _labels(recipe, sample)}})
    found = _Epoch(recipe, task, sample).walk()
    rows, rows_from = _rows(recipe, sample, found, before)
    if rows < recipe.data.lanes:
        raise DataError(
            f"data.lanes={recipe.data.lanes} is more than the {rows} rows of data.train: each lane needs a row; "
            f"set data.lanes to {rows} or less"
        )
    if trained_here and recipe.tokenizer_training and not (sample.whole and sample.kept <= LEARNT):
        missing = recipe.tokenizer_training.vocab_size - len(tokenizer)
        tokenizer.add_tokens([f"[plan {i}]" for i in range(missing)])
        origin = f"tokenizer.train.vocab_size; lengths by a tokenizer trained on {LEARNT:,} rows"
    share = rows / max(1, found.rows)
    data = Data(
        rows, rows_from, len(tokenizer), origin, found.rows, sample.whole,
        max(1, round(found.steps * share)), round(found.tokens * share), round(found.padded * share), found.largest(),
    )  # fmt: skip
    return task, data


def _agrees(recipe: Recipe, run: RunDir) -> bool:
    """Whether a run directory has been made from the same data, tokenizer and task."""
    if not run.recipe.exists():
        return False
    changed = changed_keys(read_yaml(run.recipe), recipe.model_dump(mode="json"))
    return not any(key.startswith(("data.", "tokenizer.", "task.")) for key in changed)


# -- rows --------------------------------------------------------------------------------------------------------------


def _labels(recipe: Recipe, sample: Sample) -> dict[str, int]:
    """How often each label occurs in the sample, for balanced class weights."""
    column = recipe.data.columns.get("label", "label")
    known = roles_of(recipe).get("label") or frozenset()
    counts = Counter(label_form(value_at(row.values, column), known) for rows in sample.rows_of for row in rows)
    return {label: count for label, count in counts.items() if isinstance(label, str) and label in known}


def _rows(recipe: Recipe, sample: Sample, found: _Epoch, before: RunDir | None) -> tuple[int, str]:
    if before is not None and (manifest := read_json(before.manifest)):
        return int(manifest["data"]["train"]["rows"]), f"as {before.manifest} says"
    if sample.whole:
        return found.rows, "counted"
    held = recipe.data.validation if isinstance(recipe.data.validation, float) else 0.0
    how = "counted, not cleaned" if sample.estimate is None else f"estimated from {sample.read:,} of them"
    return round((sample.estimate or sample.read) * (1 - held)), how


# -- tokens ------------------------------------------------------------------------------------------------------------


def _tokenizer(recipe: Recipe, sample: Sample, before: RunDir | None) -> tuple[PreTrainedTokenizerFast, str, bool]:
    """The tokenizer, where it comes from, and whether it was trained here."""
    if before is not None and (before.tokenizer / "tokenizer.json").exists():
        return load_tokenizer(str(before.tokenizer)), f"tokenizer of {before.path}", False
    if (prepared := prepared_tokenizer(recipe)) is not None:
        return prepared, f"tokenizer of {recipe.data.root}", False
    if recipe.tokenizer_name is not None:
        return load_tokenizer(recipe.tokenizer_name), f"tokenizer of {recipe.tokenizer_name}", False
    settings = recipe.tokenizer_training
    assert settings is not None
    texts = TrainingTexts(_Kept(sample), recipe.data, roles_of(recipe), LEARNT)
    made = train_tokenizer(texts, settings, recipe.data.max_length)
    return made, "of a tokenizer trained on all rows here and not kept", True


class _Kept(Source):
    """The rows of a sample, one after another."""

    def __init__(self, sample: Sample) -> None:
        super().__init__(sample.shards)
        self._sample = sample

    def __iter__(self) -> Iterator[Row]:
        """Those with the smallest hashes first: the first of them are spread over the corpus."""
        rows = [row for rows in self._sample.rows_of for row in rows]
        if len(rows) > LEARNT:
            rows.sort(key=lambda row: uniform("plan", *row.id))
        yield from rows


# -- micro-batches -----------------------------------------------------------------------------------------------------


class _SampleCorpus(Corpus):
    """The recipe's corpus, its training rows those of the sample."""

    def __init__(self, recipe: Recipe, task: Task, sample: Sample) -> None:
        super().__init__(recipe, task)
        self._kept = sample

    @property
    def train(self) -> Source:
        return self._kept


@dataclass
class _Epoch:
    """The first epoch of the sample, as one rank would be given it."""

    recipe: Recipe
    task: Task
    sample: Sample
    rows: int = 0
    steps: int = 0
    tokens: int = 0
    padded: int = 0
    most: dict[str, tuple[float, Shapes]] = field(default_factory=dict)

    def walk(self) -> _Epoch:
        data, task = self.recipe.data, self.task
        for step in load_epoch(
            _SampleCorpus(self.recipe, task, self.sample).lanes(),
            task.collate,
            task.tokens,
            owned_lanes(data.lanes, 0, 1, self.recipe.loop.fuse_lanes),
            {lane: Bookmark() for lane in range(data.lanes)},
            inputs=task.inputs,
            corrupt=task.corrupt,
            workers=0,
            prefetch=1,
            pin_memory=False,
        ):
            self.steps += 1
            for loaded in step:
                if loaded is not None:
                    self._take(loaded)
        return self

    def _take(self, loaded: Loaded) -> None:
        self.rows += loaded.rows
        self.tokens += loaded.tokens
        self.padded += loaded.padded
        shapes = {name: tuple(tensor.shape) for name, tensor in loaded.inputs.items()}
        inputs = [shapes[name] for name in self.task.inputs]
        scores = {
            "tokens": float(loaded.padded),
            "attention": float(sum(rows * width**2 for rows, width in inputs)),
            "labels": float(loaded.inputs["labels"].numel()),
        }
        for name, score in scores.items():
            if score > self.most.get(name, (0.0, {}))[0]:
                self.most[name] = score, shapes

    def largest(self) -> list[Shapes]:
        found: list[Shapes] = []
        for _, shapes in self.most.values():
            if shapes not in found:
                found.append(shapes)
        return found
