"""What a check of `rankzero doctor` says, and how to ask programs and file systems that may never answer."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import asdict, dataclass
from typing import Literal

State = Literal["ok", "warning", "failed", "skipped"]
LAST_WORDS = 5.0  # seconds for a program that was killed to end: a driver may hold it back even from SIGKILL
GIB = 2**30
SECRETS = ("TOKEN", "SECRET", "PASSWORD", "API_KEY", "CREDENTIAL")


@dataclass(frozen=True)
class Check:
    """One finding. `fix`: what to do next, never empty for a warning or a failure; `problem`: that part of `found`."""

    name: str
    status: State
    found: str
    fix: str = ""
    problem: str = ""

    def __post_init__(self) -> None:
        assert self.fix or self.status in ("ok", "skipped"), self

    def as_dict(self) -> dict[str, str]:
        """As `--json` tells it."""
        return {key: value for key, value in asdict(self).items() if key != "problem"}


class Findings:
    """Collects what is found for one check; the worst of its problems is the check's status."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._facts: list[str] = []
        self._problems: list[tuple[State, str, str]] = []

    def fact(self, text: str) -> None:
        self._facts.append(text)

    def warn(self, text: str, fix: str) -> None:
        self._problems.append(("warning", text, fix))

    def fail(self, text: str, fix: str) -> None:
        self._problems.append(("failed", text, fix))

    def check(self, otherwise: str = "") -> Check:
        """Facts first, then problems, failures before warnings; `otherwise` is said where there are neither."""
        problems = sorted(self._problems, key=lambda problem: problem[0] != "failed")
        status: State = problems[0][0] if problems else "ok"
        texts = [text for _, text, _ in problems]
        fix = "; ".join(dict.fromkeys(fix for _, _, fix in problems))
        return Check(self.name, status, "; ".join([*self._facts, *texts]) or otherwise, fix, "; ".join(texts))


@dataclass(frozen=True)
class Answer:
    """How a program ended. `code` None: it was not there, or did not answer in time (`text` says which)."""

    code: int | None
    text: str

    @property
    def last(self) -> str:
        """The last line, or the exit code of a program that said nothing."""
        return self.text.splitlines()[-1] if self.text else f"exit code {self.code}"


def ask(words: Sequence[str], seconds: float, env: dict[str, str] | None = None) -> Answer:
    """Runs a program: its stdout, or stderr if it failed. After `seconds` it is killed with all that it started."""
    try:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        return Answer(None, f"{words[0]} cannot be started: {error.strerror}")
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        return Answer(None, f"{words[0]} did not answer within {seconds:g} s")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=LAST_WORDS)
    return Answer(process.returncode, out.strip() if process.returncode == 0 else (err.strip() or out.strip()))


def within(name: str, seconds: float, look: Callable[[], list[Check]], fix: str) -> list[Check]:
    """`look()` in a thread of its own: a file system that hangs makes a failed check, and never holds up the doctor."""
    found: Future[list[Check]] = Future()

    def run() -> None:
        try:
            found.set_result(look())
        except BaseException as error:
            found.set_exception(error)

    threading.Thread(target=run, name=f"doctor-{name}", daemon=True).start()  # a pool waits for its own at exit
    if not wait([found], seconds).done:
        return [Check(name, "failed", f"no answer within {seconds:g} s", fix)]
    return found.result()


def without_secrets(text: str) -> str:
    """`text` with the values of tokens and passwords in this process's environment blotted out."""
    for name, value in os.environ.items():
        if len(value) >= 8 and any(word in name.upper() for word in SECRETS):
            text = text.replace(value, f"<{name}>")
    return text


def size(number: float) -> str:
    """Bytes for people: 3.4 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(number) < 1024 or unit == "TiB":
            break
        number /= 1024
    return f"{number:.0f} {unit}" if number >= 100 or number == int(number) else f"{number:.1f} {unit}"
