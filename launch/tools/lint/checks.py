"""The checks of `rankzero lint`: errors, with which `rankzero train` would end, and warnings. No torch here."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from launch.tools.lint.columns import missing_columns
from launch.tools.lint.positions import place_of, positions
from launch.tools.lint.suspicious import suspicious
from trainer import user_code
from trainer.data.discovery import split_shards
from trainer.data.sources import SPLITS, Split
from trainer.errors import DataError, RankzeroError, UsageError
from trainer.hub_paths import check_model_files
from trainer.recipe import Recipe as BaseRecipe
from trainer.recipe import apply_overrides, read_yaml
from trainer.recipe.unused import unused_keys
from trainer.recipe_files import find_recipe
from trainer.recipe_loading import Recipe, check_recipe
from trainer.redaction import redacted

KEY = re.compile(r"([a-z]\w*(?:\.\w+)*)(?:=.*?)?: (.*)", re.DOTALL)  # "data.lanes: text", "data.root='x': text"
MARK = re.compile(r"line (\d+), column (\d+)")
EXCERPT = re.compile(r'in "[^"]*", line \d+, column \d+:?[^^]*\^?')  # of a YAML error


@dataclass(frozen=True)
class Finding:
    """One error or warning of a recipe.

    Attributes:
        file: the recipe, as the user named it.
        line: of the key, from 1; 1 where the file does not have the key.
        column: of the key, from 1.
        level: an error ends a run before its first step, a warning does not.
        code: exit code that the error has; 0 for a warning.
        key: dotted; empty for the file itself.
        message: what is wrong, and the fix.
    """

    file: str
    line: int
    column: int
    level: Literal["error", "warning"]
    code: int
    key: str
    message: str

    def __str__(self) -> str:
        key = f"{self.key}: " if self.key else ""
        return f"{self.file}:{self.line}:{self.column}: {self.level}: {key}{self.message}"


def lint(name: str, overrides: Sequence[str] = ()) -> list[Finding]:
    """Return what is wrong with a recipe, in the order of its lines."""
    try:
        path = find_recipe(name)
        values = read_yaml(path)
    except UsageError as error:
        mark = [*MARK.finditer(str(error))]
        line, column = (int(mark[-1][1]), int(mark[-1][2])) if mark else (1, 1)
        return [Finding(name, line, column, "error", error.exit_code, "", _in_a_line(str(error), name))]
    places = positions(path)
    found = []
    for key, message, code in dict.fromkeys(_problems(values, overrides, str(path))):
        line, column = place_of(key, places)
        found.append(Finding(name, line, column, "error" if code else "warning", code, key, _in_a_line(message, key)))
    return sorted(found, key=lambda finding: (finding.line, finding.column))


def _in_a_line(message: str, key: str) -> str:
    """Return a message without the key or file that is printed before it."""
    text = re.sub(rf"^{re.escape(key)}(?:: |=(?='))", "", redacted(message)) if key else message
    return " ".join(EXCERPT.sub("", text).split())


def _problems(values: dict[str, Any], overrides: Sequence[str], where: str) -> Iterator[tuple[str, str, int]]:
    """Yield key, message and exit code (0: a warning)."""
    try:
        values = apply_overrides(values, overrides)
        user_code.trust(values)
    except UsageError as error:
        yield from _split(error)
        return
    wrong = set[str]()
    recipe = None
    while recipe is None:
        try:
            recipe = Recipe.parse(copy.deepcopy(values), where=where)
        except UsageError as error:
            found = [problem for problem in _split(error) if not _follows(problem, wrong)]
            yield from found
            removed = [key for key, _, _ in found if _remove(values, key)]
            if not removed:
                return
            wrong.update(*(_in_doubt(key, message) for key, message, _ in found))
    yield from (problem for problem in _problems_of(recipe) if not _follows(problem, wrong))


def _problems_of(recipe: BaseRecipe) -> Iterator[tuple[str, str, int]]:
    """Yield the problems of a recipe whose keys and types are right."""
    try:
        check_recipe(recipe)
    except RankzeroError as error:
        yield from _split(error)
    yield from _missing_files(recipe)
    yield from ((key, message, 0) for key, message in _warnings(recipe))


def _remove(values: Any, key: str) -> bool:
    """Remove a key, so that the others can be checked. Return whether it was there."""
    *path, last = key.split(".")
    for part in path:
        values = _item(values, part)
    if isinstance(values, dict) and last in values:
        del values[last]
        return True
    if isinstance(values, list) and last.isdecimal() and int(last) < len(values):
        del values[int(last)]
        return True
    return False


def _item(values: Any, part: str) -> Any:
    if isinstance(values, dict):
        return values.get(part)
    return values[int(part)] if isinstance(values, list) and part.isdecimal() and int(part) < len(values) else None


def _in_doubt(key: str, message: str) -> set[str]:
    """Return a wrong key, and for an unknown one those that its message offers: their values are not known."""
    if not message.startswith("unknown key"):
        return {key}
    section = key.rpartition(".")[0]
    near = {f"{section}.{name}" if section else name for name in re.findall(r"did you mean '([\w.]+)'", message)}
    return {key, *near, *re.findall(r"\b[a-z]\w*(?:\.[a-z]\w*)+", message)}


def _follows(problem: tuple[str, str, int], wrong: set[str]) -> bool:
    """Return whether a problem may follow from the removal of wrong keys: it is at one, or its message names one."""
    key, message, _ = problem
    if any(f"{key}.".startswith(f"{one}.") for one in wrong):
        return True
    inner = {one.removeprefix(f"{key}.") for one in wrong if one.startswith(f"{key}.")}  # as a section names its keys
    names = inner | {one for one in wrong if "." in one}
    return any(re.search(rf"\b{re.escape(name)}\b", message) for name in names)


def _split(error: RankzeroError, default: str = "") -> Iterator[tuple[str, str, int]]:
    """Yield the problems of an error one by one, each with its key."""
    for problem in getattr(error, "problems", ()) or (str(error),):
        found = KEY.fullmatch(problem)
        yield (found[1], found[2], error.exit_code) if found else (default, problem, error.exit_code)


def _missing_files(recipe: BaseRecipe) -> Iterator[tuple[str, str, int]]:
    """Yield what the files of this machine do not have. Nothing is fetched: other places are not looked at."""
    data = recipe.data
    for split in SPLITS:
        parts = {f"data.{split}": data} if isinstance(getattr(data, split), str | list | dict) else {}
        if split == "train" and data.mix:
            parts = {f"data.mix.{number}.train": data.of_corpus(corpus) for number, corpus in enumerate(data.mix)}
        missing = [problem for key, part in parts.items() for problem in _missing_split(part, split, key)]
        yield from missing
        if not missing and parts and all(map(_is_here, parts.values())):
            yield from _missing_columns(recipe, split)
    weights = getattr(recipe.model, "weights", None)
    for key, name in dict.fromkeys([("model.name", weights), (recipe.tokenizer_key, recipe.tokenizer_name)]):
        if name and name.startswith(("/", "./", "../", "~")) and not Path(name).expanduser().exists():
            yield key, f"{name!r} does not exist", UsageError.exit_code
        elif name and key == "model.name":
            yield from _error_of(partial(check_model_files, name), key)


def _missing_split(data: Any, split: Any, key: str) -> Iterator[tuple[str, str, int]]:
    if _is_here(data):
        yield from _error_of(partial(split_shards, data, getattr(data, split), split), key)


def _is_here(data: Any) -> bool:
    """Return whether the files of a section are on this machine."""
    elsewhere = "://" in data.root and not data.root.startswith(("embedded://", "file://"))
    return not elsewhere and (data.dataset is None or Path(data.root).is_dir())


def _missing_columns(recipe: BaseRecipe, split: Split) -> Iterator[tuple[str, str, int]]:
    try:
        yield from ((key, message, DataError.exit_code) for key, message in missing_columns(recipe, split))
    except RankzeroError as error:
        yield from _split(error, f"data.{split}")


def _error_of(check: Any, key: str) -> Iterator[tuple[str, str, int]]:
    try:
        check()
    except RankzeroError as error:
        yield "data.root" if str(error).startswith("data.root") else key, str(error), error.exit_code


def _warnings(recipe: BaseRecipe) -> Iterator[tuple[str, str]]:
    for key, user in unused_keys(recipe).items():
        yield key, f"is not used: it belongs to {user}"
    yield from deprecated(recipe)
    yield from suspicious(recipe)


def deprecated(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the keys that the file sets although their description in the schema marks them as deprecated."""
    for name in sorted(section.model_fields_set):
        field, value = type(section).model_fields[name], vars(section)[name]  # getattr warns about deprecated ones
        if field.deprecated:
            hint = field.deprecated if isinstance(field.deprecated, str) else "it will be removed"
            yield f"{prefix}{name}", f"deprecated: {hint}"
        for key, inner in [(f"{prefix}{name}", value)] if not isinstance(value, list) else [
            (f"{prefix}{name}.{number}", item) for number, item in enumerate(value)
        ]:  # fmt: skip
            if isinstance(inner, BaseModel):
                yield from deprecated(inner, f"{key}.")
