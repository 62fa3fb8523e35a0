"""`rankzero push`: what arrives at a Hub on loopback, what is refused, and what is never sent."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import export_helpers
import numpy as np
import pytest
from huggingface_hub import ModelCard, _commit_api, constants
from push_helpers import TOKEN, FakeHub, fake_hub
from safetensors.numpy import save_file
from test_analysis import CLASSIFICATION, binary, write_run
from transformers import pipeline
from typer.testing import CliRunner

import launch.cli
from trainer.api import predict
from trainer.errors import DataError, GateError, UsageError
from trainer.export.artifact_integrity import completed
from trainer.export.stage import export_run
from trainer.files import read_json, write_json
from trainer.push.files import uploads
from trainer.report.card import hub_card
from trainer.rundir import RunDir
from trainer.stages import file_facts

REPO = "team/reviews"
SECRET = "never in public: a row of the data"
ONLY_MODEL = ["export.model=true", *(f"export.{name}=false" for name in ("onnx", "int8", "bf16", "safetensors"))]
SCORES = {"accuracy": 0.75, "accuracy_ci95": [0.5, 0.9], "f1": 0.7, "loss": 0.2, "rows": 4}


def gate(folder: Path, inputs: dict[str, Any], **changes: Any) -> None:
    result = {"passed": True, "failed": [], "checks": {}, "worst_rows": [{"text": SECRET}], **changes}
    write_json(folder / "gate.json", completed(result, folder, time.time(), inputs, ()))


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A finished run with model/, ONNX and int8, and much that must stay here."""
    records = [binary(n, "positive", 0.2 + 0.2 * n, f"{SECRET} {n}") for n in range(4)]
    made = write_run(tmp_path / "reviews", records, CLASSIFICATION, SCORES)
    recipe = made.recipe.read_text(encoding="utf-8") + f"data: {{root: {tmp_path}/corpus, cleaning: []}}\n"
    made.recipe.write_text(recipe, encoding="utf-8")
    made.model.mkdir()
    save_file({"weight": np.arange(6, dtype=np.float32)}, made.model / "model.safetensors")
    (made.model / "config.json").write_text('{"model_type": "bert"}')
    (made.model / "tokenizer.json").write_text('{"vocab": {"hf_ABCDEFGHIJKLMNOPQRSTUV": 1, "/usr/bin/x": 2}}')
    weights = {"model.safetensors": file_facts(made.model / "model.safetensors")["sha256"]}
    gate(made.model, {"model": weights})
    for number, name in enumerate(("onnx", "int8")):
        folder = made.export / name
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(bytes([number]) * 1000)
        (folder / "run.py").write_text("print(1)\n")
        gate(folder, {"model": weights})
    checkpoint = made.checkpoints / "step-00000008"
    checkpoint.mkdir(parents=True)
    (checkpoint / "optimizer.safetensors").write_bytes(b"moments")
    (made.path / "ledger.jsonl").write_text(SECRET)
    (made.evaluation("test") / "attention.json").write_text(json.dumps({"rows": [], "note": SECRET}))
    (made.evaluation("test") / "errors.jsonl").write_text(json.dumps({"text": SECRET}) + "\n")
    (made.evaluation("test") / "confusion_matrix.png").write_bytes(b"\x89PNG")
    return made


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with fake_hub() as server:
        yield server


@pytest.fixture
def near(hub: FakeHub, run: RunDir, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    """Point huggingface_hub in this process at the Hub on loopback. It reads the environment when it is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(_commit_api, "is_xet_available", lambda: False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    (run.evaluation("test") / "predictions.jsonl").unlink()  # without a report, which takes most of the time
    return hub


def push(run: RunDir, *words: str) -> tuple[int, str]:
    """Run the command in this process. Return its exit code, and what it prints or raises."""
    result = CliRunner().invoke(launch.cli.app, ["push", str(run.path), REPO, "--no-dry-run", *words])
    return getattr(result.exception, "exit_code", result.exit_code), str(result.exception) + result.output


def push_apart(hub: FakeHub, run: RunDir, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does, in a new process."""
    names = {name: value for name, value in os.environ.items() if not name.startswith("HF_") and name != "CI"}
    own = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", **variables}
    own["HF_HOME"] = str(run.path.parent / "hf")
    command = [sys.executable, "-c", "from launch.cli import main; main()", "push", str(run.path), REPO, *words]
    return subprocess.run(command, env=names | own, capture_output=True, text=True, check=False, timeout=120)


def test_a_run_arrives_byte_for_byte_and_only_what_belongs_there(run: RunDir, hub: FakeHub) -> None:
    result = push_apart(hub, run)
    assert result.returncode == 0, result.stderr
    files = hub.files[REPO]
    figures = {"evaluation/test/metrics.json", "evaluation/test/report.html", "evaluation/test/confusion_matrix.png"}
    artifacts = {f"export/{name}/{file}" for name in ("onnx", "int8") for file in ("model.onnx", "run.py", "gate.json")}
    model = {"config.json", "model.safetensors", "tokenizer.json", "gate.json", "README.md", "recipe.yaml"}
    assert set(files) == figures | artifacts | model | {".gitattributes"}
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        assert files[name] == (run.model / name).read_bytes()
    assert files["export/int8/model.onnx"] == b"\1" * 1000
    everything = b"".join(files.values())
    for hidden in (SECRET, str(run.path.parent), "moments", TOKEN):
        assert hidden.encode() not in everything
    assert hub.private[REPO]
    requests = len(hub.requests)
    assert TOKEN not in result.stdout + result.stderr
    assert json.loads(files["export/onnx/gate.json"])["files"]["model.onnx"]["bytes"] == 1000
    data = ModelCard(files["README.md"].decode()).data
    results = {(r.metric_type, r.metric_value, r.dataset_split, r.task_type) for r in data.eval_results}
    assert {("accuracy", 0.75, "test", "text-classification"), ("f1", 0.7, "test", "text-classification")} <= results
    assert data.library_name == "transformers"
    assert f'from_pretrained("{REPO}")' in files["README.md"].decode() or f'"{REPO}"' in files["README.md"].decode()

    again = CliRunner().invoke(launch.cli.app, ["push", str(run.path), REPO], env={"CI": "true"})  # only lists
    assert (again.exit_code, len(hub.requests)) == (0, requests)
    assert "model.safetensors" in again.stdout
    assert "optimizer" not in again.stdout


def test_an_interrupted_push_sends_only_what_has_not_arrived(run: RunDir, near: FakeHub) -> None:
    near.failing = 2
    code, text = push(run)
    assert (code, len(near.puts), near.commits) == (1, 2, [])
    assert "the same command resumes" in text
    assert TOKEN not in text
    near.failing = None
    assert push(run)[0] == 0
    assert len(near.puts) == len(set(near.puts)) == 4  # weights, two graphs, a figure: each once
    code, text = push(run)
    assert (code, len(near.commits), "unchanged" in text) == (0, 1, True)

    shutil.rmtree(run.export / "int8")  # another push without int8 removes the older one
    (run.model / "config.json").write_text('{"model_type": "bert", "new": 1}')
    gate(run.model, (read_json(run.model / "gate.json") or {})["inputs"])
    near.files[REPO]["notes.md"] = b"of the user"
    assert "removed from team/reviews: export/int8/model.onnx" in push(run)[1]
    assert "export/int8/model.onnx" not in near.files[REPO]
    assert near.files[REPO]["notes.md"] == b"of the user"
    assert len(near.puts) == 4


def test_the_card_installs_what_the_artifacts_of_the_repository_need(run: RunDir) -> None:
    folder = run.export / "openvino"
    folder.mkdir()
    gate(folder, {})
    assert "pip install onnxruntime openvino tokenizers numpy\n" in hub_card(run, REPO)
    for name in ("onnx", "int8"):
        shutil.rmtree(run.export / name)
    assert "pip install openvino tokenizers numpy\n" in hub_card(run, REPO)


def test_a_wrong_token_and_a_public_repository_are_refused(
    run: RunDir, near: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    near.files[REPO], near.private[REPO] = {}, False
    code, text = push(run)
    assert (code, near.commits, "--public" in text) == (2, [], True)
    assert push(run, "--public")[0] == 0
    assert near.commits
    monkeypatch.setenv("HF_TOKEN", "hf_" + "W" * 30)
    code, text = push(run)
    assert (code, "denies access" in text, "hf_W" in text) == (2, True, False)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nonexistent")
    code, text = push(run)
    assert (code, "there is no token" in text) == (2, True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in push(run)[1]


def _plan(run: RunDir, *words: str) -> tuple[int, str]:
    result = CliRunner().invoke(launch.cli.app, ["push", str(run.path), REPO, "--dry-run", *words])
    return getattr(result.exception, "exit_code", result.exit_code), str(result.exception) + result.stdout


def test_failed_gates_and_unfinished_runs_are_refused(run: RunDir) -> None:
    (run.evaluation("test") / "predictions.jsonl").unlink()  # no report
    code, text = _plan(run)
    assert (code, "dry run" in text) == (0, True)
    write_json(run.status, {"state": "running", "exit_code": None})
    assert _plan(run)[0] == 6
    write_json(run.status, {"state": "failed", "exit_code": 1})
    assert _plan(run)[0] == 6
    write_json(run.status, {"state": "failed", "exit_code": 6})  # a gate failed then, and passes now
    assert _plan(run)[0] == 0

    (run.export / "int8/model.onnx").write_bytes(b"other")
    assert "int8/model.onnx is missing or not the file" in _plan(run)[1]
    gate(run.export / "int8", {}, passed=False, failed=["accuracy"])
    code, text = _plan(run)
    assert (code, "failed its gate: accuracy" in text) == (6, True)
    shutil.rmtree(run.export / "int8")
    save_file({"weight": np.ones(6, dtype=np.float32)}, run.model / "model.safetensors")
    weights = {"model.safetensors": file_facts(run.model / "model.safetensors")["sha256"]}
    gate(run.model, {"model": weights})
    assert "onnx was not made from the weights" in _plan(run)[1]
    shutil.rmtree(run.export)
    assert _plan(run)[0] == 0
    (run.model / "gate.json").unlink()
    assert _plan(run)[0] == 6


def test_credentials_paths_and_links_are_refused(run: RunDir, tmp_path: Path) -> None:
    inputs = (read_json(run.model / "gate.json") or {})["inputs"]
    for value in ("hf_ABCDEFGHIJKLMNOPQRSTUV", "/srv/models/bert", f"near {tmp_path}"):
        (run.model / "config.json").write_text(json.dumps({"_name_or_path": value}))
        gate(run.model, inputs)
        with pytest.raises(DataError, match=r"config\.json"):
            uploads(run, REPO)
    (run.model / "config.json").unlink()
    (tmp_path / "outside.json").write_text("{}")
    (run.model / "config.json").symlink_to(tmp_path / "outside.json")
    gate(run.model, inputs)
    with pytest.raises(DataError, match="a link out of"):
        uploads(run, REPO)
    for name in ("reviews", "a/b/c", "a/..", "https://hub/a"):
        with pytest.raises(UsageError, match="REPO"):
            uploads(run, name)
    with pytest.raises(UsageError, match="not a run directory"):
        uploads(RunDir(tmp_path / "none"), REPO)


def test_rows_are_sent_on_request_only(run: RunDir) -> None:
    files = {file.path: file.content for file in uploads(run, REPO, with_rows=True)}
    assert "evaluation/test/predictions.jsonl" in files
    page = files["evaluation/test/report.html"]
    assert isinstance(page, bytes)
    assert SECRET.encode() in page
    write_json(run.status, {"state": "preempted", "exit_code": 75})
    with pytest.raises(GateError):
        uploads(run, REPO)


@pytest.mark.slow
def test_stock_transformers_loads_the_repository(near: FakeHub, bert: Path, reviews: Path, tmp_path: Path) -> None:
    run = export_helpers.encoder_run(tmp_path, reviews, {"kind": "pretrained", "name": str(bert)})
    export_run(run, ONLY_MODEL)
    write_json(run.status, {"state": "finished", "exit_code": 0})
    code, text = push(run)
    assert code == 0, text
    for name, content in near.files[REPO].items():
        path = tmp_path / "downloaded" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    texts = ["a good film", "some bad and dull scenes"]
    loaded = pipeline("text-classification", model=str(tmp_path / "downloaded"))
    ours = list(predict(run.path, texts))
    for theirs, own in zip(loaded(texts), ours, strict=True):
        assert theirs["label"] == own["label"]
        assert theirs["score"] == pytest.approx(own["confidence"], abs=1e-5)
