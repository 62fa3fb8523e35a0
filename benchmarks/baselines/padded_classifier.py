"""The tutorial's fine-tuning loop, written anew: every review padded to the maximum, 32 rows, AdamW, clip 1.

With precision bf16 its forward runs under autocast.

Run by benchmarks/peers: python -m benchmarks.baselines.padded_classifier SETTINGS.json
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification

from benchmarks.contestant import Meter


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(settings["threads"])
    torch.manual_seed(settings["seed"])
    rng, size, longest = random.Random(settings["seed"]), settings["rows_per_batch"], settings["max_length"]
    with Path(settings["rows"]).open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    model = AutoModelForSequenceClassification.from_pretrained(settings["model"]).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings["learning_rate"])
    meter = Meter()
    meter.save = model.save_pretrained
    meter.start()
    while True:
        order = rng.sample(rows, len(rows))
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            lengths = [len(row["input_ids"]) for row in batch]
            padded = [[*row["input_ids"], *[0] * (longest - len(row["input_ids"]))] for row in batch]
            mask = [[1] * n + [0] * (longest - n) for n in lengths]
            labels = torch.tensor([row["label"] for row in batch])
            with torch.autocast("cpu", torch.bfloat16, enabled=settings["precision"] == "bf16"):
                found = model(torch.tensor(padded), attention_mask=torch.tensor(mask), labels=labels)
            optimizer.zero_grad()
            found.loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            meter.step(rows=len(batch), tokens=sum(lengths), positions=longest * len(batch), loss=found.loss.item())


if __name__ == "__main__":
    main()
