"""Lines of stdin to JSON lines: the labels of each text, by the graph in this folder.

    python run.py < texts.txt            (a pair of texts: one line, a tab between them)
    python run.py < rows.jsonl           rows as JSON objects with the columns that settings.json names
    python run.py --batch < texts.txt    int8 in batches: faster, but a row's result then depends on its batch

Needs onnxruntime, tokenizers and numpy alone. settings.json has the probability from which a label is given.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from trainer.tasks.classification.program import Classifier


class MultiLabelClassifier(Classifier):
    def predict(self, examples: Sequence[Any]) -> Iterator[dict[str, Any]]:
        names, thresholds = self.settings["labels"], self.settings["thresholds"]
        logits = self.logits(examples).astype(np.float64)
        for row in np.exp(-np.logaddexp(0.0, -logits)).tolist():
            shares = dict(zip(names, row, strict=True))
            yield {"labels": [name for name in names if shares[name] >= thresholds[name]], "probabilities": shares}
