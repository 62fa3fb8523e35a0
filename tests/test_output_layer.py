"""Output layer and loss in chunks: equal to the plain ones, and no tensor of all logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)

from trainer.models import output_layer
from trainer.models.configs import TransformerConfig
from trainer.models.loss import IGNORED, cross_entropy_sum
from trainer.models.output_layer import DeferredLogits, deferred_logits
from trainer.models.transformer import Transformer

TOKENS, ROWS, LENGTH = 60, 4, 9


class Largest(TorchDispatchMode):
    """Record the number of elements of the largest tensor that an operation returns."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def transformer(tied: Any) -> nn.Module:
    settings = {"d_model": 8, "heads": 2, "feed_forward": 16, "encoder_layers": 1, "decoder_layers": 1}
    return Transformer(TransformerConfig(**settings, tied_embeddings=tied, dropout=0.0), TOKENS, 0, 20)


def t5(tied: bool) -> nn.Module:
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0}
    special = {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1}
    return T5ForConditionalGeneration(T5Config(vocab_size=TOKENS, **sizes, **special, tie_word_embeddings=tied))


def gpt2() -> nn.Module:
    off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 1, "eos_token_id": 1}
    return GPT2LMHeadModel(GPT2Config(vocab_size=TOKENS, n_embd=8, n_layer=1, n_head=2, n_positions=20, **off))


def bert() -> nn.Module:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "max_position_embeddings": 20}
    return BertForMaskedLM(BertConfig(vocab_size=TOKENS, **sizes, **off))


def bart() -> nn.Module:
    """A model that adds a bias after its output layer."""
    sizes = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 20}
    special = {"bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2, "forced_eos_token_id": None}
    return BartForConditionalGeneration(BartConfig(vocab_size=TOKENS, dropout=0.0, **sizes, **heads, **special))


MODELS = {
    "transformer": lambda: transformer(True), "transformer, separate output": lambda: transformer(False),
    "t5": lambda: t5(True), "t5, separate output": lambda: t5(False), "gpt2": gpt2, "bert": bert, "bart": bart,
}  # fmt: skip


def batch() -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(5)
    ids, labels = (torch.randint(3, TOKENS, (ROWS, LENGTH), generator=random) for _ in range(2))
    labels[:, ::4] = IGNORED
    return ids, labels


def logits_of(model: nn.Module, ids: Tensor) -> Tensor:
    if isinstance(model, Transformer):
        return model(ids, ids)
    if model.config.is_encoder_decoder:  # type: ignore[union-attr]
        return model(input_ids=ids, decoder_input_ids=ids, use_cache=False).logits
    return model(input_ids=ids).logits


def step(model: nn.Module, smoothing: float, autocast: bool = False) -> tuple[Tensor, dict[str, Tensor], int]:
    """Loss, gradients, and the elements of the largest tensor of the output layer and the backward pass."""
    model.zero_grad()
    ids, labels = batch()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), deferred_logits(model):
        logits = logits_of(model, ids).flatten(0, 1)
        with Largest() as largest:  # type: ignore[no-untyped-call]
            loss = cross_entropy_sum(logits, labels.flatten(), smoothing)
    with largest:
        (loss * 0.37).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), gradients, largest.elements


def both(monkeypatch: pytest.MonkeyPatch, model: nn.Module, smoothing: float = 0.0, autocast: bool = False) -> Any:
    plain = step(model, smoothing, autocast)
    monkeypatch.setattr(output_layer, "MOST_LOGITS", 5 * TOKENS)  # rows of a chunk: 5 of 36
    return plain, step(model, smoothing, autocast)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradients_are_those_of_all_logits(
    monkeypatch: pytest.MonkeyPatch, name: str, smoothing: float
) -> None:
    torch.manual_seed(0)
    model = MODELS[name]().train()
    plain, chunked = both(monkeypatch, model, smoothing)
    torch.testing.assert_close(chunked[0], plain[0], rtol=1e-6, atol=0)
    assert chunked[1].keys() == plain[1].keys()
    largest = max(float(gradient.abs().max()) for gradient in plain[1].values())
    for parameter, gradient in plain[1].items():
        assert float((chunked[1][parameter] - gradient).abs().max()) <= 1e-6 * largest, parameter
    assert plain[2] >= ROWS * LENGTH * TOKENS
    if name != "bart":
        assert chunked[2] < ROWS * LENGTH * TOKENS
    assert "forward" not in vars(getattr(model, "lm_head", model))


def test_bf16_is_as_exact_as_all_logits_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = gpt2().train()
    _, exact, _ = step(model, 0.1)
    plain, chunked = both(monkeypatch, model, 0.1, autocast=True)
    torch.testing.assert_close(chunked[0], plain[0], rtol=1e-3, atol=0)
    squares = [
        sum(float((found[1][name] - g).square().sum()) for name, g in exact.items()) for found in (plain, chunked)
    ]
    assert 0 < squares[1] ** 0.5 <= 1.5 * squares[0] ** 0.5  # chunks of 5 rows, each of whose sums is rounded


def test_other_operations_have_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_layer, "MOST_LOGITS", 10)
    torch.manual_seed(0)
    model = gpt2().train()
    ids, _ = batch()
    expected = logits_of(model, ids)
    with deferred_logits(model):
        logits = logits_of(model, ids)
        assert isinstance(logits, DeferredLogits)
        assert (logits.shape, logits.dtype, logits.dim()) == (expected.shape, torch.float32, 3)
        places = torch.tensor([3, 8, 30])
        chosen = logits.flatten(0, 1).index_select(0, places)
        assert isinstance(chosen, DeferredLogits)
        labels = torch.tensor([4, IGNORED, 7])
        found = cross_entropy_sum(chosen, labels)
        assert torch.equal(logits.argmax(-1), expected.argmax(-1))
        assert torch.equal(2 * logits + 1, 2 * expected + 1)
        assert torch.equal(logits.float()[:, 1], expected[:, 1])
        with torch.no_grad():
            assert not isinstance(logits_of(model, ids), DeferredLogits)
    wanted = F.cross_entropy(expected.flatten(0, 1)[places], labels, reduction="sum")
    torch.testing.assert_close(found, wanted)
    assert not isinstance(logits_of(model, ids), DeferredLogits)


def test_a_small_micro_batch_has_all_logits() -> None:
    model = gpt2().train()
    with deferred_logits(model):
        assert not isinstance(logits_of(model, batch()[0]), DeferredLogits)
