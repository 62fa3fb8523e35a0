"""Simple models whose scores a report shows as a floor for those of the trained model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple


class Baseline(NamedTuple):
    """A simple model that was fitted to training rows.

    Attributes:
        key: of it in baseline.json.
        name: in reports.
        about: how it was fitted, as JSON.
        predict: from the records of predictions.jsonl to its own records of the same rows.
    """

    key: str
    name: str
    about: Mapping[str, Any]
    predict: Callable[[Iterable[Mapping[str, Any]]], Iterator[dict[str, Any]]]
