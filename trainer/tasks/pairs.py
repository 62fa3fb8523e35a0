"""Shared by tasks whose rows are a source and a target text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from trainer.data.roles import Roles, Text
from trainer.task.base import Texts
from trainer.task.metrics import Metric

if TYPE_CHECKING:
    from trainer.recipe import Recipe
    from trainer.recipe.output_sections import EvaluationConfig


class Pairs:
    """A mixin before Task: rows of `src` and `trg`, and the metrics of translations."""

    recipe: Recipe

    scores_documents: ClassVar[bool] = True
    metric_specs: ClassVar[tuple[Metric, ...]] = (
        Metric(
            "bleu",
            "max",
            "BLEU",
            "Word sequences shared with the reference, 0 to 100; comparable only under the same signature.",
            "{:.1f}",
            (0, 100),
        ),
        Metric(
            "chrf",
            "max",
            "chrF",
            "Character sequences shared with the reference, 0 to 100; it counts wrong word endings less than BLEU.",
            "{:.1f}",
            (0, 100),
        ),
        Metric(
            "ter",
            "min",
            "TER",
            "Edits that would turn the translations into the references, per 100 words of the references.",
            "{:.1f}",
            (0, 100),
        ),
        Metric(
            "perplexity",
            "min",
            "Perplexity",
            "Exponential of the loss: as hard as a choice among so many equally probable tokens.",
            "{:.2f}",
        ),
        Metric(
            "document_chrf",
            None,
            "chrF++ of documents",
            "Character and word sequences that documents share with their references, 0 to 100.",
            "{:.1f}",
            (0, 100),
        ),
        Metric(
            "comet",
            None,
            "COMET",
            "Quality as a trained model estimates it; comparable only with the same model (comet_model).",
            "{:.4f}",
        ),
        Metric(
            "length_ratio", None, "Length ratio", "Length of all translations over that of all references: 1 is right."
        ),
        Metric("loss", "min"),
    )
    toy_rows: ClassVar[tuple[Texts, ...]] = (
        {"src": "Ein Hund läuft.", "trg": "A dog runs."},
        {"src": "Zwei Männer sitzen auf einer Bank.", "trg": "Two men are sitting on a bench."},
        {"src": "Das Kind spielt.", "trg": "The child plays."},
        {"src": "Eine Frau liest ein Buch im Park.", "trg": "A woman reads a book in the park."},
    )

    @classmethod
    def roles(cls, config: Any) -> Roles:
        return {"src": Text(), "trg": Text(target=True)}

    def doubts(self, row: Texts) -> list[str]:
        if row.get("src") != row.get("trg"):
            return []
        return ['have the same text in "src" and "trg", so that the model learns to copy. Check data.columns']

    def input_text(self, row: Texts) -> str:
        return row["src"]

    def target_text(self, row: Texts) -> str:
        return row["trg"]

    def score(self, records: Iterable[Mapping[str, Any]], resamples: int) -> dict[str, Any]:
        from trainer.evaluation.metrics import score_translation

        config: Any = self.recipe.task
        tokenizer = self.recipe.evaluation.bleu_tokenizer
        return score_translation(records, resamples=resamples, language=config.trg_language, tokenizer=tokenizer)


def search_config(evaluation: EvaluationConfig) -> dict[str, Any]:
    """Return the keys of a generation_config.json for the search that the recipe sets."""
    beams = evaluation.beam_size
    penalty = {"length_penalty": evaluation.length_penalty} if beams > 1 else {}
    return {"num_beams": beams, "do_sample": False, **penalty}
