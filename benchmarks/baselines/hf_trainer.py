"""transformers' Trainer as people use it: dynamic padding, grouped by length, autocast, SDPA, fused AdamW.

It trains a classifier (rows of input_ids and label), a causal language model (rows of input_ids) or a translation model
(rows of input_ids and trg, a Marian model of the shape of our Transformer).

Run by benchmarks/fine_tuning.py and gpu.py: python -m benchmarks.baselines.hf_trainer SETTINGS.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    MarianConfig,
    MarianMTModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from benchmarks.contestant import Meter
from benchmarks.device_meter import meter

MULTIPLE = 8  # widths of batches
Row = dict[str, Any]


def padded(sequences: list[list[int]], value: int) -> torch.Tensor:
    """Return the sequences in one tensor, as wide as a multiple of MULTIPLE."""
    width = -(-max(map(len, sequences)) // MULTIPLE) * MULTIPLE
    rows = [torch.tensor([*s, *[value] * (width - len(s))]) for s in sequences]
    return pad_sequence(rows, batch_first=True)


class Collator:
    """Makes batches that carry their counts: a loader process may make them, which shares no memory with the Trainer.

    Args:
        kind: classifier, causal or translation.
        pad: id of [PAD].
    """

    def __init__(self, kind: str, pad: int) -> None:
        self._kind, self._pad = kind, pad

    def __call__(self, rows: list[Row]) -> dict[str, Any]:
        ids = [row["input_ids"] for row in rows]
        batch: dict[str, Any] = {
            "input_ids": padded(ids, self._pad),
            "attention_mask": padded([[1] * len(one) for one in ids], 0),
        }
        tokens, positions = sum(map(len, ids)), batch["input_ids"].numel()
        if self._kind == "classifier":
            batch["labels"] = torch.tensor([row["label"] for row in rows])
        else:
            labels = ids if self._kind == "causal" else [row["trg"] for row in rows]
            batch["labels"] = padded(labels, -100)
        if self._kind == "translation":
            tokens += sum(len(row["trg"]) for row in rows)
            positions += batch["labels"].numel()
        batch["counts"] = (len(rows), tokens, positions)  # plain numbers stay on the host
        return batch


class CountingTrainer(Trainer):
    """Keeps the counts of the last batch, which the model does not take."""

    counts = (0, 0, 0)

    def training_step(self, model: Any, inputs: dict[str, Any], *more: Any, **options: Any) -> Any:
        self.counts = inputs.pop("counts")
        return super().training_step(model, inputs, *more, **options)


class Metered(TrainerCallback):
    """A step is over for the meter where it is over for the Trainer."""

    trainer: CountingTrainer

    def __init__(self, one: Meter) -> None:
        self._meter = one

    def on_train_begin(self, *arguments: Any, **more: Any) -> None:
        self._meter.start()

    def on_step_end(self, *arguments: Any, **more: Any) -> None:
        rows, tokens, positions = self.trainer.counts
        self._meter.step(rows=rows, tokens=tokens, positions=positions, loss=None)


def classifier(settings: dict[str, Any]) -> Any:
    if "model" in settings:
        return AutoModelForSequenceClassification.from_pretrained(settings["model"], num_labels=2)
    return AutoModelForSequenceClassification.from_config(_config(settings))


def causal(settings: dict[str, Any]) -> Any:
    return AutoModelForCausalLM.from_config(_config(settings))


def translation(settings: dict[str, Any]) -> Any:
    shape = settings["shape"]
    sides = ("encoder", "decoder")
    sizes = {f"{side}_layers": shape[f"{side}_layers"] for side in sides}
    sizes |= {f"{side}_attention_heads": shape["heads"] for side in sides}
    sizes |= {f"{side}_ffn_dim": shape["feed_forward"] for side in sides}
    ids = dict.fromkeys(("pad_token_id", "decoder_start_token_id"), shape["pad"])
    config = MarianConfig(
        **sizes, **ids, d_model=shape["d_model"], dropout=shape["dropout"], vocab_size=shape["vocab_size"],
        decoder_vocab_size=shape["vocab_size"], max_position_embeddings=1024, eos_token_id=shape["eos"],
        activation_function="relu",
    )  # fmt: skip
    return MarianMTModel(config)


MODELS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "classifier": classifier,
    "causal": causal,
    "translation": translation,
}


def _config(settings: dict[str, Any]) -> Any:
    shape = dict(settings["shape"])
    return AutoConfig.for_model(shape.pop("architecture"), **shape, num_labels=2)


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    kind, on_cpu = settings.get("kind", "classifier"), settings.get("device", "cpu") == "cpu"
    torch.set_num_threads(settings["threads"])
    with Path(settings["rows"]).open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    arguments = TrainingArguments(
        output_dir=settings["folder"],
        use_cpu=on_cpu,
        bf16=settings["precision"] == "bf16",
        per_device_train_batch_size=settings["batch"],
        train_sampling_strategy="group_by_length",
        remove_unused_columns=False,
        dataloader_num_workers=settings.get("workers", 0),
        learning_rate=settings["learning_rate"],
        num_train_epochs=1000,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=settings["seed"],
    )
    collator = Collator(kind, settings.get("pad", 0))
    callback = Metered(meter(settings.get("device", "cpu")))
    callback.trainer = CountingTrainer(
        MODELS[kind](settings), arguments, train_dataset=rows, data_collator=collator, callbacks=[callback]
    )
    callback.trainer.train()


if __name__ == "__main__":
    main()
