"""Reports: attention and relevance, the report stage, and the commands that render reports again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import hooks
import processes
import pytest
import torch
from processes import next_logs, run_ranks
from review_helpers import metrics, task_of, train, written
from review_helpers import recipe as review_recipe

from trainer.models.explain import gradient_x_input, recording
from trainer.report_stages import chosen


def attention(run: Path) -> list[dict[str, Any]]:
    rows = json.loads((run / "evaluation/test/attention.json").read_text(encoding="utf-8"))["rows"]
    assert rows
    return list(rows)


def check_row(row: dict[str, Any]) -> None:
    weights = torch.tensor(row["weights"])
    assert weights.shape == (row["layers"], row["heads"], len(row["tokens"]), len(row["keys"]))
    assert len(row["relevance"]) == len(row["keys"])
    assert float(weights.min()) >= 0
    assert 0.1 < float(weights.sum(-1).max()) <= 1.001, "what went to special tokens and padding is missing"


@pytest.mark.parametrize("kind", ["encoder", "pretrained"])
def test_attention_is_recorded_only_inside_recording(bert: Path, tmp_path: Path, kind: str) -> None:
    made = review_recipe(tmp_path, {"kind": "pretrained", "name": str(bert)} if kind == "pretrained" else None)
    task = task_of(made)
    model = task.build_model().eval()
    batch = task.collate(task.encode([{"text": "a good film"}]))
    task.logits(model, batch)
    with recording() as seen, torch.no_grad():
        task.logits(model, batch)
    task.logits(model, batch)
    assert len(seen) == 2, "one for each layer"
    for _, weights in seen:
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))


def test_gradient_x_input_of_a_linear_model() -> None:
    """Where the score is linear in the embeddings, it is what each token adds to it."""
    embedding, head = torch.nn.Embedding(5, 3), torch.nn.Linear(3, 1, bias=False)
    ids = torch.tensor([[1, 4, 2]])
    found = gradient_x_input(embedding, lambda: head(embedding(ids)).sum())
    torch.testing.assert_close(found, head(embedding(ids))[..., 0])
    assert not embedding._forward_hooks


def test_rows_worth_a_look() -> None:
    records = [
        {"id": str(i), "input": "w " * n, "prediction": "a", "target": "a" if i % 3 else "b", "loss": float(i)}
        for i, n in enumerate([5, 90, 8, 9, 2, 12, 30])
    ]
    assert [r["id"] for r in chosen(records)] == ["6", "3", "2", "5"], "the worst mistakes first; none too long"
    assert len(chosen(records[:2])) == 2


@pytest.mark.ranks
def test_a_classifier_is_reported_and_ensembled(reviews: Path, bert: Path, tmp_path: Path) -> None:
    model = {"kind": "pretrained", "name": str(bert), "pooling": "mean"}
    one = train(tmp_path, review_recipe(reviews, model), "one", ranks=2)
    for row in attention(one):
        check_row(row)
        assert row["tokens"] == row["keys"]
        assert torch.tensor(row["cls"]).shape == (row["layers"], row["heads"], len(row["tokens"]))
    folder = one / "evaluation/test"
    report = folder / "report.html"
    assert "<title>" in report.read_text(encoding="utf-8")
    for name in ("confusion_matrix.png", "confusion_matrix.json", "classification_report.txt", "errors.jsonl"):
        assert (folder / name).stat().st_size >= 0, name
    before = report.stat().st_mtime_ns
    processes.train(tmp_path / "recipe.yaml", one).check()
    assert report.stat().st_mtime_ns == before, "a finished stage is not done again"
    report.unlink()
    shown = run_ranks(["report", one], next_logs(one)).check()
    assert str(report) in shown.out[0]
    assert report.exists()

    two = train(tmp_path, review_recipe(reviews, model).model_copy(update={"seed": 2}), "two")
    averaged = tmp_path / "averaged.jsonl"
    ended = run_ranks(["ensemble", one, two, "--out", averaged], next_logs(one)).check()
    summary = json.loads(ended.out[0])
    assert [member["accuracy"] for member in summary["members"]] == [metrics(run)["accuracy"] for run in (one, two)]
    assert len(averaged.read_text(encoding="utf-8").splitlines()) == summary["rows"] == 40
    assert "loss" in summary["ensemble"]

    page = tmp_path / "index.html"
    run_ranks(["report", one, two, "--index", page], next_logs(one)).check()
    text = page.read_text(encoding="utf-8")
    assert "one/evaluation/test/report.html" in text
    assert "two/evaluation/test/report.html" in text


@pytest.mark.ranks
@pytest.mark.slow
def test_a_picture_and_a_card_that_fail_do_not_fail_the_run(reviews: Path, tmp_path: Path) -> None:
    model = {"kind": "encoder", "d_model": 16, "layers": 1, "heads": 2, "feed_forward": 32}
    words = {"train": {"kind": "wordpiece", "vocab_size": 90}}
    recipe = written(tmp_path, review_recipe(reviews, model, tokenizer=words))
    run, hook = tmp_path / "run", hooks.no_memory_for_pictures_and_card
    ended = processes.train(recipe, run, "loop.max_steps=3", hook=hook).check()
    for what in ("the report of test", "the model card"):
        assert ended.text.count(f"{what} could not be written: MemoryError: Unable to allocate 23 GiB.") == 1
    assert (processes.status(run)["state"], processes.status(run)["exit_code"]) == ("finished", 0)
    assert (run / "evaluation/test/report.html").exists(), "the page needs no picture of the matrix"
    failed = run_ranks(["report", run], next_logs(run), hook=hook)
    assert failed.codes == [1]
    assert f"{run}: the report of test is not complete: MemoryError: Unable to allocate 23 GiB" in failed.text
    assert "Traceback" not in failed.text
    run_ranks(["report", run], next_logs(run)).check()
    assert (run / "evaluation/test/confusion_matrix.png").exists()
    assert (run / "README.md").exists()


@pytest.mark.ranks
def test_a_translation_is_reported(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    processes.train(recipe, run, "loop.max_steps=3").check()
    for row in attention(run):
        check_row(row)
    assert (run / "evaluation/test/report.html").exists()
