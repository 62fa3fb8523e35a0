"""How a causal language model goes on with a text: greedy, by beams or by sampling, whole or streamed; and how a
sequence-to-sequence model answers one.

The search is that of the transformers library (`generate`). Sampled texts are drawn one by one, each from its own
generator: a text does not depend on its neighbours in a batch.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from trainer.sections import GenerationConfig

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
    limit: int,
    beam_size: int,
    length_penalty: float,
    end_id: int,
    pad_id: int,
) -> list[Continued]:
    """What a sequence-to-sequence model answers to each source, and its score: a sum of log-probabilities over the
    length to the power of `length_penalty`.

    Args:
        model: of the transformers library, in eval mode.
        input_ids, attention_mask: (B, S) int64, 1 = token.
        limit: tokens of an answer at most, its end included.
        beam_size, length_penalty: of the search; one beam is greedy search.
        end_id, pad_id: of the tokenizer.
    """
    from transformers import GenerationConfig as Search

    made: Any = model
    start = made.config.decoder_start_token_id
    search = Search(
        max_new_tokens=limit,
        num_beams=beam_size,
        **({"length_penalty": length_penalty} if beam_size > 1 else {}),
        decoder_start_token_id=pad_id if start is None else start,
        eos_token_id=end_id,
        pad_token_id=pad_id,
        return_dict_in_generate=True,
        output_scores=True,
    )
    found = made.generate(input_ids, attention_mask=attention_mask, generation_config=search)
    texts = [_until(row, end_id) for row in found.sequences[:, 1:].tolist()]
    if beam_size > 1:
        return list(zip(texts, found.sequences_scores.tolist(), strict=True))
    taken = made.compute_transition_scores(found.sequences, found.scores, normalize_logits=True).tolist()
    counts = [min(len(text) + 1, limit) for text in texts]
    scores = [sum(row[:n]) / n**length_penalty for row, n in zip(taken, counts, strict=True)]
    return list(zip(texts, scores, strict=True))


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
    texts = [_until(row, end_id) for row in found.sequences[:, width:].tolist()]
    if settings.beam_size > 1:
        scores = found.sequences_scores.tolist()
    else:
        taken = model.compute_transition_scores(found.sequences, found.logits, normalize_logits=True).tolist()
        scores = [sum(row[: len(text) + 1]) / len(row[: len(text) + 1]) for row, text in zip(taken, texts, strict=True)]
    return list(zip(texts, scores, strict=True))


def _until(ids: list[int], end_id: int) -> list[int]:
    return ids[: ids.index(end_id)] if end_id in ids else ids
