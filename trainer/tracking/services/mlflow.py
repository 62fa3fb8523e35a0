"""MLflow: `project` is the experiment. A run that is resumed continues under its run id."""

from __future__ import annotations

import os
from typing import Any

import mlflow
from accelerate.tracking import GeneralTracker
from mlflow import MlflowClient
from mlflow.tracking.context.git_context import GitRunContext
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.mlflow_tags import MLFLOW_GIT_COMMIT, MLFLOW_SOURCE_NAME
from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH

from trainer.files import read_json
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
        tags = {**self._source(), **{str(k): str(v) for k, v in place.options.get("tags", {}).items()}}
        tags[TAG] = place.position.id
        return kind(
            experiment_name=place.project,
            run_name=place.name,
            run_id=place.position.own_id or self._begun(tags),
            tags=tags,
            **place.own("description"),
        )

    def _source(self) -> dict[str, str]:
        """Return the recipe and the user's commit as source: MLflow would name this program and its commit."""
        run, commit = self.place.run, (read_json(self.place.run.manifest) or {}).get("project_commit")
        source = {MLFLOW_SOURCE_NAME: f"{run.path.absolute().name}/{run.recipe.name}"}
        return {**source, MLFLOW_GIT_COMMIT: commit} if isinstance(commit, str) else source

    def _begun(self, tags: dict[str, str]) -> str:
        """Return the id of the run: a new one, unless a process was killed before it wrote the id down.

        A run that `mlflow.start_run` makes has the commit of this program.
        """
        client = MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", self.place.project)
        experiment = client.get_experiment_by_name(name)
        experiment_id = experiment.experiment_id if experiment else client.create_experiment(name)
        found = client.search_runs([experiment_id], f"tags.`{TAG}` = '{self.place.position.id}'")
        if found:
            return str(found[0].info.run_id)
        context = resolve_tags(tags, ignore=[GitRunContext])
        return str(client.create_run(experiment_id, tags=context, run_name=self.place.name).info.run_id)

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
