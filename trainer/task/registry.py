"""Find the class of a task by its kind."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trainer import user_code
from trainer.data.roles import Roles
from trainer.data.target_tokenizer import TARGET, target_of
from trainer.errors import UsageError
from trainer.task.base import Task
from trainer.task.user_loss import with_loss
from trainer.task.user_metrics import with_metrics

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from trainer.recipe import Recipe

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

    Raises:
        UsageError: as `user_code.load`, or it is no subclass of `Task`.
    """
    found = user_code.load(kind, "task.kind")
    if not (isinstance(found, type) and issubclass(found, Task)):
        raise UsageError(f"task.kind={kind!r} is not a subclass of trainer.task.Task")
    found.kind = kind
    return found


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
    """Return the class of a recipe's task, with the loss and the metrics of the user.

    Raises:
        UsageError: no task has that kind, or as `with_loss` and `with_metrics`.
    """
    found = class_of_kind(getattr(recipe.task, "kind", None)).of(recipe)
    if user_code.is_reference(loss := getattr(recipe.task, "loss", None)):
        found = with_loss(found, str(loss))
    names = recipe.evaluation.metrics
    return with_metrics(found, tuple(names)) if names else found


def roles_of(recipe: Recipe) -> Roles:
    """Return the roles of a row in the corpus of a recipe."""
    return task_class(recipe).roles(recipe.task)


def make_task(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, data: Mapping[str, Any] | None = None) -> Task:
    """Make the task of a recipe.

    Raises:
        UsageError: no task has that kind, or it cannot use separate vocabularies of source and target.
    """
    found = task_class(recipe)
    if target_of(tokenizer) is not tokenizer and not found.separate_vocabularies:
        raise UsageError(
            f"tokenizer {recipe.tokenizer_name!r} has separate vocabularies of source and target texts (folder "
            f"{TARGET}/), and task {found.kind} has one; give a copy of the folder without {TARGET}/"
        )
    return found(recipe, tokenizer, data)
