"""benchmarks/gpu.py without a GPU: its formula of operations, the idle share, and a whole run with tiny models."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from test_utilization import Summed, bert_meter, of_bert, shape
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from benchmarks.device_meter import idle_share
from benchmarks.gpu_work import TINY, Workload, operations, pretrained, transformer
from trainer.engine.objective import Objective
from trainer.engine.utilization import FlopMeter
from trainer.models.configs import TransformerConfig
from trainer.models.transformer import Transformer

ROOT = Path(__file__).parent.parent
VOCABULARY = 100


def test_idle_is_the_time_without_any_kernel() -> None:
    assert idle_share([]) is None
    assert idle_share([(0, 10), (5, 20), (30, 40)]) == pytest.approx(10 / 40)
    assert idle_share([(30, 40), (0, 40)]) == 0


def test_operations_of_a_classifier() -> None:
    sizes = {**TINY, "hidden_size": 64, "intermediate_size": 256}
    model = BertForSequenceClassification(BertConfig(**sizes, vocab_size=VOCABULARY))
    found = operations(Workload("", "classifier", pretrained("bert", sizes), 64, 0), VOCABULARY, 48)
    assert found == pytest.approx(bert_meter(model).count(of_bert(1, 48)), rel=0.02)


def test_operations_of_a_language_model() -> None:
    sizes = {"n_layer": 2, "n_embd": 64, "n_head": 2}
    model = GPT2LMHeadModel(GPT2Config(**sizes, vocab_size=VOCABULARY))
    model.set_attn_implementation("eager")
    meter = FlopMeter(Objective(Summed(), model), ("input_ids",))  # type: ignore[arg-type]
    counted = meter.count(shape(input_ids=(1, 48), labels=(1, 48)))
    found = operations(Workload("", "causal", pretrained("gpt2", sizes), 64, 0), VOCABULARY, 48)
    assert found == pytest.approx(counted, rel=0.02)


def test_operations_of_a_translation_model() -> None:
    sizes = {**transformer(64, 2), "encoder_layers": 2, "decoder_layers": 1}
    model = Transformer(TransformerConfig(**sizes), VOCABULARY, 0, 128)
    meter = FlopMeter(Objective(Summed(), model), ("src", "trg_in"))  # type: ignore[arg-type]
    counted = meter.count(shape(src=(1, 40), trg_in=(1, 56), labels=(1, 56)))
    found = operations(Workload("", "translation", sizes, 64, 0), VOCABULARY, 40, 56)
    assert found == pytest.approx(counted, rel=0.02)


@pytest.mark.slow
def test_it_runs_on_a_cpu(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    words = ["--device", "cpu", "--skip-tests", "--workers", "0", "--repeats", "1"]
    done = subprocess.run(
        [sys.executable, "benchmarks/gpu.py", "--json", str(out), *words], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    workloads = json.loads(out.read_text(encoding="utf-8"))["workloads"]
    assert set(workloads) == {"tiny BERT", "tiny GPT-2", "tiny Transformer"}
    for name, results in workloads.items():
        assert set(results) == {"rankzero", "transformers' Trainer"}, (name, results)
        assert all(one["tokens_per_second"]["median"] > 0 for one in results.values())
