"""What tasks share whose rows are a source and a target text."""

from __future__ import annotations

from typing import Any, ClassVar

from trainer.task.base import Roles, Texts


class Pairs:
    """Stands before Task among the bases of a task: rows `src` and `trg`, and the scores of a translation."""

    metrics: ClassVar[dict[str, str]] = {
        "loss": "min",
        "perplexity": "min",
        "bleu": "max",
        "chrf": "max",
        "ter": "min",
    }
    toy_rows: ClassVar[tuple[Texts, ...]] = (
        {"src": "Ein Hund läuft.", "trg": "A dog runs."},
        {"src": "Zwei Männer sitzen auf einer Bank.", "trg": "Two men are sitting on a bench."},
        {"src": "Das Kind spielt.", "trg": "The child plays."},
        {"src": "Eine Frau liest ein Buch im Park.", "trg": "A woman reads a book in the park."},
    )

    @classmethod
    def roles(cls, config: Any) -> Roles:
        return {"src": None, "trg": None}

    def input_text(self, row: Texts) -> str:
        return row["src"]

    def target_text(self, row: Texts) -> str:
        return row["trg"]
