"""Folders that `datasets.save_to_disk` wrote: the Arrow files of a data set, and none of the files around them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

STATE = "state.json"
_ABOUT = frozenset((STATE, "dataset_info.json", "dataset_dict.json"))


def saved_files(system: Any, folder: str) -> list[str] | None:
    """Return the names of the data files of a saved data set in their order; None for any other folder."""
    if not system.isfile(f"{folder}/{STATE}"):
        return None
    try:
        files = json.loads(system.cat_file(f"{folder}/{STATE}"))["_data_files"]
        return [str(file["filename"]) for file in files]
    except (KeyError, TypeError, ValueError):  # a state.json of another program
        return None


def without_about(system: Any, root: str, names: Iterable[str]) -> list[str]:
    """Leave out of matches what is no data of a saved data set: its descriptions and caches."""
    kept, folders = [], dict[str, list[str] | None]()
    names = list(names)
    saved = {name.rpartition("/")[0] for name in names if name.endswith(".arrow")}
    for name in names:
        folder, _, base = name.rpartition("/")
        if folder in saved and folder not in folders:
            folders[folder] = saved_files(system, f"{root}/{folder}".rstrip("/"))
        listed = folders.get(folder)
        inside = base == "dataset_dict.json" and any(other.startswith(f"{folder}/".lstrip("/")) for other in saved)
        if base in _ABOUT and (listed is not None or inside):
            continue
        if listed is None or base in listed:
            kept.append(name)
    return kept
