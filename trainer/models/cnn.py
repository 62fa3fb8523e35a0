"""A convolution over one-hot tokens (Johnson & Zhang 2015, https://arxiv.org/abs/1412.1058), for short trainings.

A filter over `width` tokens in a row has one weight for each token of the vocabulary at each place. So its output is a
sum of embeddings, one table for each place, and there is nothing else to train but a bias. With maximum pooling a
filter says whether a phrase is anywhere in the text, as the n-grams of TF-IDF do, but similar phrases share filters.

Shapes: B rows, T tokens, F filters, W tokens of a filter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.models.dropout import Dropout

if TYPE_CHECKING:
    from trainer.models.configs import CNNConfig

INITIAL_STD = 0.01  # of the weights: the rectified sums of the first steps are small, and none is off for good


class CNN(nn.Module):
    """Token ids to the outputs of the filters around each token, for a vocabulary of `vocab_size`."""

    def __init__(self, config: CNNConfig, vocab_size: int) -> None:
        super().__init__()
        self.filters, self.width = config.filters, config.width
        self.embedding = nn.Embedding(vocab_size, config.width * config.filters)
        self.type_embedding = nn.Embedding(2, config.filters)
        self.bias = nn.Parameter(torch.zeros(config.filters))
        self.word_dropout = Dropout(config.word_dropout)
        for table in (self.embedding, self.type_embedding):
            nn.init.normal_(table.weight, std=INITIAL_STD)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embedding

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> Tensor:
        """input_ids, attention_mask (1 = token; None: no row has padding) and types (B, T) int64 -> (B, T, F) >= 0.

        Concatenated rows have `position_ids` (1, T), which begin again at 0 for each.
        """
        places = self.embedding(input_ids)
        if self.training and self.word_dropout.p:  # a hidden word adds nothing, and the others are not scaled
            places = places * (self.word_dropout(torch.ones_like(places[..., :1])) > 0)
        if attention_mask is not None and attention_mask.dim() == 2:
            places = places * attention_mask[..., None]
        types = self.type_embedding.weight[0] if token_type_ids is None else self.type_embedding(token_type_ids)
        total = types + self.bias
        for number, part in enumerate(places.split(self.filters, -1)):
            offset = number - self.width // 2
            near = _shifted(part, offset)
            if position_ids is not None:  # not across the ends of texts
                same = _shifted(position_ids[..., None] + 1, offset) == position_ids[..., None] + 1 + offset
                near = near * same
            total = total + near
        return torch.relu(total)


def _shifted(x: Tensor, offset: int) -> Tensor:
    """Return x (B, T, …) with what is `offset` positions later at each position, and 0 beyond the ends."""
    if offset == 0:
        return x
    before, after = max(0, -offset), max(0, offset)
    return F.pad(x, (0, 0, before, after))[:, after : after + x.shape[1]]
