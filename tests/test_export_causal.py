"""A causal language model as ONNX with its cache: equal continuations, and a gate that finds planted faults."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from export_helpers import LINES, Exported, benchmark_of, exported, finished_run, load
from gate_helpers import Change, mutant, quiet, run_gate
from language_helpers import task_with, write_documents
from onnx import helper, numpy_helper
from slow import slow_except
from test_causal import GPT2, LENGTH, document, recipe

from trainer.engine.corpus import Corpus
from trainer.engine.trained_run import TrainedRun
from trainer.export import gates
from trainer.export.packaging import settings
from trainer.export.quantize import matrices, write_quantized
from trainer.export.stage import export_run
from trainer.export.subprocess_check import in_fresh_process
from trainer.files import read_json
from trainer.recipe_loading import Recipe
from trainer.report.report import write_report

ROWS = 70
pytestmark = pytest.mark.usefixtures("near")


def trained(task: Any, model: Any) -> None:
    """A few dozen steps, so that texts differ and end."""
    examples = [e for window in Corpus(task.recipe, task).batches("train") for b in window for e in b.examples]
    sequences = [piece for piece, _ in task.pack(examples)]
    optimizer, draw = torch.optim.AdamW(model.parameters(), lr=3e-3), random.Random(2)
    for _ in range(80):
        batch = task.collate(draw.sample(sequences, 8))
        (task.loss(model, batch) / task.targets(batch)).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_documents(tmp_path_factory.mktemp("documents"), document, train=160, test=ROWS)


def causal_run(root: Path, corpus: Path, architecture: str) -> Exported:
    made = recipe(
        corpus, model={**GPT2, "architecture": architecture}, export={"onnx": True, "int8": True},
        task={"packing": architecture != "opt"},  # which takes no notice of where a document begins
    )  # fmt: skip
    return exported(finished_run(root / "run", made, task_with(made, document).tokenizer, trained))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Exported:
    """Read only."""
    return causal_run(tmp_path_factory.mktemp("gpt2"), corpus, "gpt2")


# -- good ones ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", slow_except(["gpt2", "llama", "gpt_neox", "opt"], "gpt2"))
def test_a_faithful_artifact_passes(architecture: str, gpt2: Exported, corpus: Path, tmp_path: Path) -> None:
    """With positions that are learned, rotated, or counted from 2 on; with keys for every few heads."""
    made = gpt2 if architecture == "gpt2" else causal_run(tmp_path, corpus, architecture)
    found = run_gate(made, made.folder)
    assert found["passed"], found
    logits, perplexity = found["checks"]["logits"], found["checks"]["perplexity"]
    assert logits["largest_difference"] < 2e-5
    assert logits["rows"] == 64
    assert logits["lengths"][1] == LENGTH
    assert len(logits["batch_sizes"]) >= 4
    assert abs(perplexity["change"]) < 1e-6
    assert found["checks"]["identical"]["share"] == 1.0
    assert found["checks"]["identical"]["texts"] == ROWS
    answers = [row.answer["prediction"] for row in made.rows()[1]]
    assert len(set(answers)) > ROWS / 3, "they decide something"


def test_the_artifact_continues_texts_as_the_weights_do(gpt2: Exported) -> None:
    """Also with an empty one, and with the end of those that are too long; alone or beside others."""
    lines = [*LINES, *(row.line for row in gpt2.rows()[1][:20])]
    wanted = list(gpt2.finished.predict(lines))
    for found in (list(gpt2.artifact(lines)), [next(gpt2.artifact([line])) for line in lines]):
        for made, ours in zip(found, wanted, strict=True):
            assert list(made) == list(ours)
            assert (made["text"], made["prediction"]) == (ours["text"], ours["prediction"])
            assert made["score"] == pytest.approx(ours["score"], abs=1e-4)
    alone, seconds = in_fresh_process(gpt2.folder, lines)
    assert alone == list(gpt2.artifact(lines))
    assert seconds > 0


def test_perplexity_is_that_of_the_evaluation(gpt2: Exported) -> None:
    """Of documents longer than data.max_length, too, in the same pieces."""
    task, examples = gpt2.finished.task, [row.example for row in gpt2.rows()[1]]
    assert max(len(list(task.pieces(example))) for example in examples) > 2
    done: list[int] = []
    found = gpt2.export.losses(gpt2.artifact, examples, done.append)
    wanted = [record["loss"] for record in gpt2.export.answers(gpt2.finished.model, examples)]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert done[-1] == sum(len(list(task.pieces(example))) for example in examples)


@pytest.mark.parametrize(("asked", "made"), [(6, 6), (LENGTH, LENGTH - 1), (500, LENGTH - 1)])
def test_new_tokens_leave_room_for_a_prompt(gpt2: Exported, asked: int, made: int) -> None:
    task = TrainedRun.task_of(gpt2.run, Recipe, [f"evaluation.generation.new_tokens={asked}"])
    assert settings(task.exporter()(task), gpt2.finished.model)["new_tokens"] == made
    example = task.encode([{"text": "the film was good " * 9}])[0]
    assert 1 <= len(task.exporter()(task).prompt(example)) <= LENGTH - made
    artifact = gpt2.artifact
    artifact.settings["new_tokens"] = made
    [record] = artifact(["the film was good " * 9])
    assert record["truncated"] is True


def test_beams_and_sampling_are_for_torch(gpt2: Exported, tmp_path: Path) -> None:
    """run.py goes on greedily, says so in its settings, and is proven by that."""
    task = TrainedRun.task_of(gpt2.run, Recipe, ["evaluation.generation.temperature=0.7"])
    sampled = settings(task.exporter()(task), gpt2.finished.model)
    assert sampled["search"] == "greedy"
    assert sampled == settings(gpt2.export, gpt2.finished.model)


def test_losses_do_not_depend_on_how_many_logits_are_held(gpt2: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a vocabulary of 50,000 a batch of long pieces would hold gigabytes of them."""
    examples, told = [row.example for row in gpt2.rows()[1]], list[int]()
    whole = gpt2.export.losses(gpt2.artifact, examples, told.append)
    monkeypatch.setattr(gates, "MOST_LOGITS", 1)
    one_by_one = list[int]()
    np.testing.assert_allclose(gpt2.export.losses(gpt2.artifact, examples, one_by_one.append), whole, rtol=1e-5)
    assert len(one_by_one) == one_by_one[-1] == told[-1] > len(told)


# -- int8 --------------------------------------------------------------------------------------------------------------


def test_int8_is_published_or_reports_its_loss_of_quality(gpt2: Exported, tmp_path: Path) -> None:
    """All matrices in integers, the output projection too, although it is the embedding in the weights."""
    write_quantized(gpt2.export, gpt2.folder, tmp_path)
    assert not matrices(tmp_path)
    assert sorted(projection(onnx.load(gpt2.folder / "decoder.onnx")).dims) == [64, len(gpt2.finished.task.tokenizer)]
    found = run_gate(gpt2, tmp_path, "int8")
    assert set(found["checks"]) == {
        "loads", "dynamic", "inputs", "logits", "chosen", "fresh_process", "identical", "perplexity"
    }  # fmt: skip
    assert found["checks"]["identical"]["limit"] is None
    assert found["checks"]["perplexity"]["limit"] == 0.02
    assert found["passed"], found["checks"]["perplexity"]
    assert 1e-7 < abs(found["checks"]["perplexity"]["change"]) < 0.02
    lines = [row.line for row in gpt2.rows()[1][:10]]
    artifact = load(tmp_path)
    assert list(artifact(lines)) == [next(artifact([line])) for line in lines]


@pytest.mark.slow
def test_the_stage_publishes_both(gpt2: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trainer.api import check_export, predict
    from trainer.rundir import RunDir

    run = RunDir(shutil.copytree(gpt2.run.path, tmp_path / "run", ignore=shutil.ignore_patterns("artifact")))
    folders = export_run(run, ["export.bf16=true"], quiet)
    assert [folder.name for folder in folders] == ["bf16", "onnx", "int8"]
    assert check_export(run.path) == []
    for name in ("bf16", "onnx", "int8"):
        gate = read_json(run.export / name / "gate.json")
        assert gate["passed"]
        assert {"perplexity", "identical"} <= set(gate["checks"])
    lines = ["the film was", ""]
    wanted = [record["prediction"] for record in predict(run.path, lines)]
    assert [record["prediction"] for record in predict(run.path, lines, backend="onnx")] == wanted
    found = benchmark_of(run, gpt2, monkeypatch)
    cells = found["courses"][0]["contestants"]
    assert {"baseline", "torch", "bf16", "onnx", "int8"} <= cells.keys()
    assert "padded to" not in found["contestants"]["baseline"]["what"]
    page = write_report(run, "test").read_text(encoding="utf-8")
    assert "s own attention (greedy). All were measured in turns" in page


# -- planted faults ----------------------------------------------------------------------------------------------------


def projection(model: onnx.ModelProto) -> Any:
    """The matrix that logits are made with."""
    last = next(node for node in model.graph.node if "logits" in node.output)
    return next(w for w in model.graph.initializer if w.name in last.input)


def perturbed_weight(model: onnx.ModelProto) -> None:
    """One number of the output projection."""
    weight = projection(model)
    values = numpy_helper.to_array(weight).copy()
    values.flat[7] += 0.5
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))


def fixed_new_length(model: onnx.ModelProto) -> None:
    """As with dynamic_shapes left out."""
    put = next(put for put in model.graph.input if put.name == "input_ids")
    put.type.tensor_type.shape.dim[1].dim_value = 4


def fixed_cache_length(model: onnx.ModelProto) -> None:
    put = next(put for put in model.graph.input if put.name == "key_1")
    put.type.tensor_type.shape.dim[2].dim_value = 5


def mask_of_floats(model: onnx.ModelProto) -> None:
    mask = next(put for put in model.graph.input if put.name == "attention_mask")
    mask.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    for node in model.graph.node:
        node.input[:] = ["mask_as_int" if name == "attention_mask" else name for name in node.input]
    cast = helper.make_node("Cast", ["attention_mask"], ["mask_as_int"], to=onnx.TensorProto.INT64)
    model.graph.node.insert(0, cast)


def mask_ignored(model: onnx.ModelProto) -> None:
    """Padding is looked at: all ones in the place of the mask."""
    for node in model.graph.node:
        node.input[:] = ["ones" if name == "attention_mask" else name for name in node.input]
    one = helper.make_tensor("one", onnx.TensorProto.INT64, [1], [1])
    model.graph.node.insert(0, helper.make_node("Shape", ["attention_mask"], ["mask_shape"]))
    model.graph.node.insert(1, helper.make_node("ConstantOfShape", ["mask_shape"], ["ones"], value=one))


def swapped(model: onnx.ModelProto, first: str, second: str) -> None:
    names = {first: second, second: first}
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]


def layers_mixed_up(model: onnx.ModelProto) -> None:
    """Each layer is given the other's keys."""
    swapped(model, "key_0", "key_1")


def keys_for_values(model: onnx.ModelProto) -> None:
    swapped(model, "key_0", "value_0")


def cache_forgotten(model: onnx.ModelProto) -> None:
    """What comes out is what went in, with zeros for the new tokens: the search loses what it has written."""
    for node in model.graph.node:
        if "key_0" in node.input:
            new = next(name for name in node.input if name != "key_0")
            model.graph.node.insert(0, helper.make_node("Sub", [new, new], ["nothing"]))
            node.input[:] = ["nothing" if name == new else name for name in node.input]
            break
    order = list(model.graph.node)
    nothing = order.pop(0)
    at = next(i for i, node in enumerate(order) if "nothing" in node.input)
    del model.graph.node[:]
    model.graph.node.extend([*order[:at], nothing, *order[at:]])


@pytest.mark.parametrize(
    ("change", "check"),
    [
        (perturbed_weight, "logits"),
        (fixed_new_length, "dynamic"),
        (fixed_cache_length, "dynamic"),
        (mask_of_floats, "dynamic"),
        (mask_ignored, "logits"),
        (layers_mixed_up, "logits"),
        (keys_for_values, "logits"),
        (cache_forgotten, "logits"),
    ],
)
def test_a_wrong_graph_is_caught(change: Change, check: str, gpt2: Exported, tmp_path: Path) -> None:
    assert run_gate(gpt2, mutant(gpt2, tmp_path / "mutant", change, "decoder"))["failed"] == [check]


@pytest.mark.parametrize(
    ("wrong", "check"),
    [
        ({"start_id": 7}, "inputs"),
        ({"cleaning": ["lowercase", "strip_tags"]}, "inputs"),
        ({"new_tokens": 5}, "identical"),
        ({"left": False}, "logits"),
    ],
)
def test_wrong_settings_are_caught(wrong: dict[str, Any], check: str, gpt2: Exported, tmp_path: Path) -> None:
    assert check in run_gate(gpt2, mutant(gpt2, tmp_path / "mutant", **wrong))["failed"]


def test_another_end_is_caught(gpt2: Exported, tmp_path: Path) -> None:
    """A token that texts hold."""
    task = gpt2.finished.task
    end = task.encode([{"text": gpt2.rows()[1][0].answer["prediction"]}])[0]["input_ids"][2]
    assert run_gate(gpt2, mutant(gpt2, tmp_path / "mutant", eos_id=end))["failed"] == ["identical"]


def test_other_weights_are_caught_by_perplexity(gpt2: Exported, tmp_path: Path) -> None:
    """With the logits' own limit out of the way, as int8 has none."""
    folder = mutant(gpt2, tmp_path / "mutant", halved_logits, "decoder")
    found = run_gate(gpt2, folder, "int8")
    assert found["failed"] == ["perplexity"]
    assert found["checks"]["perplexity"]["change"] > 0.02
    assert found["worst_rows"][0]["difference"] >= found["worst_rows"][1]["difference"] > 0


def least_probable_chosen(model: onnx.ModelProto) -> None:
    """The logits are right, what a search takes is not."""
    node = next(node for node in model.graph.node if node.op_type == "TopK")
    node.attribute.append(helper.make_attribute("largest", 0))


@pytest.mark.parametrize(("change", "check"), [(least_probable_chosen, "chosen"), (cache_forgotten, "perplexity")])
def test_the_texts_of_int8_are_checked(change: Change, check: str, gpt2: Exported, tmp_path: Path) -> None:
    """Its logits have no limit, and few of its texts are the weights' own."""
    assert run_gate(gpt2, mutant(gpt2, tmp_path / "mutant", change, "decoder"), "int8")["failed"] == [check]


def halved_logits(model: onnx.ModelProto) -> None:
    """Half as sure of everything."""
    weight = projection(model)
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(0.5), weight.name))


def test_logits_are_compared_along_the_cache(gpt2: Exported) -> None:
    """A beginning at once, tokens one by one, the rest at once; rows of all lengths beside each other."""
    examples = [row.example for row in gpt2.rows()[1]]
    asked: list[int] = []
    artifact: Any = gpt2.artifact
    step = artifact.step
    artifact.step = lambda names, tokens, *rest, **more: (
        asked.append(tokens.shape[1]) or step(names, tokens, *rest, **more)
    )
    for start, end in ((0, 1), (1, 3), (3, 20)):
        asked.clear()
        found = gpt2.export.artifact_logits(artifact, examples[start:end])
        for a, b in zip(found, gpt2.export.torch_logits(gpt2.finished.model, examples[start:end]), strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5)
    assert asked[1:5] == [1, 1, 1, 1]
    assert asked[0] > 1
    assert asked[5] > 1
