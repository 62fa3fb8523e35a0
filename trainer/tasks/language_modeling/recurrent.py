"""Causal language modeling with a memory: a lane serves consecutive segments of its text."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from trainer.task.base import Batch, Example
from trainer.tasks.language_modeling.causal import CausalLanguageModeling

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from trainer.recipe import Recipe
    from trainer.recipe.sections import DataConfig


def rows_of(data: DataConfig) -> int:
    """Return the segments of a micro-batch, which is the number of strips of a block."""
    most = [data.rows_per_batch, data.tokens_per_batch and data.tokens_per_batch // data.max_length]
    return max(1, min(rows for rows in most if rows is not None))


class RecurrentLanguageModeling(CausalLanguageModeling):
    """Transformer-XL (Dai et al. 2019): each segment also attends to earlier ones of its document by the memory.

    A block of a lane is one text, cut into as many strips as a micro-batch has rows. Micro-batch t holds segment t of
    every strip, so each row continues the same row of the micro-batch before. A strip starts at position 0, as a
    document does, since the text before it is not in the memory.
    """

    exporter_path = "trainer.tasks.language_modeling.export:RecurrentExport"
    padding_free = False
    r_drop = False

    @classmethod
    def problems(cls, recipe: Recipe) -> list[str]:
        model: Any = recipe.model
        task: Any = recipe.task
        data, found = recipe.data, []
        if not task.packing:
            found.append(
                "task.packing: model.kind transformer_xl needs true, so that texts continue in the next segment"
            )
        if model.memory and data.order != "sequential":
            found.append(
                f"data.order: {data.order} serves segments in any order, but model.memory={model.memory} holds the "
                "segments before; set data.order=sequential, or model.memory=0"
            )
        if data.max_length % data.pad_multiple:
            found.append(
                f"data.max_length: {data.max_length} is not a multiple of data.pad_multiple={data.pad_multiple}: "
                "padding would be between the segments; choose a multiple"
            )
        return found

    # -- rows to micro-batches -------------------------------------------------------------------------------------

    def pack(self, examples: Sequence[Example]) -> list[tuple[Example, list[int]]]:
        """Cut strips into segments of data.max_length tokens, in the order of micro-batches."""
        segments = super().pack(examples)
        if self.recipe.data.order == "shuffled":
            return segments
        strips = [range(*edges) for edges in pairwise(self._edges(len(segments)))]
        return [segments[strip[t]] for t in range(max(map(len, strips))) for strip in strips if t < len(strip)]

    def _edges(self, segments: int) -> list[int]:
        """Return the start of each strip of a block, and its end. The first strips may be longer by one."""
        rows = rows_of(self.recipe.data)
        short, longer = divmod(segments, rows)
        return [strip * short + min(strip, longer) for strip in range(rows + 1)]

    def stream_begin(self, at: int, total: int) -> int:
        size = self.recipe.data.max_length
        if self.recipe.data.order == "shuffled":
            return at
        edges = self._edges(-(-total // size))
        return edges[bisect_right(edges, at // size) - 1] * size

    # -- model -----------------------------------------------------------------------------------------------------

    def build_model(self, trained: Path | None = None) -> nn.Module:
        from trainer.models.transformer_xl import TransformerXL

        settings: Any = self.recipe.model
        return self.padded_for(TransformerXL(settings, len(self.tokenizer)))

    def check_model(self, model: nn.Module) -> None:
        """Check nothing: the mask of the own model keeps documents apart."""

    def memory(self, rows: int) -> Tensor | None:
        """Return an empty memory (rows, L, P, M) in fp32 with P = model.memory, or None if that is 0."""
        return self._blank(rows, self._length) if self._length else None

    @property
    def _length(self) -> int:
        settings: Any = self.recipe.model
        return int(settings.memory)

    def _blank(self, rows: int, length: int) -> Tensor:
        import torch

        settings: Any = self.recipe.model
        return torch.zeros(rows, *settings.past(length))

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return logits (B, W, V). Without `memory` in the batch there are no earlier segments."""
        return self._logits_and_memory(model, batch, 0)[0]

    def _logits_and_memory(self, model: nn.Module, batch: Batch, keep: int) -> tuple[Tensor, Tensor]:
        ids = batch["input_ids"]
        memory = batch["memory"] if "memory" in batch else self._blank(len(ids), 0).to(ids.device)
        return model(ids, batch["position_ids"], memory, keep)

    def loss_and_memory(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor | None]:
        logits, memory = self._logits_and_memory(model, batch, self._length)
        return self.summed(logits, batch["labels"]), memory if self._length else None

    # -- evaluation ------------------------------------------------------------------------------------------------

    def _in_pieces(self, model: nn.Module, batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
        """Compute each piece with the memory of the pieces before it, evaluation.memory positions at most."""
        carried: Batch = {}
        for _, piece in self._cut_batch(batch):
            logits, memory = self._logits_and_memory(model, {**piece, **carried}, self._evaluated)
            yield logits.float(), piece["labels"]
            carried = {"memory": memory}

    @property
    def _evaluated(self) -> int:
        chosen = self.recipe.evaluation.memory
        return self._length if chosen is None else chosen

    @property
    def room(self) -> int:
        return self.recipe.data.max_length + self._evaluated

    def writer(self, model: nn.Module) -> nn.Module:
        from trainer.models.writer import Writer

        inner: Any = model
        return Writer(inner, self._blank(1, 0))
