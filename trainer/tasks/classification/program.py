"""Lines of stdin to JSON lines: the class of each text, by the graph in this folder.

    python run.py < texts.txt            (a pair of texts: one line, a tab between them)
    python run.py < rows.jsonl           rows as JSON objects with the columns that settings.json names
    python run.py --batch < texts.txt    int8 in batches: faster, but a row's result then depends on its batch

Needs onnxruntime, tokenizers and numpy alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from trainer.export.artifact import Array, Artifact


class Classifier(Artifact):
    def sides(self, line: str) -> list[str]:
        if not self.settings["pair"]:
            return [line]
        first, tab, second = line.partition("\t")
        if not tab:
            raise ValueError("the line has no tab: two texts are needed, with a tab between them")
        return [first, second]

    def encode(self, sides: Sequence[str]) -> tuple[list[int], ...]:
        """Token ids and type ids. The longer text of a pair loses more."""
        texts, room = [self.ids(side) for side in sides], self.room
        if len(texts) == 2 and len(texts[0]) + len(texts[1]) > room:
            first = min(len(texts[0]), max(room // 2, room - len(texts[1])))
            texts = [self.cut(texts[0], first), self.cut(texts[1], room - first)]
        texts = [self.cut(ids, room) for ids in texts]
        parts = [([token] if side < 0 else texts[side], kind) for token, side, kind in self.settings["layout"]]
        return [i for ids, _ in parts for i in ids], [kind for ids, kind in parts for _ in ids]

    @property
    def room(self) -> int:
        return self.settings["max_length"] - sum(side < 0 for _, side, _ in self.settings["layout"])

    def cut(self, ids: list[int], room: int) -> list[int]:
        head = round(room * self.settings["head_share"])
        return ids if len(ids) <= room else ids[:head] + ids[len(ids) - (room - head) :]

    def feeds(self, examples: Sequence[Any]) -> dict[str, Array]:
        """Inputs of the graph."""
        feeds = {
            "input_ids": self.pad([ids for ids, _ in examples], self.settings["pad_id"]),
            "attention_mask": self.pad([[1] * len(ids) for ids, _ in examples], 0),
            "token_type_ids": self.pad([types for _, types in examples], 0),
        }
        return {name: feeds[name] for name in self.settings["inputs"]}

    def logits(self, examples: Sequence[Any]) -> Array:
        return self.sessions["model"].run(["logits"], self.feeds(examples))[0]

    def predict(self, examples: Sequence[Any]) -> Iterator[dict[str, Any]]:
        names, logits = self.settings["labels"], self.logits(examples).astype(np.float64)
        decision = self.settings.get("decision")  # one of two classes, and the probability from which it is given
        exps = np.exp(logits - logits.max(1, keepdims=True))
        for row in (exps / exps.sum(1, keepdims=True)).tolist():
            best = max(range(len(row)), key=row.__getitem__)
            if decision is not None:
                best = decision[0] if row[decision[0]] >= decision[1] else 1 - decision[0]
            yield {"label": names[best], "confidence": row[best], "probabilities": dict(zip(names, row, strict=True))}
