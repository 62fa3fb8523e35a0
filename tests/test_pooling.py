"""One vector for a text: of a causal trunk the last token's, of an encoder-decoder the encoder's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import processes
import pytest
import torch
from family_helpers import FEW, LENGTH, TOKENS, batch_of, model_class, text_families, tiny_model
from review_helpers import recipe, written
from slow import slow_except
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.models.auto import modeling_auto as auto

from trainer import embed
from trainer.data.tokenization import train_tokenizer
from trainer.engine.trained_run import build_model
from trainer.errors import UsageError
from trainer.models.pooling import classify_at_last_end, ends_with_summary, is_causal, pool, reading_part
from trainer.recipe_loading import Recipe
from trainer.task.registry import make_task

NOT_TRIED = {  # family: why
    "cohere_compass_text": "its rotary positions are configured for its own layer types only",
    "dbrx": "its nested attention configuration has no rotary base in this version of the library",
    "fsmt": "its encoder has no configuration of its own",
    "fuyu": "reads images: its text model is a configuration within the configuration",
    "glm5_next_text": "only sizes of its own are accepted",
    "hunyuan_vl_text": "needs positions for images and text",
    "kyutai_speech_to_text": "reads sound",
    "mra": "looks at blocks of 32 tokens",
    "layoutlmv2": "needs a library that is not installed",
    "layoutlmv3": "reads pages",
    "lilt": "reads pages",
    "seamless_m4t": "has several encoders",
    "seamless_m4t_v2": "has several encoders",
    "t5gemma": "encoder and decoder are configurations within the configuration",
    "t5gemma2": "encoder and decoder are configurations within the configuration",
    "voxtral_realtime_text": "the library maps it to a class that does not exist",
    "whisper": "reads sound",
    "xlstm": "needs other sizes",
    "zamba": "needs other sizes",
    "zamba2": "needs other sizes",
    "funnel": "needs other sizes",
} | dict.fromkeys(
    ("bailing_hybrid", "bamba", "jamba", "kimi_linear", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next",
     "qwen4_exp_text"),
    "two layers of it have no attention",
)  # fmt: skip


@pytest.mark.parametrize(
    "family", slow_except([name for name in text_families() if name in auto.MODEL_MAPPING_NAMES], *FEW)
)
def test_causal_families_are_those_whose_first_token_sees_no_other(family: str) -> None:
    if family in NOT_TRIED:
        pytest.skip(f"{family}: {NOT_TRIED[family]}")
    if model_class(family, text_families()[family]) is None:
        pytest.skip(f"{family}: reads more than text, or only images or sound")
    trunk = reading_part(tiny_model(family, "AutoModel").eval())
    ids = torch.randint(3, TOKENS, (1, 12), generator=torch.Generator().manual_seed(1))
    other = ids.clone()
    other[0, 1] = (ids[0, 1] - 2) % (TOKENS - 3) + 3
    with torch.no_grad():
        before, after = (trunk(input_ids=x, attention_mask=torch.ones_like(x))[0] for x in (ids, other))
    moved = float((before[:, 0] - after[:, 0]).abs().max() / before[:, 0].abs().max())
    assert is_causal(trunk) == (moved < 1e-5), moved


@pytest.mark.parametrize("family", ["bert", "roberta", "big_bird", "rembert", "bert-generation"])
def test_an_encoder_as_a_decoder_is_causal(family: str) -> None:
    assert not is_causal(tiny_model(family, "AutoModel"))
    assert is_causal(tiny_model(family, "AutoModel", is_decoder=True))


def test_a_decoder_with_bidirectional_attention_is_not_causal() -> None:
    assert is_causal(tiny_model("gemma3_text", "AutoModel"))
    assert not is_causal(tiny_model("gemma3_text", "AutoModel", use_bidirectional_attention=True))


def test_the_last_token_is_found_on_either_side_of_the_padding() -> None:
    hidden = torch.arange(24.0).view(3, 4, 2)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1]])
    assert pool(hidden, mask, "cls", last=True).tolist() == [[6, 7], [10, 11], [22, 23]]
    assert pool(hidden, mask, "cls").tolist() == [[0, 1], [8, 9], [16, 17]]
    assert pool(hidden, mask, "mean").tolist() == [[3, 4], [9, 10], [21, 22]]


TEXTS = ["the film is good", "the film is bad", "the film is a thing that I like"] * 10


def task_of(family: str, pooling: str, **config: Any) -> Any:
    model = {"kind": "pretrained", "architecture": family, "size": "tiny", "pooling": pooling, "config": config}
    made = Recipe.parse(
        {
            "name": "x",
            "task": {"kind": "classification", "labels": ["neg", "pos"]},
            "data": {"root": "embedded://reviews", "train": "train?rows=10", "max_length": 32, "tokens_per_batch": 256},
            "model": {**model, "dropout": 0.0},
            "loop": {"max_steps": 1},
        }
    )
    settings: Any = made.tokenizer_training
    return make_task(made, train_tokenizer(TEXTS, settings, 32))


def batch(task: Any, *texts: str) -> dict[str, Tensor]:
    found: dict[str, Tensor] = task.collate(task.encode([{"text": text, "label": "pos"} for text in texts]))
    return found


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("gpt2", {}),
        ("llama", {}),
        ("qwen2", {"num_key_value_heads": 2}),
        ("bert", {"is_decoder": True}),
        ("xlnet", {}),
        ("mamba", {}),
    ],
)
def test_with_pooling_cls_a_causal_trunk_gives_its_last_token(family: str, config: dict[str, Any]) -> None:
    """Also in a batch with a longer text, where it is padded."""
    task = task_of(family, "cls", **config)
    model: Any = build_model(task).eval()
    seen = {}
    model.head.register_forward_pre_hook(lambda _, inputs: seen.update(x=inputs[0]))
    rows = batch(task, TEXTS[0], TEXTS[2], TEXTS[1])
    with torch.no_grad():
        task.logits(model, rows)
        pooled = seen["x"]
        for row, text in enumerate((TEXTS[0], TEXTS[2], TEXTS[1])):
            alone = batch(task, text)
            length = int(alone["attention_mask"].sum())
            states = model.trunk(input_ids=alone["input_ids"], attention_mask=alone["attention_mask"])[0][0]
            last = states[-1] if task.padding.left else states[length - 1]
            torch.testing.assert_close(pooled[row], last, atol=1e-4, rtol=1e-4)
    assert float((pooled[0] - pooled[2]).abs().max()) > 1e-4, "two texts with the same beginning"


def test_with_pooling_cls_an_encoder_gives_its_first_token() -> None:
    task = task_of("bert", "cls")
    model: Any = build_model(task)
    assert not ends_with_summary(model.trunk)


@pytest.mark.parametrize("family", ["bart", "t5", "mbart", "longt5", "switch_transformers"])
@pytest.mark.parametrize("pooling", ["cls", "mean", "max"])
def test_of_an_encoder_decoder_the_encoder_is_pooled(family: str, pooling: str) -> None:
    task = task_of(family, pooling)
    model: Any = build_model(task).eval()
    assert not any("decoder" in name for name, _ in model.named_parameters())
    loss = task.loss(model, batch(task, TEXTS[0], "a <s>bad</s> film </s> </s>"))
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    "family", ["bart", "t5", "mt5", "umt5", "mbart", "mvp", "plbart", "bigbird_pegasus"]
)  # fmt: skip
def test_a_text_that_contains_ends_of_text_is_classified_by_its_last_one(family: str) -> None:
    """As the library does with a row by itself; it refuses rows with different numbers of them."""
    model = tiny_model(family, "AutoModelForSequenceClassification").eval()
    rows = batch_of(model) | {"attention_mask": torch.ones(3, LENGTH, dtype=torch.int64)}
    rows.pop("decoder_input_ids")
    ids = rows["input_ids"]
    end = model.config.eos_token_id
    ids[ids == 0] = 5
    ids[0, -1] = ids[1, -1] = ids[2, -3] = ids[1, 3] = ids[1, 6] = ids[2, 2] = end
    rows["attention_mask"][2, -2:] = 0
    ids[2, -2:] = 0
    with torch.no_grad():
        expected = torch.cat([model(**{name: x[n : n + 1] for name, x in rows.items()}).logits for n in range(3)])
        with pytest.raises(ValueError, match="same number"):
            model(**rows)
        classify_at_last_end(model)
        torch.testing.assert_close(model(**rows).logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_own_heads_train_on_texts_that_contain_ends_of_text(family: str) -> None:
    task = task_of(family, "auto")
    model = build_model(task)
    loss = task.loss(model, batch(task, TEXTS[0], "a <s>bad</s> film", "</s></s>"))
    assert bool(torch.isfinite(loss))


@pytest.mark.parametrize("family", ["bert", "roberta", "reformer"])
def test_a_head_that_reads_the_first_token_is_refused_on_a_causal_trunk(family: str) -> None:
    config = {"is_decoder": True}
    with pytest.raises(UsageError, match="reads the first token, which sees no other one"):
        build_model(task_of(family, "auto", **config))
    build_model(task_of(family, "mean", **config))


@pytest.mark.ranks
@pytest.mark.parametrize("family", slow_except(["bart", "t5"], "t5"))
def test_vectors_of_a_run_of_an_encoder_decoder_are_those_of_its_encoder(
    reviews: Path, tmp_path: Path, family: str
) -> None:
    made = recipe(
        reviews, {"kind": "pretrained", "architecture": family, "size": "tiny"},
        tokenizer={"train": {"kind": "unigram", "vocab_size": 60}}, evaluation={"splits": []},
        data={"validation": None}, loop={"max_steps": 1},
    )  # fmt: skip
    run = tmp_path / "run"
    processes.train(written(tmp_path, made), run).check()
    encoder: Any = AutoModelForSequenceClassification.from_pretrained(run / "model").eval().base_model.get_encoder()
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    for record in embed(run, ["a good film", "a bad </s> film with a plot"], pooling="tokens"):
        ids = torch.tensor([tokenizer.convert_tokens_to_ids(record.tokens)])
        with torch.no_grad():
            expected = encoder(input_ids=ids).last_hidden_state[0].numpy()
        np.testing.assert_allclose(record.vector, expected, atol=1e-5)
