"""Lines of stdin to JSON lines: the continuation of each text, by the graph in this folder.

    python run.py < texts.txt
    python run.py < rows.jsonl           rows as JSON objects with the columns that settings.json names
    python run.py --batch < texts.txt    int8 in batches: faster, but a row's result then depends on its batch

Greedy search. Needs onnxruntime, tokenizers and numpy alone.
Shapes: R unfinished rows, T new tokens of each, P tokens in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from trainer.export.artifact import Array, Artifact


class Generator(Artifact):
    def encode(self, sides: Sequence[str]) -> tuple[list[int], ...]:
        return ([self.settings["start_id"], *self.ids(sides[0])],)

    @property
    def room(self) -> int:
        return self.settings["max_length"] - self.settings["new_tokens"]

    def truncated(self, line: str, example: tuple[list[int], ...]) -> bool:
        return len(example[0]) > self.room

    def predict(self, examples: Sequence[Any]) -> Iterator[dict[str, Any]]:
        """A long text keeps its end, so that the new tokens have positions."""
        for ids, score in self.search([ids[-self.room :] for (ids,) in examples]):
            yield {"prediction": self.tokenizer.decode(ids, skip_special_tokens=True), "score": score}

    def search(self, prompts: Sequence[Sequence[int]]) -> list[tuple[list[int], float]]:
        """The new ids of each row, and their mean log probability, the end of text included."""
        end, rows = self.settings["eos_id"], np.arange(len(prompts))
        texts: list[list[int]] = [[] for _ in prompts]
        gains: list[list[float]] = [[] for _ in prompts]
        tokens, mask, cache = self.start(prompts)
        for _ in range(self.settings["new_tokens"]):
            (log_probs, ids), cache = self.step(["log_probs", "ids"], tokens, mask, cache, last=True)
            for row, token, gain in zip(rows, ids.flatten().tolist(), log_probs.flatten().tolist(), strict=True):
                texts[row].append(token)
                gains[row].append(gain)
            stay = ids[:, 0, 0] != end
            if not stay.any():
                break
            rows, tokens, mask = rows[stay], ids[stay, 0], np.pad(mask[stay], ((0, 0), (0, 1)), constant_values=1)
            cache = cache if stay.all() else {name: x[stay] for name, x in cache.items()}
        return [
            (ids[:-1] if ids[-1] == end else ids, sum(each) / len(each)) for ids, each in zip(texts, gains, strict=True)
        ]

    def start(self, prompts: Sequence[Sequence[int]]) -> tuple[Array, Array, dict[str, Array]]:
        """Tokens and mask (R, T), padded on the left so that all rows end together, and an empty cache."""
        tokens, mask = self.pad(prompts, self.settings["pad_id"]), self.pad([[1] * len(ids) for ids in prompts], 0)
        shapes = {i.name: i.shape for i in self.sessions["decoder"].get_inputs() if len(i.shape) == 4}
        return tokens, mask, {name: np.zeros((len(prompts), s[1], 0, s[3]), np.float32) for name, s in shapes.items()}

    def step(
        self, outputs: Sequence[str], tokens: Array, mask: Array, cache: dict[str, Array], last: bool
    ) -> tuple[list[Array], dict[str, Array]]:
        """Run the decoder: tokens (R, T), mask (R, P + T). Outputs for each of the T tokens, or only the last."""
        length, names = tokens.shape[1], [*outputs, *(f"new_{name}" for name in cache)]
        feeds = {
            "input_ids": tokens,
            "attention_mask": mask,
            "position_ids": np.maximum(mask.cumsum(1) - 1, 0)[:, -length:],
            "wanted": np.arange(length)[-1:] if last else np.arange(length),
            "count": np.array([1]),
        }
        tensors = self.sessions["decoder"].run(names, {**feeds, **cache})
        return tensors[: len(outputs)], dict(zip(cache, tensors[len(outputs) :], strict=True))
