"""From the states of a text's tokens to one vector of the text.

Shapes: B rows, T tokens, M features.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from trainer.errors import UsageError
from trainer.models.attention import MASKED
from trainer.models.families import family_of, padding_of

LOOKS_BACK = ("clip_text_model",)  # its layers do not say that they are causal
LOOKS_BOTH_WAYS = ("cpmant",)  # language models whose states see the whole text


def pool(hidden: Tensor, attention_mask: Tensor | None, pooling: str, last: bool = False) -> Tensor:
    """Pool the states of each row's tokens.

    Args:
        hidden: (B, T, M).
        attention_mask: (B, T), 1 = token, padding on either side. None: no row has padding.
        pooling: cls, mean or max.
        last: with cls, take the last token that is no padding instead of the first position.

    Returns:
        (B, M).
    """
    if attention_mask is None:
        attention_mask = torch.ones(hidden.shape[:2], dtype=torch.int64, device=hidden.device)
    if pooling == "cls":
        return at_last(hidden, attention_mask) if last else hidden[:, 0]
    mask = attention_mask[..., None]
    if pooling == "max":
        return torch.where(mask > 0, hidden, MASKED).amax(1)
    mean = (hidden.float() * mask).sum(1) / mask.sum(1).clamp(min=1)
    return mean.to(hidden.dtype)


def at_last(hidden: Tensor, marks: Tensor) -> Tensor:
    """Return the states (B, M) at the last position of each row that `marks` (B, T) sets to 1, from (B, T, M)."""
    places = torch.arange(marks.shape[1], device=marks.device)
    last = (marks * places).amax(1)
    return hidden.gather(1, last[:, None, None].expand(-1, 1, hidden.shape[-1])).squeeze(1)


def ends_with_summary(trunk: nn.Module) -> bool:
    """Whether the last token summarizes a text: tokens see only those before them, or padding is on the left."""
    return padding_of(getattr(trunk, "config", None)).left or is_causal(trunk)


def is_causal(trunk: nn.Module) -> bool:
    """Whether a token of a transformers model sees only those before it.

    Attention layers say so where they can. Otherwise a family is causal that has a language model but no masked one.
    """
    config: Any = getattr(trunk, "config", None)
    if config is None:
        return False
    said = {flag for module in trunk.modules() if isinstance(flag := getattr(module, "is_causal", None), bool)}
    if said and config.model_type not in LOOKS_BACK:
        return True in said
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as MASKING

    kind = config.model_type
    if getattr(config, "is_decoder", False) or kind in LOOKS_BACK:
        return True
    if config.is_encoder_decoder or kind in LOOKS_BOTH_WAYS or family_of(config).bidirectional:
        return False
    return kind in CAUSAL and kind not in MASKING


def check_head(model: nn.Module) -> None:
    """Check that an encoder's own head, which reads the first token, does not belong to a causal trunk.

    Raises:
        UsageError: it does.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as MASKING

    config: Any = model.config
    if getattr(config, "is_decoder", False) and not config.is_encoder_decoder and config.model_type in MASKING:
        raise UsageError(
            f"model.config.is_decoder=true: the head of {type(model).__name__} reads the first token, which sees no "
            "other one. Set model.pooling to cls (which is then the last token), mean or max, or leave is_decoder out"
        )


def reading_part(trunk: nn.Module) -> nn.Module:
    """Return the encoder of an encoder-decoder, and any other model as it is."""
    halves = [getattr(trunk, name, None) for name in ("encoder", "decoder")]
    return trunk.get_encoder() if None not in halves else trunk  # type: ignore[operator]


def classify_at_last_end(model: nn.Module) -> None:
    """Let an encoder-decoder's own head read the last end-of-text token of each row.

    The library does so, too, but refuses a batch whose rows have different numbers of them: a text may contain one.
    """
    if getattr(model.config, "is_encoder_decoder", False) and hasattr(model, "classification_head"):
        changed: Any = model
        changed.forward = MethodType(_at_last_end, model)


def _at_last_end(model: Any, input_ids: Tensor, attention_mask: Tensor | None = None, **inputs: Any) -> Any:
    """input_ids (B, T) -> logits (B, classes)."""
    from transformers.modeling_outputs import SequenceClassifierOutput

    if hasattr(model, "_shift_right"):  # T5; BART shifts in its forward
        inputs["decoder_input_ids"] = model._shift_right(input_ids)
    hidden = getattr(model, model.base_model_prefix)(input_ids, attention_mask=attention_mask, **inputs)[0]
    ends = (input_ids == model.config.eos_token_id).long()
    tokens = torch.ones_like(ends) if attention_mask is None else attention_mask
    marks = torch.where(ends.amax(1, keepdim=True) > 0, ends, tokens)  # without any, the last token
    return SequenceClassifierOutput(logits=model.classification_head(at_last(hidden, marks)))
