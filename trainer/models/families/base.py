"""The questions that are asked about a family of models, with the answers for BERT and most others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Padding:
    """The width of the micro-batches of a model.

    Attributes:
        multiple: widths are multiples of this.
        narrowest: the smallest width, a multiple of `multiple`.
        left: padding is before the tokens, and the last token represents the text.
        masked: the model needs a mask even where no row has padding.
    """

    multiple: int = 1
    narrowest: int = 1
    left: bool = False
    masked: bool = False

    def width(self, length: int) -> int:
        """Return the width of a micro-batch whose longest row has `length` tokens."""
        return math.ceil(max(length, self.narrowest) / self.multiple) * self.multiple

    def rows(self, sequences: Sequence[Sequence[int]], value: int) -> list[list[int]]:
        """Pad the sequences of a micro-batch to its width."""
        width = self.width(max(map(len, sequences)))
        fill = [[value] * (width - len(s)) for s in sequences]
        return [[*f, *s] if self.left else [*s, *f] for s, f in zip(sequences, fill, strict=True)]

    def also(self, multiple: int) -> Padding:
        """Return the same padding with widths that are multiples of `multiple`, too."""
        both = math.lcm(self.multiple, multiple)
        return replace(self, multiple=both, narrowest=math.ceil(self.narrowest / both) * both)


class Family:
    """A family without peculiarities. A subclass changes what differs.

    Left to itself, the library pads inside the forward of some families, or switches for good to another attention if
    a batch is too short. A step would then depend on the lengths of earlier steps. Here the width is that of the
    micro-batch alone.
    """

    model_type: ClassVar[str] = ""
    sizes: ClassVar[Mapping[str, Mapping[str, Any]]] = {}  # model.size -> keys besides width, layers and heads
    rows_dimension: ClassVar[int] = 0  # the dimension of the input of an embedding that counts rows
    states_per_token: ClassVar[int] = 1  # last hidden states side by side
    bidirectional: ClassVar[bool] = False  # a language model whose states see the whole text
    stock_problem: ClassVar[str | None] = None  # why the library's class gives other outputs
    subtracts_mask: ClassVar[bool] = False  # computes 1.0 - mask, which torch's exporter does for floats only

    def padding(self, config: Any, *, training: bool) -> Padding:
        """Return the width of micro-batches. `training`: not for a finished model."""
        return Padding()

    def complete(self, config: Any, longest: int, given: Mapping[str, Any], *, own_positions: bool) -> None:
        """Set keys of a configuration that depend on the length of the longest row.

        Args:
            config: is changed.
            longest: tokens, padded to a multiple of `data.pad_multiple`.
            given: keys that the recipe has set. They are kept.
            own_positions: no trained positions have to be kept.

        Raises:
            UsageError: keys contradict each other.
        """

    def make_causal(self, config: Any, given: Mapping[str, Any]) -> None:
        """Change a configuration whose `is_decoder` has been set.

        Raises:
            UsageError: the attention that the recipe sets cannot be causal.
        """

    def check_length(self, config: Any, name: str, max_length: int, padded: int) -> None:
        """Check `data.max_length`, and its value padded to `data.pad_multiple`, against a pretrained model.

        Raises:
            UsageError: rows are longer than the positions of the model.
        """

    def patch(self, model: nn.Module) -> None:
        """Change modules of a model that was built. No weight changes its name or shape."""

    def export_problem(self, config: Mapping[str, Any]) -> str | None:
        """Return why torch cannot export a model with this config.json, or None."""
        return None
