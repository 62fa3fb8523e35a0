"""Shared by causal and masked language models: rows of `text`, settings and metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from trainer.data.roles import Roles, Text
from trainer.recipe.sections import LossSection
from trainer.task.base import Task, Texts
from trainer.task.metrics import Metric
from trainer.tasks.language_modeling.metric_specs import SPECS


class LanguageModelingConfig(LossSection):
    """`task` section of a language modeling recipe."""

    kind: Literal["language_modeling"] = "language_modeling"
    objective: Literal["mlm", "causal"] = Field("mlm", description="mlm: masked words; causal: the next token")
    mask_share: float = Field(
        0.15, gt=0, lt=1, description="share of a row's tokens that are masked, at least one (mlm)"
    )
    packing: bool = Field(
        True, description="documents share sequences of data.max_length tokens; false: each has its own (causal)"
    )
    cross_documents: bool = Field(False, description="a document attends to earlier ones in its sequence (causal)")


class LanguageModeling(Task):
    """Base of all language models: rows, settings and the scores that they share."""

    kind = "language_modeling"
    config = LanguageModelingConfig
    reporter_path = "trainer.tasks.language_modeling.report:LanguageModelingReport"
    suggester_path = "trainer.tasks.language_modeling.suggest:suggest"
    models: ClassVar[tuple[str, ...]] = ("encoder", "pretrained")
    scores_words: ClassVar[bool] = False  # the loss is that of complete texts, so there are scores per word and byte
    embeds = True
    labels_are_tokens = True
    inputs = ("input_ids",)
    metric_specs: ClassVar[tuple[Metric, ...]] = SPECS
    toy_rows = (
        {"text": "A wonderful film that nobody should miss."},
        {"text": "Two hours of boredom, and no end."},
        {"text": "Great!"},
        {"text": "The worst thing that I have seen this year."},
    )

    @classmethod
    def roles(cls, config: LanguageModelingConfig) -> Roles:
        return {"text": Text()}

    @property
    def settings(self) -> LanguageModelingConfig:
        config: Any = self.recipe.task
        return config

    def input_text(self, row: Texts) -> str:
        return row["text"]

    def target_text(self, row: Texts) -> str:
        return row["text"]

    def score(self, records: Iterable[Mapping[str, Any]], resamples: int) -> dict[str, Any]:
        """Return loss, perplexity and accuracy over the predicted tokens."""
        from trainer.tasks.language_modeling.metrics import score_tokens

        return score_tokens(records, resamples, words=self.scores_words)
