"""What users can see of a checkout, as flat mappings: path → value."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from typing import Any

import typer.main
from pydantic import BaseModel
from typer.testing import CliRunner

import launch.cli
import trainer
import trainer.cli
from trainer import errors

TEXT_KEYS = ("description", "title")  # of a schema: wording
UNORDERED = ("enum", "required")


def commands() -> dict[str, Any]:
    """Return every command's arguments and options: types, defaults, limits; no help texts."""
    found: dict[str, Any] = {}
    for program, app in (("rankzero", launch.cli.app), ("python -m trainer", trainer.cli.app)):
        group: Any = typer.main.get_command(app)
        found |= {f"{program} {name}": parameter for name, parameter in _parameters(group)}
        for name, command in group.commands.items():
            found[f"{program} {name}"] = "command"
            found |= {f"{program} {name} {key}": parameter for key, parameter in _parameters(command)}
    return found


def _parameters(command: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    for place, parameter in enumerate(command.params):
        option = parameter.param_type_name == "option"
        annotation = parameter.type_descriptor.annotation
        plain = isinstance(annotation, type) and not hasattr(annotation, "__args__")
        described = {
            "metavar": parameter.metavar,
            "type": annotation.__name__ if plain else str(annotation),
            "default": None if parameter.default is None else str(parameter.default),
            "required": parameter.required,
            "multiple": parameter.multiple,
            "nargs": None if parameter.nargs == 1 else parameter.nargs,
            "min": parameter.min,
            "max": parameter.max,
            "names": [*parameter.opts, *parameter.secondary_opts] if option else None,
            "flag": option and parameter.is_flag,
            "hidden": parameter.hidden,
        }
        key = max(parameter.opts, key=len) if option else f"argument {place + 1}"
        yield key, {name: value for name, value in described.items() if value not in (None, False)}


def schema() -> dict[str, Any]:
    """Return the recipe's JSON Schema, flat, without wording and names of classes."""
    printed = CliRunner().invoke(trainer.cli.app, ["recipes", "--schema"]).stdout
    root = json.loads(printed)
    return dict(_flat(root, root.get("$defs", {}), ""))


def _flat(node: Any, definitions: dict[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(node, dict):
        yield path, node
        return
    node = dict(node)
    while "$ref" in node:
        node = {**definitions[node.pop("$ref").rpartition("/")[2]], **node}
    properties = node.pop("properties", {})
    choices = node.pop("oneOf", None) or node.pop("anyOf", None) or []
    for name, value in properties.items():
        yield from _flat(value, definitions, f"{path}.{name}" if path else name)
    for number, choice in enumerate(choices):
        yield from _flat(choice, definitions, f"{path}<{_choice_name(choice, definitions, number)}>")
    for key, value in node.items():
        if key in ("$defs", "discriminator", *TEXT_KEYS):
            continue
        value = sorted(value) if key in UNORDERED else value
        if key in ("items", "additionalProperties") and isinstance(value, dict):
            yield from _flat(value, definitions, f"{path}[{key}]")
        else:
            yield f"{path} {key}".strip(), value


def _choice_name(choice: dict[str, Any], definitions: dict[str, Any], number: int) -> str:
    if "$ref" in choice:
        choice = definitions[choice["$ref"].rpartition("/")[2]]
    kind = choice.get("properties", {}).get("kind", {}).get("const")
    return str(kind or choice.get("type", number))


def exit_codes() -> dict[str, int]:
    """Return the exit code of each error."""
    classes = vars(errors).values()
    return {c.__name__: c.exit_code for c in classes if isinstance(c, type) and issubclass(c, errors.RankzeroError)}


def public_names() -> dict[str, Any]:
    """Return what `from trainer import …` offers, with the parameters of each function or method."""
    found: dict[str, Any] = {}
    for name in trainer.__all__:
        value = getattr(trainer, name)
        if not inspect.isclass(value):
            found[name] = _signature(value)
            continue
        found[name] = "class"
        own = [key for key in dir(value) if not key.startswith("_") and key not in dir(BaseModel)]
        methods = [
            key for key in own if callable(inspect.getattr_static(value, key)) or inspect.ismethod(getattr(value, key))
        ]
        found |= {f"{name}.{key}": _signature(getattr(value, key)) for key in methods}
    return found


def _signature(function: Any) -> str:
    """Return the parameters without annotations: those name classes that may move."""
    signature = inspect.signature(function)
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=bare, return_annotation=inspect.Signature.empty))
