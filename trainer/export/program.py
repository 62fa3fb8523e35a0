"""Generate run.py: the cleaning steps of the recipe, the runtime, and the classes of the task, in one file.

The package runs the same code: the parts are the modules of these classes, `trainer.data.cleaning`, and a module of
`trainer.export.runtimes`.
"""

from __future__ import annotations

import ast
import inspect
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from trainer.artifact_kinds import RUNTIMES
from trainer.data import cleaning
from trainer.errors import UsageError
from trainer.export.artifact import Artifact
from trainer.export.runtimes import DEFAULT, runtime_module
from trainer.user_code import is_reference

NAME = "run.py"


def load(export: Any, folder: Path) -> Artifact:
    """Open the artifact in a folder. The package's own copy of the program runs it, never the folder's run.py.

    Args:
        export: the `TaskExport` of the run, or its class.

    Raises:
        UsageError: its settings.json is of another program, or names an unknown cleaning step.
    """
    settings = _settings(export, folder)
    artifact: Artifact = export.program_for(_runtime(settings))(folder, settings)
    return artifact


def generated(export: Any, folder: Path) -> str:
    """Return the text that run.py of the artifact must have; the file is not read. Arguments and errors as `load`."""
    settings = _settings(export, folder)
    runtime = _runtime(settings)
    return source(export.program_for(runtime), settings["cleaning"], runtime)


def _runtime(settings: dict[str, Any]) -> str:
    return str(settings.get("runtime", DEFAULT))


def _settings(export: Any, folder: Path) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    name = settings.get("program", settings["task"])
    if name != export.program_name:
        raise UsageError(
            f"{folder / 'settings.json'}: program {name!r} is not this run's, which is {export.program_name!r}; "
            f"export it again"
        )
    cleaning.cleaner(settings["cleaning"])
    return settings


def source(program: type[Artifact], steps: Sequence[str], runtime: str = DEFAULT) -> str:
    """Return the text of run.py.

    Args:
        program: the class of the task.
        steps: cleaning steps, as in `data.cleaning`.
        runtime: that opens its graphs.

    Raises:
        UsageError: an unknown step or runtime. Steps may come from a file of a run, and become part of a program.
    """
    cleaning.cleaner(steps)
    modules = dict.fromkeys(sys.modules[c.__module__] for c in reversed(program.__mro__) if c.__module__ != "builtins")
    parts = [_Part(cleaning), _Part(runtime_module(runtime)), *map(_Part, modules)]
    own = [step for step in steps if is_reference(step)]  # which run.py imports from the user's module
    table = "".join(f'    "{step}": {step.replace(":", ".")},\n' for step in dict.fromkeys(steps))
    cleaners = f"CLEANERS: dict[str, Any] = {{\n{table}}}" if table else "CLEANERS: dict[str, Any] = {}"
    end = f'load = {program.__name__}.load\n\nif __name__ == "__main__":\n    main(load(Path(__file__).parent))'
    bodies = [parts[0].only(steps), cleaners, *(part.body for part in parts[1:]), end]
    code = "\n\n\n".join(filter(None, bodies))
    text = str(sys.modules[program.__module__].__doc__).replace(DEFAULT, ", ".join(RUNTIMES[runtime].packages))
    return f'"""{text}"""\n\n{_imports(parts, code, own)}\n\n{code}\n'


class _Part:
    """The text of a module: its imports, and what follows them."""

    def __init__(self, module: ModuleType) -> None:
        self.lines = inspect.getsource(module).splitlines()
        self.nodes = ast.parse("\n".join(self.lines)).body
        self.imports = [node for node in self.nodes if isinstance(node, ast.Import | ast.ImportFrom)]

    @property
    def body(self) -> str:
        return "\n".join(self.lines[self.imports[-1].end_lineno or 0 :]).strip()

    def only(self, names: Iterable[str]) -> str:
        """Return the functions of these names, and what they use of the module, in its order."""
        defined = {name: node for node in self.nodes for name in _defined(node)}
        todo, used = list(names), set[str]()
        while todo:
            if (name := todo.pop()) in defined and name not in used:
                used.add(name)
                todo += _names(defined[name])
        nodes = [defined[name] for name in sorted(used, key=lambda name: defined[name].lineno)]
        constants = [node for node in nodes if isinstance(node, ast.Assign)]
        text = ["\n".join(map(self._text, constants)), *(self._text(n) for n in nodes if n not in constants)]
        return "\n\n\n".join(filter(None, text))

    def _text(self, node: ast.stmt) -> str:
        return "\n".join(self.lines[node.lineno - 1 : node.end_lineno])


def _defined(node: ast.stmt) -> set[str]:
    """Names that a function definition or an assignment binds."""
    if isinstance(node, ast.FunctionDef):
        return {node.name}
    return _names(node.targets[0]) if isinstance(node, ast.Assign) else set()


def _names(node: ast.AST) -> set[str]:
    return {child.id for child in ast.walk(node) if isinstance(child, ast.Name)}


def _imports(parts: Sequence[_Part], code: str, own: Iterable[str]) -> str:
    """Return the imports that `code` needs: of the standard library, then of others, none of this package."""
    used, named = _names(ast.parse(code)), dict[str, set[str]]()
    plain = {f"import {name.partition(':')[0]}" for name in own}
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
