"""The jobs: a shipped recipe each, its rows as token ids, and a model of the same shape for the peers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.corpus import Prepared, prepare
from benchmarks.peers.cut import cut
from trainer.data.lane_plan import Bookmark
from trainer.data.loader import load_epoch
from trainer.engine.corpus import Corpus
from trainer.recipe import Recipe
from trainer.recipe_loading import load_recipe
from trainer.task.base import Row


@dataclass(frozen=True)
class Job:
    """A training that several trainers can do.

    Attributes:
        recipe: name of the shipped recipe.
        corpus: folder below --data.
        kind: of rows and model, see `encoded`.
        overrides: of the recipe, where it uses what the peers do not have, or says what is faster.
        scored: the split on which the trained weights are scored, None for translations.
        variants: of rankzero that are measured separately: further overrides, by their name in the table.
        metric: that the table shows. With `perplexity` nothing is predicted: so short a training writes no text.
    """

    recipe: str
    corpus: str
    kind: str
    overrides: tuple[str, ...] = ()
    scored: str | None = "test"
    metric: str = "accuracy"
    variants: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


SAMPLE = 32  # steps
MICRO_BATCH = 2048  # tokens: larger ones are not faster on a CPU, and take the memory of all candidates
SAME_OPTIMIZER = ("optim.schedule=inverse_sqrt", "optim.averaging={kind: none}")
UNFUSED = {"one lane in a forward": ("loop.fuse_lanes=1",)}  # of recipes that say that more are faster
JOBS = {
    "fine_tuning": Job("imdb", "imdb", "classifier", ("model.pooling=auto",)),
    "translation": Job("multi30k", "multi30k", "translation", SAME_OPTIMIZER, None),
    "ner": Job("btc-ner", "btc", "tagger", ("loop.fuse_lanes=2",), metric="f1", variants=UNFUSED),
    "causal": Job("gpt2-imdb", "imdb", "causal", scored="validation", metric="perplexity"),
    # relative rates are ours alone
    "t5": Job(
        "t5-multi30k",
        "multi30k",
        "text_to_text",
        (*SAME_OPTIMIZER, "optim.relative_rates=false", "optim.lr=1e-3"),
        metric="perplexity",
    ),
    "sentences": Job("sick-entailment", "sick", "classifier", ("loop.fuse_lanes=4",), variants=UNFUSED),
}


@dataclass(frozen=True)
class Work:
    """A job that is ready to be measured: settings of our candidate, and of the peers.

    Attributes:
        references: of the translated rows; none if nothing is translated.
    """

    prepared: Prepared
    ours: dict[str, Any]
    peers: dict[str, Any]
    references: list[str]


def encoded(kind: str, task: Any, recipe: Recipe, texts: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """Yield the training rows as token ids.

    Rows have `input_ids`, and `label` (a class), or `trg`: target tokens with [EOS], or a label for each token.
    """
    examples = task.encode(texts)
    if kind == "causal":  # blocks of full length, as in the library's example run_clm.py
        size, ids = recipe.data.max_length, [i for example in examples for i in example["input_ids"]]
        yield from ({"input_ids": ids[at : at + size]} for at in range(0, len(ids) - size + 1, size))
        return
    if kind == "tagger":
        examples = [window for window, _ in task.pack(examples)]
    for example in examples:
        if kind == "classifier":
            types = {"token_type_ids": example["token_type_ids"]} if "token_type_ids" in example else {}
            yield {"input_ids": example["input_ids"], "label": example["label"][0], **types}
        elif kind == "translation":
            yield {"input_ids": example["src"], "trg": [*example["trg"], task.eos_id]}
        else:
            yield {"input_ids": example["input_ids"], "trg": example["labels"]}


def step_tokens(recipe: Recipe, task: Any) -> float:
    """Return the mean tokens of a step of the recipe, without padding, as the first SAMPLE steps have them."""
    lanes = range(recipe.data.lanes)
    options = {"inputs": task.inputs, "workers": 0, "prefetch": recipe.data.prefetch, "pin_memory": False}
    marks = {lane: Bookmark(0) for lane in lanes}
    groups = [[lane] for lane in lanes]
    steps = load_epoch(Corpus(recipe, task).lanes(), task.collate, task.tokens, groups, marks, **options)
    counts = [sum(loaded.tokens for loaded in step if loaded is not None) for step in islice(steps, SAMPLE)]
    return sum(counts) / len(counts)


def batches_of(tokens: float, kind: str, rows: Sequence[dict[str, Any]]) -> tuple[int, int]:
    """Return the rows of a batch and the batches of a step that have as many `tokens` as a step of the recipe."""
    keys = ("input_ids", "trg") if kind in ("translation", "text_to_text") else ("input_ids",)
    mean = sum(len(row[key]) for row in rows for key in keys) / len(rows)
    count = max(1, round(tokens / MICRO_BATCH))
    return max(1, round(tokens / mean / count)), count


def make(job: Job, data: Path, folder: Path, rows_of: Mapping[str, int], seed: int = 1) -> Work:
    """Prepare a job below `folder`.

    Args:
        data: folder of the corpora.
        rows_of: of a split of the corpus at most; 0 for all.
    """
    splits = load_recipe(job.recipe, [f"data.root={json.dumps(str(data))}"]).data
    files = {split: getattr(splits, split) for split in rows_of}
    patterns = [(file, rows_of[split]) for split, file in files.items() if isinstance(file, str)]
    cut(data / job.corpus, folder / "corpus", patterns)
    prepared = prepare(folder / "corpus", list(job.overrides), folder / "tokenizer", job.recipe)
    recipe, task = prepared.recipe, prepared.task()
    texts = [row for _, row in Corpus(recipe, task).texts("train")]
    rows = list(encoded(job.kind, task, recipe, texts))
    if job.recipe == "sick-entailment":  # sentence-transformers tokenizes in its collator
        for row, one in zip(rows, texts, strict=True):
            row["texts"] = [one["text"], one["text_pair"]]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    optim, data_section = recipe.optim, recipe.data
    batch, accumulate = batches_of(step_tokens(recipe, task), job.kind, rows)
    common = {
        "kind": job.kind, "rows": str(folder / "rows.jsonl"), "batch": batch, "accumulate": accumulate, "seed": seed,
        "learning_rate": optim.lr, "label_smoothing": optim.label_smoothing, "max_length": data_section.max_length,
        "pad": task.tokenizer.pad_token_id or 0, "rows_per_batch": 32, "betas": optim.betas,
        "warmup_steps": optim.warmup_steps, "weight_decay": optim.weight_decay,
    }  # fmt: skip
    references: list[str] = []
    if job.kind == "translation":
        test = [row for _, row in Corpus(recipe, task).texts("test")]
        references = [row["trg"] for row in test]
        sources = [one["src"] for one in task.encode(test)]
        longest = (
            recipe.evaluation.max_length_factor * sum(map(len, sources)) / len(sources) + 10
        )  # as ours, on average
        common |= {
            "shape": prepared.shape(), "longest_output": round(longest),
            "tokens_per_batch": data_section.tokens_per_batch, "micro_batches": data_section.lanes,
            "bucketed": True, "test": sources,
            "beam_size": recipe.evaluation.beam_size, "length_penalty": recipe.evaluation.length_penalty,
        }  # fmt: skip
    else:  # pretrained weights, or random ones of the same shape
        task.build_model().save_pretrained(folder / "model")
        task.tokenizer.save_pretrained(folder / "model")
        common["model"] = str(folder / "model")
    ours = {"recipe": job.recipe, "overrides": prepared.overrides, "seed": seed}
    return Work(prepared, ours, common, references)
