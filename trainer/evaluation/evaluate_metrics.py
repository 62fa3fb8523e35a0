"""The scores of translations as metrics of the library `evaluate`: to combine them with others there.

`evaluate.combine([Bleu("en"), Chrf()])` or `Bleu("en").compute(predictions=[…], references=[…])`. They need no network
(`evaluate.load` fetches scripts of the Hub and runs them) and no disk (the library's class makes cache folders and lock
files, over which processes can meet). Training does not import this module: `evaluate` takes seconds to import.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import datasets
import evaluate

from trainer.evaluation.metrics import bleu, chrf, ter
from trainer.evaluation.resampling import SEED, Score, perplexity


class LocalMetric(evaluate.Metric):  # type: ignore[misc]  # evaluate has no types
    """An `evaluate.Metric` that holds its data in memory and touches neither network nor disk."""

    columns: ClassVar[dict[str, str]] = {"predictions": "string", "references": "string"}
    """Name and type of what `compute` takes, one value per row."""

    def __init__(self) -> None:
        super().__init__(keep_in_memory=True, seed=SEED)

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({name: datasets.Value(kind) for name, kind in type(self).columns.items()})
        return evaluate.MetricInfo(description=str(type(self).__doc__), citation="", features=features)

    def _build_data_dir(self) -> str:
        # The library creates this folder even when everything stays in memory; nothing is ever written there.
        return str(Path(self._data_dir_root, self.name))


class Bleu(LocalMetric):
    """Corpus BLEU in percent (`trainer.evaluation.metrics.bleu`). language: name or tag of the target language."""

    def __init__(self, language: str | None = None) -> None:
        super().__init__()
        self._language = language

    def _compute(self, *, predictions: list[str], references: list[str], **options: Any) -> dict[str, Score]:
        return bleu(predictions, references, self._language, **options)


class Chrf(LocalMetric):
    """Corpus chrF2 in percent (`trainer.evaluation.metrics.chrf`)."""

    def _compute(self, *, predictions: list[str], references: list[str], **options: Any) -> dict[str, Score]:
        return chrf(predictions, references, **options)


class Ter(Bleu):
    """Translation edit rate in percent (`trainer.evaluation.metrics.ter`); lower is better."""

    def _compute(self, *, predictions: list[str], references: list[str], **options: Any) -> dict[str, Score]:
        return ter(predictions, references, self._language, **options)


class Perplexity(LocalMetric):
    """Token cross-entropy (nats) and its exponential: `compute(losses=[row sums], tokens=[row counts])`."""

    columns: ClassVar[dict[str, str]] = {"losses": "float64", "tokens": "int64"}

    def _compute(self, *, losses: list[float], tokens: list[int], **options: Any) -> dict[str, Score]:
        return perplexity(losses, tokens, **options)
