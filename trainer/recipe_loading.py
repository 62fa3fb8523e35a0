"""Find and load a recipe, and check that its sections fit each other."""

from __future__ import annotations

import difflib
import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import create_model

from trainer import user_code
from trainer.data.cleaning import cleaner
from trainer.data.roles import Roles
from trainer.errors import UsageError
from trainer.models.configs import MODEL_CONFIGS
from trainer.models.families.positions import CONCATENATED, not_concatenated
from trainer.recipe import Recipe as BaseRecipe
from trainer.recipe import apply_overrides, read_yaml, recipe_class
from trainer.recipe.bleu_tokenizers import problem_of
from trainer.recipe.trackers import has_ledger
from trainer.recipe_files import SHIPPED as SHIPPED
from trainer.recipe_files import find_recipe as find_recipe
from trainer.task.base import Task
from trainer.task.registry import load_task, roles_of, task_class, task_classes
from trainer.task.user_loss import loss_problems

log = logging.getLogger("rankzero")

_Shipped = recipe_class([task.config for task in task_classes().values()], MODEL_CONFIGS)


class Recipe(_Shipped):  # type: ignore[misc,valid-type]
    """A recipe of a shipped task, or of a task outside this package: `task.kind: package.module:Class`."""

    @classmethod
    def _narrowed(cls, values: Mapping[str, Any]) -> type[Any]:
        """Return this class, with the section of the task that the values name if that is not a shipped one."""
        task = values.get("task")
        kind = task.get("kind") if isinstance(task, Mapping) else None
        if not isinstance(kind, str) or ":" not in kind:
            return cls
        literal: Any = Literal[kind]
        fields: Any = {"kind": (literal, kind)}
        return recipe_class([create_model("TaskSection", __base__=load_task(kind).config, **fields)], MODEL_CONFIGS)


def load_recipe(recipe: str | Path | BaseRecipe, overrides: Sequence[str] = ()) -> BaseRecipe:
    """A recipe by name, path or as an object, with overrides."""
    if isinstance(recipe, BaseRecipe):
        resolved = Recipe.parse(recipe.model_dump(mode="json"), overrides) if overrides else recipe
    else:
        path = find_recipe(str(recipe))
        values = apply_overrides(read_yaml(path), overrides)
        user_code.trust(values)
        if has_ledger(values):
            _warn_once(f"{path}: track: [ledger] is deprecated; write loop.ledger: true")
        resolved = Recipe.parse(values, where=str(path))
    check_recipe(resolved)
    return resolved


@functools.cache
def _warn_once(text: str) -> None:
    log.warning("%s", text)


def check_recipe(recipe: BaseRecipe) -> None:
    """What the sections cannot see alone: names that only the task or the cleaning knows, what needs `validation`."""
    task, stopping, problems = task_class(recipe), recipe.loop.early_stopping, []
    roles = roles_of(recipe)
    try:
        cleaner(recipe.data.cleaning)
        for key, name in user_code.references(recipe.model_dump(mode="json")):
            user_code.load(name, key)
    except UsageError as error:
        problems.append(str(error))
    for role in recipe.data.columns.keys() - roles.keys():
        problems.append(f"data.columns.{role}: no role of task {task.kind}; {_role_hint(role, recipe, roles)}")
    problems += _mix_problems(recipe, roles)
    problems += _model_problems(recipe, task) or task.problems(recipe)
    problems += loss_problems(recipe) + _evaluation_problems(recipe, task)
    problems += _adapter_problems(recipe) + _padding_problems(recipe, task)
    problems += _r_drop_problems(recipe, task)
    if stopping.metric not in task.metrics:
        known = ", ".join(sorted(task.metrics))
        problems.append(f"loop.early_stopping.metric: {stopping.metric!r} is unknown; known: {known}")
    if recipe.data.validation is None:
        if stopping.patience is not None:
            problems.append("loop.early_stopping.patience: needs data.validation, which is null")
        if recipe.optim.schedule == "plateau":
            problems.append("optim.schedule: plateau needs data.validation, which is null")
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise UsageError(f"recipe {recipe.name}: {count}\n  " + "\n  ".join(sorted(problems)), sorted(problems))


def _evaluation_problems(recipe: BaseRecipe, task: type[Task]) -> list[str]:
    """Return what the evaluation needs and does not have: before the training, not after it."""
    problem = problem_of(recipe.evaluation.bleu_tokenizer)
    found = [] if problem is None else [problem]
    if recipe.evaluation.document_column is not None and not task.scores_documents:
        found.append(f"evaluation.document_column: task {task.kind} does not score texts; leave it out")
    return found


def _mix_problems(recipe: BaseRecipe, roles: Roles) -> list[str]:
    """Return what is wrong with the columns of the corpora of `data.mix`."""
    found = []
    for entry in recipe.data.mix:
        for role in entry.columns:
            key = f"data.mix.{entry.name}.columns.{role}"
            if role not in roles:
                hint = "a role that only some recipes have, such as weight, is set in data.columns, too"
                found.append(f"{key}: no role of the task; its roles: {', '.join(roles)}; {hint}")
            elif roles[role].optional and role not in recipe.data.columns:
                found.append(f"{key}: set data.columns.{role}, too: all corpora have it, or none")
    return found


def _role_hint(role: str, recipe: BaseRecipe, roles: Roles) -> str:
    """Return what to write in place of an unknown role: a typo, or role and column exchanged."""
    column, near = recipe.data.columns[role], difflib.get_close_matches(role, roles, n=1)
    if column in roles and not near:
        return f"did you mean {column}: {role}? The role comes first, then the column of the files"
    return (f"did you mean {near[0]!r}? " if near else "") + f"its roles: {', '.join(roles)}"


def _model_problems(recipe: BaseRecipe, task: type[Task]) -> list[str]:
    """Whether task, model and tokenizer go together."""
    model: Any = recipe.model
    if model.kind not in task.models:
        return [f"model.kind: {model.kind} cannot do task {task.kind}; allowed: {', '.join(task.models)}"]
    begins_with = getattr(model, "init_from", None) or getattr(model, "weights", None)
    if recipe.tokenizer_name is None and recipe.tokenizer_training is None:
        return ["tokenizer: give exactly one of `train` and `pretrained`"]
    if (training := recipe.tokenizer_training) and not (training.shared or task.separate_vocabularies):
        return [
            f"tokenizer.train.shared: task {task.kind} has one vocabulary; leave it out, or set it to true (got False)"
        ]
    if begins_with is not None and recipe.tokenizer.train is not None:
        why = f"tokenizer.train: a new tokenizer's ids mean nothing to the weights of {begins_with!r}"
        return [f"{why}; leave `tokenizer` out, so that their own is used, or begin with random weights"]
    return []


def _padding_problems(recipe: BaseRecipe, task: type[Task]) -> list[str]:
    """Return what does not support `data.padding: none`. The family of pretrained weights is checked with its files."""
    if recipe.data.padding != "none":
        return []
    unsupported = {
        f"task {task.kind} ({task.__name__})": not task.padding_free,
        "loop.compile": bool(recipe.loop.compile),
        "optim.adversarial": recipe.optim.adversarial.kind != "none",
    }
    found = [f"data.padding: none: {what} does not support it; leave it out" for what, so in unsupported.items() if so]
    model: Any = recipe.model
    if model.kind == "pretrained" and model.random and model.architecture not in CONCATENATED:
        found.append(f"data.padding: {not_concatenated(model.architecture)}")
    return found


def _r_drop_problems(recipe: BaseRecipe, task: type[Task]) -> list[str]:
    """Return what does not support `optim.r_drop`."""
    if not recipe.optim.r_drop:
        return []
    settings = cast(Any, recipe.task)
    unsupported = {
        f"task {task.kind} ({task.__name__})": not task.r_drop,
        "a loss of your own (task.loss)": user_code.is_reference(getattr(settings, "loss", None)),
        "task.class_weights": getattr(settings, "class_weights", None) is not None,
        "task.focal_gamma": bool(getattr(settings, "focal_gamma", 0)),
        "data.columns.weight": "weight" in recipe.data.columns,
        "data.padding: none": recipe.data.padding == "none",
        "optim.adversarial": recipe.optim.adversarial.kind != "none",
    }
    return [
        f"optim.r_drop: {what} does not support it; leave one of them out" for what, so in unsupported.items() if so
    ]


def _adapter_problems(recipe: BaseRecipe) -> list[str]:
    """Return the settings of the optimizer that have no meaning for an adapter. All others apply to its weights."""
    if getattr(recipe.model, "adapter", None) is None:
        return []
    reasons = {
        "freeze_trunk": "trains the head only, and the adapter is in the trunk",
        "freeze_embeddings": "has no effect, since an adapter leaves all pretrained weights frozen",
        "relative_rates": "scales rates by initial values, and those of an adapter say nothing (one half is 0)",
    }
    return [
        f"optim.{key}: {reason}; set optim.{key}=false, or leave model.adapter out"
        for key, reason in reasons.items()
        if getattr(recipe.optim, key)
    ]
