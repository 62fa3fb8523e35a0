"""docs/results.md and benchmarks/results: every file is named, and the figures of the tables are those of the files."""

from __future__ import annotations

from typing import Any

import pytest
from result_checks import GROUPS, LINK, PAGE, RESULTS, problems, quality, sections


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.__name__)
def test_the_figures_of_the_tables_are_those_of_the_files(group: Any) -> None:
    checks = list(group())
    assert checks
    assert [problem for check in checks for problem in problems(check, sections())] == []


def test_a_wrong_figure_is_found() -> None:
    right = next(check for check in quality() if check[2])
    rows = {name: [row.replace("92.4 (91.9", "92.5 (91.9") for row in section]
            for name, section in sections().items()}  # fmt: skip
    assert list(problems(right, sections())) == []
    assert len(list(problems(right, rows))) == 1
    assert list(problems(("Quality", "`no-recipe`", []), rows))


def test_every_file_is_on_the_page_and_the_page_names_no_other() -> None:
    named = set(LINK.findall(PAGE))
    assert named == {path.name for path in RESULTS.glob("*.json")}


def test_a_row_of_a_recipe_has_a_file_or_says_that_it_has_none() -> None:
    for row in sections()["Quality"]:
        if row.startswith("| `"):
            assert LINK.search(row) or row.endswith("| no JSON |"), row
