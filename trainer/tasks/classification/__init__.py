"""Classification of texts, or of pairs of texts: one label, several labels or numbers per row (`task.mode`)."""

from trainer.tasks.classification.modes import AnyClassification

TASK = AnyClassification
