"""Report the training on rank zero: progress bar or plain lines, metrics.jsonl, status.json.

Epochs are counted from 0 everywhere; a line has the epoch of its step.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, SupportsFloat

import psutil
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from trainer.engine.progress import Progress as RunProgress
from trainer.engine.step import Totals
from trainer.engine.utilization import Utilization, Work
from trainer.errors import LockLost
from trainer.rundir import RunDir, Status

WAITING = 0.05  # share of the time, above which a line says that the training waits for rows


@dataclass
class _Interval:
    """Sums since the last logged step."""

    began: float = field(default_factory=time.monotonic)
    tokens: int = 0
    padded: int = 0
    untimed: int = 0  # tokens of the first step
    work: Work = field(default_factory=Work)


class Reporter:
    """Reports on rank zero. On other ranks all methods do nothing."""

    def __init__(self, run: RunDir, status: Status | None, main: bool, utilization: Utilization) -> None:
        self._run, self._status, self._main, self._utilization = run, status, main, utilization
        self._interval = _Interval()
        self._paused = 0.0
        self._last: dict[str, float] = {}
        self._grad_norm: SupportsFloat = 0.0
        self._began: tuple[float, float] | None = None  # time and share of the first step of this attempt
        self._bar: Progress | None = None
        if main and sys.stderr.isatty():
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
            )
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task("training", total=1.0, note="")
            self._bar.start()

    def step(
        self, progress: RunProgress, share: float, totals: Totals, lr: float, grad_norm: SupportsFloat, work: Work
    ) -> None:
        """Count a step. Its norm is read only if it is logged."""
        if not self._main:
            return
        if self._status is not None:
            self._status.values["step"] = progress.step  # written by the heartbeat
        now = time.monotonic()
        if self._began is None:  # the first step includes what libraries do only once
            self._began, self._interval, work = (now, share), _Interval(untimed=totals.tokens), Work()
        self._interval.tokens += totals.tokens
        self._interval.padded += totals.padded
        self._interval.work.add(work)
        spent, done = now - self._began[0], share - self._began[1]
        left = spent * (1 - share) / done if done > 0 else 0.0
        self._last = {"lr": lr, "share": share, "left": left}
        self._grad_norm = grad_norm
        if self._bar is not None:
            self._bar.update(
                self._task, completed=share, description=f"step {progress.step} epoch {progress.last_epoch}"
            )

    def logged(self, progress: RunProgress, loss: float, more: Mapping[str, Any] | None = None) -> None:
        """Write a line about the steps since the last one. `more`: further keys of it."""
        if not self._main:
            return
        interval = self._interval
        seconds, tokens = max(1e-9, time.monotonic() - interval.began), interval.tokens - interval.untimed
        used = self._utilization.of(interval.work, tokens, seconds)
        self._interval = _Interval()  # begins after the operations are counted
        line = {
            "step": progress.step,
            "epoch": progress.last_epoch,
            "split": "train",
            "loss": loss,
            "lr": self._last["lr"],
            "grad_norm": float(self._grad_norm),
            "tokens_per_second": tokens / seconds,
            "padding": 1 - interval.tokens / max(1, interval.padded),
            "memory": memory_bytes(),
            **used,
            **(more or {}),
        }
        if self._status is not None:
            self._status.values |= {"loss": loss, "share": self._last["share"], "left": self._last["left"]}
        self._write(line)
        left = "" if progress.ended else f"  {_duration(self._last['left'])} left"
        note = (
            f"loss {loss:.4f}  lr {line['lr']:.2e}  "
            + (f"{line['tokens_per_second']:,.0f} tokens/s  " if tokens else "")
            + (f"mfu {used['mfu']:.1%}  " if tokens and "mfu" in used else "")
            + (f"waiting for rows {used['data_wait']:.0%}  " if used["data_wait"] > WAITING else "")
            + f"padding {line['padding']:.1%}{left}"
        )
        if self._bar is not None:
            self._bar.update(self._task, note=note)
        else:
            self.print(f"step {progress.step:6d}  epoch {progress.last_epoch}  {self._last['share']:6.1%}  {note}")

    def evaluating(self) -> None:
        """Pause the clock of the training for an evaluation."""
        self._paused = time.monotonic()

    def evaluated(self, progress: RunProgress, scores: dict[str, Any], best: bool, tied: bool = False) -> None:
        """Report an evaluation. `best`: the best one so far. `tied`: equal to the best one, which it replaces."""
        if not self._main:
            return
        numbers = {k: v for k, v in scores.items() if isinstance(v, int | float)}
        self._write({"step": progress.step, "epoch": progress.last_epoch, "split": "validation", **numbers})
        shown = "  ".join(f"{k} {v:.4f}" for k, v in numbers.items() if k != "rows")
        mark = "  (equal to the best: the later step is kept)" if tied else "  *best" if best else ""
        self.print(f"step {progress.step:6d}  validation  {shown}{mark}")
        self._interval.began += time.monotonic() - self._paused

    def stopped_early(self, facts: dict[str, Any]) -> None:
        """Report an early stop; see `Progress.stopped_early`."""
        if not self._main:
            return
        self.print(
            f"stopped early at step {facts['step']} (epoch {facts['epoch']}): validation {facts['metric']} has not "
            f"improved in {facts['patience']} {'evaluation' if facts['patience'] == 1 else 'evaluations'}"
        )
        if self._status is not None:
            self._status.update(stopped_early=facts)

    def rows(self, step: int, ids: dict[str, list[str]], more: Mapping[str, Any]) -> None:
        """Write the rows of a step by lane into the ledger. `more`: further keys of the line."""
        if self._main:
            with contextlib.suppress(LockLost):  # as in `_write`
                self._run.append(self._run.ledger, {"step": step, **more, "rows": ids})

    def print(self, text: str) -> None:
        """Print a line, above the progress bar if there is one."""
        if self._main:
            (self._bar.console if self._bar is not None else _LOG).print(text, highlight=False, markup=False)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _write(self, line: dict[str, Any]) -> None:
        # Only rank zero runs this: if it raised LockLost, the other ranks would only see a lost connection. The
        # heartbeat of the lock stops all ranks within two seconds, and a save raises LockLost on all ranks.
        try:
            self._run.append(self._run.metrics, line)
            if self._status is not None:
                self._status.update(step=line["step"])
        except LockLost:
            return


_LOG = Console(stderr=True, soft_wrap=True)


def memory_bytes() -> int:
    """Return the peak of allocated GPU memory, or the resident set of this process."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    return int(psutil.Process().memory_info().rss)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
