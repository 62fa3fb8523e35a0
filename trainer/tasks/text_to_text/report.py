"""Report and model card of text-to-text models."""

from __future__ import annotations

from trainer.tasks.translation.report import TranslationReport


class TextToTextReport(TranslationReport):
    """As of translators."""

    pipeline = "text2text-generation"

    def goal(self) -> tuple[str, str]:
        prefix = (self.recipe["task"].get("prefix") or "").strip()
        return "write one text after another" + (f" (“{prefix}”)" if prefix else ""), "pairs"
