"""TF-IDF with ridge regression, and the mean of the training targets: what a trained regression model has to beat."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.linear_model import Ridge

from trainer.task.baseline import Baseline
from trainer.tasks.classification.baseline import ITERATIONS, SECONDS, WINDOW, Features, Late
from trainer.tasks.classification.losses import regression_loss

if TYPE_CHECKING:
    from trainer.task.base import Row
    from trainer.tasks.classification.regression.task import Regression

PENALTY, TOLERANCE = 1.0, 1e-6  # alpha and tol of scikit-learn
Array = np.ndarray[Any, Any]
Losses = Callable[[Array, Array], Array]  # of true and predicted numbers (rows, targets): summed over the targets


def of_task(task: Regression, rows: Sequence[Row]) -> list[Baseline] | str:
    """Fit the baselines of a task to training rows."""
    names, named = task.settings.names, bool(task.settings.targets)
    targets = np.array([[float(row[name]) for name in names] for row in rows], dtype=np.float64)
    means, deviations = (torch.tensor(part, dtype=torch.float64) for part in zip(*task.scales, strict=True))

    def losses(true: Array, predicted: Array) -> Array:
        outputs, scaled = ((torch.from_numpy(numbers) - means) / deviations for numbers in (predicted, true))
        found: Array = regression_loss(outputs, scaled, task.usual_loss, task.settings.huber_delta).numpy()
        return found

    return baselines(
        list(map(task.input_text, rows)), targets, names if named else None, losses, pair=task.settings.pair
    )


def baselines(
    texts: Sequence[str],
    targets: Array,
    names: Sequence[str] | None,
    losses: Losses,
    *,
    pair: bool,
    seconds: float = SECONDS,
) -> list[Baseline] | str:
    """Fit the baselines to training rows. Return them, or why there are none.

    Args:
        texts: cleaned inputs as in predictions.jsonl: with `pair`, two texts with a tab between them.
        targets: (rows, targets).
        names: of the targets; None for one without a name.
    """
    means = targets.mean(axis=0)
    floor = _baseline(
        "mean", "Mean of the training targets", {"rows": len(texts), "answer": _answer(means, names)},
        lambda some: np.tile(means, (len(some), 1)), names, losses,
    )  # fmt: skip
    if np.ptp(targets, axis=0).max() == 0:
        return "its training rows all have the same numbers"
    try:
        features = Features(texts, pair, targets.shape[1], time.monotonic() + seconds)
    except Late:
        return f"its features alone took more than {seconds:g} seconds"
    except ValueError as error:  # no word in any text
        return f"no features: {error}"
    scales = targets.std(axis=0)
    scales[scales == 0] = 1.0
    model = Ridge(alpha=PENALTY, solver="lsqr", tol=TOLERANCE, max_iter=ITERATIONS)
    model.fit(features.table, (targets - means) / scales)
    iterations = int(np.max(model.n_iter_))
    about = {**features.about, "alpha": PENALTY, "iterations": iterations, "converged": iterations < ITERATIONS}
    ridge = _baseline(
        "tfidf_ridge", "TF-IDF + ridge regression", about,
        lambda some: model.predict(features.of(some)).reshape(len(some), -1) * scales + means, names, losses,
    )  # fmt: skip
    return [ridge, floor]


def _baseline(
    key: str,
    name: str,
    about: dict[str, Any],
    predicted: Callable[[Sequence[str]], Array],
    names: Sequence[str] | None,
    losses: Losses,
) -> Baseline:
    def predict(records: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        rows = iter(records)
        while window := list(islice(rows, WINDOW)):
            numbers = predicted([record["input"] for record in window])
            true = np.array([_numbers(record["target"], names) for record in window], dtype=np.float64)
            for record, row, loss in zip(window, numbers, losses(true, numbers), strict=True):
                kept = {key: record[key] for key in ("id", "input", "target")}
                yield {**kept, "prediction": _answer(row, names), "loss": float(loss), "tokens": len(row)}

    return Baseline(key, name, about, predict)


def _numbers(value: Any, names: Sequence[str] | None) -> list[float]:
    return [value] if names is None else [value[name] for name in names]


def _answer(numbers: Array, names: Sequence[str] | None) -> Any:
    """Return numbers in the form of predictions.jsonl."""
    found = numbers.tolist()
    return found[0] if names is None else dict(zip(names, found, strict=True))
