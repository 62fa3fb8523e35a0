"""The training rows: counted, and a sample of them passed through the recipe's own lanes and `collate`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from launch.tools.plan.sample import lanes_of_sample, sampled
from trainer.data.counter_rng import uniform
from trainer.data.fingerprints import is_large
from trainer.data.lane_plan import Bookmark
from trainer.data.loader import load_epoch
from trainer.data.roles import Label
from trainer.data.sources import MixedSource, Row, Source, open_split
from trainer.data.target_tokenizer import target_of
from trainer.data.tokenization import train_tokenizers, training_texts
from trainer.data_parallel import DataParallel
from trainer.engine.corpus import Corpus, MixedRow
from trainer.engine.setup import ready_tokenizer
from trainer.errors import DataError
from trainer.recipe import Recipe
from trainer.task.base import Task
from trainer.task.registry import make_task, roles_of

SAMPLE = 4_000_000  # characters of the sampled rows, about
TOKENIZER_ROWS = 5_000  # rows that a tokenizer is trained on, for the lengths
Shapes = dict[str, tuple[int, ...]]  # of a micro-batch's tensors, all of integers


class Epoch(NamedTuple):
    """Totals of an epoch, and the shapes of the micro-batch with most pairs of tokens."""

    rows: int
    steps: int
    tokens: int
    padded: int
    largest: Shapes


class Rows(NamedTuple):
    """The training rows that a plan reads.

    Attributes:
        source: all of them, or the first ones of a large corpus.
        counted: numbers of all rows, as a survey reports them. read: of those of `source`.
        characters: of the texts of `source`.
        origin: of `counted`.
        most: rows of the sample, at most. None: an epoch of `source`.
    """

    source: Source
    counted: dict[str, Any]
    read: dict[str, Any]
    characters: int
    origin: str
    most: int | None = None


def read_corpus(recipe: Recipe) -> tuple[Task, Epoch, dict[str, Any], dict[str, Any]]:
    """Return the task with a tokenizer of the right size, an epoch, and facts of its vocabulary and its rows."""
    found, lanes = _rows(recipe), recipe.data.lanes
    tokenizer, origin = _tokenizer(recipe, found.source, found.read)
    labels = [label for role in roles_of(recipe).values() if isinstance(role, Label) for label in role.values]
    task = make_task(recipe, tokenizer, {"train": {**found.counted, "rows": 1, "labels": dict.fromkeys(labels, 1)}})
    corpus = _SampledCorpus(recipe, task, found)
    sample = _first_epoch(corpus, found.most)
    held_out = recipe.data.validation if isinstance(recipe.data.validation, float) else 0
    rows = (corpus.epoch_rows() if recipe.data.mix else None) or found.counted["rows"]
    rows = round(rows * (1 - held_out)) if corpus.share < 1 or found.most else sample.rows
    if rows < lanes:
        raise DataError(
            f"data.lanes={lanes} is more than the {rows} rows of data.train: set data.lanes to {rows} or less"
        )
    factor = rows / max(1, sample.rows)
    steps = round(sample.steps * factor * corpus.recipe.data.lanes / lanes)
    vocabulary = {"vocabulary": len(tokenizer), "vocabulary_from": origin}
    if (target := target_of(tokenizer)) is not tokenizer:
        vocabulary["target_vocabulary"] = len(target)
    counts = {"rows": rows, "rows_from": found.origin, "sampled_rows": sample.rows}
    epoch = Epoch(rows, max(1, steps), round(sample.tokens * factor), round(sample.padded * factor), sample.largest)
    return task, epoch, vocabulary, counts


def _rows(recipe: Recipe) -> Rows:
    """Count all rows, or read the first ones of a large corpus."""
    source = open_split(recipe.data, "train", roles_of(recipe))
    assert source is not None, "data.train is required"
    if is_large(source):
        first = sampled(recipe.data, source)
        numbers, read = _report(recipe, first.rows), _report(recipe, first.read)
        return Rows(first.source, numbers, read, first.characters, first.origin, read["rows"])
    counts, characters = [0] * max(1, len(recipe.data.mix)), 0
    for row in source:
        counts[source.corpus_of(row.id[0]) if isinstance(source, MixedSource) else 0] += 1
        characters += sum(len(value) for value in row.values.values() if isinstance(value, str))
    return Rows(source, _report(recipe, counts), _report(recipe, counts), characters, "counted")


def _report(recipe: Recipe, rows: Sequence[int]) -> dict[str, Any]:
    """Return rows by corpus as a survey reports them."""
    names = [entry.name for entry in recipe.data.mix]
    return {"rows": sum(rows), "corpora": {name: {"rows": n} for name, n in zip(names, rows, strict=False)}}


def _tokenizer(recipe: Recipe, source: Source, counted: dict[str, Any]) -> tuple[Any, str]:
    """Return the tokenizer, and where it comes from. One that is trained on some of the rows is filled up."""
    if (tokenizer := ready_tokenizer(recipe)) is not None:
        return tokenizer, f"tokenizer of {recipe.tokenizer_name or recipe.data.root}"
    training = recipe.tokenizer_training
    assert training is not None
    texts = training_texts(source, recipe.data, roles_of(recipe), TOKENIZER_ROWS, counted)
    tokenizer = train_tokenizers(texts, training, recipe.data.max_length)
    if counted["rows"] <= TOKENIZER_ROWS:
        return tokenizer, "of a tokenizer trained on all rows here and not kept"
    for side, size in {tokenizer: training.vocab_size, target_of(tokenizer): training.target_size}.items():
        side.add_tokens([f"[plan {i}]" for i in range(size - len(side))])
    return tokenizer, f"tokenizer.train.vocab_size; lengths by a tokenizer trained on {TOKENIZER_ROWS:,} rows"


class _SampledCorpus(Corpus):
    """The recipe's corpus with a share of its training rows, spread evenly and the same ones each time."""

    def __init__(self, recipe: Recipe, task: Task, found: Rows) -> None:
        if found.most is not None:
            lanes = lanes_of_sample(recipe.data.lanes, recipe.loop.fused_before_measuring)
            smaller = {"lanes": lanes, "block_rows": min(recipe.data.block_rows, found.most // lanes)}
            recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update=smaller)})
        super().__init__(recipe, task)
        self._train = found.source
        self.share = min(1.0, SAMPLE / max(1, found.characters))

    def _encode(self, rows: list[Row | MixedRow]) -> list[Any]:
        kept = [uniform("plan", *row.id) < self.share for row in rows]
        encoded = iter(super()._encode([row for row, keep in zip(rows, kept, strict=True) if keep]))
        return [next(encoded) if keep else None for keep in kept]


def _first_epoch(corpus: Corpus, most: int | None) -> Epoch:
    """Return an epoch, or the first `most` rows of it."""
    recipe, task = corpus.recipe, corpus.task
    lanes, bookmarks = recipe.data.lanes, {lane: Bookmark() for lane in range(recipe.data.lanes)}
    groups = DataParallel(0, 1).lane_groups(lanes, recipe.loop.fused_before_measuring)
    options: Any = {"workers": 0, "prefetch": 1, "pin_memory": False, "inputs": task.inputs, "corrupt": task.corrupt}
    rows = steps = tokens = padded = 0
    shapes: dict[str, Shapes] = {}
    for step in load_epoch(corpus.lanes(), task.training_batch, task.tokens, groups, bookmarks, **options):
        steps += 1
        for loaded in filter(None, step):
            rows, tokens, padded = rows + loaded.rows, tokens + loaded.tokens, padded + loaded.padded
            found = {name: tuple(tensor.shape) for name, tensor in loaded.inputs.items()}
            shapes[str(found)] = found
        if most is not None and rows >= most:
            break

    def size(shapes: Shapes) -> tuple[int, int]:  # of two alike the one with a mask
        return sum(shapes[name][0] * shapes[name][1] ** 2 for name in task.inputs), len(shapes)

    largest = max(shapes.values(), key=size)
    return Epoch(rows, steps, tokens, padded, largest)
