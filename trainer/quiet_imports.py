"""Imports of optional libraries that log warnings which do not concern a training."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
from collections.abc import Iterator

NOISY = ("torchao", "torch.utils._pytree")  # kernels of other devices that do not load, and a deprecation


def import_torchao() -> bool:
    """Import torchao without its warnings. Return whether it is installed."""
    if importlib.util.find_spec("torchao") is None:
        return False
    with _errors_only(NOISY):
        import torchao  # noqa: F401
    return True


@contextlib.contextmanager
def _errors_only(names: tuple[str, ...]) -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
