"""Operations of a training against closed formulas, their fit over shapes, and the share of a device's peak."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import read_lines, train
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from trainer.engine.objective import Objective
from trainer.engine.utilization import FlopMeter, Shape, Utilization, Work, peak_of
from trainer.models.configs import TransformerConfig
from trainer.models.transformer import Transformer

D, F, LAYERS, HEADS, VOCABULARY = 64, 256, 2, 4, 500


class Summed:
    """The part of a task that an Objective needs."""

    def loss_and_memory(self, model: nn.Module, batch: dict[str, Any]) -> tuple[torch.Tensor, None]:
        found = model(**{name: tensor for name, tensor in batch.items() if name != "labels"})
        logits = getattr(found, "logits", found).flatten(0, -2)
        return nn.functional.cross_entropy(logits, batch["labels"].flatten(), reduction="sum"), None


def shape(**sizes: tuple[int, ...]) -> Shape:
    return tuple((name, size, torch.int64) for name, size in sizes.items())


def bert(attention: str = "eager") -> BertForSequenceClassification:
    sizes = {"hidden_size": D, "intermediate_size": F, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    model = BertForSequenceClassification(BertConfig(**sizes, vocab_size=VOCABULARY))
    model.set_attn_implementation(attention)
    return model


def bert_meter(model: nn.Module | None = None) -> FlopMeter:
    return FlopMeter(Objective(Summed(), model or bert()), ("input_ids",))  # type: ignore[arg-type]


def of_bert(rows: int, width: int) -> Shape:
    return shape(input_ids=(rows, width), attention_mask=(rows, width), labels=(rows,))


def layer(width: int, keys: int, products: int = 4) -> float:
    """Operations of one attention with its projections, for one row: two for each multiplication."""
    return 2 * (products / 2 * D * D * (width + keys) + 2 * width * keys * D)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_bert_by_its_formula(attention: str) -> None:
    rows, width = 6, 48
    forward = rows * LAYERS * (layer(width, width) + 2 * 2 * width * D * F) + rows * 2 * D * D
    assert bert_meter(bert(attention)).count(of_bert(rows, width)) == pytest.approx(3 * forward, rel=0.02)


def test_the_transformer_by_its_formula() -> None:
    config = TransformerConfig(
        kind="transformer", d_model=D, encoder_layers=LAYERS, decoder_layers=LAYERS, heads=HEADS, feed_forward=F
    )
    meter = FlopMeter(Objective(Summed(), Transformer(config, VOCABULARY, 0, 128)), ("src", "trg_in"))  # type: ignore[arg-type]
    rows, s, t = 3, 40, 56
    encoder, decoder = layer(s, s) + 4 * s * D * F, layer(t, t) + layer(t, s) + 4 * t * D * F
    forward = rows * (LAYERS * (encoder + decoder) + 2 * t * D * VOCABULARY)
    sizes = {"src": (rows, s), "trg_in": (rows, t), "labels": (rows, t)}
    assert meter.count(shape(**sizes)) == pytest.approx(3 * forward, rel=0.02)


def test_a_frozen_part_has_no_backward() -> None:
    model = bert()
    whole = bert_meter(model).count(of_bert(2, 32))
    for parameter in model.bert.parameters():
        parameter.requires_grad_(False)
    assert bert_meter(model).count(of_bert(2, 32)) == pytest.approx(whole / 3, rel=0.01)


def test_other_shapes_follow_from_a_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    meter = bert_meter()
    shapes = [of_bert(rows, width) for rows, width in ((3, 16), (5, 32), (8, 64), (2, 96), (4, 128), (7, 48), (1, 8))]
    expected = [meter.count(one) for one in shapes]
    counted: list[Shape] = []
    monkeypatch.setattr(meter, "count", lambda one: (counted.append(one), bert_meter().count(one))[1])
    for one, operations in zip(shapes, expected, strict=True):
        assert meter.total(Counter({one: 2})) == pytest.approx(2 * operations, rel=1e-6)
    assert len(counted) < len(shapes)
    wide = of_bert(2, 160)
    assert meter.total(Counter([wide])) == pytest.approx(bert_meter().count(wide), rel=1e-6)
    assert counted[-1] == wide, "wider than all before: the fit is not trusted"


def test_the_model_stays_as_it_is() -> None:
    model = bert().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    bert_meter(model).count(of_bert(2, 16))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None and parameter.device.type == "cpu" for parameter in model.parameters())


def test_a_model_that_needs_values_has_no_mfu() -> None:
    class Curious(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(torch.ones(int(x.sum()), 4))

    meter = FlopMeter(Objective(Summed(), Curious()), ("x",))  # type: ignore[arg-type]
    used = Utilization(1, meter, 1e12).of(Work(Counter([shape(x=(2, 3), labels=(2,))])), 10, 2.0)
    assert used == {"tokens_per_second_per_device": 5.0, "data_wait": 0.0, "rank_wait": 0.0}
    assert meter.error


def test_peaks_of_devices() -> None:
    assert peak_of("NVIDIA H100 80GB HBM3", "bf16", tf32=False) == 989.5e12
    assert peak_of("NVIDIA H100 PCIe", "fp16", tf32=False) == 756e12
    assert peak_of("NVIDIA A100-SXM4-80GB", "no", tf32=True) == 156e12
    assert peak_of("NVIDIA A100-SXM4-80GB", "no", tf32=False) == 19.5e12
    assert peak_of("NVIDIA H200 NVL", "bf16", tf32=False) == 835.5e12
    assert peak_of("NVIDIA L40S", "bf16", tf32=False) == 362.1e12
    assert peak_of("NVIDIA L4", "bf16", tf32=False) == 121e12
    for other in ("Another device", "NVIDIA L40", "NVIDIA A10G", "NVIDIA RTX A4000", "NVIDIA GB200"):
        assert peak_of(other, "bf16", tf32=False) is None, "no device whose name begins or ends in the same way"
    assert peak_of("NVIDIA H100 80GB HBM3", "fp8", tf32=False) == 989.5e12, "that of bf16"
    assert peak_of("NVIDIA H100 80GB HBM3", "int8", tf32=False) is None


@pytest.mark.ranks
def test_a_run_logs_its_mfu(recipe: Path, tmp_path: Path) -> None:
    words = ("loop.peak_tflops=0.5", "loop.max_steps=6", "loop.log_every=2", "evaluation.splits=[]")
    ended = train(recipe, tmp_path / "run", *words, world=2).check()
    _, *lines = (line for line in read_lines(tmp_path / "run/metrics.jsonl") if line["split"] == "train")
    for line in lines:
        assert line["mfu"] == pytest.approx(line["flops_per_second"] / 0.5e12)
        assert 0 < line["mfu"] < 1
        assert line["tokens_per_second_per_device"] == pytest.approx(line["tokens_per_second"] / 2)
        assert 0 <= line["data_wait"] + line["rank_wait"] < 1
        assert 0 < line["communication"] < 1
    assert "mfu" in ended.err[0]
    assert json.loads((tmp_path / "run/recipe.yaml").read_text().partition("peak_tflops: ")[2].split()[0]) == 0.5


def test_communication_is_a_share_of_the_time() -> None:
    work = Work()
    work.add(Work())
    assert "communication" not in Utilization(2).of(work, 100, 4.0)
    for _ in range(2):
        work.add(Work(communication=0.5))
    assert Utilization(2).of(work, 100, 4.0)["communication"] == pytest.approx(0.25)
