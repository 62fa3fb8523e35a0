"""Our Transformer compared with torch, and the properties that training and decoding rely on."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from trainer.errors import UsageError
from trainer.models.attention import Attention, causal_mask, padding_mask, sinusoids
from trainer.models.configs import TransformerConfig
from trainer.models.layers import checkpoint_activations
from trainer.models.transformer import DecoderLayer, EncoderLayer, Transformer

VOCAB, PAD, LONGEST = 50, 0, 24


def _config(**changes):
    sizes = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "heads": 4, "feed_forward": 48, "dropout": 0.0}
    return TransformerConfig(**{**sizes, **changes})


def _model(seed=0, **changes):
    torch.manual_seed(seed)
    return Transformer(_config(**changes), VOCAB, PAD, LONGEST).eval()


def _ids(*shape, seed=1):
    return torch.randint(4, VOCAB, shape, generator=torch.Generator().manual_seed(seed))


# -- torch's arithmetic ------------------------------------------------------------------------------------------------


def _copy_attention(ours: Attention, theirs: nn.MultiheadAttention) -> None:
    packed = [ours.query_key_value] if hasattr(ours, "query_key_value") else [ours.query, ours.key_value]
    theirs.in_proj_weight.data.copy_(torch.cat([linear.weight for linear in packed]))
    theirs.out_proj.weight.data.copy_(ours.output.weight)
    theirs.in_proj_bias.data.zero_()
    theirs.out_proj.bias.data.zero_()


def _copy_layer(ours: EncoderLayer | DecoderLayer, theirs: nn.Module) -> None:
    _copy_attention(ours.attention, theirs.self_attn)
    norms = [ours.attention_norm, ours.feed_forward_norm]
    if isinstance(ours, DecoderLayer):
        _copy_attention(ours.cross_attention, theirs.multihead_attn)
        norms.insert(1, ours.cross_attention_norm)
    pairs = [(ours.feed_forward.inner, theirs.linear1), (ours.feed_forward.outer, theirs.linear2)]
    pairs += [(norm, getattr(theirs, f"norm{i}")) for i, norm in enumerate(norms, 1)]
    for a, b in pairs:
        b.load_state_dict(a.state_dict())


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_agrees_with_torch(attention, norm, activation):
    config = _config(norm=norm, activation=activation, attention=attention)
    torch.manual_seed(0)
    ours = Transformer(config, VOCAB, PAD, LONGEST)
    theirs = nn.Transformer(32, 4, 2, 2, 48, 0.0, activation, norm_first=norm == "pre", batch_first=True)
    for parameter in ours.parameters():  # biases and norms away from 0 and 1, so that they are seen
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    layers = [*theirs.encoder.layers, *theirs.decoder.layers]
    for a, b in zip([*ours.encoder, *ours.decoder], layers, strict=True):
        _copy_layer(a, b)
    if norm == "pre":
        theirs.encoder.norm.load_state_dict(ours.encoder_norm.state_dict())
        theirs.decoder.norm.load_state_dict(ours.decoder_norm.state_dict())
    else:  # torch's post-norm stacks end in one more normalisation; the paper's do not
        theirs.encoder.norm = theirs.decoder.norm = None
    src, trg = _ids(3, 9), _ids(3, 7, seed=2)
    src[1, 6:], src[2, 2:] = PAD, PAD
    embedded = [ours._embed(ids, ours.embedding) for ids in (src, trg)]
    causal = nn.Transformer.generate_square_subsequent_mask(7)
    hidden = theirs(*embedded, tgt_mask=causal, src_key_padding_mask=src == PAD, memory_key_padding_mask=src == PAD)
    torch.testing.assert_close(ours(src, trg), hidden @ ours.embedding.weight.T, rtol=1e-4, atol=2e-5)


def test_positions_are_the_papers():
    table = sinusoids(50, 32)
    for position, i in [(0, 0), (7, 3), (49, 15)]:
        angle = torch.tensor(position / 10000 ** (2 * i / 32))
        torch.testing.assert_close(table[position, 2 * i : 2 * i + 2], torch.stack([angle.sin(), angle.cos()]))


# -- what a logit depends on -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_a_later_token_never_changes_an_earlier_logit(attention, norm):
    model = _model(attention=attention, norm=norm)
    src, trg = _ids(2, 6), _ids(2, 8)
    changed = trg.clone()
    changed[:, 5:] = _ids(2, 3, seed=9)
    before, after = model(src, trg), model(src, changed)
    assert torch.equal(before[:, :5], after[:, :5])
    assert (before[:, 5:] - after[:, 5:]).abs().amax() > 0.01


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_row_does_not_depend_on_padding_or_neighbours(attention):
    model = _model(attention=attention)
    src, trg = _ids(1, 5), _ids(1, 6)
    alone = model(src, trg)
    wide_src, wide_trg = _ids(3, 12, seed=3), _ids(3, 9, seed=4)
    wide_src[1], wide_trg[1] = PAD, PAD
    wide_src[1, :5], wide_trg[1, :6] = src[0], trg[0]
    torch.testing.assert_close(model(wide_src, wide_trg)[1, :6], alone[0], rtol=1e-5, atol=1e-5)
    wide_src[1, 2] = (wide_src[1, 2] + 1) % 40 + 4
    assert (model(wide_src, wide_trg)[1, :6] - alone[0]).abs().amax() > 0.01


def test_a_row_of_padding_gives_numbers():
    assert _model()(torch.full((2, 5), PAD), _ids(2, 4)).isfinite().all()


def test_eager_and_sdpa_agree_in_value_and_gradient():
    results = []
    for kind in ("eager", "sdpa"):
        model = _model(attention=kind)
        src = _ids(3, 9)
        src[0, 4:] = PAD
        logits = model(src, _ids(3, 7, seed=2))
        logits.square().mean().backward()
        results.append((logits, [p.grad for p in model.parameters()]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-6)


def test_masks():
    assert padding_mask(torch.tensor([[5, 6, PAD]]), PAD).tolist() == [[[[0.0, 0.0, -1e9]]]]
    assert (causal_mask(3, torch.device("cpu"))[0, 0] == 0).tolist() == [
        [True, False, False],
        [True, True, False],
        [True, True, True],
    ]


# -- decoding with a cache ---------------------------------------------------------------------------------------------


def _step_by_step(model, cache, trg):
    return torch.stack([model.decode_step(trg[:, i : i + 1], cache) for i in range(trg.shape[1])], 1)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("norm", ["pre", "post"])
@torch.no_grad()
def test_cached_decoding_equals_full_decoding(attention, norm):
    model = _model(attention=attention, norm=norm)
    src, trg = _ids(3, 9), _ids(3, 7)
    src[1, 4:] = PAD
    cache = model.start_decoding(model.encode(src), src)
    torch.testing.assert_close(_step_by_step(model, cache, trg), model(src, trg), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_hypotheses_fork_are_reordered_and_leave():
    model = _model()
    src = _ids(3, 6)
    src[0, 3:] = PAD
    cache = model.start_decoding(model.encode(src), src)
    stem = _ids(3, 2, seed=5)
    _step_by_step(model, cache, stem)
    cache.reorder(torch.tensor([0, 0, 1, 1, 2, 2]))  # two hypotheses per row
    forks = _ids(6, 2, seed=6)
    _step_by_step(model, cache, forks)
    cache.reorder(torch.tensor([1, 1, 2, 3, 5, 4]))  # hypothesis 0 dies, the last two change places
    cache.select(torch.tensor([0, 2]))  # row 1 leaves
    last = _ids(4, 1, seed=7)
    logits = _step_by_step(model, cache, last)[:, 0]
    for i, (row, fork) in enumerate([(0, 1), (0, 1), (2, 5), (2, 4)]):
        whole = torch.cat([stem[row], forks[fork], last[i]])[None]
        torch.testing.assert_close(logits[i], model(src[row : row + 1], whole)[0, -1], rtol=1e-5, atol=1e-5)


# -- parameters, limits, training --------------------------------------------------------------------------------------


def test_tied_weights_are_one_parameter():
    tied, untied = _model(tied_embeddings=True), _model(tied_embeddings=False)
    shapes = [tuple(p.shape) for p in tied.parameters()]
    assert shapes.count((VOCAB, 32)) == 1
    assert sum(tuple(p.shape) == (VOCAB, 32) for p in untied.parameters()) == 3
    assert set(tied.state_dict()) == {name for name, _ in tied.named_parameters()}  # no buffers, no second names
    src, trg = _ids(1, 3), _ids(1, 4)
    before = tied(src, trg)
    tied.embedding.weight.data[trg[0, 0]] += torch.randn(32)  # seen as input and as output
    after = tied(src, trg)
    assert (before - after)[..., trg[0, 0]].abs().min() > 0.01
    assert (before - after)[0, -1].abs().max() > 0.01


def test_every_parameter_gets_a_gradient():
    for tied in (True, False):
        model = _model(tied_embeddings=tied)
        model(_ids(2, 5), _ids(2, 4)).square().sum().backward()
        assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_parameter_names_equal_those_of_checkpoints():
    names = {name for name, _ in _model(encoder_layers=1, decoder_layers=1).named_parameters()}
    parts = ["feed_forward.inner.weight", "feed_forward.inner.bias", "feed_forward.outer.weight"]
    parts += ["feed_forward.outer.bias", "feed_forward_norm.weight", "feed_forward_norm.bias"]
    parts += ["attention.query_key_value.weight", "attention.output.weight"]
    parts += ["attention_norm.weight", "attention_norm.bias"]
    cross = ["query.weight", "key_value.weight", "output.weight"]
    expected = {f"{stack}.0.{part}" for stack in ("encoder", "decoder") for part in parts}
    expected |= {f"decoder.0.cross_attention.{part}" for part in cross}
    expected |= {f"decoder.0.cross_attention_norm.{part}" for part in ("weight", "bias")}
    expected |= {f"{stack}_norm.{part}" for stack in ("encoder", "decoder") for part in ("weight", "bias")}
    assert names == expected | {"embedding.weight"}


def test_too_long_names_both_numbers():
    model = _model()
    for src, trg in [(_ids(1, LONGEST + 1), _ids(1, 3)), (_ids(1, 3), _ids(1, LONGEST + 1))]:
        with pytest.raises(UsageError, match=f"{LONGEST + 1} positions.* {LONGEST} of this model"):
            model(src, trg)
    model(_ids(1, LONGEST), _ids(1, LONGEST))
    with torch.no_grad():
        cache = model.start_decoding(model.encode(_ids(1, 3)), _ids(1, 3))
        _step_by_step(model, cache, _ids(1, LONGEST))
        with pytest.raises(UsageError):
            model.decode_step(_ids(1, 1), cache)


def _gradients(model, autocast=False):
    torch.manual_seed(7)
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model(_ids(3, 6), _ids(3, 5)).float().square().mean()
    loss.backward()
    return [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("autocast", [False, True])
def test_activation_checkpointing_keeps_the_gradients_with_dropout(autocast):
    model = _model(dropout=0.3, attention_dropout=0.2).train()
    plain = _gradients(model, autocast)
    again = copy.deepcopy(model)
    checkpoint_activations(again)
    runs = []
    again.encoder[0].register_forward_pre_hook(lambda *_: runs.append(1))
    repeated = _gradients(again, autocast)
    assert len(runs) == 2  # forward, and again for the backward pass
    for a, b in zip(plain, repeated, strict=True):
        assert torch.equal(a, b)


def test_dropout_is_fixed_by_the_seed_and_gone_in_eval():
    model = _model(dropout=0.3).train()
    a, b = _gradients(model), _gradients(model)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    outputs = [model(_ids(2, 4), _ids(2, 4)) for _ in range(2)]
    assert not torch.equal(*outputs)
    model.eval()
    assert torch.equal(model(_ids(2, 4), _ids(2, 4)), model(_ids(2, 4), _ids(2, 4)))


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_autocast_stays_close_to_fp32(norm):
    model = _model(norm=norm)
    src, trg = _ids(4, 9), _ids(4, 8)
    exact = model(src, trg)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(src, trg)
    assert rounded.dtype == torch.bfloat16
    assert (rounded - exact).abs().max() < 0.1 * exact.std()


def test_it_learns_to_copy():
    torch.manual_seed(0)
    model = Transformer(_config(encoder_layers=1, decoder_layers=1, dropout=0.05), 12, PAD, 10).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(100):
        y = torch.randint(4, 12, (32, 4))
        trg_in = torch.cat([torch.full((32, 1), 2), y[:, :-1]], 1)
        loss = nn.functional.cross_entropy(model(y, trg_in).flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5, loss.item()
