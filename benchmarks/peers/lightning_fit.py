"""Lightning's Trainer with the settings that its documentation gives for speed.

Lightning leaves the model, the optimizer and the loader to its user. They are those of transformers' Trainer: its fused
AdamW, its sampler that groups rows by length, the same batches.

Sources: https://lightning.ai/docs/pytorch/stable/advanced/speed.html,
https://lightning.ai/docs/pytorch/stable/common/precision_intermediate.html (bf16-mixed) and
https://lightning.ai/docs/pytorch/stable/common/trainer.html (enable_progress_bar, logger, enable_checkpointing).

Run by benchmarks/peers: PYTHON -m benchmarks.peers.lightning_fit SETTINGS.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import lightning
import torch
from torch.utils.data import DataLoader
from transformers import get_constant_schedule_with_warmup
from transformers.trainer_pt_utils import LengthGroupedSampler

from benchmarks.contestant import Meter, read_rows
from benchmarks.peers.batches import Collator, build


class Module(lightning.LightningModule):
    """A model of transformers. A step is over for the meter where it is over for Lightning."""

    def __init__(self, model: Any, settings: dict[str, Any], meter: Meter) -> None:
        super().__init__()
        self.model, self._meter = model, meter
        self._settings, self._accumulate = settings, settings["accumulate"]
        meter.save = model.save_pretrained
        self._counts = (0, 0, 0)

    def on_fit_start(self) -> None:
        self.model.train()  # from_pretrained gives it in evaluation mode, which Lightning keeps

    def on_train_start(self) -> None:
        assert self.model.training, "dropout is off"
        self._meter.start()

    def training_step(self, batch: dict[str, Any], _: int) -> torch.Tensor:
        self._counts = tuple(map(sum, zip(self._counts, batch.pop("counts"), strict=True)))
        return self.model(**batch).loss

    def on_train_batch_end(self, _: Any, batch: Any, number: int) -> None:
        if (number + 1) % self._accumulate == 0:
            (rows, tokens, positions), self._counts = self._counts, (0, 0, 0)
            self._meter.step(rows=rows, tokens=tokens, positions=positions, loss=None)

    def configure_gradient_clipping(self, optimizer: Any, *arguments: Any, **more: Any) -> None:
        # `gradient_clip_val` refuses fused optimizers in bf16-mixed
        torch.nn.utils.clip_grad_norm_(self.parameters(), 1.0)

    def configure_optimizers(self) -> Any:
        # fused: https://docs.pytorch.org/docs/stable/generated/torch.optim.AdamW.html
        rate, betas, decay = (self._settings[name] for name in ("learning_rate", "betas", "weight_decay"))
        optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=rate, betas=tuple(betas), weight_decay=decay, fused=True
        )
        schedule = get_constant_schedule_with_warmup(optimizer, self._settings["warmup_steps"])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(settings["threads"])
    lightning.seed_everything(settings["seed"])
    rows, size = read_rows(settings), settings["batch"]
    sampler = LengthGroupedSampler(size, lengths=[len(row["input_ids"]) for row in rows])
    collate = Collator(settings["kind"], settings["pad"])
    # more workers, as the page about speed has it, would be more processes than the others have
    loader = DataLoader(rows, batch_size=size, sampler=sampler, collate_fn=collate, num_workers=0)  # type: ignore[arg-type]
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        precision="bf16-mixed" if settings["precision"] == "bf16" else "32-true",
        accumulate_grad_batches=settings["accumulate"],
        max_epochs=1000,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=settings["folder"],
    )
    trainer.fit(Module(build(settings), settings, Meter()), loader)


if __name__ == "__main__":
    main()
