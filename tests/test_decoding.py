"""Beam search against enumeration and against loops without a cache."""

from __future__ import annotations

import itertools

import pytest
import torch

from trainer.evaluation.decoding import beam_search
from trainer.models.configs import TransformerConfig
from trainer.models.transformer import Transformer

PAD, BOS, EOS = 0, 2, 3
IDS = {"bos_id": BOS, "eos_id": EOS, "pad_id": PAD}


def _model(vocab=20, seed=0, eos_bias=0.0, d_model=16):
    """Random weights, larger than at the start of training so that choices differ; `eos_bias` draws towards <eos>."""
    torch.manual_seed(seed)
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "heads": 2, "feed_forward": 16, "tied_embeddings": False}
    model = Transformer(TransformerConfig(d_model=d_model, dropout=0.0, **sizes), vocab, PAD, 40).eval()
    for parameter in model.parameters():
        parameter.data.mul_(1.5)
    model.decoder_norm.bias.data.fill_(1.0)
    model.output.weight.data[EOS] += eos_bias / d_model
    return model


def _src(rows=5, length=7, vocab=20, seed=1):
    generator = torch.Generator().manual_seed(seed)
    src = torch.randint(4, vocab, (rows, length), generator=generator)
    for row, real in enumerate(torch.randint(2, length + 1, (rows,), generator=generator).tolist()):
        src[row, real:] = PAD
    return src


@torch.no_grad()
def _log_probability(model, src_row, ids):
    """Of `ids` and <eos> after them, without a cache."""
    trg = torch.tensor([[BOS, *ids, EOS]])
    logp = model(src_row[None], trg[:, :-1])[0].log_softmax(-1)
    return logp.gather(1, trg[0, 1:, None]).sum().item()


# -- exactness ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", [0.0, 0.6, 1.0, 2.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_wide_beam_equals_enumeration(penalty, seed):
    """Every hypothesis of at most 4 positions over [UNK], two words and <eos>: 40 of them, all held by the beam."""
    model, src = _model(vocab=6, seed=seed, eos_bias=2.0), _src(3, 4, vocab=6, seed=seed)
    found = beam_search(model, src, beam_size=81, length_penalty=penalty, max_length=4, **IDS)
    words = [1, 4, 5]
    every = [ids for n in range(4) for ids in itertools.product(words, repeat=n)]
    for row, hypothesis in zip(src, found, strict=True):
        scores = {ids: _log_probability(model, row, ids) / (len(ids) + 1) ** penalty for ids in every}
        best = max(scores, key=scores.get)
        assert hypothesis.ids == list(best)
        assert hypothesis.score == pytest.approx(scores[best], abs=1e-5)


@pytest.mark.parametrize("beam", [1, 3])
def test_a_begin_that_is_the_end_too_does_not_forbid_the_end(beam):
    """A byte-level tokenizer has one token for both."""
    model, src = _model(eos_bias=400.0), _src()
    found = beam_search(
        model, src, bos_id=EOS, eos_id=EOS, pad_id=PAD, beam_size=beam, length_penalty=1.0, max_length=9
    )
    assert [h.ids for h in found] == [[]] * len(src)


@torch.no_grad()
def _greedy_without_cache(model, row, limit):
    ids = []
    while len(ids) < limit - 1:
        logits = model(row[None], torch.tensor([[BOS, *ids]]))[0, -1]
        logits[[BOS, PAD]] = -torch.inf
        token = int(logits.argmax())
        if token == EOS:
            break
        ids.append(token)
    return ids


@pytest.mark.parametrize("eos_bias", [0.0, 3.0])
def test_a_beam_of_one_is_greedy(eos_bias):
    model, src = _model(eos_bias=eos_bias), _src(8)
    found = beam_search(model, src, beam_size=1, length_penalty=1.0, max_length=15, **IDS)
    lengths = set()
    for row, hypothesis in zip(src, found, strict=True):
        ids = _greedy_without_cache(model, row, 15)
        assert hypothesis.ids == ids
        assert hypothesis.score == pytest.approx(_log_probability(model, row, ids) / (len(ids) + 1), abs=1e-5)
        lengths.add(len(ids))
    assert len(lengths) > 1 or not eos_bias  # rows ended at different steps


def _plain_beam(model, row, beam, penalty, limit):
    """The same search told without tensors: lists, no cache, one row."""
    live, finished = [(0.0, [])], []
    for step in range(1, limit + 1):
        candidates = []
        for score, ids in live:
            with torch.no_grad():
                logp = model(row[None], torch.tensor([[BOS, *ids]]))[0, -1].log_softmax(-1)
            choices = [EOS] if step == limit else [i for i in range(len(logp)) if i not in (BOS, PAD)]
            candidates += [(score + logp[i].item(), [*ids, i]) for i in choices]
        candidates.sort(key=lambda c: -c[0])
        candidates = candidates[: 2 * beam]
        finished += [(s / step**penalty, ids[:-1]) for s, ids in candidates[:beam] if ids[-1] == EOS]
        finished = sorted(finished, key=lambda c: -c[0])[:beam]
        live = [(s, ids) for s, ids in candidates if ids[-1] != EOS][:beam]
        if not live or (len(finished) == beam and live[0][0] / step**penalty <= finished[-1][0]):
            break
    return finished[0]


@pytest.mark.parametrize("penalty", [0.0, 1.0])
@pytest.mark.parametrize("beam", [2, 5])
def test_narrow_beams_equal_the_search_written_plainly(beam, penalty):
    model, src = _model(eos_bias=2.0), _src(6)
    found = beam_search(model, src, beam_size=beam, length_penalty=penalty, max_length=9, **IDS)
    for row, hypothesis in zip(src, found, strict=True):
        score, ids = _plain_beam(model, row, beam, penalty, 9)
        assert hypothesis.ids == ids
        assert hypothesis.score == pytest.approx(score, abs=1e-5)


def test_a_wider_beam_scores_higher_on_average():
    model, src = _model(eos_bias=2.0), _src(20)
    means = []
    for beam in (1, 4):
        found = beam_search(model, src, beam_size=beam, length_penalty=0.0, max_length=10, **IDS)
        means.append(sum(h.score for h in found) / len(found))
    assert means[1] > means[0] + 0.01


# -- rows --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beam", [1, 4])
def test_a_row_does_not_depend_on_its_neighbours(beam):
    model, src = _model(eos_bias=2.0), _src(7)
    limits = [5, 12, 3, 9, 20, 1, 8]
    settings = {"beam_size": beam, "length_penalty": 1.0, **IDS}
    together = beam_search(model, src, max_length=limits, **settings)
    for row, limit, hypothesis in zip(src, limits, together, strict=True):
        alone = beam_search(model, row[row != PAD][None], max_length=limit, **settings)[0]
        assert alone.ids == hypothesis.ids
        assert alone.score == pytest.approx(hypothesis.score, abs=1e-5)


@pytest.mark.parametrize("beam", [1, 4])
def test_limits_hold_and_special_tokens_stay_out(beam):
    model, src = _model(eos_bias=-4.0), _src(4)
    model.output.weight.data[[PAD, BOS]] += 1.0  # tempting
    limits = [1, 4, 7, 2]
    found = beam_search(model, src, beam_size=beam, length_penalty=1.0, max_length=limits, **IDS)
    assert [len(h.ids) for h in found] == [limit - 1 for limit in limits]
    assert not {PAD, BOS, EOS} & {i for h in found for i in h.ids}


class _Recorder:
    """A model that notes how many hypotheses each step was asked for."""

    def __init__(self, model):
        self.encode, self.start_decoding, self.inner, self.sizes = model.encode, model.start_decoding, model, []

    def decode_step(self, tokens, cache):
        self.sizes.append(len(tokens))
        return self.inner.decode_step(tokens, cache)


@pytest.mark.parametrize("beam", [1, 3])
def test_finished_rows_leave(beam):
    recorder = _Recorder(_model(eos_bias=-4.0))
    beam_search(recorder, _src(4), beam_size=beam, length_penalty=1.0, max_length=[2, 4, 4, 6], **IDS)
    assert recorder.sizes == [4, 4 * beam, 3 * beam, 3 * beam, beam, beam]


def test_the_search_stops_when_nothing_better_can_come():
    """With no length penalty a finished score can only be beaten by a live one that is still above it."""
    recorder = _Recorder(_model(eos_bias=12.0))
    beam_search(recorder, _src(4), beam_size=2, length_penalty=0.0, max_length=30, **IDS)
    assert len(recorder.sizes) < 8


# -- ties and bad input ------------------------------------------------------------------------------------------------


class _Constant:
    """Every token equally likely, whatever came before."""

    def encode(self, src):
        return src

    def start_decoding(self, memory, src):
        return self

    def reorder(self, index):
        pass

    def select(self, rows):
        pass

    def decode_step(self, tokens, cache):
        return torch.zeros(len(tokens), 9)


@pytest.mark.parametrize("beam", [1, 3])
def test_of_equal_scores_the_smallest_tokens_win(beam):
    found = beam_search(_Constant(), _src(3), beam_size=beam, length_penalty=0.0, max_length=5, **IDS)
    assert len({tuple(h.ids) for h in found}) == 1
    if beam == 1:
        assert found[0].ids == [1, 1, 1, 1]


def test_nan_ends_the_search():
    model = _model()
    model.output.weight.data.fill_(torch.nan)
    for beam in (1, 3):
        found = beam_search(model, _src(2), beam_size=beam, length_penalty=1.0, max_length=6, **IDS)
        assert len(found) == 2


@pytest.mark.parametrize("wrong", [{"beam_size": 0}, {"length_penalty": -1.0}, {"max_length": [3, 0]}])
def test_wrong_settings_are_refused(wrong):
    settings = {"beam_size": 2, "length_penalty": 1.0, "max_length": 5, **IDS, **wrong}
    with pytest.raises(ValueError, match="beam_size >= 1"):
        beam_search(_model(), _src(2), **settings)
