"""Text to text with a model of the transformers library: `src` in, `trg` out, with a prefix that names the task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from trainer.sections import Section
from trainer.tasks.base import IGNORED, Batch, Example, Record, Roles, Task, Texts

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn


class TextToTextConfig(Section):
    """`task` section of a text-to-text recipe."""

    kind: Literal["text_to_text"] = "text_to_text"
    prefix: str = Field("", description="stands before every source, such as 'translate German to English: '")


class TextToText(Task):
    """Sequence to sequence as T5 (Raffel et al. 2020), BART and Marian do it: the decoder reads the target shifted by
    one, and the loss is the mean over the target's tokens, its end included.
    """

    kind = "text_to_text"
    config = TextToTextConfig
    models = ("pretrained",)
    inputs = ("input_ids", "labels")
    metrics: ClassVar[dict[str, str]] = {
        "loss": "min",
        "perplexity": "min",
        "bleu": "max",
        "chrf": "max",
        "ter": "min",
        "rouge1": "max",
        "rouge2": "max",
        "rougeL": "max",
    }
    toy_rows = (
        {"src": "Ein Hund läuft.", "trg": "A dog runs."},
        {"src": "Zwei Männer sitzen auf einer Bank.", "trg": "Two men are sitting on a bench."},
        {"src": "Das Kind spielt.", "trg": "The child plays."},
        {"src": "Eine Frau liest ein Buch im Park.", "trg": "A woman reads a book in the park."},
    )

    @classmethod
    def roles(cls, config: TextToTextConfig) -> Roles:
        return {"src": None, "trg": None}

    @property
    def settings(self) -> TextToTextConfig:
        config: Any = self.recipe.task
        return config

    def encode(self, rows: Sequence[Texts]) -> list[Example]:
        """`input_ids` of prefix and source, `labels` of the target (none without one), both with special tokens and cut
        to `data.max_length`, their end kept."""
        from trainer.data.tokenization import encode_batch

        sources = encode_batch(self.tokenizer, [self.settings.prefix + row["src"] for row in rows])
        targets = encode_batch(self.tokenizer, [row["trg"] for row in rows]) if rows and "trg" in rows[0] else None
        return [
            {"input_ids": self._whole(ids), "labels": self._whole(targets[i]) if targets else []}
            for i, ids in enumerate(sources)
        ]

    def _whole(self, ids: list[int]) -> list[int]:
        """As the model was pretrained: with the special tokens of its tokenizer. Ours, which also serve encoders, begin
        with one that a sequence-to-sequence model has no use for: then only the end is added."""
        longest = self.recipe.data.max_length
        if self.recipe.tokenizer_training is not None:
            return [*ids[: longest - 1], self.end_id]
        return self.layout.join([ids[: longest - self.layout.special]])[0]

    @property
    def end_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    def length(self, example: Example) -> int:
        return max(len(example["input_ids"]), len(example["labels"]))

    def tokens(self, example: Example) -> int:
        return len(example["input_ids"]) + len(example["labels"])

    def collate(self, examples: Sequence[Example]) -> Batch:
        """input_ids and attention_mask (B, S), labels (B, T)."""
        return {**self.pad_inputs(examples), "labels": self.pad([e["labels"] for e in examples], IGNORED)}

    def build_model(self, trained: Path | None = None) -> nn.Module:
        from trainer.models.language_models import build_seq2seq

        return build_seq2seq(self.recipe, self.tokenizer, trained)

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """(B, T, V)"""
        made: Any = model
        shifted = made.prepare_decoder_input_ids_from_labels(batch["labels"])
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        return made(**inputs, decoder_input_ids=shifted, use_cache=False).logits

    def predict(self, model: nn.Module, batch: Batch) -> list[Record]:
        """By beam search. The limit of the length is that of the longest source of the batch."""
        from trainer.evaluation.generation import write_targets

        settings = self.recipe.evaluation
        longest = int(batch["attention_mask"].sum(-1).max())
        limit = min(int(longest * settings.max_length_factor) + 10, self.recipe.data.max_length)
        found = write_targets(
            model, batch["input_ids"], batch["attention_mask"], limit=limit, beam_size=settings.beam_size,
            length_penalty=settings.length_penalty, end_id=self.end_id, pad_id=self.pad_id,
        )  # fmt: skip
        texts = self.tokenizer.batch_decode([ids for ids, _ in found], skip_special_tokens=True)
        return [{"prediction": text, "score": score} for text, (_, score) in zip(texts, found, strict=True)]

    def input_text(self, row: Texts) -> str:
        return row["src"]

    def target_text(self, row: Texts) -> str:
        return row["trg"]

    def score(self, records: Iterable[Mapping[str, Any]], resamples: int) -> dict[str, Any]:
        from trainer.evaluation.metrics import score_translation
        from trainer.evaluation.rouge import score_rouge

        found = list(records)
        return {**score_translation(found, resamples=resamples), **score_rouge(found, resamples)}
