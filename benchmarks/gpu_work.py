"""What gpu.py trains: models of known shapes on synthetic rows, as recipes and as settings of the other contestants.

Nothing is fetched: texts are made of invented words with Zipf's frequencies, and the weights are random. Lengths follow
those of reviews (IMDB: a median of 175 words) and of WMT's sentences (a median of 24), both lognormal.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from benchmarks.peers.jobs import encoded
from trainer.data.tokenization import TrainingTexts, load_tokenizer, train_tokenizer
from trainer.engine.corpus import Corpus
from trainer.recipe_loading import load_recipe
from trainer.task.registry import make_task

WORDS = 20_000
VOCABULARY = 30_000
DOCUMENTS, PAIRS = 6_000, 40_000
BASE = {"num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
GPT2 = {"n_layer": 12, "n_embd": 768, "n_head": 12, "n_positions": 1024}
LANES = 8


@dataclass(frozen=True)
class Workload:
    """One model and corpus.

    Attributes:
        kind: classifier, causal or translation.
        model: the section of the recipe.
        max_length: tokens of a row.
        tokens: of a step, padding included, in each input.
    """

    name: str
    kind: str
    model: dict[str, Any]
    max_length: int
    tokens: int
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def corpus(self) -> str:
        return "pairs" if self.kind == "translation" else "documents"


def pretrained(architecture: str, config: dict[str, int]) -> dict[str, Any]:
    return {"kind": "pretrained", "architecture": architecture, "config": config}


def transformer(width: int, heads: int) -> dict[str, Any]:
    """Return the shape of "base" (512) or "big" (1024) of Vaswani et al. 2017."""
    sizes = {"d_model": width, "heads": heads, "feed_forward": 4 * width, "encoder_layers": 6, "decoder_layers": 6}
    return {"kind": "transformer", **sizes, "dropout": 0.1, "activation": "relu"}


WORKLOADS = (
    Workload("BERT-base, 512 tokens", "classifier", pretrained("bert", BASE), 512, 32_768),
    Workload("Transformer big", "translation", transformer(1024, 16), 256, 16_384),
    Workload("BERT-base, 128 tokens", "classifier", pretrained("bert", BASE), 128, 16_384),
    Workload("GPT-2 124M, 1,024 tokens", "causal", pretrained("gpt2", GPT2), 1024, 16_384),
    Workload("Transformer base", "translation", transformer(512, 8), 256, 32_768),
    Workload("MPNet-base, 256 tokens", "classifier", pretrained("mpnet", BASE), 256, 32_768),
)
TINY = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
SMALL = (  # shows on a CPU that everything runs
    Workload("tiny BERT", "classifier", pretrained("bert", TINY), 64, 1024),
    Workload("tiny GPT-2", "causal", pretrained("gpt2", {"n_layer": 2, "n_embd": 32, "n_head": 2}), 64, 1024),
    Workload(
        "tiny Transformer",
        "translation",
        {**transformer(32, 2), "encoder_layers": 1, "decoder_layers": 1},
        64,
        1024,
    ),
)


def write_corpora(folder: Path, share: float = 1.0) -> None:
    """Write documents.jsonl and pairs.jsonl. `share`: of the usual number of rows."""
    draw = random.Random(1)
    words = ["".join(draw.choices("abcdefghijklmnoprstuvwz", k=draw.randint(2, 9))) for _ in range(WORDS)]
    cumulative = list(itertools.accumulate(1 / (rank + 3) for rank in range(WORDS)))

    def text(median: float, sigma: float, most: int) -> str:
        count = min(most, max(3, round(draw.lognormvariate(0, sigma) * median)))
        return " ".join(draw.choices(words, cum_weights=cumulative, k=count))

    rows: dict[str, tuple[int, Callable[[], dict[str, Any]]]] = {
        "documents": (DOCUMENTS, lambda: {"text": text(175, 0.6, 1000), "label": draw.randrange(2)}),
        "pairs": (PAIRS, lambda: {"de": text(24, 0.6, 150), "en": text(24, 0.6, 150)}),
    }
    for name, (count, row) in rows.items():
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as lines:
            lines.writelines(json.dumps(row()) + "\n" for _ in range(max(400, int(count * share))))


class Prepared:
    """A workload with its recipe, tokenizer, and rows as ids.

    Attributes:
        settings: of each contestant, by its module.
        operations: of the training per non-padding token (see `operations`).
    """

    def __init__(self, work: Workload, corpora: Path, folder: Path, workers: int) -> None:
        folder.mkdir()
        self.work, tokenizer = work, corpora / f"tokenizer-{work.corpus}-{work.kind}"
        path = folder / "recipe.yaml"
        path.write_text(yaml.safe_dump(_recipe(work, corpora, workers)), encoding="utf-8")
        if not tokenizer.exists():
            _train_tokenizer(path, tokenizer)
        overrides = [f"tokenizer={{pretrained: {json.dumps(str(tokenizer))}}}"]
        recipe = load_recipe(str(path), overrides)
        task = make_task(recipe, load_tokenizer(str(tokenizer)))
        rows = list(encoded(work.kind, task, recipe, [texts for _, texts in Corpus(recipe, task).texts("train")]))
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        vocabulary, ids = len(task.tokenizer), task.tokenizer
        lengths = [(len(row["input_ids"]), len(row.get("trg", ()))) for row in rows]
        self.operations = sum(operations(work, vocabulary, *one) for one in lengths) / sum(map(sum, lengths))
        mean = sum(map(sum, lengths)) / len(lengths)
        shape = {**work.model.get("config", work.model), "vocab_size": vocabulary}
        shape |= {"architecture": work.model["architecture"]} if "architecture" in work.model else {}
        if work.kind == "translation":
            shape |= {"pad": ids.pad_token_id, "eos": ids.eos_token_id}
        sides = 2 if work.kind == "translation" else 1
        common = {"learning_rate": 1e-4, "seed": 1}
        self.settings = {
            "rankzero_train": {**common, "recipe": str(path), "overrides": overrides},
            "peers.hf_trainer": {
                **common, "kind": work.kind, "rows": str(folder / "rows.jsonl"), "shape": shape, "workers": workers,
                "pad": ids.pad_token_id or 0, "batch": max(1, round(work.tokens * sides / mean)),
            },
        }  # fmt: skip


def _recipe(work: Workload, corpora: Path, workers: int) -> dict[str, Any]:
    tasks: dict[str, dict[str, Any]] = {
        "classifier": {"kind": "classification", "labels": {0: "a", 1: "b"}},
        "causal": {"kind": "language_modeling", "objective": "causal", "cross_documents": True},
        "translation": {"kind": "translation"},
    }
    tokenizers = {"classifier": "wordpiece", "causal": "byte_bpe", "translation": "bpe"}
    data: dict[str, Any] = {
        "root": str(corpora), "train": f"{work.corpus}.jsonl", "lanes": LANES, "tokens_per_batch": work.tokens // LANES,
        "max_length": work.max_length, "pad_multiple": 8, "workers": workers, "block_rows": 8192,
    }  # fmt: skip
    if work.kind == "translation":
        data["columns"] = {"src": "de", "trg": "en"}
    return {
        "version": 1, "name": "gpu", "seed": 1, "task": tasks[work.kind], "data": data, "model": work.model,
        "tokenizer": {"train": {"kind": tokenizers[work.kind], "vocab_size": VOCABULARY}},
        "optim": {"name": "adamw", "lr": 1e-4, "schedule": "constant", "clip_norm": 1.0},
        "loop": {"max_steps": 10**9, "log_every": 50, "fuse_lanes": LANES, **work.more},
    }  # fmt: skip


def _train_tokenizer(path: Path, out: Path) -> None:
    recipe: Any = load_recipe(str(path), [])
    task: Any = make_task(recipe, None)  # type: ignore[arg-type]
    texts = TrainingTexts(Corpus(recipe, task).train, recipe.data, task.roles(recipe.task), 4000)
    train_tokenizer(texts, recipe.tokenizer.train, 1024).save_pretrained(out)


def operations(work: Workload, vocabulary: int, length: int, target: int = 0) -> float:
    """Return the operations of forward and backward of a row without padding: 2 for a multiplication and addition.

    Masked positions of causal attention are counted, as in the PaLM paper (appendix B).
    """
    sizes = work.model.get("config", work.model)
    width = next(sizes[key] for key in ("d_model", "hidden_size", "n_embd") if key in sizes)
    inner = sizes.get("feed_forward", sizes.get("intermediate_size", 4 * width))

    def attention(queries: int, keys: int) -> float:
        return 2 * (2 * width * width * (queries + keys) + 2 * queries * keys * width)

    def layer(tokens: int) -> float:
        return attention(tokens, tokens) + 4 * tokens * width * inner

    if work.kind == "translation":
        decoder = layer(target) + attention(target, length)
        forward = sizes["encoder_layers"] * layer(length) + sizes["decoder_layers"] * decoder
        return 3 * (forward + 2 * target * width * vocabulary)
    layers = sizes.get("num_hidden_layers", sizes.get("n_layer"))
    head = 2 * length * width * vocabulary if work.kind == "causal" else 2 * width * width
    return 3 * (layers * layer(length) + head)
