"""Masks of transformers models without a look at their values, which would make the host wait for the device.

The library looks at the values of a mask (`padding_mask.all()`) to leave one out that hides nothing, at those of
position ids to find several documents in a row, and at ids without a mask to warn about padding. In a training step all
is known without the device: a micro-batch without padding has no mask, and the task knows whether its rows hold several
documents.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor

from trainer.models.padding_free import current

_several: bool | None = None  # whether a row may hold several documents; None: the library looks at the values


@contextlib.contextmanager
def known_rows(*, several: bool) -> Iterator[None]:
    """Build masks without reading the device in this block. A 2-D mask is then always used, whatever its values.

    Args:
        several: whether rows may hold several documents, separated by position ids that restart.
    """
    global _several
    before, _several = _several, several
    try:
        yield
    finally:
        _several = before


@cache
def _library() -> Any:
    """Return the library's module of masks. Its import takes a second, which own models do not need."""
    from transformers import masking_utils

    return masking_utils


@cache
def install() -> None:
    """Make the library's masks follow `known_rows`. Outside such a block nothing changes."""
    from transformers import AttentionMaskInterface, PreTrainedModel

    masking_utils = _library()
    original: Any = masking_utils.find_packed_sequence_indices
    warn: Any = PreTrainedModel.warn_if_padding_and_no_attention_mask

    def document_numbers(position_ids: Tensor) -> Tensor | None:
        if _several is None:
            numbers: Tensor | None = original(position_ids)
            return numbers
        if not _several:
            return None
        return (torch.diff(position_ids, prepend=position_ids[:, :1] - 1, dim=-1) != 1).cumsum(-1)

    def warn_if_padding(self: Any, input_ids: Tensor, attention_mask: Tensor | None) -> None:
        if _several is None:
            warn(self, input_ids, attention_mask)

    masking_utils.find_packed_sequence_indices = document_numbers
    PreTrainedModel.warn_if_padding_and_no_attention_mask = warn_if_padding
    AttentionMaskInterface.register("sdpa", sdpa_mask)
    AttentionMaskInterface.register("eager", eager_mask)


def _unread(function: Any) -> Any:
    """Return a mask function of the library that leaves no given mask out in a `known_rows` block.

    Where rows are concatenated, a token attends to its own row only.
    """

    def mask(*sizes: Any, attention_mask: Tensor | None = None, **options: Any) -> Tensor | None:
        rows = current()
        if rows is not None:
            masking_utils = _library()
            same_row = masking_utils.packed_sequence_mask_function(rows.numbers[None])
            options["mask_function"] = masking_utils.and_masks(options["mask_function"], same_row)
        if rows is not None or (_several is not None and attention_mask is not None):
            options.update(allow_is_causal_skip=False, allow_is_bidirectional_skip=False)
        made: Tensor | None = function(*sizes, attention_mask=attention_mask, **options)
        return made

    return mask


def sdpa_mask(*sizes: Any, **options: Any) -> Tensor | None:
    """Return a Boolean mask, as the library's function of the same name."""
    made: Tensor | None = _unread(_library().sdpa_mask)(*sizes, **options)
    return made


def eager_mask(*sizes: Any, **options: Any) -> Tensor | None:
    """Return an additive mask, as the library's function of the same name."""
    made: Tensor | None = _unread(_library().eager_mask)(*sizes, **options)
    return made
