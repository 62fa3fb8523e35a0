"""Cross-attention and relevance of a few rows, for attention.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.models.classifiers import reading_embedding
from trainer.models.explain import gradient_x_input
from trainer.models.fast_attention import use_attention
from trainer.task.attention import attention_row
from trainer.task.base import IGNORED, SHOWN, Batch


def explained_rows(task: Any, model: nn.Module, records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each record; none for a model that returns no cross-attention."""
    use_attention(model, "eager")  # the only attention that records its weights
    special, rows = task.wordless, []
    for record in records:
        example = task.encode([{"src": record["input"], "trg": record["prediction"]}])[0]
        batch = task.collate([example])

        def likelihood(batch: Batch = batch) -> Tensor:
            logits = task.logits(model, batch).flatten(0, 1)
            return -F.cross_entropy(logits, batch["labels"].flatten(), ignore_index=IGNORED, reduction="sum")

        with torch.no_grad():
            crossing = task.forward(model, batch, output_attentions=True).cross_attentions
        if not crossing:
            return []
        sides = example["labels"], example["input_ids"]
        said, read = ([i for i, token in enumerate(ids) if token not in special][:SHOWN] for ids in sides)
        tokens, keys = (
            task.tokenizer.convert_ids_to_tokens([ids[i] for i in kept])
            for ids, kept in zip(sides, (said, read), strict=True)
        )
        weights = torch.cat(crossing)[:, :, said][..., read]  # (L, H, said, read)
        relevance = gradient_x_input(reading_embedding(model), likelihood)[0, read]
        rows.append(attention_row(record, tokens, keys, weights, relevance))
    return rows
