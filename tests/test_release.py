"""What a release needs: one version, a changelog of it, and the programs of `make audit` and `make test-lowest`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
VERSION = PROJECT["version"]


def test_the_changelog_has_the_version_with_a_date() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - \d{4}-\d\d-\d\d$", text, re.M)
    assert released[0] == VERSION
    assert text.index("## [Unreleased]") < text.index(f"## [{VERSION}]")
    section = text.partition(f"## [{VERSION}]")[2].partition("\n## [")[0]
    for heading in ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"):
        assert f"\n### {heading}\n" in section


def test_the_version_is_in_one_place() -> None:
    """Other files name it only where a reader copies a command."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("no git here")
    allowed = {
        "pyproject.toml",
        "CHANGELOG.md",
        "SECURITY.md",
        "docs/how-to/other-launchers.md",
        "tests/test_release.py",
    }
    texts = [ROOT / name for name in tracked.stdout.split() if not name.startswith(("benchmarks/results/", "tests/"))]
    found = {
        str(path.relative_to(ROOT))
        for path in texts
        if path.is_file() and path.suffix in (".py", ".md", ".yaml", ".yml", ".toml", ".cff", ".json", "")
        if re.search(
            rf"rankzero[:=\- ]+v?{re.escape(VERSION)}|^version = \"{re.escape(VERSION)}", path.read_text(), re.M
        )
    }
    assert "pyproject.toml" in found
    assert found <= allowed, found - allowed


def test_the_citation_and_the_hooks_are_valid_yaml() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0" and citation["license"] == PROJECT["license"]
    assert citation["authors"] and citation["title"] == PROJECT["name"] and "version" not in citation
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert [repo["repo"] for repo in hooks] == ["local"], "a hook of another repository needs a network"
    entries = [hook["entry"].split()[0] for hook in hooks[0]["hooks"]]
    lint = (ROOT / "Makefile").read_text(encoding="utf-8").partition("\nlint:")[2].partition("\n\n")[0]
    assert {entry.replace(".venv/bin", "$(BIN)") for entry in entries} == set(re.findall(r"\$\(BIN\)/[\w-]+", lint))


AUDIT = "import sys\nsys.stderr.write({error!r})\nprint({output!r})\nsys.exit({code})\n"
CLEAN = {"name": "a", "version": "1", "vulns": []}
BAD = {"name": "b", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3"], "description": "Reads\nfiles."}]}
UNKNOWN = {"name": "c", "skip_reason": "not on the index"}


@pytest.mark.parametrize(
    ("packages", "code", "words"),
    [
        ([CLEAN], 0, "1 packages checked, 0 known problems"),
        ([CLEAN, BAD], 1, "PYSEC-1 +fixed in: 3\n +Reads files."),
        ([CLEAN, UNKNOWN], 0, "1 not checked"),
        ([UNKNOWN], 3, "NOTHING WAS CHECKED"),
        (None, 3, "NOTHING WAS CHECKED: ConnectionError: no route"),
    ],
)
def test_the_audit_distinguishes_problems_from_no_answer(
    packages: list[dict[str, Any]] | None, code: int, words: str, tmp_path: Path
) -> None:
    """pip-audit ends with 1 for both."""
    program = tmp_path / "pip_audit/__main__.py"
    program.parent.mkdir()
    output = "" if packages is None else json.dumps({"dependencies": packages})
    error = "ConnectionError: no route" if packages is None else ""
    ended = 1 if packages is None or BAD in packages else 0
    program.write_text(AUDIT.format(output=output, error=error, code=ended))
    done = subprocess.run(
        [sys.executable, str(ROOT / ".ci/audit.py"), "constraints.txt"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stderr
    assert re.search(words, done.stdout + done.stderr), done.stdout + done.stderr


def test_the_scripts_of_a_release_are_programs() -> None:
    for name in ("wheel-test", "test-lowest"):
        path = ROOT / ".ci" / name
        assert os.access(path, os.X_OK), name
        subprocess.run(["bash", "-n", str(path)], check=True)
        assert name in (ROOT / "Makefile").read_text(encoding="utf-8")
