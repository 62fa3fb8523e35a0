"""The sections that every recipe has, for any task and model. No torch here: recipes are read on login nodes."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from trainer.recipe.datasets import place_of, with_place
from trainer.recipe.mixes import CorpusConfig, column_names, mix_problem, without_train
from trainer.recipe.patterns import OPTIMIZER, OWN_NAME, QUOTE
from trainer.recipe.section import Patterns as Patterns
from trainer.recipe.section import Positive as Positive
from trainer.recipe.section import Section as Section
from trainer.recipe.section import Written

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]


def is_changed(section: Section, key: str) -> bool:
    """Return whether a key differs from its default (a resolved recipe has every key)."""
    default = type(section).model_fields[key].get_default(call_default_factory=True)
    return bool(getattr(section, key) != default)


OwnName = Annotated[str, Field(pattern=OWN_NAME)]  # of a function or class of a user


class LossSection(Section):
    """Base of the `task` sections whose loss can be a function of a user."""

    loss: OwnName | None = Field(
        None,
        description="function package.module:function of logits and labels that returns the sum of the losses of all "
        "labels; null = cross-entropy",
    )


class DataConfig(Section):
    """Source of the rows, and how they become micro-batches (see docs/explanation/lanes.md)."""

    model_config = ConfigDict(json_schema_extra=lambda schema: schema.update(required=[]))  # root or dataset

    root: str = Field(description="any fsspec URL: a folder, hf://datasets/…, s3://…, embedded://translation")
    dataset: str | None = Field(
        None,
        description="in place of root: a data set of the Hub or a copy of one, name[:configuration]; train, validation "
        "and test are names of its splits",
    )
    revision: str | None = Field(
        None, description="branch, tag or commit of dataset; null = main, pinned to its commit at the first start"
    )
    train: Patterns = Field(description="file pattern(s) below root, or a mapping role: file for parallel text files")
    validation: Patterns | Fraction | None = Field(
        None, description="file pattern(s), or the share of train to hold out"
    )
    test: Patterns | None = Field(None, description="file pattern(s); null: none")
    mix: list[CorpusConfig] = Field(
        default_factory=list,
        description="corpora to train on in fixed proportions, in place of train; each has weight or rows_per_epoch",
    )
    mix_temperature: Annotated[float, Field(gt=0)] | None = Field(
        None, description="weights of mix by size: rows^(1/T); 1 = in proportion to the rows, higher = more even"
    )
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="role: column, e.g. src: de, or the path of a nested column, e.g. translation.de",
    )
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] | None = Field(
        None, description="delimiter of CSV files, one character; null = detected from the file name and first lines"
    )
    quote: Annotated[str, Field(pattern=QUOTE)] | None = Field(
        None, description='quote character of CSV files, none, or backslash (" escaped as \\"); null = "'
    )
    header: bool = Field(True, description="CSV files have a header; false: columns are named '0', '1', …")
    encoding: str | None = Field(
        None,
        description="encoding of text, CSV and JSON files, such as cp1252; null = UTF-8, or by the byte order mark",
    )
    cleaning: list[str] = Field(
        default_factory=lambda: ["normalize_unicode", "fold_whitespace"],
        description="ordered list of unescape_html, strip_tags, replace_urls, replace_emails, normalize_unicode, "
        "normalize_compatibility, fold_whitespace, lowercase and functions of your own, package.module:function",
    )
    lanes: Positive = Field(8, description="number of lanes; a step is one micro-batch of each lane")
    block_rows: Positive = Field(
        16_384, description="rows of a lane that are read, permuted and sorted by length together"
    )
    tokens_per_batch: Positive | None = Field(1024, description="most padded tokens of a micro-batch")
    rows_per_batch: Positive | None = Field(None, description="most rows of a micro-batch")
    max_length: Positive = Field(
        128, description="most tokens of a row, special tokens included; longer rows are truncated"
    )
    padding: Literal["longest", "none"] = Field(
        "longest",
        description="longest: rows of a micro-batch are padded to the longest one; none: in training its rows are "
        "concatenated, each with its own attention and positions",
    )
    pad_multiple: Positive = Field(8, description="lengths are padded to a multiple of this, so that few shapes occur")
    order: Literal["shuffled", "sequential"] = Field(
        "shuffled", description="sequential: rows keep their order within a lane (Transformer-XL)"
    )
    check: Literal["auto", "full", "sample", "off"] = Field(
        "auto",
        description="rows checked before the training: full: all; sample: the first ones of every file; off: none. "
        "Others are checked when they are read. auto: full up to 2 GB of a split, sample above",
    )
    on_bad_row: Literal["fail", "skip"] = Field("fail", description="fail: end with 3; skip: leave bad rows out")
    max_bad_fraction: Fraction = Field(0.01, description="share of bad rows above which skip ends with 3")
    workers: Annotated[int, Field(ge=0)] = Field(
        0, description="loader processes per rank; 0 = load in the training process"
    )
    prefetch: Positive = Field(4, description="micro-batches that each loader process prefetches")

    def padded(self, length: int) -> int:
        """Return the next multiple of `pad_multiple`."""
        return -(-length // self.pad_multiple) * self.pad_multiple

    @property
    def config(self) -> str | None:
        """The configuration of `dataset`."""
        return place_of(self.dataset)[1] if self.dataset else None

    _of_dataset = model_validator(mode="before")(with_place)

    _of_mix = model_validator(mode="before")(without_train)
    _numbered = field_validator("columns", mode="before", json_schema_input_type=dict[str, Written])(column_names)

    def of_corpus(self, corpus: CorpusConfig) -> DataConfig:
        """Return the section as it would be for one corpus of `mix` alone, whose rows train or are held out."""
        own: dict[str, Any] = {"train": corpus.train, "columns": {**self.columns, **corpus.columns}}
        share = self.validation if isinstance(self.validation, float) else None
        own |= {"validation": share, "test": None, "mix": [], "mix_temperature": None}
        if corpus.root is not None:
            own |= {"root": corpus.root, "dataset": None, "revision": None}
        return self.model_copy(update=own)

    @field_validator("encoding")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        try:
            if name is not None:
                "".encode(name)
        except LookupError:
            raise ValueError(f"unknown encoding {name!r}; known are utf-8, cp1252, latin-1, gb18030 and more") from None
        return name

    @model_validator(mode="after")
    def _bounded(self) -> DataConfig:
        if problem := mix_problem(self):
            raise ValueError(problem)
        if self.tokens_per_batch is None and self.rows_per_batch is None:
            raise ValueError(
                "tokens_per_batch and rows_per_batch are both null: set one of them to limit a micro-batch"
            )
        if self.tokens_per_batch is not None and self.tokens_per_batch < self.max_length:
            raise ValueError(
                f"tokens_per_batch={self.tokens_per_batch} is below max_length={self.max_length}: "
                "a row of full length would not fit; raise the first or lower the second"
            )
        return self


class TokenizerTraining(Section):
    """A tokenizer trained on the run's own training rows."""

    kind: Literal["bpe", "byte_bpe", "unigram", "wordpiece"] = Field(
        "bpe", description="bpe: translation; byte_bpe: GPT-2, RoBERTa; unigram: T5, ALBERT, XLNet; wordpiece: BERT"
    )
    vocab_size: Annotated[int, Field(ge=16)] = Field(
        6000, description="tokens of the vocabulary, special tokens included"
    )
    shared: bool = Field(
        True, description="one vocabulary for source and target; false: one for each side (task translation)"
    )
    target_vocab_size: Annotated[int, Field(ge=16)] | None = Field(
        None, description="tokens of the target vocabulary with shared: false; null = vocab_size"
    )
    min_frequency: Positive = Field(2, description="occurrences that a pair or word needs to become a token")
    limit_alphabet: Positive = Field(1000, description="different characters that are kept")
    lowercase: bool = Field(False, description="lowercase the texts")
    begin: bool | None = Field(
        None, description="add a special token (<s>, [CLS]) at the start of a text; null = as the architecture does"
    )
    sample_rows: Positive = Field(1_000_000, description="most rows that the tokenizer is trained on")

    @model_validator(mode="after")
    def _holds_bytes(self) -> TokenizerTraining:
        for key, size in (("vocab_size", self.vocab_size), ("target_vocab_size", self.target_size)):
            if self.kind == "byte_bpe" and size <= 261:
                raise ValueError(f"{key}={size} has room only for the 261 bytes and special tokens; raise it")
        return self

    @model_validator(mode="after")
    def _has_target(self) -> TokenizerTraining:
        if self.shared and self.target_vocab_size is not None:
            raise ValueError(
                f"target_vocab_size={self.target_vocab_size} is for separate vocabularies; set shared: false, or leave "
                "it out"
            )
        return self

    @property
    def target_size(self) -> int:
        """Tokens of the vocabulary of target texts."""
        return self.target_vocab_size or self.vocab_size


class TokenizerConfig(Section):
    """Either `train:` or `pretrained:`, or neither to use the tokenizer of the pretrained model."""

    train: TokenizerTraining | None = Field(None, description="train a tokenizer on the training rows; null: do not")
    pretrained: str | None = Field(None, description="folder, Hub id, or pkg://package/folder")

    @model_validator(mode="after")
    def _one_of(self) -> TokenizerConfig:
        if self.train is not None and self.pretrained is not None:
            raise ValueError("give one of `train` and `pretrained`, not both")
        return self


class PlateauConfig(Section):
    """Reduce the learning rate when the validation metric stops improving."""

    factor: Annotated[float, Field(gt=0, lt=1)] = Field(0.5, description="the rate is multiplied by this")
    patience: Positive = Field(2, description="evaluations without improvement before the learning rate is reduced")
    min_delta: Annotated[float, Field(ge=0)] = Field(0.0, description="smallest change that counts as an improvement")


class AveragingConfig(Section):
    """Weight averaging: the last k checkpoints of loop.eval_every, or an exponential moving average."""

    kind: Literal["none", "last", "ema"] = Field(
        "none", description="last: average of the last checkpoints; ema: moving average"
    )
    last: Annotated[int, Field(ge=2)] = Field(5, description="checkpoints to average (kind: last)")
    decay: Annotated[float, Field(gt=0, lt=1)] = Field(0.999, description="decay per step (kind: ema)")


class AdversarialConfig(Section):
    """Adversarial training: a second, perturbed forward of each micro-batch (`trainer.optim.adversarial`)."""

    kind: Literal["none", "fgm", "noise"] = Field(
        "none", description="fgm: perturb along the gradient; noise: at random"
    )
    epsilon: Annotated[float, Field(gt=0)] = Field(
        0.1, description="norm of the perturbation of the embeddings of a row"
    )
    weight: Annotated[float, Field(gt=0)] = Field(
        1.0, description="weight of the perturbed loss; the clean loss has weight 1"
    )


class ParamGroup(Section):
    """Settings of the parameters whose names match a pattern. The first group that matches decides."""

    match: str = Field(
        min_length=1, description="regular expression, searched in names of parameters: embeddings, 'layer\\.[01]\\.'"
    )
    lr: Annotated[float, Field(gt=0)] | None = Field(None, description="learning rate at its peak; null = optim.lr")
    weight_decay: Annotated[float, Field(ge=0)] | None = Field(
        None, description="weight decay, of biases and norms too; null = as usual"
    )
    frozen: bool = Field(False, description="do not train these parameters")

    @field_validator("match")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"it is no regular expression: {error}") from None
        return pattern


class OptimConfig(Section):
    """Optimizer, learning rate, regularization and freezing."""

    name: str = Field(
        "adamw",
        description="adamw, sgd, adafactor, lion, muon (with AdamW for all but matrices), adamw8bit (of torchao), "
        "torch.optim.NAME, or package.module:Class",
        pattern=OPTIMIZER,
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="further arguments of the optimizer, for all but adamw and sgd"
    )
    lr: Annotated[float, Field(gt=0)] = Field(5e-4, description="learning rate at its peak")
    relative_rates: bool = Field(
        False, description="scale the rate of each tensor by the RMS of its initial values, as Adafactor does: for T5"
    )
    schedule: Literal["constant", "linear", "cosine", "inverse_sqrt", "noam", "slanted_triangular", "plateau"] = Field(
        "linear", description="how the rate changes after the warm-up"
    )
    warmup_steps: Annotated[int, Field(ge=0)] = Field(0, description="steps in which the rate rises linearly")
    warmup_ratio: Fraction = Field(
        0.0, description="share of the training in which the rate rises linearly, in place of warmup_steps"
    )
    betas: tuple[Fraction, Fraction] = Field((0.9, 0.999), description="of AdamW")
    eps: Annotated[float, Field(gt=0)] = Field(1e-8, description="of AdamW")
    momentum: Fraction = Field(0.0, description="of SGD")
    nesterov: bool = Field(False, description="Nesterov momentum for SGD")
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        0.0, description="decoupled weight decay of matrices; not of biases, norms and embeddings"
    )
    clip_norm: Annotated[float, Field(ge=0)] = Field(1.0, description="largest gradient norm; 0 = no clipping")
    label_smoothing: Fraction = Field(0.0, description="share of the probability that is spread over all labels")
    r_drop: Annotated[float, Field(ge=0)] = Field(
        0.0, description="weight of the divergence of two forwards with different dropout masks (R-Drop), as 5; 0: none"
    )
    cut_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.1, description="share of the steps with a rising rate (slanted_triangular)"
    )
    ratio: Annotated[float, Field(gt=1)] = Field(
        32.0, description="peak rate divided by the lowest rate (slanted_triangular)"
    )
    head_lr: Annotated[float, Field(gt=0)] | None = Field(None, description="learning rate of a new head; null = lr")
    layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="factor on the learning rate per layer from top to bottom"
    )
    unfreeze: Fraction = Field(
        0.0,
        description="share of the training after which the next lower layer is unfrozen; 0 = train all from the start",
    )
    freeze_trunk: bool = Field(False, description="train the head only; the trunk stays in eval mode")
    freeze_embeddings: bool = Field(
        False, description="do not train the embeddings of the trunk, which is faster on small batches"
    )
    freeze_layers: Annotated[int, Field(ge=0)] = Field(
        0, description="lowest layers of the trunk that are not trained, and the embeddings with them; 0 = none"
    )
    groups: list[ParamGroup] = Field(
        default_factory=list, description="other rates or weight decay for parameters whose names match a pattern"
    )
    adversarial: AdversarialConfig = Field(default_factory=AdversarialConfig)
    plateau: PlateauConfig = Field(default_factory=PlateauConfig)
    averaging: AveragingConfig = Field(default_factory=AveragingConfig)

    def group_of(self, parameter: str) -> int | None:
        """Return the number of the first of `groups` that matches the name of a parameter. None if none does."""
        return next((i for i, group in enumerate(self.groups) if re.search(group.match, parameter)), None)

    @model_validator(mode="after")
    def _one_warmup(self) -> OptimConfig:
        if self.warmup_steps and self.warmup_ratio:
            raise ValueError("warmup_steps and warmup_ratio are both set: leave one of them out")
        if self.options and self.name in ("adamw", "sgd"):
            raise ValueError(f"options is not for {self.name}, whose arguments are keys of optim; leave it out")
        return self
