"""What a case must not do: run longer than it may, take memory, run code, write elsewhere, open a socket."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import CodeType
from typing import Any

CANARY = "fuzz_canary"  # in all code that inputs hold: a module, a file name, a word in a source
SECONDS = 10  # of CPU time for a case
MOST_MEMORY = 1 << 30  # bytes more than at the start of the case
ADDRESS_SPACE = 4 << 30  # the same for the address space: threads and libraries reserve some that they do not use

_STARTS = frozenset(
    ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "subprocess.Popen", "pty.spawn")
)
_NETWORK = frozenset(("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.gethostbyname"))
_CHANGES = frozenset(("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.truncate"))
_LINKS = frozenset(("os.link", "os.symlink"))  # source and place
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Broken(AssertionError):
    """A condition that a case did not meet."""


class Stopped(BaseException):
    """A case used more CPU time than it may. No `except Exception` may take it for an error of a file."""


class Guard:
    """Watches the events of the interpreter in a process of cases, which has no other use: a hook cannot be removed."""

    def __init__(self, folder: Path) -> None:
        self.allowed = (str(folder.resolve()), "/dev/")
        self.active = False
        self.seen: list[str] = []
        self._memory = 0
        sys.addaudithook(self._hook)
        signal.signal(signal.SIGPROF, _stop)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the code of a block, and check afterwards.

        Raises:
            Broken: it did what no case may do.
        """
        self.seen.clear()
        self._memory = _limit()
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        self.active = True
        try:
            yield
        except Stopped:
            raise Broken(f"it took more than {SECONDS} s of CPU time") from None
        finally:
            self.active = False
            signal.setitimer(signal.ITIMER_PROF, 0)
        self.check()

    def check(self) -> None:
        """Raise `Broken` for what was seen since the block began, and for memory."""
        if self.seen:
            raise Broken("; ".join(self.seen[:3]))
        if self.grown > MOST_MEMORY:
            raise Broken(f"the process grew by {self.grown >> 20:,} MiB")

    @property
    def grown(self) -> int:
        """The most bytes of this process more than at the start of the block."""
        return _peak() - self._memory

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if self.active and (what := self._forbidden(event, args)):
            self.seen.append(what)
            raise PermissionError(what)

    def _forbidden(self, event: str, args: tuple[Any, ...]) -> str:
        if event in _STARTS or event in _NETWORK:
            return f"{event} {args!r:.200}"
        if event == "import" and CANARY in str(args[0]):
            return f"import of {args[0]}"
        if event == "pickle.find_class":
            return f"unpickled {args!r:.200}"
        if event == "open" and _is_write(args) and not self._is_inside(args[0]):
            return f"wrote {args[0]!r:.200}"
        if event in _LINKS and not self._is_inside(args[1]):
            return f"{event} {args!r:.200}"
        if event in _CHANGES and not all(self._is_inside(path) for path in args[:2] if isinstance(path, str | bytes)):
            return f"{event} {args!r:.200}"
        if event == "compile" and CANARY in str(args[0]):
            return "compiled code of an input"
        if event == "exec" and isinstance(args[0], CodeType) and CANARY in f"{args[0].co_names}{args[0].co_consts}":
            return "executed code of an input"
        return ""

    def _is_inside(self, path: Any) -> bool:
        try:
            text = os.fsdecode(path)
        except TypeError:  # a descriptor
            return True
        return os.path.abspath(text).startswith(self.allowed)  # noqa: PTH100 - Path would resolve nothing more


def _is_write(args: tuple[Any, ...]) -> bool:
    _, mode, flags = args
    return bool((flags or 0) & _WRITES) or (isinstance(mode, str) and any(letter in mode for letter in "wax+"))


def _stop(*_: Any) -> None:
    raise Stopped


def _limit() -> int:
    """Limit address space and CPU time from here on: a bomb ends a case and not the machine. Return bytes in use."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:  # noqa: PTH123
        file.write("5")  # the peak is what is in use now
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + ADDRESS_SPACE
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))
    seconds = int(time.process_time() + SECONDS) + 5  # where no line of Python ends the case
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.getrlimit(resource.RLIMIT_CPU)[1]))
    return _peak()


def _peak() -> int:
    """Return the most bytes of this process so far."""
    with open("/proc/self/status", "rb") as file:  # noqa: PTH123 - the hook watches each case; Path does more
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(b"VmHWM"))
