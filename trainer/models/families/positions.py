"""Positions of tokens, for the families whose rows can be concatenated (`data.padding: none`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

FROM_ZERO = frozenset({"bert", "electra", "gpt2", "llama", "mistral", "modernbert", "qwen2", "qwen3"})
FROM_PADDING = frozenset({"camembert", "mpnet", "roberta", "xlm-roberta"})  # the first position follows the padding id
CONCATENATED = FROM_ZERO | FROM_PADDING
ALSO_FROM_PADDING = frozenset({"data2vec-text", "longformer", "xlm-roberta-xl"})  # rows of these are not concatenated


def not_concatenated(kind: str) -> str:
    """Return why a family does not support `data.padding: none`, and what to do."""
    known = ", ".join(sorted(CONCATENATED))
    return f"none: rows of {kind!r} cannot be concatenated; leave it out, or choose one of {known}"


def first_position(config: Any) -> int:
    """Return the position of the first token: 0, or the one after the padding id.

    Args:
        config: of a model of the transformers library, or None for a model of rankzero.
    """
    kind = getattr(config, "model_type", None)
    if kind not in FROM_PADDING | ALSO_FROM_PADDING:
        return 0
    return 1 + (1 if kind == "mpnet" else int(config.pad_token_id))  # MPNet has it in its code


def position_ids(config: Any, ids: Tensor) -> Tensor:
    """Return the positions (B, W) of ids (B, W) with padding on the right, as the family counts them.

    Args:
        config: of a model of the transformers library, or None for a model of rankzero.
    """
    import torch

    first = first_position(config)
    if first == 0:
        return torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    pad_id = first - 1
    tokens = (ids != pad_id).long()
    return tokens.cumsum(1) * tokens + pad_id
