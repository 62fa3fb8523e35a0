"""Causal language modeling: predict every next token, and continue texts."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from trainer.data.token_ids import decode_batch
from trainer.data.tokenizer_files import with_template
from trainer.errors import UsageError
from trainer.task.base import IGNORED, PROMPT, Assessed, Batch, Example, Line, Record, Texts
from trainer.tasks.language_modeling.base import LanguageModeling

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from trainer.recipe.output_sections import GenerationConfig

SAMPLES = 6  # continued texts in a report
ISOLATED = 1e-3  # difference of a logit that shows that a document attends to the one before it


class CausalLanguageModeling(LanguageModeling):
    """Causal language modeling (Radford et al. 2019).

    The input of a document is [EOT] t₁ … tₙ, and its labels are t₁ … tₙ [EOT]. In training, documents are packed into
    sequences of data.max_length tokens; the last one of a block is shorter. Nothing is dropped: a document may continue
    in the next sequence, without its earlier tokens.
    """

    models = ("pretrained", "transformer_xl")
    exporter_path = "trainer.tasks.language_modeling.export:CausalExport"
    scores_words = True
    padding_free = True
    r_drop = True

    def encode(self, rows: Sequence[Texts]) -> list[Example]:
        """Encode complete documents of any length: `input_ids` [EOT] t₁ … tₙ and `labels` t₁ … tₙ [EOT]."""
        texts = self.token_ids(rows).get("text", [])
        return [{"input_ids": [self.start_id, *ids], "labels": [*ids, self.end_id]} for ids in texts]

    @property
    def longest_input(self) -> int:
        return self.room - self.recipe.evaluation.generation.new_tokens

    def truncated(self, line: Line, example: Example) -> bool:
        return len(example["input_ids"]) > self.longest_input

    def pack(self, examples: Sequence[Example]) -> list[tuple[Example, list[int]]]:
        """Concatenate documents and cut them every data.max_length tokens.

        `position_ids` restart at each document and sequence, or with cross_documents at each sequence only.
        """
        if not self.settings.packing:
            return [
                (piece, [] if later else [number])
                for number, example in enumerate(examples)
                for later, piece in enumerate(self.pieces(example))
            ]
        ids = [token for e in examples for token in e["input_ids"]]
        labels = [token for e in examples for token in e["labels"]]
        begins = [0]
        for e in examples:
            begins.append(begins[-1] + len(e["input_ids"]))
        size, made = self.recipe.data.max_length, []
        for at in range(0, len(ids), size):
            end = min(at + size, len(ids))
            begun = range(bisect_left(begins, at), bisect_left(begins, end))
            edges, before = [at, *(begins[n] for n in begun if begins[n] != at), end], self.stream_begin(at, len(ids))
            if self.settings.cross_documents:
                edges = [at, end]
            else:
                before = max(before, begins[bisect_right(begins, at) - 1])
            first = range(at - before, edges[1] - before)
            positions = [*first, *(p for a, b in pairwise(edges[1:]) for p in range(b - a))]
            made.append(({"input_ids": ids[at:end], "labels": labels[at:end], "position_ids": positions}, list(begun)))
        return made

    def stream_begin(self, at: int, total: int) -> int:
        """Return the first token of a block that the sequence at token `at` attends to."""
        return at

    def pieces(self, example: Example) -> Iterator[Example]:
        """Cut one document every data.max_length tokens."""
        size = self.recipe.data.max_length
        for at in range(0, len(example["input_ids"]), size):
            yield {name: ids[at : at + size] for name, ids in example.items()}

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Return input_ids, position_ids and labels, all (B, W).

        There is no mask: padding is after all tokens, and the positions separate the documents.
        """
        positions = [e.get("position_ids") or list(range(len(e["input_ids"]))) for e in examples]
        return {
            "input_ids": self.pad([e["input_ids"] for e in examples], self.pad_id),
            "position_ids": self.pad(positions, 0),
            "labels": self.pad([e["labels"] for e in examples], IGNORED),
        }

    def token_marks(self, batch: Batch) -> Batch:
        return {"": batch["labels"] != IGNORED}

    @property
    def several_documents(self) -> bool:
        """Whether documents share a sequence without seeing each other."""
        return self.settings.packing and not self.settings.cross_documents

    @property
    def start_id(self) -> int:
        """The first token of a document: the beginning of text, or the end of text if the tokenizer has no other."""
        own = self.tokenizer.bos_token_id
        return self.end_id if own is None else int(own)

    @property
    def end_id(self) -> int:
        """The token that ends a document.

        Raises:
            UsageError: the tokenizer has none.
        """
        if self.tokenizer.eos_token_id is None:
            raise UsageError(
                f"task.objective=causal: the tokenizer of model.name={getattr(self.recipe.model, 'title', None)!r} has "
                "no eos_token, so generation would never stop. An encoder such as BERT does not have it: choose a "
                "decoder such as GPT-2, or set task.objective=mlm"
            )
        return int(self.tokenizer.eos_token_id)

    def build_model(self, trained: Path | None = None) -> nn.Module:
        from trainer.models.language_models import build_causal

        return self.padded_for(build_causal(self.recipe, self.tokenizer, trained))

    def check_model(self, model: nn.Module) -> None:
        """Check that no token attends to later ones, nor to other documents."""
        from trainer.models.language_models import check_causal

        check_causal(model)
        if self.settings.packing and not self.settings.cross_documents:
            self._check_isolation(model)

    def generation_config(self, model: nn.Module) -> dict[str, Any]:
        """Return the settings with which `generate` continues a text as `predict` does."""
        settings = self.recipe.evaluation.generation
        sampled = {"temperature": settings.temperature, "top_k": settings.top_k, "top_p": settings.top_p}
        return {
            "bos_token_id": self.start_id, "eos_token_id": self.end_id, "pad_token_id": self.pad_id,
            "max_new_tokens": settings.new_tokens, "num_beams": settings.beam_size,
            "do_sample": settings.temperature > 0, **(sampled if settings.temperature else {}),
        }  # fmt: skip

    def save_tokenizer(self, folder: Path, tokenizer: Any = None, side: str = "right") -> None:
        """Save the tokenizer with the token that starts a document, and padding as `generate` of transformers needs."""
        start = str(self.tokenizer.convert_ids_to_tokens(self.start_id))
        tokenizer = with_template(tokenizer or self.tokenizer, f"{start} $A", {start: self.start_id})
        tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "left"
        super().save_tokenizer(folder, tokenizer, side)

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """(B, W, V)"""
        return model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits

    def _check_isolation(self, model: nn.Module) -> None:
        """Check that a document does not attend to the one before it. Some architectures ignore positions.

        Raises:
            UsageError: it attends to it.
        """
        import torch

        half = max(1, min(8, self.recipe.data.max_length // 2))
        documents = self.encode(self.toy_rows[1::-1])
        first, second = ({name: ids[:half] for name, ids in document.items()} for document in documents)
        packed = {name: first[name] + second[name] for name in first}
        positions = [*range(len(first["labels"])), *range(len(second["labels"]))]
        was_training = model.training
        with torch.no_grad():
            model.eval()
            device = model.get_input_embeddings().weight.device  # type: ignore[operator]

            def logits(row: dict[str, list[int]]) -> Tensor:
                return self.logits(model, {name: t.to(device) for name, t in self.collate([row]).items()})

            alone = logits(second)[0, : len(second["labels"])]
            both = logits({**packed, "position_ids": positions})
            beside = both[0, len(first["labels"]) : len(packed["labels"])]
        model.train(was_training)
        if (difference := float((alone - beside).abs().max())) > ISOLATED:
            raise UsageError(
                f"{type(model).__name__} does not keep documents in one sequence apart (a logit differs by "
                f"{difference:.2g}): set task.packing=false, or task.cross_documents=true to let them see each other"
            )

    # -- evaluation ------------------------------------------------------------------------------------------------

    def assess(self, model: nn.Module, batch: Batch, *, predict: bool) -> Assessed:
        """Compute the losses of complete documents, in pieces of data.max_length tokens as in training."""
        import torch
        import torch.nn.functional as F

        labels = batch["labels"]
        losses = torch.zeros(len(labels), device=labels.device)
        hits = torch.zeros(len(labels), dtype=torch.int64, device=labels.device)
        for logits, wanted in self._in_pieces(model, batch):
            each = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=IGNORED, reduction="none")
            losses += each.view_as(wanted).sum(-1)
            hits += (logits.argmax(-1) == wanted).sum(-1)
        records: list[Record] = [{"prediction": "", "correct": correct} for correct in hits.tolist()]
        return Assessed(losses, (labels != IGNORED).sum(-1), records)

    def _in_pieces(self, model: nn.Module, batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield fp32 logits and labels of the pieces of documents that may be longer than data.max_length."""
        for at, piece in self._cut_batch(batch):
            piece["position_ids"] = (piece["position_ids"] - at).clamp(min=0)
            yield self.logits(model, piece).float(), piece["labels"]

    def _cut_batch(self, batch: Batch) -> Iterator[tuple[int, Batch]]:
        """Yield the starts of pieces of data.max_length tokens, and the pieces, padded as in training."""
        from torch.nn.functional import pad

        size = self.recipe.data.max_length
        filled = {"input_ids": self.pad_id, "position_ids": 0, "labels": IGNORED}
        for at in range(0, int((batch["labels"] != IGNORED).sum(-1).max()), size):
            piece = {name: tensor[:, at : at + size] for name, tensor in batch.items()}
            lacking = self.padding.width(piece["labels"].shape[1]) - piece["labels"].shape[1]
            yield at, {name: pad(tensor, (0, lacking), value=filled[name]) for name, tensor in piece.items()}

    def predict(self, model: nn.Module, batch: Batch) -> list[Record]:
        """Return continuations of the batch, by `evaluation.generation`.

        `score` is the mean log-probability of the new tokens for greedy decoding and sampling, and that of the beam for
        beam search.
        """
        return self.written(model, self._prompts(batch), self.recipe.evaluation.generation)

    def written(self, model: nn.Module, prompts: Sequence[list[int]], settings: GenerationConfig) -> list[Record]:
        """Return the continuation of each prompt: `prediction` and its `score`."""
        from trainer.evaluation.generation import continue_texts

        found = continue_texts(self.writer(model), prompts, settings, self.end_id, self.pad_id)
        texts = decode_batch(self.tokenizer, [ids for ids, _ in found])
        return [{"prediction": text, "score": score} for text, (_, score) in zip(texts, found, strict=True)]

    def stream(self, model: nn.Module, batch: Batch) -> Iterator[str]:
        from trainer.evaluation.generation import stream_text

        settings = self.recipe.evaluation.generation
        return stream_text(self.writer(model), self._prompts(batch)[0], settings, self.tokenizer, self.end_id)

    def _prompts(self, batch: Batch) -> list[list[int]]:
        """Return token ids of the texts. Of long ones the end is kept, so that the new tokens have positions."""
        room = self.longest_input
        if room < 1:
            raise UsageError(
                f"evaluation.generation.new_tokens={self.recipe.evaluation.generation.new_tokens} leaves no room for a "
                f"text in {self.room} positions (data.max_length={self.recipe.data.max_length}): lower it"
            )
        lengths = (batch["labels"] != IGNORED).sum(-1).tolist()
        return [ids[:length][-room:] for ids, length in zip(batch["input_ids"].tolist(), lengths, strict=True)]

    @property
    def room(self) -> int:
        """The positions of a text and its continuation."""
        return self.recipe.data.max_length

    def writer(self, model: nn.Module) -> nn.Module:
        """Return the model for `generate` of the transformers library."""
        return model

    def continued(self, model: nn.Module, records: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
        """Return the first half of a few texts (PROMPT tokens at most), the greedy continuation and the reference."""
        settings = self.recipe.evaluation.generation
        most = min(PROMPT, self.room - settings.new_tokens)
        chosen = records[:: max(1, len(records) // SAMPLES)] if most > 0 else []
        texts = [(r, self.encode([{"text": r["input"]}])[0]["input_ids"]) for r in chosen]
        cut = [(r, ids, min(most, len(ids) // 2)) for r, ids in texts if len(ids) >= 4][:SAMPLES]
        if not cut:  # data.max_length has no room for new tokens, or all texts are too short
            return []
        found = self.written(model, [ids[:at] for _, ids, at in cut], settings.greedy())
        return [
            {
                "id": r["id"], "prompt": self.text(ids[:at]), "continuation": new["prediction"],
                "reference": self.text(ids[at : at + settings.new_tokens]),
            }
            for (r, ids, at), new in zip(cut, found, strict=True)
        ]  # fmt: skip

    def text(self, ids: list[int]) -> str:
        """Return the text of token ids."""
        return decode_batch(self.tokenizer, [ids])[0]

    def explain(self, model: nn.Module, records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return the attention of each token, and gradient × input of the likelihood of the text."""
        from trainer.tasks.language_modeling.explain import explained_rows

        return explained_rows(self, model, records)
