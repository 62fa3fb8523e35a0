"""rankzero as a contestant of peers and gpu: `trainer.train` itself, under our meter.

It is what `rankzero train` runs on one rank: reading, cleaning, tokenizing, lanes, steps, log and metrics.jsonl. One
thing is added: a reporter that counts, and waits between blocks. Evaluation and checkpoints never come, as in the other
contestants.

Run by the other programs: python -m benchmarks.rankzero_train SETTINGS.json
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

import trainer.run
from benchmarks.contestant import Meter
from benchmarks.corpus import RECIPE
from benchmarks.device_meter import meter
from trainer import train
from trainer.engine import session
from trainer.engine.progress import Progress
from trainer.engine.reporter import Reporter
from trainer.engine.session import Session
from trainer.engine.step import Totals

NEVER = 10**9  # steps
WITHOUT_PAUSES = [f"loop.{key}={NEVER}" for key in ("epochs", "eval_every", "save_every")]


def metered_by(one: Meter) -> type[Reporter]:
    """Return the run's own reporter, which ends a step for the meter where it ends for the log."""

    class MeteredReporter(Reporter):
        def __init__(self, *args: Any, **named: Any) -> None:
            super().__init__(*args, **named)
            self._loss: float | None = None
            one.start()

        def step(self, progress: Progress, share: float, totals: Totals, *rest: Any) -> None:
            super().step(progress, share, totals, *rest)
            loss, self._loss = self._loss, None
            one.step(rows=totals.rows, tokens=totals.tokens, positions=totals.padded, loss=loss)

        def logged(self, progress: Progress, loss: float, *rest: Any) -> None:
            super().logged(progress, loss, *rest)
            self._loss = loss  # comes after the step that it ends with: counted with the next one

    return MeteredReporter


@torch.no_grad()
def translations(one: Session) -> list[str]:
    """Translate the test rows as the evaluation of the run would, with the weights as they are."""
    texts: dict[int, str] = {}
    model: Any = one.model
    model.eval()
    for window in one.corpus.batches("test"):
        for batch in window:
            with one.runtime.accelerator.autocast():
                records = one.task.predict(model, one.task.collate(batch.examples))
            texts |= {place: record["prediction"] for place, record in zip(batch.places, records, strict=True)}
    one.stepper.objective.train()
    return [texts[place] for place in sorted(texts)]


def session_for(meter: Meter) -> type[Session]:
    """Return the run's own session, which translates and saves between blocks for the meter."""

    class MeteredSession(Session):
        def train(self) -> None:
            model: Any = self.model
            meter.translate = lambda: translations(self)
            meter.save = lambda folder: model.save_pretrained(folder)
            super().train()

    return MeteredSession


def main(one: Meter | None = None) -> None:
    """Train under a meter, by default that of the device."""
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    device = settings.get("device", "cpu")
    if device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    os.environ["ACCELERATE_MIXED_PRECISION"] = settings["precision"]
    torch.set_num_threads(settings["threads"])
    one = one or meter(device)
    session.Reporter = metered_by(one)  # type: ignore[misc]
    trainer.run.Session = session_for(one)  # type: ignore[misc]
    overrides = [*settings["overrides"], *settings.get("variant", ()), *WITHOUT_PAUSES]
    train(settings.get("recipe", RECIPE), overrides, run=Path(settings["folder"]) / "run")


if __name__ == "__main__":
    main()
