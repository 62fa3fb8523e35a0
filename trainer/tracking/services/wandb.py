"""W&B: each line is a row with its own `step`, the x axis of all charts. Files are in tracking/wandb.

The steps of an offline run are in the .wandb files of all its starts, those of another one in the summary that the
server returns when the run is resumed.
"""

from __future__ import annotations

import os
from typing import Any

import wandb
from accelerate.tracking import GeneralTracker
from wandb.proto.wandb_internal_pb2 import Record as Message

from trainer.tracking.leveldb_log import records_in
from trainer.tracking.records import Document, Record
from trainer.tracking.service import Service as Base

OPTIONS = ("entity", "group", "job_type", "tags", "notes", "mode")
CODES = {"failed": 1}


class Service(Base):
    name = "wandb"

    def make(self, kind: type[GeneralTracker]) -> GeneralTracker:
        place = self.place
        wandb.setup(wandb.Settings(silent=True))  # those of a run do not silence warnings of run.save
        settings = wandb.Settings(console="off", x_stats_pid=os.getppid(), silent=True)
        return kind(
            place.project, name=place.name, id=place.position.id, resume="allow", dir=str(place.folder),
            settings=settings, **place.own(*OPTIONS),
        )  # fmt: skip

    def open(self) -> None:
        super().open()
        run = self.tracker.tracker
        run.define_metric("*", step_metric="step")

    def held(self) -> dict[str, int]:
        last: dict[str, int] = {}
        for file in sorted(self.place.folder.glob(f"wandb/*/run-{self.place.position.id}.wandb")):
            for content in records_in(file):
                for split, step in _steps(Message.FromString(content)).items():
                    last[split] = max(step, last.get(split, -1))
        run = self.tracker.tracker
        if run.offline:
            return last
        return {key.removesuffix("/step"): int(run.summary[key]) for key in run.summary if key.endswith("/step")}

    def log(self, record: Record) -> None:
        self.tracker.log({"step": record.step, f"{record.split}/step": record.step, **record.values})

    def document(self, document: Document) -> None:
        run = self.tracker.tracker
        run.save(str(document.path.absolute()), base_path=str(self.place.run.path.absolute()), policy="now")
        name = document.name.removesuffix(document.path.suffix)
        if document.is_image:
            self.tracker.log({"step": document.step, name: wandb.Image(str(document.path))})
        elif document.path.suffix == ".html":
            self.tracker.log({"step": document.step, name: wandb.Html(str(document.path), inject=False)})

    def url(self) -> str | None:
        return self.tracker.tracker.url or None

    def close(self, state: str | None) -> None:
        self.tracker.tracker.finish(exit_code=CODES.get(state or "", 0))


def _steps(message: Any) -> dict[str, int]:
    """Return the steps by split in a row of a .wandb file."""
    found = {}
    for item in message.history.item:
        key = item.key or "/".join(item.nested_key)
        if key.endswith("/step"):
            found[key.removesuffix("/step")] = int(float(item.value_json))
    return found
