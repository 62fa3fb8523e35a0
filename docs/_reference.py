"""MkDocs hook: generate the reference from the code.

A page asks for a generated part by a comment: <!-- generate: recipe -->, <!-- generate: recipe export.gates -->,
<!-- generate: cli -->, exit-codes, recipes, configs, python, or file examples/x.py. The quotation below a comment is
for readers of the raw page, as on GitHub: where they find the same. It is replaced on the site.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PART = re.compile(r"<!-- generate: ([\w-]+) ?(\S*) -->\n(?:> .*\n?)*")


def on_files(files: Any, *, config: Any) -> None:
    """Publish the JSON Schema of a recipe next to the pages."""
    from mkdocs.structure.files import File

    text = (ROOT / "trainer/recipe/rankzero.schema.json").read_text(encoding="utf-8")
    files.append(File.generated(config, "rankzero.schema.json", content=text))


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill in the generated parts of a page."""
    return PART.sub(lambda m: "\n".join([*GENERATORS[m[1]](m[2]), ""]), markdown)


# -- recipe keys, from the JSON Schema ---------------------------------------------------------------------------------


def recipe_tables(section: str = "") -> Iterator[str]:
    """Every key of every section, or those of one (`export.gates`)."""
    from trainer import Recipe

    schema = Recipe.model_json_schema()
    if section:
        found = schema
        for part in section.split("."):
            found = models(found["properties"][part], schema)[0]
        yield from key_table(found, schema)
    else:
        yield from sections(schema, schema, "")


def sections(model: dict[str, Any], schema: dict[str, Any], prefix: str) -> Iterator[str]:
    yield from key_table(model, schema)
    for key, value in model["properties"].items():
        choices = models(value, schema)
        for choice in choices:
            kind = choice["properties"].get("kind", {}).get("const")
            title = f"{prefix}{key}" + (f": {kind}" if len(choices) > 1 else "")
            yield from ("", f"{'#' * (2 + title.count('.'))} `{title}`", "", paragraph(choice.get("description")), "")
            yield from sections(choice, schema, f"{prefix}{key}.")


def models(value: dict[str, Any], schema: dict[str, Any]) -> list[dict[str, Any]]:
    """The sections that a value may be, or that a list may have."""
    if isinstance(value.get("items"), dict):
        return models(value["items"], schema)
    if "$ref" in value:
        return [schema["$defs"][value["$ref"].rpartition("/")[2]]]
    return [found for option in value.get("oneOf", value.get("anyOf", [])) for found in models(option, schema)]


def key_table(model: dict[str, Any], schema: dict[str, Any]) -> Iterator[str]:
    yield from ("| key | type and allowed values | default | meaning |", "|---|---|---|---|")
    for key, value in model["properties"].items():
        nested = models(value, schema)
        default = (
            "required" if key in model.get("required", ()) or "const" in value else default_of(model["title"], key)
        )
        meaning = value.get("description") or ("see below" if nested else "chooses this section" * ("const" in value))
        kind = ("list of sections" if "items" in value else "section") if nested else kind_of(value)
        yield row(f"`{key}`", kind, default, meaning)


def default_of(section: str, key: str) -> str:
    """The default of a key, also one that a factory makes, which is not part of the schema."""
    from pydantic import BaseModel

    classes = BaseModel.__subclasses__()
    for found in classes:
        classes += found.__subclasses__()
        if section == found.__name__ and key in found.model_fields:
            field = found.model_fields[key]
            if field.is_required():  # though the schema allows another key in its place
                return "required"
            value = field.get_default(call_default_factory=True)
            return "its defaults" if isinstance(value, BaseModel) else f"`{json.dumps(value, ensure_ascii=False)}`"
    return ""


def kind_of(value: dict[str, Any]) -> str:
    """The type and the allowed values, in words."""
    if "anyOf" in value:
        return " or ".join(dict.fromkeys(kind_of(option) for option in value["anyOf"]))
    if "enum" in value or "const" in value:
        return ", ".join(f"`{name}`" for name in value.get("enum", [value.get("const")]))
    if value.get("type") == "array":
        items = value.get("items") or value.get("prefixItems", [{}])[0]
        return f"list of {kind_of(items)}"
    if value.get("type") == "object":
        inner = value.get("additionalProperties")
        return "mapping" + (f" to {kind_of(inner)}" if isinstance(inner, dict) else "")
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<", "pattern": "matches"}
    limits = ", ".join(f"{sign} `{value[name]}`" for name, sign in bounds.items() if name in value)
    names = {"integer": "integer", "number": "number", "boolean": "`true`, `false`", "string": "text", "null": "null"}
    return " ".join(filter(None, (names.get(value.get("type", ""), "any"), limits)))


# -- commands, errors, files -------------------------------------------------------------------------------------------


def cli_tables(_: str = "") -> Iterator[str]:
    """Every command of `rankzero` with its arguments and options."""
    import typer

    from launch.cli import app

    for name, command in sorted(typer.main.get_command(app).commands.items()):  # type: ignore[attr-defined]
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        usage = " ".join(["rankzero", name, "[OPTIONS]", *(p.metavar or p.name.upper() for p in arguments)])
        yield from ("", f"## rankzero {name}", "", paragraph(command.help), "", "```text", usage, "```", "")
        yield from ("| argument or option | default | meaning |", "|---|---|---|")
        for param in command.params:
            if param.name == "help":
                continue
            metavar = "" if getattr(param, "is_flag", False) else f" {param.metavar or 'TEXT'}"
            names = ", ".join(param.opts) + metavar if param not in arguments else param.metavar
            default = "required" if param.required else f"`{param.default}`" if param.default else ""
            yield row(f"`{names}`", default, param.help or "")


def exit_codes(_: str = "") -> Iterator[str]:
    """The exit code of each error class."""
    from trainer import errors

    yield from ("| code | error | when |", "|---|---|---|", row("0", "", "Done."))
    found = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, errors.RankzeroError)]
    for error in sorted(found, key=lambda c: c.exit_code):
        if error is not errors.RankzeroError:
            yield row(str(error.exit_code), f"`{error.__name__}`", paragraph(error.__doc__))


def recipe_list(_: str = "") -> Iterator[str]:
    """The shipped recipes and the first line of each."""
    yield from ("| recipe | trains |", "|---|---|")
    folder = next((ROOT / "trainer").rglob("demo-translation.yaml")).parent
    for path in sorted(folder.glob("*.yaml")):
        yield row(f"`{path.stem}`", path.read_text(encoding="utf-8").split("\n")[0].lstrip("# "))


def config_list(_: str = "") -> Iterator[str]:
    """The shipped Accelerate configs with the comment at their head."""
    yield from ("| config | starts |", "|---|---|")
    for path in sorted((ROOT / "accelerate_configs").glob("*.yaml")):
        head = re.match(r"(#.*\n)+", path.read_text(encoding="utf-8"))
        yield row(f"`{path.stem}`", " ".join(line.lstrip("# ") for line in (head[0] if head else "").splitlines()))


def python_api(_: str = "") -> Iterator[str]:
    """A mkdocstrings block for each public name of `trainer`."""
    import trainer

    for name in sorted(trainer.__all__):
        value = getattr(trainer, name)
        if isinstance(value, type):  # a class made at run time: its documented base
            value = next((base for base in value.__mro__ if "load" in vars(base)), value)
        options = [
            f"heading: trainer.{name}",
            f"toc_label: trainer.{name}",
            "heading_level: 2",
            "show_root_heading: true",
        ]
        options += ["members: [load, parse, to_yaml]"] if name == "Recipe" else []
        yield from ("", f"::: {value.__module__}.{value.__name__}", "    options:")
        yield from (f"      {option}" for option in options)


def file_text(path: str) -> Iterator[str]:
    """A file of the repository."""
    yield from (
        f'```{path.rpartition(".")[2]} title="{path}"',
        (ROOT / path).read_text(encoding="utf-8").rstrip(),
        "```",
    )


def paragraph(text: str | None) -> str:
    return " ".join((text or "").split("\n\n")[0].split())


def row(*cells: str) -> str:
    """A row of a table. A pipe ends a cell unless it is in code or escaped."""
    escaped = (re.sub(r"(`[^`]*`)|\|", lambda m: m[1] or "\\|", " ".join(cell.split())) for cell in cells)
    return f"| {' | '.join(escaped)} |"


def sweep_tables(_: str = "") -> Iterator[str]:
    """The keys of SWEEP.yaml."""
    from launch.sweep.space import SweepConfig

    schema = SweepConfig.model_json_schema()
    yield from key_table(schema, schema)
    yield from ("", "`prune`:", "")
    yield from key_table(models(schema["properties"]["prune"], schema)[0], schema)


GENERATORS = {
    "sweep": sweep_tables,
    "recipe": recipe_tables,
    "cli": cli_tables,
    "exit-codes": exit_codes,
    "recipes": recipe_list,
    "configs": config_list,
    "python": python_api,
    "file": file_text,
}
