"""docs/results.md and benchmarks/results: every file is named, and the figures of the tables are those of the files."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
from result_checks import GROUPS, LINK, PAGE, RESULTS, ROOT, problems, quality, sections

from benchmarks.run_result import result


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.__name__)
def test_the_figures_of_the_tables_are_those_of_the_files(group: Any) -> None:
    checks = list(group())
    assert checks
    assert [problem for check in checks for problem in problems(check, sections())] == []


def test_what_is_kept_of_a_run_names_no_folder(tmp_path: Path) -> None:
    def put(name: str, content: Any) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(json.dumps(content) + "\n", encoding="utf-8")

    put("manifest.json", {
        "versions": {"torch": "2"}, "git_commit": "0123456789", "engine": "ddp", "ranks": 2, "precision": "bf16",
        "devices": {"cpu": "Xeon", "gpus": [], "cores": 2}, "started": "2026-11-30T21:08:35+0000", "starts": [{}],
        "stages": {"model": {"step": 4}}, "command": ["rankzero", "train", str(tmp_path)],
    })  # fmt: skip
    put("status.json", {"state": "training", "step": 5})
    put("metrics.jsonl", {"step": 4, "epoch": 0, "split": "validation", "loss": 1.5, "rows": 3})
    put("evaluation/test/metrics.json", {"accuracy": 0.5})
    with pytest.raises(SystemExit, match="its state is training, evaluated splits: test"):
        result(tmp_path, "x", "y")
    put("status.json", {"state": "finished", "step": 5})
    found = result(tmp_path, "rankzero train imdb", "alone")
    assert (found["commit"], found["started"], found["starts"], found["steps"]) == ("0123456", "2026-11-30", 2, 5)
    assert (found["curve"], found["test"]) == ([{"step": 4, "loss": 1.5}], {"accuracy": 0.5})
    assert str(tmp_path) not in json.dumps(found)


def test_a_wrong_figure_is_found() -> None:
    right = next(check for check in quality() if check[2])
    rows = {name: [row.replace("92.4 (91.9", "92.5 (91.9") for row in section]
            for name, section in sections().items()}  # fmt: skip
    assert list(problems(right, sections())) == []
    assert len(list(problems(right, rows))) == 1
    assert list(problems(("Quality", "`no-recipe`", []), rows))


def test_every_file_is_on_a_page_and_the_results_name_no_other() -> None:
    files = {path.name for path in RESULTS.glob("*.json")}
    assert set(LINK.findall(PAGE)) - files == set()
    pages = [*(ROOT / "docs").rglob("*.md"), ROOT / "benchmarks/README.md"]
    linked = {
        name for page in pages for name in re.findall(r"results/([\w.-]+\.json)\)", page.read_text(encoding="utf-8"))
    }
    assert files - linked == set()


def test_a_row_of_a_recipe_has_a_file_or_says_that_it_has_none() -> None:
    for row in sections()["Quality"]:
        if row.startswith("| `"):
            assert LINK.search(row) or row.endswith("| no JSON |"), row


def test_the_list_of_benchmarks_is_complete() -> None:
    text = (ROOT / "benchmarks/README.md").read_text(encoding="utf-8")
    programs = {path.stem for path in (ROOT / "benchmarks").glob("*.py") if f"benchmarks.{path.stem} " in usage(path)}
    programs |= {path.parent.name for path in (ROOT / "benchmarks").glob("*/__main__.py")} | {"gpu", "plan_memory"}
    assert len(programs) > 20
    assert programs - set(re.findall(r"^\| `(?:python -m benchmarks\.)?(\w+)", text, re.M)) == set()


def usage(path: Path) -> str:
    """Return the docstring of a benchmark, unless another program runs it."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return "" if "Run by " in text else f"{text} "


def test_a_figure_in_a_shipped_recipe_is_that_of_its_row() -> None:
    rows = {row.split("`")[1]: row for row in sections()["Quality"] if row.startswith("| `") and "from `" not in row}
    compared = 0
    for path in sorted((ROOT / "trainer/recipe/shipped").glob("*.yaml")):
        comment = "\n".join(line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#"))
        if path.stem in rows and (figure := re.search(r"\b\d\d\.\d(?=%| BLEU| on )", comment)):
            assert f" {figure.group()} (" in rows[path.stem], path.name
            compared += 1
    assert compared >= 8
