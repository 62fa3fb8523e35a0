"""rankzero as a contestant of data_path: one rank's loader over all lanes of the recipe, as the training loop has it.

Run by benchmarks/data_path.py: python -m benchmarks.rankzero_data SETTINGS.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.contestant import serve_passes
from benchmarks.corpus import RECIPE
from trainer.data.lane_plan import Bookmark
from trainer.data.loader import load_epoch
from trainer.data.tokenization import load_tokenizer
from trainer.data_parallel import DataParallel
from trainer.engine.corpus import Corpus
from trainer.recipe_loading import load_recipe
from trainer.task.registry import make_task


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(settings["threads"])
    recipe = load_recipe(RECIPE, settings["overrides"])
    task = make_task(recipe, load_tokenizer(settings["tokenizer"]))
    server = Corpus(recipe, task).lanes()
    groups = DataParallel(0, 1).lane_groups(recipe.data.lanes, recipe.loop.fused_before_measuring)

    def one_pass(number: int) -> Iterator[tuple[int, int, int]]:
        marks = {lane: Bookmark(number) for lane in range(recipe.data.lanes)}
        steps = load_epoch(
            server,
            task.collate,
            task.tokens,
            groups,
            marks,
            inputs=task.inputs,
            workers=settings["workers"],
            prefetch=recipe.data.prefetch,
            pin_memory=False,
        )
        for step in steps:
            yield from ((loaded.rows, loaded.tokens, loaded.padded) for loaded in step if loaded is not None)

    serve_passes(one_pass)


if __name__ == "__main__":
    main()
