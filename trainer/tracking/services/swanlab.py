"""SwanLab. A step that is logged again is ignored by it. Files of an offline run are in tracking/swanlog."""

from __future__ import annotations

import swanlab
from accelerate.tracking import GeneralTracker

from trainer.tracking.records import Document
from trainer.tracking.service import Service as Base


class Service(Base):
    name = "swanlab"

    def make(self, kind: type[GeneralTracker]) -> GeneralTracker:
        place = self.place
        return kind(
            place.project, name=place.name, id=place.position.id, resume="allow", log_dir=str(place.folder / "swanlog"),
            **place.own("workspace", "description", "tags", "mode"),
        )  # fmt: skip

    def document(self, document: Document) -> None:
        if document.is_image:
            name = document.name.removesuffix(document.path.suffix)
            self.tracker.log({name: swanlab.Image(str(document.path))}, step=document.step)
