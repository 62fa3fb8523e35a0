"""Beam search over any model with a cache.

A score is a sum of log probabilities (nats) divided by length ** length_penalty, where the length counts the closing
<eos>, as in fairseq's sequence_generator.py (https://github.com/facebookresearch/fairseq): a penalty of 0 ranks by
probability, 1 by the mean per token. Also from there: of a row's 2K candidates in a step, those that are <eos> finish
a hypothesis only when they are among the best K, and the best K that go on are searched further.

Shapes: R rows still searched, K hypotheses of each, V vocabulary, t positions decided so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


class Cache(Protocol):
    """What a model remembers of R rows with K hypotheses each; hypothesis k of row r has index r * K + k."""

    def reorder(self, index: Tensor) -> None:
        """Hypothesis i continues what was hypothesis index[i]; index (R*K') int64, where K' may differ from K."""

    def select(self, rows: Tensor) -> None:
        """Keeps these rows only, with all their hypotheses; rows int64."""


class Decoder(Protocol):
    """What a model offers to be decoded; `Transformer` is one. Put it in eval() first."""

    def encode(self, src: Tensor) -> Tensor:
        """src (R, S) int64 -> the memory of the source."""

    def start_decoding(self, memory: Tensor, src: Tensor) -> Any:
        """A `Cache` with one hypothesis per row and no target."""

    def decode_step(self, tokens: Tensor, cache: Any) -> Tensor:
        """The newest tokens (R*K, 1) int64 -> logits (R*K, V) of the next ones; the cache grows by one position."""


@dataclass(frozen=True)
class Hypothesis:
    """`ids` stand without <bos> and <eos>; `score`: the sum of log probabilities over length ** length_penalty."""

    ids: list[int]
    score: float


@torch.no_grad()
def beam_search(
    model: Decoder,
    src: Tensor,
    *,
    bos_id: int,
    eos_id: int,
    pad_id: int,
    beam_size: int,
    length_penalty: float,
    max_length: int | Sequence[int],
) -> list[Hypothesis]:
    """The best hypothesis of every row of src (B, S) int64, in order; a beam of 1 is greedy search.

    `max_length` bounds the target positions of a row, <eos> included (one number, or one per row); at the bound <eos>
    is forced. <bos> and <pad> are never chosen. Of equal scores the better-ranked parent goes first, then the smaller
    token id. A row does not depend on its neighbours, up to rounding.
    """
    limits = torch.as_tensor(max_length, device=src.device).expand(src.shape[0])
    if beam_size < 1 or length_penalty < 0 or (limits < 1).any():
        raise ValueError(
            f"need beam_size >= 1, length_penalty >= 0, max_length >= 1: {beam_size, length_penalty, max_length}"
        )
    kind = _Greedy if beam_size == 1 else _Beam
    banned = [token for token in (bos_id, pad_id) if token != eos_id]  # a byte-level tokenizer has one for both ends
    search = kind(limits, beam_size, length_penalty, eos_id, banned)
    cache = model.start_decoding(model.encode(src), src)
    tokens = src.new_full((src.shape[0], 1), bos_id)
    while tokens.numel():
        tokens = search.advance(model.decode_step(tokens, cache), cache)
    return [hypothesis for _, hypothesis in sorted(search.results.items())]


class _Search:
    """The rows under way, one entry each in every tensor held here, and the results of those that have left."""

    def __init__(self, limits: Tensor, beam: int, alpha: float, eos: int, banned: list[int]) -> None:
        self.beam, self.alpha, self.eos, self.banned = beam, alpha, eos, banned
        self.results: dict[int, Hypothesis] = {}
        self.step = 0
        self.limits = limits
        self.rows = torch.arange(limits.shape[0], device=limits.device)  # their places in the batch as it was given
        self.scores = torch.zeros(limits.shape[0], 1, device=limits.device)  # (R, K) sums of log probabilities
        self.history = limits.new_zeros(limits.shape[0], 1, 0)  # (R, K, t)

    def allow(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """logits (R*K, V) -> (R, K, V) fp32 with what may not be chosen now at -inf, and their normalisers (R, K)."""
        logits = logits.float().view(*self.scores.shape, -1)
        normaliser = logits.logsumexp(-1)
        logits[..., self.banned] = -torch.inf
        last = self.limits == self.step
        if last.any():
            closing = logits[last][..., self.eos]
            logits[last] = -torch.inf
            logits[last, :, self.eos] = closing
        return logits, normaliser

    def leave(self, done: Tensor, ids: Tensor, scores: Tensor, cache: Cache) -> None:
        """Rows with done (R) True hand in their ids (R, t), cut at <eos>, and scores (R)."""
        for row, tokens, score in zip(self.rows[done].tolist(), ids[done].tolist(), scores[done].tolist(), strict=True):
            self.results[row] = Hypothesis(tokens[: tokens.index(self.eos)], score)
        stay = (~done).nonzero()[:, 0]
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value.index_select(0, stay))
        if stay.numel():
            cache.select(stay)


class _Greedy(_Search):
    def advance(self, logits: Tensor, cache: Cache) -> Tensor:
        self.step += 1
        logits, normaliser = self.allow(logits)
        value, token = logits.max(-1)  # (R, 1); the first of equals
        self.scores += value - normaliser
        self.history = torch.cat([self.history, token[..., None]], 2)
        done = token[:, 0] == self.eos
        if done.any():
            self.leave(done, self.history[:, 0], self.scores[:, 0] / self.step**self.alpha, cache)
        return self.history[:, 0, -1:]


class _Beam(_Search):
    def __init__(self, limits: Tensor, beam: int, alpha: float, eos: int, banned: list[int]) -> None:
        super().__init__(limits, beam, alpha, eos, banned)
        shape, device = (limits.shape[0], beam), limits.device
        self.kept = torch.full(shape, -torch.inf, device=device)  # the K best finished scores, best first
        self.best = torch.full((shape[0], int(limits.max())), eos, device=device)  # ids of the first of them

    def advance(self, logits: Tensor, cache: Cache) -> Tensor:
        self.step += 1
        scores, parent, token = self.candidates(*self.allow(logits))
        self.finish(scores[:, : self.beam], parent, token)
        scores, order = scores.masked_fill(token == self.eos, -torch.inf).sort(dim=1, descending=True, stable=True)
        self.scores, order = scores[:, : self.beam], order[:, : self.beam]
        parent, token = parent.gather(1, order), token.gather(1, order)
        offset = torch.arange(parent.shape[0], device=parent.device)[:, None] * self.history.shape[1]
        history = self.history.flatten(0, 1)[parent + offset]
        self.history = torch.cat([history, token[..., None]], 2)
        cache.reorder((parent + offset).flatten())
        # The best live score, as if it closed here at no cost. With a penalty it could still rise with the length, but
        # waiting for that found nothing better on Multi30k and took 1.6 times as long. NaN ends the search, too.
        reach = self.scores[:, 0] / self.step**self.alpha
        done = ~(reach > self.kept[:, -1])
        if done.any():
            self.leave(done, self.best, self.kept[:, 0], cache)
        return self.history[:, :, -1].flatten()[:, None]

    def candidates(self, logits: Tensor, normaliser: Tensor) -> tuple[Tensor, ...]:
        """The 2K best continuations of each row, best first: scores, parents (0 to K-1), tokens, all (R, 2K)."""
        scores = (logits + (self.scores - normaliser)[..., None]).flatten(1)
        scores, index = scores.topk(min(2 * self.beam, scores.shape[1]), dim=1)
        index, order = index.sort(dim=1)
        scores, order = scores.gather(1, order).sort(dim=1, descending=True, stable=True)
        index = index.gather(1, order)
        return scores, index // logits.shape[-1], index % logits.shape[-1]

    def finish(self, scores: Tensor, parent: Tensor, token: Tensor) -> None:
        """Enters those of the best K candidates (R, K) that end here among the finished."""
        k = scores.shape[1]
        closed = (scores / self.step**self.alpha).masked_fill(token[:, :k] != self.eos, -torch.inf)
        top, which = closed.max(1)
        better = (top > self.kept[:, 0]).nonzero()[:, 0]
        self.best[better, : self.step - 1] = self.history[better, parent[better, which[better]]]
        self.best[better, self.step - 1] = self.eos
        self.kept = torch.cat([self.kept, closed], 1).topk(self.beam, dim=1).values
