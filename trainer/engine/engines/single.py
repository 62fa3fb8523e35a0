"""Training in one process."""

from __future__ import annotations

from trainer.engine.engines.base import Engine


class SingleEngine(Engine):
    """One process that holds the whole model and owns all lanes."""
