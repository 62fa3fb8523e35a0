"""`data.dataset` of a recipe: a data set of the Hub, or a folder with a copy of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def place_of(dataset: str) -> tuple[str, str | None]:
    """Return the root and the configuration of `name[:configuration]`. A name of an existing folder is that folder."""
    name, _, config = dataset.partition(":") if not Path(dataset).expanduser().is_dir() else (dataset, "", "")
    is_folder = name.startswith((".", "/", "~")) or Path(name).is_dir()
    return (name if is_folder else f"hf://datasets/{name}"), config or None


def with_place(values: Any) -> Any:
    """Return the values of the `data` section with the root and the default split of its data set.

    Raises:
        ValueError: root and dataset are both set. A resolved recipe has both, and they agree.
    """
    if not isinstance(values, dict) or not isinstance(values.get("dataset"), str):
        return values
    dataset, root = values["dataset"], values.get("root")
    names = (dataset, dataset.partition(":")[0])
    if root is None:
        root = place_of(dataset)[0]
    elif root not in (*names, *(f"hf://datasets/{name}" for name in names)):  # a folder may be gone by now
        raise ValueError(f"root={root!r} and dataset={dataset!r} are both set; set one to null")
    return {"train": "train", **values, "root": root}
