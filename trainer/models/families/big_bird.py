"""BigBird (Zaheer et al. 2020): blocks of sparse attention."""

from __future__ import annotations

from collections.abc import Mapping
from types import MethodType
from typing import TYPE_CHECKING, Any

from trainer.errors import UsageError
from trainer.models.families.base import Family, Padding

if TYPE_CHECKING:
    from torch import Tensor, nn


class BigBird(Family):
    """Widths are multiples of the block size, and wide enough for the sparse attention."""

    model_type = "big_bird"
    sizes = {  # noqa: RUF012
        "tiny": {"block_size": 16, "num_random_blocks": 2},
        "small": {"block_size": 32, "num_random_blocks": 3},
    }
    subtracts_mask = True

    def padding(self, config: Any, *, training: bool) -> Padding:
        if config.attention_type != "block_sparse":
            return Padding()
        # with (5 + 2r) blocks and fewer the library switches to full attention for good
        return Padding(config.block_size, (6 + 2 * config.num_random_blocks) * config.block_size, masked=True)

    def make_causal(self, config: Any, given: Mapping[str, Any]) -> None:
        if given.get("attention_type") == "block_sparse":
            raise UsageError(
                "model.config.attention_type=block_sparse: the sparse attention of BigBird sees both sides, so it "
                "cannot be trained with objective causal; set it to original_full, or use objective mlm"
            )
        config.attention_type = "original_full"

    def patch(self, model: nn.Module) -> None:
        """Compute the sparse attention without its probabilities.

        The library spreads them over (B, H, T, T) although no caller reads them. So memory would grow with the square
        of the length, and under autocast it would fail, where they are fp32 and the context is not.
        """
        from transformers.models.big_bird.modeling_big_bird import BigBirdBlockSparseAttention

        for module in model.modules():
            if isinstance(module, BigBirdBlockSparseAttention):
                changed: Any = module
                changed.bigbird_block_sparse_attention = MethodType(_attend_sparsely, module)

    def export_problem(self, config: Mapping[str, Any]) -> str | None:
        if config.get("attention_type") != "block_sparse":
            return None
        return (
            "torch's exporter fixes its attention blocks to one length; "
            "model.config={attention_type: original_full} can be exported"
        )


def _attend_sparsely(attention: Any, query: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
    """Return the context (B, T, H, D), and None instead of the probabilities."""
    import torch

    from trainer.models.families.torch_modes import NoProbabilities, autocast_device

    with torch.autocast(autocast_device(query), enabled=False), NoProbabilities():
        context, _ = type(attention).bigbird_block_sparse_attention(attention, query, *args, **kwargs)
    return context, None


FAMILY = BigBird()
