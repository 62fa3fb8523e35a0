"""A recipe: everything that a run depends on, checked completely before anything starts.

YAML with a format version, `key=value` overrides in dotted form; precedence is defaults < recipe < overrides. No torch
here: recipes are read on login nodes. The classes of the `task` and `model` sections are defined with their code and
passed to `recipe_class`.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, Field, ValidationError, create_model, field_validator, model_validator

from trainer.errors import UsageError
from trainer.recipe.loop_sections import LaunchConfig, LoopConfig
from trainer.recipe.output_sections import EvaluationConfig, ExportConfig
from trainer.recipe.patterns import RUN_NAME, in_words
from trainer.recipe.sections import (
    DataConfig,
    OptimConfig,
    Section,
    TokenizerConfig,
    TokenizerTraining,
)
from trainer.recipe.synonyms import advice
from trainer.recipe.trackers import TrackerEntry, repeated, without_ledger
from trainer.recipe.yaml_text import parse_yaml, read_yaml, written_yaml


class Recipe(Section):
    """The whole recipe. `task` and `model` are narrowed to the classes found by `recipe_class`."""

    version: Literal[1] = Field(1, description="format version of this file")
    name: str = Field(pattern=RUN_NAME, description="name of the run; also its directory below runs/")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(1, description="seed of weights, rows and dropout")
    task: Section
    data: DataConfig
    tokenizer: TokenizerConfig = Field(default_factory=TokenizerConfig)
    model: Section
    optim: OptimConfig = Field(default_factory=OptimConfig)
    loop: LoopConfig
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    export: ExportConfig = Field(default_factory=ExportConfig)
    track: list[TrackerEntry] = Field(
        default_factory=list,
        description="trackers that get the metrics: names, or {name: {option: value}}; see docs/how-to/tracking.md",
    )
    launch: LaunchConfig = Field(default_factory=LaunchConfig)

    _ledger = model_validator(mode="before")(without_ledger)

    @field_validator("track")
    @classmethod
    def _once(cls, track: list[TrackerEntry]) -> list[TrackerEntry]:
        if (name := repeated(track)) is not None:
            raise ValueError(f"{name} is listed twice; give all its options in one entry")
        return track

    @property
    def tokenizer_name(self) -> str | None:
        """Where the tokenizer comes from if it is not trained: as the recipe says, else with the model's weights."""
        if self.tokenizer.train is not None or self.tokenizer.pretrained is not None:
            return self.tokenizer.pretrained
        begun = getattr(self.model, "init_from", None)
        return f"{begun}/tokenizer" if begun else getattr(self.model, "weights", None)

    @property
    def tokenizer_key(self) -> str:
        """The key that `tokenizer_name` comes from."""
        if self.tokenizer.pretrained is not None:
            return "tokenizer.pretrained"
        return "model.init_from" if getattr(self.model, "init_from", None) else "model.name"

    @property
    def tokenizer_training(self) -> TokenizerTraining | None:
        """How the tokenizer is trained: as the recipe says, or, for random weights, of the architecture's own kind.

        None where there is one already.
        """
        found = self.tokenizer.train
        if found is None and self.tokenizer_name is None and (kind := getattr(self.model, "tokenizer_kind", None)):
            found = TokenizerTraining(kind=kind)
        if found is None or found.begin is not None:
            return found
        return found.model_copy(update={"begin": getattr(self.model, "begins_texts", True)})

    @classmethod
    def load(cls: type[R], path: Path, overrides: Sequence[str] = ()) -> R:
        """Reads a YAML recipe and applies `key=value` overrides.

        Raises:
            UsageError: the file is missing or not YAML, or any key or value is wrong; all problems at once.
        """
        return cls.parse(read_yaml(path), overrides, str(path))

    @classmethod
    def parse(cls: type[R], values: Any, overrides: Sequence[str] = (), where: str = "recipe") -> R:
        """Checks `values` (as read from YAML or JSON) with `overrides` applied; see `load`."""
        if not isinstance(values, dict):
            raise UsageError(f"{where}: a recipe is a mapping of sections, not {type(values).__name__}")
        apply_overrides(values, overrides)
        if problems := [*_not_unicode(values)]:
            raise refusal(where, problems)
        try:
            return cls._narrowed(values).model_validate(values)
        except ValidationError as error:
            raise refusal(where, problem_lines(cls, error)) from None

    @classmethod
    def _narrowed(cls: type[R], values: Mapping[str, Any]) -> type[R]:
        """Return the class that checks these values, which may depend on the kind of their task."""
        return cls

    def to_yaml(self) -> str:
        """The recipe as resolved, all defaults written out."""
        return written_yaml(self.model_dump(mode="json"))


def _not_unicode(value: Any, place: str = "") -> Iterator[str]:
    """Yield a line for each key and text that no file can hold, such as a file name in another encoding than UTF-8."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _not_unicode(key, place or "a key")
            yield from _not_unicode(inner, f"{place}.{key}".removeprefix("."))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _not_unicode(inner, f"{place}.{number}")
    elif isinstance(value, str) and value.encode("utf-8", "ignore").decode() != value:
        yield f"{ascii(place)[1:-1]}: {value!a} is not Unicode text; rename the file or the column"


R = TypeVar("R", bound=Recipe)


def recipe_class(tasks: Sequence[type[Section]], models: Sequence[type[Section]]) -> type[Recipe]:
    """The recipe class whose `task` and `model` sections are chosen by their `kind` among the classes given."""

    def narrowed(classes: Sequence[type[Section]]) -> Any:
        union = reduce(or_, classes)
        return (Annotated[union, Field(discriminator="kind")], ...) if len(classes) > 1 else (union, ...)

    return create_model("Recipe", __base__=Recipe, task=narrowed(tasks), model=narrowed(models))


def problem_lines(cls: type[BaseModel], error: ValidationError, prefix: str = "") -> list[str]:
    """Return a line for each wrong key of a section: the key, the value, what is allowed. `prefix`: before the key."""
    problems: dict[str, list[str]] = {}
    ranges: dict[str, list[str]] = {}
    for problem in error.errors():
        key, text = _explain(cls, problem)
        problems.setdefault(key, []).append(text)
        if problem["type"].startswith(("less_than", "greater_than")):
            ranges[key] = [text]  # the type is right: leave out messages about other types of a union
    return [f"{prefix}{key}: {'; or '.join(dict.fromkeys(texts))}" for key, texts in (problems | ranges).items()]


def refusal(where: str, lines: Sequence[str]) -> UsageError:
    """Return the error about all problems of a file."""
    count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
    return UsageError(f"{where}: {count}\n  " + "\n  ".join(lines), lines)


_INDICATORS = tuple("*&!%@`")


def apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Set each `key=value` in the values of a recipe, and return them.

    Raises:
        UsageError: an override has no key or no value.
    """
    for override in overrides:
        _apply(values, override)
    return values


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise UsageError(f"override {override!r}: write key=value with a dotted key, such as optim.lr=3e-4")
    at: Any = values
    for part in parts[:-1]:
        at = at.setdefault(part, {}) if isinstance(at.get(part, {}), dict) else at.update({part: {}}) or at[part]
    # `*.csv`, `@x` and the like begin an alias, an anchor or a tag in YAML, of which an override has no use
    at[parts[-1]] = text if text.lstrip()[:1] in _INDICATORS else parse_yaml(text, f"override {override!r}")


def _explain(cls: type[BaseModel], problem: Any) -> tuple[str, str]:
    """The dotted key of one of pydantic's problems, and what is wrong: the value, the nearest known key."""
    keys, fields = _walk(cls, list(problem["loc"]))
    key = ".".join(keys) or "recipe"
    if problem["type"] == "extra_forbidden":
        return key, f"unknown key; {_hint(cls, keys, fields)}"
    if problem["type"] == "missing":
        return key, "required and not given"
    if problem["type"].startswith("union_tag"):
        kinds = [str(_kind(found)) for found in _models(cls.model_fields[keys[0]].annotation)]
        given = problem["ctx"].get("tag")
        near = difflib.get_close_matches(str(given), kinds, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        wrong = "required and not given" if given is None else f"{given!r} is unknown{hint}"
        own = ", or package.module:Class of your own" if key == "task" else ""
        return f"{key}.kind", f"{wrong}; allowed: {', '.join(kinds)}{own}"
    message, value = problem["msg"].removeprefix("Value error, "), problem.get("input")
    if problem["type"] == "string_pattern_mismatch" and (words := in_words(problem["ctx"]["pattern"], value)):
        return key, words
    if problem["type"] == "list_type" and isinstance(value, str | int | float):
        return key, f"a list is needed; write [{value}] (got {value!r})"
    return key, message + (f" (got {value!r})" if not isinstance(value, dict | BaseModel) else "")


def _hint(cls: type[BaseModel], keys: Sequence[str], fields: Sequence[str]) -> str:
    """Return the key that was probably meant: a typo, another section's, another trainer's name, else all keys.

    A key that only other kinds of a section have is named as such.
    """
    *section, name = keys
    slip = difflib.get_close_matches(name, fields, n=1, cutoff=0.8)
    sections = {key: _models(field.annotation) for key, field in cls.model_fields.items()}
    having = {key: [m for m in models if name in m.model_fields] for key, models in sections.items()}
    places = [f"{key}.{name}" for key, models in having.items() if models and [key] != section]
    places += [name] * (name in sections and not sections[name])
    hints = [known] if (known := advice(name)) else []
    hints += [f"use {' or '.join(places)}"] if places else []
    hints = [*dict.fromkeys(hints)]  # a name that another trainer has for the same key
    if len(section) == 1 and (kinds := [str(_kind(model)) for model in having.get(section[0], ())]):
        only = f"kind {' or '.join(kinds)} has it"
        return "; or ".join([f"{only}, keys here: {', '.join(sorted(fields))}", *hints])
    if not slip and hints:
        return "; or ".join(hints)
    if near := slip or difflib.get_close_matches(name, fields, n=1, cutoff=0.6):
        return f"did you mean {near[0]!r}?"
    return f"known keys here: {', '.join(sorted(fields))}"


def _walk(cls: type[BaseModel], loc: Sequence[Any]) -> tuple[list[str], list[str]]:
    """Return the keys of the user in `loc` (pydantic adds tags of unions), and the known keys next to the last one."""
    keys: list[str] = []
    at: list[type[BaseModel]] = [cls]
    fields = list(cls.model_fields)
    for part in loc:
        if isinstance(part, int) or not at:
            keys += [str(part)] if isinstance(part, int) else []
            continue
        tagged = [c for c in at if _kind(c) == part]
        if tagged and len(at) > 1:
            at = tagged
            continue
        fields = [name for c in at for name in c.model_fields]
        keys.append(str(part))
        at = [m for c in at if part in c.model_fields for m in _models(c.model_fields[str(part)].annotation)]
    return keys, fields


def _kind(cls: type[BaseModel]) -> Any:
    field = cls.model_fields.get("kind")
    return get_args(field.annotation)[0] if field and get_origin(field.annotation) is Literal else None


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The section classes inside an annotation such as `A | B | None`."""
    if get_origin(annotation) in (Union, types.UnionType, typing.Annotated, list):
        return [m for a in get_args(annotation) for m in _models(a)]
    return [annotation] if isinstance(annotation, type) and issubclass(annotation, BaseModel) else []
