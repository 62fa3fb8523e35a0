"""The documentation: commands run, recipes and options exist, every recipe key is described, links resolve."""

from __future__ import annotations

import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from docs_helpers import DOCS, Workspace, blocks, commands, pages
from slow import slow_except

from launch.cli import app
from launch.configs import find
from launch.slurm.site import Site
from launch.sweep.space import parse_sweep
from trainer.cli import app as trainer_app
from trainer.recipe import parse_yaml, synonyms
from trainer.recipe_loading import Recipe, load_recipe

ROOT = DOCS.parent
FIRST = ("tutorials/classifier.md", "tutorials/translation.md")  # the guides use their runs


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    made = Workspace(tmp_path_factory.mktemp("docs"))
    for name in ("accelerate_configs", "examples"):
        (made.folder / name).symlink_to(ROOT / name)
    yield made
    made.close()


@pytest.mark.ranks
@pytest.mark.parametrize("page", slow_except(pages(), FIRST[0]))
def test_the_commands_of_a_page_run(workspace: Workspace, page: str) -> None:
    for needed in (*FIRST, page):
        workspace.run(needed)


@pytest.mark.parametrize("page", pages())
def test_the_commands_of_a_page_have_known_options(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for blocks that cannot run here, each of which gives a reason."""
    monkeypatch.chdir(tmp_path)
    for name in ("accelerate_configs", "examples"):
        Path(name).symlink_to(ROOT / name)
    monkeypatch.setenv("RANKZERO_TRUSTED_MODULES", "")  # recipes below add their module
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path / "examples"))
    for block in (block for name in (*FIRST, page) for block in blocks(name) if block.title):
        Path(block.title).write_text(block.text, encoding="utf-8")
    for block in (block for block in blocks(page) if block.language == "bash"):
        assert not block.parsed_only or re.fullmatch(r"parse, \w.{8,}", block.comment), block
        for words in commands(block.text):
            check_command(words)


def check_command(words: list[str]) -> None:
    name, *rest = words
    group: Any = typer.main.get_command(app)
    if name == "train" and "--config" not in rest:
        group = typer.main.get_command(trainer_app) if "--defer" in rest else group
    params = group.commands[name].make_context(name, rest).params
    recipe = params.get("recipe")
    if recipe is not None and "learning_rate" not in str(words):  # the tutorial shows a wrong key
        overrides = [word for word in params.get("overrides") or () if "$" not in word]
        load_recipe(recipe, overrides)
    if params.get("config"):
        find(params["config"])


@pytest.mark.parametrize("page", [str(path.relative_to(DOCS)) for path in sorted(DOCS.rglob("*.md"))])
def test_recipe_fragments_have_known_keys(page: str) -> None:
    schema = Recipe.model_json_schema()
    for block in blocks(page):
        if block.language == "yaml" and block.text.startswith("# /etc/rankzero/site.yaml"):
            Site.model_validate(parse_yaml(block.text, page))
        elif block.language == "yaml" and "\nspace:\n" in block.text:
            assert parse_sweep(parse_yaml(block.text, page), page).space
        elif block.language == "yaml":
            check_keys(yaml.safe_load(block.text), [schema], schema)


def check_keys(values: Any, sections: list[dict[str, Any]], schema: dict[str, Any]) -> None:
    for key, value in values.items() if isinstance(values, dict) else ():
        found = [section["properties"][key] for section in sections if key in section.get("properties", {})]
        assert found, f"{key} is no key of {[section.get('title') for section in sections]}"
        below = [section for option in found for section in referenced(option, schema)]
        if below:
            check_keys(value, below, schema)


def referenced(value: dict[str, Any], schema: dict[str, Any]) -> list[dict[str, Any]]:
    if "$ref" in value:
        return [schema["$defs"][value["$ref"].rpartition("/")[2]]]
    return [
        section
        for name in ("oneOf", "anyOf")
        for option in value.get(name, ())
        for section in referenced(option, schema)
    ]


def test_every_recipe_key_is_described() -> None:
    schema = Recipe.model_json_schema()
    sections = {"Recipe": schema, **schema["$defs"]}
    missing = [
        f"{name}.{key}"
        for name, section in sections.items()
        for key, value in section["properties"].items()
        if not (value.get("description") or "const" in value or referenced(value, schema))
    ]
    assert not missing


@pytest.mark.parametrize("page", [path for path in sorted(DOCS.rglob("*.md")) if "<!-- generate: " in path.read_text()])
def test_generated_parts_are_explained_on_the_raw_page(page: Path) -> None:
    """GitHub shows no generated part. The note in its place names a command or file, and is not on the site."""
    markdown = page.read_text(encoding="utf-8")
    notes = re.findall(r"<!-- generate: .* -->\n((?:> .*\n)+)", markdown)
    assert len(notes) == markdown.count("<!-- generate: ")
    for note in notes:
        links = re.findall(r"\]\(([^)]+)\)", note)
        assert all((page.parent / link).exists() for link in links), note
        assert links or "`rankzero " in note, note
    made = runpy.run_path(str(DOCS / "_reference.py"))["on_page_markdown"](markdown)
    assert len(made) > len(markdown)
    for note in notes:
        assert note not in made, note
    assert "<!-- generate" not in made


@pytest.mark.parametrize(
    "name", ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "benchmarks/README.md", "slurm/README.md"]
)
def test_links_of_pages_outside_of_the_site_resolve(name: str) -> None:
    """`mkdocs build --strict` (make docs) checks those of the site."""
    path = ROOT / name
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target


@pytest.mark.parametrize("folder", ["trainer", "launch", "slurm", "accelerate_configs", "benchmarks", "examples"])
def test_files_name_existing_pages(folder: str) -> None:
    for path in (ROOT / folder).rglob("*"):
        if path.suffix in (".py", ".yaml", ".sbatch", ".jinja"):
            for target in re.findall(r"docs/[\w/-]+\.md", path.read_text(encoding="utf-8")):
                assert (ROOT / target).exists(), f"{path.relative_to(ROOT)}: {target}"


# -- the page for users of other trainers ------------------------------------------------------------------------------

NO_SYNONYMS = {"optim", "callbacks"}  # names of sections or keys
TABLE_ROW = re.compile(r"^\| (`.+?) \| (.+?) \| .*\|$", re.M)
KEY = re.compile(r"`([a-z_]+(?:\.[a-z_]+)*)`")


def test_keys_of_the_page_for_users_of_other_trainers_exist() -> None:
    """Each key is one of the schema, and the hint for the other trainer's name leads to it."""
    schema, text = Recipe.model_json_schema(), (DOCS / "how-to/from-trainer.md").read_text(encoding="utf-8")
    rows = TABLE_ROW.findall(text)
    assert len(rows) > 40
    for there, here in rows:
        keys = KEY.findall(here)
        for key in keys:
            value: Any = True
            for part in reversed(key.split(".")):
                value = {part: value}
            check_keys(value, [schema], schema)
        hints = {name: synonyms.advice(name) for name in KEY.findall(there)}
        for name, hint in hints.items():
            if hint is not None and keys:
                assert any(key in hint for key in keys), f"{name}: {hint}, and the page says {here}"
            known = hint is not None or not keys or any(name in key.split(".") for key in keys)
            assert known or name in NO_SYNONYMS, f"{name} of the page has no hint in trainer/recipe/synonyms.py"
