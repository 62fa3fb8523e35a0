"""The PyTorch tutorial's translation loop, written anew: `nn.Transformer`, 32 rows, Adam, clip 1.

With precision bf16 forward and loss run under autocast.

It follows Aladdin Persson's "seq2seq_transformer" (Machine-Learning-Collection; bentrevett's loop is the same):
learned positions, separate source, target and output matrices, sequence-first tensors, post-norm, a loss read back
every step. Batches are those of torchtext's BucketIterator with `sort_within_batch` (pools of 100 batches are sorted by
source length, their batches shuffled), or, without `bucketed`, rows in random order; both are padded to the longest row
of a batch. Sizes come from our recipe, so that model shapes agree; rows come as token ids, so that tokenizing costs it
nothing.

Run by benchmarks/peers: python -m benchmarks.baselines.tutorial SETTINGS.json
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from benchmarks.contestant import Meter

PAD, BOS = 0, 2
POOL = 100  # batches sorted together, as BucketIterator has it
Row = dict[str, list[int]]


class TutorialTransformer(nn.Module):
    """`nn.Transformer` between learned embeddings and an untied output layer. Shapes: S, T lengths; N rows; D width."""

    def __init__(self, shape: dict[str, Any]) -> None:
        super().__init__()
        width, vocab, longest = shape["d_model"], shape["vocab_size"], shape["max_length"] + 2
        self.src_word, self.src_position = nn.Embedding(vocab, width), nn.Embedding(longest, width)
        self.trg_word, self.trg_position = nn.Embedding(vocab, width), nn.Embedding(longest, width)
        self.transformer = nn.Transformer(
            width,
            shape["heads"],
            shape["encoder_layers"],
            shape["decoder_layers"],
            shape["feed_forward"],
            shape["dropout"],
        )
        self.out = nn.Linear(width, vocab)
        self.dropout = nn.Dropout(shape["dropout"])

    def forward(self, src: Tensor, trg: Tensor) -> Tensor:
        """src (S, N) and trg (T, N) token ids -> logits (T, N, vocabulary)."""
        src_positions = torch.arange(src.shape[0]).unsqueeze(1).expand(src.shape)
        trg_positions = torch.arange(trg.shape[0]).unsqueeze(1).expand(trg.shape)
        src_embedded = self.dropout(self.src_word(src) + self.src_position(src_positions))  # (S, N, D)
        trg_embedded = self.dropout(self.trg_word(trg) + self.trg_position(trg_positions))  # (T, N, D)
        out = self.transformer(
            src_embedded,
            trg_embedded,
            src_key_padding_mask=src.transpose(0, 1) == PAD,  # (N, S)
            tgt_mask=self.transformer.generate_square_subsequent_mask(trg.shape[0]),  # (T, T)
        )
        return self.out(out)


def batches(rows: list[Row], size: int, bucketed: bool, rng: random.Random) -> Iterator[list[Row]]:
    """Batches of `size` rows, epoch after epoch, without end."""
    while True:
        order = rng.sample(rows, len(rows))
        if not bucketed:
            yield from (order[i : i + size] for i in range(0, len(order), size))
            continue
        for start in range(0, len(order), size * POOL):
            pool = sorted(order[start : start + size * POOL], key=lambda row: len(row["input_ids"]))
            cut = [pool[i : i + size] for i in range(0, len(pool), size)]
            rng.shuffle(cut)
            yield from cut


def padded(sequences: list[list[int]]) -> Tensor:
    """[BOS] and the sequences, padded to the longest: (length, rows)."""
    return pad_sequence([torch.tensor([BOS, *s]) for s in sequences], padding_value=PAD)


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    shape = settings["shape"]
    torch.set_num_threads(settings["threads"])
    torch.manual_seed(settings["seed"])
    with Path(settings["rows"]).open(encoding="utf-8") as file:
        rows: list[Row] = [json.loads(line) for line in file]

    model = TutorialTransformer(shape).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=settings["learning_rate"])
    criterion = nn.CrossEntropyLoss(ignore_index=PAD)
    meter = Meter()
    meter.start()
    stream = batches(rows, settings["rows_per_batch"], settings["bucketed"], random.Random(settings["seed"]))
    for batch in stream:
        src, trg = padded([row["input_ids"] for row in batch]), padded([row["trg"] for row in batch])
        with torch.autocast("cpu", torch.bfloat16, enabled=settings["precision"] == "bf16"):
            output = model(src, trg[:-1])
            loss = criterion(output.reshape(-1, output.shape[2]), trg[1:].reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1)
        optimizer.step()
        meter.step(
            rows=len(batch),
            tokens=sum(len(row["input_ids"]) + len(row["trg"]) for row in batch),
            positions=src.numel() + trg[:-1].numel(),
            loss=loss.item(),
        )


if __name__ == "__main__":
    main()
