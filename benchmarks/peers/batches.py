"""Batches and models of the peers that train models of transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    MarianConfig,
    MarianMTModel,
)

MULTIPLE = (
    8  # widths of batches: `pad_to_multiple_of` of https://huggingface.co/docs/transformers/main_classes/data_collator
)
IGNORED = -100
Row = dict[str, Any]
MODELS: dict[str, Any] = {
    "classifier": AutoModelForSequenceClassification,
    "tagger": AutoModelForTokenClassification,
    "causal": AutoModelForCausalLM,
    "text_to_text": AutoModelForSeq2SeqLM,
}


def padded(sequences: list[list[int]], value: int) -> torch.Tensor:
    """Return the sequences in one tensor, as wide as a multiple of MULTIPLE."""
    width = -(-max(map(len, sequences)) // MULTIPLE) * MULTIPLE
    rows = [torch.tensor([*s, *[value] * (width - len(s))]) for s in sequences]
    return pad_sequence(rows, batch_first=True)


class Collator:
    """Makes batches that carry their counts: a loader process may make them, which shares no memory with the trainer.

    Args:
        kind: classifier, tagger, causal, text_to_text or translation.
        pad: id of [PAD].
        decoder_inputs: makes the inputs of a decoder from its labels, as DataCollatorForSeq2Seq does where the Trainer
            smooths labels and the model gets none.
    """

    def __init__(self, kind: str, pad: int, decoder_inputs: Callable[..., Any] | None = None) -> None:
        self._kind, self._pad, self._decoder_inputs = kind, pad, decoder_inputs

    def __call__(self, rows: list[Row]) -> dict[str, Any]:
        ids = [row["input_ids"] for row in rows]
        batch: dict[str, Any] = {
            "input_ids": padded(ids, self._pad),
            "attention_mask": padded([[1] * len(one) for one in ids], 0),
        }
        if "token_type_ids" in rows[0]:
            batch["token_type_ids"] = padded([row["token_type_ids"] for row in rows], 0)
        tokens, positions = sum(map(len, ids)), batch["input_ids"].numel()
        if self._kind == "classifier":
            batch["labels"] = torch.tensor([row["label"] for row in rows])
        else:
            batch["labels"] = padded([row.get("trg", ids[i]) for i, row in enumerate(rows)], IGNORED)
        if self._kind in ("translation", "text_to_text"):
            tokens += sum(len(row["trg"]) for row in rows)
            positions += batch["labels"].numel()
            if self._decoder_inputs is not None:
                batch["decoder_input_ids"] = self._decoder_inputs(labels=batch["labels"])
        batch["counts"] = (len(rows), tokens, positions)  # plain numbers stay on the host
        return batch


def same_steps(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the TrainingArguments of a training as ours, and without pauses."""
    betas = settings.get("betas", (0.9, 0.999))
    return {
        "learning_rate": settings["learning_rate"],
        "lr_scheduler_type": "constant_with_warmup",  # no schedule comes to its end here
        "warmup_steps": settings.get("warmup_steps", 0),
        "weight_decay": settings.get("weight_decay", 0.0),
        "adam_beta1": betas[0],
        "adam_beta2": betas[1],
        "max_grad_norm": 1.0,
        "num_train_epochs": 1000,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "seed": settings["seed"],
    }


def build(settings: dict[str, Any]) -> Any:
    """Return the model: the weights in the folder settings["model"], or random ones of settings["shape"]."""
    kind = settings.get("kind", "classifier")
    if "model" in settings:
        options = {"attn_implementation": settings["attention"]} if "attention" in settings else {}
        return MODELS[kind].from_pretrained(settings["model"], **options)
    if kind == "translation":
        return _marian(settings["shape"])
    shape = dict(settings["shape"])
    return MODELS[kind].from_config(AutoConfig.for_model(shape.pop("architecture"), **shape, num_labels=2))


def _marian(shape: dict[str, Any]) -> Any:
    """Return a Marian model of the shape of our Transformer."""
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
