"""The interface of tasks: what a task provides, and the types of the values in its rows."""

from trainer.data.roles import Label, Labels, Number, Role, Roles, Text, Tokens
from trainer.recipe.sections import Section
from trainer.task.base import IGNORED, Assessed, Batch, Example, Record, Row, Task, Texts

__all__ = [
    "IGNORED",
    "Assessed",
    "Batch",
    "Example",
    "Label",
    "Labels",
    "Number",
    "Record",
    "Role",
    "Roles",
    "Row",
    "Section",
    "Task",
    "Text",
    "Texts",
    "Tokens",
]
