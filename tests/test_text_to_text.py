"""Text to text with T5, BART and Marian: the library's loss, special tokens, beam search, ROUGE, and whole runs."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import hooks
import numpy as np
import processes
import pytest
import torch
from conftest import write_corpus
from review_world import metrics, train, written
from safetensors.numpy import load_file

from trainer import predict
from trainer.data.tokenization import train_tokenizer
from trainer.errors import UsageError
from trainer.evaluation.rouge import score_rouge
from trainer.loading import Recipe
from trainer.tasks.base import make_task

ARCHITECTURES = ("t5", "bart", "marian")
TEXTS = ["ein hund läuft", "zwei männer sitzen auf einer bank", "a dog runs", "two men are sitting on a bench", "ja"]


def recipe(root: Path | str = "x", architecture: str = "t5", **sections: Any) -> Any:
    values: dict[str, Any] = {
        "name": "pairs",
        "task": {"kind": "text_to_text"},
        "data": {"root": str(root), "train": "train.jsonl", "validation": "validation.jsonl",
                 "test": "test.jsonl", "columns": {"src": "de", "trg": "en"}, "lanes": 4,
                 "tokens_per_batch": 128, "max_length": 24, "pad_multiple": 4},
        "tokenizer": {"train": {"kind": "unigram", "vocab_size": 120}},
        "model": {"kind": "pretrained", "architecture": architecture, "size": "tiny"},
        "optim": {"name": "sgd", "lr": 0.1, "schedule": "constant"},
        "loop": {"max_steps": 8, "eval_every": 4, "save_every": 4, "log_every": 1},
        "evaluation": {"bootstrap": 20, "splits": ["test"], "max_rows": 12, "beam_size": 2},
    }  # fmt: skip
    for name, changes in sections.items():
        values[name] = {**values[name], **changes}
    return Recipe.parse(values)


def task_of(made: Any) -> Any:
    return make_task(made, train_tokenizer(TEXTS, made.tokenizer_training, 24))


def model_of(task: Any) -> Any:
    torch.manual_seed(0)
    return task.build_model().eval()


ROWS = [
    {"src": "ein hund läuft", "trg": "a dog runs"},
    {"src": "zwei männer sitzen auf einer bank", "trg": "two men are sitting on a bench"},
]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_loss_is_that_of_the_library(architecture: str) -> None:
    """labels=… of the library gives the mean over tokens; padding beside a longer row changes nothing."""
    task = task_of(recipe(architecture=architecture))
    model = model_of(task)
    examples = task.encode(ROWS)
    batch = task.collate(examples)
    with torch.no_grad():
        theirs = model(**batch)
        ours = task.loss(model, batch).item()
        alone = [task.loss(model, task.collate([e])).item() for e in examples]
    assert ours == pytest.approx(float(theirs.loss) * task.targets(batch), rel=1e-5)
    assert ours == pytest.approx(sum(alone), rel=1e-5)
    found = task.assess(model, batch, predict=True)
    assert found.losses.tolist() == pytest.approx(alone, rel=1e-5)
    assert [set(record) for record in found.records] == [{"prediction", "score"}] * 2


def test_every_row_has_one_end_and_keeps_it() -> None:
    task = task_of(recipe(task={"prefix": "translate: "}))
    long = {"src": " ".join(["bank"] * 60), "trg": " ".join(["bench"] * 60)}
    for example in task.encode([*ROWS, long]):
        for ids in example.values():
            assert len(ids) <= 24
            assert ids.count(task.end_id) == 1
            assert ids[-1] == task.end_id
    [with_prefix], [without] = (task_of(recipe(task={"prefix": p})).encode(ROWS[:1]) for p in ("translate: ", ""))
    assert len(with_prefix["input_ids"]) > len(without["input_ids"])
    assert with_prefix["labels"] == without["labels"]
    assert task.encode([{"src": "ja"}])[0]["labels"] == [], "predict has no target"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_search_is_the_likeliest_token_again_and_again(architecture: str) -> None:
    task = task_of(recipe(architecture=architecture, evaluation={"beam_size": 1, "length_penalty": 0.0}))
    model = model_of(task)
    batch = task.collate(task.encode(ROWS[1:]))
    limit = min(int(batch["attention_mask"].sum() * 1.5) + 10, 24)
    ids, score = [int(model.config.decoder_start_token_id)], 0.0
    with torch.no_grad():
        for number in range(limit):
            inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
            log_p = model(**inputs, decoder_input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
            if architecture != "t5":  # neither may write padding; these two must end where the limit is
                log_p[task.pad_id] = -torch.inf if architecture == "marian" else log_p[task.pad_id]
            if number == limit - 1 and getattr(model.config, "forced_eos_token_id", None) is not None:
                break
            best = int(log_p.argmax())
            score += float(log_p[best])
            if best == task.end_id:
                break
            ids.append(best)
    [record] = task.predict(model, batch)
    assert record["prediction"] == task.tokenizer.decode(ids[1:], skip_special_tokens=True)
    assert record["score"] <= 0


def test_rouge_by_hand() -> None:
    """ "the cat sat on the mat" for "the cat lay on a mat": 4 of 6 words, 1 of 5 pairs, 4 words in common order."""
    record = {"id": "a:0", "target": "the cat lay on a mat", "prediction": "the cat sat on the mat"}
    scores = score_rouge([record, {**record, "id": "a:1", "prediction": ""}], 10)
    assert scores["rouge1"] == pytest.approx((4 / 6) / 2)
    assert scores["rouge2"] == pytest.approx((1 / 5) / 2)
    assert scores["rougeL"] == pytest.approx((4 / 6) / 2)
    low, high = scores["rouge1_ci95"]
    assert 0 <= low <= scores["rouge1"] <= high <= 4 / 6 + 1e-9


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def run(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("t5"), recipe(pairs), "run", ranks=2)


@pytest.mark.ranks
def test_killed_and_resumed_bitwise(run: Path, pairs: Path, tmp_path: Path) -> None:
    path, again = written(tmp_path, recipe(pairs)), tmp_path / "run"
    killed = processes.train(path, again, world=2, hook=partial(hooks.at_micro_batch, 6, 1))
    assert any(killed.codes)
    processes.train(path, again, world=2).check()
    for file in ("model/model.safetensors", "evaluation/test/predictions.jsonl"):
        assert (again / file).read_bytes() == (run / file).read_bytes(), file


@pytest.mark.ranks
@pytest.mark.parametrize("architecture", ["t5", "bart"])
def test_one_and_two_ranks_take_the_same_steps(pairs: Path, tmp_path: Path, architecture: str) -> None:
    made = recipe(pairs, architecture)
    one, two = train(tmp_path, made, "one"), train(tmp_path, made, "two", ranks=2)
    a, b = (load_file(r / "checkpoints/step-00000008/model.safetensors") for r in (one, two))
    assert max(float(np.abs(a[name] - b[name]).max()) for name in a) <= 1e-6
    scores = metrics(one)
    for name, value in metrics(two).items():
        assert scores[name] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-5)), name
    assert {"bleu", "chrf", "perplexity", "rouge1", "rouge2", "rougeL", "rougeL_ci95", "signature"} <= scores.keys()
    assert scores["rows"] == 12


@pytest.mark.ranks
def test_the_run_answers_and_reports(run: Path) -> None:
    records = list(predict(run, ["ein hund", ""]))
    assert [set(record) for record in records] == [{"text", "prediction", "score"}] * 2
    page = (run / "evaluation/test/report.html").read_text(encoding="utf-8")
    assert "ROUGE-L" in page
    assert "Translations worth reading" in page
    assert json.loads((run / "status.json").read_text(encoding="utf-8"))["state"] == "finished"


def test_a_model_that_cannot_is_refused() -> None:
    with pytest.raises(UsageError, match=r"model.architecture='gpt2' cannot be loaded"):
        task_of(recipe(architecture="gpt2")).build_model()
