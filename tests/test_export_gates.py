"""Every planted fault is caught by the gate for it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from export_helpers import Exported, load
from gate_helpers import Change, mutant, run_gate
from onnx import TensorProto, helper, numpy_helper

from trainer.export import gates
from trainer.export.onnx import write_artifact
from trainer.export.parity_checks import Comparison
from trainer.recipe.output_sections import GatesConfig
from trainer.tasks.classification.regression.export import RegressionExport

pytestmark = pytest.mark.usefixtures("near")


# -- good ones pass ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["encoder", "pairs", "translator"])
def test_a_faithful_artifact_passes(kind: str, request: pytest.FixtureRequest) -> None:
    made: Exported = request.getfixturevalue(kind)
    found = run_gate(made, made.folder)
    assert found["passed"], found
    logits = found["checks"]["logits"]
    assert logits["largest_difference"] < 1e-4
    assert logits["lengths"][0] < logits["lengths"][1]
    assert logits["rows"] == min(64, found["rows"])
    assert len(logits["batch_sizes"]) >= 4
    if kind == "translator":
        assert found["checks"]["identical"]["share"] == 1.0
        assert found["checks"]["bleu"]["difference_ci95"] == [0.0, 0.0]
    else:
        assert found["checks"]["classes"]["rows_beyond_margin"] > found["rows"] / 2
        assert found["checks"]["accuracy"]["difference"] == 0


# -- planted faults ----------------------------------------------------------------------------------------------------


def perturbed_weight(model: onnx.ModelProto) -> None:
    """One number of the largest matrix that is multiplied by."""
    used = {node.input[1] for node in model.graph.node if node.op_type == "MatMul"}
    weight = max((w for w in model.graph.initializer if w.name in used), key=lambda w: np.prod(w.dims))
    values = numpy_helper.to_array(weight).copy()
    values.flat[7] += 0.5
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))


def not_a_number(model: onnx.ModelProto) -> None:
    """A bias that has overflowed."""
    weight = next(w for w in model.graph.initializer if len(w.dims) == 1 and w.data_type == TensorProto.FLOAT)
    weight.CopyFrom(numpy_helper.from_array(np.full(tuple(weight.dims), np.nan, np.float32), weight.name))


def wrong_mask_type(model: onnx.ModelProto) -> None:
    """A mask of floats, as some exporters trace it."""
    mask = next(put for put in model.graph.input if put.name == "attention_mask")
    mask.type.tensor_type.elem_type = TensorProto.FLOAT
    for node in model.graph.node:
        node.input[:] = ["mask_as_int" if name == "attention_mask" else name for name in node.input]
    model.graph.node.insert(0, helper.make_node("Cast", ["attention_mask"], ["mask_as_int"], to=TensorProto.INT64))


def fixed_length(model: onnx.ModelProto) -> None:
    """The shape that was traced, as with dynamic_shapes left out."""
    for put in model.graph.input:
        put.type.tensor_type.shape.dim[1].dim_value = 12


def first_tokens_only(model: onnx.ModelProto) -> None:
    """Says that the length is free, but reads 8 tokens."""
    bounds = [helper.make_tensor(n, TensorProto.INT64, [1], [v]) for n, v in (("from", 0), ("to", 8), ("axis", 1))]
    model.graph.initializer.extend(bounds)
    names = [put.name for put in model.graph.input]
    for node in model.graph.node:
        node.input[:] = [f"cut_{name}" if name in names else name for name in node.input]
    for name in names:
        cut = helper.make_node("Slice", [name, "from", "to", "axis"], [f"cut_{name}"])
        model.graph.node.insert(0, cut)


@pytest.mark.parametrize(
    ("change", "check"),
    [
        (perturbed_weight, "logits"),
        (not_a_number, "logits"),
        (wrong_mask_type, "dynamic"),
        (fixed_length, "dynamic"),
        (first_tokens_only, "logits"),
    ],
)
def test_a_wrong_graph_is_caught(change: Change, check: str, encoder: Exported, tmp_path: Path) -> None:
    found = run_gate(encoder, mutant(encoder, tmp_path / "mutant", change))
    assert found["failed"] == [check]
    if check == "logits":
        worst = [row["difference"] for row in found["worst_rows"]]
        assert worst == sorted(worst, reverse=True)
        assert worst[0] == found["checks"]["logits"]["largest_difference"] > 1e-4


@pytest.mark.parametrize(("graph", "check"), [("encoder", "logits"), ("decoder", "logits")])
def test_a_wrong_translation_graph_is_caught(graph: str, check: str, translator: Exported, tmp_path: Path) -> None:
    found = run_gate(translator, mutant(translator, tmp_path / "mutant", perturbed_weight, graph))
    assert found["failed"] == [check]


def test_wrong_pooling_is_caught(encoder: Exported, tmp_path: Path) -> None:
    wrong: Any = copy.deepcopy(encoder.finished.model)
    wrong.pooling = "cls"
    write_artifact(encoder.export, wrong, tmp_path)
    assert run_gate(encoder, tmp_path)["failed"] == ["logits"]


def test_a_shifted_label_map_is_caught(encoder: Exported, tmp_path: Path) -> None:
    """In fp32 by the classes; in int8, where classes may differ, by the accuracy."""
    folder = mutant(encoder, tmp_path / "mutant", labels=["positive", "negative"])
    found = run_gate(encoder, folder)
    assert "classes" in found["failed"]
    assert found["worst_rows"][0]["reference"] != found["worst_rows"][0]["artifact"]
    found = run_gate(encoder, folder, "int8")
    right = found["checks"]["accuracy"]["reference"]
    assert found["failed"] == (["accuracy"] if right > 0.5 else [])
    assert found["checks"]["accuracy"]["artifact"] == pytest.approx(1 - right)
    assert "40 rows" in found["checks"]["accuracy"]["note"]


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        ("encoder", {"cleaning": ["normalize_unicode", "fold_whitespace"]}),
        ("encoder", {"max_length": 12}),
        ("encoder", {"head_share": 1.0}),
        ("pairs", {"layout": [[2, -1, 0], [-1, 0, 0], [3, -1, 0], [-1, 1, 0], [3, -1, 0]]}),
        ("translator", {"after": []}),
    ],
)
def test_wrong_settings_are_caught(
    kind: str, wrong: dict[str, Any], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    made: Exported = request.getfixturevalue(kind)
    assert run_gate(made, mutant(made, tmp_path / "mutant", **wrong))["failed"] == ["inputs"]


@pytest.mark.parametrize(
    "wrong", [{"beam_size": 1}, {"length_penalty": 0.0}, {"max_length_factor": 0.1}, {"eos_id": 1}]
)
def test_wrong_decoding_is_caught(wrong: dict[str, Any], translator: Exported, tmp_path: Path) -> None:
    found = run_gate(translator, mutant(translator, tmp_path / "mutant", **wrong))
    assert "identical" in found["failed"]
    assert found["worst_rows"][0]["reference"] != found["worst_rows"][0]["artifact"]


def test_a_process_that_answers_otherwise_is_caught(
    encoder: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(folder: Path, lines: list[str], **_: Any) -> tuple[list[Any], float]:
        return [{**record, "confidence": record["confidence"] - 2e-3} for record in load(folder)(lines)], 0.0

    monkeypatch.setattr(gates, "in_fresh_process", other)
    assert run_gate(encoder, encoder.folder)["failed"] == ["fresh_process"]


# -- regression on a few rows ------------------------------------------------------------------------------------------


def squares(residuals: Any, rounding: Any, limit: float = 0.005) -> dict[str, Any]:
    rows: Any = [None] * len(residuals)
    comparison = Comparison(rows, [], False, GatesConfig(int8_accuracy=limit), 20)
    columns = residuals.reshape(-1, 1), rounding.reshape(-1, 1)
    return RegressionExport._squares(None, comparison, columns[0] + columns[1], columns[0])  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(5))
def test_small_rounding_passes_on_few_rows_and_faults_do_not(seed: int) -> None:
    """Residuals of a model that has learned nothing: a mean squared error of about 1, which rounding changes a lot."""
    draw = np.random.default_rng(seed)
    residuals, noise = draw.normal(size=60), draw.normal(size=60)
    unlucky = 0.03 * np.abs(noise) * np.sign(residuals)  # all rounding away from the target: worse than by chance
    assert squares(residuals, 0.02 * noise)["passed"]
    assert squares(residuals, 0.02 * noise)["limit"] > 0.005
    assert not squares(residuals, unlucky)["passed"]
    for fault in (0.5 * noise, -1.5 * residuals - 0.7, np.full(60, 1.0), np.full(60, np.nan)):
        assert not squares(residuals, fault)["passed"]


def test_the_allowance_for_chance_vanishes_with_rows_and_with_the_limit() -> None:
    draw = np.random.default_rng(0)
    residuals, noise = 0.5 * draw.normal(size=20_000), 0.05 * draw.normal(size=20_000)
    assert 0.005 < squares(residuals, noise)["limit"] < 0.006
    assert squares(residuals, noise, limit=0.0)["limit"] == 0.0
    assert not squares(residuals, 2 * noise)["passed"]  # 0.01 of the variance
