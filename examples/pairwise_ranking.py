"""A task outside rankzero: learn a score for texts from pairs of a better and a worse one.

    PYTHONPATH=examples rankzero train examples/pairwise_ranking.yaml --config cpu data.root=FOLDER

The loss of a pair is -log sigmoid(better score - worse score), as in RankNet (Burges et al. 2005).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from trainer.task import IGNORED, Assessed, Batch, Example, Record, Roles, Row, Section, Task, Text

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn


class PairwiseRankingConfig(Section):
    """`task` section of a recipe: this task has no settings but its kind."""


class PairwiseRanking(Task):
    """Rows of two texts, `better` and `worse`. The model gives one score per text."""

    config = PairwiseRankingConfig
    models: ClassVar[tuple[str, ...]] = ("encoder", "pretrained")
    inputs = ("input_ids",)
    metrics: ClassVar[dict[str, str]] = {"loss": "min", "accuracy": "max"}
    cheap_metrics: ClassVar[tuple[str, ...]] = ("loss",)
    toy_rows: ClassVar[tuple[Row, ...]] = (
        {"better": "A wonderful film.", "worse": "A boring film."},
        {"better": "I liked every minute of it.", "worse": "Two hours of boredom, and no end."},
    )

    @classmethod
    def roles(cls, config: PairwiseRankingConfig) -> Roles:
        return {"better": Text(), "worse": Text()}

    # -- rows to micro-batches: all tensors have one entry per row first, so that a micro-batch can be split ---------

    def encode(self, rows: Sequence[Row]) -> list[Example]:
        ids = self.token_ids(rows)
        room = self.recipe.data.max_length - self.layout.special
        return [
            {role: self.layout.join([ids[role][number][:room]])[0] for role in ("better", "worse")}
            for number in range(len(rows))
        ]

    def cut_roles(self, sizes: Mapping[str, int]) -> list[str]:
        room = self.recipe.data.max_length - self.layout.special
        return [role for role, size in sizes.items() if size > room]

    def length(self, example: Example) -> int:
        return max(len(example["better"]), len(example["worse"]))

    def tokens(self, example: Example) -> int:
        return len(example["better"]) + len(example["worse"])

    def collate(self, examples: Sequence[Example]) -> Batch:
        """input_ids and attention_mask (B, 2, W), the better text first; labels (B,), all 0."""
        import torch

        texts = [{"input_ids": example[role]} for example in examples for role in ("better", "worse")]
        batch = {name: tensor.unflatten(0, (-1, 2)) for name, tensor in self.pad_inputs(texts).items()}
        return {**batch, "labels": torch.zeros(len(examples), dtype=torch.int64)}

    # -- model -------------------------------------------------------------------------------------------------------

    def build_model(self, trained: Path | None = None) -> nn.Module:
        from trainer.models.classifiers import build_classifier

        return self.padded_for(build_classifier(self.recipe, self.tokenizer, ["score"], trained))

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Scores (B, 2). The cross entropy of two scores with label 0 is the loss of the pair."""
        ids, mask = batch["input_ids"], batch["attention_mask"]
        found: Any = model(input_ids=ids.flatten(0, 1), attention_mask=mask.flatten(0, 1))
        scores: Tensor = getattr(found, "logits", found)
        return scores.float().view(-1, 2)

    # -- evaluation --------------------------------------------------------------------------------------------------

    def assess(self, model: nn.Module, batch: Batch, *, predict: bool) -> Assessed:
        import torch.nn.functional as F

        scores, labels = self.logits(model, batch), batch["labels"]
        losses = F.cross_entropy(scores, labels, ignore_index=IGNORED, reduction="none")
        return Assessed(losses, (labels != IGNORED).long(), self._records(scores))

    def predict(self, model: nn.Module, batch: Batch) -> list[Record]:
        return self._records(self.logits(model, batch))

    def _records(self, scores: Tensor) -> list[Record]:
        return [
            {"prediction": "better" if better > worse else "worse", "scores": [better, worse]}
            for better, worse in scores.tolist()
        ]

    def row_of(self, line: str) -> Row:
        """A line is two texts with a tab between them, or one text, which is then compared with an empty one."""
        better, _, worse = line.partition("\t")
        return {"better": better, "worse": worse}

    def input_text(self, row: Row) -> str:
        return f"{row['better']}\t{row['worse']}"

    def target_text(self, row: Row) -> str:
        return "better"

    def score(self, records: Iterable[Mapping[str, Any]], resamples: int) -> dict[str, Any]:
        rows = list(records)
        right = sum(record["prediction"] == record["target"] for record in rows)
        return {
            "loss": sum(record["loss"] for record in rows) / len(rows),
            "accuracy": right / len(rows),
            "rows": len(rows),
        }
