"""Functions and classes of a user's own modules, which a recipe names as `package.module:Name`.

A recipe that a user starts is trusted. A run directory may come from someone else, and reading it must not run code
from it. So a module is imported only if it is imported already, or named in the variable RANKZERO_TRUSTED_MODULES.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.metadata
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trainer.errors import UsageError

ALLOWED = "RANKZERO_TRUSTED_MODULES"  # modules, separated by commas, that a run directory may name
REFERENCE = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z_]\w*)")
# Keys of a recipe whose values, or items of values, may be such names.
KEYS = ("task.kind", "task.loss", "data.cleaning", "optim.name", "loop.callbacks", "evaluation.metrics")


def is_reference(name: object) -> bool:
    """Return whether a value of a recipe has the form `package.module:Name`."""
    return isinstance(name, str) and REFERENCE.fullmatch(name) is not None


def load(name: str, key: str) -> Any:
    """Import a function or class.

    Args:
        name: `package.module:Name`.
        key: of the recipe, for messages.

    Raises:
        UsageError: the module may not be imported or cannot be, or it does not have the name.
    """
    module_name, _, attribute = name.partition(":")
    if module_name not in sys.modules and module_name not in _allowed():
        raise UsageError(
            f"{key}={name!r} is code outside rankzero, and a run directory may come from someone else. "
            f"If you trust module {module_name}, set {ALLOWED}={module_name}"
        )
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UsageError(
            f"{key}={name!r}: module {module_name} cannot be imported ({error}). Install its package, or add its "
            "folder to PYTHONPATH"
        ) from None
    if not hasattr(module, attribute):
        near = difflib.get_close_matches(attribute, vars(module), n=1)
        fix = f"did you mean {near[0]!r}?" if near else "name one of its definitions"
        raise UsageError(f"{key}={name!r}: module {module_name} has no {attribute!r}; {fix}")
    return getattr(module, attribute)


def references(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield key and name of each function and class of a user's own in the values of a recipe."""
    for key in KEYS:
        section, _, field = key.partition(".")
        found = values.get(section)
        found = found.get(field) if isinstance(found, Mapping) else None
        for name in found if isinstance(found, list | tuple) else [found]:
            if is_reference(name):
                yield key, str(name)


def trust(values: Mapping[str, Any]) -> None:
    """Allow this process and those that it starts to import the modules that a user's recipe names."""
    modules = [name.partition(":")[0] for _, name in references(values)]
    if new := [module for module in dict.fromkeys(modules) if module not in _allowed()]:
        os.environ[ALLOWED] = ",".join([*_allowed(), *new])


def facts(values: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Return the SHA-256 of the module and the version of the package of each name in a recipe, for the manifest."""
    found: dict[str, dict[str, str]] = {}
    named = [*references(values)]
    packages = importlib.metadata.packages_distributions() if named else {}  # reads the files of all distributions
    for key, name in named:
        load(name, key)
        module_name = name.partition(":")[0]
        own: dict[str, str] = {}
        if file := getattr(sys.modules[module_name], "__file__", None):
            own["sha256"] = hashlib.sha256(Path(file).read_bytes()).hexdigest()
        if distributions := packages.get(module_name.partition(".")[0]):
            own["version"] = f"{distributions[0]} {importlib.metadata.version(distributions[0])}"
        found[name] = own
    return found


def _allowed() -> list[str]:
    return [name for name in os.environ.get(ALLOWED, "").split(",") if name]
