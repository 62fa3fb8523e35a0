"""Translation with an encoder-decoder model: `src` in, `trg` out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from trainer.data.target_tokenizer import TARGET, target_of
from trainer.data.token_ids import decode_batch
from trainer.data.tokenizer_files import with_template
from trainer.errors import UsageError
from trainer.models import loss_groups
from trainer.recipe.sections import LossSection
from trainer.task.attention import attention_row
from trainer.task.base import IGNORED, SHOWN, Batch, Example, Record, Task, Texts
from trainer.tasks.pairs import Pairs, search_config

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from trainer.models.padding_free import Rows
    from trainer.recipe import Recipe


NOT_TIED = (
    "true shares one matrix between source and target, whose vocabularies are separate (tokenizer.train.shared=false); "
    "set model.tied_embeddings=target (target embedding and output projection are one matrix) or false"
)


class TranslationConfig(LossSection):
    """`task` section of a translation recipe."""

    kind: Literal["translation"] = "translation"
    src_language: str = Field("de", description="name of the source language, for reports")
    trg_language: str = Field(
        "en", description="name or tag of the target language, for reports and for how BLEU splits words (zh, ja, …)"
    )


def one_matrix(recipe: Recipe) -> bool:
    """Return whether source and target embedding are one matrix."""
    return getattr(recipe.model, "tied_embeddings", None) is True


def _rows_of(batch: Batch) -> tuple[Rows, Rows] | None:
    """Return source and target rows that are to be concatenated, or None."""
    from trainer.models.padding_free import Rows

    source, target = (Rows.of(batch, batch[name].shape[1], f"{name[:3]}_") for name in ("src", "trg_in"))
    return None if source is None or target is None else (source, target)


class Translation(Pairs, Task):
    """Teacher forcing: the decoder reads [BOS] y₁ … yₙ and its logits predict y₁ … yₙ [EOS]."""

    kind = "translation"
    config = TranslationConfig
    models = ("transformer",)
    exporter_path = "trainer.tasks.translation.export:TranslationExport"
    reporter_path = "trainer.tasks.translation.report:TranslationReport"
    suggester_path = "trainer.tasks.translation.suggest:suggest"
    labels_are_tokens = True
    separate_vocabularies = True
    padding_free = True
    r_drop = True
    inputs = ("src", "trg_in")

    @classmethod
    def problems(cls, recipe: Recipe) -> list[str]:
        training = recipe.tokenizer_training
        separate = training is not None and not training.shared
        return [f"model.tied_embeddings: {NOT_TIED}"] if separate and one_matrix(recipe) else []

    @property
    def bos_id(self) -> int:
        return int(self.tokenizer.bos_token_id)

    @property
    def eos_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    def encode(self, rows: Sequence[Texts]) -> list[Example]:
        """Encode `src` with [EOS], and `trg` without special tokens, which `collate` adds.

        A truncated target has data.max_length tokens, one more than a complete one. Its labels have no [EOS].
        """
        longest, ids = self.recipe.data.max_length, self.token_ids(rows)
        targets = ids.get("trg")
        return [
            {"src": [*src[: longest - 1], self.eos_id], "trg": targets[i][:longest] if targets else []}
            for i, src in enumerate(ids.get("src", ()))
        ]

    def cut_roles(self, sizes: Mapping[str, int]) -> list[str]:
        return [role for role, size in sizes.items() if size >= self.recipe.data.max_length]

    def closed(self, example: Example) -> list[int]:
        """Return the labels of an example: the target with [EOS], or a truncated target."""
        return example["trg"] if len(example["trg"]) >= self.recipe.data.max_length else [*example["trg"], self.eos_id]

    def length(self, example: Example) -> int:
        return max(len(example["src"]), len(self.closed(example)))

    def tokens(self, example: Example) -> int:
        return len(example["src"]) + len(self.closed(example))

    def collate(self, examples: Sequence[Example]) -> Batch:
        """src (B, S), trg_in (B, T) = [BOS] y₁ … yₙ, labels (B, T) = y₁ … yₙ [EOS]."""
        labels = [self.closed(e) for e in examples]
        return {
            "src": self.pad([e["src"] for e in examples], self.pad_id),
            "trg_in": self.pad([[self.bos_id, *ids[:-1]] for ids in labels], self.pad_id),
            "labels": self.pad(labels, IGNORED),
        }

    def training_batch(self, examples: Sequence[Example]) -> Batch:
        """Return `collate`. `unpadded` (B,) is added if no row of `src` has padding: see `Transformer.forward`."""
        import torch

        batch = super().training_batch(examples)
        if self.recipe.data.padding != "none" and not bool((batch["src"] == self.pad_id).any()):
            batch["unpadded"] = torch.ones(len(batch["src"]), dtype=torch.bool)
        return batch

    def token_marks(self, batch: Batch) -> Batch:
        return {"src_": batch["src"] != self.pad_id, "trg_": batch["labels"] != IGNORED}

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        rows = _rows_of(batch)
        if rows is None:
            return super().logits(model, batch)
        return rows[1].padded(model(batch["src"], batch["trg_in"], rows=rows))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        rows = _rows_of(batch)
        if rows is None:
            return super().loss(model, batch)
        if (groups := loss_groups.current()) is not None:
            groups.select(rows[1].places)
        return self.summed(model(batch["src"], batch["trg_in"], rows=rows), rows[1].flat(batch["labels"]))

    def build_model(self, trained: Path | None = None) -> nn.Module:
        from trainer.models.transformer import Transformer

        separate = target_of(self.tokenizer) is not self.tokenizer
        if separate and one_matrix(self.recipe):  # a tokenizer that the recipe names
            raise UsageError(f"tokenizer {self.recipe.tokenizer_name!r} has separate vocabularies: {NOT_TIED}")
        # a position more than the longest row needs: lengths are padded to a multiple
        positions = self.recipe.data.padded(self.recipe.data.max_length)
        sizes = len(self.tokenizer), self.pad_id, positions, len(self.tokenizer_of("trg"))
        return Transformer(self.recipe.model, *sizes)  # type: ignore[arg-type]

    @property
    def special_ids(self) -> dict[str, int | None]:
        return {**super().special_ids, "decoder_start_token_id": self.bos_id}

    def generation_config(self, model: nn.Module) -> dict[str, Any]:
        """Return the beam search of `predict`. Its limit for each row has no key: the longest of all is given."""
        banned = [token for token in (self.bos_id, self.pad_id) if token != self.eos_id]
        return {
            **self.special_ids, **search_config(self.recipe.evaluation), "suppress_tokens": banned,
            "max_new_tokens": self.recipe.data.max_length - 1, "forced_eos_token_id": self.eos_id,
        }  # fmt: skip

    def save_tokenizer(self, folder: Path, tokenizer: Any = None, side: str = "right") -> None:
        """Save the tokenizer with the [EOS] that `encode` puts at the end of a source, for stock transformers.

        That of targets is in the folder target/ with separate vocabularies.
        """
        end = str(self.tokenizer.eos_token)
        places = {self.tokenizer_of("trg"): folder / TARGET, self.tokenizer: folder}  # one if both are the same
        for own, place in places.items():
            super().save_tokenizer(place, with_template(own, f"$A {end}", {end: self.eos_id}), side)

    def predict(self, model: nn.Module, batch: Batch) -> list[Record]:
        from trainer.evaluation.decoding import beam_search

        settings, src = self.recipe.evaluation, batch["src"]
        lengths = (src != self.pad_id).sum(-1)
        limits = (lengths * settings.max_length_factor + 10).long().clamp(max=self.recipe.data.max_length - 1)
        found = beam_search(
            model,  # type: ignore[arg-type]
            src,
            bos_id=self.bos_id,
            eos_id=self.eos_id,
            pad_id=self.pad_id,
            beam_size=settings.beam_size,
            length_penalty=settings.length_penalty,
            max_length=limits.tolist(),
        )
        texts = decode_batch(self.tokenizer_of("trg"), [h.ids for h in found])
        return [{"prediction": text, "score": h.score} for text, h in zip(texts, found, strict=True)]

    def explain(self, model: nn.Module, records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return the cross-attention of each generated token, and gradient × input of the sentence."""
        import torch
        import torch.nn.functional as F

        from trainer.models.explain import gradient_x_input, recording

        rows = []
        for record in records:
            example = self.encode([{"src": record["input"], "trg": record["prediction"]}])[0]
            batch = self.collate([example])
            labels = batch["labels"]

            def likelihood(batch: Batch = batch, labels: Any = labels) -> Any:
                logits = self.logits(model, batch).flatten(0, 1)
                return -F.cross_entropy(logits, labels.flatten(), ignore_index=IGNORED, reduction="sum")

            with recording() as seen, torch.no_grad():
                self.logits(model, batch)
            crossing = [w[0] for cross, w in seen if cross]
            if not crossing:
                return []
            source, target = example["src"][:-1][:SHOWN], example["trg"][:SHOWN]
            weights = torch.stack(crossing)[:, :, : len(target), : len(source)]  # the query of y₁ is [BOS]
            embedding: Any = model
            relevance = gradient_x_input(embedding.get_input_embeddings(), likelihood)[0, : len(source)]
            tokens = self.tokenizer_of("trg").convert_ids_to_tokens(target)
            keys = self.tokenizer.convert_ids_to_tokens(source)
            rows.append(attention_row(record, tokens, keys, weights, relevance))
        return rows
