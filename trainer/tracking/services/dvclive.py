"""DVCLive: text files in tracking/dvclive of the run directory. No experiment of DVC is made."""

from __future__ import annotations

import csv
from pathlib import Path

from accelerate.tracking import GeneralTracker

from trainer.tracking.records import Document
from trainer.tracking.service import Service as Base
from trainer.tracking.service import mark_of, split_of


class Service(Base):
    name = "dvclive"

    def make(self, kind: type[GeneralTracker]) -> GeneralTracker:
        return kind(dir=str(self._folder), resume=True, save_dvc_exp=False, dvcyaml=None, monitor_system=True)

    @property
    def _folder(self) -> Path:
        return self.place.folder / "dvclive"

    def _tables(self) -> list[Path]:
        return sorted(self._folder.glob("plots/metrics/**/*.tsv"))

    def held(self) -> dict[str, int]:
        last: dict[str, int] = {}
        for path in self._tables():
            key = str(path.relative_to(self._folder / "plots/metrics").with_suffix(""))
            if (split := split_of(key)) is not None and key == mark_of(split):
                with path.open(encoding="utf-8", newline="") as file:
                    steps = [int(row["step"]) for row in csv.DictReader(file, delimiter="\t")]
                last[split] = max(steps, default=-1)
        return last

    def rewind(self, step: int) -> bool:
        for path in self._tables():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines[1:] if int(line.split("\t", 1)[0]) <= step]
            path.write_text("".join([*lines[:1], *kept]), encoding="utf-8")
        return True

    def document(self, document: Document) -> None:
        if document.is_image:
            self.tracker.tracker.log_image(document.name.replace("/", "-"), document.path)
