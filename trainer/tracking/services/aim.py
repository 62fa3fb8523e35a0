"""Aim: a repository in tracking/ of the run directory. A step that is logged again replaces the earlier one."""

from __future__ import annotations

import os

import aim
from accelerate.tracking import GeneralTracker

from trainer.tracking.records import Document
from trainer.tracking.service import Service as Base


class Service(Base):
    name = "aim"

    def make(self, kind: type[GeneralTracker]) -> GeneralTracker:
        place = self.place
        repository = os.environ.get("AIM_SERVER") or str(place.folder)
        return kind(
            place.name, repository, run_hash=place.position.own_id, experiment=place.project, force_resume=True,
            capture_terminal_logs=False,
        )  # fmt: skip

    def open(self) -> None:
        super().open()
        self.place.position.own_id = self.tracker.tracker.hash

    def rewind(self, step: int) -> bool:
        return True

    def document(self, document: Document) -> None:
        name = document.name.removesuffix(document.path.suffix)
        if document.is_image:
            self.tracker.tracker.track(aim.Image(str(document.path)), name=name, step=document.step)
