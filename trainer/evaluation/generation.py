"""Generate text with models of the transformers library: continuations by causal models, targets by encoder-decoders.

The search is the library's `generate`. A text does not depend on its neighbours in a batch, up to rounding: sampled
texts are drawn one by one, each with its own generator, and every target has its own limit.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from trainer.recipe.output_sections import GenerationConfig

Continued = tuple[list[int], float]  # the new ids, the end of text left out, and their score


@torch.no_grad()
def continue_texts(
    model: nn.Module, prompts: Sequence[Sequence[int]], settings: GenerationConfig, end_id: int, pad_id: int
) -> list[Continued]:
    """Return the tokens that follow each prompt, and their mean log-probability (with beam search the beam's score).

    Args:
        model: of the transformers library, in eval mode.
        prompts: token ids, each at least one.
        settings: of the search.
        end_id: ends a text.
        pad_id: added before shorter prompts.
    """
    batches = [[prompt] for prompt in prompts] if settings.temperature else [prompts] if prompts else []
    return [text for batch in batches for text in _generate(model, batch, settings, end_id, pad_id)]


def stream_text(
    model: nn.Module, prompt: Sequence[int], settings: GenerationConfig, tokenizer: PreTrainedTokenizerFast, end_id: int
) -> Iterator[str]:
    """Yield the text that follows the prompt in pieces. Beam search knows its text only at the end."""
    from transformers import TextIteratorStreamer

    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    errors: list[BaseException] = []

    def generate() -> None:
        try:
            _generate(model, [prompt], settings, end_id, end_id, streamer=streamer)
        except BaseException as error:  # raised where the text is read
            errors.append(error)
            streamer.end()

    thread = threading.Thread(target=generate, daemon=True)
    thread.start()
    yield from (piece for piece in streamer if piece)
    thread.join()
    if errors:
        raise errors[0]


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
    """Return the target of each source, and its score: the sum of log-probabilities over length ** `length_penalty`.

    No rank waits for another one here: every rank has the complete model, and the numbers of batches may differ.

    Args:
        model: of the transformers library, in eval mode.
        input_ids, attention_mask: (B, S) int64, 1 = token.
        limits: (B,) int64, tokens of each answer at most, the end included, which is forced there.
        beam_size, length_penalty: of the search; one beam is greedy search.
        end_id, pad_id: of the tokenizer; padding is never generated.
    """
    from transformers import GenerationConfig as Search

    module: Any = model
    search = Search(
        max_new_tokens=int(limits.max()),
        num_beams=beam_size,
        **({"length_penalty": length_penalty} if beam_size > 1 else {}),
        decoder_start_token_id=module.config.decoder_start_token_id,
        eos_token_id=end_id,
        pad_token_id=pad_id,
        return_dict_in_generate=True,
        output_scores=beam_size > 1,
        output_logits=beam_size == 1,
    )
    bound = _Bound(limits.repeat_interleave(beam_size), end_id, pad_id)
    output = module.generate(
        input_ids, attention_mask=attention_mask, generation_config=search, logits_processor=[bound], synced_gpus=False
    )
    return _scored(output, output.sequences[:, 1:], end_id, beam_size, length_penalty)


def _scored(output: Any, written: Tensor, end_id: int, beam_size: int, length_penalty: float) -> list[Continued]:
    """Texts of a search, written (B, T), with the score of their beam, or one of the same kind without beams."""
    texts = [_until(row, end_id) for row in written.tolist()]
    scores = output.sequences_scores if beam_size > 1 else _greedy_scores(written, output.logits, texts, length_penalty)
    return list(zip(texts, scores.tolist(), strict=True))


def _greedy_scores(
    written: Tensor, logits: Sequence[Tensor], texts: Sequence[Sequence[int]], length_penalty: float
) -> Tensor:
    """Scores (B,) of written (B, T), from logits (B, V) of each step. A text counts up to its end."""
    totals = torch.zeros(len(texts), device=written.device)
    lengths = torch.tensor([len(text) + 1 for text in texts], device=written.device).clamp(max=written.shape[1])
    for step, step_logits in enumerate(logits):
        log_p = step_logits.float().log_softmax(-1).gather(1, written[:, step, None])[:, 0]
        totals += torch.where(step < lengths, log_p, 0.0)
    return totals / lengths**length_penalty


class _Bound:
    """A logits processor: a row ends at its own limit and has no padding."""

    def __init__(self, limits: Tensor, end_id: int, pad_id: int) -> None:
        self.limits, self.end_id, self.pad_id = limits, end_id, pad_id

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """input_ids (R, t), the decoder's start included, scores (R, V) -> scores (R, V)."""
        scores = scores.clone()  # the caller keeps the model's own
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
        output = model.generate(ids, attention_mask=mask, generation_config=search, **more)
    return _scored(output, output.sequences[:, width:], end_id, settings.beam_size, 1.0)


def _until(ids: list[int], end_id: int) -> list[int]:
    return ids[: ids.index(end_id)] if end_id in ids else ids
