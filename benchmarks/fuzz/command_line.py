"""Complete command lines, each in a forked process in which the commands are imported."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from benchmarks.fuzz import recipes, runs, words
from benchmarks.fuzz.guard import Broken

CODES = (0, 1, 2, 3, 4, 5, 6, 75, 130)  # of docs/reference/exit-codes.md
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
    code, text = _run(argv, folder / "output.txt")
    if code not in CODES or "Traceback (most recent call last)" in text:
        raise Broken(f"{command[0]} ended with {code}: {text[-1500:]}")
    return "read" if code == 0 else "refused"


def _as_argument(word: str) -> str:
    """Return a word as Python decodes it from a command line."""
    return os.fsdecode(word.encode("utf-8", "surrogatepass"))


def _run(argv: Sequence[str], output: Path) -> tuple[int, str]:
    """Run a command in this process, which has no other purpose. Return its exit code and what it printed."""
    target = os.open(output, os.O_WRONLY | os.O_CREAT, 0o600)
    for number in (1, 2):
        os.dup2(target, number)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - to the end of the process
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.argv = list(argv)
    from launch.cli import main

    code = 99
    try:
        main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    sys.stdout.flush()
    return code, output.read_text(encoding="utf-8", errors="replace")


def prepare(place: Path) -> None:
    """Import the commands, so that a child does not."""
    importlib.import_module("launch.cli")
    runs.load_torch(place)
