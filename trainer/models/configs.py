"""The `model` section of a recipe, one class per architecture. No torch here: a recipe is read on login nodes."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from trainer.recipe.sections import Fraction, Positive, Section

Pooling = Literal["cls", "mean", "max"]
TOKENIZERS = {  # of architectures of the transformers library; all others use WordPiece, as BERT does
    **dict.fromkeys(("gpt2", "gpt_neo", "gpt_neox", "llama", "qwen2", "opt", "roberta", "longformer"), "byte_bpe"),
    **dict.fromkeys(("bart", "modernbert"), "byte_bpe"),
    **dict.fromkeys(("t5", "mt5", "marian", "pegasus", "albert", "xlnet", "deberta-v2"), "unigram"),
    **dict.fromkeys(("big_bird", "bigbird_pegasus", "reformer"), "unigram"),
}
ENDS_ONLY = ("t5", "mt5", "umt5", "marian", "pegasus")  # a text has a special token at its end, but not at its start


class LayersConfig(Section):
    """Settings of all architectures of this project."""

    d_model: Positive = Field(256, description="width of the hidden states")
    heads: Positive = Field(4, description="attention heads")
    feed_forward: Positive = Field(512, description="width of the feed-forward layers")
    dropout: Fraction = Field(
        0.1, description="dropout on embeddings and on the output of every sublayer, as in the paper"
    )
    attention_dropout: Fraction = Field(0.0, description="dropout on attention weights")
    activation: Literal["relu", "gelu"] = Field(
        "gelu", description="gelu is smooth; relu, as in the paper, is not at 0"
    )
    norm: Literal["pre", "post"] = Field("pre", description="layer norm before or after each sublayer")
    attention: Literal["auto", "sdpa", "eager"] = Field("auto", description="auto: the faster one on this device")

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.d_model % self.heads:
            raise ValueError(f"d_model={self.d_model} is not a multiple of heads={self.heads}")
        if self.d_model % 2:
            raise ValueError(f"d_model={self.d_model} is odd: sinusoidal positions need pairs")
        return self


class TransformerConfig(LayersConfig):
    """Encoder-decoder Transformer trained from scratch (Vaswani et al. 2017), in transformer.py."""

    kind: Literal["transformer"] = "transformer"
    encoder_layers: Positive = Field(3, description="layers of the encoder")
    decoder_layers: Positive = Field(3, description="layers of the decoder")
    tied_embeddings: bool | Literal["target"] = Field(
        True,
        description="true: source and target embedding and output projection are one matrix; target: the last two are; "
        "false: none",
    )
    init_from: str | None = Field(None, description="run directory whose weights and tokenizer are the initial ones")


class EncoderConfig(LayersConfig):
    """BERT-style encoder trained from scratch (Devlin et al. 2019), in encoder.py."""

    kind: Literal["encoder"] = "encoder"
    layers: Positive = Field(4, description="number of layers")
    feed_forward: Positive = Field(1024, description="width of the feed-forward layers")
    pooling: Pooling = Field(
        "mean", description="input of the classifier: the first token, or the mean or maximum of all tokens"
    )
    positions: Literal["sinusoidal", "alibi"] = Field(
        "sinusoidal",
        description="alibi: in addition, half of the heads prefer near tokens on the left, half on the right",
    )
    word_dropout: Fraction = Field(
        0.0, description="dropout of complete token embeddings, against learning rare words by heart"
    )
    init_from: str | None = Field(
        None, description="run directory whose encoder and tokenizer are used as initial weights"
    )

    @model_validator(mode="after")
    def _two_sides(self) -> Self:
        if self.positions == "alibi" and self.heads % 2:
            raise ValueError(f"heads={self.heads} is odd: with positions=alibi half of them attend to each side")
        return self


class CNNConfig(Section):
    """Convolution over one-hot tokens trained from scratch (Johnson & Zhang 2015), in cnn.py."""

    kind: Literal["cnn"] = "cnn"
    filters: Positive = Field(256, description="filters, which are the features of a text")
    width: Positive = Field(3, description="tokens in a row that a filter sees")
    pooling: Literal["max", "mean"] = Field("max", description="maximum or mean of a filter over the text")
    dropout: Fraction = Field(0.5, description="dropout of the features, before the classifier")
    word_dropout: Fraction = Field(0.2, description="share of the tokens that are hidden in a training step")

    @property
    def d_model(self) -> int:
        """The width of the states of a token, as the other models call it."""
        return self.filters


class TransformerXLConfig(LayersConfig):
    """Transformer-XL trained from scratch (Dai et al. 2019), in transformer_xl.py."""

    kind: Literal["transformer_xl"] = "transformer_xl"
    layers: Positive = Field(6, description="number of layers")
    feed_forward: Positive = Field(1024, description="width of the feed-forward layers")
    memory: int = Field(128, ge=0, description="positions before a segment that it attends to in training")
    init_from: str | None = Field(None, description="run directory whose weights and tokenizer are the initial ones")

    def past(self, length: int) -> tuple[int, int, int]:
        """Return the shape of the memory of a row, for this many positions."""
        return self.layers, length, self.d_model


class AdapterConfig(Section):
    """An adapter of the PEFT library, in adapters.py: the pretrained weights are frozen, and few new ones trained."""

    kind: Literal["lora", "dora", "ia3"] = Field(
        "lora", description="lora: Hu et al. 2021; dora: Liu et al. 2024; ia3: Liu et al. 2022"
    )
    rank: Positive = Field(8, description="rank of the update of a matrix (lora, dora)")
    alpha: float = Field(16.0, gt=0, description="the update is scaled by alpha / rank (lora, dora)")
    dropout: Fraction = Field(0.0, description="dropout on the input of the update (lora, dora)")
    targets: Literal["auto", "all-linear"] | Annotated[list[str], Field(min_length=1)] = Field(
        "auto",
        description="names of the adapted layers; auto: the attention projections that PEFT knows for the "
        "architecture, or all-linear",
    )

    @model_validator(mode="after")
    def _used(self) -> Self:
        fields = type(self).model_fields
        unused = [key for key in ("rank", "alpha", "dropout") if getattr(self, key) != fields[key].default]
        if self.kind == "ia3" and unused:
            raise ValueError(f"kind ia3 has no {', '.join(unused)}: leave {'it' if len(unused) == 1 else 'them'} out")
        return self


class PretrainedConfig(Section):
    """Any model of the transformers library, in pretrained.py: with weights by `name`, or an `architecture` without."""

    kind: Literal["pretrained"] = "pretrained"
    name: str | None = Field(None, description="Hub id (id@revision), folder, or pkg://package/folder")
    architecture: str | None = Field(
        None, description="model_type of the library (gpt2, t5, longformer, ...), for random weights"
    )
    size: Literal["tiny", "small"] | None = Field(
        None, description="use random weights of this size, even if `name` is set"
    )
    config: dict[str, Any] = Field(
        default_factory=dict, description="keys of the architecture's configuration, such as num_hidden_layers: 4"
    )
    pooling: Pooling | Literal["auto"] = Field("auto", description="auto: the architecture's own head")
    dropout: Fraction | None = Field(
        None, description="probability of every dropout in the model; null = as in pretraining"
    )
    attention: Literal["auto", "sdpa", "flash", "eager"] = Field(
        "auto",
        description="auto: the faster one on this device; flash: of the package flash-attn or kernels, on NVIDIA GPUs",
    )
    init_from: str | None = Field(
        None,
        description="run directory whose trunk (or all weights of a language model) and tokenizer are used",
    )
    adapter: AdapterConfig | None = Field(
        None, description="train an adapter and the head, and merge the adapter at the end; null: train all weights"
    )

    @model_validator(mode="after")
    def _found(self) -> Self:
        if self.random and self.architecture is None:
            asked = "size asks for random weights" if self.size else "no name"
            raise ValueError(f"{asked}: set architecture, e.g. architecture: gpt2")
        if self.adapter and self.random:
            raise ValueError("adapter: needs pretrained weights; set name and leave size out, or leave adapter out")
        if self.adapter and self.init_from is not None:
            raise ValueError(
                "adapter: needs a base that stock PEFT can load; give it as name (such as the folder model/ of a run "
                "with pooling: auto), and leave init_from out"
            )
        return self

    @property
    def random(self) -> bool:
        """Whether the model starts with random weights."""
        return self.name is None or self.size is not None

    @property
    def weights(self) -> str | None:
        """The source of the weights, and of the tokenizer unless the recipe sets one."""
        return None if self.random else self.name

    @property
    def title(self) -> str:
        """The name of the model in messages."""
        return str(self.architecture if self.random else self.name)

    @property
    def tokenizer_kind(self) -> str:
        """The kind of tokenizer of the architecture, for training one."""
        return TOKENIZERS.get(str(self.architecture), "wordpiece")

    @property
    def begins_texts(self) -> bool:
        """Whether a tokenizer trained for the architecture puts a special token at the start of a text."""
        return self.architecture not in ENDS_ONLY


MODEL_CONFIGS: list[type[Section]] = [
    TransformerConfig, EncoderConfig, CNNConfig, TransformerXLConfig, PretrainedConfig,
]  # fmt: skip
