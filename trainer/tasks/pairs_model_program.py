"""Lines of stdin to JSON lines: the target text of each source text, by the model of CTranslate2 in this folder.

    python run.py < texts.txt
    python run.py < rows.jsonl           rows as JSON objects with the columns that settings.json names

Needs onnxruntime, tokenizers and numpy alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tokenizers

from trainer.tasks.pairs_reader import PairsReader

PATIENCE = 2.0  # hypotheses of a row that end the search, per beam: with 1 it stops before ours does


class ModelTranslator(PairsReader):
    """The search is that of CTranslate2, with our scores: a sum of log probabilities over length ** length_penalty."""

    def search(self, sources: Sequence[Sequence[int]]) -> list[tuple[list[int], float]]:
        """Rows with the same limit are searched together. A text that does not end before its limit ends there."""
        limits = self.limits(np.array([len(ids) for ids in sources])).tolist()
        found: dict[int, tuple[list[int], float]] = {}
        for limit in sorted(set(limits)):
            rows = [row for row, own in enumerate(limits) if own == limit]
            found |= zip(rows, self.search_up_to(limit, [sources[row] for row in rows]), strict=True)
        return [found[row] for row in range(len(sources))]

    def search_up_to(self, limit: int, sources: Sequence[Sequence[int]]) -> list[tuple[list[int], float]]:
        s = self.settings
        answers = self.sessions["model"].translate_batch(
            [tokens(self.tokenizer, ids) for ids in sources],
            beam_size=s["beam_size"],
            patience=PATIENCE,
            length_penalty=s["length_penalty"],
            max_decoding_length=limit,
            max_input_length=0,
            suppress_sequences=[[token] for token in tokens(self.target_tokenizer, s["banned"])],
            return_scores=True,
            return_end_token=True,  # it counts for the length
        )
        end, found = [s["eos_id"]], []
        for source, answer in zip(sources, answers, strict=True):
            ids: list[Any] = [self.target_tokenizer.token_to_id(token) for token in answer.hypotheses[0]]
            if ids[-1:] == end:
                found.append((ids[:-1], answer.scores[0]))
                continue
            ids = ids[: limit - 1]
            gains = self.log_probs([source], [ids + end])[0]
            found.append((ids, sum(gains) / len(gains) ** s["length_penalty"]))
        return found

    def log_probs(self, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log probabilities of the ids of each target. The library puts <eos> after a target."""
        eos = self.settings["eos_id"]
        texts = [list(ids[:-1] if ids[-1:] == [eos] else ids) for ids in targets]
        scored = self.sessions["model"].score_batch(
            [tokens(self.tokenizer, ids) for ids in sources],
            [tokens(self.target_tokenizer, ids) for ids in texts],
            max_input_length=0,
        )
        return [answer.log_probs[: len(ids)] for answer, ids in zip(scored, targets, strict=True)]


def tokens(tokenizer: tokenizers.Tokenizer, ids: Sequence[int]) -> list[Any]:
    return [tokenizer.id_to_token(i) for i in ids]
