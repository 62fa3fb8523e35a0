"""Report and model card of text-to-text models."""

from __future__ import annotations

from collections.abc import Iterable

from trainer.evaluation.predictions import Record
from trainer.evaluation.resampling import Resampled
from trainer.tasks.text_to_text.metrics import resampled_rouge
from trainer.tasks.translation.report import TranslationReport


class TextToTextReport(TranslationReport):
    """As of translators."""

    pipeline = "text2text-generation"

    def resampled(self, records: Iterable[Record]) -> Resampled:
        found = list(records)
        texts, rouge = super().resampled(found), resampled_rouge(found)
        return lambda weights: texts(weights) | rouge(weights)

    def goal(self) -> tuple[str, str]:
        prefix = (self.recipe["task"].get("prefix") or "").strip()
        return "write one text after another" + (f" (“{prefix}”)" if prefix else ""), "pairs"
