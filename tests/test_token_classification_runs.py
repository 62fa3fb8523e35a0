"""Complete runs of token classification: ranks, answers, artifacts, stock transformers and reports."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import processes
import pytest
import torch
from entity_helpers import recipe, sentence, write_sentences
from processes import read_lines
from review_helpers import metrics, train, written
from safetensors.numpy import load_file
from slow import slow_except

from trainer.api import predict, prepare
from trainer.data.tokenization import train_tokenizer
from trainer.engine.trained_run import TrainedRun
from trainer.export.subprocess_check import in_fresh_process
from trainer.recipe_loading import Recipe
from trainer.report.report import write_report
from trainer.rundir import RunDir
from trainer.task.registry import make_task
from trainer.tasks.token_classification.decoding import joined
from trainer.tasks.token_classification.schemes import entities_of


@pytest.fixture(scope="module")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sentences(tmp_path_factory.mktemp("sentences"))


@pytest.mark.ranks
@pytest.mark.parametrize("engine", slow_except(["ddp", "zero2", "fsdp2"], "ddp"))
def test_one_and_two_ranks_take_the_same_steps(sentences: Path, tmp_path: Path, engine: str) -> None:
    """Weights after 8 SGD steps, with dropout, and the same predictions; some rows fill several windows."""
    made = recipe(sentences, optim={"name": "sgd", "lr": 0.05})
    one, two = train(tmp_path, made, "one"), tmp_path / "two"
    processes.train(written(tmp_path, made), two, world=2, engine=engine).check()
    a, b = (load_file(run / "checkpoints/step-00000008/model.safetensors") for run in (one, two))
    assert max(float(np.abs(a[name] - b[name]).max()) for name in a) <= 1e-6
    ours, theirs = (read_lines(run / "evaluation/test/predictions.jsonl") for run in (one, two))
    assert [row["prediction"] for row in ours] == [row["prediction"] for row in theirs]
    assert metrics(one)["rows"] == 40


@pytest.mark.parametrize(
    "architecture", slow_except(["roberta", "xlnet", "gpt2", "deberta-v2", "modernbert", "t5", "longformer"], "xlnet")
)
def test_answers_do_not_depend_on_the_batch(architecture: str) -> None:
    """With padding on either side, and rows of several windows."""
    model = {"kind": "pretrained", "architecture": architecture, "size": "tiny"}
    values = recipe(Path("x"), model=model).model_dump(mode="json") | {"tokenizer": {}}
    made, draw = Recipe.parse(values), random.Random(1)
    rows = [sentence(draw, longest) for longest in (1, 30, 3, 8)]
    texts, training = [" ".join(row["tokens"]) for row in rows], made.tokenizer_training
    assert training is not None
    task: Any = make_task(made, train_tokenizer(texts, training.model_copy(update={"vocab_size": 300}), 32))
    built = task.build_model().eval()
    examples = task.encode([{"tokens": row["tokens"], "tags": row["ner_tags"]} for row in rows])
    with torch.no_grad():
        found = task.assess(built, task.collate(examples), predict=True)
        alone = [task.assess(built, task.collate([example]), predict=True) for example in examples]
    assert [r["prediction"] for r in found.records] == [one.records[0]["prediction"] for one in alone]
    torch.testing.assert_close(found.losses, torch.cat([one.losses for one in alone]), atol=1e-4, rtol=1e-5)
    assert found.counts.tolist() == [len(row["tokens"]) for row in rows]


@pytest.fixture(scope="module")
def finished(sentences: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a BERT class of the library, with artifacts and reports."""
    folder = tmp_path_factory.mktemp("finished")
    made = recipe(
        sentences,
        model={"kind": "pretrained", "architecture": "bert", "size": "tiny", "dropout": 0.0},
        loop={"max_steps": 60, "eval_every": 30, "save_every": 30},
        export={"onnx": True, "int8": True, "bf16": False, "gates": {"int8_accuracy": 0.5}},
        evaluation={"splits": ["validation", "test"]},
    )
    return train(folder, made, "run")


LINES = [
    "Karen left London, and met Ada Lovelace in New York.",
    '["Alan", "met", "Grace", "Hopper", "in", "Rio", "de", "Janeiro"]',
    "the old train left for and met Edith Clarke in Paris " * 12,
    "",
    "[1, 2]",
    "  <b>Ünïcödé</b> 日本 😀 ",
]


@pytest.mark.ranks
def test_a_run_finds_the_names(finished: Path) -> None:
    scores = metrics(finished)
    assert scores["f1"] > 0.8, scores
    assert scores["entities_by_type"].keys() == {"PER", "LOC"}
    records = read_lines(finished / "evaluation/test/predictions.jsonl")
    assert sum(scores["errors_by_kind"].values()) >= sum(row["target"] != row["prediction"] for row in records)
    for row in records:
        assert row["text"] == row["input"]
        assert all(row["text"][e["start"] : e["end"]] == e["text"] for e in row["entities"] + row["target"])
        assert len(row["tags"]) == len(row["text"].split(" "))
    chosen = json.loads((finished / "manifest.json").read_text())["stages"]["model"]
    assert chosen["metric"] == "f1"
    card = (finished / "README.md").read_text(encoding="utf-8")
    assert "pipeline_tag: token-classification" in card
    assert "tokens are read in windows that overlap" in card
    found = list(predict(finished, LINES))
    tokens: Any = json.loads(LINES[1])
    assert list(predict(finished, [tokens])) == found[1:2], "from Python, a list of tokens"
    assert [record["text"] for record in found[:1] + found[2:]] == LINES[:1] + LINES[2:]
    assert found[1]["text"] == "Alan met Grace Hopper in Rio de Janeiro"
    assert len(found[1]["tags"]) == 8 and "tags" not in found[0]
    assert all(r["text"][e["start"] : e["end"]] == e["text"] for r in found for e in r["entities"])
    long = [entity["start"] for entity in found[2]["entities"] if entity["label"] == "LOC"]
    assert len(long) >= 8 and len(set(long)) == len(long)
    assert not any("truncated" in record for record in found)


@pytest.mark.ranks
def test_artifacts_answer_as_predict_does(finished: Path) -> None:
    ours = list(predict(finished, LINES))
    theirs, _ = in_fresh_process(finished / "export/onnx", LINES)
    assert [_bare(record) for record in theirs] == [_bare(record) for record in ours]
    scores = [[[e["score"] for e in record["entities"]] for record in records] for records in (ours, theirs)]
    for a, b in zip(*scores, strict=True):
        assert a == pytest.approx(b, abs=1e-4)
    for name in ("onnx", "int8"):
        gate = json.loads((finished / "export" / name / "gate.json").read_text())
        assert gate["passed"] and {"entities", "f1", "logits", "inputs"} <= gate["checks"].keys()
        assert next(iter(predict(finished, LINES[:2], backend=name))).keys() == {"text", "entities"}
    assert (
        json.loads((finished / "export/onnx/gate.json").read_text())["checks"]["entities"]["differ_beyond_margin"] == 0
    )


def _bare(record: dict[str, Any]) -> dict[str, Any]:
    entities = [{key: value for key, value in e.items() if key != "score"} for e in record["entities"]]
    return {**record, "entities": entities}


@pytest.mark.ranks
def test_stock_transformers_gives_the_same_logits(finished: Path) -> None:
    """In a process without rankzero, from `model/` alone."""
    code = (
        "import json, sys, torch\n"
        "from transformers import pipeline\n"
        "pipe = pipeline('token-classification', model=sys.argv[1], trust_remote_code=False)\n"
        "inputs = pipe.tokenizer(sys.argv[2], return_tensors='pt')\n"
        "logits = pipe.model(**inputs).logits[0].tolist()\n"
        "print(json.dumps([pipe.model.config.id2label, logits, [r['word'] for r in pipe(sys.argv[2])]]))\n"
    )
    words = [sys.executable, "-c", code, str(finished / "model"), LINES[0]]
    output = subprocess.run(words, capture_output=True, text=True, cwd="/", env={**os.environ, "PYTHONPATH": ""})
    assert output.returncode == 0, output.stderr
    names, logits, found = json.loads(output.stdout)
    assert "London" in " ".join(found)
    trained = TrainedRun.open(RunDir(finished), Recipe)
    config: Any = trained.recipe.task
    assert list(names.values()) == config.names
    assert config.names[0] == "O" and config.names[1][:2] + config.names[2][:2] == "B-I-"
    batch = trained.task.collate(trained.task.encode_lines([LINES[0]]))
    with torch.no_grad():
        ours = trained.task.logits(trained.model, batch)[0, : len(logits)]
    torch.testing.assert_close(ours, torch.tensor(logits), atol=1e-5, rtol=0)


@pytest.mark.ranks
def test_the_report_shows_marked_and_escaped_texts(finished: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    path = run / "evaluation/test/predictions.jsonl"
    records = read_lines(path)
    entity = {"start": 0, "end": 11, "label": "PER", "text": "<i>Ada</i> &"}
    records[0] |= {"input": "<i>Ada</i> & London", "target": [entity], "prediction": []}
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    page = write_report(RunDir(run), "test").read_text(encoding="utf-8")
    assert "<mark>" in page and "</b></mark>" in page
    assert "<i>Ada" not in page and "&lt;i&gt;Ada&lt;/i&gt; " in page
    for title in ("Entities by type", "Confusion of types", "Errors by kind", "Missed"):
        assert title in page
    assert "pooling" not in page.partition("Headline")[0], "nothing is pooled"
    assert (run / "evaluation/test/confusion_matrix.png").read_bytes().startswith(b"\x89PNG")
    assert {"missed", "boundary", "type", "spurious"} >= {
        line["kind"] for line in read_lines(finished / "evaluation/test/errors.jsonl")
    }
    found = json.loads((finished / "evaluation/test/entities.json").read_text())
    assert [sum(row) for row in found["confusion"]["counts"][:2]] == [line["true"] for line in found["types"]]


@pytest.mark.ranks
@pytest.mark.slow
def test_rows_of_text_with_spans(sentences: Path, tmp_path: Path) -> None:
    """The same sentences as texts give the same scores, also from a prepared corpus."""
    root = tmp_path / "spans"
    root.mkdir()
    for name in ("train", "validation", "test"):
        lines = []
        for row in read_lines(sentences / f"{name}.jsonl"):
            text, words = joined(row["tokens"])
            spans = [
                {"start": words[a][0], "end": words[b - 1][1], "label": x} for a, b, x in entities_of(row["ner_tags"])
            ]
            lines.append(json.dumps({"text": text, "spans": spans}) + "\n")
        (root / f"{name}.jsonl").write_text("".join(lines))
    made = recipe(sentences, loop={"max_steps": 40, "eval_every": 20})
    values = made.model_dump(mode="json")
    values["task"]["rows"], values["data"]["root"], values["data"]["columns"] = "text", str(root), {}
    with_tokens, with_text = train(tmp_path, made, "tokens"), train(tmp_path, Recipe.parse(values), "text")
    ours, theirs = metrics(with_tokens), metrics(with_text)
    assert ours["f1"] > 0.5
    assert {k: v for k, v in ours.items() if k != "rows"} == {k: v for k, v in theirs.items() if k != "rows"}
    prepare(Recipe.parse(values), out=tmp_path / "prepared")
    values["data"]["root"] = str(tmp_path / "prepared")
    values["export"] |= {"onnx": True, "bf16": False}
    again = train(tmp_path, Recipe.parse(values), "prepared")
    assert (again / "export/onnx/run.py").exists()


@pytest.mark.ranks
@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bits(sentences: Path, tmp_path: Path) -> None:
    """Two ranks; both are killed after the second checkpoint."""
    made = recipe(sentences, loop={"max_steps": 16, "save_every": 2})
    whole, run = train(tmp_path, made, "whole", ranks=2), tmp_path / "run"
    argv = ["train", written(tmp_path, made), "--run", run]
    killed = processes.Ranks(argv, processes.next_logs(run), 2)
    processes.wait_until(lambda: (run / "checkpoints/step-00000004/manifest.json").exists())
    for rank in range(2):
        killed.signal(signal.SIGKILL, rank)
    killed.wait()
    assert not (run / "model").exists(), "it was killed before its end"
    ended = processes.Ranks(argv, processes.next_logs(run), 2).wait().check()
    assert "resumed from step" in ended.err[0]
    for name in ("model/model.safetensors", "evaluation/test/predictions.jsonl"):
        assert (run / name).read_bytes() == (whole / name).read_bytes()
