"""The export stage publishes complete, checked artifacts or none, once, and resumes after a kill at any point."""

from __future__ import annotations

import json
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from export_helpers import Exported
from gate_helpers import quiet
from safetensors.torch import save_file
from slow import slow_except

from trainer import tensors
from trainer.engine.corpus import Corpus
from trainer.errors import CheckpointError, GateError, UsageError
from trainer.export import conversions, onnx, stage
from trainer.export.artifact_integrity import problems
from trainer.export.backend import open_artifact
from trainer.export.quantize import sensitivity
from trainer.export.stage import export_run
from trainer.files import write_json
from trainer.rundir import RunDir


class Killed(BaseException):
    """What no handler of ours catches."""


@pytest.fixture
def run(encoder: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, near: None) -> RunDir:
    """A finished run, whose export takes no time."""
    shutil.copytree(encoder.run.path, tmp_path / "run", ignore=shutil.ignore_patterns("artifact"))
    monkeypatch.setattr(conversions, "write_artifact", lambda export, model, folder: _copy(encoder.folder, folder))
    return RunDir(tmp_path / "run")


def _copy(source: Path, folder: Path) -> None:
    for path in source.iterdir():
        shutil.copyfile(path, folder / path.name)


def test_both_artifacts_are_published_once(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = export_run(run, progress=quiet)
    assert [folder.name for folder in folders] == ["bf16", "onnx", "int8"]
    assert sorted(path.name for path in run.export.iterdir()) == ["bf16", "int8", "onnx"]
    for folder in folders:
        assert problems(folder) == []
        found = json.loads((folder / "gate.json").read_text(encoding="utf-8"))
        assert found["passed"]
        own = {"config.json", "model.safetensors", "tokenizer_config.json", "rankzero.safetensors", "modules.json"}
        own |= {
            "1_Pooling/config.json",
            "2_Dense/config.json",
            "2_Dense/model.safetensors",
            "sentence_bert_config.json",
        }
        files = own if folder.name == "bf16" else {"model.onnx", "run.py", "serve.py", "Dockerfile", "settings.json"}
        assert set(found["files"]) == files | {"tokenizer.json"}
    assert found["size_ratio"] > 1.2
    before = {path: path.stat().st_mtime_ns for path in run.export.rglob("*")}
    monkeypatch.setattr(stage.TrainedRun, "open", None)  # nothing has changed: the model is not even read
    assert export_run(run, progress=quiet) == folders
    assert before == {path: path.stat().st_mtime_ns for path in run.export.rglob("*")}


@pytest.mark.parametrize("kind", slow_except(["encoder", "translator"], "encoder"))
def test_weights_of_large_graphs_are_separate_files(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of models of more than 2 GB, which one file of protobuf cannot hold."""
    made: Exported = request.getfixturevalue(kind)
    shutil.copytree(made.run.path, tmp_path / "run", ignore=shutil.ignore_patterns("artifact", "export"))
    monkeypatch.setattr(onnx, "LARGE", 0)
    large = RunDir(tmp_path / "run")
    limits = ["export.gates.int8_accuracy=1", "export.gates.int8_bleu=100", "export.bf16=false"]
    folders = export_run(large, limits, progress=quiet)  # proven in a fresh process, too
    assert [folder.name for folder in folders] == ["onnx", "int8"]
    for folder in folders:
        graphs = {path.name for path in made.folder.glob("*.onnx")}
        found = {path.name: path.stat().st_size for path in folder.glob("*.onnx*")}
        assert found.keys() == graphs | {f"{name}.data" for name in graphs}
        assert all(found[f"{name}.data"] > 0 for name in graphs)
        if folder.name == "onnx":
            whole = {name: (made.folder / name).stat().st_size for name in graphs}
            assert all(found[name] < 0.75 * whole[name] for name in graphs), (found, whole)
        assert problems(folder) == []
    assert json.loads((folders[1] / "gate.json").read_text(encoding="utf-8"))["size_ratio"] > 1.2
    lines = ["a", "", "one two three"]
    assert list(open_artifact(large, "onnx")(lines)) == list(made.artifact(lines))
    task = made.finished.task
    matrices = sensitivity(
        made.export, folders[0], [next(iter(Corpus(task.recipe, task).batches("test")))[0].examples[0]], quiet
    )
    assert len(matrices) > 2
    assert problems(folders[0]) == [], "measuring has not touched them"


def test_changed_inputs_are_exported_again(run: RunDir) -> None:
    only = ["export.int8=false", "export.bf16=false"]
    (onnx_folder,) = export_run(run, only, quiet)
    inputs = json.loads((onnx_folder / "gate.json").read_text(encoding="utf-8"))["inputs"]
    with (onnx_folder / "model.onnx").open("ab") as file:
        file.write(b"\0")
    assert "model.onnx" in problems(onnx_folder)[0]
    export_run(run, only, quiet)
    assert problems(onnx_folder) == []
    (onnx_folder / "more.onnx").touch()
    assert problems(onnx_folder) == [f"{onnx_folder / 'more.onnx'} is not part of the artifact that passed the gate"]
    export_run(run, [*only, "export.gates.rows=3"], quiet)
    found = json.loads((onnx_folder / "gate.json").read_text(encoding="utf-8"))
    assert found["checks"]["logits"]["rows"] == 3
    assert found["inputs"] != inputs
    assert found["rows"] > 7
    export_run(run, [*only, "export.gates.split_rows=7"], quiet)
    found = json.loads((onnx_folder / "gate.json").read_text(encoding="utf-8"))
    assert (found["rows"], found["passed"]) == (7, True)
    assert found["checks"]["logits"]["rows"] == 7
    assert problems(onnx_folder) == []


def test_a_limit_is_of_the_artifacts_on_which_it_decides(run: RunDir) -> None:
    export_run(run, progress=quiet)
    before = {path: path.stat().st_mtime_ns for path in run.export.rglob("gate.json")}
    with suppress(GateError):
        export_run(run, ["export.gates.int8_accuracy=0"], quiet)
    after = {path: path.stat().st_mtime_ns for path in run.export.rglob("gate.json")}
    assert {path.parent.name for path in before if before[path] != after[path]} == {"bf16", "int8"}


def test_refused_artifacts_are_not_made_again(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = ["export.gates.logits=1e-9", "export.bf16=false"]
    with pytest.raises(GateError) as first:
        export_run(run, limits, quiet)
    monkeypatch.setattr(stage.TrainedRun, "open", None)
    with pytest.raises(GateError, match=re.escape(str(first.value))):
        export_run(run, limits, quiet)


def test_a_library_error_is_reported_and_retried(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("no such kernel")

    with monkeypatch.context() as patch:
        patch.setattr(conversions, "quantize", broken)
        with pytest.raises(GateError, match=r"(?s)int8 failed its gate.*RuntimeError: no such kernel"):
            export_run(run, progress=quiet)
    assert [path.name for path in export_run(run, progress=quiet)] == ["bf16", "onnx", "int8"]


def test_artifacts_of_other_weights_are_removed(run: RunDir) -> None:
    """int8 is not made where onnx fails; what stood there would be served as the new weights'."""
    export_run(run, progress=quiet)
    write_json(run.export / "benchmark.json", {"inputs": {"files": {"export/int8/gate.json": "0" * 64}}})
    path = run.model / "2_Dense/model.safetensors"
    weights = tensors.read(path)
    save_file({name: -tensor for name, tensor in weights.items()}, path)
    with pytest.raises(GateError, match="onnx failed its gate"):
        export_run(run, progress=quiet)
    assert not (run.export / "int8").exists()
    assert not (run.export / "benchmark.json").exists()
    assert tensors.read(run.export / "bf16/2_Dense/model.safetensors").keys() == weights.keys()
    export_run(run, ["export.onnx=false", "export.int8=false", "export.bf16=false"], quiet)
    save_file(weights, path)
    export_run(run, ["export.onnx=false", "export.int8=false", "export.bf16=false"], quiet)
    assert not list(run.export.glob("*/gate.json"))


def test_a_failed_gate_keeps_the_file_out(run: RunDir, encoder: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    export_run(run, progress=quiet)
    with pytest.raises(
        GateError, match=r"(?s)onnx failed its gate.*logits.*limit 1e-09.*differs most: id 'test.jsonl:"
    ):
        export_run(run, ["export.gates.logits=1e-9"], quiet)
    assert [path.name for path in (run.export / "onnx").iterdir()] == ["gate.json"]
    with pytest.raises(UsageError, match="failed its gate"):
        open_artifact(run, "onnx")
    export_run(run, progress=quiet)
    texts = ["a good film", ""]
    assert list(open_artifact(run, "onnx")(texts)) == list(encoder.artifact(texts))
    assert [record["text"] for record in open_artifact(run, "int8")(texts)] == texts


def test_missing_and_damaged_artifacts_are_refused(run: RunDir) -> None:
    with pytest.raises(UsageError, match="no int8 artifact yet"):
        open_artifact(run, "int8")
    with pytest.raises(UsageError, match="tensorrt is unknown"):
        open_artifact(run, "tensorrt")
    export_run(run, ["export.onnx=false", "export.bf16=false"], quiet)
    assert sorted(path.name for path in run.export.iterdir()) == ["int8"]
    graph, tokenizer = run.export / "int8" / "model.onnx", run.export / "int8" / "tokenizer.json"
    with tokenizer.open("a") as lines:
        lines.write("\n")  # it could be read, and would be another file than the one of the gate
    with pytest.raises(CheckpointError, match=r"int8/tokenizer\.json is missing or not the file that passed the gate"):
        open_artifact(run, "int8")
    graph.write_bytes(b"broken")
    with pytest.raises(CheckpointError, match=r"int8/model\.onnx is .*make it again with `rankzero export "):
        open_artifact(run, "int8")


@pytest.mark.parametrize(
    "point",
    [
        "write_artifact",
        "completed",
        "write_json",
        "Rows.answers",
        "Gate.run",
        "quantize",
        "publish",
        "os.fsync",
        "rename",
    ],
)
@pytest.mark.parametrize("after", [False, True])
def test_a_killed_stage_is_completed(point: str, after: bool, run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before and after each step, at its first, second, … time, until one run gets through."""
    place: Any = conversions if hasattr(conversions, point) else stage
    if point == "rename":
        place, name = Path, "rename"
    elif point == "os.fsync":
        place, name = os, "fsync"
    else:
        for part in point.split(".")[:-1]:
            place = getattr(place, part)
        name = point.rpartition(".")[2]
    original, calls = getattr(place, name), 0

    def killed(*args: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == fatal and not after:
            raise Killed
        found = original(*args, **more)
        if calls == fatal and after:
            raise Killed
        return found

    monkeypatch.setattr(place, name, killed)
    for fatal in (1, 3, 4, 9, 99):  # noqa: B007 - read by `killed`
        calls = 0
        try:
            folders = export_run(run, progress=quiet)
            break
        except Killed:
            visible = run.export.glob("[!.]*")
            assert all(problems(folder) == [] for folder in visible)
    assert [problems(folder) for folder in folders] == [[], [], []]
    assert sorted(path.name for path in run.export.iterdir()) == ["bf16", "int8", "onnx"]


def test_the_log_has_the_last_state_of_each_work_that_it_reports(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Messages come every 3 seconds, of work that takes 36 seconds, and of short work between."""
    clock = iter(range(1000, 2000, 3))
    monkeypatch.setattr(stage.time, "monotonic", lambda: float(next(clock)))
    progress = stage.log_progress()
    with caplog.at_level("INFO", logger="rankzero"):
        for done in range(1, 13):
            progress(f"onnx on test: {done} of 12 rows")
        for text in ("onnx: passed its gate", "int8: converting", "int8: measured 1 of 2", "int8: measured 2 of 2"):
            progress(text)
        progress("int8: passed its gate")
    assert [record.getMessage() for record in caplog.records] == [
        *(f"onnx on test: {done} of 12 rows" for done in (1, 5, 9, 12)),
        "onnx: passed its gate",
        "int8: passed its gate",
    ]
