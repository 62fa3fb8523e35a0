"""The `model` section of a recipe, one class per architecture. No torch here: a recipe is read on login nodes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from trainer.sections import Fraction, Positive, Section


class TransformerConfig(Section):
    """Encoder-decoder Transformer trained from scratch (Vaswani et al. 2017), in transformer.py."""

    kind: Literal["transformer"] = "transformer"
    d_model: Positive = 256
    encoder_layers: Positive = 3
    decoder_layers: Positive = 3
    heads: Positive = 4
    feed_forward: Positive = Field(512, description="width of the feed-forward layers")
    dropout: Fraction = Field(0.1, description="on embeddings and on the output of every sublayer, as in the paper")
    attention_dropout: Fraction = Field(0.0, description="on attention weights")
    activation: Literal["relu", "gelu"] = Field("gelu", description="smooth; relu, as in the paper, has a kink at 0")
    norm: Literal["pre", "post"] = "pre"
    tied_embeddings: bool = Field(True, description="source and target embedding and output projection are one matrix")
    attention: Literal["auto", "sdpa", "eager"] = Field("auto", description="auto: the faster one on this device")

    @model_validator(mode="after")
    def _heads_divide(self) -> TransformerConfig:
        if self.d_model % self.heads:
            raise ValueError(f"d_model={self.d_model} is not a multiple of heads={self.heads}")
        if self.d_model % 2:
            raise ValueError(f"d_model={self.d_model} is odd: sinusoidal positions need pairs")
        return self


MODEL_CONFIGS: list[type[Section]] = [TransformerConfig]
