"""Comet. A run that is resumed continues under its experiment key. Nothing of Comet's own logging is on."""

from __future__ import annotations

import comet_ml
from accelerate.tracking import GeneralTracker

from trainer.tracking.records import Document
from trainer.tracking.service import Service as Base


class Service(Base):
    name = "comet_ml"

    def make(self, kind: type[GeneralTracker]) -> GeneralTracker:
        place, known = self.place, self.place.position.own_id
        settings = comet_ml.ExperimentConfig(
            disabled=False, log_code=False, log_graph=False, auto_param_logging=False, auto_metric_logging=False,
            auto_output_logging=False, log_git_metadata=False, log_git_patch=False, parse_args=False, name=place.name,
            tags=place.options.get("tags"), offline_directory=str(place.folder),
        )  # fmt: skip
        return kind(
            place.project, experiment_key=place.position.id, mode="get" if known else "get_or_create",
            experiment_config=settings, **place.own("workspace", "online"),
        )  # fmt: skip

    def open(self) -> None:
        super().open()
        self.place.position.own_id = self.place.position.id  # only now it exists there

    def document(self, document: Document) -> None:
        experiment, name = self.tracker.tracker, document.name
        if document.is_image:
            experiment.log_image(str(document.path), name=name, step=document.step)
        else:
            experiment.log_asset(str(document.path), file_name=name, step=document.step, overwrite=True)

    def url(self) -> str | None:
        return self.tracker.tracker.url
