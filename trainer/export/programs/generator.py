"""Lines of stdin to JSON lines: how each text goes on, by the ONNX graph in this folder.

    python run.py < texts.txt
    python run.py --batch < texts.txt    int8 in batches: faster, but a row's result then depends on its neighbours

Greedy: the likeliest token, again and again. Needs onnxruntime, tokenizers and numpy alone.
Shapes: R rows still gone on with, T new tokens of each, P tokens in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from trainer.export.programs.common import Array, Artifact


class Generator(Artifact):
    def encode(self, sides: Sequence[str]) -> tuple[list[int], ...]:
        return ([self.settings["start_id"], *self.ids(sides[0])],)

    @property
    def room(self) -> int:
        return self.settings["max_length"] - self.settings["new_tokens"]

    def truncated(self, line: str, example: tuple[list[int], ...]) -> bool:
        return len(example[0]) > self.room

    def predict(self, examples: Sequence[Any]) -> Iterator[dict[str, Any]]:
        """Of long texts the end is gone on with, so that the new tokens have positions, too."""
        for ids, score in self.search([ids[-self.room :] for (ids,) in examples]):
            yield {"prediction": self.tokenizer.decode(ids, skip_special_tokens=True), "score": score}

    def search(self, prompts: Sequence[Sequence[int]]) -> list[tuple[list[int], float]]:
        """The new ids of each row, and their mean log probability, that of the end of text counted."""
        end, rows = self.settings["eos_id"], np.arange(len(prompts))
        found: list[list[int]] = [[] for _ in prompts]
        gains: list[list[float]] = [[] for _ in prompts]
        tokens, mask, cache = self.start(prompts)
        for _ in range(self.settings["new_tokens"]):
            (log_probs, ids), cache = self.step(["log_probs", "ids"], tokens, mask, cache, last=True)
            for row, token, gain in zip(rows, ids.flatten().tolist(), log_probs.flatten().tolist(), strict=True):
                found[row].append(token)
                gains[row].append(gain)
            stay = ids[:, 0, 0] != end
            if not stay.any():
                break
            rows, tokens, mask = rows[stay], ids[stay, 0], np.pad(mask[stay], ((0, 0), (0, 1)), constant_values=1)
            cache = cache if stay.all() else {name: x[stay] for name, x in cache.items()}
        texts = [ids[:-1] if ids[-1] == end else ids for ids in found]
        return [(ids, sum(each) / len(each)) for ids, each in zip(texts, gains, strict=True)]

    def start(self, prompts: Sequence[Sequence[int]]) -> tuple[Array, Array, dict[str, Array]]:
        """Tokens and mask (R, T), whose padding is on the left, so that all rows end together; and an empty cache."""
        tokens, mask = self.pad(prompts, self.settings["pad_id"]), self.pad([[1] * len(ids) for ids in prompts], 0)
        shapes = {i.name: i.shape for i in self.sessions["decoder"].get_inputs() if len(i.shape) == 4}
        return tokens, mask, {name: np.zeros((len(prompts), s[1], 0, s[3]), np.float32) for name, s in shapes.items()}

    def step(
        self, outputs: Sequence[str], tokens: Array, mask: Array, cache: dict[str, Array], last: bool
    ) -> tuple[list[Array], dict[str, Array]]:
        """tokens (R, T), mask (R, P + T): what follows each of the T tokens, or the last of them."""
        length, names = tokens.shape[1], [*outputs, *(f"new_{name}" for name in cache)]
        feeds = {
            "input_ids": tokens,
            "attention_mask": mask,
            "position_ids": np.maximum(mask.cumsum(1) - 1, 0)[:, -length:],
            "wanted": np.arange(length)[-1:] if last else np.arange(length),
            "count": np.array([1]),
        }
        found = self.sessions["decoder"].run(names, {**feeds, **cache})
        return found[: len(outputs)], dict(zip(cache, found[len(outputs) :], strict=True))
