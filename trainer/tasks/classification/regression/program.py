"""Lines of stdin to JSON lines: the number of each text, by the graph in this folder.

    python run.py < texts.txt            (a pair of texts: one line, a tab between them)
    python run.py < rows.jsonl           rows as JSON objects with the columns that settings.json names
    python run.py --batch < texts.txt    int8 in batches: faster, but a row's result then depends on its batch

Needs onnxruntime, tokenizers and numpy alone. Several numbers of a text have the names in settings.json.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from trainer.tasks.classification.program import Classifier


class Regressor(Classifier):
    def predict(self, examples: Sequence[Any]) -> Iterator[dict[str, Any]]:
        mean, deviation = np.array(self.settings["scales"], dtype=np.float64).T
        for row in (self.logits(examples).astype(np.float64) * deviation + mean).tolist():
            named = dict(zip(self.settings["labels"], row, strict=True))
            yield {"values": named} if self.settings["several"] else {"value": row[0]}
