"""Classification of texts, or of pairs of texts, into two or more classes: `text` (and `text_pair`) in, `label` out."""

from trainer.tasks.classification.task import Classification

TASK = Classification
