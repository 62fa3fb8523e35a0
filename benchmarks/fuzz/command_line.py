"""Complete command lines: each in a child that is forked from a process with the commands imported."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from benchmarks.fuzz import recipes, runs, words
from benchmarks.fuzz.guard import FORBIDDEN, Broken

CODES = (0, 1, 2, 3, 4, 5, 6, 75, 130)  # of docs/reference/exit-codes.md
SECONDS = 60.0  # of wall time
RUN, RECIPE = "@run", "@recipe"  # in the words of a case: the damaged run, the drawn recipe
# Commands that end without a training or a connection. `refused=1` is no key of a recipe.
COMMANDS: tuple[tuple[str, ...], ...] = (
    ("status", RUN), ("status", RUN, "--json"), ("logs", RUN), ("cancel", RUN), ("lint", RECIPE), ("lint", RECIPE,
    "--json", "--strict"),
    ("compare", RUN, RUN), ("compare", RUN, RUN, "--json"), ("push", RUN, "a/b", "--dry-run"), ("report", RUN,
    "--index", "index.html"),
    ("predict", RUN, "a film"), ("predict", RUN, "--backend", "onnx", "a"), ("predict", RUN, "--format", "jsonl"),
    ("embed", RUN, "a"),
    ("export", RUN, "--check"), ("ensemble", RUN, RUN), ("recipes", "show", RECIPE), ("recipes",), ("train", RECIPE,
    "refused=1"),
    ("prepare", RECIPE, "refused=1"), ("plan", RECIPE, "refused=1"), ("submit", RECIPE, "refused=1"), ("sweep", RECIPE),
    ("train", RECIPE, "--run", RUN, "refused=1"), ("evaluate", RUN, "refused=1"), ("track", "upload", RUN, "--set",
    "refused=1"),
)  # fmt: skip


def cases() -> st.SearchStrategy[Any]:
    """Draw a command, more words for it, a recipe, and the damage of a run."""
    more = st.lists(
        st.one_of(
            words.text(), st.sampled_from(["--split", "--json", "--help", "--set", "--", "-", "--nproc", "--run"])
        ),
        max_size=2,
    )
    none = st.just([])
    damage = runs.changes((*runs.RUN_FILES, *runs.STATUS_FILES))
    return st.tuples(st.sampled_from(COMMANDS), st.one_of(none, none, more), recipes.recipes(), st.one_of(none, damage))


def check(case: Sequence[Any], folder: Path) -> str:
    """Run a command line. Its exit code has to be a documented one, without a traceback.

    Raises:
        Broken: it is not.
    """
    command, more, recipe, damage = case
    if any("\0" in word for word in more):  # no process can get it
        return "refused"
    run, path = folder / "run", folder / "recipe.yaml"
    runs.copy_run(Path(os.environ[runs.BASE]), run)
    runs.damage(run, damage)
    path.write_bytes(recipe.encode("utf-8", "surrogatepass"))
    (folder / "rows.jsonl").write_text(recipes.ROWS, encoding="utf-8")
    place = {RUN: str(run), RECIPE: str(path)}
    argv = ["rankzero", *(place.get(word, word) for word in command), *map(_as_argument, more)]
    code, text = _in_child(argv, folder / "output.txt")
    if code not in CODES or "Traceback (most recent call last)" in text or FORBIDDEN in text:
        raise Broken(f"{command[0]} ended with {code}: {text[-1500:]}")
    return "read" if code == 0 else "refused"


def _as_argument(word: str) -> str:
    """Return a word as Python decodes it from a command line."""
    return os.fsdecode(word.encode("utf-8", "surrogatepass"))


def _in_child(argv: Sequence[str], output: Path) -> tuple[int, str]:
    """Fork and run a command. Return its exit code, negative for a signal, and what it printed."""
    child = os.fork()
    if child == 0:
        _run(argv, output)
    deadline = time.monotonic() + SECONDS
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise Broken(f"{argv[1]} took more than {SECONDS:g} s")
        time.sleep(0.01)
    text = output.read_text(encoding="utf-8", errors="replace") if output.exists() else ""
    return os.waitstatus_to_exitcode(ended[1]), text


def _run(argv: Sequence[str], output: Path) -> None:
    """Run a command in this process and end it."""
    code = 99
    try:
        with contextlib.suppress(Exception):
            gc.freeze()
        target = os.open(output, os.O_WRONLY | os.O_CREAT, 0o600)
        empty = os.open(os.devnull, os.O_RDONLY)
        for descriptor, number in ((empty, 0), (target, 1), (target, 2)):
            os.dup2(descriptor, number)
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - to the end of the process
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
        sys.argv = list(argv)
        from launch.cli import main

        main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    except BaseException as error:
        os.write(2, f"Traceback (most recent call last) of {type(error).__name__}: {error}".encode("utf-8", "replace"))
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(code)


def prepare(place: Path) -> None:
    """Import the commands, so that a child does not."""
    import launch.cli

    del launch.cli
    runs.load_torch(place)
