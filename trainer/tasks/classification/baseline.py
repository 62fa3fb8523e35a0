"""TF-IDF with logistic regression, and the frequencies of the classes: what a trained classifier has to beat.

The work is bounded by constants, so that the same rows give the same model. Only where SECONDS do not suffice, the
regression makes fewer iterations, and its numbers say so.
"""

from __future__ import annotations

import math
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import hstack
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from trainer.task.baseline import Baseline

if TYPE_CHECKING:
    from trainer.task.base import Row
    from trainer.tasks.classification.task import Classification

FEATURES = 50_000  # most words and word pairs, the most frequent ones
WEIGHTS = 2_000_000  # most features x classes: the optimizer keeps some twenty copies of them
CHARACTERS = 10_000  # of a text that are read
ITERATIONS, PROBE = 200, 5  # of the optimizer, and after how many the time for the others is known
SECONDS = 60.0  # for all of it
REGULARIZATION, TOLERANCE = 10.0, 1e-5  # C and tol of scikit-learn
SPACES = 0.05  # share of white space below which a script is taken to have no words
SMALLEST = 1e-12  # a probability of 0 for the truth counts as this one: the loss stays a number
WINDOW = 2_000  # rows that are predicted together
Array = np.ndarray[Any, Any]
Targets = Sequence[Sequence[str]]  # the classes of each row


class Late(Exception):
    """The time is over before the first model."""


def of_task(task: Classification, rows: Sequence[Row]) -> list[Baseline] | str:
    """Fit the baselines of a task, which has one or several labels per row."""
    several = task.settings.mode == "multi"
    targets = [task.target_text(row) if several else [task.target_text(row)] for row in rows]
    texts, names = list(map(task.input_text, rows)), task.settings.names
    return baselines(texts, targets, names, pair=task.settings.pair, several=several)


def baselines(
    texts: Sequence[str], targets: Targets, names: Sequence[str], *, pair: bool, several: bool, seconds: float = SECONDS
) -> list[Baseline] | str:
    """Fit the baselines to training rows. Return them, or why there are none.

    Args:
        texts: cleaned inputs as in predictions.jsonl: with `pair`, two texts with a tab between them.
        targets: the classes of each row; exactly one unless `several`.
        names: of all classes.
    """
    if len({name for row in targets for name in row}) < (1 if several else 2):
        return "its training rows are all of one class"
    frequent = _frequencies(targets, names, several)
    try:
        model = _Linear(texts, targets, names, pair, several, time.monotonic() + seconds)
    except Late:
        return f"its features alone took more than {seconds:g} seconds"
    except ValueError as error:  # no word in any text
        return f"no features: {error}"
    return [Baseline("tfidf_logistic_regression", "TF-IDF + logistic regression", model.about, model.predict), frequent]


def _frequencies(targets: Targets, names: Sequence[str], several: bool) -> Baseline:
    """The most frequent target every time, with the shares of the classes as probabilities."""
    counts, whole = Counter(name for row in targets for name in row), Counter(tuple(row) for row in targets)
    shares = np.array([counts[name] / len(targets) for name in names])
    answer = list(whole.most_common(1)[0][0])

    def predict(records: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        for record in records:
            yield _record(record, names, shares, answer if several else answer[0], several)

    about = {"answer": answer if several else answer[0], "rows": len(targets)}
    return Baseline("most_frequent", "Most frequent class of the training rows", about, predict)


class Features:
    """TF-IDF of words and word pairs, or of characters where white space does not separate words.

    Args:
        texts: with `pair`, two texts with a tab between them, whose features are side by side.
        columns: numbers that a model fits for each feature.
        end: time at which it gives up.

    Raises:
        ValueError: there is no word in any text.
    """

    def __init__(self, texts: Sequence[str], pair: bool, columns: int, end: float) -> None:
        self._pair = pair
        words = _has_words(texts)
        how: dict[str, Any] = {"analyzer": "char_wb", "ngram_range": (1, 3)}
        if words:
            how = {"token_pattern": r"(?u)\b\w+\b", "ngram_range": (1, 2)}
        most = max(1, min(FEATURES, WEIGHTS // ((2 if pair else 1) * columns)))
        self._vectorizer = TfidfVectorizer(sublinear_tf=True, max_features=most, dtype=np.float64, **how)
        self._vectorizer.fit(_until(end, (side for text in texts for side in self._sides(text))))
        self.table = self.of(texts)
        self.about = {
            "rows": len(texts),
            "features": self.table.shape[1],
            "analyzer": "words and word pairs" if words else "1 to 3 characters",
        }

    def _sides(self, text: str) -> list[str]:
        found = text.split("\t", 1) if self._pair else [text]
        return [side[:CHARACTERS] for side in (*found, *[""] * (len(found) < 2 and self._pair))]

    def of(self, texts: Sequence[str]) -> Any:
        """Return the features of texts as a sparse matrix."""
        sides = zip(*map(self._sides, texts), strict=True)
        return hstack([self._vectorizer.transform(side) for side in sides]).tocsr()


class _Linear:
    """One regression of all classes, or of several labels one of each."""

    def __init__(
        self, texts: Sequence[str], targets: Targets, names: Sequence[str], pair: bool, several: bool, end: float
    ) -> None:
        self.names, self.several = list(names), several
        self._features = Features(texts, pair, len(names), end)
        table = self._features.table
        self._models: list[Any] = []  # a number is the probability of all rows
        self._iterations, self._complete = 0, True
        if several:
            for number, name in enumerate(names):
                share = (end - time.monotonic()) / (len(names) - number)
                self._add(table, np.array([name in row for row in targets]), time.monotonic() + share, "balanced")
        else:
            self._add(table, np.array([names.index(row[0]) for row in targets]), end, None)
        self.about = {
            **self._features.about,
            "C": REGULARIZATION,
            "iterations": self._iterations,
            "converged": self._complete,
        }

    def _add(self, table: Any, target: Array, end: float, weight: str | None) -> None:
        """Fit a regression within the time; a label that all training rows have or lack is a constant."""
        classes = np.unique(target)
        if len(classes) == 1:
            self._models.append(float(classes[0]))
            return
        model = LogisticRegression(
            C=REGULARIZATION, class_weight=weight, tol=TOLERANCE, warm_start=True, max_iter=PROBE
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            began = time.monotonic()
            model.fit(table, target)
            made = int(model.n_iter_.max())
            each = max(1e-9, time.monotonic() - began) / max(1, made)
            left, converged = int(min(ITERATIONS, (end - time.monotonic()) / each)), made < PROBE
            if not converged and left > 0:
                model.set_params(max_iter=left).fit(table, target)
                made += int(model.n_iter_.max())
                converged = int(model.n_iter_.max()) < left
        self._iterations += made
        self._complete = self._complete and converged
        self._models.append(model)

    def _shares(self, texts: Sequence[str]) -> Array:
        """Return probabilities (rows, classes); 0 for a class without a training row."""
        table, shares = self._features.of(texts), np.zeros((len(texts), len(self.names)))
        for number, model in enumerate(self._models):
            if isinstance(model, float):
                shares[:, number] = model
            elif self.several:
                shares[:, number] = model.predict_proba(table)[:, 1]
            else:
                shares[:, model.classes_] = model.predict_proba(table)
        return shares

    def predict(self, records: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        rows = iter(records)
        while window := list(islice(rows, WINDOW)):
            for record, shares in zip(window, self._shares([record["input"] for record in window]), strict=True):
                if self.several:
                    answer: Any = [name for name, p in zip(self.names, shares, strict=True) if p >= 0.5]
                else:
                    answer = self.names[int(shares.argmax())]
                yield _record(record, self.names, shares, answer, self.several)


def _record(
    record: Mapping[str, Any], names: Sequence[str], shares: Array, answer: Any, several: bool
) -> dict[str, Any]:
    """Return a record of predictions.jsonl with another answer."""
    own = dict(zip(names, shares.tolist(), strict=True))
    true = set(record["target"]) if several else {record["target"]}
    right = [p if name in true else 1 - p for name, p in own.items() if several or name in true]
    loss = -math.fsum(math.log(max(p, SMALLEST)) for p in right)
    kept = {key: record[key] for key in ("id", "input", "target")}
    return {**kept, "prediction": answer, "probabilities": own, "loss": loss, "tokens": len(right)}


def _has_words(texts: Sequence[str]) -> bool:
    """Whether white space separates words, by the first texts."""
    text = "".join(text[:CHARACTERS] for text in texts[:1000])
    return sum(map(str.isspace, text)) >= SPACES * len(text)


def _until(end: float, texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        if time.monotonic() > end:
            raise Late
        yield text
