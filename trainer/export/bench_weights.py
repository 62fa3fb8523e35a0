"""Answer texts with the trained weights of a run, for trainer.export.bench_runner. It loads torch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from trainer.data.target_tokenizer import target_of
from trainer.engine.trained_run import TrainedRun
from trainer.recipe_loading import Recipe
from trainer.rundir import RunDir
from trainer.task.registry import make_task

if TYPE_CHECKING:
    from trainer.export.bench_runner import Opened, Records


def weights(run: Path, candidate: str) -> Opened:
    """Return the answers, encoding and tokenizer of a candidate: baseline, torch, bf16, compiled, or -cuda on a GPU."""
    trained = TrainedRun.open(RunDir(run), Recipe)
    recipe, task, model = trained.recipe, trained.task, trained.model
    if candidate.startswith("baseline"):
        data = recipe.data.model_copy(update={"pad_multiple": recipe.data.max_length})
        settings: Any = recipe.model
        recipe = recipe.model_copy(update={"data": data, "model": settings.model_copy(update={"attention": "auto"})})
    if candidate.startswith("bf16"):
        model.to(torch.bfloat16)

    def answer(texts: Sequence[str], evaluation: dict[str, Any]) -> Records:
        section = recipe.evaluation.model_validate({**evaluation, "tokens_per_batch": sys.maxsize})
        changed = recipe.model_copy(update={"evaluation": section})
        own = make_task(changed, task.tokenizer)
        own.padding = task.padding.also(recipe.data.pad_multiple)
        return TrainedRun(trained.run, changed, own, model).predict(texts)

    if candidate == "compiled":
        model.compile(dynamic=True)
        list(answer(["one", "another"], recipe.evaluation.model_dump()))  # compiles for one text, and for more
    written = target_of(task.tokenizer).backend_tokenizer
    return answer, lambda text: task.encode_lines([text])[0].get("input_ids", ()), written
