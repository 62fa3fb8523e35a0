"""Rows of embeddings for tokens that were added to a pretrained model's tokenizer."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

log = logging.getLogger("rankzero")


def token_ids(tokenizer: PreTrainedTokenizerFast) -> int:
    """Return the number of rows that an embedding needs for a tokenizer: its largest id, plus one."""
    return max(len(tokenizer), 1 + max(tokenizer.get_vocab().values(), default=-1))


def grown_rows(rows: int, tokenizer: PreTrainedTokenizerFast) -> int:
    """Return how many rows an embedding of `rows` needs for its own tokenizer, to which tokens may have been added.

    A tokenizer whose own vocabulary is larger belongs to another model: then `rows`.
    """
    own = tokenizer.backend_tokenizer.get_vocab_size(with_added_tokens=False)
    return rows if own > rows else max(rows, token_ids(tokenizer))


@torch.no_grad()
def grow_vocabulary(model: Any, tokenizer: PreTrainedTokenizerFast, name: str) -> bool:
    """Add rows to the embeddings for tokens that were added to the model's own tokenizer. Return whether there are any.

    A new row is the mean of the others, so it is the same on every rank and at every start.
    """
    rows = model.get_input_embeddings().num_embeddings
    needed = grown_rows(rows, tokenizer)
    if needed == rows:
        return False
    added = sorted(token for token, i in tokenizer.get_added_vocab().items() if i >= rows)
    with torch.random.fork_rng(devices=[]):  # the library draws rows, which are replaced below
        model.resize_token_embeddings(needed, mean_resizing=False)
    tables = [model.get_input_embeddings(), model.get_output_embeddings()]
    for tensor in {id(t): t for table in tables if table is not None for t in table.parameters()}.values():
        if len(tensor) == needed:
            tensor[rows:] = tensor[:rows].float().mean(0).to(tensor.dtype)
    log.info(
        "model.name=%r: embedding grown from %s to %s rows for tokens that its tokenizer adds (%s)",
        name, f"{rows:,}", f"{needed:,}", ", ".join(added[:8]) + (" …" if len(added) > 8 else ""),
    )  # fmt: skip
    return True
