"""One start of a run: its model, optimizer, data and loop, and the stages that follow the training."""

from __future__ import annotations

import contextlib
import copy
import functools
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, schedule

from trainer.engine import checkpoint, lane_memory, setup
from trainer.engine.corpus import Corpus
from trainer.engine.data_notes import notes
from trainer.engine.evaluate import evaluate
from trainer.engine.fused_lanes import lanes_in_a_forward
from trainer.engine.layerwise import is_skeleton, skeleton
from trainer.engine.loop import Loop
from trainer.engine.mirror import Mirror
from trainer.engine.objective import Objective, freeze_unused
from trainer.engine.progress import Progress
from trainer.engine.reporter import Reporter
from trainer.engine.resume_checks import trained_step
from trainer.engine.run_checks import warnings_of
from trainer.engine.runtime import Runtime
from trainer.engine.selection import model_stage, select_checkpoint
from trainer.engine.state import TrainingState
from trainer.engine.step import Stepper
from trainer.engine.trained_run import build_model, write_evaluation
from trainer.engine.utilization import FlopMeter, Utilization, peak_of
from trainer.errors import Preempted
from trainer.files import read_json
from trainer.models.adapters import base_of, counts
from trainer.models.classifiers import depths
from trainer.models.deferred import Deferred, deferred
from trainer.models.freezing import freeze_parts
from trainer.models.layers import checkpoint_activations, compile_layers
from trainer.optim.optimizers import build_optimizer
from trainer.recipe import Recipe
from trainer.recipe.unused import unused_keys
from trainer.rundir import RunDir, Status
from trainer.stages import Stage
from trainer.task.registry import make_task
from trainer.tracking.background import Tracking

log = logging.getLogger("rankzero")


class Session:
    """Model, optimizer, data and loop of one start. All ranks have one, and call its methods together."""

    def __init__(
        self,
        recipe: Recipe,
        run: RunDir,
        runtime: Runtime,
        status: Status | None,
        data: dict[str, Any],
        accumulation: int,
        splits: int,
        debug: bool,
        profile: bool,
    ) -> None:
        self.recipe, self.run, self.runtime, self.status = recipe, run, runtime, status
        self._debug, self._profile = debug, profile
        self.task = make_task(recipe, setup.read_tokenizer(run), data)
        self.corpus = Corpus(recipe, self.task)
        model, filling = self._build()
        self.complete_model = self.model
        bare = Objective(self.task, model, freeze_parts(model, recipe.optim))
        self._unused = freeze_unused(bare)
        self.reporter = Reporter(run, status, runtime.main, self._utilization(bare))
        runtime.engine.convert(model)
        if recipe.loop.checkpointed_layers:
            checkpoint_activations(model, recipe.loop.checkpointed_layers, compiled=bool(recipe.loop.compile))
        if recipe.loop.compile == "layers":
            compile_layers(model)
        elif recipe.loop.compile:
            model.compile(dynamic=True)
        optimizer = build_optimizer(model, recipe.optim, depths(model))
        runtime.engine.prepare(bare, model, optimizer)
        if filling is not None:
            parameters = dict(runtime.engine.parameters())
            filling.fill(lambda name, weight: runtime.engine.fill(parameters[name], weight))
            runtime.engine.filled()
            del filling
        self.base: dict[str, Any] | None = runtime.on_main(lambda: base_of(recipe))
        self.state = TrainingState(recipe, runtime, self.model, self.base)
        if is_skeleton(self.model):
            with self.state.served():
                self.task.check_model(self.model)
        self.stepper = Stepper(runtime, self.task, accumulation, splits)
        self._only_model = False  # trained by an earlier start, whose checkpoints were deleted
        self.progress = self._resume()
        if self.base is not None and runtime.main and not self._only_model:
            setup.record_adapter(run, self.model, self.base)
        self._warnings: list[str] = []
        self._rows = self.corpus.epoch_rows()
        self._log_notes(data)
        self.mirror: Mirror | None = None  # of rank zero
        runtime.on_main(self._begin_mirror)
        self._tracking: Tracking | None = None  # of rank zero
        runtime.on_main(self._begin_tracking)

    def train(self) -> None:
        """Train to the end of the recipe. Return at once if it is already trained."""
        before = self.progress.step
        self.stepper.objective.train()
        if self._only_model:
            self.reporter.close()
            return
        fuse = lanes_in_a_forward(self.recipe, self.run, self.runtime, self.stepper, self.state)
        loop = Loop(
            self.runtime, self.task, self.model, self.corpus, self.corpus.lanes(), self.stepper, self.state,
            self.progress, self.run, self.reporter, self._rows, self._profiler(), fuse,
        )  # fmt: skip
        try:
            with torch.autograd.set_detect_anomaly(self._debug):
                if not loop.finished():
                    self.stepper.warm_up()
                loop.train()
        except Preempted:
            self.finish_mirror()
            raise
        finally:
            self.reporter.close()
        if self.runtime.main and not self._debug and not model_stage(self.run, self.progress.step).is_done(self.run):
            self._warnings = warnings_of(self.run, self.task, self.corpus, self.progress.step)
            for text in self._warnings if self.progress.step > before else ():
                log.warning("%s", text)

    def _begin_mirror(self) -> None:
        if self.recipe.loop.mirror is not None:
            self.mirror = Mirror(self.run, self.recipe.loop.mirror)

    def _begin_tracking(self) -> None:
        self._tracking = Tracking(self.run, self.recipe.track, self.progress.step or -1)

    @contextlib.contextmanager
    def tracked(self) -> Iterator[None]:
        """Upload metrics during the block, and wait on rank zero until trackers have them. The wait is bounded."""
        state = "failed"
        try:
            yield
            state = "finished"
        except Preempted:
            state = "preempted"
            raise
        finally:
            if self._tracking is not None:
                self._tracking.finish(state, lambda: bool(self.runtime.stop.received))

    def finish_mirror(self) -> None:
        """Wait on rank zero until the mirror has the newest checkpoint. The wait is bounded, and short at a stop."""
        if self.mirror is not None:
            self.mirror.finish(lambda: bool(self.runtime.stop.received))

    def select_checkpoint(self) -> None:
        """Copy the selected weights into the model and write model/."""
        select_checkpoint(self, self._warnings)

    def complete(self, weights: Mapping[str, Tensor]) -> None:
        """Give rank zero a complete model with the selected weights, for what it does alone."""
        self.complete_model = self.state.whole(weights)

    def evaluate(self, split: str) -> dict[str, Any]:
        """Return the scores of a split. Rank zero writes evaluation/<split>/, unless an earlier start has done so."""
        settings = self.recipe.evaluation.model_dump(mode="json", exclude={"splits", "baseline"})
        file = self.run.evaluation(split) / "metrics.json"
        stage = Stage(f"evaluation/{split}", {"step": self.progress.step, "settings": settings}, [file])
        if self.runtime.on_main(lambda: stage.is_done(self.run)):
            return dict(read_json(file) or {})
        self.reporter.print(f"evaluating {split} …")
        resamples = self.recipe.evaluation.bootstrap
        with self.state.served():
            scores, records = evaluate(
                self.runtime,
                self.task,
                self.model,
                self.corpus,
                split,
                self.run.path,
                predict=True,
                resamples=resamples,
            )

        def write() -> None:
            write_evaluation(self.run, split, scores, records)
            stage.record(self.run)

        self.runtime.on_main(write)
        return scores

    def log_scores(self, scores: dict[str, dict[str, Any]]) -> None:
        """Log the scores of each split in a line."""
        for split, values in scores.items():
            shown = "  ".join(f"{k} {v:.4g}" for k, v in values.items() if isinstance(v, int | float))
            self.reporter.print(f"{split}: {shown}")
        self.reporter.print(f"run directory: {self.run.path}")

    # -- set-up ----------------------------------------------------------------------------------------------------

    def _build(self) -> tuple[nn.Module, Deferred | None]:
        """Return the model to be trained, and what fills it after it was sharded. Set the one that is evaluated.

        Ranks of an engine that shards parameters never have a complete model. `optim.relative_rates` needs the values
        of the weights before that, so all ranks then begin with one.
        """
        engine, device = self.runtime.engine, self.runtime.device
        filling = None
        if engine.fills and not self.recipe.optim.relative_rates:
            filling = deferred(functools.partial(build_model, self.task, check=False), device)
        model = build_model(self.task) if filling is None else filling.model
        self.model = model
        if engine.fills:
            self.model = skeleton(model)
        elif engine.spec.sharded:  # it trains parts of a copy; the whole model is for evaluation
            model = copy.deepcopy(model)
        return model.to(device), filling

    def _resume(self) -> Progress:
        """Resume from the newest complete checkpoint, or start at step 0 if no save was ever begun."""
        step = self.runtime.on_main(lambda: checkpoint.newest(self.run.checkpoints))
        if step is None:
            progress = self._without_checkpoints()
        else:
            path = checkpoint.checked(self.run.checkpoints, step, hashes=self.runtime.main)
            state = checkpoint.read_state(self.run.checkpoints, step)
            self.state.restore(path, state)
            if self.stepper.lane_memory.enabled:
                own = self.runtime.data_parallel.lanes(self.recipe.data.lanes)
                memories = checkpoint.read(self.run.checkpoints, step, lane_memory.FILE, hashes=self.runtime.main)
                self.stepper.lane_memory.restore(memories, own)
            progress = Progress.from_json(state)
            progress.reopen(self.recipe.loop.early_stopping.patience)
        if self.runtime.main:
            evaluated = None if step is None else max(0, progress.evaluated)
            # an evaluation before step 1 is repeated
            self.run.cut_after(self.run.metrics, progress.step or -1, evaluated)
            self.run.cut_after(self.run.ledger, progress.step)
            if self.status is not None:
                self.status.update(step=progress.step)
            if step is not None:
                self.reporter.print(f"resumed from step {step} (epoch {progress.last_epoch})")
        return progress

    def _without_checkpoints(self) -> Progress:
        """Return the start of a new run, or the end of a finished run whose checkpoints were deleted.

        Raises:
            CheckpointError: there is a finished stage but no model to complete the others with.
        """
        progress = Progress.start(self.recipe.data.lanes)
        step = self.runtime.on_main(lambda: trained_step(self.run))
        if step is not None:
            progress.step, progress.ended, self._only_model = step, True, True
            self.reporter.print(
                f"already trained to step {step}; its checkpoints were deleted, model/ is kept as it is"
            )
        return progress

    def _utilization(self, objective: Objective) -> Utilization:
        """Return the meter of rank zero: it counts operations where the peak of the device is known."""
        loop, runtime = self.recipe.loop, self.runtime
        peak = loop.peak_tflops * 1e12 if loop.peak_tflops else None
        if peak is None and runtime.device.type == "cuda":
            name = torch.cuda.get_device_name(runtime.device)
            peak = peak_of(name, runtime.engine.precision, loop.tf32)
        meter = FlopMeter(objective, self.task.inputs) if peak and runtime.main else None
        return Utilization(runtime.world, meter, peak)

    def _profiler(self) -> Any:
        if not self._profile or not self.runtime.main:
            return None
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
        trace = self.run.path / "profile.json"
        return profile(
            activities=activities,
            schedule=schedule(wait=2, warmup=2, active=5, repeat=1),
            on_trace_ready=lambda p: p.export_chrome_trace(str(trace)),
        )

    def _log_notes(self, data: dict[str, Any]) -> None:
        if not self.runtime.main:
            return
        if self.stepper.splits > 1:
            log.warning("a rank ran out of memory before: micro-batches go in %d parts", self.stepper.splits)
        for key, user in unused_keys(self.recipe).items():
            log.warning("%s is not used: it belongs to %s", key, user)
        if self._unused:
            log.warning("the loss does not depend on %s: left as they are", ", ".join(self._unused))
        lanes, world = self.recipe.data.lanes, self.runtime.world
        if lanes % world:
            better = [n for n in range(1, lanes + 1) if lanes % n == 0]
            log.warning("%d ranks do not divide data.lanes=%d: some idle; better: %s", world, lanes, better)
        for note in notes(self.recipe, data):
            log.warning("%s", note)
        trained, parameters = counts(self.model)
        share = f" ({trained / 1e6:.2f}M trained)" if trained < parameters else ""
        rows = data["train"]["rows"]
        self.reporter.print(
            f"{self.recipe.name}: {parameters / 1e6:.2f}M parameters{share}, "
            f"{'an unknown number of' if rows is None else f'{rows:,}'} training rows, "
            f"{self.runtime.engine.spec.name} x {world}, {lanes} lanes, {torch.get_num_threads()} threads per rank, "
            f"precision {self.runtime.engine.precision}"
        )
