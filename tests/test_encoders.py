"""Encoders of the transformers library by name only: each trains, is killed, resumes, evaluates and predicts."""

from __future__ import annotations

import json
import signal
from functools import partial
from pathlib import Path
from typing import Any

import hooks
import numpy as np
import processes
import pytest
import torch
from review_helpers import NAMES, recipe, written
from safetensors.numpy import load_file
from slow import slow_except
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from trainer import evaluate, predict
from trainer.models.pretrained import position_limit

FAMILIES: dict[str, dict[str, Any]] = {
    "roberta": {},
    "distilbert": {},
    "albert": {},
    "electra": {},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False},
    "modernbert": {"layer_types": ["full_attention", "sliding_attention"], "local_attention": 8},
    "xlnet": {},
    "longformer": {"attention_window": 8},
    "big_bird": {"block_size": 2, "num_random_blocks": 1},
    "reformer": {"local_attn_chunk_length": 8, "lsh_attn_chunk_length": 8},
}
STILL = {  # what the loss does not depend on: it is left as it is
    "xlnet": ("mask_emb", "r_s_bias", "seg_embed"),
    "longformer": ("layer.1.attention.self.query.", "layer.1.attention.self.key.", "layer.1.attention.self.value."),
    "big_bird": ("pooler",),
}
OWN_WAYS = ("xlnet", "longformer", "big_bird", "reformer")  # of padding and drawing: here the ranks are counted, too
STEPS = 6
TEXTS = ["a good film", "bad bad bad story and the awful plot was very poor with some dull scenes"]


def recipe_of(root: Path, family: str, **sections: Any) -> Any:
    """Two layers of random weights, with dropout; SGD, whose steps do not amplify rounding."""
    model = {"kind": "pretrained", "architecture": family, "size": "tiny", "config": FAMILIES[family], "dropout": 0.1}
    kind = {"albert": "unigram", "deberta-v2": "unigram", "xlnet": "unigram", "big_bird": "unigram"}
    kind |= dict.fromkeys(("roberta", "modernbert", "longformer"), "byte_bpe") | {"reformer": "unigram"}
    words = {"byte_bpe": 280}.get(kind.get(family, "wordpiece"), 90)
    base: dict[str, Any] = {
        "optim": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
        "loop": {"max_steps": STEPS, "eval_every": 3, "save_every": 3},
        "tokenizer": {"train": {"kind": kind.get(family, "wordpiece"), "vocab_size": words}},
    }
    merged = {name: {**base.get(name, {}), **sections.get(name, {})} for name in {*base, *sections}}
    return recipe(root, model, **merged)


def weights(run: Path, step: int = STEPS) -> dict[str, np.ndarray]:
    return load_file(run / f"checkpoints/step-{step:08d}/model.safetensors")


def run_of(tmp_path: Path, made: Any, name: str, ranks: int, hook: Any = None) -> tuple[Path, processes.Ended]:
    """Without the evaluation at the end: its report takes longer than the training."""
    run = tmp_path / name
    return run, processes.train(written(tmp_path, made), run, "evaluation.splits=[]", world=ranks, hook=hook)


@pytest.mark.ranks
@pytest.mark.parametrize("family", slow_except(FAMILIES, "deberta-v2", "big_bird"))
def test_every_encoder_trains_resumes_and_predicts(reviews: Path, tmp_path: Path, family: str) -> None:
    """Two ranks, one killed in step 5: the same bits as without; one rank makes the same steps; model/ stands alone."""
    made = recipe_of(reviews, family)
    whole, ended = run_of(tmp_path, made, "whole", 2)
    ended.check()
    run, ended = run_of(tmp_path, made, "killed", 2, partial(hooks.at_micro_batch, 5, 1))
    assert -signal.SIGKILL in ended.codes, ended.text
    run_of(tmp_path, made, "killed", 2)[1].check()
    found, expected = weights(run), weights(whole)
    assert found.keys() == expected.keys()
    assert [name for name in expected if not np.array_equal(found[name], expected[name])] == []
    first = weights(whole, 3)
    still = [name for name in expected if np.array_equal(first[name], expected[name])]
    assert [name for name in still if not any(part in name for part in STILL.get(family, ()))] == []
    if family in OWN_WAYS:
        alone, ended = run_of(tmp_path, made, "alone", 1)
        ended.check()
        single = weights(alone)
        assert max(float(np.abs(single[name] - expected[name]).max()) for name in expected) <= 1e-6
    scores = evaluate(run)
    assert scores["rows"] == 40
    assert (run / "evaluation/test/predictions.jsonl").read_text().count("\n") == 40
    assert evaluate(run) == scores
    _compare_with_the_library(run, list(predict(run, TEXTS)))


@pytest.mark.ranks
@pytest.mark.slow
def test_reversible_layers_train_under_zero3_and_their_evaluation_gathers_them(reviews: Path, tmp_path: Path) -> None:
    made = recipe_of(reviews, "reformer")
    found = []
    for engine, ranks in (("single", 1), ("zero3", 2)):
        run = tmp_path / engine
        processes.train(written(tmp_path, made), run, world=ranks, engine=engine).check()
        found.append(json.loads((run / "evaluation/test/metrics.json").read_text()))
    assert found[0]["loss"] == pytest.approx(found[1]["loss"], abs=1e-3)


@pytest.mark.ranks
def test_reversible_layers_are_refused_under_fsdp2(reviews: Path, tmp_path: Path) -> None:
    path, run = written(tmp_path, recipe_of(reviews, "reformer")), tmp_path / "run"
    ended = processes.train(path, run, world=2, engine="fsdp2").check(2)
    assert "Traceback" not in ended.text
    assert "runs its reversible layers again" in ended.err[0]
    assert "ddp, zero1, zero2 or zero3" in ended.err[0]


def _compare_with_the_library(run: Path, records: list[dict[str, Any]]) -> None:
    """transformers loads model/ and answers as `predict` does, padded as its tokenizer says."""
    theirs: Any = AutoModelForSequenceClassification.from_pretrained(run / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    width = {"big_bird": 16}.get(theirs.config.model_type, 8)  # a block-sparse attention goes over to full below
    inputs = tokenizer(TEXTS, truncation=True, padding=True, pad_to_multiple_of=width, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)  # Reformer's hashing
        p = theirs(**inputs).logits.double().softmax(-1)
    ours = [[record["probabilities"][name] for name in NAMES] for record in records]
    np.testing.assert_allclose(ours, p.numpy(), atol=1e-5)
    assert json.loads((run / "model/config.json").read_text())["id2label"] == {"0": NAMES[0], "1": NAMES[1]}


@pytest.mark.parametrize("kind", ["bert", "roberta", "camembert", "mpnet", "electra"])
def test_the_limit_of_positions_is_what_a_model_can_read(kind: str) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = AutoConfig.for_model(kind, **sizes, vocab_size=30, max_position_embeddings=20, pad_token_id=1)
    limit = position_limit(config)
    assert limit is not None
    model = AutoModel.from_config(config).eval()
    model(torch.full((1, limit), 5))
    with pytest.raises((IndexError, RuntimeError, ValueError)):
        model(torch.full((1, limit + 1), 5))
