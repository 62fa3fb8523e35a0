"""XLNet (Yang et al. 2019): padding on the left, embeddings of transposed ids."""

from __future__ import annotations

from typing import Any

from trainer.models.families.base import Family, Padding


class XLNet(Family):
    """XLNet pads on the left, so that the last token represents the text. Its embedding gets (T, B)."""

    model_type = "xlnet"
    rows_dimension = 1
    bidirectional = True
    subtracts_mask = True

    def padding(self, config: Any, *, training: bool) -> Padding:
        return Padding(left=True, masked=True)


FAMILY = XLNet()
