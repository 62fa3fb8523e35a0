"""Write the values of a recipe as YAML with comments, in the style of the shipped recipes."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

WIDTH = 120
COLUMN = 44  # where comments begin, if the value is short
Values = Mapping[str, Any]


def render(values: Values, notes: Mapping[str, str], head: Sequence[str]) -> str:
    """Return the text of a recipe.

    Args:
        values: sections and keys in their order.
        notes: comments by dotted key.
        head: lines of the comment at the top.
    """
    lines = [line for one in head for line in (_wrapped(one, "# ") or ["#"])]
    for key, value in values.items():
        if isinstance(value, Mapping):
            lines += [f"{key}:", *_section(value, notes, f"{key}.", "  ")]
        else:
            lines.append(f"{key}: {scalar(value)}")
    return "\n".join(lines) + "\n"


def _section(values: Values, notes: Mapping[str, str], prefix: str, indent: str) -> Iterator[str]:
    for key, value in values.items():
        note = notes.get(f"{prefix}{key}", "")
        flow = f"{indent}{scalar(key)}: {scalar(value)}"
        if not isinstance(value, list | Mapping) or len(flow) <= WIDTH:
            yield from _commented(flow, note).split("\n")
            continue
        yield from _commented(f"{indent}{scalar(key)}:", note).split("\n")
        if isinstance(value, Mapping):
            yield from (f"{indent}  {scalar(name)}: {scalar(inner)}" for name, inner in value.items())
        else:
            yield from (f"{indent}  - {scalar(inner)}" for inner in value)


def _commented(line: str, note: str) -> str:
    """Return a line with its comment, or the comment above it if both are too long."""
    if not note:
        return line
    joined = f"{line:{COLUMN}s} # {note}"
    indent = " " * (len(line) - len(line.lstrip()))
    return joined if len(joined) <= WIDTH else "\n".join([*_wrapped(note, f"{indent}# "), line])


def _wrapped(text: str, begin: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=begin, subsequent_indent=begin, break_on_hyphens=False)


def scalar(value: object) -> str:
    """Return a value as YAML in one line: 1e-4, [a, b], {text: message}."""
    if value is None or isinstance(value, bool | int):
        return json.dumps(value)
    if isinstance(value, float):
        return f"{value:g}" if value >= 1e-3 else re.sub(r"\.?0*e-0?", "e-", f"{value:.5e}")
    if isinstance(value, list):
        return f"[{', '.join(map(scalar, value))}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{scalar(key)}: {scalar(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, str) and not value.isprintable():
        return json.dumps(value)
    text = yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, width=10**9).strip()
    return text.removeprefix("[").removesuffix("]")
