"""model/ in stock libraries: the same outputs, and the gate that checks them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import processes
import pytest
import torch
from export_helpers import finished_run, spread
from golden import runs
from review_helpers import BAD, GOOD, OTHER
from slow import slow_except
from transformers import AutoModel, AutoModelForSeq2SeqLM, AutoTokenizer

from trainer import predict, tensors
from trainer.data.tokenization import load_tokenizer, train_tokenizer
from trainer.engine.trained_run import TrainedRun
from trainer.errors import GateError
from trainer.export import model_gate, stock_program
from trainer.export.artifact_integrity import problems
from trainer.export.provenance import problems_of
from trainer.export.stage import export_run
from trainer.models.folder import read_folder, weight_files
from trainer.models.stock import weights_of
from trainer.recipe_loading import Recipe
from trainer.rundir import RunDir

ONLY = ["export.model=true", "export.onnx=false", "export.int8=false", "export.bf16=false", "export.safetensors=false"]
TINY = {"kind": "pretrained", "size": "tiny"}
UNTIED = {**runs.RECIPES["translation"]["model"], "tied_embeddings": False}
ENCODER = runs.RECIPES["classification"]["model"]
BERT = {"kind": "pretrained", "name": "bert"}
TRANSLATOR = runs.RECIPES["translation"]["model"]
# name -> recipe of golden.runs, its `model` section, and the class that loads it
KINDS: dict[str, tuple[str, dict[str, Any] | None, str]] = {
    "translation": ("translation", None, "PegasusForConditionalGeneration"),
    "translation-untied": ("translation", UNTIED, "PegasusForConditionalGeneration"),
    "translation-post": ("translation", {**TRANSLATOR, "norm": "post", "activation": "relu"}, "MarianMTModel"),
    "translation-post-untied": ("translation", {**UNTIED, "norm": "post"}, "MarianMTModel"),
    "encoder": ("classification", None, "MegatronBertModel"),
    "encoder-max": ("classification", {**ENCODER, "pooling": "max", "activation": "relu"}, "MegatronBertModel"),
    "bert": ("classification", BERT, "BertForSequenceClassification"),
    "bert-mean": ("classification", {**BERT, "pooling": "mean"}, "BertModel"),
    "bert-cls": ("classification", {**BERT, "pooling": "cls"}, "BertModel"),
    "bert-pair": ("classification-pair", None, "BertForSequenceClassification"),
    "encoder-pair": ("classification-pair", {**ENCODER}, "MegatronBertModel"),
    "multi": ("classification-multi", BERT, "BertForSequenceClassification"),
    "multi-mean": ("classification-multi", {**BERT, "pooling": "mean"}, "BertModel"),
    "regression": ("classification-regression", BERT, "BertForSequenceClassification"),
    "tokens": ("token_classification", BERT, "BertForTokenClassification"),
    "gpt2-last": ("classification", {**TINY, "architecture": "gpt2", "pooling": "cls"}, "GPT2Model"),
    "longformer": ("classification", {**TINY, "architecture": "longformer"}, "LongformerForSequenceClassification"),
    "big_bird": ("classification", {**TINY, "architecture": "big_bird"}, "BigBirdForSequenceClassification"),
    "xlnet": ("classification", {**TINY, "architecture": "xlnet"}, "XLNetForSequenceClassification"),
    "reformer": ("classification", {**TINY, "architecture": "reformer"}, "ReformerForSequenceClassification"),
    "roberta": ("classification", {**TINY, "architecture": "roberta"}, "RobertaForSequenceClassification"),
    "deberta": ("classification", {**TINY, "architecture": "deberta-v2"}, "DebertaV2ForSequenceClassification"),
    "modernbert": ("classification", {**TINY, "architecture": "modernbert"}, "ModernBertForSequenceClassification"),
    "t5-class": ("classification", {**TINY, "architecture": "t5"}, "T5ForSequenceClassification"),
    "bart-class": ("classification", {**TINY, "architecture": "bart"}, "BartForSequenceClassification"),
    "gpt2-class": ("classification", {**TINY, "architecture": "gpt2"}, "GPT2ForSequenceClassification"),
    "llama": ("language_modeling-causal", {**TINY, "architecture": "llama"}, "LlamaForCausalLM"),
    "causal": ("language_modeling-causal", None, "GPT2LMHeadModel"),
    "mlm": ("language_modeling-mlm", None, "MegatronBertForMaskedLM"),
    "bert-mlm": ("language_modeling-mlm", {**TINY, "architecture": "bert"}, "BertForMaskedLM"),
    "t5": ("text_to_text", None, "T5ForConditionalGeneration"),
    "bart": ("text_to_text", {**TINY, "architecture": "bart"}, "BartForConditionalGeneration"),
}  # fmt: skip
NOT_APPLICABLE = {
    "cnn": ("classification", {"kind": "cnn", "filters": 16}, "no class of transformers has a convolution over"),
    "encoder-alibi": ("classification", {**ENCODER, "positions": "alibi"}, "positions=alibi"),
    "encoder-post": ("classification", {**ENCODER, "norm": "post"}, "norm=post"),
    "transformer_xl": ("language_modeling-transformer_xl", None, "TransformerXL is a model of rankzero"),
}


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, corpus: Path, reviews: Path, bert: Path
) -> Callable[[str, dict[str, Any] | None], RunDir]:
    """Return a function that makes a finished run of a recipe, untrained."""
    roots = runs.roots(tmp_path_factory.mktemp("roots"), corpus, reviews, bert)

    def run(name: str, model: dict[str, Any] | None) -> RunDir:
        values = runs.recipe(name, roots)
        if model is not None:
            values["model"] = {**model, **({"name": str(bert)} if "name" in model else {})}
        if "pretrained" in values["model"]["kind"] and "name" in values["model"]:
            values.pop("tokenizer", None)
        elif name == "classification-pair":
            values["tokenizer"] = runs.tokenizer("wordpiece", 90)
        values["evaluation"] = {**values["evaluation"], "max_length_factor": 1.0}
        values["data"] = {**values["data"], "tokens_per_batch": 320}
        values["export"] = {"gates": {"rows": 16}, "bench": 0}
        recipe = Recipe.parse(values)
        training = recipe.tokenizer_training
        words = [" ".join(GOOD + BAD + OTHER), "der Hund sieht ein Kind im Park. the dog sees a child in the park."]
        tokenizer = train_tokenizer(words * 3, training, 32) if training else load_tokenizer(str(recipe.tokenizer_name))
        return finished_run(tmp_path_factory.mktemp("run") / "run", recipe, tokenizer, spread)

    return run


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the stock libraries in this process: a fresh one takes seconds, and other tests start it."""
    monkeypatch.setattr(model_gate, "with_stock_libraries", lambda job: (stock_program.run(job), 0.0))


def gate_of(run: RunDir) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run.model / "gate.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize(
    "kind",
    slow_except(
        KINDS,
        "translation",
        "translation-post-untied",
        "encoder",
        "bert",
        "bert-mean",
        "causal",
        "mlm",
        "t5",
        "multi",
        "regression",
        "tokens",
    ),
)
def test_stock_classes_give_the_same_outputs(kind: str, made: Any, here: None) -> None:
    name, model, loaded = KINDS[kind]
    run = made(name, model)
    assert export_run(run, ONLY) == []
    gate = gate_of(run)
    assert gate["passed"] and gate["applicable"], gate
    assert gate["checks"]["loads"]["class"] == loaded
    compared = {"causal": 4, "llama": 4, "bert-pair": 1, "encoder-pair": 4, "regression": 4, "tokens": 4}.get(
        kind, 12
    )  # the others are cut
    assert gate["checks"]["outputs"]["rows"] == compared
    assert gate["checks"]["outputs"]["largest_difference"] <= 1e-5
    further = {"bert": "pipeline", "bert-mean": "sentence_transformers", "encoder": "sentence_transformers"}
    further |= dict.fromkeys(("translation", "translation-post-untied", "t5", "causal"), "generated")
    assert kind not in further or gate["checks"][further[kind]]["rows"] > 0
    assert problems(run.model) == []


@pytest.mark.parametrize("kind", NOT_APPLICABLE)
def test_a_model_without_a_stock_class_has_a_reason(kind: str, made: Any) -> None:
    name, model, reason = NOT_APPLICABLE[kind]
    run = made(name, model)
    export_run(run, ONLY)
    gate = gate_of(run)
    assert gate["passed"] and not gate["applicable"]
    assert reason in gate["reason"]


@pytest.mark.parametrize("kind", ["encoder", "translation"])
def test_weights_are_read_back_bit_for_bit(kind: str, made: Any) -> None:
    name, model, _ = KINDS[kind]
    run = made(name, model)
    finished = TrainedRun.open(run, Recipe)
    ours, again = weights_of(finished.model), read_folder(run.model)
    assert ours.keys() == again.keys()
    assert all(torch.equal(ours[key], again[key]) for key in ours)


@pytest.mark.ranks
def test_a_fresh_process_without_rankzero(made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate decides once; other weights fail it, and a part of model/ that changed is reported."""
    run = made("classification", BERT)
    export_run(run, ONLY)
    assert gate_of(run)["passed"]
    monkeypatch.setattr(model_gate, "with_stock_libraries", lambda job: pytest.fail("decided again"))
    export_run(run, ONLY)
    config = run.model / "config.json"
    config.write_text(config.read_text(encoding="utf-8").replace("gelu", "relu"), encoding="utf-8")
    assert [line for line in problems_of(run) if "config.json" in line]


@pytest.mark.parametrize("fault", ["head", "tokenizer", "weights"])
def test_planted_faults_fail_the_gate(fault: str, made: Any, here: None, monkeypatch: pytest.MonkeyPatch) -> None:
    run = made("classification", {**BERT, "pooling": "mean"} if fault == "head" else BERT)
    trained = TrainedRun.open(run, Recipe)
    monkeypatch.setattr("trainer.export.stage.TrainedRun.open", lambda *_: trained)  # what was trained
    if fault == "tokenizer":
        path = run.model / "tokenizer.json"
        values = json.loads(path.read_text(encoding="utf-8"))
        vocabulary = values["model"]["vocab"]
        vocabulary["a"], vocabulary["g"] = vocabulary["g"], vocabulary["a"]
        path.write_text(json.dumps(values), encoding="utf-8")
    else:
        path = weight_files(run.model)[0]
        changed = {name: tensor * 1.01 for name, tensor in tensors.read(path).items()}
        names = {"head.weight": ["linear.weight"], "head.bias": ["linear.bias"]} if fault == "head" else None
        renamed = {(names or {}).get(name, [name])[0]: tensor for name, tensor in changed.items()}
        path.unlink()
        tensors.write(path, renamed, names=names)
    with pytest.raises(GateError, match="model failed its gate and stock libraries should not load it"):
        export_run(run, ONLY)
    failed = gate_of(run)["failed"]
    assert ("inputs" if fault == "tokenizer" else "outputs") in failed
    assert gate_of(run)["worst_rows"]


@pytest.mark.ranks
def test_a_run_with_a_failed_gate_ends_with_6(recipe: Path, tmp_path: Path) -> None:
    words = ("export.model=true", "export.gates.model=1e-30", "loop.max_steps=2")
    ended = processes.train(recipe, tmp_path / "run", *words).check(6)
    assert "model failed its gate" in ended.err[0]
    run = RunDir(tmp_path / "run")
    assert gate_of(run)["failed"] == ["outputs"]
    assert gate_of(run)["checks"]["generated"]["limit"] is None
    assert "**failed**" in (run.path / "README.md").read_text(encoding="utf-8")
    assert "**failed**" in (run.model / "README.md").read_text(encoding="utf-8")
    assert list(predict(run.path, ["der Hund sieht ein Kind."]))


def test_the_code_of_the_model_card_works(made: Any, tmp_path: Path) -> None:
    """The folder alone, somewhere else: a translator and a classifier with pooling."""
    run = made("translation", None)
    moved = Path(shutil.copytree(run.model, tmp_path / "moved"))
    model: Any = AutoModelForSeq2SeqLM.from_pretrained(moved)
    tokenizer = AutoTokenizer.from_pretrained(moved)
    ids = model.generate(**tokenizer(["der Hund sieht ein Kind."], return_tensors="pt"))
    assert isinstance(tokenizer.batch_decode(ids, skip_special_tokens=True)[0], str)
    run = made("classification", None)
    moved = Path(shutil.copytree(run.model, tmp_path / "classifier"))
    assert type(AutoModel.from_pretrained(moved)).__name__ == "MegatronBertModel"
