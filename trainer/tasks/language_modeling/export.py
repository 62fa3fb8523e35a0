"""Export language models: causal ones as a decoder graph with its cache, masked ones as weights only."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from trainer.errors import GateError
from trainer.export.artifact import Array, Artifact
from trainer.export.gates import fitting
from trainer.export.onnx import Axes, write_graph
from trainer.export.parity_checks import HUGE, TOLERANCE, Check, Comparison
from trainer.export.rows import Progress, Row, spread
from trainer.export.task_export import LabelProbabilities, TaskExport, log_sum_exp
from trainer.models.attention import MASKED
from trainer.task.base import IGNORED, PROMPT, Example, Record
from trainer.tasks.generation_export import Graph, add_candidates, compare_texts, layers, tensors, untie
from trainer.tasks.language_modeling.program import Generator

SINGLE = 4  # tokens that are fed to the decoder one by one, as in a search
TOGETHER = 16  # prompts in a batch


class LanguageModelExport(LabelProbabilities, TaskExport):
    @torch.no_grad()
    def answers(self, model: nn.Module, examples: Sequence[Example]) -> list[Record]:
        """Loss (nats, summed) and number of tokens of each row."""
        batch = self.task.collate(self.task.corrupt(examples))
        losses, counts, _ = self.task.assess(model, batch, predict=False)
        return [{"loss": loss, "tokens": n} for loss, n in zip(losses.tolist(), counts.tolist(), strict=True)]

    def compare(self, comparison: Comparison) -> tuple[dict[str, Check], list[Record]]:
        """Compare perplexities by their relative change: 20.2 is 1% more than 20."""
        c = comparison
        pairs = zip(c.rows, c.answers, strict=True)
        raw = [[answer["loss"], row.answer["loss"], row.answer["tokens"]] for row, answer in pairs]
        table = np.nan_to_num(raw, nan=HUGE, posinf=HUGE).tolist()
        theirs, ours, tokens = (math.fsum(column) for column in zip(*table, strict=True))
        change = _exp((theirs - ours) / tokens) - 1
        check = c.paired(
            (_exp(theirs / tokens), _exp(ours / tokens)),
            limit=c.limits.perplexity if c.exact else c.limits.int8_perplexity,
            table=table,
            difference=lambda sums: _exp(sums[0] / sums[2]) - _exp(sums[1] / sums[2]),
            loss=abs(change) if c.exact else change,
        )
        worst = c.worst_rows([abs(theirs - ours) / tokens for theirs, ours, tokens in table])
        return {"perplexity": check | {"change": change}}, worst


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))


class MaskedExport(LanguageModelExport):
    no_graphs = (
        "a masked language model is where others begin (model.init_from): what is fine-tuned from it is exported"
    )

    auto_class = "AutoModelForMaskedLM"

    def stock_labels(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Return masked ids, and the original tokens as labels of the masked places."""
        masked = self.task.corrupt(examples)
        labels = [[IGNORED] * len(example["input_ids"]) for example in masked]
        for row, example in zip(labels, masked, strict=True):
            for place, answer in zip(example["places"], example["answers"], strict=True):
                row[place] = answer
        return {"input_ids": [example["input_ids"] for example in masked], "labels": labels}

    def unpadded(self, logits: Array, examples: Sequence[Example]) -> list[Array]:
        """(N, V) of the N masked tokens of each example"""
        return np.split(logits, np.cumsum([len(example["places"]) for example in examples])[:-1])


class GeneratorGraph(Graph):
    """The decoder of a causal language model: T new tokens of R rows, P tokens of each in the cache.

    input_ids, position_ids (R, T), attention_mask (R, P + T), 1 = token, and wanted (W), all int64: the places among
    the T whose logits are returned; past: keys and values (R, H, P, D) of each layer in turn.
    Outputs: logits (R, W, V), keys and values (R, H, P + T, D), and those of `add_candidates`.
    """

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, wanted: Tensor, past: list[Tensor]
    ) -> tuple[Tensor, ...]:
        new, length = input_ids.shape[1], attention_mask.shape[1]
        # computed here: as large as onnxruntime's Attention operator requires, and the same for any architecture
        earlier = torch.arange(length) <= torch.arange(new)[:, None] + (length - new)
        seen = (earlier[None, None] & (attention_mask[:, None, None, :] != 0)).expand(-1, 1, -1, -1)
        output = self.model(
            input_ids=input_ids,
            attention_mask=torch.where(seen, 0.0, MASKED),
            position_ids=position_ids,
            past_key_values=DynamicCache(layers(past)),
            use_cache=True,
            logits_to_keep=wanted,
        )
        return (output.logits, *tensors(output.past_key_values))


class CausalExport(LanguageModelExport):
    """Documents are compared in the pieces of their evaluation, and some of them by their continuation, too."""

    program: ClassVar[type[Artifact] | None] = Generator
    program_name = "generation"
    beams = (1,)
    baseline = "the library's attention"  # new tokens follow the text where padding would be
    auto_class = "AutoModelForCausalLM"

    # -- the artifact --------------------------------------------------------------------------------------------------

    def write_graphs(self, model: Any, folder: Path) -> None:
        untie(model)
        token = torch.ones(1, 1, dtype=torch.int64)
        cache = getattr(model(input_ids=token, use_cache=True), "past_key_values", None)
        cached = list(getattr(cache, "layers", ()))
        if not cached or any(getattr(layer, "keys", None) is None for layer in cached):
            raise GateError(f"{type(model).__name__} keeps no keys and values of its layers")
        names = [f"{kind}_{i}" for i in range(len(cached)) for kind in ("key", "value")]
        rows, new, before = 3, 4, 5
        past = [torch.zeros(rows, t.shape[1], before, t.shape[3]) for t in tensors(cache)]
        positions = torch.arange(before, before + new).expand(rows, -1).contiguous()
        inputs = (token.expand(rows, new).contiguous(), torch.ones(rows, before + new, dtype=torch.int64), positions)
        axes: Axes = {0: "batch", 1: "new"}
        write_graph(
            GeneratorGraph(model),
            (*inputs, torch.tensor([1, 3]), past),
            folder / "decoder.onnx",
            ["input_ids", "attention_mask", "position_ids", "wanted", *names],
            ["logits", *(f"new_{name}" for name in names)],
            (axes, {0: "batch", 1: "all"}, axes, {0: "wanted"}, [{0: "batch", 2: "past"} for _ in names]),
        )
        add_candidates(folder / "decoder.onnx", self.task.end_id)

    def settings(self, model: Any) -> dict[str, Any]:
        return {
            "left": True,
            "start_id": self.task.start_id,
            "eos_id": self.task.end_id,
            "new_tokens": self._search.new_tokens,
            "search": "greedy",
        }

    @property
    def _search(self) -> Any:
        """The recipe's generation settings with greedy search, and room for at least one token of the prompt."""
        settings, longest = self.task.recipe.evaluation.generation, self.task.recipe.data.max_length
        return settings.greedy(new_tokens=max(1, min(settings.new_tokens, longest - 1)))

    def evaluation(self, beam: int) -> Any:
        return super().evaluation(beam).model_copy(update={"generation": self._search})

    # -- logits --------------------------------------------------------------------------------------------------------

    def compared(self, example: Example) -> Example:
        return next(self.task.pieces(example))

    def logit_count(self, example: Example) -> int:
        return len(self.task.tokenizer) * self.task.length(self.compared(example))

    def unpadded(self, logits: Array, examples: Sequence[Example]) -> list[Array]:
        """(T, V) along each text"""
        return [row[: len(example["labels"])] for row, example in zip(logits, examples, strict=True)]

    def artifact_logits(self, artifact: Any, examples: Sequence[Example]) -> list[Array]:
        return _forced(artifact, [self.compared(example)["input_ids"] for example in examples])

    def extra_checks(self, artifact: Any, rows: Sequence[Row]) -> dict[str, Callable[[], Check]]:
        def chosen() -> Check:
            """The search takes the token that the logits, which are compared, prefer."""
            continued = [row.example for row in rows if "prediction" in row.answer]
            largest = max(_choice_gap(artifact, [self.prompt(example)]) for example in continued)
            return {"passed": largest <= TOLERANCE, "largest_difference": largest, "limit": TOLERANCE}

        return {"chosen": chosen}

    # -- model/ in stock libraries -------------------------------------------------------------------------------------

    def stock_labels(self, examples: Sequence[Example]) -> dict[str, Any]:
        pieces = [self.compared(example) for example in examples]
        return {name: [piece[name] for piece in pieces] for name in ("input_ids", "labels")}

    def stock_reads(self, example: Example) -> bool:
        return len(example["input_ids"]) <= self.task.recipe.data.max_length

    def stock_limits(self, examples: Sequence[Example]) -> dict[int, int]:
        """Continue texts that `predict` does not cut, unless tokens are sampled."""
        settings, room = self.task.recipe.evaluation.generation, self.task.longest_input
        short = [i for i, example in enumerate(examples) if 1 < len(example["input_ids"]) <= room]
        return {} if settings.temperature else dict.fromkeys(short, settings.new_tokens)

    def stock_texts(self, model: nn.Module, examples: Sequence[Example]) -> list[str]:
        found = (self.task.predict(model, self.task.collate([example])) for example in examples)
        return [str(records[0]["prediction"]) for records in found]

    # -- answers -------------------------------------------------------------------------------------------------------

    def prompt(self, example: Example) -> list[int]:
        """The beginning of a document that is continued: at most half of it."""
        most = min(PROMPT, self.task.recipe.data.max_length - self._search.new_tokens)
        return example["input_ids"][: max(1, min(most, len(example["input_ids"]) // 2))]

    def more_answers(self, model: nn.Module, examples: Mapping[str, Example], progress: Progress) -> dict[str, Record]:
        """Continuations of documents of all lengths."""
        most = self.task.recipe.export.gates.prompts
        chosen: list[str] = spread(list(examples), lambda row_id: self.task.length(examples[row_id]), most)
        progress(f"continuing {len(chosen):,} texts")
        records: list[Record] = []
        for start in range(0, len(chosen), TOGETHER):
            prompts = [self.prompt(examples[row_id]) for row_id in chosen[start : start + TOGETHER]]
            records += self.task.written(model, prompts, self._search)
        return dict(zip(chosen, records, strict=True))

    def artifact_answers(self, artifact: Any, rows: Sequence[Row], progress: Progress) -> list[Record]:
        """Losses of all documents, and continuations of those that the weights have continued."""
        losses = self.losses(artifact, [row.example for row in rows], lambda done: progress(f"{done:,} pieces"))
        records: list[Record] = [{"loss": float(loss)} for loss in losses]
        continued = [i for i, row in enumerate(rows) if "prediction" in row.answer]
        progress(f"continuing {len(continued):,} texts")
        size = 1 if artifact.settings["one_by_one"] else TOGETHER
        for start in range(0, len(continued), size):
            batch = continued[start : start + size]
            answers = artifact.predict([(self.prompt(rows[i].example),) for i in batch])
            for i, answer in zip(batch, answers, strict=True):
                records[i] |= answer
        return records

    def losses(self, artifact: Any, examples: Sequence[Example], progress: Callable[[int], None]) -> Array:
        """Loss of each document, summed over its pieces; `progress` gets the number of finished pieces."""
        pieces = [(number, piece) for number, example in enumerate(examples) for piece in self.task.pieces(example)]
        losses, done = np.zeros(len(examples)), 0
        for batch in self._batches(artifact, [piece for _, piece in pieces]):
            texts = [pieces[i][1]["input_ids"] for i in batch]
            for i, logits in zip(batch, _forced(artifact, texts), strict=True):
                number, piece = pieces[i]
                each = log_sum_exp(logits) - logits[np.arange(len(logits)), piece["labels"]]
                losses[number] += float(each.astype(np.float64).sum())
            progress(done := done + len(batch))
        return losses

    def _batches(self, artifact: Any, pieces: Sequence[Example]) -> Iterator[Sequence[int]]:
        """Batches of pieces, by their indices, as run.py makes them; smaller ones for many logits."""
        for batch in artifact.batches([len(piece["labels"]) for piece in pieces], artifact.settings["one_by_one"]):
            while batch:
                part = fitting(batch, lambda i: len(self.task.tokenizer) * len(pieces[i]["labels"]))
                yield part
                batch = batch[len(part) :]

    def compare(self, comparison: Comparison) -> tuple[dict[str, Check], list[Record]]:
        checks, largest_losses = super().compare(comparison)
        identical, worst = compare_texts(comparison)
        return {"identical": identical, **checks}, worst if checks["perplexity"]["passed"] else largest_losses


class RecurrentExport(CausalExport):
    program = None
    no_graphs = "transformer_xl: its memory of the segments has no place in a graph of one call"


def _forced(artifact: Any, texts: Sequence[Sequence[int]]) -> list[Array]:
    """Logits (T, V) along each text, through the cache: half of it at once, then single tokens, then the rest."""
    tokens, mask, cache = artifact.start(texts)
    width = tokens.shape[1]
    half = max(1, width // 2)
    parts, begin = [], 0
    for end in dict.fromkeys([*range(half, min(half + SINGLE + 1, width)), width]):
        (logits,), cache = artifact.step(["logits"], tokens[:, begin:end], mask[:, :end], cache, last=False)
        parts.append(logits)
        begin = end
    return [row[width - len(text) :] for row, text in zip(np.concatenate(parts, 1), texts, strict=True)]


def _choice_gap(artifact: Any, texts: Sequence[Sequence[int]]) -> float:
    """How far the token that a search takes, and its log probability, are from the best logit."""
    tokens, mask, cache = artifact.start(texts)
    (logits, log_probs, ids), _ = artifact.step(["logits", "log_probs", "ids"], tokens, mask, cache, last=True)
    logits = logits[:, -1].astype(np.float64)
    best, taken = logits.max(-1), logits[np.arange(len(texts)), ids[:, -1, 0]]
    log_prob = best - log_sum_exp(logits)
    return float(max(np.abs(taken - best).max(), np.abs(log_probs[:, -1, 0] - log_prob).max()))
