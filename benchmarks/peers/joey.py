"""JoeyNMT's own training loop under our meter: `TrainManager.train_and_validate`, unchanged, in its own environment.

The only code of ours inside it is an override of `_train_step` that counts tokens and waits between blocks. The corpus
is given to it as ready-made tokens, one word per token id, so that it reads the same tokens as everybody else and its
tokenizer is a `split`. Model, loss, optimizer, schedule and batch size in tokens are those of our recipe. Its batches
are in random order (it has no bucketing).

Sources: configs/transformer_iwslt14_deen_bpe.yaml and transformer_small.yaml of its repository (batches by tokens,
pre-norm, tied embeddings, beam 5). On a CPU it turns half precision off (joeynmt/config.py).

Run by benchmarks/peers: PYTHON -m benchmarks.peers.joey SETTINGS.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from joeynmt.config import parse_global_args
from joeynmt.prediction import predict, prepare
from joeynmt.training import TrainManager

from benchmarks.contestant import Meter, read_rows

SPECIALS = ["<unk>", "<pad>", "<s>", "</s>"]  # JoeyNMT's defaults, in its order
NEVER = 10**9  # steps


class MeteredTrainManager(TrainManager):
    """JoeyNMT's trainer; `meter.step` is called where its loop asks for the first batch of the next optimizer step."""

    meter: Meter
    held: dict[str, Any] | None = None
    micro_batches = 0

    def _train_step(self, batch: Any) -> tuple[float, int]:
        if self.micro_batches % self.args.batch_multiplier == 0:
            if self.held is None:
                self.meter.start()
            else:
                self.meter.step(**self.held)
            self.held = {"rows": 0, "tokens": 0, "positions": 0, "loss": 0.0}
        self.micro_batches += 1
        loss, correct = super()._train_step(batch)
        self.held["rows"] += batch.nseqs
        self.held["tokens"] += int(batch.src_length.sum()) + batch.ntokens
        self.held["positions"] += batch.src.numel() + batch.trg_input.numel()
        self.held["loss"] += loss
        return loss, correct


def config(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """JoeyNMT's configuration of the same shape."""
    shape = settings["shape"]
    layers = {
        "type": "transformer",
        "num_heads": shape["heads"],
        "hidden_size": shape["d_model"],
        "ff_size": shape["feed_forward"],
        "dropout": shape["dropout"],
        "layer_norm": "pre",
        "embeddings": {"embedding_dim": shape["d_model"], "scale": True, "dropout": shape["dropout"]},
    }
    side = {"level": "word", "voc_file": str(folder / "vocabulary.txt"), "max_length": NEVER}
    return {
        "name": "benchmark",
        "model_dir": str(folder / "model"),
        "use_cuda": False,
        "random_seed": settings["seed"],
        "data": {
            "train": str(folder / "train"),
            "dev": str(folder / "dev"),
            "test": str(folder / "test"),
            "dataset_type": "plain",
            "src": {"lang": "src", **side},
            "trg": {"lang": "trg", **side},
        },
        "training": {
            "loss": "crossentropy",
            "label_smoothing": settings["label_smoothing"],
            "normalization": "tokens",
            "optimizer": "adamw",
            "adam_betas": settings["betas"],
            "learning_rate": settings["learning_rate"],
            "learning_rate_min": 0.0,
            "learning_rate_warmup": settings["warmup_steps"],
            "scheduling": "warmupinversesquareroot",
            "clip_grad_norm": 1.0,
            "batch_type": "token",
            "batch_size": settings["tokens_per_batch"],
            "batch_multiplier": settings["micro_batches"],
            "epochs": NEVER,
            "logging_freq": 100,
            "validation_freq": NEVER - NEVER % 100,
        },
        "testing": {
            "beam_size": settings["beam_size"],
            "beam_alpha": settings["length_penalty"],
            "batch_size": 1024,
            "batch_type": "token",
            "max_output_length": settings["longest_output"],
        },
        "model": {
            "tied_embeddings": True,
            "tied_softmax": True,
            "initializer": "xavier_uniform",
            "embed_initializer": "xavier_uniform",
            "encoder": {**layers, "num_layers": shape["encoder_layers"]},
            "decoder": {**layers, "num_layers": shape["decoder_layers"]},
        },
    }


def write_corpus(settings: dict[str, Any], folder: Path) -> None:
    """Write rows as lines of `t<id>` words, as JoeyNMT's plain text format has them. It adds [EOS] itself."""
    vocabulary = [*SPECIALS, *(f"t{i}" for i in range(len(SPECIALS), settings["shape"]["vocab_size"]))]
    (folder / "vocabulary.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    rows = read_rows(settings)
    test = [{"input_ids": ids, "trg": ids} for ids in settings["test"]]  # targets are not read
    for name, part in (("train", rows), ("dev", rows[:100]), ("test", test)):
        for role, key in (("src", "input_ids"), ("trg", "trg")):
            lines = (" ".join(f"t{i}" for i in row[key][:-1]) for row in part)
            (folder / f"{name}.{role}").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    folder = Path(settings["folder"])
    (folder / "model").mkdir(parents=True)
    write_corpus(settings, folder)
    torch.set_num_threads(settings["threads"])
    meter = Meter()
    args = parse_global_args(config(settings, folder), rank=0, mode="train")
    model, train_data, dev_data, test_data = prepare(args, rank=0, mode="train")
    trainer = MeteredTrainManager(
        rank=0,
        model=model,
        model_dir=args.model_dir,
        device=args.device,
        autocast=args.autocast,
        seed=args.seed,
        train_args=args.train,
        dev_args=args.test,
    )

    def translate() -> list[list[int]]:
        with torch.no_grad():
            *_, tokens, _, _ = predict(model, test_data, args.device, 0, args=args.test, autocast=args.autocast)
        model.train()
        return [[int(word[1:]) for word in words if word not in SPECIALS] for words in tokens]

    meter.translate = translate
    trainer.meter = meter
    trainer.train_and_validate(train_data=train_data, valid_data=dev_data)


if __name__ == "__main__":
    main()
