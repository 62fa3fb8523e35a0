"""Results of checks: shared by `rankzero doctor` and `rankzero submit`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

State = Literal["ok", "warning", "failed", "skipped"]
GIB = 2**30


@dataclass(frozen=True)
class Check:
    """Result of one check.

    `fix` says what to do; a warning or a failure always has one. `problem` is the part of `found` that needs the fix.
    """

    name: str
    status: State
    found: str
    fix: str = ""
    problem: str = ""

    def __post_init__(self) -> None:
        assert self.fix or self.status in ("ok", "skipped"), self


class Findings:
    """Collect the facts and problems of one check. Its worst problem decides its status."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._facts: list[str] = []
        self._problems: list[tuple[State, str, str]] = []
        self._status: State = "ok"

    def fact(self, text: str) -> None:
        """Add a fact that needs no action."""
        self._facts.append(text)

    def warn(self, text: str, fix: str) -> None:
        """Add a problem that a training may survive."""
        self._problems.append(("warning", text, fix))

    def fail(self, text: str, fix: str) -> None:
        """Add a problem that stops a training."""
        self._problems.append(("failed", text, fix))

    def skip(self, reason: str) -> None:
        """Mark the check as not applicable here."""
        self._status = "skipped"
        self.fact(reason)

    def check(self, otherwise: str = "") -> Check:
        """Return facts, then failures, then warnings. `otherwise` is the text if there are none of them."""
        problems = sorted(self._problems, key=lambda problem: problem[0] != "failed")
        texts = [text for _, text, _ in problems]
        fix = "; ".join(dict.fromkeys(fix for _, _, fix in problems))
        status = problems[0][0] if problems else self._status
        return Check(self.name, status, "; ".join([*self._facts, *texts]) or otherwise, fix, "; ".join(texts))


def size(number: float) -> str:
    """Return a number of bytes as text, such as "3.4 GiB"."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(number) < 1024 or unit == "TiB":
            break
        number /= 1024
    return f"{number:.0f} {unit}" if number >= 100 or number == int(number) else f"{number:.1f} {unit}"


def existing_folder(path: Path) -> Path:
    """Return the folder itself, or its nearest parent that exists."""
    path = path.absolute()
    while not path.is_dir() and path != path.parent:
        path = path.parent
    return path
