"""Labels: the form in which a file writes them, and suggestions for a label that the recipe does not list."""

from __future__ import annotations

import difflib
import logging
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from decimal import Decimal
from typing import Any

log = logging.getLogger("rankzero")

SHOWN = 20  # labels that a message lists
# Parts of a corpus are badly mixed if the share of a label, or those of all labels together, differ by more than this
# and by more than chance.
LABEL_DRIFT, LABELS_DRIFT = 0.10, 0.25
NO_LABEL = frozenset(("", "-1", "-1.0", "-100", "?", "nan", "none", "null", "na", "n/a", "unlabeled", "unlabelled"))
"""Values that mean "no label" in public data sets, in lower case."""
_INTEGRAL = re.compile(r"([+-]?\d+)\.0+")


class ClassIndex(int):
    """A class index of a `ClassLabel` column of the library `datasets`.

    Attributes:
        names: all class names of the column, in the order of their indices.
    """

    names: tuple[str, ...]

    def __new__(cls, index: int, names: tuple[str, ...]) -> ClassIndex:
        self = super().__new__(cls, index)
        self.names = names
        return self

    def __reduce__(self) -> Any:
        return ClassIndex, (int(self), self.names)


def is_unlabeled(value: Any) -> bool:
    """Return whether a value means "no label": -1, an empty text, null, NaN, a question mark."""
    return value is None or str(value).strip().lower() in NO_LABEL


def label_form(value: object, allowed: Collection[str]) -> object:
    """Return a label as text in the form of the recipe: true, True or 1; 1 or 1.0; a class index or its name."""
    text = value.strip() if isinstance(value, str) else str(value)
    if isinstance(value, bool) or text.lower() in ("true", "false"):
        is_true = text.lower() == "true"
        forms = [*([text] if isinstance(value, str) else []), text.lower(), text.capitalize(), str(int(is_true))]
        forms.append(f"{forms[-1]}.0")
    elif isinstance(value, str):
        forms = [text]
        if match := _INTEGRAL.fullmatch(text):
            forms += [str(int(match[1])), f"{int(match[1])}.0"]
        elif text.removeprefix("-").isdecimal():
            forms.append(f"{text}.0")
    elif isinstance(value, float | Decimal | int):
        if value != value or value in (math.inf, -math.inf) or value != int(value):
            return value
        number = int(value)
        forms = [str(number), f"{number}.0"]
        if isinstance(value, ClassIndex) and 0 <= number < len(value.names) and set(value.names) <= set(allowed):
            return value.names[number]
    else:
        return value
    return next((form for form in forms if form in allowed), forms[0])


def look_alike(label: str, other: str) -> bool:
    """Return whether two labels differ by case, spaces, invisible characters or Unicode form only."""
    return _plain(label) == _plain(other)


def _plain(text: str) -> str:
    shown = "".join(
        " " if c.isspace() else c for c in text if c.isspace() or unicodedata.category(c) not in ("Cf", "Cc")
    )
    return unicodedata.normalize("NFKC", " ".join(shown.split())).casefold()


def unknown_label(label: str, allowed: Collection[str]) -> str:
    """Return the end of the message about an unknown label: the known ones, and the nearest one."""
    known = sorted(allowed)
    listed = ", ".join(map(repr, known[:SHOWN])) + (f" and {len(known) - SHOWN} more" if len(known) > SHOWN else "")
    if same := [other for other in known if look_alike(label, other)]:
        return (
            f"; known: {listed}; it differs from {same[0]!a} by case, spaces or Unicode form only: the file has "
            f"{label!a}. Write the label as task.labels does, or add it there"
        )
    near = difflib.get_close_matches(label, known, n=1, cutoff=0.6)
    escaped = "" if label.isascii() else f" ({label[:60]!a})"
    return f"; known: {listed}" + (f"; did you mean {near[0]!r}?{escaped}" if near else "")


def label_drift(before: Counter[str], here: Counter[str]) -> tuple[str, float, float] | None:
    """Return the label whose share differs most between two parts of a corpus, with both shares.

    None if the parts are mixed well. Of many labels none has a share that could differ much. So the differences of all
    are added up, too: half of their sum is the share of rows that would need another label (total variation).
    """
    total, n = before.total(), here.total()
    if not total or not n:
        return None
    gaps = {label: abs(before[label] / total - here[label] / n) for label in sorted(before.keys() | here.keys())}
    label, chance = max(gaps, key=gaps.__getitem__), math.sqrt(1 / n + 1 / total)
    one = gaps[label] > LABEL_DRIFT + 2 * chance  # 4 standard errors: the last blocks are short
    expected = chance * math.sqrt(len(gaps) / (2 * math.pi))  # at most, of the sum if all shares are equal
    together = sum(gaps.values()) / 2 > LABELS_DRIFT + expected + 2 * chance
    return (label, before[label] / total, here[label] / n) if one or together else None


def guess_classes(values: Collection[str], names: Sequence[str]) -> dict[str, str] | None:
    """Return a mapping of the values of a file to as many class names, by their beginnings, or None if unclear."""
    starts = {v: [name for name in names if name.casefold().startswith(v.casefold())] for v in values}
    if len(values) != len(names) or any(len(of) != 1 for of in starts.values()):
        return None
    mapping = {value: of[0] for value, of in starts.items()}
    return mapping if len(set(mapping.values())) == len(names) else None


class LabelWatch:
    """Watches the labels of the blocks of a lane.

    Args:
        label: returns the label of a row, if it has one.
    """

    def __init__(self, label: Callable[[Any], str | None]) -> None:
        self._label = label
        self._counts: Counter[str] = Counter()
        self._warned = False

    def add(self, rows: Sequence[Any]) -> None:
        """Warn once if a block has other shares of labels than those before."""
        if self._warned:
            return
        here = Counter(label for label in map(self._label, rows) if label is not None)
        if found := label_drift(self._counts, here):
            label, was, now = found
            log.warning(
                "label %r is %.0f%% of a block after %.0f%% before it: the corpus seems sorted by label and "
                "does not fit into one block; run `rankzero prepare` on the recipe, or raise data.block_rows",
                *(label, 100 * now, 100 * was),
            )
            self._warned = True
        self._counts.update(here)
