"""Regional compilation and activation checkpointing of the repeated layers."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hooks
import pytest
import torch
import yaml
from processes import train
from review_helpers import recipe, write_reviews, written
from safetensors.torch import load_file
from slow import slow_except
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

from trainer.errors import UsageError
from trainer.models.configs import EncoderConfig, TransformerConfig
from trainer.models.encoder import Encoder
from trainer.models.fast_attention import use_attention
from trainer.models.layers import checkpoint_activations, compile_layers, layer_classes, stacks_of
from trainer.models.transformer import Transformer
from trainer.recipe_loading import load_recipe

TOKENS = 30
SHAPES = [(3, 7), (4, 12), (2, 70), (5, 9), (6, 90), (1, 30), (7, 64), (3, 63), (1, 80), (8, 20)]  # rows, tokens


def transformer(dropout: float = 0.0, layers: int = 2) -> nn.Module:
    config = TransformerConfig(
        d_model=16, heads=2, feed_forward=32, encoder_layers=layers, decoder_layers=layers, dropout=dropout
    )
    return Transformer(config, TOKENS, 0, 100)


def encoder(dropout: float = 0.0, layers: int = 2) -> nn.Module:
    return Encoder(EncoderConfig(d_model=16, heads=2, feed_forward=32, layers=layers, dropout=dropout), TOKENS, 100)


def bert(dropout: float = 0.0, layers: int = 2) -> nn.Module:
    config = BertConfig(
        vocab_size=TOKENS, hidden_size=16, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=100, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
    )  # fmt: skip
    return pretrained(BertForMaskedLM(config))


def gpt2(dropout: float = 0.0, layers: int = 2) -> nn.Module:
    config = GPT2Config(
        vocab_size=TOKENS, n_embd=16, n_layer=layers, n_head=2, n_positions=100, bos_token_id=1, eos_token_id=1,
        resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout,
    )  # fmt: skip
    return pretrained(GPT2LMHeadModel(config))


def pretrained(model: nn.Module) -> nn.Module:
    use_attention(model, "auto")
    return model


def built(make: Callable[..., nn.Module], **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return make(**options).train()


def outputs(model: nn.Module, rows: int, tokens: int) -> Tensor:
    random = torch.Generator().manual_seed(rows * 1000 + tokens)
    ids = torch.randint(1, TOKENS, (rows, tokens), generator=random)
    ids[0, -2:] = 0
    if isinstance(model, Transformer):
        return model(ids, ids)
    if isinstance(model, Encoder):
        return model(ids, (ids != 0).long())
    if isinstance(model, GPT2LMHeadModel):
        return model(input_ids=ids, position_ids=torch.arange(tokens)[None].expand(rows, -1), use_cache=False).logits
    return model(input_ids=ids, attention_mask=(ids != 0).long(), use_cache=False).logits


def gradients(model: nn.Module, rows: int, tokens: int) -> dict[str, Tensor]:
    torch.manual_seed(7)
    model.zero_grad()
    outputs(model, rows, tokens).square().mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def equal(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Within `tolerance` times the largest of all: the gradient for the bias of keys is 0 but for rounding."""
    assert found.keys() == expected.keys()
    largest = max(float(tensor.abs().max()) for tensor in expected.values())
    for name, tensor in expected.items():
        assert float((found[name] - tensor).abs().max()) <= tolerance * largest, name


# -- regional compilation ----------------------------------------------------------------------------------------------


@pytest.fixture
def graphs() -> Iterator[list[Any]]:
    torch._dynamo.reset()
    yield []
    torch._dynamo.reset()


def recording(graphs: list[Any]) -> Any:
    """Return a backend that runs graphs as they are, and adds them to a list."""

    def backend(module: Any, inputs: Any) -> Any:
        graphs.append(module)
        return module.forward

    return backend


@pytest.mark.parametrize(("make", "classes"), slow_except([(transformer, 2), (bert, 1), (gpt2, 1)], (bert, 1)))
def test_layers_share_one_graph_for_all_lengths(
    graphs: list[Any], make: Callable[..., nn.Module], classes: int
) -> None:
    """One graph of a class for several rows, and one for a single row. Then no shape is compiled again."""
    plain = built(make)
    model = copy.deepcopy(plain)
    compile_layers(model, recording(graphs))
    assert list(model.state_dict()) == list(plain.state_dict())
    assert layer_classes(model) == layer_classes(plain)
    counts = []
    for rows, tokens in SHAPES:
        equal(gradients(model, rows, tokens), gradients(plain, rows, tokens), 1e-6)
        counts.append(len(graphs))
    first = SHAPES.index((1, 30))
    assert counts == [classes] * first + [2 * classes] * (len(SHAPES) - first)


def test_evaluation_runs_as_before_and_copies_have_their_own_weights(graphs: list[Any]) -> None:
    model = built(encoder)
    compile_layers(model, recording(graphs))
    with torch.no_grad():
        outputs(model.eval(), 3, 7)
    assert graphs == []
    other = copy.deepcopy(model).train()
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(0.5)
    assert not torch.equal(outputs(other, 3, 7), outputs(model.train(), 3, 7))
    assert len(graphs) == 1


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(UsageError, match=r"loop\.compile=layers: Linear has no repeated layers"):
        compile_layers(nn.Linear(2, 2))


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.slow
def test_compiled_gradients_are_those_of_the_plain_layers(graphs: list[Any]) -> None:
    """By inductor. With dropout, a layer that runs again draws the mask that it has drawn before."""
    plain, model = built(bert), built(bert)
    compile_layers(model)
    for rows, tokens in SHAPES[:3]:
        equal(gradients(model, rows, tokens), gradients(plain, rows, tokens), 1e-4)
    once, again = (built(bert, dropout=0.3) for _ in range(2))
    checkpoint_activations(again)
    for each in (once, again):
        compile_layers(each)
    equal(gradients(again, 3, 7), gradients(once, 3, 7), 1e-5)
    assert not torch.equal(outputs(once, 3, 7), outputs(once, 3, 7))


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "engines"),
    [
        ("loop.activation_checkpointing=none", ("ddp", "fsdp2", "zero2", "zero3")),
        ("loop.activation_checkpointing=full", ("ddp", "fsdp2")),
    ],
)
def test_every_engine_makes_the_same_steps_with_compiled_layers(
    tmp_path: Path, setting: str, engines: tuple[str, ...]
) -> None:
    """Also with dropout, whose seeds come from step and lane: on one rank and on two."""
    made = written(tmp_path, recipe(write_reviews(tmp_path)))
    words = ["loop.compile=layers", setting, "loop.max_steps=2", "evaluation.splits=[]", "data.validation=null"]
    words += ["optim.name=sgd", "optim.lr=0.1", "loop.early_stopping.patience=null"]
    runs = {}
    for engine in ("single", *engines):
        run, world = tmp_path / engine, 1 if engine == "single" else 2
        train(made, run, *words, world=world, engine=engine, hook=hooks.layers_traced_only).check()
        runs[engine] = load_file(run / "checkpoints/step-00000002/model.safetensors")
    for weights in runs.values():
        equal(weights, runs["single"], 1e-5)


# -- activation checkpointing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [transformer, encoder, bert, gpt2])
@pytest.mark.parametrize(("every", "runs"), [(1, 3), (2, 2), (3, 1)])
def test_the_first_of_each_n_layers_runs_again(make: Callable[..., nn.Module], every: int, runs: int) -> None:
    """The first and the third of three layers for n = 2; the gradients are the same bits."""
    plain, model = (built(make, dropout=0.3, layers=3) for _ in range(2))
    checkpoint_activations(model, every)
    inner: list[int] = []
    for stack in stacks_of(model).values():
        for layer in stack:
            first = next(m for m in layer.modules() if isinstance(m, nn.Linear | nn.LayerNorm))
            first.register_forward_hook(lambda *_: inner.append(1))
    expected, found = gradients(plain, 3, 7), gradients(model, 3, 7)
    assert len(inner) == len(stacks_of(model)) * (3 + runs)
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())


@pytest.mark.parametrize(
    ("value", "layers"),
    [("false", 0), ("none", 0), ("true", 1), ("full", 1), ("{every: 1}", 1), ("{every: 2}", 2)],
)
def test_the_choices_in_a_recipe(tmp_path: Path, value: str, layers: int) -> None:
    path = written(tmp_path, recipe(write_reviews(tmp_path)))
    loop = load_recipe(path, [f"loop.activation_checkpointing={value}"]).loop
    assert loop.checkpointed_layers == layers
    assert yaml.safe_load(load_recipe(path).to_yaml())["loop"]["activation_checkpointing"] is False


@pytest.mark.parametrize("value", ["half", "{every: 0}", "{each: 2}", "{}", "2"])
def test_other_choices_are_refused(tmp_path: Path, value: str) -> None:
    path = written(tmp_path, recipe(write_reviews(tmp_path)))
    with pytest.raises(UsageError, match=r"loop\.activation_checkpointing"):
        load_recipe(path, [f"loop.activation_checkpointing={value}"])


def test_a_model_without_activation_checkpointing_is_refused() -> None:
    with pytest.raises(UsageError, match=r"loop\.activation_checkpointing: Linear does not support it"):
        checkpoint_activations(nn.Linear(2, 2))
