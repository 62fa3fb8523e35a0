"""Attention and relevance of a few texts, for attention.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from trainer.models.explain import gradient_x_input, recording
from trainer.models.fast_attention import use_attention
from trainer.task.attention import attention_row
from trainer.task.base import SHOWN


def explained_rows(task: Any, model: nn.Module, records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each record; none for a model whose attention cannot be recorded."""
    if hasattr(model, "set_attn_implementation"):  # a model of rankzero always records its weights
        use_attention(model, "rankzero")
    rows = []
    for record in records:
        example = next(task.pieces(task.encode([{"text": record["input"]}])[0]))
        batch = task.collate([example])
        with recording() as seen, torch.no_grad():
            task.logits(model, batch)
        if not seen:
            return []
        embedding: Any = model
        score = partial(lambda batch: -task.loss(model, batch), batch)
        ids = example["input_ids"][1 : SHOWN + 1]  # the first one starts every text
        relevance = gradient_x_input(embedding.get_input_embeddings(), score)[0, 1 : len(ids) + 1]
        weights = torch.stack([w[0] for _, w in seen])[:, :, 1 : len(ids) + 1, 1 : len(ids) + 1]
        words = [task.text([token]) or str(task.tokenizer.convert_ids_to_tokens(token)) for token in ids]
        rows.append(attention_row({**record, "target": ""}, words, words, weights, relevance))
    return rows
