"""Beam search over any decoder, in numpy. PyTorch and the run.py of exported models share it.

A score is a sum of log probabilities (nats) over length ** length_penalty, <eos> included, as in fairseq's
sequence_generator.py (https://github.com/facebookresearch/fairseq): a penalty of 0 ranks by probability, 1 by the mean
per token. Also from there: a row has 2K candidates in a step. An <eos> among the best K finishes a hypothesis, and the
best K others are searched further.

Shapes: R unfinished rows, K hypotheses of each, C candidates of a hypothesis.
"""

from __future__ import annotations

from typing import Any

import numpy as np

NumpyArray = np.ndarray[Any, Any]


class BeamSearch:
    """Settings: beam_size (1 = greedy search), length_penalty, eos_id, start_id, banned (ids)."""

    settings: dict[str, Any]

    def step(
        self, tokens: NumpyArray, parents: NumpyArray, fixed: dict[str, NumpyArray], cache: Any, count: int
    ) -> tuple[NumpyArray, NumpyArray, NumpyArray, Any]:
        """Run the decoder for one position of R rows with K hypotheses.

        Args:
            tokens, parents: (R, K); hypothesis k of row r continues number parents[r, k] of the step before.
            fixed, cache: see `search_rows`.
            count: candidates of a hypothesis, or the whole vocabulary if that is less.

        Returns:
            Log probabilities and ids (R, K, C) of the most probable next tokens, best first, ties by the smaller id;
            the log probability (R, K) of <eos>; the grown cache. The arrays may be changed.
        """
        raise NotImplementedError

    def search_rows(
        self, fixed: dict[str, NumpyArray], cache: Any, limits: NumpyArray
    ) -> list[tuple[list[int], float]]:
        """Return ids, without <eos>, and score of the best hypothesis of each row.

        Args:
            fixed: inputs of the decoder with a line for each row, without the lines of finished rows later.
            cache: of R rows with one hypothesis and no target.
            limits: (R,) positions at most, <eos> included, which is forced there.
        """
        s, beam, eos, length = self.settings, self.settings["beam_size"], self.settings["eos_id"], 0
        rows: NumpyArray = np.arange(len(limits))
        best: list[tuple[list[int], float]] = [([], -np.inf)] * len(rows)
        kept: NumpyArray = np.full((len(rows), beam), -np.inf, np.float32)  # the K best finished scores, best first
        scores: NumpyArray = np.zeros((len(rows), 1), np.float32)
        history: NumpyArray = np.zeros((len(rows), 1, 0), np.int64)
        tokens, parents = np.full((len(rows), 1), s["start_id"]), rows[:, None]
        while len(rows):
            length += 1
            gains, ids, cache = self.candidates(tokens, parents, fixed, cache, length >= limits)
            width = ids.shape[2]
            gains, ids = (x.reshape(len(rows), -1) for x in (gains + scores[..., None], ids))
            order = np.argsort(-gains, 1, kind="stable")[:, : 2 * beam]  # ties: the first parent, the smaller id
            gains, ids, parent = take(gains, order), take(ids, order), order // width
            penalty = np.float32(length ** s["length_penalty"])

            closed = np.where(ids == eos, gains / penalty, -np.inf)[:, :beam]
            for r in np.flatnonzero(closed.max(1) > kept[:, 0]):
                best[rows[r]] = (history[r, parent[r, closed[r].argmax()]].tolist(), float(closed[r].max()))
            kept = -np.sort(-np.concatenate([kept, closed], 1), 1)[:, :beam]

            gains = np.where(ids == eos, -np.inf, gains)
            order = np.argsort(-gains, 1, kind="stable")[:, :beam]
            scores, ids, parent = take(gains, order), take(ids, order), take(parent, order)
            beams, every = history.shape[1], np.arange(len(rows))[:, None]
            history = np.concatenate([history[every, parent], ids[..., None]], 2)
            # The best live score, as if it closed here at no cost. With a penalty it could still rise, but waiting for
            # that found nothing better on Multi30k and took 1.6 times as long. NaN ends the search, too.
            stay = scores[:, 0] / penalty > kept[:, -1]
            tokens, parents = ids[stay], (parent + every * beams)[stay]
            rows, limits, kept, scores, history = (x[stay] for x in (rows, limits, kept, scores, history))
            fixed = fixed if stay.all() else {name: x[stay] for name, x in fixed.items()}
        return best

    def candidates(
        self,
        tokens: NumpyArray,
        parents: NumpyArray,
        fixed: dict[str, NumpyArray],
        cache: Any,
        last: NumpyArray,
    ) -> tuple[NumpyArray, NumpyArray, Any]:
        """Log probabilities and ids (R, K, C) of the best next tokens, only <eos> in rows with last (R); the cache."""
        banned = self.settings["banned"]
        count = 2 * self.settings["beam_size"] + len(banned)
        gains, ids, closing, cache = self.step(tokens, parents, fixed, cache, count)
        gains[np.isin(ids, banned)] = -np.inf
        gains[last], ids[last, :, 0], gains[last, :, 0] = -np.inf, self.settings["eos_id"], closing[last]
        return gains, ids, cache


def take(values: NumpyArray, order: NumpyArray) -> NumpyArray:
    return np.take_along_axis(values, order, 1)
