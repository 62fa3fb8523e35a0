"""eole's own trainer under our meter, with one word per token id.

The only code of ours inside it is an override of `Trainer._train_step`, its extension point. Decoding is that of its
validation with BLEU (`ScoringPreparator.translate`).

Source: recipes/wmt17/wmt17_ende.yaml of its repository: batches by tokens from buckets of 262,144 rows, normalization
by tokens, noam, label smoothing, Xavier initialization. 16-bit types run under autocast (use_amp, on by default).

Run by benchmarks/peers: PYTHON -m benchmarks.peers.eole_train SETTINGS.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import eole.trainer
import torch
from eole.config.run import TrainConfig
from eole.train_single import main as train

from benchmarks.contestant import Meter, read_rows

SPECIALS = 4
NEVER = 10**9


class MeteredTrainer(eole.trainer.Trainer):
    """eole's trainer, which waits between blocks."""

    meter: Meter
    pad: int

    def train(self, *arguments: Any, **more: Any) -> Any:
        self.meter.translate = self.translate
        self.meter.start()
        return super().train(*arguments, **more)

    def translate(self) -> list[list[int]]:
        self.model.eval()
        with torch.no_grad(), eole.trainer.get_autocast(enabled=self.optim.amp):
            texts, _, _ = self.scoring_preparator.translate(self.model, gpu_rank=-1, step=0)
        self.model.decoder._disable_cache()  # as its validation does
        self.model.train()
        return [[int(word[1:]) for word in text.split() if word[1:].isdigit()] for text in texts]

    def _train_step(self, batches: Any, *arguments: Any, **more: Any) -> None:
        super()._train_step(batches, *arguments, **more)
        pad = self.train_loss.padding_idx
        sources = sum(int(batch["srclen"].sum()) for batch in batches)
        targets = sum(int((batch["tgt"][:, 1:] != pad).sum()) for batch in batches)  # [BOS] is not counted
        positions = sum(batch["src"].numel() + batch["tgt"][:, 1:].numel() for batch in batches)
        rows = sum(len(batch["src"]) for batch in batches)
        self.meter.step(rows=rows, tokens=sources + targets, positions=positions, loss=None)


def config(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return eole's configuration of the same shape."""
    shape = settings["shape"]
    return {
        "src_vocab": str(folder / "vocabulary.txt"),
        "share_vocab": True,
        "src_vocab_size": shape["vocab_size"] + SPECIALS,
        "tgt_vocab_size": shape["vocab_size"] + SPECIALS,
        "seed": settings["seed"],
        "overwrite": True,
        "data": {
            "train": {"path_src": str(folder / "train.src"), "path_tgt": str(folder / "train.trg"), "transforms": []},
            "valid": {"path_src": str(folder / "test.src"), "path_tgt": str(folder / "test.trg"), "transforms": []},
        },
        "training": {
            "world_size": 0,
            "gpu_ranks": [],
            "num_workers": 0,  # every candidate has one process
            "batch_type": "tokens",
            "batch_size": settings["tokens_per_batch"],
            "accum_count": [settings["micro_batches"]],
            "normalization": "tokens",
            "bucket_size": 262144,
            "compute_dtype": settings["precision"] if settings["precision"] == "bf16" else "fp32",
            "use_amp": settings["precision"] == "bf16",
            "optim": "adamw",
            "adam_beta1": settings["betas"][0],
            "adam_beta2": settings["betas"][1],
            "learning_rate": settings["learning_rate"] * (shape["d_model"] * settings["warmup_steps"]) ** 0.5,
            "decay_method": "noam",  # the same peak, after as many steps
            "warmup_steps": settings["warmup_steps"],
            "max_grad_norm": 1.0,
            "label_smoothing": settings["label_smoothing"],
            "param_init_method": "xavier_uniform",
            "dropout": [shape["dropout"]],
            "attention_dropout": [shape["dropout"]],
            "log_attention_entropy": False,
            "train_steps": NEVER,
            "valid_steps": NEVER,
            "save_checkpoint_steps": NEVER,
            "model_path": str(folder / "model"),
        },
        "inference": {
            "model_path": str(folder / "model"),
            "beam_size": settings["beam_size"],
            "length_penalty": "avg",
            "max_length": settings["longest_output"],
        },
        "model": {
            "architecture": "transformer",
            "hidden_size": shape["d_model"],
            "heads": shape["heads"],
            "transformer_ff": shape["feed_forward"],
            "encoder": {"layers": shape["encoder_layers"]},
            "decoder": {"layers": shape["decoder_layers"]},
            "share_embeddings": True,
            "share_decoder_embeddings": True,
            "embeddings": {"word_vec_size": shape["d_model"], "position_encoding_type": "SinusoidalInterleaved"},
        },
    }


def write_corpus(settings: dict[str, Any], folder: Path) -> None:
    """Write rows as lines of `t<id>` words. eole adds [EOS] to targets only."""
    words = [f"t{i}" for i in range(settings["shape"]["vocab_size"])]
    (folder / "vocabulary.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    test = [{"input_ids": ids, "trg": ids} for ids in settings["test"]]  # targets are not read
    for name, part in (("train", read_rows(settings)), ("test", test)):
        for role, key in (("src", "input_ids"), ("trg", "trg")):
            ends = None if role == "src" else -1
            lines = (" ".join(f"t{i}" for i in row[key][:ends]) for row in part)
            (folder / f"{name}.{role}").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    folder = Path(settings["folder"])
    write_corpus(settings, folder)
    torch.set_num_threads(settings["threads"])
    MeteredTrainer.meter = Meter()
    eole.trainer.Trainer = MeteredTrainer  # type: ignore[misc]
    train(TrainConfig(**config(settings, folder)), device_id=-1)


if __name__ == "__main__":
    main()
