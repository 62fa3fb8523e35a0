"""Language modeling on plain text. Objective causal: predict the next token; mlm: predict masked tokens."""

from trainer.tasks.language_modeling.task import AnyLanguageModeling

TASK = AnyLanguageModeling
