"""Find the parallel text files that belong together, by what the wildcards of their patterns match."""

from __future__ import annotations

import glob
import re
from collections.abc import Mapping, Sequence

from trainer.data.formats import without_compression
from trainer.errors import DataError

Key = tuple[str, ...]
SHOWN = 5  # names that a message lists
_WILDCARD = re.compile(r"\*\*/|\*+|\?|\[[^]]+\]")


def pairs(names: Mapping[str, Sequence[str]], patterns: Mapping[str, str], split: str) -> list[tuple[str, ...]]:
    """Return one tuple per set of parallel files, a name for each role, sorted by the first.

    Files belong together if the wildcards match the same text or, if no set has that, the same numbers: part1 and
    part01.

    Raises:
        DataError: a file has no partner; names the files.
    """
    roles = list(names)
    if all(len(of_role) == 1 for of_role in names.values()) and _cannot_compare(patterns):
        return [tuple(names[role][0] for role in roles)]
    keys = {role: {_key(name, patterns[role]): name for name in names[role]} for role in roles}
    numbers = {role: {_without_zeros(key): name for key, name in keys[role].items()} for role in roles}
    for named in (keys, numbers):
        same_keys = len({frozenset(of_role) for of_role in named.values()}) == 1
        if same_keys and all(len(named[role]) == len(names[role]) for role in roles):
            first = named[roles[0]]
            return [tuple(named[role][key] for role in roles) for key in sorted(first, key=first.__getitem__)]
    raise DataError(_unpaired(keys, names, patterns, split))


def _cannot_compare(patterns: Mapping[str, str]) -> bool:
    """Return whether patterns have no wildcards, or different numbers of them."""
    counts = {len(_WILDCARD.findall(pattern)) for pattern in patterns.values()}
    return len(counts) > 1 or counts == {0}


def _key(name: str, pattern: str) -> Key:
    """Return what each wildcard matches. "**/" matches folders. The ending of a compressed file is left out."""
    if not glob.has_magic(pattern) or name == pattern:  # which may be a name with brackets
        return ()
    regex, at = "", 0
    for wildcard in _WILDCARD.finditer(pattern):
        regex += re.escape(pattern[at : wildcard.start()]) + _group(wildcard[0])
        at = wildcard.end()
    match = re.fullmatch(regex + re.escape(pattern[at:]), name, re.DOTALL)
    if match is None:  # a pattern in a syntax that only fsspec knows
        return (without_compression(name),)
    groups = [group or "" for group in match.groups()]
    return (*groups[:-1], without_compression(groups[-1]))


def _group(wildcard: str) -> str:
    if wildcard == "**/":
        return "(.*/)?"
    if wildcard.startswith("["):
        inner = wildcard[1:-1].replace("\\", "\\\\")
        return f"([{'^' + inner[1:] if inner.startswith('!') else inner}])"
    return {"?": "([^/])", "*": "([^/]*)"}.get(wildcard, "(.*)")


def _without_zeros(key: Key) -> Key:
    return tuple(re.sub(r"\d+", lambda digits: str(int(digits[0])), part) for part in key)


def _unpaired(
    keys: Mapping[str, Mapping[Key, str]], names: Mapping[str, Sequence[str]], patterns: Mapping[str, str], split: str
) -> str:
    common = frozenset.intersection(*(frozenset(of_role) for of_role in keys.values()))
    counts = ", ".join(f"{role}: {len(of_role)} ({patterns[role]})" for role, of_role in names.items())
    alone = []
    for role, of_role in keys.items():
        unpaired = sorted(name for key, name in of_role.items() if key not in common)
        more = f" and {len(unpaired) - SHOWN} more" if len(unpaired) > SHOWN else ""
        alone += [f"{role}: {', '.join(unpaired[:SHOWN])}{more}"] if unpaired else []
    reason = f"without a partner are {'; '.join(alone)}" if alone else "several files have the same wildcard text"
    return (
        f"data.{split}: parallel text needs as many files for each role, found {counts}, and the wildcards must match "
        f"the same text for all roles; {reason}. Rename the files, or make the patterns narrower"
    )
