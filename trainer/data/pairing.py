"""Parallel text files: which files belong together, by what the wildcards of their patterns match."""

from __future__ import annotations

import glob
import re
from collections.abc import Mapping, Sequence

from trainer.data.formats import without_compression
from trainer.errors import DataError

Key = tuple[str, ...]
SHOWN = 5  # names that a message lists
_TOKEN = re.compile(r"\*\*/|\*+|\?|\[[^]]+\]")


def pairs(found: Mapping[str, Sequence[str]], patterns: Mapping[str, str], split: str) -> list[tuple[str, ...]]:
    """One tuple of names per set of parallel files, a name for each role, sorted by the first.

    Files belong together where the wildcards match the same text, or, if that fits no set, the same numbers: part1 and
    part01.

    Raises:
        DataError: a file has no partner; names the files.
    """
    roles = list(found)
    if all(len(names) == 1 for names in found.values()) and _is_plain(patterns):
        return [tuple(found[role][0] for role in roles)]
    keys = {role: {_key(name, patterns[role]): name for name in found[role]} for role in roles}
    if _differ(keys) or any(len(keys[role]) < len(found[role]) for role in roles):
        numbered = {role: {_numbers(key): name for key, name in keys[role].items()} for role in roles}
        if _differ(numbered) or any(len(numbered[role]) < len(found[role]) for role in roles):
            raise DataError(_unpaired(keys, found, patterns, split))
        keys = numbered
    first = keys[roles[0]]
    return [tuple(keys[role][key] for role in roles) for key in sorted(first, key=first.__getitem__)]


def _is_plain(patterns: Mapping[str, str]) -> bool:
    """Whether a role names its file, or the patterns have other numbers of wildcards: nothing can be compared."""
    counts = {len(_TOKEN.findall(pattern)) for pattern in patterns.values()}
    return len(counts) > 1 or counts == {0}


def _key(name: str, pattern: str) -> Key:
    """What each wildcard matches. "**/" matches folders, and the ending of a compressed file counts for none."""
    if not glob.has_magic(pattern):
        return ()
    made, at = "", 0
    for token in _TOKEN.finditer(pattern):
        made += re.escape(pattern[at : token.start()]) + _group(token[0])
        at = token.end()
    match = re.fullmatch(made + re.escape(pattern[at:]), name, re.DOTALL)
    if match is None:  # a form of pattern that only fsspec knows
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


def _numbers(key: Key) -> Key:
    return tuple(re.sub(r"\d+", lambda digits: str(int(digits[0])), part) for part in key)


def _differ(keys: Mapping[str, Mapping[Key, str]]) -> bool:
    return len({frozenset(of) for of in keys.values()}) > 1


def _unpaired(
    keys: Mapping[str, Mapping[Key, str]], found: Mapping[str, Sequence[str]], patterns: Mapping[str, str], split: str
) -> str:
    everywhere = frozenset.intersection(*(frozenset(of) for of in keys.values()))
    counts = ", ".join(f"{role}: {len(names)} ({patterns[role]})" for role, names in found.items())
    alone = []
    for role, of in keys.items():
        names = sorted(name for key, name in of.items() if key not in everywhere)
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        alone += [f"{role}: {', '.join(names[:SHOWN])}{more}"] if names else []
    same = f"; without a partner are {'; '.join(alone)}" if alone else "; several files have the same wildcard text"
    return (
        f"data.{split}: parallel text needs as many files for each role, found {counts}, and the wildcards must match "
        f"the same text for all roles{same}. Rename the files, or make the patterns narrower"
    )
