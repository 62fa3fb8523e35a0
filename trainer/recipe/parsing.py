"""A recipe: everything that a run depends on, checked completely before anything starts.

YAML with a format version, `key=value` overrides in dotted form; precedence is defaults < recipe < overrides. No torch
here: recipes are read on login nodes. The classes of the `task` and `model` sections are defined with their code and
passed to `recipe_class`.
"""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Hashable, Mapping, Sequence
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
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

MOST_BYTES, MOST_VALUES = 10_000_000, 1_000_000  # of a recipe file


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
        return yaml.dump(self.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


R = TypeVar("R", bound=Recipe)


def recipe_class(tasks: Sequence[type[Section]], models: Sequence[type[Section]]) -> type[Recipe]:
    """The recipe class whose `task` and `model` sections are chosen by their `kind` among the classes given."""

    def narrowed(classes: Sequence[type[Section]]) -> Any:
        union = reduce(or_, classes)
        return (Annotated[union, Field(discriminator="kind")], ...) if len(classes) > 1 else (union, ...)

    return create_model("Recipe", __base__=Recipe, task=narrowed(tasks), model=narrowed(models))


class _Dumper(yaml.SafeDumper):
    """YAML that reads back as the same values: a line end of Unicode within single quotes would become a space."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        style = '"' if _LINE_ENDS.search(data) else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style)


_LINE_ENDS = re.compile("[\x85\u2028\u2029]")
_Dumper.add_representer(str, _Dumper.represent_str)
_TAG, _MOST_DIGITS = "tag:yaml.org,2002:", 4000  # of a whole number; Python refuses more than 4,300


class _Loader(yaml.SafeLoader):
    """YAML with fewer surprises: 1e-4 is a number, 12:30:00 and yes are texts, and a duplicate key is an error."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        self._check_tag(node)
        return super().construct_object(node, deep)

    def _check_tag(self, node: yaml.Node) -> None:
        """Refuse a value that does not have the form of its tag, such as `!!int x`, on which SafeLoader fails."""
        kind, wrong = node.tag.removeprefix(_TAG), False
        if isinstance(node, yaml.ScalarNode):
            found = self.resolve(yaml.ScalarNode, node.value, (True, False)).removeprefix(_TAG)
            wrong = kind in ("map", "seq") or (kind in _SCALARS and found not in _SCALARS[kind])
            wrong = wrong or (kind == "int" and len(node.value) > _MOST_DIGITS)
        else:
            wrong = kind in _SCALARS or kind == ("seq" if isinstance(node, yaml.MappingNode) else "map")
        if wrong:
            text = f"a value that is no {kind}, or has more than {_MOST_DIGITS:,} digits"
            raise yaml.constructor.ConstructorError(None, None, text, node.start_mark)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(None, None, "a key is no list or mapping", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key!r}", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_SCALARS = {"null": ("null",), "bool": ("bool",), "int": ("int",), "float": ("float", "int")}  # tag -> forms
_KNOWN = {None, *(f"{_TAG}{kind}" for kind in (*_SCALARS, "str", "map", "seq"))}  # no dates, sets or bytes
_Loader.yaml_constructors = {tag: of for tag, of in yaml.SafeLoader.yaml_constructors.items() if tag in _KNOWN}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":int", ":float", ":timestamp"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(  # no octal 010, no base 60, no 1_000
    "tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9]*)$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$"
        r"|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN)$"
    ),
    list("-+.0123456789"),
)


def read_yaml(path: Path) -> dict[str, Any]:
    """The values of a recipe file, not checked.

    Raises:
        UsageError: it cannot be read, is not YAML, no mapping, or too large for a recipe.
    """
    try:
        text = path.read_text(encoding="utf-8") if path.stat().st_size <= MOST_BYTES else None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        hint = "give the path of a YAML file, or a name that `rankzero recipes` lists"
        raise UsageError(f"recipe {path} cannot be read: {reason}; {hint}") from None
    if text is None:
        raise UsageError(f"recipe {path} is larger than {MOST_BYTES:,} bytes: it is no recipe")
    values = parse_yaml(text, str(path))
    if not isinstance(values, dict):
        raise UsageError(f"{path}: a recipe is a mapping of sections, not {type(values).__name__}")
    return values


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


def parse_yaml(text: str, where: str) -> Any:
    """Return the values of a YAML text.

    Raises:
        UsageError: it is not YAML, or it has more than MOST_VALUES values with its aliases expanded.
    """
    try:
        values = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader subclass
    except (yaml.YAMLError, RecursionError) as error:
        quote = "a value that begins with one of * & ! % @ ` [ {, or holds ': ' or ' #', needs quotation marks"
        raise UsageError(f"{where}: not valid YAML: {error}\n{quote}, such as train: '*.csv'") from None
    left, count = [values], 0
    while left:  # a few lines of aliases can expand to billions of values, or endlessly
        value, count = left.pop(), count + 1
        if count > MOST_VALUES:
            raise UsageError(f"{where}: it has more than {MOST_VALUES:,} values: it is no recipe")
        left += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return values


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
        return key, f"unknown key; {_hint(cls, keys[-1], fields)}"
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


def _hint(cls: type[BaseModel], name: str, fields: Sequence[str]) -> str:
    """Return the key that was probably meant: a typo, another section's, another trainer's name, else all keys."""
    slip = difflib.get_close_matches(name, fields, n=1, cutoff=0.8)
    sections = {key: _models(field.annotation) for key, field in cls.model_fields.items()}
    elsewhere = [key for key, models in sections.items() if any(name in model.model_fields for model in models)]
    places = [f"{key}.{name}" for key in elsewhere] + [name] * (name in sections and not sections[name])
    hints = [known] if (known := advice(name)) else []
    hints += [f"use {' or '.join(places)}"] if places else []
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
