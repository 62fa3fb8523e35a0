"""Lines of stdin to JSON lines: the target text of each source text, by the model of CTranslate2 in this folder.

    python run.py < texts.txt
    python run.py < rows.jsonl           rows as JSON objects with the columns that settings.json names

Needs onnxruntime, tokenizers and numpy alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tokenizers

from trainer.tasks.pairs_reader import PairsReader

PATIENCE = 2.0  # hypotheses of a row that end the search, per beam: with 1 it stops before ours does


class ModelTranslator(PairsReader):
    """The search is that of CTranslate2, with our scores: a sum of log probabilities over length ** length_penalty."""

    def search(self, sources: Sequence[Sequence[int]]) -> list[tuple[list[int], float]]:
        """A text longer than the limit of its row is cut there."""
        s = self.settings
        answers = self.sessions["model"].translate_batch(
            [tokens(self.tokenizer, ids) for ids in sources],
            beam_size=s["beam_size"],
            patience=PATIENCE,
            length_penalty=s["length_penalty"],
            max_decoding_length=s["longest"],
            max_input_length=0,
            suppress_sequences=[[token] for token in tokens(self.target_tokenizer, s["banned"])],
            return_scores=True,
            return_end_token=True,  # it counts for the length
        )
        limits = self.limits(np.array([len(ids) for ids in sources])).tolist()
        found = []
        for answer, limit in zip(answers, limits, strict=True):
            ids = list(map(self.target_tokenizer.token_to_id, answer.hypotheses[0]))
            found.append((ids[:-1] if ids[-1:] == [s["eos_id"]] else ids[: limit - 1], answer.scores[0]))
        return [(ids[: limit - 1], score) for (ids, score), limit in zip(found, limits, strict=True)]

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


def tokens(tokenizer: tokenizers.Tokenizer, ids: Sequence[int]) -> list[str]:
    return [tokenizer.id_to_token(i) for i in ids]
