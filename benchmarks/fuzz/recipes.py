"""Recipes, overrides and names."""

from __future__ import annotations

import copy
import glob
import json
import os
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from benchmarks.fuzz import valid, words
from benchmarks.fuzz.guard import CANARY, Broken
from launch.slurm.follow import _text, state_of
from launch.slurm.queue import Snapshot
from launch.tools.lint.checks import lint
from trainer.data.sources import open_split, open_splits
from trainer.errors import UsageError
from trainer.push.files import check_repo
from trainer.recipe_loading import Recipe, load_recipe
from trainer.run_options import Options, run_path
from trainer.rundir import RunDir
from trainer.task.registry import roles_of

ROWS = "".join(json.dumps({"text": f"a film {n}", "label": n % 2, "de": "ein", "en": "a"}) + "\n" for n in range(8))
BASES: tuple[dict[str, Any], ...] = (
    {
        "version": 1, "name": "fuzz", "seed": 1, "task": {"kind": "classification", "labels": ["0", "1"]},
        "data": {"root": ".", "train": "rows.jsonl", "validation": 0.2, "test": None, "lanes": 2,
        "tokens_per_batch": 64,
                 "max_length": 16, "columns": {}, "cleaning": ["fold_whitespace"], "mix": []},
        "tokenizer": {"train": {"kind": "wordpiece", "vocab_size": 90}},
        "model": {"kind": "encoder", "d_model": 16, "layers": 1, "heads": 2, "feed_forward": 16},
        "optim": {"name": "adamw", "lr": 0.001, "schedule": "constant", "warmup_steps": 0, "betas": [0.9, 0.999]},
        "loop": {"max_steps": 2, "eval_every": 1, "save_every": 1, "early_stopping": {"patience": 2}, "callbacks": []},
        "evaluation": {"bootstrap": 5, "splits": ["validation"], "metrics": []}, "export": {"onnx": False,
        "int8": False},
        "track": [], "launch": {"setup": []},
    },
    {
        "name": "pairs", "task": {"kind": "translation"},
        "data": {"root": "embedded://translation", "train": "train?rows=40&shards=2",
        "validation": "validation?rows=4", "lanes": 2,
                 "columns": {"src": "de", "trg": "en"}, "tokens_per_batch": 64, "max_length": 16},
        "tokenizer": {"train": {"kind": "bpe", "vocab_size": 200}},
        "model": {"kind": "transformer", "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "heads": 2,
        "feed_forward": 16},
        "optim": {"lr": 0.001, "schedule": "inverse_sqrt"}, "loop": {"max_steps": 2}, "evaluation": {"beam_size": 2},
    },
    {
        "name": "own", "task": {"kind": "language_modeling"}, "data": {"root": ".", "validation": None, "lanes": 1,
        "mix": [
            {"name": "a", "root": ".", "train": "rows.jsonl", "weight": 1}]},
        "model": {"kind": "pretrained", "name": "./nowhere"}, "loop": {"epochs": 1},
    },
)  # fmt: skip
# YAML that is put in place of a value, not always valid.
SNIPPETS = (
    f"!!python/object/apply:os.system ['touch {CANARY}']", f"!!python/name:{CANARY}.x", f"!!python/module:{CANARY}",
    "!!python/tuple [1]",
    f"!!python/object/new:{CANARY}.T {{}}", "!x y", "!<tag:yaml.org,2002:int> x", "!!int x", "!!int ''", "!!int 1:60",
    "!!int 0b2", "!!float x",
    "!!float ''", "!!bool x", "!!null x", "!!timestamp x", "!!timestamp 2001-13-45", "!!binary é", "!!binary '='",
    "!!set {a, b}",
    "!!omap [a: 1]", "!!omap [1]", "!!pairs [a: 1, a: 2]", "!!str [a]", "!!map [a]", "!!seq {a: 1}", "!!merge x",
    "!!value x", "&a [*a]",
    "&a {b: *a}", "*nothing", "{<<: {lr: 1}}", "{<<: [1]}", "{<<: 1}", "{[a]: b}", "{? {a: b} : c}", "{a: 1, a: 2}",
    "{1: a, '1': b}",
    "{null: a}", "{true: a, 1: b}", "{1.5: a}", "{.nan: a, .nan: b}", "0x" + "f" * 5000, "0b" + "1" * 20000,
    "9" * 5000, "-" + "9" * 4300,
    "1e999", "-1e999", ".inf", "-.inf", ".nan", "1e-999", "1" + "0" * 400 + ".0", "2001-01-01", "12:30:00", "0o17",
    "1_0", "~", "=", "<<",
    "''", "[]", "{}", "[[[]]]", "[{}]", "[null]", "{kind: [1]}", "{kind: {}}", "{kind: null}", "[" * 3000 + "]" * 3000,
    "{a: " * 1000 + "}" * 1000,
    "'" + "x" * 20000 + "'", '"\\ud800"', '"\\0"', '"\\x41\\u2028"', "\x85", "\t", "@", "`", "%", "|", ">", "- - -",
    "? a", ": b", "---", "...",
    "%YAML 9.9", "#", "-1", "0", "1", "2", "1e18", "9223372036854775808", "18446744073709551616", "1e308", "0.1",
    "true", "null", "train",
    "[a, b]", "['', '']", "{train: x}", "train?rows=4&shards=999999999999", "train?rows=99999999999999999999999",
    f"train?rows={'9' * 5000}",
    "train?rows=²", "train?rows=0", "train?rows=1&shards=-1", "train?rows=1&x=2",
    "train?rows=1&rows=2&seed=999999999999999999999999",
    "embedded://", "embedded://x", "embedded://reviews?x", "hf://datasets/x", "s3://b/k", "memory://", "file:///etc",
    "/etc", "zip://a::b", "~x",
    "'[a'", "'**'", "'**/*'", "'../**'", "'{a,b}'", "'*[!]'", "'\\'", "'(?P<x'", "(a+)+$", "torch.optim.SGD",
    "torch.optim.nothing", "a.b:c",
    "nothing:x", "trainer.errors:UsageError", "s", "0s", "99999999999999999h", "1e5min", "auto", "all", "none",
    "pkg://x/y", "pkg://../x",
)  # fmt: skip
WHOLE = (
    "", " ", "#", "---", "--- a", "--- {}\n--- {}", "a", "[]", "1", "null", "!!python/object:x.Y {}", "a: &a [*a]",
    "&a {<<: *a}", "\t", "{", "}", "[",
    "[" * 100000, "{a: " * 20000, "- " * 5000, "a:\n" * 3000, "? " * 3000, "!!map " * 100, "&a " * 100, "\ufeff{}",
    "%TAG ! x\n---\n!y z",
    "\n".join(["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30))]),
    "\n".join(["a0: &a0 {k: x}",
    *(f"a{n}: &a{n} {{{', '.join(f'k{i}: *a{n - 1}' for i in range(9))}}}" for n in range(1, 30))]),
    "\n".join(["a0: &a0 {k0: x}", *(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, 8))]),
    "\n".join(f"k{n}: &k{n} {{x: {f'*k{n - 1}' if n else 1}}}" for n in range(900)),
)  # fmt: skip
_MARK = "@@{}@@"


def _paths(values: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [prefix] if prefix else []
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    return found + [path for key, inner in items for path in _paths(inner, (*prefix, key))]


def _all_keys() -> list[str]:
    """Return the dotted keys of all sections of all tasks and models, from the schema."""
    schema = Recipe.model_json_schema()
    definitions = schema.get("$defs", {})

    def walk(node: Any, prefix: str, depth: int) -> list[str]:
        found: list[str] = []
        if isinstance(node, dict) and depth < 6:
            if ref := node.get("$ref"):
                found += walk(definitions[ref.rpartition("/")[2]], prefix, depth + 1)
            for part in (*node.get("anyOf", ()), *node.get("oneOf", ()), *node.get("allOf", ())):
                found += walk(part, prefix, depth + 1)
            for name, inner in node.get("properties", {}).items():
                found += [f"{prefix}{name}", *walk(inner, f"{prefix}{name}.", depth + 1)]
        return found

    return sorted(dict.fromkeys(walk(schema, "", 0)))


KEYS = _all_keys()
MILD = st.sampled_from([
    "0", "1", "2", "3", "0.1", "0.5", "true", "false", "null", "[]", "{}", "a", "[a]", "[0, 1]", "auto", "{a: 1}",
    "1e-3", "100",
])  # fmt: skip
SNIPPET = st.one_of(MILD, MILD, st.sampled_from(SNIPPETS), words.text().map(json.dumps), words.json_text())


@st.composite
def recipes(draw: st.DrawFn) -> str:
    """Draw the text of a recipe: a valid one in which some values, keys or lines are others."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.one_of(st.sampled_from(WHOLE), st.text(words.SURROGATES, max_size=40)))
    base = draw(st.sampled_from(BASES))
    values = copy.deepcopy(base)
    put: list[str] = []
    for _ in range(draw(st.integers(1, 3))):
        if draw(st.integers(0, 4)) < 3:
            name, _, value = draw(valid.overrides(base)).partition("=")
            _set(values, name.split("."), json.loads(value), "set")
            continue
        if draw(st.booleans()):
            key = draw(st.sampled_from(KEYS)).split(".")
        else:
            key = list(draw(st.sampled_from(_paths(values))))
        _set(values, key, _MARK.format(len(put)), draw(st.sampled_from(["set", "set", "set", "delete", "rename"])))
        put.append(draw(SNIPPET))
    text = json.dumps(values)
    for number, snippet in enumerate(put):
        text = text.replace(json.dumps(_MARK.format(number)), snippet)
    return text


def _set(values: Any, key: Sequence[Any], value: Any, action: str) -> None:
    for part in key[:-1]:
        inner = (
            values.get(part) if isinstance(values, dict) else values[int(part)] if isinstance(values, list) else None
        )
        if not isinstance(inner, dict | list):
            if not isinstance(values, dict):
                return
            inner = values[part] = {}
        values = inner
    last = key[-1]
    if isinstance(values, list):
        values[: len(values)] = [value]
    elif action == "set":
        values[last] = value
    elif action == "delete":
        values.pop(last, None)
    else:
        values[f"{last}x"] = values.pop(last, value)


def check_recipe_text(text: str, folder: Path) -> str:
    """Load and lint a recipe file. Both have to agree, and what is loaded has to stay as it is when it is written.

    Raises:
        Broken: they do not.
        UsageError: the recipe is refused.
    """
    path = folder / "recipe.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    (folder / "rows.jsonl").write_text(ROWS, encoding="utf-8")
    errors = [finding for finding in lint(str(path)) if finding.level == "error"]
    if any(not finding.message for finding in errors):
        raise Broken("lint has an error without a message")
    try:
        recipe = load_recipe(path)
    except UsageError:
        if not errors:
            raise Broken("the recipe is refused, and lint has no error") from None
        raise
    check_written(recipe)
    _read_rows(recipe)
    return "read"


def _read_rows(recipe: Any) -> None:
    """Read the first rows of each split of a recipe that was accepted."""
    for source in open_splits(recipe.data, roles_of(recipe)).values():
        list(islice(source, 20))


def check_written(recipe: Any) -> None:
    written = recipe.to_yaml()
    again = Recipe.load(_write(written))
    if again != recipe and repr(again) != repr(recipe):  # NaN is not equal to itself
        raise Broken(f"another recipe after it was written: {written[:200]!r}")


def _write(text: str) -> Path:
    path = Path("written.yaml")
    path.write_text(text, encoding="utf-8")
    return path


def overrides() -> st.SearchStrategy[Any]:
    """Draw words of a command line after a recipe: half of the cases have words only that the schema allows."""
    number = st.integers(0, len(BASES) - 1)
    right = number.flatmap(lambda n: st.tuples(st.just(n), st.lists(valid.overrides(BASES[n]), min_size=1, max_size=3)))
    key = st.one_of(
        st.sampled_from(KEYS), st.sampled_from(KEYS).map(lambda found: f"{found}.x"), words.text(), st.just("task.kind")
    )
    word = st.one_of(st.builds(lambda name, mark, text: f"{name}{mark}{text}", key, st.sampled_from(["=", "=", "=", "",
    "==", "+="]), SNIPPET),
                     words.text())  # fmt: skip
    return st.one_of(right, st.tuples(number, st.lists(word, min_size=1, max_size=4)))


def check_overrides(case: Sequence[Any], folder: Path) -> str:
    """Apply overrides to a recipe, as `rankzero train RECIPE WORD…` does."""
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(BASES[case[0]]), encoding="utf-8")
    (folder / "rows.jsonl").write_text(ROWS, encoding="utf-8")
    recipe = load_recipe(path, list(case[1]))
    run_path(recipe, Options(None, False, (), False, False, False))
    check_written(recipe)
    _read_rows(recipe)
    return "read"


PLACES = (
    "run",
    "recipe",
    "name",
    "labels",
    "column",
    "file",
    "folder",
    "repo",
    "languages",
    "role",
    "pattern",
    "metric",
)


def names() -> st.SearchStrategy[Any]:
    """Draw a place where users give names, and a name."""
    return st.tuples(st.sampled_from(PLACES), words.text())


def check_name(case: Sequence[Any], folder: Path) -> str:
    """Use a name where users give names."""
    place, name = case
    values = copy.deepcopy(BASES[0])
    values["data"]["root"] = str(folder)
    (folder / "rows.jsonl").write_text(ROWS, encoding="utf-8")
    if place in ("run", "recipe", "repo"):
        return _check_path(place, name)
    if place == "labels":
        values["task"]["labels"] = [name, "other"]
    elif place == "languages":
        values = copy.deepcopy(BASES[1])
        values["evaluation"]["bleu_tokenizer"] = name
    elif place in ("name", "role", "pattern", "metric"):
        key = {
            "name": ["name"],
            "role": ["data", "columns", name],
            "pattern": ["data", "train"],
            "metric": ["loop", "early_stopping", "metric"],
        }
        _set(values, key[place], name, "set")
    recipe = Recipe.parse(values)
    if place in ("column", "file", "folder"):
        _check_stored(place, name, recipe, folder)
    else:
        check_written(recipe)
        open_split(recipe.data, "train", roles_of(recipe))
    return "read"


def _check_path(place: str, name: str) -> str:
    if place == "repo":
        check_repo(name)
    elif place == "recipe":
        load_recipe(name)
    else:
        run = RunDir(name)
        _text(state_of(run.path, Snapshot()))
        run.check()
    return "read"


def _check_stored(place: str, name: str, recipe: Any, folder: Path) -> None:
    """Read rows from a column, file or folder of a name that the file system and the formats allow."""
    try:
        os.fsencode(name)
        encoded = name.encode()
    except UnicodeEncodeError:
        return
    if place == "column":
        (folder / "rows.jsonl").write_text(json.dumps({name: "a film", "label": 1}) + "\n", encoding="utf-8")
        data = recipe.data.model_copy(update={"columns": {"text": name}})
    else:
        if not encoded or b"\0" in encoded or b"/" in encoded or len(encoded) > 200 or name in (".", ".."):
            return
        inside = folder / "data" / (f"{name}.jsonl" if place == "file" else f"{name}/rows.jsonl")
        inside.parent.mkdir(parents=True)
        inside.write_text(ROWS, encoding="utf-8")
        root, pattern = (inside.parent, glob.escape(inside.name)) if place == "file" else (inside.parent, "rows.jsonl")
        data = recipe.data.model_copy(update={"root": str(root), "train": pattern})
    source = open_split(data, "train", roles_of(recipe))
    if source is None or sum(row.error is None for row in source) != (1 if place == "column" else 8):
        raise Broken(f"not all rows of {place} {name!r} are read")
