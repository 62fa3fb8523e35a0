"""rankzero as a contestant of decoding: the search of `evaluate` in PyTorch, or the artifact's own over ONNX.

Run by benchmarks/decoding.py: python -m benchmarks.rankzero_decode SETTINGS.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contestant import serve_decoding
from trainer.export.artifact import Array
from trainer.tasks.pairs_program import Translator

NEVER = -1e4  # added to the logit of <eos> before its time: a number, as it stands in sums


def with_onnx(settings: dict[str, Any]) -> Callable[[Sequence[Any], int], list[int]]:
    class Forced(Translator):
        """The artifact's search with a given length for each row."""

        limits: Array

        def start(self, sources: Sequence[Sequence[int]]) -> tuple[dict[str, Array], dict[str, Array]]:
            fixed, cache = super().start(sources)
            return {**fixed, "limits": self.limits}, cache  # rows that leave take theirs along

        def candidates(self, tokens: Any, parents: Any, fixed: Any, cache: Any, last: Any) -> Any:
            limits = fixed["limits"]
            last = limits == next(iter(cache.values())).shape[2] + 1
            feeds = {name: value for name, value in fixed.items() if name != "limits"}
            gains, ids, cache = super().candidates(tokens, parents, feeds, cache, last)
            gains[~last[:, None, None] & (ids == self.settings["eos_id"])] = -np.inf
            return gains, ids, cache

    folder = Path(settings["run"]) / "export" / settings["backend"]
    artifact = Forced(folder, json.loads((folder / "settings.json").read_text(encoding="utf-8")))

    def decode(rows: Sequence[Any], beam: int) -> list[int]:
        artifact.settings["beam_size"] = beam
        artifact.limits = np.array([row["new"] for row in rows])
        return [len(ids) + 1 for ids, _ in artifact.search([row["src"] for row in rows])]

    return decode


def with_torch(settings: dict[str, Any]) -> Callable[[Sequence[Any], int], list[int]]:
    import torch

    from trainer.engine.trained_run import TrainedRun
    from trainer.evaluation.decoding import beam_search
    from trainer.recipe_loading import Recipe
    from trainer.rundir import RunDir

    torch.set_num_threads(settings["threads"])
    finished = TrainedRun.open(RunDir(settings["run"]), Recipe)
    task: Any = finished.task
    model: Any = finished.model

    def never_end(logits: torch.Tensor) -> torch.Tensor:
        logits[:, task.eos_id] += NEVER  # at the limit the search leaves no other choice
        return logits

    step = model.decode_step
    model.decode_step = lambda tokens, cache: never_end(step(tokens, cache))

    def decode(rows: Sequence[Any], beam: int) -> list[int]:
        found = beam_search(
            model, task.pad([row["src"] for row in rows], task.pad_id), bos_id=task.bos_id, eos_id=task.eos_id,
            pad_id=task.pad_id, beam_size=beam, length_penalty=1.0, max_length=[row["new"] for row in rows],
        )  # fmt: skip
        return [len(hypothesis.ids) + 1 for hypothesis in found]

    return decode


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    serve_decoding(settings, with_torch(settings) if settings["backend"] == "torch" else with_onnx(settings))


if __name__ == "__main__":
    main()
