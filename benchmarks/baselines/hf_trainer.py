"""transformers' Trainer as people use it for fine-tuning: dynamic padding, grouped by length, bf16 autocast.

Run by benchmarks/fine_tuning.py: python -m benchmarks.baselines.hf_trainer SETTINGS.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from benchmarks.contestant import Meter


class Counted:
    """The library's collator, which also notes what a batch holds."""

    def __init__(self, collator: Any) -> None:
        self._collator = collator
        self.last = (0, 0, 0)

    def __call__(self, rows: list[dict[str, Any]]) -> Any:
        batch = self._collator(rows)
        self.last = (len(rows), int(batch["attention_mask"].sum()), batch["attention_mask"].numel())
        return batch


class Metered(TrainerCallback):
    """A step is over for the meter where it is over for the Trainer."""

    def __init__(self, counted: Counted) -> None:
        self._counted = counted
        self._meter = Meter()

    def on_train_begin(self, *arguments: Any, **more: Any) -> None:
        self._meter.start()

    def on_step_end(self, *arguments: Any, **more: Any) -> None:
        rows, tokens, positions = self._counted.last
        self._meter.step(rows=rows, tokens=tokens, positions=positions, loss=None)


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(settings["threads"])
    rows = datasets.Dataset.from_json(settings["rows"], cache_dir=str(Path(settings["folder"]) / "cache"))
    rows = rows.map(lambda row: {"attention_mask": [1] * len(row["input_ids"]), "length": len(row["input_ids"])})
    collator = Counted(DataCollatorWithPadding(AutoTokenizer.from_pretrained(settings["model"]), pad_to_multiple_of=8))
    arguments = TrainingArguments(
        output_dir=settings["folder"],
        use_cpu=True,
        bf16=True,
        per_device_train_batch_size=settings["batch"],
        train_sampling_strategy="group_by_length",
        learning_rate=settings["learning_rate"],
        num_train_epochs=1000,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=settings["seed"],
    )
    model = AutoModelForSequenceClassification.from_pretrained(settings["model"], num_labels=2)
    trainer = Trainer(model, arguments, train_dataset=rows, data_collator=collator, callbacks=[Metered(collator)])
    trainer.train()


if __name__ == "__main__":
    main()
