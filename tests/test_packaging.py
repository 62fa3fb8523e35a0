"""The installed package: contents of the wheel, the pinned environment, and a fast command line."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
HEAVY = ("torch", "transformers", "datasets", "accelerate", "evaluate", "tokenizers", "sacrebleu", "pyarrow", "pandas")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from this checkout without a network."""
    pytest.importorskip("hatchling", reason="the test extra is not installed")
    folder = tmp_path_factory.mktemp("wheel")
    offline = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *offline, "--wheel-dir", str(folder), str(ROOT)], check=True)
    return next(folder.glob("rankzero-*.whl"))


def test_wheel_holds_configs_templates_and_recipes(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {f"launch/accelerate_configs/{path.name}" for path in (ROOT / "accelerate_configs").glob("*.yaml")}
    expected |= {f"launch/slurm/{path.name}" for path in (ROOT / "slurm").iterdir()}
    expected |= {str(path.relative_to(ROOT)) for path in (ROOT / "trainer").rglob("*.yaml")}
    expected |= {str(path.relative_to(ROOT)) for top in ("trainer", "launch") for path in (ROOT / top).rglob("*.py")}
    expected |= {str(path.relative_to(ROOT)) for path in (ROOT / "trainer/report/templates").iterdir()}
    assert {"launch/accelerate_configs/debug.yaml", "trainer/recipe/shipped/multi30k.yaml"} <= expected
    assert {"trainer/corpora/reviews.yaml", "trainer/corpora/translation_words.yaml"} <= expected
    assert expected <= names
    assert {name.split("/")[0] for name in names} == {"launch", "trainer", f"rankzero-{PROJECT['version']}.dist-info"}
    assert any(name.endswith("/licenses/LICENSE") for name in names)


def test_configs_are_found_in_an_installed_wheel(wheel: Path, tmp_path: Path) -> None:
    """Unpacked, not from the checkout: the folder beside the package must be the one that is found."""
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = "from launch.configs import find, shipped; print(find('cpu')); print(*shipped())"
    words = [sys.executable, "-P", "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {code}"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    path, names = done.stdout.splitlines()
    assert Path(path) == tmp_path / "launch" / "accelerate_configs" / "cpu.yaml"
    assert set(names.split()) == {path.stem for path in (ROOT / "accelerate_configs").glob("*.yaml")}
    code = "from launch.slurm import render; print(render.templates())"
    words[-1] = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {code}"
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()) == tmp_path / "launch" / "slurm"


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["recipes"], ["train", "no-such-recipe"]])
def test_the_command_line_answers_without_heavy_imports(words: list[str]) -> None:
    code = f"""
import sys
sys.argv = ["rankzero", *{words!r}]
from launch.cli import main
try:
    main()
except SystemExit as end:
    code = end.code
print("loaded:", *sorted(set({HEAVY!r}) & set(sys.modules)))
sys.exit(code)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == (2 if "no-such-recipe" in words else 0), done.stderr
    assert done.stdout.splitlines()[-1] == "loaded:", done.stdout.splitlines()[-1]


def _name(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[^A-Za-z0-9._-]", requirement)[0]).lower()


def test_constraints_pin_every_requirement_and_name_no_machine() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    for line in pins:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9a-z.]*", line), f"{line}: exact, without path or local build"
    pinned = {_name(line) for line in pins}
    extras = PROJECT["optional-dependencies"].values()
    wanted = [*PROJECT["dependencies"], *(word for extra in extras for word in extra)]
    assert {_name(word) for word in wanted} <= pinned
    assert "torch==2.13.0" in pins


def test_changelog_and_shipped_yaml_are_well_formed() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "## [Unreleased]" in changelog or f"## [{PROJECT['version']}]" in changelog
    for path in [
        *(ROOT / "accelerate_configs").glob("*.yaml"),
        *(ROOT / "trainer" / "recipe" / "shipped").glob("*.yaml"),
    ]:
        assert path.read_text(encoding="utf-8").startswith("#"), f"{path.name} says what it is in its first line"
        assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict), path.name
