"""transformers' `generate` with its cache, on a Marian model of the run's shape and random weights, fp32.

Run by benchmarks/decoding.py: python -m benchmarks.baselines.generate SETTINGS.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList, MarianConfig, MarianMTModel

from benchmarks.contestant import serve_decoding


class Lengths(LogitsProcessor):
    """<eos> never before a row's length, and nothing else then."""

    def __init__(self, limits: torch.Tensor, eos_id: int) -> None:
        self.limits, self.eos_id = limits, eos_id  # limits: one for each hypothesis

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        last = self.limits == input_ids.shape[1]  # with the start token
        closing = scores[:, self.eos_id].clone()
        scores[:, self.eos_id] = -torch.inf
        if last.any():
            scores[last] = -torch.inf
            scores[last, self.eos_id] = closing[last]
        return scores


def build(settings: dict[str, Any]) -> MarianMTModel:
    model, heads = settings["model"], settings["model"]["heads"]
    torch.manual_seed(1)
    return MarianMTModel(
        MarianConfig(
            vocab_size=settings["vocab_size"], d_model=model["d_model"],
            encoder_layers=model["encoder_layers"], decoder_layers=model["decoder_layers"],
            encoder_attention_heads=heads, decoder_attention_heads=heads,
            encoder_ffn_dim=model["feed_forward"], decoder_ffn_dim=model["feed_forward"],
            activation_function=model["activation"], max_position_embeddings=settings["max_length"],
            pad_token_id=settings["pad_id"], eos_token_id=settings["eos_id"], bos_token_id=settings["bos_id"],
            decoder_start_token_id=settings["bos_id"], forced_eos_token_id=None, scale_embedding=True,
        )
    ).eval()  # fmt: skip


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(settings["threads"])
    model, eos_id, pad_id = build(settings), settings["eos_id"], settings["pad_id"]

    @torch.no_grad()
    def decode(rows: Sequence[Any], beam: int) -> list[int]:
        width = max(len(row["src"]) for row in rows)
        src = torch.tensor([[*row["src"], *[pad_id] * (width - len(row["src"]))] for row in rows])
        limits = torch.tensor([row["new"] for row in rows])
        found = model.generate(
            input_ids=src, attention_mask=(src != pad_id).long(), num_beams=beam, do_sample=False, use_cache=True,
            early_stopping=beam > 1, max_new_tokens=int(limits.max()), length_penalty=1.0,
            logits_processor=LogitsProcessorList([Lengths(limits.repeat_interleave(beam), eos_id)]),
        )  # fmt: skip
        return [row.index(eos_id) for row in found.tolist()]  # the start token stands before them

    serve_decoding(settings, decode)


if __name__ == "__main__":
    main()
