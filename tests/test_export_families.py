"""Models without an ONNX graph: the reason is reported, weights are published instead, and the exit code is 0."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import processes
import pytest
import review_helpers
import torch
from export_helpers import decided, finished_run
from gate_helpers import quiet
from review_helpers import BAD, GOOD, OTHER
from slow import slow_except
from test_encoders import recipe_of
from transformers import AutoModelForSequenceClassification

from trainer import tensors
from trainer.api import check_export
from trainer.data.tokenization import train_tokenizer
from trainer.engine.trained_run import TrainedRun
from trainer.errors import GateError
from trainer.export import stage
from trainer.export.backend import open_artifact
from trainer.export.gates import Gate
from trainer.export.onnx import write_artifact
from trainer.export.rows import Rows
from trainer.export.stage import export_run
from trainer.export.weights import WEIGHTS
from trainer.files import read_json, write_json
from trainer.models.families import Family
from trainer.models.folder import HEAD
from trainer.recipe_loading import Recipe
from trainer.report.card import write_card
from trainer.rundir import RunDir

NEVER = ("longformer", "reformer", "big_bird")
EXPORT = {"onnx": True, "int8": True, "bf16": True}


def family_run(root: Path, reviews: Path, family: str, pooling: str = "", **sections: Any) -> RunDir:
    made = recipe_of(reviews, family, export=EXPORT, **sections)
    made = Recipe.parse(made.model_dump(mode="json"), [f"model.pooling={pooling or 'auto'}"])
    tokenizer = train_tokenizer([" ".join(GOOD + BAD + OTHER)] * 2, made.tokenizer.train, 32)
    return finished_run(root / "run", made, tokenizer, _decided)


def _decided(task: Any, model: Any) -> None:
    """Logits far enough apart for a class to be one."""
    if task.kind == "classification":
        next(p for name, p in reversed(list(model.named_parameters())) if p.ndim == 2).data.mul_(40)


@pytest.mark.parametrize("family", slow_except(NEVER, "reformer"))
def test_weights_are_published_where_there_is_no_graph(
    family: str, reviews: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = family_run(tmp_path, reviews, family)
    with caplog.at_level(logging.INFO, "rankzero"):
        folders = export_run(run, progress=quiet)
    assert [folder.name for folder in folders] == ["bf16", "safetensors"]
    assert check_export(run.path) == []
    [told] = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert told.startswith(f"onnx and int8 left out: {family}: torch's exporter")
    run_gate = json.loads((run.export / "safetensors" / "gate.json").read_text())
    assert run_gate["checks"]["weights"]["differ"] == []
    assert run_gate["checks"]["logits"]["largest_difference"] <= 1e-6
    assert run_gate["checks"]["logits"]["rows"] == 40

    lines = ["a good film", "the plot was bad and dull"]
    wanted = list(TrainedRun.open(run, Recipe).predict(lines))
    assert list(open_artifact(run, "safetensors")(lines)) == wanted
    model: Any = AutoModelForSequenceClassification.from_pretrained(run.export / "safetensors")
    trained = tensors.read(run.model / WEIGHTS)
    state = model.state_dict()
    assert all(torch.equal(state[name], torch.as_tensor(values)) for name, values in trained.items() if name in state)
    assert len(trained.keys() & state.keys()) > 10


@pytest.mark.parametrize("family", slow_except(NEVER, "reformer"))
def test_the_reasons_are_true(family: str, reviews: Path, tmp_path: Path) -> None:
    """One that can be exported after all no longer belongs into the table."""
    run = family_run(tmp_path, reviews, family)
    finished = TrainedRun.open(run, Recipe)
    export = finished.task.exporter()(finished.task)
    assert stage.why_not(finished.task, run)
    folder = tmp_path / "artifact"
    folder.mkdir()
    if family != "big_bird":
        with pytest.raises(GateError, match="cannot be exported to ONNX"):
            write_artifact(export, finished.model, folder)
        return
    write_artifact(export, finished.model, folder)
    rows = Rows(finished.task, finished.model)
    run_gate = Gate("onnx", folder, rows, rows.all(rows.answers(quiet)), quiet).run()
    assert run_gate["failed"] == ["logits"]
    why = run_gate["checks"]["logits"]["error"]
    assert "onnxruntime" in why.lower(), "a shape of the length that was traced"
    assert "dimension" in why or "Reshape" in why


def test_big_bird_with_full_attention_has_a_graph(reviews: Path, tmp_path: Path) -> None:
    run = family_run(tmp_path, reviews, "big_bird", data={"max_length": 32})
    task = TrainedRun.task_of(run, Recipe)
    config = json.loads((run.model / "config.json").read_text())
    assert "original_full" in (stage.why_not(task, run) or "")
    (run.model / "config.json").write_text(json.dumps(config | {"attention_type": "original_full"}))
    assert stage.why_not(task, run) is None


def test_an_unknown_failure_of_the_export_is_an_error(
    reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "family_of", lambda config: Family())
    run = family_run(tmp_path, reviews, "longformer")
    with pytest.raises(GateError, match=r"(?s)onnx failed its gate.*LongformerFor\w+ cannot be exported"):
        export_run(run, ["export.bf16=false"], quiet)
    assert [path.name for path in (run.export / "onnx").iterdir()] == ["gate.json"]
    assert not (run.export / "left_out.json").exists()
    monkeypatch.undo()
    assert [folder.name for folder in export_run(run, ["export.bf16=false"], quiet)] == ["safetensors"]
    assert not (run.export / "onnx").exists(), "known by now: what failed is no longer told"


def test_other_weights_are_caught(encoder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model that has graphs, where it is asked for; one number is off."""
    kind = type(encoder.finished.task)
    write = kind.save_model

    def wrong(task: Any, model: Any, folder: Path, dtype: Any) -> None:
        write(task, model, folder, dtype)
        path = folder / HEAD / WEIGHTS
        found = {name: tensor.clone() for name, tensor in tensors.read(path).items()}
        found["head.weight"][0, 0] += 1e-6
        path.unlink()
        tensors.write(path, found)

    made = review_helpers.recipe(
        Path(encoder.finished.recipe.data.root), encoder.finished.recipe.model.model_dump(),
        export={"onnx": False, "int8": False, "safetensors": True},
        tokenizer={"train": {"kind": "wordpiece", "vocab_size": 90}},
    )  # fmt: skip
    run = finished_run(tmp_path / "run", made, encoder.finished.task.tokenizer, decided)
    assert [folder.name for folder in export_run(run, progress=quiet)] == ["safetensors"]
    monkeypatch.setattr(kind, "save_model", wrong)
    with pytest.raises(GateError, match=r"safetensors failed its gate(?s:.*)weights: differ \['head.weight'\]"):
        export_run(run, ["export.gates.rows=7"], quiet)


@pytest.mark.parametrize("kind", slow_except(["encoder", "pretrained"], "encoder"))
def test_a_masked_language_model_ships_its_weights(kind: str, reviews: Path, bert: Path, tmp_path: Path) -> None:
    model: dict[str, Any] = {"kind": "pretrained", "name": str(bert)}
    if kind == "encoder":
        model = {"kind": "encoder", "d_model": 32, "layers": 1, "heads": 2, "feed_forward": 64}
    values = review_helpers.recipe(reviews, model).model_dump(mode="json")
    values |= {"task": {"kind": "language_modeling"}, "export": EXPORT}
    values["tokenizer"] = {"train": {"kind": "wordpiece", "vocab_size": 90}} if kind == "encoder" else {}
    made = Recipe.parse(values)
    tokenizer = review_helpers.task_of(review_helpers.recipe(reviews)).tokenizer
    run = finished_run(tmp_path / "run", made, tokenizer, lambda task, model: None)
    assert [folder.name for folder in export_run(run, progress=quiet)] == ["bf16", "safetensors"]
    check = json.loads((run.export / "bf16" / "gate.json").read_text())["checks"]["perplexity"]
    assert 0 < abs(check["change"]) < 0.02
    assert np.isclose(check["artifact"] / check["reference"] - 1, check["change"])
    assert "masked language model" in read_json(run.export / "left_out.json")["onnx"]


@pytest.mark.ranks
def test_training_a_family_without_a_graph_exits_with_0_and_reports_it(reviews: Path, tmp_path: Path) -> None:
    made = recipe_of(reviews, "longformer", export={**EXPORT, "bench": 0}, loop={"max_steps": 2})
    run = tmp_path / "run"
    ended = processes.train(review_helpers.written(tmp_path, made), run).check()
    assert "onnx and int8 left out: longformer: torch's exporter cannot" in ended.err[0]
    assert processes.status(run)["exit_code"] == 0
    card = (run / "README.md").read_text(encoding="utf-8")
    assert "No onnx and no int8: longformer: torch's exporter cannot" in card
    assert "| safetensors |" in card
    assert "may also be `export/bf16` or `export/safetensors`" in card
    assert "longformer: torch&#39;s exporter cannot" in (run / "evaluation/test/report.html").read_text(
        encoding="utf-8"
    )
    before = (run / "export/safetensors/gate.json").stat().st_mtime_ns
    processes.train(review_helpers.written(tmp_path, made), run).check()
    assert before == (run / "export/safetensors/gate.json").stat().st_mtime_ns
    config = read_json(run / "model/config.json")  # with a pooling of ours transformers cannot open it
    write_json(run / "model/config.json", {"model_type": "rankzero-pretrained", "trunk": config})
    assert "With transformers" not in write_card(RunDir(run)).read_text(encoding="utf-8")
