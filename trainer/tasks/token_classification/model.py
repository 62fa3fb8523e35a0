"""The model of a token classification: one linear layer on the hidden state of each token."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from trainer.models.classifiers import HEAD_STD
from trainer.models.configs import EncoderConfig
from trainer.models.dropout import Dropout
from trainer.models.encoder import Encoder
from trainer.models.hf_config import label_maps
from trainer.models.pretrained import load_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from trainer.recipe import Recipe


class TokenTagger(nn.Module):
    """Our own encoder, whose hidden states are classified one by one."""

    def __init__(self, trunk: Encoder, width: int, names: list[str], p: float) -> None:
        super().__init__()
        self.trunk, self.dropout, self.names = trunk, Dropout(p), names
        self.head = nn.Linear(width, len(names))
        nn.init.normal_(self.head.weight, std=HEAD_STD)
        nn.init.zeros_(self.head.bias)

    def get_input_embeddings(self) -> nn.Module:
        return self.trunk.get_input_embeddings()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(B, T) int64 -> logits (B, T, tags)."""
        return self.head(self.dropout(self.trunk(input_ids, attention_mask)))


def build_tagger(
    recipe: Recipe, tokenizer: PreTrainedTokenizerFast, names: list[str], trained: Path | None = None
) -> nn.Module:
    """Build the model of a recipe with its initial weights, or without weights for a `trained` folder.

    A pretrained model is the library's own class, so that stock transformers loads what is published.

    Raises:
        UsageError: it cannot be loaded, or tokenizer or lengths do not fit it.
    """
    from transformers import AutoModelForTokenClassification

    settings: Any = recipe.model
    if isinstance(settings, EncoderConfig):
        trunk = Encoder(settings, len(tokenizer), recipe.data.padded(recipe.data.max_length))
        model: nn.Module = TokenTagger(trunk, settings.d_model, names, settings.dropout)
    else:
        auto, labels = AutoModelForTokenClassification, label_maps(names)
        model = load_model(auto, recipe, tokenizer, trained, num_labels=len(names), **labels)
    return model
