"""Longformer (Beltagy et al. 2020): windows of attention, and global attention on the first token."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trainer.models.families.base import Family, Padding

if TYPE_CHECKING:
    from torch import Tensor, nn


class Longformer(Family):
    """Widths are multiples of the attention windows."""

    model_type = "longformer"
    sizes = {"tiny": {"attention_window": 32}, "small": {"attention_window": 128}}  # noqa: RUF012

    def padding(self, config: Any, *, training: bool) -> Padding:
        window = config.attention_window
        return Padding(window if isinstance(window, int) else math.lcm(*window), masked=True)

    def patch(self, model: nn.Module) -> None:
        """Add global attention on the first token. The library does so in its own classifier only."""
        from transformers import LongformerModel

        for module in model.modules():
            if isinstance(module, LongformerModel):
                module.register_forward_pre_hook(_attend_from_first_token, with_kwargs=True)

    def export_problem(self, config: Mapping[str, Any]) -> str | None:
        return "torch's exporter cannot follow its attention windows, whose number depends on the length"


def _attend_from_first_token(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if kwargs.get("global_attention_mask") is None:
        ids: Tensor = args[0] if args else kwargs["input_ids"]
        mask = ids.new_zeros(ids.shape)
        mask[:, 0] = 1
        kwargs = {**kwargs, "global_attention_mask": mask}
    return args, kwargs


FAMILY = Longformer()
