"""Trackio: a run in its local database, or in a Space (TRACKIO_SPACE_ID). Runs have names, so ours end with the id."""

from __future__ import annotations

import trackio
from accelerate.tracking import GeneralTracker
from trackio.sqlite_storage import SQLiteStorage

from trainer.tracking.records import Document
from trainer.tracking.service import Service as Base
from trainer.tracking.service import split_of


class Service(Base):
    name = "trackio"

    def make(self, kind: type[GeneralTracker]) -> GeneralTracker:
        return kind(self.place.project, name=self._run_name, resume="allow", embed=False, **self.place.own("group"))

    @property
    def _run_name(self) -> str:
        return f"{self.place.name}-{self.place.position.id[:8]}"

    def held(self) -> dict[str, int] | None:
        last: dict[str, int] = {}
        for row in SQLiteStorage.get_logs(self.place.project, self._run_name):
            for split in filter(None, map(split_of, row)):
                last[split] = max(int(row["step"]), last.get(split, -1))
        return last

    def document(self, document: Document) -> None:
        name = document.name.removesuffix(document.path.suffix)
        if document.is_image:
            self.tracker.log({name: trackio.Image(str(document.path))}, step=document.step)
        else:
            trackio.save(str(document.path), project=self.place.project)
