"""Lists of parameters of which `make test` takes only some; `make test-all` takes all."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def slow_except(values: Iterable[Any], *fast: Any) -> list[Any]:
    """Return `values` as parameters of a test, those that are not in `fast` marked slow.

    A tuple is a set of several arguments.
    """
    values = list(values)
    assert fast and all(value in values for value in fast), f"{fast} among {values}"
    return [value if value in fast else _slow(value) for value in values]


def _slow(value: Any) -> Any:
    return pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.slow)
