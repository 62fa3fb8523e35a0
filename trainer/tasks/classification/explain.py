"""Attention and relevance of a few rows, for attention.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from trainer.models.explain import gradient_x_input, recording
from trainer.models.fast_attention import use_attention
from trainer.models.pooling import ends_with_summary
from trainer.task.attention import attention_row, rounded
from trainer.task.base import SHOWN, Batch


def explained_rows(task: Any, model: nn.Module, records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each record; none for a model whose attention cannot be recorded."""
    use_attention(getattr(model, "trunk", model), "rankzero")
    special, rows = task.wordless, []
    for record in records:
        example = task.encode([task.row_of(record["input"])])[0]
        batch = task.collate([example])
        with recording() as seen, torch.no_grad():
            task.logits(model, batch)
        if not seen:
            return []
        embedding: Any = model
        score = partial(_logit, task, model, batch, task.explained(record))
        relevance = gradient_x_input(embedding.get_input_embeddings(), score)[0]
        ids = example["input_ids"]
        kept = [i for i, token in enumerate(ids) if token not in special][:SHOWN]
        weights = torch.stack([w[0] for _, w in seen])  # (L, H, T, T), T with padding
        words = task.tokenizer.convert_ids_to_tokens([ids[i] for i in kept])
        last = ends_with_summary(getattr(model, "trunk", getattr(model, "base_model", model)))
        seen_by_cls = rounded(weights[:, :, len(ids) - 1 if last else 0][..., kept])
        among_kept = weights[:, :, kept][..., kept]
        rows.append({**attention_row(record, words, words, among_kept, relevance[kept]), "cls": seen_by_cls})
    return rows


def _logit(task: Any, model: nn.Module, batch: Batch, output: int) -> Tensor:
    logit: Tensor = task.logits(model, batch)[0, output]
    return logit
