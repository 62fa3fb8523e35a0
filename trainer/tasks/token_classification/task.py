"""Token classification: find entities in texts.

Rows are `tokens` with `tags`, or `text` with `spans` of characters. All rows become a text with words. The tag of a
word is predicted at its first piece. Rows longer than `data.max_length` are read in windows that overlap.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trainer.data.cleaning import cleaner
from trainer.data.paths import value_at
from trainer.data.roles import Roles
from trainer.errors import DataError
from trainer.models.hf_config import label_maps
from trainer.task.base import IGNORED, Assessed, Batch, Example, Line, Record, Row, Task, Texts
from trainer.tasks.token_classification.config import TokenClassificationConfig
from trainer.tasks.token_classification.decoding import SpanReader, windows
from trainer.tasks.token_classification.examples import piece_labels, read_row, text_of, true_entities
from trainer.tasks.token_classification.metric_specs import SPECS
from trainer.tasks.token_classification.roles import RawText, RawTokens, Spans, Tags

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from trainer.recipe import Recipe

INPUTS = ("input_ids", "attention_mask")  # of the model


class TokenClassification(Task):
    """A tag for each word. The loss of a step is divided by its labeled pieces.

    Two forms of examples exist. `encode` gives a whole row: `input_ids` of all pieces without special tokens, their
    `labels`, and the words. `pack` cuts it into windows for training: `input_ids` with special tokens, and `labels`.
    """

    kind = "token_classification"
    config = TokenClassificationConfig
    models = ("encoder", "pretrained")
    exporter_path = "trainer.tasks.token_classification.export:TokenClassificationExport"
    reporter_path = "trainer.tasks.token_classification.report:TokenClassificationReport"
    suggester_path = "trainer.tasks.token_classification.suggest:suggest"
    inputs = ("input_ids",)
    mask_optional = True
    padding_free = True
    r_drop = True
    metric_specs = SPECS
    cheap_metrics = ()
    toy_rows = (
        {
            "tokens": ["Ada", "Lovelace", "lived", "in", "London", "."],
            "tags": ["B-PER", "I-PER", "O", "O", "B-LOC", "O"],
        },
        {"tokens": ["It", "rains", "."], "tags": ["O", "O", "O"]},
        {"tokens": ["Paris"], "tags": ["B-LOC"]},
        {"tokens": ["Grace", "saw", "Ada", "there"], "tags": ["B-PER", "O", "B-PER", "O"]},
    )

    @classmethod
    def problems(cls, recipe: Recipe) -> list[str]:
        config: Any = recipe.task
        pooling, kind = (getattr(recipe.model, key, None) for key in ("pooling", "kind"))
        found = []
        if kind == "pretrained" and pooling != "auto":
            found.append(f"model.pooling={pooling}: every token is classified, so that nothing is pooled; leave it out")
        other: Any = {"tokens": "text", "text": "tokens"}[config.rows]
        roles, others = cls.roles(config), cls.roles(config.model_copy(update={"rows": other}))
        if known := sorted((recipe.data.columns.keys() - roles.keys()) & others.keys()):
            found.append(
                f"data.columns names {', '.join(known)}, but task.rows={config.rows} has the roles {', '.join(roles)}; "
                f"set task.rows={other}, or name these roles"
            )
        return found

    @classmethod
    def lacking(cls, recipe: Recipe, data: Mapping[str, Any]) -> str | None:
        """Return whether the validation rows have no entity, of which F1 needs one."""
        metric = recipe.loop.early_stopping.metric
        if metric == "loss" or "validation" not in data or data["validation"]["labels"]:
            return None
        return "no row of data.validation has an entity"

    @classmethod
    def roles(cls, config: TokenClassificationConfig) -> Roles:
        if config.rows == "text":
            return {"text": RawText(), "spans": Spans(config.labels)}
        return {"tokens": RawTokens(), "tags": Tags(config.labels, config.scheme == "iob1")}

    @property
    def settings(self) -> TokenClassificationConfig:
        config: Any = self.recipe.task
        return config

    # -- rows to examples ----------------------------------------------------------------------------------------------

    def encode(self, rows: Iterable[Row]) -> list[Example]:
        """Return whole rows: see `SpanReader.read`, and `labels`, one for each piece."""
        clean, examples = cleaner(self.recipe.data.cleaning), []
        for row in rows:
            example = read_row(row, self.tokenizer, clean)
            examples.append({**example, "labels": piece_labels(example, row, self.settings)})
        return examples

    def tokenized(self, row: Row) -> Texts:
        role = "tokens" if "tokens" in row else "text"
        return {role: text_of(row)[0]}

    def truncated(self, line: Line, example: Example) -> bool:
        """Nothing is truncated: a long text is read in windows."""
        return False

    def windows(self, example: Example) -> list[tuple[int, int, int, int]]:
        """Return the windows over a whole row, see `decoding.windows`."""
        room = self.recipe.data.max_length - self.layout.special
        return windows(len(example["input_ids"]), room, self.settings.overlap)

    def length(self, example: Example) -> int:
        """Return the width of a window, or the sum of the widths of all windows of a whole row."""
        if "heads" not in example:
            return len(example["input_ids"])
        return sum(end - begin + self.layout.special for begin, end, _, _ in self.windows(example))

    def pack(self, examples: Sequence[Example]) -> list[tuple[Example, list[int]]]:
        """Cut rows into windows. Each piece has its label in one of them, so that no label counts twice."""
        return [
            (window, [] if later else [number])
            for number, example in enumerate(examples)
            for later, window in enumerate(self._cut(example))
        ]

    def _cut(self, example: Example) -> list[Example]:
        before, after = self._sides
        return [
            {
                "input_ids": self.layout.join([example["input_ids"][begin:end]])[0],
                "labels": [IGNORED] * (before + first - begin)
                + example["labels"][first:last]
                + [IGNORED] * (end - last + after),
            }
            for begin, end, first, last in self.windows(example)
        ]

    @property
    def _sides(self) -> tuple[int, int]:
        """The numbers of special tokens before and after a text."""
        sides = [side for _, side, _ in self.layout.parts]
        before = sides.index(0)
        return before, len(sides) - before - 1

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Return input_ids, attention_mask (1 = token) and labels of S windows, all (S, W).

        For whole rows also `window_rows` (S,), the row of each window; for R rows of at most M words and C characters
        `places` (R, M), the first piece of each word in the flattened input_ids; `starts` and `ends` (R, M); `text`
        (R, C) and `tokens` (R,). -1 fills up.
        """
        import torch

        whole = "heads" in examples[0]
        cuts = [self._cut(example) if whole else [example] for example in examples]
        flat = [window for cut in cuts for window in cut]
        batch = {**self.pad_inputs(flat), "labels": self.pad([window["labels"] for window in flat], IGNORED)}
        if not whole:
            return batch
        columns = {name: [example[name] for example in examples] for name in ("starts", "ends", "text")}
        columns["places"] = self._places(examples, cuts, batch["input_ids"].shape[1])
        rows = [row for row, cut in enumerate(cuts) for _ in cut]
        return {
            **batch,
            "window_rows": torch.tensor(rows, dtype=torch.int64),
            "tokens": torch.tensor([example["tokens"][0] for example in examples], dtype=torch.int64),
            **{name: _filled(lists) for name, lists in columns.items()},
        }

    def _places(self, examples: Sequence[Example], cuts: Sequence[Sequence[Example]], width: int) -> list[list[int]]:
        """Return the place of the first piece of each word in the flattened (S, W) input_ids."""
        places, begun = [], 0
        for example, cut in zip(examples, cuts, strict=True):
            where = [-1]  # of no piece, and then of each piece
            for number, (begin, _, first, last) in enumerate(self.windows(example), start=begun):
                fill = width - len(cut[number - begun]["input_ids"]) if self.padding.left else 0
                start = number * width + fill + self._sides[0] - begin
                where += range(start + first, start + last)
            places.append([where[head + 1] for head in example["heads"]])
            begun += len(cut)
        return places

    # -- model ---------------------------------------------------------------------------------------------------------

    def build_model(self, trained: Path | None = None) -> nn.Module:
        from trainer.tasks.token_classification.model import build_tagger

        return self.padded_for(build_tagger(self.recipe, self.tokenizer, self.settings.names, trained))

    def model_config(self, model: nn.Module) -> dict[str, Any]:
        """Return config.json with id2label and label2id."""
        return label_maps(self.settings.names) | super().model_config(model)

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return logits (S, W, tags)."""
        return super().logits(model, {name: batch[name] for name in INPUTS if name in batch})

    # -- evaluation ----------------------------------------------------------------------------------------------------

    def assess(self, model: nn.Module, batch: Batch, *, predict: bool) -> Assessed:
        """Compute losses and predictions with one forward."""
        import torch
        import torch.nn.functional as F

        logits, labels, rows = self.logits(model, batch).float(), batch["labels"], batch["window_rows"]
        each = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none")
        losses = torch.zeros(len(batch["starts"]), device=each.device)
        losses.index_add_(0, rows, each.view_as(labels).sum(-1))
        counts = torch.zeros(len(losses), dtype=torch.int64, device=rows.device)
        counts.index_add_(0, rows, (labels != IGNORED).sum(-1))
        return Assessed(losses, counts, self.records(logits, batch))

    def predict(self, model: nn.Module, batch: Batch) -> list[Record]:
        """Return the records of whole rows. The windows of a long text are read in several forwards."""
        import torch

        count, width = batch["input_ids"].shape
        size = max(1, self.recipe.evaluation.tokens_per_batch // max(1, width))
        parts = [{name: batch[name][at : at + size] for name in INPUTS} for at in range(0, count, size)]
        return self.records(torch.cat([self.logits(model, part) for part in parts]).float(), batch)

    def records(self, logits: Tensor, batch: Batch) -> list[Record]:
        """Return the records of whole rows from logits (S, W, tags).

        Probabilities are computed in float64, so that they sum to one and do not depend on the batch in fp32.
        """
        places, names, records = batch["places"], self.settings.names, []
        shares = logits.flatten(0, 1)[places.clamp(min=0)].double().softmax(-1).tolist()
        columns = [batch[name].tolist() for name in ("starts", "ends", "text", "tokens")]
        for row, heads, starts, ends, text, tokens in zip(shares, places.tolist(), *columns, strict=True):
            words = [(start, end) for start, end in zip(starts, ends, strict=True) if start >= 0]
            given = "".join(map(chr, (character for character in text if character >= 0)))
            entities, tags = SpanReader.answer(row[: len(words)], heads[: len(words)], words, given, names)
            bare = [{key: value for key, value in entity.items() if key != "score"} for entity in entities]
            record = {"prediction": bare, "text": given, "entities": entities}
            records.append({**record, "tags": tags} if tokens else record)
        return records

    def answer(self, record: Record) -> Record:
        return {key: value for key, value in record.items() if key != "prediction"}

    def row_of(self, line: str | Sequence[str]) -> Row:
        """Return the row of a text, or of a list of tokens: a list of texts, or a JSON list of texts as a line."""
        value: Any = line
        if isinstance(line, str) and line.lstrip().startswith("["):
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                value = line
        if not isinstance(value, str) and all(isinstance(token, str) for token in value):
            return {"tokens": list(value)}
        return {"text": line}

    def cleaned_row(self, line: Line) -> Row:
        """Return the row as given, because offsets are those of the given text. `encode` cleans words.

        Raises:
            DataError: a dict has neither a text nor a list of tokens.
        """
        if not isinstance(line, Mapping):
            return self.row_of(line)
        columns = [self.recipe.data.columns.get(role, role) for role in ("tokens", "text")]
        for column in columns:
            value = value_at(line, column)
            if isinstance(value, str) or (isinstance(value, list) and all(isinstance(each, str) for each in value)):
                return self.row_of(value)
        names = " or ".join(map(repr, columns))
        raise DataError(f"a row needs a text or a list of tokens in column {names}; columns here: {', '.join(line)}")

    def written_target(self, answer: Mapping[str, Any]) -> Any:
        return answer.get("tags")  # a line of text has no tags of tokens, and is left out

    def input_text(self, row: Row) -> str:
        return text_of(row)[0]

    def target_text(self, row: Row) -> Any:
        """Return the true entities."""
        return true_entities(row)

    def score(self, records: Iterable[Mapping[str, Any]], resamples: int) -> dict[str, Any]:
        from trainer.tasks.token_classification.metrics import score_entities

        return score_entities(records, self.settings.types, resamples=resamples)


def _filled(lists: Sequence[Sequence[int]]) -> Tensor:
    """Return lists of different lengths as one int64 tensor, with -1 at their ends."""
    import torch

    width = max(map(len, lists))
    return torch.tensor([[*one, *[-1] * (width - len(one))] for one in lists], dtype=torch.int64)
