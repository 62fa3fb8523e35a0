"""The sections of a recipe for what follows the training: decoding, metrics, artifacts and their gates."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from trainer.artifact_kinds import KINDS
from trainer.errors import UsageError
from trainer.recipe.bleu_tokenizers import BleuTokenizer
from trainer.recipe.sections import OwnName, Positive, Section


class GenerationConfig(Section):
    """How a language model continues a text."""

    new_tokens: Positive = Field(64, description="most new tokens; the model may end the text before")
    beam_size: Positive = Field(1, description="1 = greedy; must be 1 with a temperature")
    temperature: Annotated[float, Field(ge=0)] = Field(
        0.0, description="sampling temperature; 0 = the most probable token"
    )
    top_k: Annotated[int, Field(ge=0)] = Field(0, description="sample from the k most probable tokens; 0 = from all")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="sample from the most probable tokens with this total probability"
    )
    seed: Annotated[int, Field(ge=0)] = Field(1, description="seed of the sampling, the same for each text")

    def greedy(self, **changes: Any) -> Self:
        """Return the same settings without beams and sampling."""
        return self.model_copy(update={"temperature": 0.0, "top_k": 0, "top_p": 1.0, "beam_size": 1, **changes})

    @model_validator(mode="after")
    def _one_way(self) -> GenerationConfig:
        if self.temperature == 0 and (self.top_k or self.top_p < 1):
            raise ValueError("top_k and top_p need a temperature above 0, since nothing is sampled without one")
        if self.temperature and self.beam_size > 1:
            raise ValueError(f"beam_size={self.beam_size} with temperature={self.temperature:g}: choose one of the two")
        return self


class EvaluationConfig(Section):
    """Decoding and metrics."""

    splits: list[Literal["validation", "test"]] = Field(
        ["validation", "test"], description="splits that are evaluated at the end"
    )
    max_rows: Positive | None = Field(
        None, description="most rows to evaluate, always the same sample of the split; null = all"
    )
    tokens_per_batch: Positive = Field(4096, description="padded tokens of an evaluation batch")
    beam_size: Positive = Field(5, description="beams of translation and text to text; 1: greedy")
    length_penalty: Annotated[float, Field(ge=0)] = Field(
        1.0, description="exponent of the length by which a beam's score is divided"
    )
    max_length_factor: Annotated[float, Field(gt=0)] = Field(1.5, description="longest output = factor x source + 10")
    generation: GenerationConfig = Field(default_factory=GenerationConfig)
    memory: Annotated[int, Field(ge=0)] | None = Field(
        None, description="positions before a segment that a Transformer-XL attends to; null = model.memory"
    )
    metrics: list[OwnName] = Field(
        default_factory=list,
        description="functions package.module:function that score the predictions of a split (docs: custom-metric)",
    )
    baseline: bool = Field(
        True,
        description="also score TF-IDF with a linear model, trained on the same rows (classification, also of numbers)",
    )
    bootstrap: Positive = Field(1000, description="bootstrap resamples for the *_ci95 intervals")
    bleu_tokenizer: BleuTokenizer = Field(
        "auto",
        description="how BLEU splits texts into words, as its signature says; auto: by task.trg_language (zh, "
        "ja-mecab, ko-mecab, char), else 13a",
    )
    document_column: str | None = Field(
        None,
        description="column with the document of each row of an evaluated split, for chrF++ of documents (tasks with "
        "source and target texts); null: none",
    )


class GatesConfig(Section):
    """Limits that an artifact must meet to be published (docs/reference/gates.md)."""

    model: Annotated[float, Field(gt=0)] = Field(1e-5, description="largest difference of an output (model/)")
    logits: Annotated[float, Field(gt=0)] = Field(1e-4, description="largest difference of a logit (onnx)")
    rows: Annotated[int, Field(ge=1)] = Field(64, description="rows of all lengths whose logits are compared")
    split_rows: Positive | None = Field(
        None,
        description="most rows of the split on which answers and scores are compared, always the same sample; null = "
        "all. Fewer are faster, and find rare differences less often",
    )
    margin: Annotated[float, Field(ge=0)] = Field(
        1e-3, description="a row must keep its class if the two largest logits differ by more than this (onnx)"
    )
    identical: Annotated[float, Field(ge=0, le=1)] = Field(0.99, description="smallest share of identical texts (onnx)")
    bleu: Annotated[float, Field(ge=0)] = Field(0.1, description="largest difference in BLEU (onnx)")
    fp16_logits: Annotated[float, Field(gt=0)] = Field(
        0.02, description="largest difference of a logit, relative to the largest of the row if that is above 1 (fp16)"
    )
    int8_bleu: Annotated[float, Field(ge=0)] = Field(0.5, description="largest loss of BLEU points (int8, bf16, fp16)")
    prompts: Positive = Field(128, description="texts that a language model continues to compare artifact and weights")
    perplexity: Annotated[float, Field(ge=0)] = Field(
        0.001, description="largest relative difference in perplexity (onnx)"
    )
    int8_perplexity: Annotated[float, Field(ge=0)] = Field(
        0.02, description="largest relative increase in perplexity (int8, bf16, fp16)"
    )
    int8_accuracy: Annotated[float, Field(ge=0)] = Field(
        0.005, description="largest loss of accuracy, as a share (int8, bf16, fp16)"
    )


class ExportConfig(Section):
    """The artifacts that rank zero writes, and their gates."""

    model: bool = Field(True, description="check model/ with stock libraries in a process without rankzero")
    onnx: bool = Field(True, description="write export/onnx")
    int8: bool = Field(True, description="write export/int8")
    fp16: bool = Field(False, description="write export/fp16: ONNX in fp16, for GPUs")
    openvino: bool = Field(False, description="write export/openvino, in fp32 (extra: openvino)")
    openvino_int8: bool = Field(
        False, description="write export/openvino_int8, for classification and regression (extra: openvino)"
    )
    ctranslate2: bool = Field(False, description="write export/ctranslate2, in fp32 (extra: ctranslate2)")
    ctranslate2_int8: bool = Field(False, description="write export/ctranslate2_int8 (extra: ctranslate2)")
    bf16: bool | None = Field(None, description="weights in bf16 for PyTorch; null = if the device computes in bf16")
    safetensors: bool | None = Field(
        None, description="weights in fp32 for PyTorch; null = if onnx and int8 cannot be made"
    )
    bench: Annotated[float, Field(ge=0)] | None = Field(
        None,
        description="seconds for the speed benchmark; 0 = no benchmark; null = a tenth of the run, at most 30; "
        "none after less than two minutes",
    )
    gates: GatesConfig = Field(default_factory=GatesConfig)

    @property
    def graphs(self) -> list[str]:
        """Return the artifacts that need an exporter, in the order in which they are made."""
        return [kind.name for kind in KINDS.values() if kind.graphs and getattr(self, kind.name)]

    def check_packages(self) -> None:
        """Check that the packages of the wanted artifacts are installed.

        Raises:
            UsageError: with the command that installs them.
        """
        for kind in (kind for kind in KINDS.values() if getattr(self, kind.name) and kind.missing):
            raise UsageError(f"export.{kind.name}=true: {kind.missing}")

    def wanted(self, graphs: bool = True) -> list[str]:
        """Return all artifacts in the order in which they are made. `graphs`: whether the model can be exported."""
        unset = {"bf16": bool(self.graphs), "safetensors": bool(self.graphs) and not graphs}
        values = {name: getattr(self, name) for name in KINDS}
        names = [name for name, value in values.items() if (unset[name] if value is None else value)]
        return [name for name in names if graphs or not KINDS[name].graphs]
