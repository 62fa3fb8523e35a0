"""Size and number of the steps of a training, by the number of rows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

LEAST_STEPS = 200  # of a fine-tuning
MOST_EPOCHS = 20
BATCHES = (32, 16, 8)  # rows of a step
MOST_TOKENS = 8192  # of a micro-batch
ROUND = (1, 2, 5, 10, 20, 25, 50, 100, 200, 250, 500, 1000)


@dataclass(frozen=True)
class Steps:
    """What a step contains, and how many there are.

    Attributes:
        data: keys of `data`.
        epochs: passes over the rows.
        per_epoch: steps of an epoch, about.
    """

    data: dict[str, Any]
    epochs: int
    per_epoch: int

    @property
    def total(self) -> int:
        return self.epochs * self.per_epoch

    @property
    def eval_every(self) -> int | str:
        """Return loop.eval_every: a run has 3 to 40 evaluations."""
        return "epoch" if self.epochs >= 3 else max(1, rounded(self.total / 8))

    @property
    def log_every(self) -> int:
        return rounded(self.total / 20)

    @property
    def warmup_ratio(self) -> float:
        return 0.1 if self.total < 5000 else 0.06


def rounded(number: float) -> int:
    """Return the largest round number that is not above a number, or 1."""
    return max((value for value in ROUND if value <= number), default=1)


def validation_shares(rows: int) -> list[float]:
    """Return shares of the training rows to hold out, the best one first. Larger ones are for classes with few rows."""
    if rows > 20_000:
        return [0.05 if rows <= 100_000 else max(0.005, round(5000 / rows, 3))]
    first = 0.2 if rows < 500 else 0.15 if rows < 1000 else 0.1
    return [first, *(share for share in (0.15, 0.2, 0.25) if first < share <= (0.2 if rows >= 1000 else 0.25))]


def fine_tuning(rows: int, max_length: int) -> Steps:
    """Return the steps of a fine-tuning: 32 rows and 3 epochs, and smaller steps and more epochs for few rows."""
    batch = next((b for b in BATCHES if math.ceil(LEAST_STEPS * b / rows) <= 4), BATCHES[-1])
    epochs = min(MOST_EPOCHS, max(3, math.ceil(LEAST_STEPS * batch / rows)))
    if rows > 100_000:
        batch, epochs = 64, 1 if rows > 500_000 else 2
    lanes = max(1, min(rows, 4 if batch >= 32 else 2))
    each = batch // lanes
    tokens = max(max_length, min(each * max_length, MOST_TOKENS))
    data = {"lanes": lanes, "rows_per_batch": each, "tokens_per_batch": tokens}
    return Steps(data, epochs, max(1, math.ceil(rows / (lanes * each))))


def from_scratch(rows: int, mean: float, max_length: int) -> Steps:
    """Return the steps of pairs of texts with random weights, which need many. `mean`: tokens of a text."""
    epochs = 40 if rows < 10_000 else 24 if rows < 100_000 else 10 if rows < 1_000_000 else 5
    lanes, wanted = (2 if rows < 10_000 else 4), 3500
    tokens = epochs * rows * mean / (wanted * lanes)
    tokens = next((size for size in (256, 512, 1024, 2048, 4096) if size >= tokens), 4096)
    data = {"lanes": max(1, min(lanes, rows)), "tokens_per_batch": max(max_length, tokens)}
    per_step = data["lanes"] * data["tokens_per_batch"] / (1.1 * mean)  # 10% padding
    return Steps(data, epochs, max(1, math.ceil(rows / per_step)))


def packed(rows: int, mean: float, max_length: int) -> Steps:
    """Return the steps of texts that are packed into sequences of max_length tokens. `mean`: tokens of a text."""
    total = rows * mean
    tokens = next((size for size in (1024, 2048) if total <= LEAST_STEPS * 2 * size), 4096)
    lanes = max(1, min(2 if total < 2e6 else 4, rows))
    tokens = max(tokens, max_length)
    per_epoch = max(1, math.ceil(total / (lanes * tokens)))
    return Steps({"lanes": lanes, "tokens_per_batch": tokens}, min(5, max(2, LEAST_STEPS // per_epoch)), per_epoch)
