"""How rows become micro-batches: texts to token ids, examples to padded tensors, and parts of them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from trainer.concatenation import described, is_description
from trainer.data.roles import Roles, Text
from trainer.data.target_tokenizer import target_of
from trainer.data.token_ids import Layout, encode_batch
from trainer.models.families import Padding
from trainer.models.hf_config import padding_id
from trainer.task.prediction_rows import Example, Line, PredictionRows, Row

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerFast

Texts = dict[str, str]
Batch = dict[str, "Tensor"]

IGNORED = -100  # a label that does not count
CORPORA = "corpora"  # (B,) int64 in a training batch of data.mix: the number of each row's corpus


def repeated(row: Row, roles: Roles, times: int) -> dict[str, Any]:
    """Return a row whose texts are repeated, and lists of labels with their tokens."""
    texts = {name for name, role in roles.items() if name in row and role.texts(row[name])}
    tokens = {len(row[name]) for name in texts if roles[name].is_list}
    found: dict[str, Any] = dict(row)
    for name, value in row.items():
        if isinstance(value, str):
            found[name] = " ".join([value] * times) if name in texts else value
        elif isinstance(value, list) and len(value) in tokens:
            found[name] = value * times
    return found


class MicroBatches(PredictionRows):
    """The part of a task that encodes rows, and makes micro-batches of them."""

    inputs: ClassVar[tuple[str, ...]]  # the token inputs in a batch, for counting padding
    padding_free: ClassVar[bool] = False  # supports data.padding=none
    mask_optional: ClassVar[bool] = False  # `logits` takes a batch without attention_mask: no row has padding
    toy_rows: ClassVar[tuple[Row, ...]]  # a few rows on which the contract test runs every task
    tokenizer: PreTrainedTokenizerFast
    padding: Padding

    @abstractmethod
    def encode(self, rows: Sequence[Row]) -> list[Example]:
        """Encode cleaned rows, truncated to `data.max_length` tokens with special tokens."""

    def tokenized(self, row: Row) -> Texts:
        """Return the texts of a cleaned row as they are tokenized, by role."""
        roles = self.roles(self.recipe.task)
        return {name: row[name] for name, role in roles.items() if name in row and isinstance(role, Text)}

    def doubts(self, row: Row) -> list[str]:
        """Return what is unusual about a cleaned row that can be trained on. A warning follows if most rows have it.

        Each is the end of a sentence that begins with "rows of data.train".
        """
        return []

    def token_ids(self, rows: Sequence[Row]) -> dict[str, list[list[int]]]:
        """Return the token ids of the texts of rows by role, not truncated and without special tokens."""
        texts = [self.tokenized(row) for row in rows]
        roles = texts[0] if texts else ()
        return {role: encode_batch(self.tokenizer_of(role), [text[role] for text in texts]) for role in roles}

    def tokenizer_of(self, role: str) -> PreTrainedTokenizerFast:
        """Return the tokenizer of the texts of a role. That of targets is another one with separate vocabularies."""
        found = self.roles(self.recipe.task).get(role)
        return target_of(self.tokenizer) if found is not None and found.target else self.tokenizer

    def cut_roles(self, sizes: Mapping[str, int]) -> list[str]:
        """Return the roles of a row that training truncates.

        Args:
            sizes: tokens of each text without special tokens. The roles may not shrink if a size grows.
        """
        return []

    @property
    def longest_input(self) -> int:
        """The most tokens, with special tokens, that `predict` reads of an input."""
        return self.recipe.data.max_length

    def truncated(self, line: Line, example: Example) -> bool:
        """Return whether `predict` truncates a line. `example`: the line, encoded by `encode_lines`."""
        if self.length(example) < self.longest_input:
            return False
        ids = self.token_ids([self.cleaned_row(line)])
        return bool(self.cut_roles({role: len(texts[0]) for role, texts in ids.items()}))

    def length(self, example: Example) -> int:
        """Return the width of an example in a micro-batch, in tokens."""
        return len(example["input_ids"])

    @abstractmethod
    def collate(self, examples: Sequence[Example]) -> Batch:
        """Return tensors with rows first, padded by `padding`, and `labels` aligned with the logits.

        Token ids, masks and class ids are int64; numbers that are predicted, and weights, are fp32.
        """

    def training_batch(self, examples: Sequence[Example]) -> Batch:
        """Return `collate` for a training step. A mask that hides nothing is left out: fast kernels take none.

        The loader does so on the host. Reading the mask on a device would wait for the device.
        """
        batch = self.collate(examples)
        if self.recipe.data.padding == "none":
            return self.marked(batch)
        if self.mask_optional and not self.padding.masked and bool(batch["attention_mask"].all()):
            del batch["attention_mask"]
        return batch

    def token_marks(self, batch: Batch) -> Batch:
        """Return marks (B, W), True = token, by the prefix of their names, for `data.padding=none`."""
        return {"": batch["attention_mask"] != 0}

    def marked(self, batch: Batch) -> Batch:
        """Return a padded batch with the places of its tokens, which are concatenated on the device."""
        return {**batch, **described(self.token_marks(batch))}

    def corrupt(self, examples: Sequence[Example], *draw: object) -> Sequence[Example]:
        """Draw masks for the examples of a micro-batch, before labels are counted. By default nothing is drawn.

        Args:
            draw: the key of the random numbers. Without a key (evaluation) the result is always the same.
        """
        return examples

    def tokens(self, example: Example) -> int:
        """Return the tokens of an example without padding."""
        return len(example["input_ids"])

    def pack(self, examples: Sequence[Example]) -> list[tuple[Example, list[int]]]:
        """Make the sequences of a block from its examples, in training only. By default each example is a sequence.

        Returns:
            Sequences, each with the numbers of the examples that start in it, so that every row is counted once.
        """
        return [(example, [number]) for number, example in enumerate(examples)]

    def split(self, batch: Batch, parts: int) -> list[Batch | None]:
        """Split a micro-batch that does not fit the memory into `parts`. Parts without rows are None."""
        if parts == 1:
            return [batch]
        padded = {name: tensor for name, tensor in batch.items() if not is_description(name)}
        found = self.split_rows(padded, parts)
        again = len(padded) < len(batch)
        return [self.marked(part) if again and part is not None else part for part in found]

    def split_rows(self, batch: Batch, parts: int) -> list[Batch | None]:
        """Split a padded micro-batch by its rows, for `split`."""
        pieces = {name: tensor.tensor_split(parts) for name, tensor in batch.items()}
        found = [{name: tensors[i] for name, tensors in pieces.items()} for i in range(parts)]
        return [part if len(next(iter(part.values()))) else None for part in found]

    def targets(self, batch: Batch) -> float:
        """Return the number of labels that are not ignored, which is added to the denominator of the step.

        If rows have weights, it is the sum of the weights of these labels.
        """
        return int((batch["labels"] != IGNORED).sum())

    def label_rows(self, batch: Batch) -> Tensor:
        """Return (N,) int64: the row of each label, in the order of the flattened labels."""
        labels = batch["labels"]
        return labels.new_ones(labels.shape).cumsum(0).sub(1).flatten()

    def targets_by_corpus(self, batch: Batch) -> list[float]:
        """Return `targets` of the rows of each corpus of `data.mix`."""
        labels = batch["labels"]
        corpora = batch[CORPORA][self.label_rows(batch)].view_as(labels)
        return [
            self.targets({**batch, "labels": labels.masked_fill(corpora != corpus, IGNORED)})
            for corpus in range(len(self.recipe.data.mix))
        ]

    def filler(self) -> Batch:
        """Return a row whose labels are all ignored, for a rank that has no micro-batch left in a step."""
        example, _ = self.pack(self.encode([self.toy_rows[0]]))[0]
        batch = self.training_batch([example])
        if (memory := self.memory(1)) is not None:
            batch["memory"] = memory
        return {**batch, "labels": batch["labels"].new_full(batch["labels"].shape, IGNORED)}

    def largest(self, lanes: int) -> Batch:
        """Return the largest micro-batch of so many lanes that the recipe allows, made of toy rows; 0 lanes: one row.

        Its rows are repeated texts of `data.max_length` tokens. Only the last one is short, so that there is a mask.
        """
        data = self.recipe.data
        toys = [self.toy_rows[0], repeated(self.toy_rows[0], self.roles(self.recipe.task), data.max_length)]
        short, long = (max((e for e, _ in self.pack(self.encode([row]))), key=self.length) for row in toys)
        by_tokens = data.tokens_per_batch and data.tokens_per_batch // self.padding.width(self.length(long))
        rows = max(1, lanes * max(1, min(n for n in (by_tokens, data.rows_per_batch) if n is not None)))
        batch = self.training_batch(self.corrupt([*[long] * (rows - 1), short if rows > 1 else long], 0))
        if (memory := self.memory(rows)) is not None:
            batch["memory"] = memory
        return batch

    def memory(self, rows: int) -> Tensor | None:
        """Return the `memory` (rows, …) of the first micro-batch of a lane, or None for a task without memory.

        Later micro-batches get what `loss_and_memory` returned for the one before.
        """
        return None

    @cached_property
    def layout(self) -> Layout:
        """The positions of the tokenizer's special tokens."""
        return Layout.of(self.tokenizer, pair="text_pair" in self.roles(self.recipe.task))

    @property
    def pad_id(self) -> int:
        """The token id that rows are padded with."""
        return padding_id(self.tokenizer)

    @property
    def wordless(self) -> set[int]:
        """Ids of special tokens that represent no text. [UNK] does, unless it is the end of text too, as in GPT-2."""
        own: Any = self.tokenizer
        ends = {own.bos_token_id, own.eos_token_id, own.cls_token_id, own.sep_token_id, own.pad_token_id}
        return set(own.all_special_ids) - ({own.unk_token_id} - ends)

    def pad(self, sequences: Sequence[Sequence[int]], value: int) -> Tensor:
        """Pad sequences to (B, W) int64. W is the width for the longest one, a multiple of `data.pad_multiple`."""
        import torch

        return torch.tensor(self.padding.rows(sequences, value), dtype=torch.int64)

    def pad_inputs(self, examples: Sequence[Example]) -> Batch:
        """Return input_ids and attention_mask (1 = token), both (B, W), of examples with one sequence."""
        return {
            "input_ids": self.pad([e["input_ids"] for e in examples], self.pad_id),
            "attention_mask": self.pad([[1] * len(e["input_ids"]) for e in examples], 0),
        }
