"""Language modelling on plain text: `text` in. Objective causal: say every next token; mlm: say what was masked."""

from trainer.tasks.language_modeling.task import LanguageModeling

TASK = LanguageModeling
