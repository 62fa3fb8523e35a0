"""The jobs: a shipped recipe each, its rows as token ids, and the model that all candidates begin with."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.corpus import Prepared, prepare
from trainer.engine.corpus import Corpus
from trainer.recipe import Recipe
from trainer.task.base import Row


@dataclass(frozen=True)
class Job:
    """A training that several trainers can do.

    Attributes:
        recipe: name of the shipped recipe.
        corpus: folder below --data.
        kind: of rows and model, see `encoded`.
        overrides: of the recipe, where it uses what the peers do not have.
    """

    recipe: str
    corpus: str
    kind: str
    overrides: tuple[str, ...] = ()


MICRO_BATCH = 2048  # tokens: larger ones are not faster on a CPU, and take the memory of all candidates
TRAIN_ONLY = ("data.validation=null", "data.test=null", "loop.early_stopping.metric=loss")
SAME_OPTIMIZER = ("optim.schedule=inverse_sqrt", "optim.averaging={kind: none}")
JOBS = {
    "fine_tuning": Job("imdb", "imdb", "classifier", ("model.pooling=auto",)),
    "translation": Job("multi30k", "multi30k", "translation", SAME_OPTIMIZER),
    "ner": Job("btc-ner", "btc", "tagger"),
    "causal": Job("gpt2-imdb", "imdb", "causal"),
    # relative rates are ours alone
    "t5": Job(
        "t5-multi30k", "multi30k", "text_to_text", (*SAME_OPTIMIZER, "optim.relative_rates=false", "optim.lr=1e-3")
    ),
    "sentences": Job("sick-entailment", "sick", "classifier"),
}


@dataclass(frozen=True)
class Work:
    """A job that is ready to be measured: settings of our candidate, and of the peers."""

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


def batches_of(recipe: Recipe, rows: Sequence[dict[str, Any]]) -> tuple[int, int]:
    """Return the rows of a batch and the batches of a step that make a step as large as the recipe's, on average.

    A step of the recipe is its lanes, each filled to `tokens_per_batch`.
    """
    data = recipe.data
    mean = sum(max(len(row["input_ids"]), len(row.get("trg", ()))) for row in rows) / len(rows)
    by_tokens = data.tokens_per_batch / mean if data.tokens_per_batch else float("inf")
    step = data.lanes * min(by_tokens, data.rows_per_batch or float("inf"))
    count = max(1, round(step * mean / MICRO_BATCH))
    return max(1, round(step / count)), count


def make(job: Job, data: Path, folder: Path, sentences: int, seed: int = 1) -> Work:
    """Prepare a job below `folder`.

    Args:
        data: folder of the corpora.
        sentences: test rows that a translation benchmark translates.
    """
    root, splits = data / job.corpus, list(TRAIN_ONLY)
    test: list[dict[str, str]] = []
    if job.kind == "translation":
        root, test = _with_some_test_rows(root, folder / "corpus", sentences)
        splits = []
    prepared = prepare(root, [*splits, *job.overrides], folder / "tokenizer", job.recipe)
    recipe, task = prepared.recipe, prepared.task()
    texts = [row for _, row in Corpus(recipe, task).texts("train")]
    rows = list(encoded(job.kind, task, recipe, texts))
    if job.recipe == "sick-entailment":  # sentence-transformers tokenizes in its collator
        for row, one in zip(rows, texts, strict=True):
            row["texts"] = [one["text"], one["text_pair"]]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    optim, data_section = recipe.optim, recipe.data
    batch, accumulate = batches_of(recipe, rows)
    common = {
        "kind": job.kind, "rows": str(folder / "rows.jsonl"), "batch": batch, "accumulate": accumulate, "seed": seed,
        "learning_rate": optim.lr, "label_smoothing": optim.label_smoothing, "max_length": data_section.max_length,
        "pad": task.tokenizer.pad_token_id or 0, "rows_per_batch": 32,
    }  # fmt: skip
    if job.kind == "translation":
        sources = task.encode([{"src": row[recipe.data.columns["src"]], "trg": ""} for row in test])
        common |= {
            "shape": prepared.shape(), "betas": optim.betas, "warmup_steps": optim.warmup_steps,
            "tokens_per_batch": data_section.tokens_per_batch, "micro_batches": data_section.lanes,
            "bucketed": True, "test": [one["src"] for one in sources],
            "beam_size": recipe.evaluation.beam_size, "length_penalty": recipe.evaluation.length_penalty,
        }  # fmt: skip
    else:  # the weights that ours begins with
        task.build_model().save_pretrained(folder / "model")
        task.tokenizer.save_pretrained(folder / "model")
        common["model"] = str(folder / "model")
    ours = {"recipe": job.recipe, "overrides": prepared.overrides, "translate": bool(test), "seed": seed}
    return Work(prepared, ours, common, [row[recipe.data.columns["trg"]] for row in test])


def _with_some_test_rows(root: Path, out: Path, count: int) -> tuple[Path, list[dict[str, str]]]:
    """Return a folder with the corpus and the first rows of its test split, and these rows."""
    out.mkdir()
    for name in ("train.jsonl", "val.jsonl"):
        (out / name).symlink_to((root / name).resolve())
    with (root / "test.jsonl").open(encoding="utf-8") as file:
        lines = list(islice(file, count))
    (out / "test.jsonl").write_text("".join(lines), encoding="utf-8")
    return out, [json.loads(line) for line in lines]
