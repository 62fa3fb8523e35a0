"""Translation with an encoder-decoder model: `src` in, `trg` out."""

from trainer.tasks.translation.task import Translation

TASK = Translation
