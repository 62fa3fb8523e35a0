"""T5, BART and Marian as ONNX with a cache: they answer as the weights do, and their gate finds planted faults."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import write_corpus
from export_helpers import LINES, Exported, benchmark_of, exported, finished_run, trained
from gate_helpers import Change, mutant, quiet, run_gate
from onnx import numpy_helper
from rich.console import Console
from slow import slow_except
from test_text_to_text import recipe

from trainer.data.tokenization import train_tokenizer
from trainer.engine.trained_run import TrainedRun
from trainer.export.benchmark_table import show
from trainer.export.packaging import settings
from trainer.export.quantize import matrices, write_quantized
from trainer.export.stage import export_run
from trainer.export.subprocess_check import in_fresh_process
from trainer.files import read_json
from trainer.recipe_loading import Recipe
from trainer.rundir import RunDir

ODD = [*LINES, "ein Hund", "translate: a <pad> b"]
pytestmark = pytest.mark.usefixtures("near")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pairs")
    write_corpus(root)
    return root


def text_run(root: Path, corpus: Path, architecture: str) -> Exported:
    made = recipe(
        corpus, architecture, task={"prefix": "translate: ", "max_target_length": 20},
        data={"max_length": 48, "cleaning": ["strip_tags", "fold_whitespace"]},
        evaluation={"max_rows": 70, "beam_size": 3},
        export={"onnx": True, "int8": True, "bf16": True},
    )  # fmt: skip
    rows = [json.loads(line) for line in (corpus / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    texts = [row[side] for row in rows for side in ("de", "en")]
    return exported(finished_run(root / "run", made, train_tokenizer(texts, made.tokenizer_training, 48), trained))


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Exported:
    """Read only."""
    return text_run(tmp_path_factory.mktemp("t5"), corpus, "t5")


# -- good ones ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", slow_except(["t5", "bart", "marian"], "t5"))
def test_a_faithful_artifact_passes(architecture: str, t5: Exported, corpus: Path, tmp_path: Path) -> None:
    """With positions that are relative, learned, and sinusoids."""
    made = t5 if architecture == "t5" else text_run(tmp_path, corpus, architecture)
    found = run_gate(made, made.folder)
    assert found["passed"], found
    assert found["checks"]["logits"]["largest_difference"] < 5e-5
    assert found["checks"]["identical"]["share"] == 1.0
    assert found["checks"]["identical"]["largest_score_difference"] < 1e-4
    assert len({row.answer["prediction"] for row in made.rows()[1]}) >= 3, "they decide something"


def test_run_py_answers_odd_lines_as_the_weights_do(t5: Exported) -> None:
    wanted = list(t5.finished.predict(ODD))
    alone, seconds = in_fresh_process(t5.folder, ODD)
    assert seconds > 0
    for made, ours in zip(alone, wanted, strict=True):
        assert list(made) == list(ours)
        assert list(made)[:3] == ["text", "prediction", "score"]
        assert (made["text"], made["prediction"]) == (ours["text"], ours["prediction"])
        assert made["score"] == pytest.approx(ours["score"], abs=1e-4)


@pytest.mark.parametrize(("beam", "penalty", "factor"), [(1, 1.0, 1.5), (2, 0.0, 1.0), (5, 2.0, 0.2), (1, 0.0, 0.1)])
def test_all_search_settings(t5: Exported, beam: int, penalty: float, factor: float) -> None:
    """The library's search, and ours of run.py: limits of each row, lengths, ends."""
    overrides = [f"evaluation.beam_size={beam}", f"evaluation.length_penalty={penalty}"]
    finished = TrainedRun.open(t5.run, Recipe, [*overrides, f"evaluation.max_length_factor={factor}"])
    artifact = t5.artifact
    artifact.settings = settings(t5.export.__class__(finished.task), finished.model)
    lines = [row.line for row in t5.rows()[1][:25]]
    for made, ours in zip(artifact(lines), finished.predict(lines), strict=True):
        assert made["prediction"] == ours["prediction"]
        assert made["score"] == pytest.approx(ours["score"], abs=1e-4)


@pytest.mark.slow
def test_int8_multiplies_in_integers_and_the_stage_publishes_all(
    t5: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainer.api import predict

    (tmp_path / "int8").mkdir()
    write_quantized(t5.export, t5.folder, tmp_path / "int8")
    assert not matrices(tmp_path / "int8")
    run = RunDir(shutil.copytree(t5.run.path, tmp_path / "run", ignore=shutil.ignore_patterns("artifact")))
    folders = export_run(run, ["export.gates.int8_bleu=20"], quiet)  # of a model this small
    assert [folder.name for folder in folders] == ["bf16", "onnx", "int8"]
    assert read_json(run.export / "onnx" / "gate.json")["checks"]["bleu"]["passed"]
    lines = ["ein Hund", ""]
    wanted = [record["prediction"] for record in predict(run.path, lines)]
    assert [record["prediction"] for record in predict(run.path, lines, backend="onnx")] == wanted
    assert len(list(predict(run.path, lines, backend="int8"))) == 2
    found = benchmark_of(run, t5, monkeypatch)
    assert [(course["batch"], course["beam"]) for course in found["courses"][:2]] == [(1, 1), (1, 5)]
    assert all({"torch", "onnx", "int8"} <= course["contestants"].keys() for course in found["courses"][:2])
    console = Console(width=80, record=True, force_terminal=False)
    show(found, console)
    assert "beam 5" in console.export_text()


# -- planted faults ----------------------------------------------------------------------------------------------------


def perturbed_weight(model: onnx.ModelProto) -> None:
    last = next(node for node in model.graph.node if "logits" in node.output)
    names = {name for node in model.graph.node if node.op_type == "MatMul" for name in node.input} | set(last.input)
    weight = max((w for w in model.graph.initializer if w.name in names), key=lambda w: int(np.prod(w.dims)))
    values = numpy_helper.to_array(weight).copy()
    values.flat[7] += 1.0
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))


def ignored_mask(model: onnx.ModelProto) -> None:
    """Padding of the source is looked at."""
    for node in model.graph.node:
        node.input[:] = ["ones" if name == "source_mask" else name for name in node.input]
    one = onnx.helper.make_tensor("one", onnx.TensorProto.INT64, [1], [1])
    model.graph.node.insert(0, onnx.helper.make_node("Shape", ["source_mask"], ["mask_shape"]))
    model.graph.node.insert(1, onnx.helper.make_node("ConstantOfShape", ["mask_shape"], ["ones"], value=one))


def shifted_position_bias(model: onnx.ModelProto) -> None:
    """The table of distances, rotated by one."""
    [table] = [w for w in model.graph.initializer if list(w.dims) == [32, 2]]
    table.CopyFrom(numpy_helper.from_array(np.roll(numpy_helper.to_array(table), 1, 0), table.name))


def stale_cache(model: onnx.ModelProto) -> None:
    """A hypothesis keeps its own past, whatever it continues: all read the first one's."""
    zero = onnx.helper.make_node("Sub", ["parents", "parents"], ["first"])
    for node in model.graph.node:
        node.input[:] = ["first" if name == "parents" else name for name in node.input]
    model.graph.node.insert(0, zero)


@pytest.mark.parametrize(
    ("graph", "change"),
    [
        ("decoder", perturbed_weight),
        ("encoder", ignored_mask),
        ("decoder", ignored_mask),
        ("encoder", shifted_position_bias),
        ("decoder", shifted_position_bias),
        ("decoder", stale_cache),
    ],
)
def test_a_wrong_graph_is_caught(graph: str, change: Change, t5: Exported, tmp_path: Path) -> None:
    assert run_gate(t5, mutant(t5, tmp_path / "mutant", change, graph))["failed"] == ["logits"]


@pytest.mark.parametrize(
    ("wrong", "check"),
    [
        ({"prefix": "summarize: "}, "inputs"),
        ({"after": []}, "inputs"),
        ({"start_id": 7}, "logits"),
        ({"longest": 3}, "identical"),
    ],
)
def test_wrong_settings_are_caught(wrong: dict[str, Any], check: str, t5: Exported, tmp_path: Path) -> None:
    assert check in run_gate(t5, mutant(t5, tmp_path / "mutant", **wrong))["failed"]
