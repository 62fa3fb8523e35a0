"""A contestant of long_documents: forward and backward of one text of a given length, in a small random model.

It is the model and the micro-batch that a recipe with this architecture trains on: the widths that its family wants are
inside the clock and the memory. A block's size is the number of tokens.

Run by benchmarks/long_documents.py: python -m benchmarks.long_step SETTINGS.json
"""

from __future__ import annotations

import ctypes
import functools
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.contestant import serve_blocks
from trainer.data.tokenization import train_tokenizer
from trainer.engine.objective import Objective, freeze_unused
from trainer.recipe.sections import TokenizerTraining
from trainer.recipe_loading import Recipe
from trainer.task.registry import make_task

MB = 2**20


def recipe_of(model: dict[str, Any], length: int) -> Any:
    """A classifier of texts of up to `length` tokens."""
    return Recipe.parse(
        {
            "name": "long",
            "task": {"kind": "classification", "labels": ["a", "b"]},
            "data": {"root": "x", "train": "x", "max_length": length, "tokens_per_batch": None, "rows_per_batch": 1},
            "tokenizer": {"train": {"kind": "wordpiece", "vocab_size": 100}},
            "model": {"kind": "pretrained", "dropout": 0.0, **model},
            "loop": {"epochs": 1},
        }
    )


@functools.lru_cache(maxsize=1)  # one at a time is held: the others would be memory
def built(model: str, length: int) -> tuple[Objective, dict[str, torch.Tensor]]:
    """The model for this length, in training mode, and a micro-batch of one text of as many tokens."""
    made = recipe_of(json.loads(model), length)
    tokenizer = train_tokenizer(["a b c d e f g h"] * 2, TokenizerTraining(kind="wordpiece", vocab_size=100), length)
    task: Any = make_task(made, tokenizer)
    torch.manual_seed(1)
    objective = Objective(task, task.build_model())
    batch = task.collate(task.encode([{"text": "a b c d e f g h " * length, "label": "a"}]))
    assert int(batch["attention_mask"].sum()) == length
    freeze_unused(objective)
    return objective.train(), batch


def resident(what: str) -> int:
    """VmRSS or VmHWM (the peak since it was reset) of this process, in bytes."""
    found = re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    assert found is not None
    return int(found[1]) * 1024


def block(model: str, length: int) -> dict[str, float]:
    """Seconds, those of the processor alone, and megabytes at the peak above what stood before."""
    objective, batch = built(model, length)
    objective.zero_grad()
    ctypes.CDLL(None).malloc_trim(0)  # else what earlier passes have left would be used unseen
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before, began, cpu_began = resident("VmRSS"), time.perf_counter(), time.process_time()
    objective(**batch).backward()
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
    megabytes, width = (resident("VmHWM") - before) / MB, batch["input_ids"].shape[1]
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "megabytes": megabytes, "positions": width}


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(settings["threads"])
    serve_blocks(functools.partial(block, json.dumps(settings["model"])))


if __name__ == "__main__":
    main()
