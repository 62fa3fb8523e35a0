"""Where a run stands: what a checkpoint's state.json holds beside weights and moments."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from trainer.data.lanes import Bookmark
from trainer.recipe.sections import EarlyStopping, LoopConfig

# Names of fields in state.json, whose keys are kept.
JSON_KEYS = {"bad_evals": "waited", "eval_pending": "owed", "scheduled_steps": "grid"}


@dataclass
class Best:
    """The best evaluation so far on the grid of eval_every; ties go to the later step."""

    step: int
    value: float


@dataclass
class Progress:
    """All counts are of finished steps; bookmarks are those of the last finished step."""

    marks: dict[int, Bookmark]
    step: int = 0
    epoch: int = 0  # that the next step belongs to, counted from 0
    rows: int = 0  # consumed since the run began
    best: Best | None = None
    reference: float | None = None  # what an evaluation must be better than by more than min_delta to end the waiting
    bad_evals: int = 0  # evaluations in a row without improvement
    plateau: dict[str, Any] | None = None
    evaluated: int = -1  # last step that was evaluated
    eval_pending: bool = False  # a stop came in the middle of this step's evaluation
    scheduled_steps: list[int] = field(default_factory=list)  # the last steps of loop.eval_every, for averaging
    skipped: int = 0  # steps in a row that were skipped for NaN or Inf
    ended: bool = False  # early stopping has decided

    @classmethod
    def start(cls, lanes: int) -> Progress:
        return cls({lane: Bookmark() for lane in range(lanes)})

    @property
    def last_epoch(self) -> int:
        """Epoch of the last finished step, counted from 0. `epoch` is the next one once all lanes have finished it."""
        between = all(mark == Bookmark(self.epoch) for mark in self.marks.values())
        return max(0, self.epoch - 1) if between else self.epoch

    def stopped_early(self, stopping: EarlyStopping) -> dict[str, Any] | None:
        """Where and why early stopping ended the run. None if it has not."""
        if not self.ended:
            return None
        why = {"metric": stopping.metric, "patience": stopping.patience, "min_delta": stopping.min_delta}
        return {"step": self.step, "epoch": self.last_epoch, **why}

    def next_epoch(self) -> None:
        self.epoch += 1
        self.marks = {lane: Bookmark(self.epoch) for lane in self.marks}

    def finished(self, loop: LoopConfig) -> bool:
        """Whether no step is left to train: early stopping has decided, or an end of the recipe is reached."""
        return (
            self.ended
            or (loop.max_steps is not None and self.step >= loop.max_steps)
            or (loop.epochs is not None and self.epoch >= loop.epochs)
        )

    def epochs_begun(self) -> int:
        """Epochs of which at least one step was trained."""
        begun = any(mark != Bookmark(self.epoch) for mark in self.marks.values())
        return self.epoch + int(begun)

    def reopen(self, patience: int | None) -> None:
        """Undo an early stop that a higher patience would not have made."""
        self.ended = self.ended and patience is not None and self.bad_evals >= patience

    def judge(self, value: float, lower: bool, min_delta: float) -> bool:
        """Takes the value of an evaluation, of which lower or higher ones are better; whether it is the best so far.

        `best` moves with any gain and `reference` by more than `min_delta` alone, so that many small gains are one.
        """

        def gain(before: float | None) -> float:
            return math.inf if before is None else (before - value) * (1 if lower else -1)

        if not math.isfinite(value):
            self.bad_evals += 1
            return False
        if gain(self.reference) > min_delta:
            self.reference, self.bad_evals = value, 0
        else:
            self.bad_evals += 1
        better = gain(self.best.value if self.best else None) >= 0
        if better:
            self.best = Best(self.step, value)
        return better

    def to_json(self, marks: dict[int, Bookmark]) -> dict[str, Any]:
        """`marks`: of all lanes; a rank alone keeps up only its own."""
        values = {
            JSON_KEYS.get(name, name): value for name, value in vars(self).items() if name not in ("marks", "best")
        }
        best = asdict(self.best) if self.best else None
        return {**values, "best": best, "bookmarks": [asdict(marks[lane]) for lane in sorted(marks)]}

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> Progress:
        names = cls.__dataclass_fields__.keys() - {"marks", "best"}
        best = Best(**state["best"]) if state["best"] else None
        state = {"reference": best.value if best else None, **state}  # checkpoints of before have none
        marks = {lane: Bookmark(**mark) for lane, mark in enumerate(state["bookmarks"])}
        return cls(marks=marks, best=best, **{name: state[JSON_KEYS.get(name, name)] for name in names})
