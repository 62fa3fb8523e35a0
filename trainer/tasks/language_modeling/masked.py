"""Masked language modeling: predict masked tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from trainer.data.counter_rng import key
from trainer.data.token_ids import decode_batch
from trainer.task.base import Assessed, Batch, Example, Record, Texts
from trainer.task.micro_batches import CORPORA
from trainer.tasks.language_modeling.base import LanguageModeling
from trainer.tasks.language_modeling.metric_specs import MASKED_SPECS

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn


class MaskedLanguageModeling(LanguageModeling):
    """Masked language modeling (Devlin et al. 2019).

    Of the selected tokens 80% are masked, 10% are replaced by random ones and 10% are kept. The loss is the mean over
    the selected tokens.
    """

    exporter_path = "trainer.tasks.language_modeling.export:MaskedExport"
    metric_specs = MASKED_SPECS
    mask_optional = True
    padding_free = True

    def encode(self, rows: Sequence[Texts]) -> list[Example]:
        """Return `input_ids` with special tokens, truncated to `data.max_length`."""
        room = self.recipe.data.max_length - self.layout.special
        return [{"input_ids": self.layout.join([ids[:room]])[0]} for ids in self.token_ids(rows).get("text", ())]

    def cut_roles(self, sizes: Mapping[str, int]) -> list[str]:
        return [role for role, size in sizes.items() if size > self.recipe.data.max_length - self.layout.special]

    def corrupt(self, examples: Sequence[Example], *draw: object) -> list[Example]:
        """Select tokens by the key `draw`: add `places`, their positions, and `answers`, the original tokens."""
        import numpy as np

        special, size = set(self.tokenizer.all_special_ids), len(self.tokenizer)
        mask = int(self.tokenizer.mask_token_id)
        made = []
        for number, example in enumerate(examples):
            # by its index in the micro-batch; in an evaluation, which has no key, by the text
            by = (self.recipe.seed, "mask", *draw, number) if draw else ("mask", *example["input_ids"])
            rng = np.random.Generator(np.random.Philox(key=key(*by)))
            ids = list(example["input_ids"])
            open_places = [i for i, token in enumerate(ids) if token not in special] or [0]
            asked = max(1, round(len(open_places) * self.settings.mask_share))
            places = sorted(rng.choice(open_places, asked, replace=False).tolist())
            answers = [ids[i] for i in places]
            for i, fate in zip(places, rng.random(asked), strict=True):
                ids[i] = mask if fate < 0.8 else int(rng.integers(size)) if fate < 0.9 else ids[i]
            made.append({"input_ids": ids, "places": places, "answers": answers})
        return made

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Return input_ids and attention_mask (B, W), and for N selected tokens `places` (N,) and `labels` (N,).

        `places` are positions in the flattened input_ids. In examples that `corrupt` has not changed, the mask tokens
        are selected.
        """
        import torch

        batch = self.pad_inputs(examples)
        width = batch["input_ids"].shape[1]
        mask = self.tokenizer.mask_token_id
        places: list[int] = []
        labels: list[int] = []
        for row, e in enumerate(examples):
            asked = e["places"] if "places" in e else [i for i, token in enumerate(e["input_ids"]) if token == mask]
            places += [row * width + i for i in asked]
            labels += e.get("answers", [int(mask)] * len(asked))
        return {
            **batch,
            "places": torch.tensor(places, dtype=torch.int64),
            "labels": torch.tensor(labels, dtype=torch.int64),
        }

    def label_rows(self, batch: Batch) -> Tensor:
        return batch["places"] // batch["input_ids"].shape[1]

    def split_rows(self, batch: Batch, parts: int) -> list[Batch | None]:
        """Split rows together with their selected tokens."""
        width = batch["input_ids"].shape[1]
        inputs = {name: tensor for name, tensor in batch.items() if name in ("input_ids", "attention_mask", CORPORA)}
        rows = super().split_rows(inputs, parts)
        found: list[Batch | None] = []
        begin = 0
        for part in rows:
            end = begin + (0 if part is None else len(part["input_ids"]) * width)
            here = (batch["places"] >= begin) & (batch["places"] < end)
            asked = {"places": batch["places"][here] - begin, "labels": batch["labels"][here]}
            found.append(None if part is None else {**part, **asked})
            begin = end
        return found

    def filler(self) -> Batch:
        import torch

        batch = self.training_batch(self.corrupt(self.encode([self.toy_rows[0]])))
        return {**batch, "labels": torch.full_like(batch["labels"], -100)}

    def build_model(self, trained: Path | None = None) -> nn.Module:
        from trainer.models.language_models import build_masked

        return self.padded_for(build_masked(self.recipe, self.tokenizer, trained))

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return logits (N, V) of the selected tokens only."""
        if hasattr(model, "trunk"):
            return model(batch["input_ids"], batch.get("attention_mask"), batch["places"])
        found = model(input_ids=batch["input_ids"], attention_mask=batch.get("attention_mask"))
        return found.logits.flatten(0, 1).index_select(0, batch["places"])

    # -- evaluation ------------------------------------------------------------------------------------------------

    def assess(self, model: nn.Module, batch: Batch, *, predict: bool) -> Assessed:
        import torch
        import torch.nn.functional as F

        logits, labels = self.logits(model, batch).float(), batch["labels"]
        rows, width = batch["input_ids"].shape
        row = batch["places"] // width
        each = F.cross_entropy(logits, labels, reduction="none")
        losses = torch.zeros(rows, device=each.device).index_add_(0, row, each)
        counts = torch.zeros(rows, dtype=torch.int64, device=row.device).index_add_(0, row, torch.ones_like(row))
        hits = torch.zeros_like(counts).index_add_(0, row, (logits.argmax(-1) == labels).long())
        records = [
            {**record, "correct": correct}
            for record, correct in zip(self._filled(logits, batch), hits.tolist(), strict=True)
        ]
        return Assessed(losses, counts, records)

    def predict(self, model: nn.Module, batch: Batch) -> list[Record]:
        return self._filled(self.logits(model, batch), batch)

    def _filled(self, logits: Tensor, batch: Batch) -> list[Record]:
        """Return the texts with the most probable token at each selected position."""
        ids = batch["input_ids"].flatten().index_copy(0, batch["places"], logits.argmax(-1))
        texts = decode_batch(self.tokenizer, ids.view_as(batch["input_ids"]))
        return [{"prediction": text} for text in texts]
