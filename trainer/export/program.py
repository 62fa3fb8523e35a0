"""run.py of an artifact: the common part, what its kind needs, and the cleaning steps of its recipe, in one file.

The package runs the same code: the parts are its modules in `programs/`, the steps those of `trainer.data.cleaning`.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType

from trainer.data import cleaning
from trainer.errors import UsageError
from trainer.export.programs import classifier, common, generator, translator
from trainer.export.programs.common import Artifact

NAME = "run.py"
PROGRAMS: dict[str, type[Artifact]] = {  # by what a task calls its artifact
    "classification": classifier.Classifier,
    "translation": translator.Translator,
    "text_to_text": translator.Translator,
    "generation": generator.Generator,
}


def load(folder: Path | str) -> Artifact:
    """The artifact in a folder, run by the package's own copy of its program."""
    settings = json.loads((Path(folder) / "settings.json").read_text(encoding="utf-8"))
    cleaning.cleaner(settings["cleaning"])
    return program_of(settings.get("program", settings["task"]))(Path(folder), settings)


def program_of(kind: str) -> type[Artifact]:
    """The program of a kind of artifact.

    Raises:
        UsageError: there is none.
    """
    if kind not in PROGRAMS:
        raise UsageError(f"program {kind!r} is unknown; known: {', '.join(PROGRAMS)}")
    return PROGRAMS[kind]


def generated(folder: Path) -> str:
    """The text of run.py for the artifact in a folder, from this package; the file in the folder is not read.

    Raises:
        UsageError: its settings.json names an unknown kind or cleaning step.
    """
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    return source(settings.get("program", settings["task"]), settings["cleaning"])


def digest(kind: str, steps: Sequence[str]) -> str:
    """Changes with anything that the program does."""
    return hashlib.sha256(source(kind, steps).encode()).hexdigest()


def source(kind: str, steps: Sequence[str]) -> str:
    """The text of run.py.

    Args:
        kind: one of PROGRAMS.
        steps: cleaning steps, as in `data.cleaning`.

    Raises:
        UsageError: an unknown kind or step. Both may come from a file of a run, and become part of a program.
    """
    cleaning.cleaner(steps)
    program = program_of(kind)
    own = sys.modules[program.__module__]
    parts = [_Part(cleaning), _Part(common), _Part(own)]
    table = "".join(f'    "{step}": {step},\n' for step in dict.fromkeys(steps))
    cleaners = f"CLEANERS: dict[str, Any] = {{\n{table}}}" if table else "CLEANERS: dict[str, Any] = {}"
    end = f'load = {program.__name__}.load\n\nif __name__ == "__main__":\n    main(load(Path(__file__).parent))'
    bodies = [parts[0].only(steps), cleaners, *(part.body for part in parts[1:]), end]
    code = "\n\n\n".join(filter(None, bodies))
    return f'"""{own.__doc__}"""\n\n{_imports(parts, code)}\n\n{code}\n'


def settings_problems(folder: Path) -> list[str]:
    """Why no program can be generated for the artifact in a folder; empty where one can."""
    try:
        generated(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return [f"{folder / 'settings.json'} cannot be used: {error}"]
    return []


class _Part:
    """A module as text: its imports, and what stands below them."""

    def __init__(self, module: ModuleType) -> None:
        self.lines = inspect.getsource(module).splitlines()
        self.nodes = ast.parse("\n".join(self.lines)).body
        self.imports = [node for node in self.nodes if isinstance(node, ast.Import | ast.ImportFrom)]

    @property
    def body(self) -> str:
        return "\n".join(self.lines[self.imports[-1].end_lineno or 0 :]).strip()

    def only(self, names: Iterable[str]) -> str:
        """The functions of these names, and the functions and constants that they use, in the order of the module."""
        defined = {name: node for node in self.nodes for name in _defined(node)}
        wanted, found = list(names), set[str]()
        while wanted:
            if (name := wanted.pop()) in defined and name not in found:
                found.add(name)
                wanted += _names(defined[name])
        nodes = [defined[name] for name in sorted(found, key=lambda name: defined[name].lineno)]
        constants = [node for node in nodes if isinstance(node, ast.Assign)]
        text = ["\n".join(map(self._text, constants)), *(self._text(n) for n in nodes if n not in constants)]
        return "\n\n\n".join(filter(None, text))

    def _text(self, node: ast.stmt) -> str:
        return "\n".join(self.lines[node.lineno - 1 : node.end_lineno])


def _defined(node: ast.stmt) -> set[str]:
    """The name of a function, or those that an assignment binds."""
    if isinstance(node, ast.FunctionDef):
        return {node.name}
    return _names(node.targets[0]) if isinstance(node, ast.Assign) else set()


def _names(node: ast.AST) -> set[str]:
    return {found.id for found in ast.walk(node) if isinstance(found, ast.Name)}


def _imports(parts: Sequence[_Part], code: str) -> str:
    """What `code` needs of the parts' imports: of the standard library, then of others; nothing of this package."""
    used, plain, named = _names(ast.parse(code)), set(), dict[str, set[str]]()
    for node in (node for part in parts for node in part.imports):
        for alias in node.names:
            if (alias.asname or alias.name) not in used:
                continue
            if isinstance(node, ast.Import):
                plain.add(f"import {alias.name}" + (f" as {alias.asname}" if alias.asname else ""))
            elif str(node.module).partition(".")[0] != "trainer":
                named.setdefault(str(node.module), set()).add(alias.name)
    lines = [*sorted(plain), *(f"from {module} import {', '.join(sorted(n))}" for module, n in sorted(named.items()))]
    groups: list[list[str]] = [[], []]
    for line in lines:
        groups[line.split()[1].partition(".")[0] not in sys.stdlib_module_names].append(line)
    return "\n\n".join(["from __future__ import annotations", *("\n".join(group) for group in groups)])
