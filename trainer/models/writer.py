"""Wrap Transformer-XL for `generate` of the transformers library."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from trainer.models.transformer_xl import TransformerXL


class Writer(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """Compute each new token with all earlier ones as one segment, which is equal to using the memory."""

    config_class = PretrainedConfig
    main_input_name = "input_ids"

    def __init__(self, model: TransformerXL, no_memory: Tensor) -> None:
        """`no_memory`: (1, L, 0, M)."""
        super().__init__(PretrainedConfig(vocab_size=model.embedding.num_embeddings))
        self.model, self._none = model, no_memory
        self.eval()

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.model.embedding

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> CausalLMOutput:
        """input_ids and attention_mask (B, T), padding on the left, which no position reaches -> logits (B, T, V)."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        memory = self._none.to(input_ids.device).expand(len(input_ids), -1, -1, -1)
        return CausalLMOutput(logits=self.model(input_ids, positions, memory, 0)[0])

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any
    ) -> dict[str, Any]:
        return {"input_ids": input_ids, "attention_mask": attention_mask}
