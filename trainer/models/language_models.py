"""The models of language modelling recipes, with the weights that they begin with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from trainer.models.classifiers import begin_from
from trainer.models.configs import EncoderConfig

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedTokenizerFast

    from trainer.recipe import Recipe


def build_masked(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, trained: Path | None = None) -> nn.Module:
    """A masked language model: our encoder, or any AutoModelForMaskedLM.

    Raises:
        UsageError: it cannot be loaded, or tokenizer or lengths do not fit it.
    """
    settings: Any = recipe.model
    if isinstance(settings, EncoderConfig):
        from trainer.models.encoder import MaskedLanguageModel

        model: nn.Module = MaskedLanguageModel(settings, len(tokenizer), recipe.data.padded(recipe.data.max_length))
    else:
        from transformers import AutoModelForMaskedLM

        from trainer.models.pretrained import load_model

        model = load_model(AutoModelForMaskedLM, recipe, tokenizer, trained)
    return begin_from(model, settings.init_from, trained)


def build_causal(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, trained: Path | None = None) -> nn.Module:
    """A causal language model: any AutoModelForCausalLM.

    Raises:
        UsageError: it cannot be loaded, or tokenizer or lengths do not fit it.
    """
    from transformers import AutoModelForCausalLM

    from trainer.models.pretrained import load_model

    settings: Any = recipe.model
    return begin_from(load_model(AutoModelForCausalLM, recipe, tokenizer, trained), settings.init_from, trained)


def build_seq2seq(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, trained: Path | None = None) -> nn.Module:
    """A sequence-to-sequence model: any AutoModelForSeq2SeqLM.

    Raises:
        UsageError: it cannot be loaded, or tokenizer or lengths do not fit it.
    """
    from transformers import AutoModelForSeq2SeqLM

    from trainer.models.pretrained import load_model

    settings: Any = recipe.model
    return begin_from(load_model(AutoModelForSeq2SeqLM, recipe, tokenizer, trained), settings.init_from, trained)
