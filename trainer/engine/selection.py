"""Select the weights of a finished training, and write them to model/."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from trainer import tensors
from trainer.engine import checkpoint
from trainer.engine.evaluate import evaluate, selection_score
from trainer.engine.layerwise import finish_batch, is_skeleton
from trainer.engine.merging import merge_checked
from trainer.lock import check_held
from trainer.models.adapters import merge
from trainer.models.folder import read_folder
from trainer.optim.averaging import average_files
from trainer.rundir import RunDir
from trainer.stages import Stage, published
from trainer.task.base import Record

if TYPE_CHECKING:
    from trainer.engine.session import Session

WEIGHTS = "model.safetensors"


def model_stage(run: RunDir, step: int) -> Stage:
    """Return the stage that writes model/ for a training that ended at `step`."""
    return Stage("model", {"step": step}, [run.model / WEIGHTS], tensors.exists)


def select_checkpoint(session: Session, warnings: list[str]) -> None:
    """Copy the selected weights into the model, and publish them as model/. All ranks call this together.

    The best checkpoint is selected by `loop.early_stopping.metric` on `validation`, or the average of the last
    checkpoints if it is not worse. Without `validation` it is the last step. A selection of an earlier start is kept.
    An adapter is merged into its base.

    Args:
        warnings: findings about the training, kept in manifest.json.
    """
    run, progress, model, state = session.run, session.progress, session.model, session.state
    state.end_training()
    if not is_skeleton(model):
        model.to(session.runtime.device)
    stage = model_stage(run, progress.step)
    if session.runtime.on_main(lambda: stage.is_done(run)):
        merge(model)
        weights = read_folder(run.model)
        state.use(weights, f"model/{WEIGHTS}")
        session.task.read_calibration(run.model)
        session.runtime.on_main(lambda: session.complete(weights))
        return
    weights, facts = _selected(session)
    state.use(weights, "the selected weights")
    weights = {**weights, **_calibrate(session)}
    facts["metric"] = session.recipe.loop.early_stopping.metric
    if early := progress.stopped_early(session.recipe.loop.early_stopping):
        facts["stopped_early"] = early
    if warnings:
        facts["warnings"] = warnings

    def publish() -> None:
        session.complete(weights)
        if session.base is not None:
            merge_checked(run, session.task, session.corpus, session.complete_model, session.base)
        _publish(session)
        stage.record(run, **facts)

    session.runtime.on_main(publish)
    merge(model)  # on the other ranks, with the same result


def _calibrate(session: Session) -> dict[str, Tensor]:
    """Let the task choose thresholds and the like. Return the weights that it has changed for them. All ranks."""
    runtime, task, model = session.runtime, session.task, session.model
    records: Collection[Record] = []
    with session.state.served():
        if task.calibrates and session.recipe.data.validation is not None:
            _, records = evaluate(runtime, task, model, session.corpus, "validation", session.run.path, predict=True)
        found = task.calibrate(model, runtime.on_main(lambda: task.calibration(records)))
        changed = {name: tensor.detach().clone() for name, tensor in found.items()}
        finish_batch(model)
    session.state.change(changed)
    return changed


def _selected(session: Session) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
    """Return the selected weights, and which they are for manifest.json."""
    averaging, best = session.recipe.optim.averaging, session.progress.best
    step = best.step if best else session.progress.step
    name = "ema.safetensors" if averaging.kind == "ema" else WEIGHTS
    folder = session.run.checkpoints
    session.runtime.on_main(lambda: checkpoint.checked(folder, step, name))  # one error for all ranks
    weights = checkpoint.read(folder, step, name, hashes=session.runtime.main)
    facts = {"weights": f"{name.split('.')[0]} of step {step}", "value": best.value if best else None}
    if averaging.kind == "last" and len(session.progress.scheduled_steps) > 1:
        return _average_if_better(session, weights, facts)
    return weights, facts


def _average_if_better(
    session: Session, best: Mapping[str, Tensor], facts: dict[str, Any]
) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
    """Return the average of the last scheduled checkpoints, or `best` if that has a better score on `validation`."""
    steps, folder, runtime = session.progress.scheduled_steps, session.run.checkpoints, session.runtime
    run = session.run.path
    runtime.on_main(lambda: [checkpoint.checked(folder, step, WEIGHTS) for step in steps])
    average = average_files([checkpoint.checked(folder, step, WEIGHTS, hashes=runtime.main) for step in steps])
    averaged: dict[str, Any] = {"weights": f"average of steps {', '.join(map(str, steps))}", "value": None}
    if session.progress.best is None:
        return average, averaged
    metric = session.recipe.loop.early_stopping.metric
    session.state.use(average, "the average")
    predict = metric not in session.task.cheap_metrics
    with session.state.served():
        scores, _ = evaluate(runtime, session.task, session.model, session.corpus, "validation", run, predict=predict)
    value = selection_score(runtime, scores, metric)
    session.reporter.print(f"average of the last {len(steps)} scheduled checkpoints: validation {metric} {value:.4f}")
    gain = (session.progress.best.value - value) * (1 if session.task.metrics[metric] == "min" else -1)
    return (average, {**averaged, "value": value}) if gain >= 0 else (best, facts)


def _publish(session: Session) -> None:
    """Write model/. Artifacts of earlier weights are removed before, since they do not belong to these."""
    run = session.run
    with published(run.model) as folder:
        session.task.save_model(session.complete_model, folder)
        check_held(run.path)
        for gate in run.export.glob("*/gate.json"):
            shutil.rmtree(gate.parent)
