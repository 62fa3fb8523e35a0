"""What some families of the transformers library do differently from BERT: one file each, found by model type.

Nothing outside this package names a family. No torch is imported here: `patch` imports it when a model is built.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import Any

from trainer.models.families.base import Family, Padding

__all__ = ["Family", "Padding", "family_of", "padding_of"]


@cache
def _families() -> dict[str, Family]:
    modules = [importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]
    return {module.FAMILY.model_type: module.FAMILY for module in modules if hasattr(module, "FAMILY")}


def family_of(config: Any) -> Family:
    """Return the family of a model type, a configuration or a config.json. `None` means a model of rankzero."""
    kind = config.get("model_type") if isinstance(config, dict) else getattr(config, "model_type", config)
    return _families().get(str(kind), Family())


def padding_of(config: Any, *, training: bool = True) -> Padding:
    """Return the padding that the family of a configuration needs. `config` is None for a model of rankzero."""
    return family_of(config).padding(config, training=training)
