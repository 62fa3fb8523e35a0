"""The usual data path: a `datasets` JSON stream, `map` with the tokenizer, a padding collator, a torch DataLoader.

`load_dataset("json", streaming=True)`, the default shuffle buffer of 1,000 rows, `map(tokenize)` one row at a time or
with `batched=True`, `DataCollatorForSeq2Seq` of transformers, a fixed number of rows in a batch. The tokenizer is the
one that all contestants use.

Run by benchmarks/data_path.py: python -m benchmarks.baselines.stream SETTINGS.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset
from torch.utils.data import DataLoader
from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerFast

from benchmarks.contestant import serve_passes


def loader(settings: dict[str, Any], tokenizer: PreTrainedTokenizerFast, seed: int) -> DataLoader[Any]:
    """One shuffled pass over the corpus as padded batches."""

    def tokenize(rows: dict[str, Any]) -> dict[str, Any]:
        return dict(
            tokenizer(rows["de"], text_target=rows["en"], truncation=True, max_length=settings["max_length"]).items()
        )

    stream = load_dataset("json", data_files=settings["files"], split="train", streaming=True)
    stream = stream.shuffle(seed=seed, buffer_size=1000)
    stream = stream.map(tokenize, batched=settings["batched"], remove_columns=["de", "en"])
    collate = DataCollatorForSeq2Seq(tokenizer, padding=True, label_pad_token_id=-100)
    return DataLoader(
        stream, batch_size=settings["rows_per_batch"], collate_fn=collate, num_workers=settings["workers"]
    )


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(settings["threads"])
    tokenizer = PreTrainedTokenizerFast.from_pretrained(settings["tokenizer"])

    def one_pass(number: int) -> Iterator[tuple[int, int, int]]:
        for batch in loader(settings, tokenizer, number):
            rows, labels = len(batch["labels"]), batch["labels"]
            tokens = int(batch["attention_mask"].sum()) + int((labels != -100).sum()) - 2 * rows  # [BOS] is not counted
            yield rows, tokens, batch["input_ids"].numel() + labels.numel()

    serve_passes(one_pass)


if __name__ == "__main__":
    main()
