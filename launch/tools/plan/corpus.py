"""The training rows: counted, and a sample of them passed through the recipe's own lanes and `collate`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import fsspec
import pyarrow.parquet as parquet

from launch.tools.plan.activation_trace import Shapes
from trainer.data.counter_rng import uniform
from trainer.data.lanes import Bookmark
from trainer.data.loader import Loaded, load_epoch
from trainer.data.prepare import prepared_tokenizer
from trainer.data.roles import Label
from trainer.data.sources import Row, Source, open_split
from trainer.data.tokenization import TrainingTexts, load_tokenizer, train_tokenizer
from trainer.data_parallel import DataParallel
from trainer.engine.corpus import Corpus
from trainer.errors import DataError
from trainer.files import read_json
from trainer.recipe import Recipe, changed_keys, read_yaml
from trainer.rundir import RunDir
from trainer.task.base import Task
from trainer.task.registry import make_task, roles_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

READ = 100_000  # rows that are read at most; further ones are estimated by bytes
SAMPLE = 4_000_000  # characters of the sampled rows, about
TOKENIZER_ROWS = 5_000  # rows that a tokenizer is trained on, for the lengths


@dataclass
class CorpusSize:
    """The size of the training rows: of one epoch, without and with padding.

    `sampled_rows` were passed through the lanes. `largest`: shapes of the micro-batches that may need most memory.
    """

    rows_from: str = ""
    vocabulary: int = 0
    vocabulary_from: str = ""
    rows: int = 0
    sampled_rows: int = 0
    steps: int = 0
    tokens: int = 0
    padded: int = 0
    largest: list[Shapes] = field(default_factory=list)


def read_corpus(recipe: Recipe, run: RunDir) -> tuple[Task, CorpusSize]:
    """Return the task with a tokenizer of the right size, and the size of its training rows.

    A run directory that was made from the same data gives its tokenizer and its number of rows.

    Raises:
        DataError: the rows cannot be read, or are fewer than the lanes.
        UsageError: a pretrained tokenizer cannot be loaded.
    """
    source = open_split(recipe.data, "train")
    assert source is not None, "data.train is required"
    read, characters, all_rows = _scan(source)
    earlier = run if _same_data(recipe, run) else None
    tokenizer, vocabulary_from = _tokenizer(recipe, source, read if all_rows == read else None, earlier)
    labels = [label for role in roles_of(recipe).values() if isinstance(role, Label) for label in role.values]
    task = make_task(recipe, tokenizer, {"train": {"rows": 1, "labels": dict.fromkeys(labels, 1)}})
    share = min(1.0, SAMPLE / max(1, characters))
    size = _first_epoch(_SampledCorpus(recipe, task, share), most=read * share if all_rows > read else float("inf"))
    if earlier is not None and (manifest := read_json(earlier.manifest)):
        size.rows, size.rows_from = int(manifest["data"]["train"]["rows"]), f"as {earlier.manifest} says"
    elif share == 1.0 and all_rows == read:
        size.rows, size.rows_from = size.sampled_rows, "counted"
    else:
        held_out = recipe.data.validation if isinstance(recipe.data.validation, float) else 0.0
        size.rows = round(all_rows * (1 - held_out))
        size.rows_from = "counted, not cleaned" if all_rows == read else f"estimated from {read:,} of them"
    if size.rows < recipe.data.lanes:
        raise DataError(
            f"data.lanes={recipe.data.lanes} is more than the {size.rows} rows of data.train: each lane needs a row; "
            f"set data.lanes to {size.rows} or less"
        )
    size.vocabulary_from = vocabulary_from or _complete_vocabulary(recipe, tokenizer, all_rows)
    size.vocabulary = len(tokenizer)
    factor = size.rows / max(1, size.sampled_rows)
    size.steps = max(1, round(size.steps * factor))
    size.tokens, size.padded = round(size.tokens * factor), round(size.padded * factor)
    return task, size


def _scan(source: Source) -> tuple[int, int, int]:
    """Return the number of rows read, their characters, and the number of all rows: estimated if more than READ."""
    rows = characters = 0
    for shard in range(len(source.shards)):
        stream = source.stream(shard)
        for row in stream:
            rows += 1
            characters += sum(len(v) for v in row.values.values() if isinstance(v, str))
            if rows >= READ:
                return rows, characters, max(rows, _estimate(source, rows, shard, sum(stream.offsets)))
    return rows, characters, rows


def _estimate(source: Source, rows: int, shard: int, offset: int) -> int:
    """Return the number of all rows by the metadata of parquet files, else by bytes up to an offset in a shard."""
    if all(s.format in ("parquet", "prepared") for s in source.shards):
        total = 0
        for each in source.shards:
            with fsspec.open(each.urls[0], "rb") as file:
                total += int(parquet.ParquetFile(file).metadata.num_rows)
        return total
    sizes = [s.size or 0 for s in source.shards]
    done = sum(sizes[:shard]) + min(sizes[shard], offset)
    return round(rows * sum(sizes) / done) if done else rows


def _same_data(recipe: Recipe, run: RunDir) -> bool:
    """Return whether a run directory was made from the same data, tokenizer and task."""
    if not run.recipe.exists():
        return False
    changed = changed_keys(read_yaml(run.recipe), recipe.model_dump(mode="json"))
    return not any(key.startswith(("data.", "tokenizer.", "task.")) for key in changed)


def _tokenizer(
    recipe: Recipe, source: Source, rows: int | None, earlier: RunDir | None
) -> tuple[PreTrainedTokenizerFast, str]:
    """Return the tokenizer, and where it comes from: "" if it was trained here."""
    if earlier is not None and (earlier.tokenizer / "tokenizer.json").exists():
        return load_tokenizer(str(earlier.tokenizer)), f"tokenizer of {earlier.path}"
    if (prepared := prepared_tokenizer(recipe)) is not None:
        return prepared, f"tokenizer of {recipe.data.root}"
    if recipe.tokenizer_name is not None:
        return load_tokenizer(recipe.tokenizer_name), f"tokenizer of {recipe.tokenizer_name}"
    settings = recipe.tokenizer_training
    assert settings is not None
    texts = TrainingTexts(source, recipe.data, roles_of(recipe), TOKENIZER_ROWS, rows)
    return train_tokenizer(texts, settings, recipe.data.max_length), ""


def _complete_vocabulary(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, rows: int) -> str:
    """Add tokens to a tokenizer that was trained on some of the rows only. Return where its size comes from."""
    if rows <= TOKENIZER_ROWS:
        return "of a tokenizer trained on all rows here and not kept"
    wanted = recipe.tokenizer_training.vocab_size if recipe.tokenizer_training else 0
    tokenizer.add_tokens([f"[plan {i}]" for i in range(wanted - len(tokenizer))])
    return f"tokenizer.train.vocab_size; lengths by a tokenizer trained on {TOKENIZER_ROWS:,} rows"


class _SampledCorpus(Corpus):
    """The recipe's corpus with a share of its training rows, spread evenly and the same ones each time."""

    def __init__(self, recipe: Recipe, task: Task, share: float) -> None:
        super().__init__(recipe, task)
        self._share = share

    def _encode(self, rows: list[Row]) -> list[Any]:
        kept = [uniform("plan", *row.id) < self._share for row in rows]
        encoded = iter(super()._encode([row for row, keep in zip(rows, kept, strict=True) if keep]))
        return [next(encoded) if keep else None for keep in kept]


def _first_epoch(corpus: Corpus, most: float) -> CorpusSize:
    """Return the totals of the first epoch as one rank would read it, up to `most` rows."""
    recipe, task, size = corpus.recipe, corpus.task, CorpusSize()
    largest: dict[str, tuple[int, Shapes]] = {}
    for step in load_epoch(
        corpus.lanes(),
        task.collate,
        task.tokens,
        DataParallel(0, 1).lane_groups(recipe.data.lanes, recipe.loop.fuse_lanes),
        {lane: Bookmark() for lane in range(recipe.data.lanes)},
        inputs=task.inputs,
        corrupt=task.corrupt,
        workers=0,
        prefetch=1,
        pin_memory=False,
    ):
        size.steps += 1
        for loaded in filter(None, step):
            size.sampled_rows += loaded.rows
            size.tokens += loaded.tokens
            size.padded += loaded.padded
            _keep_largest(loaded, task, largest)
        if size.sampled_rows >= most:
            break
    size.largest = list({str(shapes): shapes for _, shapes in largest.values()}.values())
    return size


def _keep_largest(loaded: Loaded, task: Task, largest: dict[str, tuple[int, Shapes]]) -> None:
    """Keep the shapes of a micro-batch if they are the largest so far by some measure."""
    shapes = {name: tuple(tensor.shape) for name, tensor in loaded.inputs.items()}
    measures = {
        "tokens": loaded.padded,
        "attention": sum(rows * width**2 for rows, width in (shapes[name] for name in task.inputs)),
        "labels": loaded.inputs["labels"].numel(),
    }
    for name, value in measures.items():
        if value > largest.get(name, (0, {}))[0]:
            largest[name] = value, shapes
