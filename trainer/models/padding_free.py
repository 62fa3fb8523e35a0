"""Rows of a micro-batch concatenated into one row without padding (`data.padding: none`).

A task and its head see padded rows, as always. Where a trunk begins, their tokens are concatenated, and where it ends,
its states are padded again. In between a token attends to its own row only: by a block-diagonal mask, or by
`cu_seq_lens` where a flash kernel runs.

Shapes: B rows, W padded positions, N tokens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from trainer.concatenation import ENDS, PLACES
from trainer.errors import UsageError
from trainer.hub_paths import locate
from trainer.models.families.positions import CONCATENATED, not_concatenated, position_ids

_current: Rows | None = None


@dataclass(frozen=True, eq=False)
class Rows:
    """Where the tokens of padded rows are.

    Attributes:
        places: (N,) int64, among the B * W positions of the padded rows.
        ends: (B + 1,) int32, 0 and the number of tokens up to the end of each row (`cu_seq_lens`).
        width: W, at least the length of the longest row.
    """

    places: Tensor
    ends: Tensor
    width: int

    @classmethod
    def of(cls, batch: Mapping[str, Tensor], width: int, prefix: str = "") -> Rows | None:
        """Return the rows of a batch that `described` has marked, or None."""
        if prefix + PLACES not in batch:
            return None
        return cls(batch[prefix + PLACES], batch[prefix + ENDS], width)

    def flat(self, padded: Tensor) -> Tensor:
        """(B, W, …) -> (1, N, …)"""
        return padded.flatten(0, 1).index_select(0, self.places)[None]

    def padded(self, flat: Tensor) -> Tensor:
        """(1, N, …) -> (B, W, …), with zeros for padding."""
        rows = len(self.ends) - 1
        places = flat.new_zeros(rows * self.width, *flat.shape[2:])
        return places.index_copy(0, self.places, flat[0]).unflatten(0, (rows, self.width))

    @property
    def columns(self) -> Tensor:
        """(N,): the position of each token in its row."""
        return self.places % self.width

    @property
    def numbers(self) -> Tensor:
        """(N,): the number of each token's row."""
        return self.places // self.width

    def mask(self, keys: Rows | None = None, *, causal: bool = False) -> Tensor:
        """Return (1, 1, N, K), True where a token attends to one of `keys` (by default these rows): in its own row."""
        keys = keys or self
        same = self.numbers[:, None] == keys.numbers
        if causal:
            same = same & (self.columns[:, None] >= keys.columns)
        return same[None, None]


def check_family(name: str) -> None:
    """Check that rows can be concatenated for pretrained weights.

    Raises:
        UsageError: their family does not support it.
    """
    from transformers import PreTrainedConfig

    place, revision = locate(name)
    kind = PreTrainedConfig.get_config_dict(place, revision=revision)[0].get("model_type")
    if kind not in CONCATENATED:
        raise UsageError(f"data.padding: {not_concatenated(str(kind))} (model.name={name!r})")


def current() -> Rows | None:
    """Return the rows that a trunk has concatenated."""
    return _current


@contextlib.contextmanager
def concatenated(rows: Rows | None) -> Iterator[None]:
    """Concatenate the rows of a trunk of `attach_trunk` in this block. None: leave them padded."""
    global _current
    before, _current = _current, rows
    try:
        yield
    finally:
        _current = before


def attach_trunk(model: nn.Module) -> None:
    """Let the trunk of a model follow `concatenated`."""
    trunk: Any = getattr(model, "trunk", None) or getattr(model, "base_model", model)
    trunk.register_forward_pre_hook(_concatenate, with_kwargs=True)
    trunk.register_forward_hook(_pad)


def _concatenate(trunk: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
    rows, inputs = _current, {**dict(zip(("input_ids", "attention_mask"), args, strict=False)), **kwargs}
    if rows is None:
        return None
    config: Any = getattr(trunk, "config", None)
    positions = inputs.get("position_ids")
    if positions is None:
        positions = position_ids(config, inputs["input_ids"])
    by_token = {**inputs, "position_ids": positions}
    for name in ("input_ids", "position_ids", "token_type_ids"):
        if by_token.get(name) is not None:
            inputs[name] = rows.flat(by_token[name])
    # the library builds its masks by `library_masks`, also those of windows
    inputs["attention_mask"] = rows.mask() if config is None else None
    return (), inputs


def _pad(trunk: Any, args: Any, output: Any) -> Any:
    if _current is None:
        return None
    if isinstance(output, Tensor):
        return _current.padded(output)
    output["last_hidden_state"] = _current.padded(output.last_hidden_state)
    if output.get("pooler_output") is not None:  # it has read the first token of all rows
        output["pooler_output"] = trunk.pooler(output.last_hidden_state)
    return output
