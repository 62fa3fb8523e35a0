"""Models of the transformers library: loaded safely, checked against the recipe, and made fast on a CPU.

On a CPU with bf16 most of a fine-tuning step goes into attention and into dropout's random numbers (docs/results.md):
the attention of `trainer.models.attention`'s kind and the cheap dropout of `trainer.models.dropout` take their place.
Neither changes a weight's name, so that what is trained here is loaded anywhere.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from trainer.errors import UsageError
from trainer.locations import FORMS, locate
from trainer.models.dropout import Dropout, dropout
from trainer.models.explain import record

if TYPE_CHECKING:
    from trainer.models.configs import PretrainedConfig

FAST = "rankzero_eager"  # its name in transformers' registry of attention functions
OFFSET_TYPES = ("roberta", "xlm-roberta", "camembert", "xlm-roberta-xl", "longformer", "data2vec-text")


def load_model(
    auto: type, settings: PretrainedConfig, trained: dict[str, Any] | None = None, **config: Any
) -> nn.Module:
    """A model of the transformers library, fp32, in training mode.

    Args:
        auto: AutoModel, AutoModelForSequenceClassification, …
        settings: name, dropout and attention.
        trained: config.json of a finished run's model: its architecture without weights, which the caller loads.
        config: changes to the model's configuration, such as `num_labels`.

    Raises:
        UsageError: no such model, it cannot be reached, or this class does not know its architecture.
    """
    from transformers import AutoConfig
    from transformers.utils import logging

    logging.set_verbosity_error()  # "newly initialized: classifier" is what is wanted here
    logging.disable_progress_bar()
    try:
        if trained is not None:
            model = auto.from_config(AutoConfig.for_model(**trained))  # type: ignore[attr-defined]
        else:
            place, revision = locate(settings.name)
            found = AutoConfig.from_pretrained(place, revision=revision, trust_remote_code=False)
            found.update(config)
            model = auto.from_pretrained(  # type: ignore[attr-defined]
                place, revision=revision, config=found, trust_remote_code=False, dtype=torch.float32
            )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"model.name={settings.name!r} cannot be loaded: {reason}. Give {FORMS}") from error
    use_attention(model, settings.attention)
    replace_dropout(model, settings.dropout)
    return model.train()


def use_attention(model: nn.Module, kind: str) -> None:
    """Chooses how attention is computed: auto is ours on a CPU (where the model has a choice), else the library's."""
    ours = kind == "rankzero" or (kind == "auto" and not torch.cuda.is_available())
    if ours and not getattr(model, "_supports_attention_backend", False):
        return
    if kind == "auto" and not ours:
        return
    if ours:
        _register()
    implementation = FAST if ours else kind
    with contextlib.suppress(ValueError):  # an architecture with one way only keeps it
        model.set_attn_implementation(implementation)  # type: ignore[operator]


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(FAST, attention)
    AttentionMaskInterface.register(FAST, eager_mask)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,  # transformers' name
    **_: Any,
) -> tuple[Tensor, None]:
    """query (B, H, T, D), key and value (B, G, S, D), mask added to (B, 1, T, S) -> (B, T, H, D), no weights.

    Eager: on a CPU the backward pass of SDPA in bf16 takes three times as long (docs/results.md).
    """
    b, h, t, d = query.shape
    if key.shape[1] != h:  # grouped queries: a key for every few heads
        key, value = (x.repeat_interleave(h // x.shape[1], 1) for x in (key, value))
    q, k, v = query.reshape(b * h, t, d), key.reshape(b * h, -1, d), value.reshape(b * h, -1, d)
    scores = torch.bmm(q, k.transpose(1, 2)).view(b, h, t, -1)
    scale = d**-0.5 if scaling is None else scaling
    scores = scores.float() * scale if attention_mask is None else torch.add(attention_mask, scores, alpha=scale)
    weights = scores.float().softmax(-1)
    record(weights)
    weights = _dropout(weights, dropout, module.training).to(v.dtype)
    return torch.bmm(weights.flatten(0, 1), v).view(b, h, t, d).transpose(1, 2).contiguous(), None


_dropout = dropout


def replace_dropout(model: nn.Module, p: float | None = None) -> None:
    """Puts our Dropout in the place of torch's, everywhere, with the same probability unless `p` is given."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Dropout):
                setattr(parent, name, Dropout(child.p if p is None else p))


def check_fits(model: nn.Module, name: str, tokens: int, max_length: int) -> None:
    """Whether ids and positions of the recipe fit the model's embeddings.

    Raises:
        UsageError: with both numbers.
    """
    config: Any = model.config
    rows = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    if tokens > rows:
        raise UsageError(
            f"the tokenizer has {tokens:,} tokens but the embedding of {name!r} has {rows:,} rows: ids would lie "
            "outside it; leave `tokenizer` out of the recipe, so that the model's own is used"
        )
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and positions > 0:
        # these count positions from the padding id on
        limit = positions - (config.pad_token_id + 1 if config.model_type in OFFSET_TYPES else 0)
        if max_length > limit:
            raise UsageError(
                f"data.max_length={max_length} is more than the {limit} positions of {name!r}: "
                f"set data.max_length to {limit} or less, or choose a model for longer texts"
            )
