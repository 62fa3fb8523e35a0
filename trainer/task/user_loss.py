"""A loss of a user's own: a function of logits and labels, named by `task.loss`.

    def squared_hinge(logits, labels):
        counted = labels != -100
        right = logits[counted].gather(-1, labels[counted][..., None])
        return (1 - right).clamp(min=0).square().sum()

It returns the sum over all labels that are not -100, a scalar. The step divides it once, by their number on all ranks.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from trainer import user_code
from trainer.errors import UsageError
from trainer.models import loss_groups
from trainer.recipe import Recipe
from trainer.recipe.sections import is_changed
from trainer.task.base import Batch, Task

if TYPE_CHECKING:
    from torch import Tensor, nn

# Keys of `task` that change the usual loss.
OF_THE_USUAL_LOSS = ("class_weights", "focal_gamma", "label_smoothing", "huber_delta")


@cache
def with_loss(task: type[Task], name: str) -> type[Task]:
    """Return a subclass of a task whose training minimizes the loss of this name. Evaluations report the usual one.

    Raises:
        UsageError: the function cannot be imported, or the task computes its loss together with a memory.
    """
    function = user_code.load(name, "task.loss")
    if not callable(function):
        raise UsageError(f"task.loss={name!r} is no function of logits and labels")
    if task.loss_and_memory is not Task.loss_and_memory:
        raise UsageError(
            f"task.loss={name!r}: {task.__name__} computes its loss together with its memory; leave it out"
        )

    def loss(self: Task, model: nn.Module, batch: Batch) -> Tensor:
        logits, labels = self.logits(model, batch).float(), batch["labels"]
        value: Any = function(logits, labels)
        if getattr(value, "ndim", None) != 0:
            raise UsageError(
                f"task.loss={name!r} returned {type(value).__name__}, not a tensor with one number: the sum"
            )
        if (groups := loss_groups.current()) is not None:
            detached = logits.detach()
            groups.add_each(lambda of_group: function(detached, of_group), labels)
        return value

    made: type[Task] = type(
        task.__name__, (task,), {"loss": loss, "metric_specs": task.metric_specs, "__module__": __name__}
    )
    return made


def loss_problems(recipe: Recipe) -> list[str]:
    """Return settings that a loss of a user would ignore."""
    task: Any = recipe.task
    if not user_code.is_reference(getattr(task, "loss", None)):
        return []
    ignored = [f"task.{key}" for key in OF_THE_USUAL_LOSS if key in type(task).model_fields and is_changed(task, key)]
    ignored += ["optim.label_smoothing"] if recipe.optim.label_smoothing else []
    ignored += ["data.columns.weight"] if "weight" in recipe.data.columns else []
    return [f"{key}: is not used with the loss {task.loss!r}; leave it out" for key in ignored]
