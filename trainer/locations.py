"""Names of pretrained things: a folder, `pkg://package/folder` in an installed package, or a Hub id `id@revision`."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

from trainer.errors import UsageError

PACKAGE = "pkg://"
FORMS = f"a folder, {PACKAGE}package/folder, or a Hub id (id@revision) that this machine can reach"


def locate(name: str) -> tuple[str, str]:
    """What `from_pretrained` takes: a folder or Hub id, and a revision ("main" where it has no meaning).

    Raises:
        UsageError: the package of a `pkg://` name is not installed or has no such folder.
    """
    if name.startswith(PACKAGE):
        return str(package_folder(name)), "main"
    if Path(name).exists():
        return name, "main"
    identifier, _, revision = name.partition("@")
    return identifier, revision or "main"


def package_folder(name: str) -> Path:
    """The folder behind `pkg://package/folder`.

    Raises:
        UsageError: the package is not installed or has no such folder.
    """
    package, _, folder = name.removeprefix(PACKAGE).partition("/")
    try:
        found = Path(str(importlib.resources.files(package))) / folder
    except (ImportError, ValueError):
        distribution = package.replace("_", "-")
        raise UsageError(f"{name!r}: the package {package!r} is not installed; `pip install {distribution}`") from None
    if not found.is_dir():
        raise UsageError(f"{name!r}: the package {package!r} has no folder {folder!r}")
    return found
