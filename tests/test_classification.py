"""Classification and masked language modeling: encoding, models, techniques; and the contract of all tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hooks
import numpy as np
import processes
import pytest
import torch
import yaml
from review_helpers import NAMES, OTHER, metrics, recipe, task_of, train, written
from safetensors.numpy import load_file
from slow import slow_except
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
)

from trainer.data.cleaning import BadRow, clean_row
from trainer.data.roles import Label, Text
from trainer.data.sources import Row as SourceRow
from trainer.data.tokenization import train_tokenizer
from trainer.engine.evaluate import selection_score
from trainer.engine.objective import Objective, freeze_unused
from trainer.errors import DataError, UsageError
from trainer.models.classifiers import depths, pool, trunk_prefix
from trainer.models.freezing import freeze_embeddings
from trainer.optim.adversarial import Perturbation
from trainer.optim.schedules import lr_multiplier
from trainer.recipe.sections import AdversarialConfig, OptimConfig, TokenizerTraining
from trainer.recipe_loading import Recipe, load_recipe
from trainer.task.registry import make_task, task_classes
from trainer.tasks.classification.metrics import calibration_error, from_confusion, interval_of, score_classification

# -- rows to micro-batches ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("truncation", "kept"), [("head", "abcdef"), ("tail", "opqrst"), ("head_tail", "abqrst")])
def test_truncation_keeps_the_configured_part(bert: Path, tmp_path: Path, truncation: str, kept: str) -> None:
    task = {"truncation": truncation, "head_share": 0.33}
    made = recipe(tmp_path, {"kind": "pretrained", "name": str(bert)}, task=task, data={"max_length": 8})
    found = task_of(made)
    ids = list(range(100, 120))  # "abc…t"
    cut = found._cut([ids])[0]
    assert cut == [100 + "abcdefghijklmnopqrst".index(c) for c in kept]
    assert len(found.encode([{"text": "a film " * 50, "label": "0"}])[0]["input_ids"]) == 8


def test_ids_are_those_of_the_tokenizers_own_call(bert: Path, tmp_path: Path) -> None:
    model = {"kind": "pretrained", "name": str(bert)}
    tokenizer = AutoTokenizer.from_pretrained(bert)
    single = task_of(recipe(tmp_path, model))
    assert single.encode([{"text": "a good film"}])[0]["input_ids"] == tokenizer("a good film")["input_ids"]
    pair = task_of(recipe(tmp_path, model, task={"pair": True}))
    made = pair.encode([{"text": "a good film", "text_pair": "some story", "label": "1"}])[0]
    expected = tokenizer("a good film", "some story")
    assert (made["input_ids"], made["token_type_ids"]) == (expected["input_ids"], expected["token_type_ids"])
    assert set(pair.collate([made])) == {"input_ids", "attention_mask", "token_type_ids", "labels"}
    long = pair.encode([{"text": "a " * 40, "text_pair": "film", "label": "1"}])[0]
    assert len(long["input_ids"]) == 32
    short = len(tokenizer("film", add_special_tokens=False)["input_ids"])
    assert sum(long["token_type_ids"]) == short + 1, "the short text and its [SEP] stay"


@pytest.mark.parametrize("labels", [["negative", "positive"], {0: "negative", 1: "positive", "neg": "negative"}])
def test_label_maps_are_inverse(bert: Path, tmp_path: Path, labels: Any) -> None:
    values = recipe(tmp_path, {"kind": "pretrained", "name": str(bert)}).model_dump(mode="json")
    values["task"]["labels"] = labels
    task = task_of(Recipe.parse(values))
    first, *_, last = task.settings.labels
    found = task.encode([{"text": "a", "label": first}, {"text": "a", "label": last}])
    assert [e["label"] for e in found] == [[0], [0 if last == "neg" else 1]]
    config = task.model_config(task.build_model())
    assert config["id2label"] == {"0": "negative", "1": "positive"}
    assert config["label2id"] == {"negative": 0, "positive": 1}


def test_a_label_that_is_not_in_the_map_names_file_row_and_column(reviews: Path, tmp_path: Path) -> None:
    from trainer import train as run

    (tmp_path / "train.jsonl").write_text('{"text": "a", "label": 1}\n{"text": "b", "label": 2}\n' * 9, "utf-8")
    made = recipe(tmp_path, data={"test": None, "validation": None})
    with pytest.raises(
        DataError, match=r"""train.jsonl, 9 rows \(line 2 \(row 2\), .*, column "label": holds '2', .*known: '0', '1'"""
    ):
        run(made, run=tmp_path / "run")


@pytest.mark.parametrize("labels", [{True: "pos", False: "neg"}, {"true": "pos", "false": "neg"}])
def test_truth_values_are_labels(tmp_path: Path, labels: dict[Any, str]) -> None:
    values = recipe(tmp_path).model_dump(mode="json")
    values["task"]["labels"] = labels
    task = task_of(Recipe.parse(values))
    roles = task.roles(task.recipe.task)

    def label(value: Any, allowed: Any = roles) -> Any:
        row = clean_row(SourceRow((0, 0), {"text": "a", "label": value}), allowed, {}, str)
        return row if isinstance(row, BadRow) else row["label"]

    for value in (True, "true", "True", " TRUE "):
        assert task.encode([{"text": "a", "label": label(value)}])[0]["label"] == [0], value
    assert task.encode([{"text": "a", "label": label(False)}])[0]["label"] == [1]
    assert label(True, {"text": Text(), "label": Label("01")}) == "1"
    found = label(True, {"text": Text(), "label": Label(["yes"])})
    assert found.reason == "holds 'true', which is not in task.labels", "as the file writes it"


def test_class_weights_are_checked(tmp_path: Path) -> None:
    for weights, words in (([-1.0, 1.0], "greater than or equal to 0"), ([0.0, 0.0], "class_weights are all 0")):
        with pytest.raises(UsageError, match=words):
            recipe(tmp_path, task={"class_weights": weights})


def test_a_metric_that_validation_gives_no_value_is_refused(tmp_path: Path) -> None:
    from trainer import train as run

    (tmp_path / "train.jsonl").write_text('{"text": "a", "label": 1}\n{"text": "b", "label": 0}\n' * 9, "utf-8")
    (tmp_path / "one.jsonl").write_text('{"text": "a", "label": 1}\n' * 9, "utf-8")
    data = {"test": None, "validation": "one.jsonl"}
    made = recipe(tmp_path, data=data, loop={"early_stopping": {"metric": "roc_auc"}})
    words = r"early_stopping.metric='roc_auc' has no value: no row of data.validation is 'negative'; .* or accuracy"
    with pytest.raises(DataError, match=words):
        run(made, run=tmp_path / "run")
    runtime: Any = SimpleNamespace(on_main=lambda work: work())
    assert selection_score(runtime, {"roc_auc": 0.5}, "roc_auc") == 0.5
    with pytest.raises(DataError, match=r"has no value: not all classes occur in the rows of data.validation"):
        selection_score(runtime, {"loss": 1.0}, "roc_auc")


def test_class_weights_change_the_loss_as_torchs_do(tmp_path: Path) -> None:
    plain, weighted = task_of(recipe(tmp_path)), task_of(recipe(tmp_path, task={"class_weights": "balanced"}))
    torch.manual_seed(0)
    model = plain.build_model().eval()
    batch = plain.collate(plain.encode([{"text": "a film", "label": "0"}, {"text": "bad", "label": "1"}]))
    each = plain.assess(model, batch, predict=True).losses
    assert plain.loss(model, batch).item() == pytest.approx(each.sum().item(), abs=1e-5)
    # 80 rows, 60 and 20 of the two classes: weights 80/120 and 80/40
    assert weighted.loss(model, batch).item() == pytest.approx((each[0] * 2 / 3 + each[1] * 2).item(), abs=1e-5)
    given = task_of(recipe(tmp_path, task={"class_weights": [0.0, 3.0]}))
    assert given.loss(model, batch).item() == pytest.approx(3 * each[1].item(), abs=1e-5)


# -- models ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["cls", "mean", "max"])
def test_pooling_sees_no_padding(pooling: str) -> None:
    hidden = torch.randn(2, 5, 3)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    found = pool(hidden, mask, pooling)
    expected = {"cls": hidden[0, 0], "mean": hidden[0, :3].mean(0), "max": hidden[0, :3].amax(0)}[pooling]
    torch.testing.assert_close(found[0], expected)


@pytest.mark.parametrize("pooling", ["auto", "cls", "mean", "max"])
def test_a_row_does_not_depend_on_its_neighbours(bert: Path, tmp_path: Path, pooling: str) -> None:
    task = task_of(recipe(tmp_path, {"kind": "pretrained", "name": str(bert), "pooling": pooling}))
    model = task.build_model().eval()
    short, long = task.encode([{"text": "a good film"}, {"text": " ".join(OTHER)}])
    with torch.no_grad():
        alone, together = task.logits(model, task.collate([short])), task.logits(model, task.collate([short, long]))
    torch.testing.assert_close(alone[0], together[0], atol=1e-6, rtol=1e-5)


def test_gpt2_classifies_the_last_token_of_each_row(tmp_path: Path) -> None:
    """Neither its configuration nor its tokenizer knows a padding token."""
    tokenizer = train_tokenizer([" ".join(OTHER)], TokenizerTraining(kind="byte_bpe", vocab_size=300), 40)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=40)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    task = task_of(recipe(tmp_path, {"kind": "pretrained", "name": str(tmp_path)}))
    assert task.tokenizer.pad_token_id is None
    model = task.build_model().eval()
    rows = task.encode([{"text": "a film"}, {"text": " ".join(OTHER)}])
    with torch.no_grad():
        alone, together = (
            [task.logits(model, task.collate([row])) for row in rows],
            task.logits(model, task.collate(rows)),
        )
    torch.testing.assert_close(torch.cat(alone), together, atol=1e-6, rtol=1e-5)


def test_our_attention_equals_that_of_the_library(bert: Path, tmp_path: Path) -> None:
    task = task_of(recipe(tmp_path, {"kind": "pretrained", "name": str(bert)}))
    model: Any = task.build_model().eval()
    assert model.config._attn_implementation == "rankzero_eager"
    batch = task.collate(task.encode([{"text": "a good film"}, {"text": " ".join(OTHER)}]))
    ours = task.logits(model, batch)
    model.set_attn_implementation("eager")
    torch.testing.assert_close(ours, task.logits(model, batch), atol=1e-6, rtol=1e-5)


def test_words_that_the_tokenizer_does_not_know_are_shown(bert: Path, tmp_path: Path) -> None:
    task = task_of(recipe(tmp_path, {"kind": "pretrained", "name": str(bert)}))
    record = {"id": "a:0", "input": "a 漢 film", "prediction": "positive", "target": "positive"}
    [row] = task.explain(task.build_model().eval(), [record])
    assert row["tokens"][:2] == ["a", "[UNK]"] and not {"[CLS]", "[SEP]"} & {*row["tokens"]}
    own = task.tokenizer
    own.unk_token = own.sep_token  # as GPT-2's, which is its end of text
    assert own.sep_token_id in task.wordless


def test_lengths_that_do_not_fit_are_refused_with_both_numbers(bert: Path, tmp_path: Path) -> None:
    model = {"kind": "pretrained", "name": str(bert)}
    with pytest.raises(UsageError, match=r"data\.max_length=64 is more than the 40 positions"):
        task_of(recipe(tmp_path, model, data={"max_length": 64})).build_model()
    made = recipe(tmp_path, model)
    settings = TokenizerTraining(kind="wordpiece", vocab_size=500)
    big = train_tokenizer(["".join(map(chr, range(33, 300)))] * 2, settings, 32)
    with pytest.raises(UsageError, match=rf"tokenizer has {len(big)} tokens but the embedding of .* has \d+ rows"):
        make_task(made, big).build_model()
    for wrong, words in (
        ({"kind": "pretrained", "name": "/no/such/folder"}, "model.name='/no/such/folder' cannot be loaded"),
        ({"kind": "pretrained", "name": "pkg://no_such_package/model"}, "'no_such_package' is not installed"),
    ):
        with pytest.raises(UsageError, match=words):
            make_task(recipe(tmp_path, wrong), big).build_model()


def test_a_pretrained_head_of_other_classes_is_refused_and_its_trunk_taken(bert: Path, tmp_path: Path) -> None:
    folder = tmp_path / "three"
    AutoTokenizer.from_pretrained(bert).save_pretrained(folder)
    AutoModelForSequenceClassification.from_pretrained(bert, num_labels=3).save_pretrained(folder)
    model = {"kind": "pretrained", "name": str(folder)}
    words = r"model.name='.*' has 3 classes, and task.labels has 2: set model.pooling to cls, mean or max"
    with pytest.raises(UsageError, match=words):
        task_of(recipe(tmp_path, model)).build_model()
    assert task_of(recipe(tmp_path, model | {"pooling": "cls"})).build_model().head.out_features == 2
    other = model | {"pooling": "cls", "config": {"intermediate_size": 48}}
    with pytest.raises(UsageError, match=r"intermediate.dense.bias is \[64\], and \[48\] in this recipe's model"):
        task_of(recipe(tmp_path, other)).build_model()


def test_a_head_of_other_tags_cannot_be_left_out_by_pooling(bert: Path, tmp_path: Path) -> None:
    """Nothing is pooled in token classification, so that the hint is another one."""
    folder, values = tmp_path / "tags", recipe(tmp_path).model_dump(mode="json")
    AutoTokenizer.from_pretrained(bert).save_pretrained(folder)
    AutoModelForTokenClassification.from_pretrained(bert, num_labels=9).save_pretrained(folder)
    values |= {
        "task": {"kind": "token_classification", "labels": ["PER"]},
        "data": {"root": "x", "train": "x", "max_length": 32},
        "model": {"kind": "pretrained", "name": str(folder)},
        "tokenizer": {},
    }
    made = Recipe.parse(values)
    with pytest.raises(UsageError, match=r"has 9 classes, and task.labels has 3: give the model that it was"):
        make_task(made, AutoTokenizer.from_pretrained(folder)).build_model()


def test_parameters_that_the_loss_does_not_use_are_left_out(tmp_path: Path) -> None:
    task = task_of(recipe(tmp_path))
    model = task.build_model()
    model.extra = torch.nn.Linear(2, 2)
    assert freeze_unused(Objective(task, model)) == ["extra.weight", "extra.bias"]
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["extra.weight", "extra.bias"]
    assert all(p.grad is None for p in model.parameters())


def test_task_model_and_tokenizer_must_go_together(tmp_path: Path) -> None:
    values = recipe(tmp_path).model_dump(mode="json")
    path = tmp_path / "x.yaml"
    for change, words in (
        ({"model": {"kind": "transformer"}}, "model.kind: transformer cannot do task classification"),
        ({"tokenizer": {}}, "give exactly one of `train` and `pretrained`"),
        ({"model": {"kind": "pretrained", "name": "x"}}, "tokenizer.train: a new tokenizer's ids mean nothing"),
    ):
        path.write_text(yaml.safe_dump(values | change), encoding="utf-8")
        with pytest.raises(UsageError, match=words):
            load_recipe(path)


def test_depths_count_from_the_head_down(bert: Path, tmp_path: Path) -> None:
    own = depths(task_of(recipe(tmp_path)).build_model())
    assert own is not None
    assert own["head.weight"] == 0
    assert own["trunk.layers.1.feed_forward.inner.weight"] == own["trunk.norm.weight"] == 1
    assert own["trunk.layers.0.attention.output.weight"] == 2
    assert own["trunk.embedding.weight"] == 3
    model = task_of(recipe(tmp_path, {"kind": "pretrained", "name": str(bert)})).build_model()
    theirs = depths(model)
    assert theirs is not None
    assert theirs["classifier.weight"] == 0
    assert theirs["bert.encoder.layer.1.output.dense.weight"] == theirs["bert.pooler.dense.weight"] == 1
    assert theirs["bert.encoder.layer.0.output.dense.weight"] == 2
    assert theirs["bert.embeddings.LayerNorm.weight"] == theirs["bert.embeddings.word_embeddings.weight"] == 3


FAMILIES: dict[str, Any] = {
    "gpt2": ({"n_layer": 3}, {"wte", "wpe"}, "h"),
    "bart": ({"encoder_layers": 3, "decoder_layers": 2}, {"shared", "encoder.embed_positions"}, "encoder.layers"),
    "t5": ({"num_layers": 2}, {"shared"}, "encoder.block"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_are_found_under_any_name(family: str) -> None:
    sizes, tables, layers = FAMILIES[family]
    sizes = {**sizes, "d_model": 16, "n_embd": 16, "n_head": 2, "num_heads": 2, "vocab_size": 60, "n_positions": 40}
    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(family, **sizes))
    found, prefix = depths(model), trunk_prefix(model)
    assert found is not None and prefix is not None
    count = {"gpt2": 3, "bart": 3, "t5": 2}[family]
    assert {found[f"{prefix}{table}.weight"] for table in tables} == {count + 1}
    for n in range(count):
        inner = {depth for name, depth in found.items() if name.startswith(f"{prefix}{layers}.{n}.")}
        assert inner == {count - n}
    freeze_embeddings(model)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {name for name, depth in found.items() if depth == count + 1}


# -- rates -------------------------------------------------------------------------------------------------------------


def test_rates_follow_the_written_table() -> None:
    """Ten steps, linear after two of warm-up, layers at 0.5, one more layer from each fifth of the training on."""
    optim = OptimConfig(schedule="linear", warmup_steps=2, layer_decay=0.5, unfreeze=0.2)
    table = [[round(lr_multiplier(optim, s, (s - 1) / 10, depth=d), 4) for d in range(4)] for s in range(1, 11)]
    assert table == [
        [0.5, 0, 0, 0],
        [1.0, 0, 0, 0],
        [1.0, 0.5, 0, 0],
        [0.875, 0.4375, 0, 0],
        [0.75, 0.375, 0.1875, 0],
        [0.625, 0.3125, 0.1562, 0],
        [0.5, 0.25, 0.125, 0.0625],
        [0.375, 0.1875, 0.0938, 0.0469],
        [0.25, 0.125, 0.0625, 0.0312],
        [0.125, 0.0625, 0.0312, 0.0156],
    ]
    triangular = OptimConfig(schedule="slanted_triangular", cut_fraction=0.2, ratio=11, layer_decay=0.5)
    rates = [round(lr_multiplier(triangular, s, (s - 1) / 10, depth=1), 4) for s in range(1, 11)]
    assert rates == [0.0455, 0.2727, 0.5, 0.4432, 0.3864, 0.3295, 0.2727, 0.2159, 0.1591, 0.1023]


# -- metrics -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 5])
def test_scores_are_scikit_learns(classes: int) -> None:
    from sklearn import metrics as sk

    draw = np.random.default_rng(0)
    names = [f"class {i}" for i in range(classes)]
    p = draw.dirichlet(np.ones(classes), 300)
    true = np.array([draw.choice(classes, p=0.5 * row + 0.5 / classes) for row in p])
    records = [
        {"id": f"t:{i}", "target": names[t], "prediction": names[row.argmax()], "loss": -np.log(row[t]),
         "probabilities": dict(zip(names, row.tolist(), strict=True))}
        for i, (t, row) in enumerate(zip(true, p, strict=True))
    ]  # fmt: skip
    found: Any = score_classification(records, names, resamples=50)
    predicted = p.argmax(1)
    average: dict[str, Any] = {"average": "macro", "zero_division": 0}
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(true, predicted))
    assert found["f1"] == pytest.approx(sk.f1_score(true, predicted, **average))
    assert found["precision"] == pytest.approx(sk.precision_score(true, predicted, **average))
    assert found["recall"] == pytest.approx(sk.recall_score(true, predicted, **average))
    assert found["mcc"] == pytest.approx(sk.matthews_corrcoef(true, predicted))
    area = sk.roc_auc_score(true, p[:, 1]) if classes == 2 else sk.roc_auc_score(true, p, multi_class="ovr")
    assert found["roc_auc"] == pytest.approx(area)
    assert found["loss"] == pytest.approx(sk.log_loss(true, p))
    for name in ("accuracy", "f1", "precision", "recall", "mcc", "roc_auc", "average_precision", "ece", "loss"):
        low, high = found[f"{name}_ci95"]
        assert low < high, name
        assert low - 0.05 <= found[name] <= high + 0.05, name
    assert score_classification(records[::-1], names, resamples=50) == found, "whatever the order they come in"
    assert not [key for key in score_classification(records, names, resamples=0) if key.endswith("_ci95")]


def test_calibration_error_by_hand() -> None:
    p = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6]])
    true = np.array([0, 1, 1])
    assert calibration_error(p, p.argmax(1), true) == pytest.approx((abs(1.8 - 1) + abs(0.6 - 1)) / 3)
    by_threshold = np.array([0, 0, 0])  # the last row with 0.4, and wrong
    assert calibration_error(p, by_threshold, true) == pytest.approx((abs(1.8 - 1) + abs(0.4 - 0)) / 3)


def test_a_class_that_never_occurs_is_in_no_average_and_has_no_area() -> None:
    scores = from_confusion(np.array([[3.0, 0.0], [0.0, 0.0]]))
    assert scores == {"accuracy": 1.0, "precision": 1.0, "recall": 1.0, "f1": 1.0, "mcc": 0.0}
    record = {"id": "a:0", "target": "x", "prediction": "x", "loss": 0.1, "probabilities": {"x": 0.9, "y": 0.1}}
    assert "roc_auc" not in score_classification([record], ["x", "y"], resamples=3)
    with pytest.raises(DataError, match="target is 'z'; known: x, y"):
        score_classification([{**record, "target": "z"}], ["x", "y"])


def test_resamples_that_lack_a_class_are_left_out_of_an_interval() -> None:
    def records(right: int, wrong: int) -> list[dict[str, Any]]:
        rows = [("x", 0.9 - 0.001 * i) for i in range(right)] + [("y", 0.895 - 0.2 * i) for i in range(wrong)]
        return [
            {"id": f"a:{i}", "target": name, "prediction": "x", "loss": 0.1, "probabilities": {"x": p, "y": 1 - p}}
            for i, (name, p) in enumerate(rows)
        ]

    found: Any = score_classification(records(38, 2), ["x", "y"], resamples=200)  # every eighth resample lacks y
    for name in ("roc_auc", "average_precision"):
        low, high = found[f"{name}_ci95"]
        assert low <= found[name] <= high
    assert interval_of(lambda weights: math.nan if weights[0] else 1.0, 5, 100, 1) is None, "two of three are NaN"
    three = dict.fromkeys("xyz", 1 / 3)
    rows = [
        {"id": f"a:{i}", "target": c, "prediction": c, "loss": 1.0, "probabilities": three} for i, c in enumerate("xyz")
    ]
    rare = score_classification(rows, list("xyz"), resamples=100)  # 6 of 27 resamples have all classes
    assert "roc_auc" in rare and "roc_auc_ci95" not in rare and "average_precision_ci95" not in rare


# -- masks -------------------------------------------------------------------------------------------------------------


def test_masks_belong_to_the_micro_batch(reviews: Path) -> None:
    made = recipe(reviews, task={"kind": "classification"})
    values = made.model_dump(mode="json") | {"task": {"kind": "language_modeling"}}
    task = task_of(Recipe.parse(values))
    examples = task.encode([{"text": " ".join(OTHER * 2)}] * 40)
    first = task.corrupt(examples, 0, 1, 2)
    assert task.corrupt(examples, 0, 1, 2) == first
    assert task.corrupt(examples, 1, 1, 2) != first
    assert task.corrupt(examples[:1]) == task.corrupt(examples)[:1], "in an evaluation: by the text alone"
    special = set(task.tokenizer.all_special_ids)
    fates = {"mask": 0, "same": 0, "other": 0}
    for before, after in zip(examples, first, strict=True):
        places = after["places"]
        assert len(places) == len(set(places)) == round(0.15 * (len(before["input_ids"]) - 2))
        assert after["answers"] == [before["input_ids"][i] for i in places]
        for i, token in enumerate(after["input_ids"]):
            if i not in places:
                assert token == before["input_ids"][i]
            elif token == task.tokenizer.mask_token_id:
                fates["mask"] += 1
            else:
                fates["same" if token == before["input_ids"][i] else "other"] += 1
            assert not (i in places and before["input_ids"][i] in special)
    total = sum(fates.values())
    assert 0.7 < fates["mask"] / total < 0.9
    assert 0.03 < fates["other"] / total < 0.2


# -- whole runs --------------------------------------------------------------------------------------------------------


def test_every_task_keeps_the_contract() -> None:
    """Toy rows through encode, collate, model, loss, assess, filler: shapes agree, a filler counts nothing."""
    kinds = {
        "translation": {"model": {"kind": "transformer", "d_model": 16, "heads": 2, "feed_forward": 32}},
        "classification": {"task": {"labels": NAMES}},
        "classification multi": {"task": {"mode": "multi", "labels": NAMES}},
        "classification regression": {"task": {"mode": "regression", "pair": True}},
        "language_modeling": {},
        "token_classification": {"task": {"labels": ["PER", "LOC"]}},
        "text_to_text": {"model": {"kind": "pretrained", "architecture": "t5", "size": "tiny"}},
        "language_modeling causal": {
            "task": {"objective": "causal"},
            "model": {"kind": "pretrained", "architecture": "gpt2", "size": "tiny"},
        },
    }
    assert {name.split()[0] for name in kinds} == task_classes().keys(), "a new task belongs in here"
    for name, sections in kinds.items():
        kind = name.split()[0]
        made = recipe(Path("x")).model_dump(mode="json") | {"data": {"root": "x", "train": "x", "max_length": 32}}
        made["task"] = {"kind": kind} | sections.get("task", {})
        made["model"] = sections.get("model", made["model"])
        parsed: Any = Recipe.parse(made)
        kinds_of_values = task_classes()[kind].roles(parsed.task)
        texts = [
            text
            for row in task_classes()[kind].toy_rows
            for name, role in kinds_of_values.items()
            for text in role.texts(row[name])
        ]
        tokenizer = train_tokenizer(texts, TokenizerTraining(kind="wordpiece", vocab_size=120), 32)
        task = make_task(parsed, tokenizer)
        roles = task.roles(parsed.task)
        rows = [{role: row[role] for role in roles} for row in task.toy_rows]
        examples = task.corrupt(task.encode(rows), 1)
        batch = task.collate(examples)
        assert all(len(task.collate([e])[task.inputs[0]][0]) >= 1 for e in examples)
        model = task.build_model()
        loss, found = task.loss(model, batch), task.assess(model.eval(), batch, predict=True)
        assert loss.ndim == 0
        assert torch.isfinite(loss)
        loss.backward()
        assert len(found.losses) == len(found.counts) == len(found.records) == len(rows)
        assert int(found.counts.sum()) == task.targets(batch)
        assert task.targets(task.filler()) == 0
        assert task.loss(model, task.filler()).item() == 0.0
        assert [part is None for part in task.split(batch, 8)] == [False] * 4 + [True] * 4
        parts = [part for part in task.split(batch, 3) if part is not None]
        assert len(parts) == 3
        assert sum(map(task.targets, parts)) == task.targets(batch)
        whole = task.loss(model, batch).item()
        assert sum(task.loss(model, part).item() for part in parts) == pytest.approx(whole, rel=1e-5), name
        records: Sequence[Any] = [
            {"id": f"toy:{i}", "input": task.input_text(row), "target": task.target_text(row), "tokens": n, **r}
            | {"loss": x}
            for i, (row, r, x, n) in enumerate(
                zip(rows, found.records, found.losses.tolist(), found.counts.tolist(), strict=True)
            )
        ]
        scores = task.score(records, 5)
        assert scores["rows"] == len(rows)
        assert task.metrics.keys() & scores.keys()
        assert {next(iter(roles)), "text"} & task.row_of("a film\tI liked it").keys()


@pytest.mark.ranks
@pytest.mark.parametrize(
    "technique", slow_except(["plain", "fgm", "noise", "r_drop", "layers", "frozen", "embeddings", "mlm"], "fgm", "mlm")
)
def test_one_and_two_ranks_take_the_same_steps(reviews: Path, tmp_path: Path, technique: str) -> None:
    """Weights after 8 SGD steps, with dropout; and the same scores to the last digit."""
    optim = {
        "plain": {},
        "fgm": {"adversarial": {"kind": "fgm"}},
        "noise": {"adversarial": {"kind": "noise"}},
        "r_drop": {"r_drop": 5.0},
        "layers": {"layer_decay": 0.8, "unfreeze": 0.1, "head_lr": 0.2, "schedule": "slanted_triangular"},
        "frozen": {"freeze_trunk": True},
        "embeddings": {"freeze_embeddings": True},
        "mlm": {},
    }[technique]
    made = recipe(reviews, optim={"name": "sgd", "lr": 0.05, **optim})
    if technique == "mlm":
        made = Recipe.parse(made.model_dump(mode="json") | {"task": {"kind": "language_modeling"}})
    one, two = train(tmp_path, made, "one"), train(tmp_path, made, "two", ranks=2)
    a, b = (load_file(run / "checkpoints/step-00000008/model.safetensors") for run in (one, two))
    assert max(float(np.abs(a[name] - b[name]).max()) for name in a) <= 1e-6
    start = load_file(one / "checkpoints/step-00000004/model.safetensors")
    moved = {name.partition(".")[0] for name in a if not np.array_equal(a[name], start[name])}
    parts = {"frozen": {"head"}, "mlm": {"trunk", "transform", "norm", "bias"}}
    still = {name for name in a if np.array_equal(a[name], start[name])}
    assert not still or technique in ("frozen", "embeddings")
    if technique == "embeddings":
        assert still == {"trunk.embedding.weight", "trunk.type_embedding.weight"}
    assert moved == parts.get(technique, {"trunk", "head"})
    assert metrics(one)["rows"] == 40


@pytest.mark.parametrize("kind", ["fgm", "noise"])
@pytest.mark.parametrize("rows", [0, 1])
def test_each_row_is_moved_as_far(kind: str, rows: int) -> None:
    """XLNet embeds (T, B)."""
    embedding, mask = torch.nn.Embedding(9, 16), torch.arange(5) < torch.tensor([[5], [3], [1]])
    twin = Perturbation(embedding, AdversarialConfig(kind=kind, epsilon=0.5), rows=rows)
    with twin.clean():
        found = embedding(torch.randint(9, (3, 5)).transpose(0, rows)).transpose(0, rows)
        (found * mask[..., None]).square().sum().backward()
    delta = twin.direction(mask.long()).transpose(0, rows)
    torch.testing.assert_close(delta.flatten(1).norm(dim=1), torch.full((3,), 0.5))
    assert delta[~mask].abs().max() == 0


def test_noise_does_not_depend_on_the_width_of_the_batch() -> None:
    embedding = torch.nn.Embedding(9, 16)
    found = []
    for width in (5, 12):
        twin = Perturbation(embedding, AdversarialConfig(kind="noise", epsilon=0.5))
        with twin.clean():
            embedding(torch.ones(3, width, dtype=torch.int64))
        torch.manual_seed(0)
        mask = torch.arange(width) < torch.tensor([[5], [3], [1]])
        found.append(twin.direction(mask.long()))
    narrow, wide = found
    torch.testing.assert_close(narrow.flatten(1).norm(dim=1), torch.full((3,), 0.5))
    torch.testing.assert_close(wide[:, :5], narrow)
    assert wide[:, 5:].abs().max() == 0 and narrow[2, 1:].abs().max() == 0


@pytest.mark.parametrize("rows", [0, 1])
def test_without_a_mask_noise_is_added_where_the_loss_depends_on_it(rows: int) -> None:
    """Translations and packed documents have no attention_mask."""
    embedding, mask = torch.nn.Embedding(9, 16), torch.arange(5) < torch.tensor([[5], [3], [0]])
    twin = Perturbation(embedding, AdversarialConfig(kind="noise", epsilon=0.5), rows=rows)
    with twin.clean():
        found = embedding(torch.randint(9, (3, 5)).transpose(0, rows)).transpose(0, rows)
        (found * mask[..., None]).square().sum().backward()
    delta = twin.direction().transpose(0, rows)
    torch.testing.assert_close(delta.flatten(1).norm(dim=1), torch.tensor([0.5, 0.5, 0.0]))
    assert delta[~mask].abs().max() == 0


@pytest.mark.slow
def test_deltas_are_the_same_on_one_and_two_ranks(reviews: Path, tmp_path: Path) -> None:
    fgm = {"name": "sgd", "lr": 0.05, "adversarial": {"kind": "fgm", "epsilon": 0.5}}
    made = recipe(reviews, optim=fgm, loop={"max_steps": 2})
    found = []
    for ranks in (1, 2):
        train(tmp_path, made, f"run-{ranks}", ranks, partial(hooks.save_deltas, tmp_path / f"deltas-{ranks}"))
        parts = [load_file(path) for path in sorted(tmp_path.glob(f"deltas-{ranks}.*.safetensors"))]
        found.append({name: value for part in parts for name, value in part.items()})
    assert found[0].keys() == found[1].keys()
    assert len(found[0]) == 8, "two steps of four lanes"
    for name, delta in found[0].items():
        np.testing.assert_allclose(delta, found[1][name], atol=1e-6)
        np.testing.assert_allclose(np.sqrt((delta**2).sum((1, 2))), 0.5, rtol=1e-4)


@pytest.mark.ranks
def test_frozen_layers_do_not_move_by_a_bit(reviews: Path, bert: Path, tmp_path: Path) -> None:
    """Gradual unfreezing: with AdamW and weight decay a layer whose turn has not come keeps every bit."""
    model = {"kind": "pretrained", "name": str(bert), "pooling": "mean"}
    made = recipe(reviews, model, optim={"lr": 1e-2, "weight_decay": 0.1, "unfreeze": 0.45, "layer_decay": 0.9})
    run = train(tmp_path, made, "run")
    task = task_of(made)
    begun = dict(task.build_model().named_parameters())
    by_depth = depths(task.build_model())
    assert by_depth is not None
    for step, moving in ((4, {0}), (8, {0, 1})):
        now = load_file(run / f"checkpoints/step-{step:08d}/model.safetensors")
        moved = {
            by_depth[name] for name, value in now.items()
            if by_depth[name] > 0 and not np.array_equal(value, begun[name].detach().numpy())
        }  # fmt: skip
        assert moved == moving - {0}


@pytest.mark.ranks
def test_a_run_of_a_pretrained_model_needs_no_source_files(reviews: Path, bert: Path, tmp_path: Path) -> None:
    """model/ is what transformers loads; predict and evaluate need the run directory only."""
    import shutil

    from trainer import evaluate, predict

    own = tmp_path / "bert"
    shutil.copytree(bert, own)
    for pooling in ("auto", "mean"):
        made = recipe(reviews, {"kind": "pretrained", "name": str(own), "pooling": pooling})
        run = train(tmp_path, made, f"run-{pooling}")
        scores = metrics(run)
        own.rename(tmp_path / "gone")
        records = list(predict(run, ["a good film", "bad bad bad"]))
        assert [set(record) for record in records] == [{"text", "label", "confidence", "probabilities"}] * 2
        assert records[0]["label"] in NAMES
        assert sum(records[0]["probabilities"].values()) == pytest.approx(1.0)
        assert evaluate(run) == scores
        if pooling == "auto":
            theirs: Any = AutoModelForSequenceClassification.from_pretrained(run / "model").eval()
            inputs = AutoTokenizer.from_pretrained(run / "model")("a good film", return_tensors="pt")
            p = theirs(**inputs).logits.double().softmax(-1)[0].tolist()
            assert [records[0]["probabilities"][name] for name in NAMES] == pytest.approx(p, abs=1e-6)
            assert theirs.config.id2label == dict(enumerate(NAMES))
        (tmp_path / "gone").rename(own)


@pytest.mark.ranks
@pytest.mark.slow
def test_pretraining_by_masks_then_fine_tuning(reviews: Path, tmp_path: Path) -> None:
    made = recipe(reviews)
    masked = Recipe.parse(made.model_dump(mode="json") | {"task": {"kind": "language_modeling"}})
    first = train(tmp_path, masked, "mlm")
    assert {"loss", "perplexity", "accuracy"} <= metrics(first).keys()
    assert "The hardest texts" in (first / "evaluation/test/report.html").read_text(encoding="utf-8")
    model = made.model.model_dump() | {"init_from": str(first)}
    second = recipe(reviews, model, optim={"lr": 1e-12}, loop={"max_steps": 1})
    run = train(tmp_path, second, "fine")
    pretrained, tuned = (load_file(r / "model/model.safetensors") for r in (first, run))
    name = "embeddings.word_embeddings.weight"  # stock BERT's: model/ of the classifier holds the encoder alone
    assert np.abs(tuned[name] - pretrained[f"bert.{name}"]).max() < 1e-9
    assert (run / "tokenizer/tokenizer.json").read_bytes() == (first / "tokenizer/tokenizer.json").read_bytes()
    for key, value, said in (
        ("d_model", 16, "give both recipes the same model sizes"),
        ("positions", "alibi", "model.positions is sinusoidal there and alibi in this recipe"),
        ("init_from", "nowhere", "model.init_from='nowhere': there is no nowhere/model/model.safetensors"),
    ):
        ended = processes.train(written(tmp_path, recipe(reviews, {**model, key: value})), tmp_path / key).check(2)
        assert said in ended.err[0]


@pytest.mark.ranks
@pytest.mark.slow
def test_a_corpus_sorted_by_label_is_learnt(reviews: Path, tmp_path: Path) -> None:
    """train.jsonl is sorted by label; the shares of each step are not."""
    made = recipe(reviews, loop={"max_steps": 60, "eval_every": 20, "save_every": 60}, optim={"lr": 3e-3})
    run = train(tmp_path, made, "run")
    assert metrics(run)["accuracy"] >= 0.9
