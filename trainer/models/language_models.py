"""Build the models of language modeling and text-to-text recipes, with their initial weights."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from trainer.errors import UsageError
from trainer.models.configs import EncoderConfig
from trainer.models.encoder import MaskedLanguageModel
from trainer.models.pretrained import load_model

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedTokenizerFast

    from trainer.recipe import Recipe

SEEN = 1e-3  # difference of a logit that shows that a token attends to a later one


def build_masked(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, trained: Path | None = None) -> nn.Module:
    """Build a masked language model: our encoder, or any AutoModelForMaskedLM.

    Raises:
        UsageError: it cannot be loaded, or tokenizer or lengths do not fit it.
    """
    settings: Any = recipe.model
    if isinstance(settings, EncoderConfig):
        return MaskedLanguageModel(settings, len(tokenizer), recipe.data.padded(recipe.data.max_length))
    from transformers import AutoModelForMaskedLM

    return load_model(AutoModelForMaskedLM, recipe, tokenizer, trained)


def build_causal(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, trained: Path | None = None) -> nn.Module:
    """Build a causal language model: any AutoModelForCausalLM.

    Raises:
        UsageError: it cannot be loaded, tokenizer or lengths do not fit it, or it takes no positions.
    """
    from transformers import AutoModelForCausalLM

    model = load_model(AutoModelForCausalLM, recipe, tokenizer, trained, causal=True)
    name = type(model).__name__
    if trained is None and "position_ids" not in inspect.signature(model.forward).parameters:
        raise UsageError(f"objective causal: {name} takes no position_ids; choose another architecture, such as gpt2")
    return model


@torch.no_grad()
def check_causal(model: nn.Module) -> None:
    """Check that no token attends to later ones. Such a model would learn to copy, and its loss would look perfect.

    Raises:
        UsageError: a token attends to later ones.
    """
    name, was_training, logits = type(model).__name__, model.training, []
    device = model.get_input_embeddings().weight.device  # type: ignore[operator]
    model.eval()
    for last in (2, 3):  # ids that every vocabulary has
        ids = torch.tensor([[1, 2, 3, 4, last]], device=device)
        positions = torch.arange(5, device=device)[None]
        logits.append(model(input_ids=ids, position_ids=positions, use_cache=False).logits[0, :4])
    model.train(was_training)
    if (difference := float((logits[0] - logits[1]).abs().max())) > SEEN:
        raise UsageError(
            f"objective causal: {name} attends to the tokens that it has to predict (a logit differs by "
            f"{difference:.2g} with the next one); choose an architecture that can be a decoder, "
            "such as gpt2, or objective mlm"
        )


def build_seq2seq(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, trained: Path | None = None) -> nn.Module:
    """Build a sequence-to-sequence model: any AutoModelForSeq2SeqLM.

    Raises:
        UsageError: it cannot be loaded, tokenizer or lengths do not fit it, or it has no decoder start token.
    """
    from transformers import AutoModelForSeq2SeqLM

    settings: Any = recipe.model
    model: Any = load_model(AutoModelForSeq2SeqLM, recipe, tokenizer, trained)
    if getattr(model.config, "decoder_start_token_id", None) is None:
        raise UsageError(
            f"model {settings.title!r} has no decoder_start_token_id, the token before a target: set it, e.g. "
            "model.config={decoder_start_token_id: 0}"
        )
    return model
