"""Find the class of a task by its kind."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trainer.errors import UsageError
from trainer.task.base import Roles, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from trainer.recipe import Recipe

PACKAGE = "trainer.tasks"  # one folder per kind; each names its class as TASK


def task_classes() -> dict[str, type[Task]]:
    """The shipped tasks by kind."""
    package = importlib.import_module(PACKAGE)
    modules = [
        importlib.import_module(f"{PACKAGE}.{found.name}")
        for found in pkgutil.iter_modules(package.__path__)
        if found.ispkg
    ]
    return {module.TASK.kind: module.TASK for module in modules}


def task_class(recipe: Recipe) -> type[Task]:
    """The class of a recipe's task.

    Raises:
        UsageError: no task has that kind.
    """
    kind, classes = getattr(recipe.task, "kind", None), task_classes()
    if kind not in classes:
        raise UsageError(f"task.kind={kind!r} is not known; allowed: {', '.join(sorted(classes))}")
    return classes[kind].of(recipe)


def roles_of(recipe: Recipe) -> Roles:
    """What a row of this recipe's corpus holds."""
    return task_class(recipe).roles(recipe.task)


def make_task(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, data: Mapping[str, Any] | None = None) -> Task:
    """The task of a recipe.

    Raises:
        UsageError: no task has that kind.
    """
    return task_class(recipe)(recipe, tokenizer, data)
