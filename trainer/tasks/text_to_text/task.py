"""Text to text (Raffel et al. 2020): `src` in, `trg` out, with any encoder-decoder of the transformers library."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from trainer.data.token_ids import decode_batch, encode_batch
from trainer.errors import UsageError
from trainer.evaluation.predictions import ordered
from trainer.recipe.sections import LossSection, Positive
from trainer.task.base import IGNORED, Batch, Example, Record, Task, Texts
from trainer.task.metrics import Metric
from trainer.tasks.pairs import Pairs, search_config

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerFast

    from trainer.recipe import Recipe


SHARED = (("1", "Words"), ("2", "Pairs of words"), ("L", "Longest common subsequence of words"))
MEANING = "{} shared with the reference. Mean F1 of rows, without stemming."
ROUGE = [Metric(f"rouge{n}", "max", f"ROUGE-{n}", MEANING.format(what), scale=(0, 1)) for n, what in SHARED]


class TextToTextConfig(LossSection):
    """`task` section of a text-to-text recipe."""

    kind: Literal["text_to_text"] = "text_to_text"
    prefix: str = Field("", description='text before every source, such as "summarize: "; counts in data.max_length')
    max_target_length: Positive | None = Field(
        None, description="tokens of a target, special tokens included; longer targets are cut; null: data.max_length"
    )
    trg_language: str | None = Field(
        None, description="name or tag of the target language, for how BLEU splits words (zh, ja, …); null: at spaces"
    )


class TextToText(Pairs, Task):
    """Teacher forcing: the decoder reads its start token and y₁ … yₙ, and its logits predict y₁ … yₙ [EOS].

    Both sides have the special tokens that the tokenizer adds to a text ("A </s>" with T5's and Marian's,
    "<s> A </s>" with BART's), and end with exactly one [EOS], also a truncated source. A truncated target has none,
    because the text does not end there.
    """

    kind = "text_to_text"
    config = TextToTextConfig
    models = ("pretrained",)
    exporter_path = "trainer.tasks.text_to_text.export:TextToTextExport"
    reporter_path = "trainer.tasks.text_to_text.report:TextToTextReport"
    suggester_path = "trainer.tasks.text_to_text.suggest:suggest"
    labels_are_tokens = True
    r_drop = True
    inputs = ("input_ids", "labels")  # the decoder reads as many tokens as there are labels
    mask_optional = True
    metric_specs: ClassVar[tuple[Metric, ...]] = (*Pairs.metric_specs, *ROUGE)

    def __init__(
        self, recipe: Recipe, tokenizer: PreTrainedTokenizerFast, data: Mapping[str, Any] | None = None
    ) -> None:
        """
        Raises:
            UsageError: lengths that leave no room for a text, or a tokenizer that cannot end one.
        """
        super().__init__(recipe, tokenizer, data)
        self._check()

    def _check(self) -> None:
        longest, own = self.recipe.data.max_length, self.settings.max_target_length
        if self.tokenizer.eos_token_id is None:
            raise UsageError(
                f"task text_to_text: the tokenizer of model.name={getattr(self.recipe.model, 'title', None)!r} has no "
                "eos_token, so generation would never stop. An encoder such as BERT does not have it: choose an "
                "encoder-decoder (T5, BART, Marian)"
            )
        if hasattr(self.tokenizer, "src_lang"):
            raise UsageError(
                f"task text_to_text: {type(self.tokenizer).__name__} marks texts with codes of their languages, which "
                "this task does not set: choose a model without them (T5, BART)"
            )
        if own is not None and own > longest:
            raise UsageError(
                f"task.max_target_length={own} is more than data.max_length={longest}, which bounds a row: raise "
                "data.max_length or lower task.max_target_length"
            )
        if min(longest - len(self._prefix_ids), self.target_length) <= self._specials:
            raise UsageError(
                f"data.max_length={longest} leaves no room for a text: task.prefix={self.settings.prefix!r} has "
                f"{len(self._prefix_ids)} tokens and special ones take {self._specials}; raise data.max_length (and "
                f"task.max_target_length, which is {self.target_length})"
            )

    @property
    def settings(self) -> TextToTextConfig:
        config: Any = self.recipe.task
        return config

    @property
    def eos_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def target_length(self) -> int:
        """The most tokens of a target."""
        return self.settings.max_target_length or self.recipe.data.max_length

    # -- rows to micro-batches -------------------------------------------------------------------------------------

    @cached_property
    def _prefix_ids(self) -> list[int]:
        return encode_batch(self.tokenizer, [self.settings.prefix])[0]

    @property
    def prefix_length(self) -> int:
        """The tokens of the prefix."""
        return len(self._prefix_ids)

    @property
    def around(self) -> tuple[list[int], list[int]]:
        """The special tokens before and after a text."""
        text = next(i for i, (_, side, _) in enumerate(self.layout.parts) if side == 0)
        whole = self._whole([], self._specials)
        return whole[:text], whole[text:]

    @cached_property
    def _closed(self) -> bool:
        """Whether the tokenizer adds an end of text. That of GPT-2 does not."""
        return self.layout.join([[]])[0][-1:] == [self.eos_id]

    @property
    def _specials(self) -> int:
        return self.layout.special + (not self._closed)

    def _whole(self, ids: Sequence[int], longest: int) -> list[int]:
        """Add special tokens to ids, truncated to `longest` tokens."""
        whole, _ = self.layout.join([ids[: longest - self._specials]])
        return whole if self._closed else [*whole, self.eos_id]

    def encode(self, rows: Sequence[Texts]) -> list[Example]:
        """Return `input_ids` and `labels`, both with special tokens. A text without `trg` has no `labels`."""
        longest, ids = self.recipe.data.max_length, self.token_ids(rows)
        targets = ids.get("trg")
        return [
            {"input_ids": self._whole(src, longest), "labels": self._target(targets[i]) if targets else []}
            for i, src in enumerate(ids.get("src", ()))
        ]

    def _target(self, ids: Sequence[int]) -> list[int]:
        """Return the labels of a target. A truncated one has no end of text."""
        if len(ids) <= self.target_length - self._specials:
            return self._whole(ids, self.target_length)
        before, _ = self.around
        return [*before, *ids[: self.target_length - len(before)]]

    def tokenized(self, row: Texts) -> Texts:
        return {**row, "src": self.settings.prefix + row["src"]}

    def doubts(self, row: Texts) -> list[str]:
        prefix = self.settings.prefix.strip()
        if not prefix or not row["src"].startswith(prefix):
            return super().doubts(row)
        return [f"begin with task.prefix={prefix!r}, which is put before every source once more. Leave task.prefix out"]

    def cut_roles(self, sizes: Mapping[str, int]) -> list[str]:
        longest = {"src": self.recipe.data.max_length, "trg": self.target_length}
        return [role for role, size in sizes.items() if size > longest[role] - self._specials]

    def length(self, example: Example) -> int:
        return max(len(example["input_ids"]), len(example["labels"]))

    def tokens(self, example: Example) -> int:
        return len(example["input_ids"]) + len(example["labels"])

    def collate(self, examples: Sequence[Example]) -> Batch:
        """input_ids and attention_mask (B, S), labels (B, T)."""
        return {**self.pad_inputs(examples), "labels": self.pad([e["labels"] for e in examples], IGNORED)}

    # -- model -----------------------------------------------------------------------------------------------------

    def build_model(self, trained: Path | None = None) -> nn.Module:
        from trainer.models.language_models import build_seq2seq

        return self.padded_for(build_seq2seq(self.recipe, self.tokenizer, trained))

    def generation_config(self, model: nn.Module) -> dict[str, Any]:
        """Return the search of `predict`. Its limit for each row has no key: the longest of all is given."""
        facts: Any = model.config
        return {
            **search_config(self.recipe.evaluation), "decoder_start_token_id": facts.decoder_start_token_id,
            "eos_token_id": self.eos_id, "pad_token_id": self.pad_id, "forced_eos_token_id": self.eos_id,
            "max_new_tokens": self.target_length, "suppress_tokens": [self.pad_id] * (self.pad_id != self.eos_id),
        }  # fmt: skip

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """(B, T, V)"""
        return self.forward(model, batch).logits

    def forward(self, model: nn.Module, batch: Batch, **more: Any) -> Any:
        """Return what the model returns for a batch. `more`: its other options."""
        facts: Any = model.config
        return model(
            input_ids=batch["input_ids"],
            attention_mask=batch.get("attention_mask"),
            decoder_input_ids=shifted_right(batch["labels"], facts.decoder_start_token_id, self.pad_id),
            use_cache=False,
            **more,
        )

    # -- evaluation ------------------------------------------------------------------------------------------------

    def predict(self, model: nn.Module, batch: Batch) -> list[Record]:
        """Return the best beam. `score` is its log-probability divided by length ** evaluation.length_penalty."""
        from trainer.evaluation.generation import write_targets

        settings = self.recipe.evaluation
        lengths = batch["attention_mask"].sum(-1) - self.prefix_length
        limits = (lengths * settings.max_length_factor + 10).long().clamp(max=self.target_length)
        found = write_targets(
            model,
            batch["input_ids"],
            batch["attention_mask"],
            limits=limits,
            beam_size=settings.beam_size,
            length_penalty=settings.length_penalty,
            end_id=self.eos_id,
            pad_id=self.pad_id,
        )
        texts = decode_batch(self.tokenizer, [ids for ids, _ in found])
        return [{"prediction": text, "score": score} for text, (_, score) in zip(texts, found, strict=True)]

    def explain(self, model: nn.Module, records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return the cross-attention of each generated token, and gradient × input of the text."""
        from trainer.tasks.text_to_text.explain import explained_rows

        return explained_rows(self, model, records)

    def score(self, records: Iterable[Mapping[str, Any]], resamples: int) -> dict[str, Any]:
        from trainer.tasks.text_to_text.metrics import score_rouge

        found = ordered(records)
        return {**super().score(found, resamples), **score_rouge(found, resamples)}


def shifted_right(labels: Tensor, start: int, pad: int) -> Tensor:
    """Return the input of the decoder: labels (B, T) shifted right after `start`, with `pad` for ignored labels."""
    inputs = labels.roll(1, -1)
    inputs[:, 0] = start
    return inputs.masked_fill(inputs < 0, pad)
