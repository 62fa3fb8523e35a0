"""MLflow: `project` is the experiment. A run that is resumed continues under its run id."""

from __future__ import annotations

import os
from typing import Any

import mlflow
from accelerate.tracking import GeneralTracker
from mlflow import MlflowClient
from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH

from trainer.tracking.records import Document
from trainer.tracking.service import Service as Base
from trainer.tracking.service import mark_of, split_of

TAG = "rankzero.run"  # our id; MLflow chooses its own
# System metrics, and few retries: failed calls are repeated by the uploader.
DEFAULTS = {"MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": "true", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}
STATES = {"finished": "FINISHED", "failed": "FAILED", "preempted": "KILLED"}


class Service(Base):
    name = "mlflow"

    def make(self, kind: type[GeneralTracker]) -> GeneralTracker:
        place = self.place
        for variable, value in DEFAULTS.items():
            os.environ.setdefault(variable, value)
        for name in ("MLFLOW_RUN_ID", "MLFLOW_TAGS", "MLFLOW_NESTED_RUN"):  # accelerate would prefer them
            os.environ.pop(name, None)
        return kind(
            experiment_name=place.project,
            run_name=place.name,
            run_id=place.position.own_id or self._begun(),
            tags={**{str(k): str(v) for k, v in place.options.get("tags", {}).items()}, TAG: place.position.id},
            **place.own("description"),
        )

    def _begun(self) -> str | None:
        """Return the id of a run that was begun by a process that was killed before it wrote the id down."""
        client = MlflowClient()
        experiment = client.get_experiment_by_name(os.environ.get("MLFLOW_EXPERIMENT_NAME", self.place.project))
        if experiment is None:
            return None
        found = client.search_runs([experiment.experiment_id], f"tags.`{TAG}` = '{self.place.position.id}'")
        return found[0].info.run_id if found else None

    def open(self) -> None:
        super().open()
        self.place.position.own_id = self.tracker.tracker.info.run_id

    def held(self) -> dict[str, int]:
        client, run_id = MlflowClient(), self._run_id
        splits = {split for key in client.get_run(run_id).data.metrics if (split := split_of(key)) is not None}
        return {
            split: max(metric.step for metric in client.get_metric_history(run_id, mark_of(split))) for split in splits
        }

    def configure(self, values: dict[str, Any]) -> None:
        """Log parameters. MLflow keeps those that it has: the recipe of a resumed run is among the files."""
        known = MlflowClient().get_run(self._run_id).data.params
        self.tracker.store_init_configuration(
            {k: v for k, v in values.items() if k not in known and len(str(v)) <= MAX_PARAM_VAL_LENGTH}
        )

    def document(self, document: Document) -> None:
        folder = document.name.rpartition("/")[0]
        self.tracker.log_artifact(str(document.path), artifact_path=folder or None)

    def url(self) -> str | None:
        info, uri = self.tracker.tracker.info, mlflow.get_tracking_uri()
        return f"{uri}/#/experiments/{info.experiment_id}/runs/{info.run_id}" if uri.startswith("http") else None

    def close(self, state: str | None) -> None:
        mlflow.end_run(STATES.get(state or "", "KILLED"))

    @property
    def _run_id(self) -> str:
        return str(self.tracker.tracker.info.run_id)
