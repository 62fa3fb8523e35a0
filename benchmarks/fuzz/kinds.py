"""The kinds of hostile input: how a case is drawn, and what is done with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from benchmarks.fuzz import accepted, command_line, files, recipes, rows, runs, tokenizer_files

GROUP = 25


def _nothing(place: Path) -> None:
    pass


@dataclass(frozen=True)
class Kind:
    """A kind of input.

    Attributes:
        strategy: of cases, which are Python literals.
        check: does what commands do with a case, in an empty folder that is the working directory. Returns "read" or
            "refused".
        share: of all cases, in proportion.
        prepare: imports what cases need, before they are forked.
        trained: it needs a trained run.
    """

    strategy: Callable[[], st.SearchStrategy[Any]]
    check: Callable[[Any, Path], str]
    share: int
    prepare: Callable[[Path], None] = _nothing
    trained: bool = False

    @property
    def group(self) -> int:
        """Most cases of a process. Those that change the process itself, such as command lines, have one each."""
        return 1 if self.trained else GROUP


KINDS: dict[str, Kind] = {
    "csv": Kind(rows.csv_files, files.check, 30),
    "json-lines": Kind(rows.json_lines, files.check, 24),
    "json": Kind(rows.json_arrays, files.check, 16),
    "table": Kind(rows.tables, files.check, 14),
    "conll": Kind(rows.conll_files, files.check, 12),
    "text": Kind(rows.text_files, files.check, 12),
    "recipe": Kind(recipes.recipes, recipes.check_recipe_text, 24),
    "override": Kind(recipes.overrides, recipes.check_overrides, 18),
    "accepted": Kind(accepted.cases, accepted.check, 3),
    "name": Kind(recipes.names, recipes.check_name, 14),
    "status": Kind(lambda: runs.changes(runs.STATUS_FILES), runs.check_status, 16),
    "run": Kind(runs.run_cases, runs.check_run, 3, trained=True),
    "report": Kind(lambda: runs.changes(runs.RUN_FILES), runs.check_report, 1, runs.load_torch, trained=True),
    "tokenizer": Kind(tokenizer_files.cases, tokenizer_files.check, 6, tokenizer_files.prepare, trained=True),
    "model": Kind(tokenizer_files.model_cases, runs.check_model, 3, runs.load_torch, trained=True),
    "command": Kind(command_line.cases, command_line.check, 4, command_line.prepare, trained=True),
}
