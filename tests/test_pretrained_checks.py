"""Check pretrained weights and their settings before the corpus is read, and what the run records about them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import processes
import pytest
import torch
import yaml
from review_helpers import NAMES, metrics, recipe, task_of, train, write_bert, write_reviews, written
from safetensors.torch import load_file, save_file
from slow import slow_except
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from trainer import embed, evaluate, predict
from trainer.api import export
from trainer.api import train as train_here
from trainer.data.tokenization import train_tokenizer
from trainer.engine.trained_run import build_model
from trainer.errors import UsageError
from trainer.recipe import changed_keys
from trainer.recipe.sections import TokenizerTraining

LONG = "good good good " * 30


@pytest.fixture(scope="module")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_reviews(tmp_path_factory.mktemp("reviews"))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def finished(reviews: Path, bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a classifier that tells the classes apart. Read only."""
    made = recipe_from(reviews, bert, loop={"max_steps": 40, "eval_every": 40, "save_every": 40}, optim={"lr": 5e-3})
    run = train(tmp_path_factory.mktemp("finished"), made, "run")
    assert metrics(run)["accuracy"] > 0.7
    return run


def recipe_from(reviews: Path, name: Path, **sections: Any) -> Any:
    pooling = sections.pop("pooling", "auto")
    return recipe(reviews, {"kind": "pretrained", "name": str(name), "pooling": pooling}, **sections)


# -- classes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "labels",
    slow_except([{1: "positive", 0: "negative"}, {0: "negative", 1: "positive"}], {1: "positive", 0: "negative"}),
)
def test_a_finished_classifier_keeps_its_accuracy_in_any_order(
    reviews: Path, finished: Path, tmp_path: Path, labels: dict[int, str]
) -> None:
    """One step at no rate: the weights are those of the first run, whatever the order of `task.labels`."""
    made = recipe_from(
        reviews, finished / "model", task={"labels": labels}, optim={"lr": 1e-12},
        loop={"max_steps": 1, "eval_every": 1, "save_every": 1},
    )  # fmt: skip
    path, run = tmp_path / "recipe.yaml", tmp_path / "run"
    path.write_text(made.to_yaml())  # in the order of the labels
    processes.train(path, run).check()
    assert metrics(run)["accuracy"] == metrics(finished)["accuracy"]
    facts = json.loads((run / "model/config.json").read_text())
    assert facts["id2label"] == {str(i): name for i, name in enumerate(labels.values())}
    order = [NAMES.index(name) for name in labels.values()]
    rows = load_file(run / "model/model.safetensors")["classifier.weight"]
    assert torch.allclose(rows, load_file(finished / "model/model.safetensors")["classifier.weight"][order], atol=1e-6)


def test_other_classes_end_with_a_usage_error(reviews: Path, finished: Path, tmp_path: Path) -> None:
    made = recipe_from(reviews, finished / "model", task={"labels": {0: "bad", 1: "good"}})
    ended = processes.train(written(tmp_path, made), tmp_path / "run").check(2)
    assert "was trained on the classes 'negative', 'positive', and task.labels names 'bad', 'good'" in ended.text
    run = train(tmp_path, recipe_from(reviews, finished / "model", task=made.task.model_dump(), pooling="mean"), "new")
    assert metrics(run)["accuracy"] > 0.5


def test_the_order_of_the_classes_of_a_run_is_fixed(reviews: Path, finished: Path, tmp_path: Path) -> None:
    """Neither another start nor an evaluation may number them otherwise."""
    made = yaml.safe_load((finished / "recipe.yaml").read_text())
    other = {**made, "task": {**made["task"], "labels": dict(reversed(made["task"]["labels"].items()))}}
    assert changed_keys(made, other) == {"task.labels": (["0", "1"], ["1", "0"])}
    with pytest.raises(UsageError, match=r"task\.labels: \['negative', 'positive'\] -> \['positive', 'negative'\]"):
        evaluate(finished, overrides=["task.labels={1: positive, 0: negative}"])
    assert evaluate(finished, overrides=["task.labels={0: negative, 1: positive, 2: positive}"]) == metrics(finished)


@pytest.mark.parametrize("key", ["model.config={num_attention_heads: 4}", "model.pooling=mean", "model.name=null"])
def test_settings_that_weights_were_trained_with_cannot_be_overridden(finished: Path, key: str) -> None:
    with pytest.raises(UsageError):
        evaluate(finished, overrides=[key])


# -- lengths -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("truncation", "side"), slow_except([("head", "right"), ("tail", "left")], ("tail", "left")))
def test_a_stock_pipeline_cuts_long_texts_as_the_run_does(
    reviews: Path, bert: Path, tmp_path: Path, truncation: str, side: str
) -> None:
    made = recipe_from(reviews, bert, task={"truncation": truncation}, data={"max_length": 12}, optim={"lr": 5e-3})
    run = train(tmp_path, made, "run")
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    assert (tokenizer.model_max_length, tokenizer.truncation_side) == (12, side)
    text = "awful dull bad poor " * 4 + LONG
    (ours,) = predict(run, [text])
    (theirs,) = pipeline("text-classification", model=str(run / "model"), top_k=None)([text], truncation=True)
    for entry in theirs:
        assert ours["probabilities"][entry["label"]] == pytest.approx(entry["score"], abs=1e-5)
    vectors = [record.vector for record in embed(run / "model", [text, " ".join(text.split()[:10])])]
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-5)


# -- files -------------------------------------------------------------------------------------------------------------


def damaged(bert: Path, to: Path, what: str) -> Path:
    to.mkdir()
    for file in bert.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    if what == "tokenizer":
        (to / "tokenizer.json").unlink()
    elif what == "pointer":
        (to / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:5\nsize 9\n")
    else:
        path = to / what
        path.write_bytes(path.read_bytes()[:-20])
    return to


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("model.safetensors", r"model\.safetensors is cut or corrupt"),
        ("pointer", r"model\.safetensors is a Git LFS pointer"),
        ("tokenizer.json", r"tokenizer\.json is cut or corrupt"),
        ("config.json", r"config\.json is cut or corrupt"),
        ("tokenizer", "no tokenizer files in"),
    ],
)
def test_damaged_pretrained_models_are_refused_before_a_row_is_read(
    reviews: Path, bert: Path, tmp_path: Path, what: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.engine.setup.survey", lambda *_: pytest.fail("a row was read"))
    with pytest.raises(UsageError, match=message):
        train_here(recipe_from(reviews, damaged(bert, tmp_path / "bert", what)), run=tmp_path / "run")


def test_a_run_whose_weights_are_cut_is_refused_before_a_row_is_read(
    reviews: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "first"
    (other / "tokenizer").mkdir(parents=True)
    damaged(finished / "model", other / "model", "model.safetensors")
    monkeypatch.setattr("trainer.engine.setup.survey", lambda *_: pytest.fail("a row was read"))
    model = {"kind": "pretrained", "architecture": "bert", "size": "tiny", "init_from": str(other)}
    with pytest.raises(UsageError, match=r"model\.safetensors is cut or corrupt"):
        train_here(recipe(reviews, model), run=tmp_path / "run")


def test_a_start_that_resumes_checks_nothing_again(
    reviews: Path, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe_from(reviews, bert, evaluation={"splits": []})
    train_here(made, run=tmp_path / "run")
    for name in ("check_model_files", "ready_tokenizer", "survey"):
        monkeypatch.setattr(f"trainer.engine.setup.{name}", lambda *_: pytest.fail("checked again"))
    train_here(made, run=tmp_path / "run")


def test_a_tokenizer_that_was_corrected_before_the_first_step_is_taken(
    reviews: Path, bert: Path, tmp_path: Path
) -> None:
    """A start that failed has trained nothing: what it had fetched is fetched again."""
    folder = damaged(bert, tmp_path / "bert", "tokenizer")
    (folder / "tokenizer.json").write_bytes((bert / "tokenizer.json").read_bytes())
    weights = load_file(bert / "model.safetensors")
    lost = {name: tensor for name, tensor in weights.items() if "layer.1." not in name}
    save_file(lost, folder / "model.safetensors", {"format": "pt"})
    made = recipe_from(reviews, folder, evaluation={"splits": []})
    with pytest.raises(UsageError, match="its files have 1 layers"):
        train_here(made, run=tmp_path / "run")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    add_tokens(folder)
    train_here(made, run=tmp_path / "run")
    assert "<num>" in AutoTokenizer.from_pretrained(tmp_path / "run/model").get_vocab()


# -- added tokens ------------------------------------------------------------------------------------------------------


def add_tokens(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<num>", "<url>"])
    tokenizer.save_pretrained(folder)


@pytest.mark.ranks
@pytest.mark.parametrize("engine", slow_except([None, "zero3", "fsdp2"], "fsdp2"))
def test_added_tokens_train_resume_and_load_elsewhere(
    reviews: Path, bert: Path, tmp_path: Path, engine: str | None
) -> None:
    """The embedding grows alike on every rank and at every start; `model/` stands alone; a later run begins with it."""
    folder = damaged(bert, tmp_path / "bert", "config.json")
    (folder / "config.json").write_bytes((bert / "config.json").read_bytes())
    add_tokens(folder)
    made = recipe_from(reviews, folder, evaluation={"splits": []})
    run, half = tmp_path / "run", tmp_path / "half"
    processes.train(written(tmp_path, made), run, world=2, engine=engine).check()
    for words in (["loop.max_steps=4"], ["--allow-change", "loop.max_steps"]):
        processes.train(written(tmp_path, made), half, *words, world=2, engine=engine).check()
    whole, resumed = (load_file(path / "model/model.safetensors") for path in (run, half))
    rows = len(AutoTokenizer.from_pretrained(folder))
    assert len(whole["bert.embeddings.word_embeddings.weight"]) == rows
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    theirs = AutoModelForSequenceClassification.from_pretrained(run / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    text = "a <num> good <url> film"
    with torch.no_grad():
        p = theirs(**tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0]
    (ours,) = predict(run, [text])
    assert [ours["probabilities"][name] for name in NAMES] == pytest.approx(p.tolist(), abs=1e-5)
    if engine is None:
        assert export(run, overrides=["export.safetensors=true"])
        model = {**made.model.model_dump(), "init_from": str(run)}
        again = build_model(task_of(recipe(reviews, model)))
        assert torch.equal(again.get_input_embeddings().weight, whole["bert.embeddings.word_embeddings.weight"])


# -- beginning with a run ----------------------------------------------------------------------------------------------


def test_a_trunk_with_more_layers_or_other_heads_is_refused(reviews: Path, bert: Path, finished: Path) -> None:
    name = {"kind": "pretrained", "name": str(bert), "init_from": str(finished)}
    build_model(task_of(recipe(reviews, name)))
    with pytest.raises(UsageError, match=r"its trunk has 16 weights that this recipe's model does not have"):
        build_model(task_of(recipe(reviews, {**name, "config": {"num_hidden_layers": 1}})))
    with pytest.raises(UsageError, match=r"num_attention_heads: 2 there, 4 in this recipe"):
        build_model(task_of(recipe(reviews, {**name, "config": {"num_attention_heads": 4}})))
    with pytest.raises(UsageError, match=r"hidden_act: 'gelu' there, 'relu' in this recipe"):
        build_model(task_of(recipe(reviews, {**name, "config": {"hidden_act": "relu"}})))


@pytest.mark.slow
def test_an_encoder_with_more_layers_is_refused(reviews: Path, tmp_path: Path) -> None:
    run = train(tmp_path, recipe(reviews, evaluation={"splits": []}), "run")
    model = recipe(reviews).model.model_dump()
    with pytest.raises(UsageError, match=r"model\.layers is 2 there and 1 in this recipe"):
        build_model(task_of(recipe(reviews, {**model, "layers": 1, "init_from": str(run)})))


# -- a tokenizer beside the weights ------------------------------------------------------------------------------------


def test_a_tokenizer_with_other_ids_than_the_weights_is_refused(reviews: Path, bert: Path, tmp_path: Path) -> None:
    other = train_tokenizer(["zyx wvu 123 456 qjk"], TokenizerTraining(kind="wordpiece", vocab_size=50), 32)
    other.save_pretrained(tmp_path / "other")
    made = recipe_from(reviews, bert, tokenizer={"pretrained": str(tmp_path / "other")})
    with pytest.raises(UsageError, match=r"is not the tokenizer of model\.name=.* tokens have another id or none"):
        train_here(made, run=tmp_path / "run")


def test_the_models_tokenizer_with_added_tokens_may_be_in_another_folder(
    reviews: Path, bert: Path, tmp_path: Path
) -> None:
    AutoTokenizer.from_pretrained(bert).save_pretrained(tmp_path / "tokenizer")
    add_tokens(tmp_path / "tokenizer")
    made = recipe_from(reviews, bert, tokenizer={"pretrained": str(tmp_path / "tokenizer")}, evaluation={"splits": []})
    train_here(made, run=tmp_path / "run")
    rows = load_file(tmp_path / "run/model/model.safetensors")["bert.embeddings.word_embeddings.weight"]
    assert len(rows) == len(AutoTokenizer.from_pretrained(bert)) + 2
