"""The sections that every recipe has, whatever its task and model. No torch here: recipes are read on login nodes."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Patterns = str | list[str] | dict[str, str]


class Section(BaseModel):
    """Base of all sections: frozen, unknown keys refused, no silent conversion of text to numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False)


class DataConfig(Section):
    """Where the rows come from and how they become micro-batches (see docs/data.md)."""

    root: str = Field(description="any fsspec URL: a folder, hf://datasets/…, s3://…, embedded://translation")
    train: Patterns = Field(description="file pattern(s) below root; a mapping role: file for parallel text files")
    validation: Patterns | Fraction | None = Field(None, description="pattern(s), or the share of train held out")
    test: Patterns | None = None
    columns: dict[str, str] = Field(
        default_factory=dict, description="role: column, e.g. src: de, or a path to a nested one: translation.de"
    )
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] | None = Field(
        None, description="of CSV files, one character; null = from the name and the first lines"
    )
    quote: Annotated[str, Field(pattern=r"^(none|backslash|[^\w\s])$")] | None = Field(
        None, description='mark around values of CSV files; none; backslash: " escaped as \\"; null = "'
    )
    header: bool = Field(True, description="false: CSV files have none; columns are named '0', '1', …")
    encoding: str | None = Field(None, description="of text, CSV and JSON files, such as cp1252; null = UTF-8 or a BOM")
    cleaning: list[str] = Field(default_factory=lambda: ["normalize_unicode", "fold_whitespace"])
    lanes: Positive = 8
    block_rows: Positive = 16_384
    tokens_per_batch: Positive | None = Field(1024, description="padded tokens of a micro-batch, at most")
    rows_per_batch: Positive | None = Field(None, description="rows of a micro-batch, at most")
    max_length: Positive = Field(128, description="tokens of a row, special ones included; longer rows are cut")
    pad_multiple: Positive = Field(8, description="lengths are padded to a multiple of this: few shapes occur")
    order: Literal["shuffled", "sequential"] = "shuffled"
    on_bad_row: Literal["fail", "skip"] = "fail"
    max_bad_fraction: Fraction = 0.01
    workers: Annotated[int, Field(ge=0)] = Field(0, description="loader processes per rank; 0 = none")
    prefetch: Positive = Field(4, description="micro-batches that each loader process keeps ready")

    def padded(self, length: int) -> int:
        """The next multiple of `pad_multiple`."""
        return -(-length // self.pad_multiple) * self.pad_multiple

    @field_validator("columns", mode="before")
    @classmethod
    def _numbered(cls, columns: Any) -> Any:
        """Columns of a file without a header have numbers for names, which YAML reads as such."""
        if not isinstance(columns, dict):
            return columns
        return {role: str(column) if type(column) is int else column for role, column in columns.items()}

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
        if self.tokens_per_batch is None and self.rows_per_batch is None:
            raise ValueError("tokens_per_batch and rows_per_batch are both null: a micro-batch needs a bound")
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
    vocab_size: Annotated[int, Field(ge=16)] = 6000
    min_frequency: Positive = 2
    limit_alphabet: Positive = 1000
    lowercase: bool = False
    begin: bool | None = Field(
        None, description="a text begins with a special token (<s>, [CLS]), too; null = as the architecture has it"
    )
    sample_rows: Positive = Field(1_000_000, description="rows streamed for training, at most")

    @model_validator(mode="after")
    def _holds_bytes(self) -> TokenizerTraining:
        if self.kind == "byte_bpe" and self.vocab_size <= 261:
            raise ValueError(f"vocab_size={self.vocab_size} holds no more than 261: bytes and special tokens; raise it")
        return self


class TokenizerConfig(Section):
    """Either `train:` or `pretrained:`; neither for the tokenizer of the model that the run begins with."""

    train: TokenizerTraining | None = None
    pretrained: str | None = Field(None, description="folder, Hub id, or pkg://package/folder")

    @model_validator(mode="after")
    def _one_of(self) -> TokenizerConfig:
        if self.train is not None and self.pretrained is not None:
            raise ValueError("give one of `train` and `pretrained`, not both")
        return self


class PlateauConfig(Section):
    """Reduce the rate when the validation metric stands still."""

    factor: Annotated[float, Field(gt=0, lt=1)] = 0.5
    patience: Positive = Field(2, description="evaluations without improvement before the rate falls")
    min_delta: Annotated[float, Field(ge=0)] = 0.0


class AveragingConfig(Section):
    """Weight averaging: the last k grid checkpoints, or an exponential moving average."""

    kind: Literal["none", "last", "ema"] = "none"
    last: Annotated[int, Field(ge=2)] = Field(5, description="grid checkpoints averaged (kind: last)")
    decay: Annotated[float, Field(gt=0, lt=1)] = Field(0.999, description="per step (kind: ema)")


class AdversarialConfig(Section):
    """A second, perturbed forward of each micro-batch (`trainer.optim.adversarial`)."""

    kind: Literal["none", "fgm", "noise"] = Field("none", description="fgm: along the gradient; noise: random")
    epsilon: Annotated[float, Field(gt=0)] = Field(0.1, description="norm of a row's perturbation of its embeddings")
    weight: Annotated[float, Field(gt=0)] = Field(1.0, description="of the perturbed loss beside the clean one")


class OptimConfig(Section):
    """Optimizer, learning rate and what belongs to a step."""

    name: Literal["adamw", "sgd"] = "adamw"
    lr: Annotated[float, Field(gt=0)] = 5e-4
    relative_rates: bool = Field(
        False, description="each tensor's rate is lr times the size of its first numbers, as Adafactor's: for T5"
    )
    schedule: Literal["constant", "linear", "cosine", "inverse_sqrt", "noam", "slanted_triangular", "plateau"] = (
        "linear"
    )
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0)] = 1e-8
    momentum: Fraction = 0.0
    nesterov: bool = False
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip_norm: Annotated[float, Field(ge=0)] = Field(1.0, description="largest gradient norm; 0 = no clipping")
    label_smoothing: Fraction = 0.0
    cut_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(0.1, description="rising share (slanted_triangular)")
    ratio: Annotated[float, Field(gt=1)] = Field(32.0, description="peak over lowest rate (slanted_triangular)")
    head_lr: Annotated[float, Field(gt=0)] | None = Field(None, description="rate of a new head; null = lr")
    layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="factor on the rate, layer by layer down")
    unfreeze: Fraction = Field(
        0.0, description="share of the training after which the next layer down begins to move; 0 = all from the start"
    )
    freeze_trunk: bool = Field(False, description="only the head is trained, the trunk stays in eval mode")
    freeze_embeddings: bool = Field(
        False, description="the trunk's embeddings are not trained: faster on small batches"
    )
    adversarial: AdversarialConfig = Field(default_factory=AdversarialConfig)
    plateau: PlateauConfig = Field(default_factory=PlateauConfig)
    averaging: AveragingConfig = Field(default_factory=AveragingConfig)


class EarlyStopping(Section):
    """Which validation metric selects the best checkpoint, and when to give up."""

    metric: str = "loss"
    patience: Positive | None = Field(None, description="evaluations without improvement; null = never stop early")
    min_delta: Annotated[float, Field(ge=0)] = 0.0


class LoopConfig(Section):
    """When to log, evaluate, save and stop; all counts are optimizer steps."""

    epochs: Positive | None = None
    max_steps: Positive | None = None
    eval_every: Positive | Literal["epoch"] = "epoch"
    save_every: Positive | Literal["epoch"] = 500
    log_every: Positive = 50
    keep: Annotated[int, Field(ge=2)] = Field(2, description="newest checkpoints kept")
    early_stopping: EarlyStopping = Field(default_factory=EarlyStopping)
    on_nonfinite: Literal["stop", "skip"] = Field("stop", description="NaN or Inf: end with 5, or skip the step")
    max_nonfinite: Positive = Field(10, description="skipped steps in a row after which the run ends with 5")
    fuse_lanes: Positive = 1
    compile: bool = False
    tf32: bool = Field(
        False, description="fp32 products of matrices in TF32 on GPUs that have it; of no effect elsewhere"
    )
    activation_checkpointing: bool = False

    @model_validator(mode="after")
    def _ends(self) -> LoopConfig:
        if self.epochs is None and self.max_steps is None:
            raise ValueError("give epochs, max_steps or both: the run would never end")
        return self


class GenerationConfig(Section):
    """How a language model goes on with a text."""

    new_tokens: Positive = Field(64, description="at most; it may end the text before")
    beam_size: Positive = Field(1, description="1 = greedy; no beams with a temperature")
    temperature: Annotated[float, Field(ge=0)] = Field(0.0, description="of the sampling; 0 = the likeliest token")
    top_k: Annotated[int, Field(ge=0)] = Field(0, description="sample among the k likeliest tokens; 0 = all")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="among the likeliest with this probability")
    seed: Annotated[int, Field(ge=0)] = Field(1, description="of the sampling, anew for each text")

    def greedy(self, **changes: Any) -> Self:
        """The same without beams and sampling."""
        return self.model_copy(update={"temperature": 0.0, "top_k": 0, "top_p": 1.0, "beam_size": 1, **changes})

    @model_validator(mode="after")
    def _one_way(self) -> GenerationConfig:
        if self.temperature == 0 and (self.top_k or self.top_p < 1):
            raise ValueError("top_k and top_p need a temperature above 0: without one nothing is sampled")
        if self.temperature and self.beam_size > 1:
            raise ValueError(f"beam_size={self.beam_size} with temperature={self.temperature:g}: choose one of the two")
        return self


class EvaluationConfig(Section):
    """Decoding and metrics."""

    splits: list[Literal["validation", "test"]] = ["validation", "test"]
    max_rows: Positive | None = Field(
        None, description="rows evaluated, at most: a sample of the split, always the same; null = all"
    )
    tokens_per_batch: Positive = 4096
    beam_size: Positive = 5
    length_penalty: Annotated[float, Field(ge=0)] = 1.0
    max_length_factor: Annotated[float, Field(gt=0)] = Field(1.5, description="longest output = factor x source + 10")
    generation: GenerationConfig = Field(default_factory=GenerationConfig)
    memory: Annotated[int, Field(ge=0)] | None = Field(
        None, description="positions before a segment that a Transformer-XL sees; null = model.memory"
    )
    bootstrap: Positive = Field(1000, description="resamples behind the *_ci95 intervals")


class GatesConfig(Section):
    """What an artifact must reach to be published (docs/design.md)."""

    logits: Annotated[float, Field(gt=0)] = Field(1e-4, description="largest difference of a logit (onnx)")
    rows: Annotated[int, Field(ge=1)] = Field(64, description="rows whose logits are compared, of all lengths")
    margin: Annotated[float, Field(ge=0)] = Field(
        1e-3, description="a row whose two likeliest classes are further apart must keep its class (onnx)"
    )
    identical: Annotated[float, Field(ge=0, le=1)] = Field(0.99, description="share of the same texts (onnx)")
    bleu: Annotated[float, Field(ge=0)] = Field(0.1, description="largest difference in BLEU (onnx)")
    int8_bleu: Annotated[float, Field(ge=0)] = Field(0.5, description="points of BLEU that int8 or bf16 may cost")
    prompts: Positive = Field(128, description="texts that a language model's artifact goes on with as the weights do")
    perplexity: Annotated[float, Field(ge=0)] = Field(
        0.001, description="relative difference in perplexity, at most (onnx)"
    )
    int8_perplexity: Annotated[float, Field(ge=0)] = Field(
        0.02, description="relative rise in perplexity that int8 or bf16 may cost"
    )
    int8_accuracy: Annotated[float, Field(ge=0)] = Field(0.005, description="share of rows that int8 or bf16 may cost")


class ExportConfig(Section):
    """Which artifacts rank zero writes, and their gates."""

    onnx: bool = True
    int8: bool = True
    bf16: bool | None = Field(
        None, description="weights in bf16 for PyTorch; null = with the others, where the device computes in bf16"
    )
    safetensors: bool | None = Field(
        None, description="weights in fp32 for PyTorch; null = in place of onnx and int8 where there can be none"
    )
    bench: Annotated[float, Field(ge=0)] = Field(30.0, description="seconds to measure how fast they are; 0 = do not")
    gates: GatesConfig = Field(default_factory=GatesConfig)

    @property
    def graphs(self) -> list[str]:
        """The artifacts that need an exporter, in the order in which they are made."""
        return [name for name, made in (("onnx", self.onnx), ("int8", self.int8)) if made]

    def wanted(self, graphs: bool = True) -> list[str]:
        """All artifacts in the order in which they are made; `graphs`: whether the model can be exported."""
        bf16 = bool(self.graphs) if self.bf16 is None else self.bf16
        weights = bool(self.graphs) and not graphs if self.safetensors is None else self.safetensors
        made = [name for name, asked in (("bf16", bf16), ("safetensors", weights)) if asked]
        return made + (self.graphs if graphs else [])


class LaunchConfig(Section):
    """SLURM resources; null = the site's default."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    nodes: Positive = 1
    gpus_per_node: Annotated[int, Field(ge=0)] | str | None = Field(
        None, description="a number, or with the type of the GPUs as a100:4"
    )
    ranks_per_node: Positive | None = Field(None, description="null = one per GPU, or what a config for CPUs says")
    launcher: Literal["node", "task"] = Field("node", description="one launcher per node, or one SLURM task per rank")
    cpus_per_task: Positive | None = Field(None, description="of a task: a node's launcher with its ranks, or a rank")
    memory: str | None = Field(None, description="of a node, as 64G")
    time: str = Field("24:00:00", description="of one go; a run that takes longer is requeued and goes on")
    constraint: str | None = None
    mail: str | None = Field(None, description="address for mails at the end, on failures and requeues")
    setup: list[str] = Field(default_factory=list, description="shell lines before the launch (modules, container)")
    extra: list[str] = Field(default_factory=list, description="further #SBATCH options")
    signal_lead: Positive = Field(120, description="seconds before the time limit at which USR1 is sent")
    requeue_limit: Annotated[int, Field(ge=0)] = Field(
        20, description="requeues and restarts of a job without a new step, at most"
    )
    rendezvous_seconds: Annotated[float, Field(gt=0)] = Field(
        600.0, description="ranks wait so long for each other at the start; the run then ends and names who is missing"
    )
    hang_seconds: Annotated[float, Field(ge=0)] = Field(
        600.0, description="a rank without progress for so long is named and ends the run; 0 = wait for it"
    )

    @field_validator("partition", "account", "qos", "memory", "time", "constraint", mode="before")
    @classmethod
    def _text(cls, value: object) -> object:
        """YAML reads 90 and 12345 as numbers; sbatch takes both as text."""
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value
