"""Where the tokens of padded rows are, for `data.padding: none`: the part of it that the loader does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

PLACES, ENDS = "token_places", "cu_seq_lens"  # ends of the names of two tensors of a batch


def described(marks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors that `trainer.models.padding_free.Rows.of` reads.

    Args:
        marks: (B, W) by prefix of the names, True = token. Each row has one.
    """
    import torch

    found: dict[str, Tensor] = {}
    for prefix, tokens in marks.items():
        ends = torch.zeros(len(tokens) + 1, dtype=torch.int32)
        ends[1:] = tokens.sum(1).cumsum(0)
        found |= {prefix + PLACES: tokens.flatten().nonzero()[:, 0], prefix + ENDS: ends}
    return found


def is_description(name: str) -> bool:
    """Return whether a tensor of a batch is one of `described`. It cannot be split by rows."""
    return name.endswith((PLACES, ENDS))
