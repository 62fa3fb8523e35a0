"""Find the class of a task by its kind."""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trainer.data.roles import Roles
from trainer.errors import UsageError
from trainer.task.base import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from trainer.recipe import Recipe

ALLOWED = "RANKZERO_TASK_MODULES"  # modules, separated by commas, that a run directory may name as its task
PACKAGE = "trainer.tasks"  # one folder per kind; each names its class as TASK


def task_classes() -> dict[str, type[Task]]:
    """Return the shipped tasks by kind."""
    package = importlib.import_module(PACKAGE)
    modules = [
        importlib.import_module(f"{PACKAGE}.{found.name}")
        for found in pkgutil.iter_modules(package.__path__)
        if found.ispkg
    ]
    return {module.TASK.kind: module.TASK for module in modules}


def load_task(kind: str) -> type[Task]:
    """Import the class of a task outside this package, given as `package.module:Class`.

    A recipe that a user starts is trusted. A run directory may come from someone else, and to read it must not run code
    from it: its module has to be imported already, or named in the environment variable RANKZERO_TASK_MODULES.

    Raises:
        UsageError: the module may not be imported or cannot be, or it has no such subclass of `Task`.
    """
    module_name, _, name = kind.partition(":")
    if module_name not in sys.modules and module_name not in _allowed():
        raise UsageError(
            f"task.kind={kind!r} is code outside rankzero, and a run directory may come from someone else. "
            f"If you trust module {module_name}, set {ALLOWED}={module_name}"
        )
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UsageError(
            f"task.kind={kind!r}: module {module_name} cannot be imported ({error}). Install its package, or add its "
            "folder to PYTHONPATH"
        ) from None
    found = getattr(module, name, None)
    if not (isinstance(found, type) and issubclass(found, Task)):
        raise UsageError(f"task.kind={kind!r}: {name!r} in {module_name} is not a subclass of trainer.task.Task")
    found.kind = kind
    return found


def trust_task(kind: object) -> None:
    """Allow this process and those that it starts to import the module of a task from a user's recipe."""
    if isinstance(kind, str) and ":" in kind and (module := kind.partition(":")[0]) not in _allowed():
        os.environ[ALLOWED] = ",".join([*_allowed(), module])


def _allowed() -> list[str]:
    return [name for name in os.environ.get(ALLOWED, "").split(",") if name]


def class_of_kind(kind: object) -> type[Task]:
    """Return the class of a value of `task.kind`.

    Raises:
        UsageError: no task has that kind.
    """
    if isinstance(kind, str) and ":" in kind:
        return load_task(kind)
    classes = task_classes()
    if not isinstance(kind, str) or kind not in classes:
        raise UsageError(f"task.kind={kind!r} is not known; allowed: {', '.join(sorted(classes))}")
    return classes[kind]


def task_class(recipe: Recipe) -> type[Task]:
    """Return the class of a recipe's task.

    Raises:
        UsageError: no task has that kind.
    """
    return class_of_kind(getattr(recipe.task, "kind", None)).of(recipe)


def roles_of(recipe: Recipe) -> Roles:
    """Return the roles of a row in the corpus of a recipe."""
    return task_class(recipe).roles(recipe.task)


def make_task(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, data: Mapping[str, Any] | None = None) -> Task:
    """Make the task of a recipe.

    Raises:
        UsageError: no task has that kind.
    """
    return task_class(recipe)(recipe, tokenizer, data)
