"""What a task writes to model/: weights, configuration and tokenizer, as stock libraries read them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from trainer.data.roles import Roles
from trainer.files import write_json
from trainer.models.hf_config import config_json
from trainer.redaction import origin

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import nn
    from transformers import PreTrainedTokenizerFast

    from trainer.recipe import Recipe


class PublishedModel(ABC):
    """The part of a task that writes its model."""

    recipe: Recipe
    tokenizer: PreTrainedTokenizerFast

    @classmethod
    @abstractmethod
    def roles(cls, config: Any) -> Roles: ...

    @property
    @abstractmethod
    def pad_id(self) -> int: ...

    def save_model(self, model: nn.Module, folder: Path, dtype: torch.dtype | None = None) -> None:
        """Write a model to an empty folder, with all that stock libraries need to use it. See trainer.models.folder.

        Args:
            dtype: of the written weights; by default that of the model.
        """
        from trainer.models.folder import write_folder

        write_folder(folder, model, self.model_config(model), self.special_ids, self.recipe.data.max_length, dtype)
        if (generation := self.generation_config(model)) is not None:
            write_json(folder / "generation_config.json", generation)
        self.save_tokenizer(folder)

    @property
    def special_ids(self) -> dict[str, int | None]:
        """The ids in the configuration of a stock class for a model of rankzero."""
        own: Any = self.tokenizer
        return {"pad_token_id": self.pad_id, "bos_token_id": own.bos_token_id, "eos_token_id": own.eos_token_id}

    def generation_config(self, model: nn.Module) -> dict[str, Any] | None:
        """Return the generation_config.json with which `generate` of transformers gives the texts of `predict`."""
        return None

    def save_tokenizer(self, folder: Path, tokenizer: Any = None, side: str = "right") -> None:
        """Save the tokenizer, or a changed copy, with the length and side at which stock transformers cuts texts.

        Single texts have no token types here, and some models would add an embedding of type 0.
        """
        saved: Any = tokenizer or self.tokenizer
        if "text_pair" not in self.roles(self.recipe.task):
            names = [name for name in saved.model_input_names if name != "token_type_ids"]
            saved.model_input_names = saved.init_kwargs["model_input_names"] = names
        saved.truncation_side = saved.init_kwargs["truncation_side"] = side
        saved.model_max_length = self.recipe.data.max_length
        saved.save_pretrained(folder)

    def model_config(self, model: nn.Module) -> dict[str, Any]:
        """Return config.json of the model. For a model of rankzero it is its recipe section and the vocabulary size."""
        if (own := config_json(model)) is not None:
            return own
        settings = self.recipe.model.model_dump(mode="json")
        sizes = {"vocab_size": len(self.tokenizer), "max_length": self.recipe.data.max_length}
        settings |= {key: origin(settings[key]) for key in ("name", "init_from") if key in settings}
        return {"model_type": f"rankzero-{settings['kind']}", **sizes, **settings}
