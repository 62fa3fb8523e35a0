"""Lines of stdin to JSON lines: the entities of each text, by the graph in this folder.

    python run.py < texts.txt            a line is a text, or a JSON list of tokens: ["Ada", "lives", "here"]
    python run.py < rows.jsonl           rows as JSON objects with the columns that settings.json names
    python run.py --batch < texts.txt    int8 in batches: faster, but a row's result then depends on its batch

Needs onnxruntime, tokenizers and numpy alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from trainer.data.cleaning import CLEANERS
from trainer.export.artifact import Array, Artifact
from trainer.tasks.token_classification.decoding import SpanReader, joined, windows, words_of


class EntityFinder(SpanReader, Artifact):
    def encode(self, sides: Sequence[str]) -> tuple[list[int], ...]:
        """Pieces, first pieces of words, begins and ends of words, characters, and whether the line has tokens."""
        tokens = self.tokens(sides[0])
        text, words = (sides[0], words_of(sides[0])) if tokens is None else joined(tokens)
        found = self.read(text, words, tokens is not None, self.clean, self.pieces)
        return tuple(found[name] for name in ("input_ids", "heads", "starts", "ends", "text", "tokens"))

    @staticmethod
    def tokens(line: str) -> list[str] | None:
        """The tokens of a line that is a JSON list of texts."""
        if not line.lstrip().startswith("["):
            return None
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            return None
        return value if all(isinstance(token, str) for token in value) else None

    def clean(self, word: str) -> str:
        for step in self.settings["word_cleaning"]:
            word = CLEANERS[step](word)
        return word

    def pieces(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        found = self.tokenizer.encode(text, add_special_tokens=False)
        return found.ids, found.offsets

    def truncated(self, line: str, example: tuple[list[int], ...]) -> bool:
        """Nothing is: a long text is read in windows."""
        return False

    def cut(self, ids: list[int]) -> tuple[list[list[int]], list[tuple[int, int]]]:
        """Windows over the pieces of a text, with special tokens, and the part of each that is decided in it."""
        sides = [side for _, side, _ in self.settings["layout"]]
        room, before = self.settings["max_length"] - len(sides) + 1, sides.index(0)
        cuts, parts = [], []
        for begin, end, first, last in windows(len(ids), room, self.settings["overlap"]):
            named = [[token] if side < 0 else ids[begin:end] for token, side, _ in self.settings["layout"]]
            cuts.append([token for tokens in named for token in tokens])
            parts.append((before + first - begin, before + last - begin))
        return cuts, parts

    def logits(self, cuts: Sequence[list[int]]) -> list[Array]:
        """(length, tags) of each window. One that alone is larger than a batch is a batch."""
        found: dict[int, Array] = {}
        for batch in self.batches([len(cut) for cut in cuts], False):
            feeds = {
                "input_ids": self.pad([cuts[i] for i in batch], self.settings["pad_id"]),
                "attention_mask": self.pad([[1] * len(cuts[i]) for i in batch], 0),
            }
            rows = self.sessions["model"].run(["logits"], {name: feeds[name] for name in self.settings["inputs"]})[0]
            for i, row in zip(batch, rows, strict=True):
                size = len(cuts[i])
                found[i] = row[len(row) - size :] if self.settings["left"] else row[:size]
        return [found[i] for i in range(len(cuts))]

    def predict(self, examples: Sequence[Any]) -> Iterator[dict[str, Any]]:
        cut = [self.cut(example[0]) for example in examples]
        logits = iter(self.logits([window for windows, _ in cut for window in windows]))
        for (_, heads, starts, ends, text, tokens), (_, parts) in zip(examples, cut, strict=True):
            rows = np.concatenate([next(logits)[begin:end] for begin, end in parts]).astype(np.float64)
            rows = rows[[head for head in heads if head >= 0]]
            exps = np.exp(rows - rows.max(1, keepdims=True, initial=0))
            shares = iter((exps / exps.sum(1, keepdims=True)).tolist())
            probabilities = [next(shares) if head >= 0 else [1.0] for head in heads]
            given, words = "".join(map(chr, text)), list(zip(starts, ends, strict=True))
            entities, tags = self.answer(probabilities, heads, words, given, self.settings["labels"])
            record = {"text": given, "entities": entities}
            yield {**record, "tags": tags} if tokens[0] else record
