"""Scores of the weights that a candidate has trained, by rankzero's evaluation: the same rows and measure for all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.corpus import Prepared
from trainer.engine import runtime
from trainer.engine.corpus import Corpus
from trainer.engine.evaluate import evaluate
from trainer.engine.signals import StopFlag
from trainer.engine.state import copy_weights
from trainer.engine.trained_run import build_model
from trainer.models.folder import read_folder


class Scorer:
    """Scores folders that `save_pretrained` has written, in fp32.

    Args:
        prepared: the recipe with the split.
        split: that is scored.
        predict: False computes loss and perplexity only.
    """

    def __init__(self, prepared: Prepared, split: str, *, predict: bool) -> None:
        os.environ["ACCELERATE_USE_CPU"] = "true"
        self._runtime = runtime.start(StopFlag())
        self._task, self._split, self._predict = prepared.task(), split, predict
        self._corpus = Corpus(prepared.recipe, self._task)

    def score(self, folder: Path) -> dict[str, Any]:
        """Return the numbers among the metrics of a split, `rows` included."""
        model = build_model(self._task, folder, check=False)
        copy_weights(model, read_folder(folder), str(folder))
        with tempfile.TemporaryDirectory() as place:
            scores, _ = evaluate(
                self._runtime, self._task, model, self._corpus, self._split, Path(place), predict=self._predict
            )
        return {name: value for name, value in scores.items() if isinstance(value, int | float)}
