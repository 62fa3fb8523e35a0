"""rankzero as a contestant of training_step: `trainer.train` itself, under our meter.

It is what `rankzero train multi30k` runs on one rank with bf16 autocast: reading, cleaning, tokenizing, lanes, steps,
log and metrics.jsonl. The one thing added is a reporter that counts, and waits between blocks. Evaluation and
checkpoints are put off for ever, as in the other contestants.

Run by benchmarks/training_step.py: python -m benchmarks.rankzero_train SETTINGS.json
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.contestant import Meter
from benchmarks.corpus import RECIPE
from trainer import train
from trainer.engine import session
from trainer.engine.progress import Progress
from trainer.engine.reporter import Reporter
from trainer.engine.step import Totals

NEVER = 10**9  # steps
WITHOUT_PAUSES = [f"loop.{key}={NEVER}" for key in ("epochs", "eval_every", "save_every")]


class MeteredReporter(Reporter):
    """The run's own reporter; a step is over for the meter where it is over for the log."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._meter = Meter()
        self._loss: float | None = None
        self._meter.start()

    def step(self, progress: Progress, share: float, totals: Totals, *rest: Any) -> None:
        super().step(progress, share, totals, *rest)
        loss, self._loss = self._loss, None
        self._meter.step(rows=totals.rows, tokens=totals.tokens, positions=totals.padded, loss=loss)

    def logged(self, progress: Progress, loss: float) -> None:
        super().logged(progress, loss)
        self._loss = loss  # comes after the step that it ends with: counted with the next one


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    os.environ |= {"ACCELERATE_USE_CPU": "true", "ACCELERATE_MIXED_PRECISION": settings["precision"]}
    torch.set_num_threads(settings["threads"])
    session.Reporter = MeteredReporter  # type: ignore[misc]
    train(
        settings.get("recipe", RECIPE), [*settings["overrides"], *WITHOUT_PAUSES], run=Path(settings["folder"]) / "run"
    )


if __name__ == "__main__":
    main()
