"""Stages after the training: rank zero makes all outputs, and the same command completes them."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import hooks
import pytest
import review_helpers
import yaml
from export_helpers import EXPORT
from processes import next_logs, run_ranks, status, train

from trainer.api import check_export
from trainer.report.card import write_card
from trainer.report.formats import cell
from trainer.rundir import RunDir

pytestmark = pytest.mark.ranks


@pytest.fixture
def recipe(reviews: Path, tmp_path: Path) -> Path:
    model = {"kind": "encoder", "d_model": 32, "layers": 1, "heads": 2, "feed_forward": 64}
    made = review_helpers.recipe(reviews, model, export={**EXPORT, "bench": 0}, loop={"max_steps": 40},
                               tokenizer={"train": {"kind": "wordpiece", "vocab_size": 90}})  # fmt: skip
    return review_helpers.written(tmp_path, made)


def front_matter(run: Path) -> dict[str, Any]:
    return dict(yaml.safe_load((run / "README.md").read_text(encoding="utf-8").split("---\n")[1]))


@pytest.mark.slow
def test_a_training_ends_with_proven_artifacts_report_and_card(recipe: Path, tmp_path: Path) -> None:
    """Though the export takes longer than a collective may wait, and than a rank may hang."""
    run, words = tmp_path / "run", ("launch.hang_seconds=4",)
    slow = functools.partial(hooks.slow_export, seconds=12, timeout=8)
    train(recipe, run, *words, world=2, hook=slow).check()
    assert (status(run)["state"], status(run)["exit_code"]) == ("finished", 0)
    assert check_export(run) == []
    for name in ("bf16", "onnx", "int8"):
        assert json.loads((run / "export" / name / "gate.json").read_text())["passed"]
    assert (run / "evaluation" / "test" / "report.html").exists()
    scores = review_helpers.metrics(run)
    told = front_matter(run)["model-index"][0]["results"][0]
    assert {"type": "accuracy", "value": round(scores["accuracy"], 6), "name": "Accuracy"} in told["metrics"]
    card = (run / "README.md").read_text(encoding="utf-8")
    for line in ("| onnx |", "| int8 |", "| bf16 |", "ddp on 2 ranks", "python export/int8/run.py", "logits within"):
        assert line in card

    before = {path: path.stat().st_mtime_ns for path in (run / "export").rglob("*")}
    train(recipe, run, *words).check()  # nothing to do
    assert before == {path: path.stat().st_mtime_ns for path in (run / "export").rglob("*")}

    older = min((run / "checkpoints").glob("step-*/model.safetensors"))
    damaged = [run / "export" / "onnx" / "model.onnx", older]
    for path in damaged:
        path.write_bytes(path.read_bytes() + b"0")
    assert [problem.partition(" ")[0] for problem in check_export(run)] == list(map(str, damaged))
    train(recipe, run, *words).check()  # makes the artifact again
    older.write_bytes(older.read_bytes()[:-1])
    assert check_export(run) == []
    changed = [run / "export/int8/gate.json", run / "model/config.json", run / "tokenizer/tokenizer.json"]
    kept = {path: path.read_bytes() for path in changed}
    for path in changed:
        path.write_bytes(kept[path] + b" ")
    shutil.move(run / "export/bf16", tmp_path / "bf16")
    told = [
        f"{path} is missing or not the file that the model card describes"
        for path in [run / "export/bf16/gate.json", *changed]
    ]
    assert sorted(check_export(run)) == sorted(told)
    shutil.move(tmp_path / "bf16", run / "export/bf16")
    for path in changed:
        path.write_bytes(kept[path])

    texts = ["a good film", "dull"]
    answers = [
        [
            json.loads(line)
            for line in run_ranks(["predict", run, *texts, *backend], next_logs(run)).check().out[0].splitlines()
        ]
        for backend in ((), ("--backend", "bf16"), ("--backend", "onnx"))
    ]
    for found in answers[1:]:
        assert [record["text"] for record in found] == texts
        for one, other in zip(found, answers[0], strict=True):
            assert one["label"] == other["label"]
            assert one["confidence"] == pytest.approx(other["confidence"], abs=0.02)


def test_a_failed_gate_ends_with_6_and_the_rest_is_there(recipe: Path, tmp_path: Path) -> None:
    run, words = tmp_path / "run", ("export.gates.logits=1e-12", "export.int8=false")
    for _ in range(2):  # the second start finds everything done, the verdict, too
        ended = train(recipe, run, *words)
        assert ended.codes == [6], ended.text
        assert "onnx failed its gate" in ended.err[0]
    assert (status(run)["state"], status(run)["exit_code"]) == ("failed", 6)
    assert "limit 1e-12" in status(run)["error"]
    assert [path.name for path in (run / "export" / "onnx").iterdir()] == ["gate.json"]
    assert (run / "export" / "bf16" / "model.safetensors").exists(), "one that passed is not kept out by another"
    assert (run / "evaluation" / "test" / "report.html").exists()
    assert "**failed** (logits), not published" in (run / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_stopped_during_export_it_resumes_later(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ended = train(recipe, run, hook=hooks.stop_in_export)
    assert ended.codes == [75], ended.text
    assert status(run)["state"] == "preempted"
    assert not (run / "export" / "onnx").exists()
    train(recipe, run).check()
    assert check_export(run) == []
    assert status(run)["state"] == "finished"


def test_names_are_escaped_in_the_model_card(encoder: Any, tmp_path: Path) -> None:
    """Whatever a recipe holds, the front matter is YAML and a cell is a cell."""
    import shutil

    run = RunDir(shutil.copytree(encoder.run.path, tmp_path / "run"))
    recipe = yaml.safe_load(run.recipe.read_text(encoding="utf-8"))
    recipe["name"] = recipe["data"]["root"] = "a | b\n---\n<script>alert(1)</script> `x` # [y](z)"
    run.recipe.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    card = write_card(run).read_text(encoding="utf-8")
    assert "<script" not in card.partition("<details>")[0].replace("\\<script", "")
    assert yaml.safe_load(card.split("---\n")[1])["library_name"] == "rankzero"
    assert "None were exported" in card
    assert "`data.root` is relative" in card
    assert cell("a|b\nc") == "a\\|b c"
