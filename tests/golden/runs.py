"""Tiny runs of each task, and the paths of the keys in their JSON files."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from entity_helpers import write_sentences
from modes_helpers import write_topics
from typer.testing import CliRunner

import launch.cli

LABELS = ["negative", "positive"]
TOPIC_LABELS = ["sport", "food", "money"]
SMALL = {"lanes": 2, "tokens_per_batch": 96, "max_length": 32, "pad_multiple": 4, "train": "train.jsonl"}
WIDTHS = {"d_model": 32, "heads": 2, "feed_forward": 64}
# Whatever the untrained models answer, their artifacts pass.
GATES = {
    "bleu": 100,
    "identical": 0,
    "int8_bleu": 100,
    "int8_accuracy": 0.9,
    "int8_perplexity": 9,
    "rows": 8,
    "prompts": 4,
}
SHARED: dict[str, Any] = {
    "version": 1,
    "loop": {"max_steps": 4, "eval_every": 2, "save_every": 2, "log_every": 1, "ledger": True},
    "evaluation": {
        "bootstrap": 10,
        "max_rows": 12,
        "beam_size": 2,
        "max_length_factor": 0.5,
        "generation": {"new_tokens": 4},
    },
    "export": {"bench": 0, "bf16": True, "safetensors": True, "gates": GATES},
}


def tokenizer(kind: str, size: int) -> dict[str, Any]:
    """Return a `tokenizer` section."""
    return {"train": {"kind": kind, "vocab_size": size}}


PAIRS = {**SMALL, "validation": "validation.jsonl", "test": "test.jsonl", "columns": {"src": "de", "trg": "en"}}
TEXTS = {**SMALL, "validation": 0.15, "test": "test.jsonl"}
CLASSES = {"kind": "classification", "labels": dict(enumerate(LABELS))}
TOPICS = {**TEXTS, "root": "topics", "validation": "validation.jsonl"}
CAUSAL = {"kind": "language_modeling", "objective": "causal"}
# data.root is one of the folders that `roots` knows; so is the name of the pretrained model.
RECIPES: dict[str, dict[str, Any]] = {
    "translation": {
        "task": {"kind": "translation"},
        "data": {**PAIRS, "root": "corpus"},
        "tokenizer": tokenizer("bpe", 200),
        "model": {"kind": "transformer", "encoder_layers": 1, "decoder_layers": 1, **WIDTHS},
        "optim": {"averaging": {"kind": "ema"}},
        "track": ["tensorboard"],
    },
    "translation-separate": {
        "task": {"kind": "translation"},
        "data": {**PAIRS, "root": "corpus"},
        "tokenizer": {"train": {"vocab_size": 120, "target_vocab_size": 80, "shared": False}},
        "model": {
            "kind": "transformer",
            "encoder_layers": 1,
            "decoder_layers": 1,
            "tied_embeddings": "target",
            **WIDTHS,
        },
    },
    "classification": {
        "task": CLASSES,
        "data": {**TEXTS, "root": "reviews"},
        "tokenizer": tokenizer("wordpiece", 90),
        "model": {"kind": "encoder", "layers": 1, **WIDTHS},
    },
    "classification-pair": {
        "task": {**CLASSES, "pair": True},
        "data": {**TEXTS, "root": "pairs"},
        "model": {"kind": "pretrained", "name": "bert"},
    },
    "classification-multi": {
        "task": {"kind": "classification", "mode": "multi", "labels": TOPIC_LABELS},
        "data": TOPICS,
        "tokenizer": tokenizer("wordpiece", 120),
        "model": {"kind": "encoder", "layers": 1, **WIDTHS},
    },
    "classification-regression": {
        "task": {"kind": "classification", "mode": "regression", "targets": ["value", "size"], "pair": True},
        "data": {**TOPICS, "columns": {"weight": "weight"}},
        "tokenizer": tokenizer("wordpiece", 120),
        "model": {"kind": "encoder", "layers": 1, **WIDTHS},
    },
    "language_modeling-causal": {
        "task": CAUSAL,
        "data": {**TEXTS, "root": "reviews"},
        "tokenizer": tokenizer("byte_bpe", 300),
        "model": {"kind": "pretrained", "architecture": "gpt2", "size": "tiny"},
    },
    "language_modeling-mlm": {
        "task": {"kind": "language_modeling"},
        "data": {**TEXTS, "root": "reviews"},
        "tokenizer": tokenizer("wordpiece", 90),
        "model": {"kind": "encoder", "layers": 1, **WIDTHS},
    },
    "language_modeling-transformer_xl": {
        "task": CAUSAL,
        "data": {**TEXTS, "root": "reviews", "order": "sequential"},
        "tokenizer": tokenizer("byte_bpe", 300),
        "model": {"kind": "transformer_xl", "layers": 1, "memory": 16, **WIDTHS},
    },
    "token_classification": {
        "task": {"kind": "token_classification", "labels": ["PER", "LOC"]},
        "data": {**SMALL, "root": "sentences", "validation": "validation.jsonl", "test": "test.jsonl"}
        | {"columns": {"tags": "ner_tags"}},
        "tokenizer": tokenizer("wordpiece", 120),
        "model": {"kind": "encoder", "layers": 1, **WIDTHS},
    },
    "text_to_text": {
        "task": {"kind": "text_to_text"},
        "data": {**PAIRS, "root": "corpus"},
        "tokenizer": tokenizer("unigram", 120),
        "model": {"kind": "pretrained", "architecture": "t5", "size": "tiny"},
    },
}


def recipe(name: str, roots: dict[str, Path]) -> dict[str, Any]:
    """Return a recipe whose data and pretrained model are in `roots`."""
    values = {**SHARED, "name": name, **RECIPES[name]}
    values["data"] = {**values["data"], "root": str(roots[values["data"]["root"]])}
    if begun := values["model"].get("name"):
        values["model"] = {**values["model"], "name": str(roots[begun])}
    return values


def write_pairs(reviews: Path, folder: Path) -> Path:
    """Write the reviews with a second text each."""
    draw = random.Random(5)
    for path in reviews.glob("*.jsonl"):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        lines = [json.dumps({**row, "text_pair": draw.choice(("good film", "a dull plot"))}) + "\n" for row in rows]
        (folder / path.name).write_text("".join(lines), encoding="utf-8")
    return folder


def roots(folder: Path, corpus: Path, reviews: Path, bert: Path) -> dict[str, Path]:
    """Write what is missing below a folder, and return the folders that the recipes name."""
    own = {name: folder / name for name in ("pairs", "topics", "sentences")}
    for path in own.values():
        path.mkdir()
    write_pairs(reviews, own["pairs"])
    write_topics(own["topics"])
    write_sentences(own["sentences"])
    return {**own, "corpus": corpus, "reviews": reviews, "bert": bert}


def paths(run: Path) -> set[str]:
    """Return every file of a run directory, and every key of its JSON files and of `predict` as `FILE KEY.KEY[].KEY`.

    Steps and splits in file names are `*`. Contents that libraries decide (tokenizers, configurations of transformers)
    are left out.
    """
    found = {f"predict {key}" for key in keys(printed("predict", run, "good film\tgood plot"))}
    for path in sorted(run.rglob("*")):
        if path.is_dir():
            continue
        name = _general(str(path.relative_to(run)))
        found.add(name)
        found |= {f"{name} {key}" for value in _contents(path) for key in keys(value)}
    return found


def _general(name: str) -> str:
    name = re.sub(r"step-\d+", "step-*", name)
    name = re.sub(r"events\.out\.tfevents.*", "events.out.tfevents*", name)
    return re.sub(r"^evaluation/(validation|test)/", "evaluation/*/", name)


def _contents(path: Path) -> list[Any]:
    if path.name.startswith("tokenizer") or path.suffix not in (".json", ".jsonl"):
        return []
    text = path.read_text(encoding="utf-8")
    values = [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else [json.loads(text)]
    by_library = path.name == "config.json" and not values[0].get("model_type", "").startswith("rankzero")
    return [] if by_library else values


def printed(*words: object) -> Any:
    """Return what a command of `rankzero` prints as JSON, or as JSON lines (then a list)."""
    result = CliRunner().invoke(launch.cli.app, [str(word) for word in words])
    assert result.stdout, f"rankzero {words} printed nothing: {result.exception!r}\n{result.stderr}"
    try:
        return json.loads(result.stdout)
    except json.JSONDecodeError:
        return [json.loads(line) for line in result.stdout.splitlines()]


def printed_keys(recipe: Path, run: Path) -> dict[str, set[str]]:
    """Return the keys of the JSON that commands print about a recipe and about a finished run of a classifier."""
    plan = ("plan", recipe, "--run", run.with_name("none"), "--ranks", "2", "--json")
    found = {
        "plan": printed(*plan, "--memory", "24"),
        "plan --cpu": printed(*plan, "--cpu"),
        "doctor": printed("doctor", "--quick", "--run", run, "--json"),
        "status": printed("status", run, "--json"),
        "bench": printed("bench", run, "--seconds", "180", "--threads", "1", "--json"),
        "embed": printed("embed", run, "good film"),
        "ensemble": printed("ensemble", run, run),
    }
    return {command: {_stable(key) for key in keys(value)} for command, value in found.items()}


def _stable(key: str) -> str:
    """Drop what measurements decide from a key: the models compared, what is recommended, the parts of a peak."""
    key = re.sub(r"contestants\.[^.]+", "contestants.*", key)
    key = re.sub(r"^answer\.step_parts\..*", "answer.step_parts.*", key)
    return re.sub(r"^(recommended|not_recommended|left_out|notes)\b.*", r"\1", key)


def keys(value: Any, prefix: str = "") -> Iterator[str]:
    """Yield the path of each leaf. Items of lists are merged; keys that are data (numbers, files, labels) are `*`."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            name = "*" if _is_data(key) else key
            yield from keys(inner, f"{prefix}.{name}" if prefix else name)
    elif isinstance(value, list) and value:
        prefix = prefix if prefix.endswith("[]") else f"{prefix}[]"
        for inner in value:
            yield from keys(inner, prefix)
    elif prefix:
        yield prefix


def _is_data(key: str) -> bool:
    names = (*LABELS, *TOPIC_LABELS, "PER", "LOC")
    return key in names or "." in key or re.fullmatch(r"-?\d+", key) is not None
