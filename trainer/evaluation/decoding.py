"""Beam search with a PyTorch model that has a cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from trainer.evaluation.beam_search import BeamSearch, NumpyArray


class Decoder(Protocol):
    """A model that can be decoded, in eval mode; `Transformer` is one."""

    def encode(self, src: Tensor) -> Tensor:
        """src (R, S) int64 -> the memory of the source"""

    def start_decoding(self, memory: Tensor, src: Tensor) -> Any:
        """Return a cache with one hypothesis per row, no target, and the methods of `trainer.models.transformer.Cache`.

        Hypothesis k of K of row r has index r * K + k in it.
        """

    def decode_step(self, tokens: Tensor, cache: Any) -> Tensor:
        """The newest tokens (R*K, 1) int64 -> logits (R*K, V) of the next ones; the cache grows by one position."""


class Hypothesis(NamedTuple):
    """`ids` without <bos> and <eos>; `score`: the sum of log probabilities over length ** length_penalty."""

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
    """Return the best hypothesis of every row of src (B, S) int64, in order; a beam of 1 is greedy search.

    `max_length` bounds the target positions of a row, <eos> included (one number, or one per row). At the bound <eos>
    is forced. <bos> and <pad> are never chosen. Ties go to the better-ranked parent, then to the smaller token id. A
    row does not depend on its neighbours, up to rounding.
    """
    limits = np.broadcast_to(np.asarray(max_length), len(src))
    if beam_size < 1 or length_penalty < 0 or (limits < 1).any():
        raise ValueError(
            f"need beam_size >= 1, length_penalty >= 0, max_length >= 1: {beam_size, length_penalty, max_length}"
        )
    banned = [token for token in (bos_id, pad_id) if token != eos_id]  # a byte-level tokenizer has one for both ends
    search = _TorchSearch(model, src.device)
    search.settings = {"beam_size": beam_size, "length_penalty": length_penalty, "eos_id": eos_id}
    search.settings |= {"start_id": bos_id, "banned": banned}
    cache = model.start_decoding(model.encode(src), src)
    return [Hypothesis(*best) for best in search.search_rows({"row": np.arange(len(src))}, cache, limits)]


class _TorchSearch(BeamSearch):
    def __init__(self, model: Decoder, device: torch.device) -> None:
        self.model, self.device = model, device
        self.before: tuple[NumpyArray, int] | None = None  # rows of the step before, and their hypotheses

    def step(
        self, tokens: NumpyArray, parents: NumpyArray, fixed: dict[str, NumpyArray], cache: Any, count: int
    ) -> tuple[NumpyArray, NumpyArray, NumpyArray, Any]:
        rows, beams = fixed["row"], tokens.shape[1]
        if self.before is not None:
            rows_before, beams_before = self.before
            if len(rows) < len(rows_before):
                cache.select(self._tensor(np.flatnonzero(np.isin(rows_before, rows))))
            index = parents % beams_before + np.arange(len(rows))[:, None] * beams_before
            cache.reorder(self._tensor(index.flatten()))
        self.before = rows, beams
        logits = self.model.decode_step(self._tensor(tokens.reshape(-1, 1)), cache)
        log_probs = logits.float().log_softmax(-1)
        closing = log_probs[:, self.settings["eos_id"]]
        log_probs[:, self.settings["banned"]] = -torch.inf
        if self.settings["beam_size"] == 1:
            ids = log_probs.argmax(1, keepdim=True)  # ties: the first
        else:
            ids = log_probs.topk(min(count, log_probs.shape[1])).indices.sort().values
        best, order = log_probs.gather(1, ids).sort(descending=True, stable=True)  # ties: the smaller id
        arrays = [x.view(len(rows), beams, *x.shape[1:]).cpu().numpy() for x in (best, ids.gather(1, order), closing)]
        return (*arrays, cache)

    def _tensor(self, array: NumpyArray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)
