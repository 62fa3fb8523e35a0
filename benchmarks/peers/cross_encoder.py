"""sentence-transformers' CrossEncoderTrainer on pairs of sentences, with its CrossEntropyLoss.

It tokenizes in the loss, as it always does. Its batch samplers do not group rows by length.

Sources: https://sbert.net/docs/cross_encoder/training_overview.html (bf16, CrossEntropyLoss for classes of pairs) and
https://sbert.net/docs/package_reference/cross_encoder/training_args.html.

Run by benchmarks/peers: PYTHON -m benchmarks.peers.cross_encoder SETTINGS.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers.cross_encoder import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder.losses import CrossEntropyLoss
from transformers import TrainerCallback

from benchmarks.contestant import Meter, read_rows
from benchmarks.peers.batches import same_steps


class Metered(TrainerCallback):
    """Counts what the model tokenizes. A step is over for the meter where it is over for the trainer."""

    def __init__(self, model: CrossEncoder) -> None:
        self._meter, self._tokenize, self._counts = Meter(), model.preprocess, (0, 0, 0)
        self._meter.save = model.transformers_model.save_pretrained  # type: ignore[union-attr]
        model.preprocess = self.preprocess  # type: ignore[method-assign]

    def preprocess(self, *arguments: Any, **more: Any) -> Any:
        batch = self._tokenize(*arguments, **more)
        mask = batch["attention_mask"]
        self._counts = (len(mask), int(mask.sum()), mask.numel())
        return batch

    def on_train_begin(self, *arguments: Any, **more: Any) -> None:
        self._meter.start()

    def on_step_end(self, *arguments: Any, **more: Any) -> None:
        rows, tokens, positions = self._counts
        self._meter.step(rows=rows, tokens=tokens, positions=positions, loss=None)


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(settings["threads"])
    rows = [{"a": row["texts"][0], "b": row["texts"][1], "label": row["label"]} for row in read_rows(settings)]
    classes = 1 + max(row["label"] for row in rows)
    model = CrossEncoder(settings["model"], num_labels=classes, max_length=settings["max_length"], device="cpu")
    arguments = CrossEncoderTrainingArguments(
        output_dir=settings["folder"],
        use_cpu=True,
        bf16=settings["precision"] == "bf16",
        per_device_train_batch_size=settings["batch"] * settings["accumulate"],
        **same_steps(settings),
    )
    metered = Metered(model)
    CrossEncoderTrainer(
        model, arguments, train_dataset=Dataset.from_list(rows), loss=CrossEntropyLoss(model), callbacks=[metered]
    ).train()


if __name__ == "__main__":
    main()
