"""Text to text (Raffel et al. 2020): `src` in, `trg` out, with any encoder-decoder of the transformers library."""

from trainer.tasks.text_to_text.task import TextToText

TASK = TextToText
