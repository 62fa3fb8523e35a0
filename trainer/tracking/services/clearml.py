"""ClearML. Its hooks into argparse, frameworks and output are off."""

from __future__ import annotations

from accelerate.tracking import GeneralTracker

from trainer.tracking.records import Document
from trainer.tracking.service import Service as Base


class Service(Base):
    name = "clearml"

    def make(self, kind: type[GeneralTracker]) -> GeneralTracker:
        place, known = self.place, self.place.position.own_id
        return kind(
            place.project, project_name=place.project, task_name=place.name, continue_last_task=known or False,
            reuse_last_task_id=False, auto_connect_arg_parser=False, auto_connect_frameworks=False,
            auto_connect_streams=False, **place.own("tags"),
        )  # fmt: skip

    def open(self) -> None:
        super().open()
        self.place.position.own_id = self.tracker.tracker.id
        self.tracker.tracker.set_initial_iteration(0)  # our steps are counted from the beginning of the run

    def document(self, document: Document) -> None:
        task = self.tracker.tracker
        if document.is_image:
            task.get_logger().report_image(document.name, "image", document.step, local_path=str(document.path))
        else:
            task.upload_artifact(document.name, artifact_object=str(document.path), wait_on_upload=True)

    def url(self) -> str | None:
        return self.tracker.tracker.get_output_log_web_page()
