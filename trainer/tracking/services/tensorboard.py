"""TensorBoard: event files in tensorboard/ of the run directory. A resumed run hides the steps that it repeats."""

from __future__ import annotations

from typing import Any

import numpy as np
from accelerate.tracking import GeneralTracker
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from trainer.tracking.records import Document
from trainer.tracking.service import Service as Base
from trainer.tracking.service import split_of


class Service(Base):
    name = "tensorboard"

    def make(self, kind: type[GeneralTracker]) -> GeneralTracker:
        return kind(self.place.run.tensorboard.name, str(self.place.run.path), **self._purge())

    def _purge(self) -> dict[str, int]:
        """Return the first step that is hidden: TensorBoard leaves out earlier events from there on."""
        step = self.place.position.rewind
        return {} if step is None else {"purge_step": step + 1}

    def held(self) -> dict[str, int]:
        events = EventAccumulator(str(self.place.run.tensorboard), size_guidance={"scalars": 0})
        events.Reload()
        tags = {tag: split for tag in events.Tags()["scalars"] if (split := split_of(tag)) is not None}
        return {split: max(event.step for event in events.Scalars(tag)) for tag, split in tags.items()}

    def rewind(self, step: int) -> bool:
        return True

    def configure(self, values: dict[str, Any]) -> None:
        text = "\n".join(f"| {key} | {value} |" for key, value in values.items())
        self.tracker.tracker.add_text("recipe", f"| key | value |\n|---|---|\n{text}", global_step=0)

    def document(self, document: Document) -> None:
        if document.is_image:
            with Image.open(document.path) as image:
                pixels = np.asarray(image.convert("RGB"))
            name = document.name.removesuffix(document.path.suffix)
            self.tracker.log_images({name: pixels[None]}, step=document.step, dataformats="NHWC")
            self.tracker.tracker.flush()
