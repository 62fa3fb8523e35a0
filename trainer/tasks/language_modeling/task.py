"""Language modeling on plain text. Objective causal: predict the next token; mlm: predict masked tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trainer.models.configs import TransformerXLConfig
from trainer.task.base import Task
from trainer.tasks.language_modeling.base import LanguageModeling
from trainer.tasks.language_modeling.causal import CausalLanguageModeling
from trainer.tasks.language_modeling.masked import MaskedLanguageModeling
from trainer.tasks.language_modeling.recurrent import RecurrentLanguageModeling

if TYPE_CHECKING:
    from trainer.recipe import Recipe


class AnyLanguageModeling(LanguageModeling):
    """The task of the kind `language_modeling`, before objective and model are known."""

    @classmethod
    def of(cls, recipe: Recipe) -> type[Task]:
        task: Any = recipe.task
        if task.objective == "mlm":
            return MaskedLanguageModeling
        return RecurrentLanguageModeling if isinstance(recipe.model, TransformerXLConfig) else CausalLanguageModeling
