"""Causal language modeling: packing, the loss, complete runs, and continuations of texts."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import hooks
import numpy as np
import processes
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lane_helpers import PROPERTY
from language_helpers import causal_recipe, task_with, write_documents
from review_helpers import BAD, GOOD, OTHER, metrics, train, written
from safetensors.numpy import load_file
from transformers import GPT2LMHeadModel

from trainer import predict, tensors
from trainer.api import stream
from trainer.engine.trained_run import build_model
from trainer.errors import DataError, NumericsError, UsageError
from trainer.task.registry import make_task
from trainer.tasks.language_modeling.metrics import score_tokens

LENGTH = 24  # data.max_length
GPT2 = {"kind": "pretrained", "architecture": "gpt2", "size": "tiny"}


def document(draw: random.Random) -> str:
    """Most are shorter than a sequence, some span several."""
    return " ".join(draw.choices(OTHER + GOOD + BAD, k=draw.choice([1, 3, 8, 15, 30, 70])))


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_documents(tmp_path_factory.mktemp("documents"), document, train=120, test=20)


def recipe(root: Path | str = "x", **sections: Any) -> Any:
    own = {
        "name": "documents",
        "data": {"tokens_per_batch": 2 * LENGTH, "max_length": LENGTH, "pad_multiple": 8},
        "tokenizer": {"train": {"kind": "byte_bpe", "vocab_size": 300}},
        "model": GPT2,
        "optim": {"name": "sgd", "lr": 0.1, "schedule": "constant"},
    }
    return causal_recipe(root, own, sections)


def task_of(made: Any) -> Any:
    return task_with(made, document)


def model_of(task: Any) -> Any:
    torch.manual_seed(0)
    return task.build_model().eval()


def test_begun_from_a_run_with_its_head(tmp_path: Path) -> None:
    """A head with weights of its own would begin at random."""
    untied = {**GPT2, "config": {"tie_word_embeddings": False}}
    task = task_of(recipe(model=untied))
    first = model_of(task)
    assert first.lm_head.weight is not first.transformer.wte.weight
    (tmp_path / "model").mkdir()
    tensors.write(tmp_path / "model/model.safetensors", dict(first.named_parameters()))
    (tmp_path / "model/config.json").write_text(json.dumps(task.model_config(first)))
    again = recipe(model={**untied, "init_from": str(tmp_path)}, tokenizer={"train": None})
    torch.manual_seed(1)
    for name, p in build_model(make_task(again, task.tokenizer)).named_parameters():
        assert torch.equal(p, first.get_parameter(name)), name


# -- packing -----------------------------------------------------------------------------------------------------------


@PROPERTY
@given(st.lists(st.integers(0, 70), max_size=12), st.booleans(), st.booleans())
def test_packing_loses_and_repeats_nothing(lengths: list[int], packing: bool, cross: bool) -> None:
    """Every token is asked for once, in order; every document begins once; sequences are full but the last."""
    made = recipe(task={"packing": packing, "cross_documents": cross})
    task: Any = make_task(made, None)  # type: ignore[arg-type]
    numbers = iter(range(1, 10_000))
    texts = [[next(numbers) for _ in range(n)] for n in lengths]
    examples = [{"input_ids": [0, *ids], "labels": [*ids, -n - 1]} for n, ids in enumerate(texts)]
    packed = task.pack(examples)
    assert [t for e, _ in packed for t in e["labels"]] == [t for e in examples for t in e["labels"]]
    assert [t for e, _ in packed for t in e["input_ids"]] == [t for e in examples for t in e["input_ids"]]
    assert [n for _, begun in packed for n in begun] == list(range(len(texts)))
    assert all(1 <= len(e["input_ids"]) <= LENGTH for e, _ in packed)
    if packing:
        assert all(len(e["input_ids"]) == LENGTH for e, _ in packed[:-1])
    for example, begun in packed:
        starts = [i for i, token in enumerate(example["input_ids"]) if token == 0]
        assert len(starts) == len(begun)
        positions = example.get("position_ids", list(range(len(example["input_ids"]))))
        expected = [i - max([s for s in starts if s <= i], default=0) for i in range(len(positions))]
        assert positions == (list(range(len(positions))) if cross else expected)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("attention", ["auto", "sdpa", "eager"])
def test_packing_does_not_change_the_loss_of_a_document(architecture: str, attention: str) -> None:
    made = recipe(
        model={**GPT2, "architecture": architecture, "attention": attention},
        data={"max_length": 64, "tokens_per_batch": 64},
    )
    task = task_of(made)
    model = model_of(task)
    examples = task.encode([{"text": text} for text in ("the film was good", "a plot", "and it was very bad")])
    assert sum(len(e["labels"]) for e in examples) < 64
    [(packed, begun)] = task.pack(examples)
    assert begun == [0, 1, 2]
    with torch.no_grad():
        alone = [task.loss(model, task.collate([e])).item() for e in examples]
        together = task.loss(model, task.collate([packed])).item()
        padded = task.loss(model, task.collate(examples)).item()
        sees = task.loss(model, task.collate([{**packed, "position_ids": list(range(len(packed["labels"])))}])).item()
    assert together == pytest.approx(sum(alone), rel=1e-5)
    assert padded == pytest.approx(sum(alone), rel=1e-5)
    assert abs(sees - together) > 1e-3, "the control: positions that run on let it see the others"


def test_the_loss_is_that_of_the_library() -> None:
    """GPT2LMHeadModel(labels=…) on [EOT] t₁ … tₙ [EOT]: its mean over the n + 1 tokens after the first."""
    task = task_of(recipe(model={**GPT2, "config": {"n_layer": 3}}))
    model = model_of(task)
    assert isinstance(model, GPT2LMHeadModel)
    assert len(model.transformer.h) == 3
    [example] = task.encode([{"text": "the film was good and the plot"}])
    ids = torch.tensor([[*example["input_ids"], task.end_id]])
    with torch.no_grad():
        theirs = float(model(ids, labels=ids).loss) * (ids.shape[1] - 1)
        ours = float(task.loss(model, task.collate([example])))
        assessed = task.assess(model, task.collate([example]), predict=True)
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert float(assessed.losses[0]) == pytest.approx(theirs, rel=1e-5)
    assert int(assessed.counts[0]) == ids.shape[1] - 1


@pytest.mark.parametrize("multiple", [8, 7])  # 7 pads a sequence of 24 tokens to 28
def test_a_long_document_is_evaluated_in_the_pieces_of_the_training(multiple: int) -> None:
    task = task_of(recipe(task={"packing": False}, data={"pad_multiple": multiple}))
    model = model_of(task)
    examples = task.encode([{"text": " ".join(OTHER * 4)}, {"text": "the film"}])
    assert len(examples[0]["labels"]) > 2 * LENGTH
    with torch.no_grad():
        found = task.assess(model, task.collate(examples), predict=True)
        alone = task.assess(model, task.collate(examples[1:]), predict=True)
    pieces = [piece for piece, _ in task.pack(examples[:1])]
    assert len(pieces) > 2
    with torch.no_grad():
        expected = sum(task.loss(model, task.collate([piece])).item() for piece in pieces)
    assert float(found.losses[0]) == pytest.approx(expected, rel=1e-5)
    assert found.counts.tolist() == [len(e["labels"]) for e in examples]
    assert float(found.losses[1]) == pytest.approx(float(alone.losses[0]), rel=1e-5)


def test_scores_per_word_and_byte() -> None:
    task = task_of(recipe())
    records = [
        {"id": f"a:{i}", "target": text, "loss": loss, "tokens": tokens, "correct": 1, "prediction": "", "input": text}
        for i, (text, loss, tokens) in enumerate([("zwei Wörter", 6.0, 5), ("é", 2.0, 3)])
    ]
    scores = task.score(records, 10)
    assert scores["loss"] == 1.0
    assert scores["perplexity"] == pytest.approx(math.e)
    assert scores["word_perplexity"] == pytest.approx(math.exp(8 / 3))
    assert scores["bits_per_byte"] == pytest.approx(8 / math.log(2) / 14)
    assert scores["accuracy"] == 0.25
    low, high = scores["bits_per_byte_ci95"]
    assert low <= scores["bits_per_byte"] <= high


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_diverged_model_has_no_scores(loss: float) -> None:
    """metrics.json would hold NaN or Infinity, which are no JSON."""
    row = {"target": "x", "tokens": 2, "correct": 1}
    for words in (True, False):  # causal, masked
        with pytest.raises(NumericsError, match="a:2"):
            score_tokens([{**row, "id": "a:1", "loss": 1.0}, {**row, "id": "a:2", "loss": loss}], 10, words=words)
        with pytest.raises(DataError, match="no predictions"):
            score_tokens([], 10, words=words)


# -- settings ----------------------------------------------------------------------------------------------------------


def test_contradicting_settings_are_refused() -> None:
    with pytest.raises(UsageError, match=r"model.architecture='gpt22' is unknown to transformers; did you mean 'gpt2'"):
        task_of(recipe(model={**GPT2, "architecture": "gpt22"})).build_model()
    with pytest.raises(UsageError, match=r"model.config.n_layers: gpt2 has no such key; did you mean 'n_layer'"):
        task_of(recipe(model={**GPT2, "config": {"n_layers": 3}})).build_model()
    with pytest.raises(UsageError, match=r"set architecture"):
        recipe(model={"kind": "pretrained", "architecture": None})
    with pytest.raises(UsageError, match="top_k and top_p need a temperature"):
        recipe(evaluation={"generation": {"top_k": 5}})
    with pytest.raises(UsageError, match=r"beam_size=2 with temperature=1: choose one"):
        recipe(evaluation={"generation": {"beam_size": 2, "temperature": 1}})
    bert = {**GPT2, "architecture": "bert", "config": {"is_decoder": True}}
    task = task_of(recipe(model=bert))
    with pytest.raises(UsageError, match=r"does not keep documents in one sequence apart .* task.packing=false"):
        build_model(task)
    assert task_of(recipe(model=bert, task={"packing": False})).build_model() is not None
    long = task_of(recipe(evaluation={"generation": {"new_tokens": LENGTH}}))
    with pytest.raises(UsageError, match=r"new_tokens=24 leaves no room for a text in 24 positions"):
        long.predict(model_of(long), long.collate(long.encode([{"text": "the"}])))


# -- whole runs --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(documents: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs on two ranks, uninterrupted. Read only."""
    made = recipe(documents, loop={"max_steps": None, "epochs": 2, "eval_every": "epoch"})
    return train(tmp_path_factory.mktemp("causal"), made, "run", ranks=2)


@pytest.mark.ranks
def test_every_document_once_an_epoch(run: Path, documents: Path) -> None:
    ledger = processes.read_lines(run / "ledger.jsonl")
    rows = [json.dumps(row) for line in ledger for lane in line["rows"].values() for row in lane]
    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    assert len(set(rows)) == manifest["data"]["train"]["rows"]
    assert set(Counter(rows).values()) == {2}
    scores = metrics(run)
    assert {"loss", "perplexity", "word_perplexity", "bits_per_byte", "bits_per_byte_ci95"} <= scores.keys()
    assert scores["rows"] == 20
    trained = [line for line in processes.read_lines(run / "metrics.jsonl") if line["split"] == "train"]
    assert trained[-1]["loss"] < trained[0]["loss"] - 0.5, "it learns"


@pytest.mark.ranks
def test_killed_and_resumed_bitwise(run: Path, documents: Path, tmp_path: Path) -> None:
    made = recipe(documents, loop={"max_steps": None, "epochs": 2, "eval_every": "epoch"})
    path, again = written(tmp_path, made), tmp_path / "run"
    killed = processes.train(path, again, world=2, hook=partial(hooks.at_micro_batch, 6, 1))
    assert any(code for code in killed.codes)
    processes.train(path, again, world=2).check()
    for file in ("model/model.safetensors", "evaluation/test/predictions.jsonl", "ledger.jsonl"):
        assert (again / file).read_bytes() == (run / file).read_bytes(), file


@pytest.mark.ranks
@pytest.mark.slow
def test_one_and_two_ranks_take_the_same_steps(documents: Path, tmp_path: Path) -> None:
    made = recipe(documents)
    one, two = train(tmp_path, made, "one"), train(tmp_path, made, "two", ranks=2)
    a, b = (load_file(r / "checkpoints/step-00000008/model.safetensors") for r in (one, two))
    assert max(float(np.abs(a[name] - b[name]).max()) for name in a) <= 1e-6
    assert metrics(one)["loss"] == pytest.approx(metrics(two)["loss"], rel=1e-6)


@pytest.mark.ranks
def test_the_report_of_a_language_model(run: Path) -> None:
    """Continuations of real beginnings, the hardest texts first, perplexity by length, attention that looks back."""
    folder = run / "evaluation" / "test"
    page = (folder / "report.html").read_text(encoding="utf-8")
    for words in ("Continuations", "By length", "Bits per byte", "Validation Perplexity"):
        assert words in page, words
    texts = {record["id"]: record["input"] for record in processes.read_lines(folder / "predictions.jsonl")}
    continued = json.loads((folder / "samples.json").read_text(encoding="utf-8"))["rows"]
    assert len(continued) >= 3
    for row in continued:
        assert texts[row["id"]].startswith(row["prompt"] + row["reference"])
    hardest = [row["loss_per_token"] for row in processes.read_lines(folder / "errors.jsonl")]
    assert len(hardest) == 20
    assert hardest == sorted(hardest, reverse=True)
    summary = json.loads((folder / "errors.json").read_text(encoding="utf-8"))
    assert sum(line["rows"] for line in summary["by_length"]) == 20
    assert summary["perplexity"] == pytest.approx(metrics(run)["perplexity"])
    assert "type: text-generation" in (run / "README.md").read_text(encoding="utf-8")
    rows = json.loads((folder / "attention.json").read_text(encoding="utf-8"))["rows"]
    assert len(rows) == 4
    for row in rows:
        weights = np.array(row["weights"])
        assert weights.shape == (2, 2, len(row["tokens"]), len(row["tokens"]))
        assert np.triu(weights, 1).max() == 0
        assert np.array(row["relevance"]).any()


def test_a_report_without_room_for_new_tokens_has_no_continuations() -> None:
    task = task_of(recipe(evaluation={"generation": {"new_tokens": LENGTH}}))
    assert task.continued(model_of(task), [{"id": "1", "input": "the film was good and long"}]) == []


# -- going on with a text ----------------------------------------------------------------------------------------------


def greedy(task: Any, model: Any, text: str, tokens: int) -> list[int]:
    """The likeliest token, again and again, without a cache."""
    [example] = task.encode([{"text": text}])
    ids = torch.tensor([example["input_ids"]])
    new: list[int] = []
    with torch.no_grad():
        while len(new) < tokens:
            best = int(model(ids).logits[0, -1].argmax())
            if best == task.end_id:
                break
            new.append(best)
            ids = torch.cat([ids, torch.tensor([[best]])], 1)
    return new


def test_greedy_decoding_repeats_the_most_probable_token() -> None:
    """Also beside a longer text in the batch, which shifts the shorter one."""
    task = task_of(recipe(data={"max_length": 64, "tokens_per_batch": 64}))
    model = model_of(task)
    texts = ["the film", "a very good story with some scenes"]
    found = task.predict(model, task.collate(task.encode([{"text": text} for text in texts])))
    for text, record in zip(texts, found, strict=True):
        ids = greedy(task, model, text, 6)
        assert record["prediction"] == task.tokenizer.decode(ids)
        [example] = task.encode([{"text": text}])
        log_p = model(torch.tensor([[*example["input_ids"], *ids]])).logits[0].log_softmax(-1)
        taken = [float(log_p[len(example["input_ids"]) - 1 + i, token]) for i, token in enumerate(ids)]
        assert record["score"] == pytest.approx(sum(taken) / len(taken), abs=1e-4)


def test_generation_settings_of_the_pretrained_model_are_ignored(tmp_path: Path) -> None:
    """It is not in the run's directory: a run that is opened again would answer otherwise."""
    first = task_of(recipe(data={"max_length": 64, "tokens_per_batch": 64}))
    model = model_of(first)
    model.generation_config.repetition_penalty = 9.0
    model.generation_config.bad_words_ids = [[token] for token in greedy(first, model, "the film", 1)]
    model.save_pretrained(tmp_path)
    first.tokenizer.save_pretrained(tmp_path)
    named = {"kind": "pretrained", "name": str(tmp_path), "architecture": None, "size": None}
    made = recipe(model=named, tokenizer={"train": None}, data={"max_length": 64, "tokens_per_batch": 64})
    task = make_task(made, first.tokenizer)
    again = task.build_model().eval()
    [record] = task.predict(again, task.collate(task.encode([{"text": "the film"}])))
    assert record["prediction"] == task.tokenizer.decode(greedy(task, again, "the film", 6))


@pytest.mark.ranks
def test_predict_continues_texts(run: Path) -> None:
    texts = ["the film", "a story was very", ""]

    def answers(*settings: str, of: list[str] = texts) -> list[str]:
        overrides = [f"evaluation.generation.{setting}" for setting in settings]
        return [record["prediction"] for record in predict(run, of, overrides=overrides)]

    plain = list(predict(run, texts))
    assert [set(record) for record in plain] == [{"text", "prediction", "score"}] * 3
    sampled = answers("temperature=1.5", "top_k=50", "top_p=0.95")
    assert sampled == answers("temperature=1.5", "top_k=50", "top_p=0.95"), "the same seed"
    assert sampled[1:2] == answers("temperature=1.5", "top_k=50", "top_p=0.95", of=texts[1:2]), "neighbours"
    assert sampled != answers("temperature=1.5", "top_k=50", "top_p=0.95", "seed=2")
    assert sampled != answers()
    beams = list(predict(run, texts, overrides=["evaluation.generation.beam_size=4"]))
    assert len(beams) == 3
    assert "".join(stream(run, texts)) == "".join(
        text + answer + "\n" for text, answer in zip(texts, answers(), strict=True)
    )
    with pytest.raises(UsageError, match="backend onnx does not stream"):
        list(stream(run, texts, backend="onnx"))


def test_plan_knows_causal_models(documents: Path, tmp_path: Path) -> None:
    """On a device without numbers, where the library asks tensors for some; packed micro-batches are its largest."""
    from launch.tools.plan.planner import PlanOptions, make_plan

    plan = make_plan(written(tmp_path, recipe(documents)), (), PlanOptions(ranks=(1,), precisions=("fp32",)))
    assert plan.configurations
    assert plan.model["parameters"] == sum(p.numel() for p in model_of(task_of(recipe())).parameters())
    assert plan.data["largest_micro_batch"]["input_ids"][1] == LENGTH
