"""The models of language modelling recipes, with the weights that they begin with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from trainer.models.configs import EncoderConfig, PretrainedConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from trainer.recipe import Recipe


def build_masked(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, trained: Path | None = None) -> nn.Module:
    """A masked language model: our encoder, or any AutoModelForMaskedLM.

    Raises:
        UsageError: it cannot be loaded, or tokenizer or lengths do not fit it.
    """
    settings: Any = recipe.model
    if isinstance(settings, EncoderConfig):
        from trainer.models.classifiers import positions_of
        from trainer.models.encoder import MaskedLanguageModel

        model: nn.Module = MaskedLanguageModel(settings, len(tokenizer), positions_of(recipe))
    else:
        from transformers import AutoModelForMaskedLM

        from trainer.models.pretrained import check_fits, load_model

        assert isinstance(settings, PretrainedConfig)
        config = json.loads((trained / "config.json").read_text(encoding="utf-8")) if trained else None
        model = load_model(AutoModelForMaskedLM, settings, config)
        check_fits(model, settings.name, len(tokenizer), recipe.data.max_length)
    if settings.init_from is not None and trained is None:
        from trainer.models.classifiers import load_trunk

        load_trunk(model, Path(settings.init_from))
    return model
