"""Rows of attention.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def rounded(values: Tensor) -> Any:
    """Return nested lists of numbers with four digits, for figures."""
    return values.double().mul(1e4).round().div(1e4).tolist()


def attention_row(
    record: Mapping[str, Any], tokens: Sequence[str], keys: Sequence[str], weights: Tensor, relevance: Tensor
) -> dict[str, Any]:
    """Return a row of attention.json: weights (L, H, T, S) of T queries and S keys, relevance (S) of the keys."""
    return {
        "id": record["id"], "title": record["input"], "prediction": record["prediction"], "target": record["target"],
        "tokens": list(tokens), "keys": list(keys), "layers": weights.shape[0], "heads": weights.shape[1],
        "weights": rounded(weights), "relevance": rounded(relevance),
    }  # fmt: skip
