"""Token classification: entities in texts, from tokens with tags or from texts with character spans."""

from trainer.tasks.token_classification.task import TokenClassification

TASK = TokenClassification
