"""Language modelling on plain text: `text` in. Objective causal: say every next token; mlm: say what was masked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from trainer.models.configs import TransformerXLConfig
from trainer.recipe.sections import Section
from trainer.task.base import Record, Roles, Task, Texts
from trainer.task.metrics import Metric
from trainer.tasks.language_modeling.metric_specs import SPECS

if TYPE_CHECKING:
    from trainer.recipe import Recipe


class LanguageModelingConfig(Section):
    """`task` section of a language modelling recipe."""

    kind: Literal["language_modeling"] = "language_modeling"
    objective: Literal["mlm", "causal"] = Field("mlm", description="mlm: masked words; causal: the next token")
    mask_share: float = Field(
        0.15, gt=0, lt=1, description="share of a row's tokens that are masked, at least one (mlm)"
    )
    packing: bool = Field(
        True, description="documents share sequences of data.max_length tokens; false: each has its own (causal)"
    )
    cross_documents: bool = Field(False, description="a document sees those before it in its sequence (causal)")


class LanguageModeling(Task):
    """What both objectives share; `of` gives the class of the one that is asked for."""

    kind = "language_modeling"
    config = LanguageModelingConfig
    reporter_path = "trainer.tasks.language_modeling.report:LanguageModelingReport"
    models: ClassVar[tuple[str, ...]] = ("encoder", "pretrained")
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
    def of(cls, recipe: Recipe) -> type[Task]:
        from trainer.tasks.language_modeling.causal import CausalLanguageModeling
        from trainer.tasks.language_modeling.masked import MaskedLanguageModeling
        from trainer.tasks.language_modeling.recurrent import RecurrentLanguageModeling

        task: Any = recipe.task
        if task.objective == "mlm":
            return MaskedLanguageModeling
        recurrent = isinstance(recipe.model, TransformerXLConfig)
        return RecurrentLanguageModeling if recurrent else CausalLanguageModeling

    @classmethod
    def roles(cls, config: LanguageModelingConfig) -> Roles:
        return {"text": None}

    @property
    def settings(self) -> LanguageModelingConfig:
        config: Any = self.recipe.task
        return config

    def input_text(self, row: Texts) -> str:
        return row["text"]

    def target_text(self, row: Texts) -> str:
        return row["text"]

    def score(self, records: Iterable[Mapping[str, Any]], resamples: int) -> dict[str, Any]:
        """loss, perplexity and accuracy over the tokens asked for."""
        from trainer.evaluation.metrics import Perplexity
        from trainer.evaluation.predictions import in_corpus_order

        ordered = in_corpus_order(records)
        tokens = [record["tokens"] for record in ordered]
        losses = [float(record["loss"]) for record in ordered]
        scores = Perplexity().compute(losses=losses, tokens=tokens, resamples=resamples)
        hits = math.fsum(record["correct"] for record in ordered)
        more = self.further_scores(ordered, resamples)
        return {**scores, **more, "accuracy": hits / sum(tokens), "rows": len(ordered)}

    def further_scores(self, records: list[Record], resamples: int) -> dict[str, Any]:
        """Those of this objective alone, from records in corpus order."""
        return {}
