"""How a causal language model goes on with a text: greedy, by beams or by sampling, whole or streamed; and how a
sequence-to-sequence model answers one.

The search is that of the transformers library (`generate`). A text does not depend on its neighbours in a batch, up to
rounding: sampled ones are drawn one by one, each from its own generator, and answers have a limit each.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from trainer.recipe.sections import GenerationConfig

Continued = tuple[list[int], float]  # the new ids, the end of text left out, and their score


@torch.no_grad()
def continue_texts(
    model: nn.Module, prompts: Sequence[Sequence[int]], settings: GenerationConfig, end_id: int, pad_id: int
) -> list[Continued]:
    """The tokens that follow each prompt, and their mean log-probability (under beam search the beam's score).

    Args:
        model: of the transformers library, in eval mode.
        prompts: token ids, each at least one.
        settings: of the search.
        end_id: ends a text.
        pad_id: stands before shorter prompts.
    """
    batches = [[prompt] for prompt in prompts] if settings.temperature else [prompts] if prompts else []
    return [found for batch in batches for found in _generate(model, batch, settings, end_id, pad_id)]


def stream_text(
    model: nn.Module, prompt: Sequence[int], settings: GenerationConfig, tokenizer: PreTrainedTokenizerFast, end_id: int
) -> Iterator[str]:
    """The text that follows the prompt, in pieces as they are found. Beam search knows its text only at the end."""
    from transformers import TextIteratorStreamer

    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    failed: list[BaseException] = []

    def generate() -> None:
        try:
            _generate(model, [prompt], settings, end_id, end_id, streamer=streamer)
        except BaseException as error:  # raised where the text is read
            failed.append(error)
            streamer.end()

    thread = threading.Thread(target=generate, daemon=True)
    thread.start()
    yield from (piece for piece in streamer if piece)
    thread.join()
    if failed:
        raise failed[0]


@torch.no_grad()
def write_targets(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    *,
    limits: Tensor,
    beam_size: int,
    length_penalty: float,
    end_id: int,
    pad_id: int,
) -> list[Continued]:
    """What a sequence-to-sequence model answers to each source, and its score: a sum of log-probabilities over the
    length to the power of `length_penalty`.

    No rank waits for another in here: the model is whole, and ranks may have different numbers of batches.

    Args:
        model: of the transformers library, in eval mode.
        input_ids, attention_mask: (B, S) int64, 1 = token.
        limits: (B,) int64, tokens of each answer at most, its end included, which is forced there.
        beam_size, length_penalty: of the search; one beam is greedy search.
        end_id, pad_id: of the tokenizer; padding is never written.
    """
    from transformers import GenerationConfig as Search

    made: Any = model
    search = Search(
        max_new_tokens=int(limits.max()),
        num_beams=beam_size,
        **({"length_penalty": length_penalty} if beam_size > 1 else {}),
        decoder_start_token_id=made.config.decoder_start_token_id,
        eos_token_id=end_id,
        pad_token_id=pad_id,
        return_dict_in_generate=True,
        output_scores=beam_size > 1,
        output_logits=beam_size == 1,
    )
    bound = _Bound(limits.repeat_interleave(beam_size), end_id, pad_id)
    found = made.generate(
        input_ids, attention_mask=attention_mask, generation_config=search, logits_processor=[bound], synced_gpus=False
    )
    return _scored(found, found.sequences[:, 1:], end_id, beam_size, length_penalty)


def _scored(found: Any, written: Tensor, end_id: int, beam_size: int, length_penalty: float) -> list[Continued]:
    """The texts of a search, written (B, T), with the score of their beam; without beams with one of the same kind."""
    texts = [_until(row, end_id) for row in written.tolist()]
    scores = found.sequences_scores if beam_size > 1 else _greedy_scores(written, found.logits, texts, length_penalty)
    return list(zip(texts, scores.tolist(), strict=True))


def _greedy_scores(
    written: Tensor, logits: Sequence[Tensor], texts: Sequence[Sequence[int]], length_penalty: float
) -> Tensor:
    """(B,) of written (B, T), from logits (B, V) of each step; a text counts with its end if it has one, what follows
    does not."""
    totals = torch.zeros(len(texts), device=written.device)
    lengths = torch.tensor([len(text) + 1 for text in texts], device=written.device).clamp(max=written.shape[1])
    for step, said in enumerate(logits):
        log_p = said.float().log_softmax(-1).gather(1, written[:, step, None])[:, 0]
        totals += torch.where(step < lengths, log_p, 0.0)
    return totals / lengths**length_penalty


class _Bound:
    """A logits processor: a row ends at its own limit, whatever its neighbours' are, and holds no padding."""

    def __init__(self, limits: Tensor, end_id: int, pad_id: int) -> None:
        self.limits, self.end_id, self.pad_id = limits, end_id, pad_id

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """input_ids (R, t), the decoder's start included, scores (R, V) -> scores (R, V)."""
        scores = scores.clone()  # the caller keeps what the model said
        if self.pad_id != self.end_id:
            scores[:, self.pad_id] = -torch.inf
        last = (input_ids.shape[1] >= self.limits).nonzero()[:, 0]
        ending = scores[last, self.end_id]
        scores[last] = -torch.inf
        scores[last, self.end_id] = ending
        return scores


@torch.no_grad()
def _generate(
    model: Any, prompts: Sequence[Sequence[int]], settings: GenerationConfig, end_id: int, pad_id: int, **more: Any
) -> list[Continued]:
    from transformers import GenerationConfig as Search

    width, device = max(map(len, prompts)), next(model.parameters()).device
    ids = torch.tensor([[pad_id] * (width - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    sampled = {"temperature": settings.temperature, "top_k": settings.top_k, "top_p": settings.top_p}
    search = Search(
        max_new_tokens=settings.new_tokens,
        num_beams=settings.beam_size,
        do_sample=settings.temperature > 0,
        **(sampled if settings.temperature else {}),
        eos_token_id=end_id,
        pad_token_id=pad_id,
        return_dict_in_generate=True,
        output_scores=settings.beam_size > 1,
        output_logits=True,
    )
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(settings.seed)
        found = model.generate(ids, attention_mask=mask, generation_config=search, **more)
    return _scored(found, found.sequences[:, width:], end_id, settings.beam_size, 1.0)


def _until(ids: list[int], end_id: int) -> list[int]:
    return ids[: ids.index(end_id)] if end_id in ids else ids
