"""YAML as recipes use it: read with limits and few surprises, and written so that it reads back as the same values."""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from trainer.errors import UsageError

MOST_BYTES, MOST_VALUES = 10_000_000, 1_000_000  # of a recipe file


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
            tag: str = self.resolve(yaml.ScalarNode, node.value, (True, False))  # type: ignore[no-untyped-call]
            found = tag.removeprefix(_TAG)
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


def written_yaml(values: Any) -> str:
    """Return values as YAML, in their order."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def read_yaml(path: Path) -> dict[str, Any]:
    """The values of a recipe file, not checked.

    Raises:
        UsageError: it cannot be read, is not YAML, no mapping, or too large for a recipe.
    """
    try:
        with path.open("rb") as file:  # a device or a pipe has no size
            content = file.read(MOST_BYTES + 1)
        text = content.decode("utf-8") if len(content) <= MOST_BYTES else None
    except (OSError, ValueError) as error:  # also a name with NUL
        reason = getattr(error, "strerror", None) or error
        hint = "give the path of a YAML file, or a name that `rankzero recipes` lists"
        raise UsageError(f"recipe {path} cannot be read: {reason}; {hint}") from None
    if text is None:
        raise UsageError(f"recipe {path} is larger than {MOST_BYTES:,} bytes: it is no recipe")
    values = parse_yaml(text, str(path))
    if not isinstance(values, dict):
        raise UsageError(f"{path}: a recipe is a mapping of sections, not {type(values).__name__}")
    return values


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
