"""What a task has to provide, and how a task is found. The shipped tasks are in trainer/tasks."""

from trainer.recipe.sections import Section
from trainer.task.base import IGNORED, Assessed, Batch, Example, Record, Roles, Task, Texts

__all__ = ["IGNORED", "Assessed", "Batch", "Example", "Record", "Roles", "Section", "Task", "Texts"]
