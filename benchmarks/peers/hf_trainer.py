"""transformers' Trainer with the settings that its documentation gives for speed.

Sources: https://huggingface.co/docs/transformers/main_classes/trainer (TrainingArguments) and
https://huggingface.co/docs/transformers/perf_train_gpu_one (mixed precision, fused optimizer, workers).

Run by benchmarks/peers and gpu.py: PYTHON -m benchmarks.peers.hf_trainer SETTINGS.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from benchmarks.contestant import Meter, read_rows
from benchmarks.device_meter import meter
from benchmarks.peers.batches import Collator, build, same_steps


class CountingTrainer(Trainer):
    """Adds up the counts of the batches of a step, which the model does not take."""

    counts = (0, 0, 0)

    def training_step(self, model: Any, inputs: dict[str, Any], *more: Any, **options: Any) -> Any:
        self.counts = tuple(map(sum, zip(self.counts, inputs.pop("counts"), strict=True)))
        return super().training_step(model, inputs, *more, **options)


class Metered(TrainerCallback):
    """A step is over for the meter where it is over for the Trainer."""

    trainer: CountingTrainer

    def __init__(self, one: Meter) -> None:
        self._meter = one

    def on_train_begin(self, *arguments: Any, **more: Any) -> None:
        self._meter.start()

    def on_step_end(self, *arguments: Any, **more: Any) -> None:
        (rows, tokens, positions), self.trainer.counts = self.trainer.counts, (0, 0, 0)
        self._meter.step(rows=rows, tokens=tokens, positions=positions, loss=None)


def arguments_of(settings: dict[str, Any]) -> TrainingArguments:
    """Return the TrainingArguments of a benchmark. The optimizer is the default, adamw_torch_fused."""
    values: dict[str, Any] = {
        "output_dir": settings["folder"],
        "use_cpu": settings.get("device", "cpu") == "cpu",
        "bf16": settings["precision"] == "bf16",
        "per_device_train_batch_size": settings["batch"],
        "gradient_accumulation_steps": settings.get("accumulate", 1),
        "train_sampling_strategy": "group_by_length",  # "minimize padding": TrainingArguments
        "dataloader_num_workers": settings.get("workers", 0),  # every candidate has one process
        "label_smoothing_factor": settings.get("label_smoothing", 0.0),
        **same_steps(settings),
    }
    return TrainingArguments(**values, remove_unused_columns=False)


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(settings["threads"])
    one, model = meter(settings.get("device", "cpu")), build(settings)
    one.save = model.save_pretrained
    shift = getattr(model, "prepare_decoder_input_ids_from_labels", None) if settings.get("label_smoothing") else None
    callback = Metered(one)
    callback.trainer = CountingTrainer(
        model,
        arguments_of(settings),
        train_dataset=read_rows(settings),
        data_collator=Collator(settings.get("kind", "classifier"), settings.get("pad", 0), shift),
        callbacks=[callback],
    )
    callback.trainer.train()


if __name__ == "__main__":
    main()
