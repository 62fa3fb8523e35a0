"""What users can see stays: commands, recipe schema, exit codes, public names, files and JSON keys of runs, weights.

Golden files are in tests/golden. A removal and an addition both fail. To accept a change on purpose, write the files
again and look at `git diff`:

    RANKZERO_UPDATE_GOLDEN=1 .venv/bin/python -m pytest tests/test_golden.py

Weights are comparable on one machine only, so their digests are in no repository. Measure the older checkout, then
compare this one with it (minutes each):

    make golden OUT=/tmp/base.json                                              # in the older checkout
    RANKZERO_GOLDEN=/tmp/base.json .venv/bin/python -m pytest tests/test_golden.py -k weights
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import processes
import pytest
import yaml
from golden import runs, surface, weights
from slow import slow_except

from trainer.export import bench_runner

GOLDEN = Path(__file__).parent / "golden"
UPDATE = "RANKZERO_UPDATE_GOLDEN"
UPDATING = bool(os.environ.get(UPDATE))
BASE = "RANKZERO_GOLDEN"


def check(name: str, found: dict[str, Any]) -> None:
    """Compare a mapping of paths to values with a golden file, or write it."""
    path = GOLDEN / name
    found = json.loads(json.dumps(found))  # tuples become lists, as in the file
    if UPDATING:
        lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in sorted(found.items())]
        path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
        return
    changes = differences(json.loads(path.read_text(encoding="utf-8")), found)
    assert not changes, f"{path} differs; {UPDATE}=1 accepts what is wanted\n" + "\n".join(changes)


def differences(stored: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Return one line for each path that was removed (-), added (+) or changed (~)."""
    lines = [f"- {path}: {stored[path]}" for path in stored.keys() - found.keys()]
    lines += [f"+ {path}: {found[path]}" for path in found.keys() - stored.keys()]
    both = stored.keys() & found.keys()
    lines += [f"~ {path}: {stored[path]} became {found[path]}" for path in both if stored[path] != found[path]]
    return sorted(lines, key=lambda line: line[2:])


@pytest.mark.parametrize("name", ["commands", "schema", "exit_codes", "public_names"])
def test_surface(name: str) -> None:
    check(f"{name}.json", getattr(surface, name)())


def test_differences_name_each_path() -> None:
    stored, found = {"a": 1, "b": 2, "c": 3}, {"b": 2, "c": 4, "d": 5}
    assert differences(stored, found) == ["- a: 1", "~ c: 3 became 4", "+ d: 5"]
    assert differences(found, found) == []


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory, corpus: Path, reviews: Path, bert: Path) -> dict[str, Path]:
    """Return the folders that the recipes of `golden.runs` name."""
    return runs.roots(tmp_path_factory.mktemp("golden-roots"), corpus, reviews, bert)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, roots: dict[str, Path]) -> Callable[[str], Path]:
    """Return a function that trains a recipe of `golden.runs` once, to the end, and returns the run directory."""

    @cache
    def run(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        (folder / "recipe.yaml").write_text(yaml.safe_dump(runs.recipe(name, roots)), encoding="utf-8")
        processes.train(folder / "recipe.yaml", folder / "run").check()
        return folder / "run"

    return run


@pytest.mark.ranks
@pytest.mark.parametrize("name", slow_except(runs.RECIPES, "translation", "classification"))
def test_run_keys(name: str, trained: Callable[[str], Path]) -> None:
    """Train, evaluate, export and report: every file, and every key of every JSON file.

    The golden file has for each path the names of the recipes whose runs have it.
    """
    found = runs.paths(trained(name))
    path = GOLDEN / "run_keys.json"
    stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    having = {key: set(runs.RECIPES) if names == "all" else set(names) for key, names in stored.items()}
    if UPDATING:
        for key in having.keys() | found:
            having[key] = having.get(key, set()) - {name} | ({name} if key in found else set())
        check(path.name, {k: "all" if v == set(runs.RECIPES) else sorted(v) for k, v in having.items() if v})
        return
    expected = {key: name for key, names in having.items() if name in names}
    changes = differences(expected, dict.fromkeys(found, name))
    assert not changes, f"a run of {name} differs from {path}; {UPDATE}=1 accepts what is wanted\n" + "\n".join(changes)


@pytest.mark.ranks
def test_printed_keys(trained: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The JSON that commands print."""
    for name in ("ROUNDS", "REQUESTS"):  # a busy machine may need a minute to start the processes of a benchmark
        monkeypatch.setattr(bench_runner, name, 1)
    run = Path(shutil.copytree(trained("classification"), tmp_path / "run"))
    found = runs.printed_keys(trained("translation").with_name("recipe.yaml"), run)
    check("printed_keys.json", {f"{command}: {key}": "" for command, having in found.items() for key in having})


def test_keys_of_json() -> None:
    value = {"a": [{"b": 1}, {"c": []}], "files": {"x.json": {"size": 1}}, "1": {"positive": [[2]]}, "empty": {}}
    assert set(runs.keys(value)) == {"a[].b", "a[].c", "files.*.size", "*.*[]", "empty"}


@pytest.mark.ranks
@pytest.mark.timeout(3600)
def test_weights(tmp_path: Path) -> None:
    """Both demo recipes, 20 fp32 steps: the same bits under every engine as the checkout that RANKZERO_GOLDEN names."""
    base = os.environ.get(BASE)
    if not base:
        pytest.skip(f"{BASE} names no file of digests: run `make golden OUT=FILE` in the checkout to compare with")
    rankzero = Path(sys.executable).with_name("rankzero")
    subprocess.run([sys.executable, weights.__file__, tmp_path / "digests.json", "--rankzero", rankzero], check=True)
    expected, found = (json.loads(path.read_text()) for path in (Path(base), tmp_path / "digests.json"))
    changes = weights.differences(expected, found)
    assert not changes, f"not the weights of {base}:\n" + "\n".join(changes)


def test_weight_differences_name_the_first_step() -> None:
    stored = {"demo-ddp": {"model": "ab", "losses": [1.0, 2.0, 3.0]}, "demo-single": {"model": "ab"}}
    found = {"demo-ddp": {"model": "cd", "losses": [1.0, 2.5, 3.5]}}
    assert weights.differences(stored, stored) == []
    assert weights.differences(stored, found) == [
        "demo-ddp: losses differ from step 2: [2.0] became [2.5]",
        "demo-ddp: model: ab became cd",
        "demo-single: model: ab became None",
    ]
