"""The own encoder: linear biases that let half of the heads see each side, and word dropout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from export_helpers import EXPORT, decided, exported, finished_run
from gate_helpers import run_gate
from pydantic import ValidationError
from review_helpers import recipe, task_of

from trainer.models.attention import MASKED, alibi
from trainer.models.configs import EncoderConfig
from trainer.models.encoder import Encoder
from trainer.models.explain import recording

SMALL = {"d_model": 16, "heads": 4, "layers": 2, "feed_forward": 32, "dropout": 0.0}


def model_of(positions: str) -> Encoder:
    torch.manual_seed(1)
    return Encoder(EncoderConfig(**SMALL, positions=positions), 30, 12).eval()


def test_biases_against_the_formula() -> None:
    found = alibi(4, 6, torch.device("cpu"))
    assert found.shape == (1, 4, 6, 6)
    for head, (slope, side) in enumerate([(1.0, -1), (1.0, 1), (0.25, -1), (0.25, 1)]):
        for i in range(6):
            for j in range(6):
                seen = (j - i) * side >= 0
                assert found[0, head, i, j] == (-slope * abs(i - j) if seen else slope * MASKED)


def test_half_of_the_heads_see_each_side() -> None:
    model, ids = model_of("alibi"), torch.arange(1, 9)[None]
    with torch.no_grad(), recording() as found:
        model(ids, torch.ones_like(ids))
    assert len(found) == 2
    for _, weights in found:
        before, after = weights[0, ::2], weights[0, 1::2]
        assert torch.equal(before, before.tril())
        assert torch.equal(after, after.triu())
        assert (before.tril() > 0).sum() == (after > 0).sum() == 2 * 36


@pytest.mark.parametrize("positions", ["sinusoidal", "alibi"])
def test_padding_changes_nothing_and_order_counts(positions: str) -> None:
    model, ids = model_of(positions), torch.arange(1, 9)[None]
    mask = torch.cat([torch.ones_like(ids), torch.zeros(1, 4, dtype=torch.int64)], 1)
    with torch.no_grad():
        alone = model(ids, torch.ones_like(ids))
        padded = model(torch.cat([ids, torch.zeros(1, 4, dtype=torch.int64)], 1), mask)
        turned = model(ids.flip(1), torch.ones_like(ids)).flip(1)
    torch.testing.assert_close(padded[:, :8], alone, atol=1e-6, rtol=1e-5)
    assert (turned - alone).abs().max() > 0.01


def test_word_dropout_takes_complete_embeddings_in_training_only() -> None:
    torch.manual_seed(1)
    model, inputs = Encoder(EncoderConfig(**SMALL, word_dropout=0.25), 30, 256), []
    model.dropout.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    ids = torch.randint(30, (8, 256))
    model(ids)
    model.eval()(ids)
    # what is added to positions: 4 is the square root of the width
    dropped, kept = ((x - model.positions) / 4 - model.type_embedding.weight[0] for x in inputs)
    torch.testing.assert_close(kept, model.embedding(ids), atol=1e-5, rtol=1e-4)
    zero = dropped.abs().amax(-1) < 1e-5
    assert 0.2 < zero.float().mean() < 0.3
    torch.testing.assert_close(dropped[~zero], model.embedding(ids)[~zero] / 0.75, atol=1e-5, rtol=1e-4)


def test_both_sides_need_heads() -> None:
    with pytest.raises(ValidationError, match="heads=3 is odd: with positions=alibi"):
        EncoderConfig(**{**SMALL, "d_model": 18, "heads": 3}, positions="alibi")


@pytest.mark.usefixtures("near")
def test_its_artifact_passes_the_gate(reviews: Path, tmp_path: Path) -> None:
    model = {"kind": "encoder", **SMALL, "positions": "alibi"}
    made = recipe(reviews, model, tokenizer={"train": {"kind": "wordpiece", "vocab_size": 90}}, export=EXPORT)
    made = exported(finished_run(tmp_path / "run", made, task_of(made).tokenizer, decided))
    found = run_gate(made, made.folder)
    assert found["passed"], found
    examples = [row.example for row in made.rows()[1][:7]]
    ours = made.export.torch_logits(made.finished.model, examples)
    for a, b in zip(made.export.artifact_logits(made.artifact, examples), ours, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
