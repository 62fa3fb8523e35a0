"""The position of a run in its training: what state.json of a checkpoint holds."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from trainer.data.lane_plan import Bookmark
from trainer.recipe.loop_sections import EarlyStopping, LoopConfig

# Names of fields in state.json, whose keys are kept.
JSON_KEYS = {"bad_evals": "waited", "eval_pending": "owed", "scheduled_steps": "grid"}
NEW = ("left_out", "unchecked", "corpus_rows")  # fields that state.json has only where they count something


@dataclass
class Best:
    """The best evaluation so far at steps of `loop.eval_every`. Of equal ones, the later step."""

    step: int
    value: float


@dataclass
class Progress:
    """Counts are of finished steps, and bookmarks are those of the last finished step.

    Attributes:
        marks: the bookmark of each lane.
        epoch: that the next step belongs to, counted from 0.
        rows: used since the run began.
        corpus_rows: the same by corpus of `data.mix`; empty without it.
        reference: an evaluation must be better than this by more than `min_delta` to count as an improvement.
        bad_evals: evaluations in a row without improvement.
        plateau: the state of the plateau schedule.
        evaluated: the last step that was evaluated.
        eval_pending: the run was stopped during the evaluation of this step.
        scheduled_steps: the last steps of `loop.eval_every`, for averaging.
        skipped: steps in a row that were skipped for NaN or Inf.
        ended: early stopping has ended the run.
        left_out: rows that were read and not used, where rows are checked while they are read.
        unchecked: counts of the rows that were checked so, see `UncheckedRows`.
    """

    marks: dict[int, Bookmark]
    step: int = 0
    epoch: int = 0
    rows: int = 0
    best: Best | None = None
    reference: float | None = None
    bad_evals: int = 0
    plateau: dict[str, Any] | None = None
    evaluated: int = -1
    eval_pending: bool = False
    scheduled_steps: list[int] = field(default_factory=list)
    skipped: int = 0
    ended: bool = False
    left_out: int = 0
    unchecked: dict[str, Any] = field(default_factory=dict)
    corpus_rows: list[int] = field(default_factory=list)

    @classmethod
    def start(cls, lanes: int) -> Progress:
        return cls({lane: Bookmark() for lane in range(lanes)})

    @property
    def last_epoch(self) -> int:
        """The epoch of the last finished step, counted from 0."""
        between = not any(mark.begun for mark in self.marks.values())
        return max(0, self.epoch - 1) if between else self.epoch

    def stopped_early(self, stopping: EarlyStopping) -> dict[str, Any] | None:
        """Return where and why early stopping ended the run. None if it has not."""
        if not self.ended:
            return None
        why = {"metric": stopping.metric, "patience": stopping.patience, "min_delta": stopping.min_delta}
        return {"step": self.step, "epoch": self.last_epoch, **why}

    def next_epoch(self) -> None:
        self.epoch += 1
        self.marks = {lane: mark.next_epoch(self.epoch) for lane, mark in self.marks.items()}

    def finished(self, loop: LoopConfig) -> bool:
        """Whether no step is left to train: early stopping has ended the run, or an end of the recipe is reached."""
        return (
            self.ended
            or (loop.max_steps is not None and self.step >= loop.max_steps)
            or (loop.epochs is not None and self.epoch >= loop.epochs)
        )

    def share(self, loop: LoopConfig, total_rows: int | None, rows: int = 0, steps: int = 0) -> float:
        """Return the share of the planned training that is done: by rows or by steps, whichever ends first.

        Args:
            loop: the plan.
            total_rows: training rows of one epoch, with those that are left out if they are counted; None = unknown.
            rows, steps: further ones that are counted as done.
        """
        shares = [0.0]
        if loop.max_steps is not None:
            shares.append((self.step + steps) / loop.max_steps)
        if loop.epochs is not None and total_rows:
            shares.append((self.rows + self.left_out + rows) / (loop.epochs * total_rows))
        return min(1.0, max(shares))

    def epochs_begun(self) -> int:
        """Return the number of epochs of which at least one step was trained."""
        return self.epoch + int(any(mark.begun for mark in self.marks.values()))

    def reopen(self, patience: int | None) -> None:
        """Undo an early stop that a higher patience would not have made."""
        self.ended = self.ended and patience is not None and self.bad_evals >= patience

    def record_evaluation(self, value: float, lower: bool, min_delta: float) -> bool:
        """Record the value of an evaluation. Return whether it is the best so far.

        Any gain moves `best`. Only a gain of more than `min_delta` moves `reference`, so that many small gains add up.

        Args:
            lower: lower values are better.
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
        """Return the content of state.json. `marks` are those of all lanes: a rank knows only its own."""
        none = {name for name in NEW if not getattr(self, name)}
        values = {
            JSON_KEYS.get(name, name): value
            for name, value in vars(self).items()
            if name not in {"marks", "best", *none}
        }
        best = asdict(self.best) if self.best else None
        return {**values, "best": best, "bookmarks": [asdict(marks[lane]) for lane in sorted(marks)]}

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> Progress:
        names = cls.__dataclass_fields__.keys() - {"marks", "best"}
        best = Best(**state["best"]) if state["best"] else None
        # older checkpoints have no reference, and only some have the others
        state = {"reference": best.value if best else None, "left_out": 0, "unchecked": {}, "corpus_rows": [], **state}
        marks = {lane: Bookmark(**mark) for lane, mark in enumerate(state["bookmarks"])}
        return cls(marks=marks, best=best, **{name: state[JSON_KEYS.get(name, name)] for name in names})
