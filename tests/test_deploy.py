"""Artifacts of other runtimes: faithful ones pass their gates, and planted faults do not."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import write_corpus
from deploy_helpers import convert_to, quiet
from export_helpers import LINES, Exported, exported, finished_run, load, trained
from onnx import TensorProto, numpy_helper
from slow import slow_except
from test_export import agree
from test_export_text_to_text import text_run
from test_separate_vocabularies import tokenizer_of, values_of

from trainer import artifact_kinds
from trainer.artifact_kinds import KINDS, RUNTIMES, TORCH, Kind
from trainer.errors import GateError, UsageError
from trainer.export import conversions
from trainer.export.artifact_integrity import problems
from trainer.export.backend import open_artifact
from trainer.export.packaging import SERVING, dockerfile
from trainer.export.stage import export_run
from trainer.export.subprocess_check import in_fresh_process
from trainer.files import read_json
from trainer.recipe.output_sections import ExportConfig
from trainer.recipe_loading import Recipe
from trainer.rundir import RunDir

OTHERS = {
    "fp16": ("encoder", "translator"),
    "openvino": ("encoder", "translator"),
    "openvino_int8": ("encoder",),
}
OTHERS |= {"ctranslate2": ("translator",), "ctranslate2_int8": ("translator",)}


def needs(name: str) -> None:
    if KINDS[name].missing:
        pytest.skip(KINDS[name].missing)


def test_the_table_is_the_recipe() -> None:
    """Every kind has a key and a conversion; the order is that in which they are made."""
    assert [name for name in ExportConfig.model_fields if name in KINDS] == sorted(
        KINDS, key=list(ExportConfig.model_fields).index
    )
    programs = [kind.name for kind in KINDS.values() if kind.runtime != TORCH]
    assert list(conversions._CONVERSIONS) == programs
    everything = ExportConfig(**dict.fromkeys(KINDS, True))
    assert everything.wanted() == list(KINDS)
    assert everything.graphs == [name for name in KINDS if KINDS[name].graphs]
    assert everything.wanted(graphs=False) == ["bf16", "safetensors", "ctranslate2", "ctranslate2_int8"]


@pytest.mark.parametrize(
    ("name", "made"),
    slow_except([(n, m) for n, runs in OTHERS.items() for m in runs], *((n, r[0]) for n, r in OTHERS.items())),
)
def test_a_faithful_artifact_passes(
    name: str, made: str, request: pytest.FixtureRequest, tmp_path: Path, near: None
) -> None:
    needs(name)
    source: Exported = request.getfixturevalue(made)
    found = convert_to(name, source, tmp_path / name)
    assert found["passed"], found
    logits = found["checks"]["logits"]
    limits = {"fp16": 0.02} | dict.fromkeys(("openvino", "ctranslate2"), 1e-4)
    assert logits["limit"] == limits.get(name)
    assert 0 < logits["largest_difference"] < limits.get(name, 2.0)
    if name.endswith("int8"):
        assert logits["largest_difference"] > 1e-4, "nothing is quantized"
        assert logits["batch_neighbours"] < 1e-4, "rows of a batch do not depend on each other"
    theirs, _ = in_fresh_process(tmp_path / name, LINES, modules=RUNTIMES[KINDS[name].runtime].modules)
    agree(theirs, list(load(tmp_path / name)(LINES)))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["t5", "bart", "marian"])
def test_encoder_decoders_of_the_library_pass(architecture: str, tmp_path: Path, near: None) -> None:
    """With positions that are relative, learned, and sinusoids; Marian does not start from an embedding of 0 here."""
    needs("ctranslate2")
    write_corpus(tmp_path / "corpus")
    made = text_run(tmp_path, tmp_path / "corpus", architecture)
    for name in ("ctranslate2", "ctranslate2_int8"):
        found = convert_to(name, made, tmp_path / name)
        assert found["passed"], found


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "tied"), [("pre", False), ("post", "target")])
def test_separate_vocabularies_pass(norm: str, tied: Any, corpus: Path, tmp_path: Path, near: None) -> None:
    """As Pegasus, whose smaller table has rows of 0, and as Marian."""
    needs("ctranslate2")
    recipe = Recipe.parse(values_of(corpus, tied, model={"norm": norm}, evaluation={"max_rows": 30, "beam_size": 2}))
    made = exported(finished_run(tmp_path / "run", recipe, tokenizer_of(recipe), trained))
    found = convert_to("ctranslate2", made, tmp_path / "ctranslate2")
    assert found["passed"], found


SIGNAL_AFTER_DELETED_CORES = """
import faulthandler, gc, os, signal
faulthandler.enable()  # it has an alternate signal stack, as under pytest
signal.signal(signal.SIGUSR1, lambda number, frame: print("received"))
from trainer.export.runtimes.graphs_openvino import compiled
first = compiled({path!r})
second = compiled({path!r})
for name in ("first", "second"):
    del globals()[name]
    gc.collect()
os.kill(os.getpid(), signal.SIGUSR1)
"""


def test_a_signal_after_openvino_reaches_its_handler(encoder: Exported, tmp_path: Path) -> None:
    needs("openvino")
    code = SIGNAL_AFTER_DELETED_CORES.format(path=str(encoder.folder / "model.onnx"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert (done.returncode, done.stdout) == (0, "received\n"), done.stderr


# -- planted faults ----------------------------------------------------------------------------------------------------


def overflow(folder: Path) -> None:
    """A weight beyond the range of fp16, as of a model trained in bf16."""
    model = onnx.load(folder / "model.onnx")
    weight = max(
        (w for w in model.graph.initializer if w.data_type == TensorProto.FLOAT16), key=lambda w: np.prod(w.dims)
    )
    values = numpy_helper.to_array(weight).copy()
    values.flat[:] = np.where(values == values.max(), np.inf, values)
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(model, folder / "model.onnx")


def other_weights(folder: Path) -> None:
    """A byte of the weights, in the middle of the file."""
    path = next(path for path in folder.iterdir() if path.suffix == ".bin")
    content = bytearray(path.read_bytes())
    middle = len(content) // 2 // 4 * 4
    content[middle : middle + 400] = np.full(100, 3.0, np.float32).tobytes()
    path.write_bytes(bytes(content))


def other_penalty(folder: Path) -> None:
    """Another search: short texts win."""
    settings = read_json(folder / "settings.json")
    assert settings is not None
    (folder / "settings.json").write_text(json.dumps(settings | {"max_length_factor": 0.0, "longest": 2}))


@pytest.mark.parametrize(
    ("name", "made", "fault", "failed"),
    [
        ("fp16", "encoder", overflow, {"logits"}),
        ("openvino", "encoder", other_weights, {"logits"}),
        ("ctranslate2", "translator", other_weights, {"logits"}),
        ("ctranslate2", "translator", other_penalty, {"bleu"}),
        ("ctranslate2_int8", "translator", other_penalty, {"bleu"}),
    ],
)
def test_a_wrong_artifact_is_caught(
    name: str, made: str, fault: Any, failed: set[str], request: pytest.FixtureRequest, tmp_path: Path, near: None
) -> None:
    needs(name)
    found = convert_to(name, request.getfixturevalue(made), tmp_path / name, fault)
    assert set(found["failed"]) == failed


# -- the stage ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(encoder: Exported, tmp_path: Path, near: None) -> RunDir:
    """A finished run of a classifier, not exported."""
    shutil.copytree(encoder.run.path, tmp_path / "run", ignore=shutil.ignore_patterns("artifact"))
    return RunDir(tmp_path / "run")


def test_the_stage_publishes_what_is_made_from_onnx(run: RunDir) -> None:
    """Also without export/onnx itself, whose folder does not stay."""
    words = ["export.onnx=false", "export.int8=false", "export.bf16=false", "export.fp16=true"]
    (folder,) = export_run(run, words, quiet)
    assert folder.name == "fp16"
    assert [path.name for path in run.export.iterdir()] == ["fp16"]
    gate = read_json(folder / "gate.json")
    assert gate is not None
    assert {"model.onnx", "run.py", "serve.py", "Dockerfile", "settings.json", "tokenizer.json"} == gate["files"].keys()
    assert 1.5 < gate["size_ratio"] < 2.1
    assert problems(folder) == []
    texts = ["a good film", "bad"]
    records = list(open_artifact(run, "fp16")(texts))
    assert [record["text"] for record in records] == texts


def test_what_a_task_has_no_artifact_for_is_left_out(run: RunDir, caplog: pytest.LogCaptureFixture) -> None:
    """An override of one export is not part of the run, whose recipe may ask for the same."""
    words = [f"export.{name}=false" for name in ("onnx", "int8", "bf16")]
    needs("ctranslate2")
    with caplog.at_level("INFO", "rankzero"):
        assert export_run(run, [*words, "export.ctranslate2=true"], quiet) == []
    assert "ctranslate2 left out: ctranslate2 is for tasks that write a target text" in caplog.text
    assert run.reasons() == {}
    own = run.recipe.read_text(encoding="utf-8").replace("ctranslate2: false", "ctranslate2: true")
    run.recipe.write_text(own, encoding="utf-8")
    assert export_run(run, words, quiet) == []
    assert "source text" in run.reasons()["ctranslate2"]


def test_only_backends_that_the_task_can_have_are_advised(run: RunDir) -> None:
    possible = "allowed: torch, bf16, safetensors, onnx, int8, fp16, openvino, openvino_int8"
    why = "ctranslate2 is for tasks that write a target text for a source text"
    for name, words in (
        ("ctranslate2", f"not possible ({why}); {possible}"),
        ("onyx", f"--backend onyx is unknown; {possible}"),
        ("openvino", f"has no openvino artifact yet; make it with `rankzero export {run.path} export.openvino=true`"),
        ("onnx", f"make it with `rankzero export {run.path}`"),
    ):  # fmt: skip
        with pytest.raises(UsageError) as error:
            open_artifact(run, name)
        assert str(error.value).endswith(words)


def test_nothing_is_made_from_graphs_that_failed(run: RunDir) -> None:
    words = ["export.int8=false", "export.bf16=false", "export.fp16=true", "export.gates.logits=1e-12"]
    with pytest.raises(GateError, match="onnx failed its gate"):
        export_run(run, words, quiet)
    assert not (run.export / "fp16").exists()


@pytest.mark.parametrize("name", [kind.name for kind in KINDS.values() if kind.modules])
def test_a_missing_package_ends_a_training_before_data_is_read(
    name: str, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainer import train

    found = importlib.util.find_spec
    monkeypatch.setattr(
        artifact_kinds.importlib.util,
        "find_spec",
        lambda name: None if name in ("openvino", "ctranslate2") else found(name),
    )
    with pytest.raises(UsageError, match=re.escape(f"pip install 'rankzero[{KINDS[name].extra}]'")):
        train(str(recipe), overrides=[f"export.{name}=true", "data.train=nothing"], run=tmp_path / "run")


# -- the container -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [kind for kind in KINDS.values() if kind.runtime != TORCH], ids=lambda kind: kind.name)
def test_the_container_installs_what_the_programs_import(kind: Kind) -> None:
    text = dockerfile(kind)
    (line,) = [line for line in text.splitlines() if line.startswith("RUN pip install")]
    installed = {re.split(r"[=\[]", word.strip("'"))[0].replace("-", "_") for word in line.split()[4:]}
    own = {package.replace("-", "_") for package in SERVING}
    runtime = {"onnxruntime_gpu"} if kind.device == "cuda" else set(RUNTIMES[kind.runtime].packages)
    assert installed == own | runtime | {"tokenizers", "numpy"}
    server = Path(conversions.__file__).with_name("serve.py").read_text(encoding="utf-8")
    nodes = [node for node in ast.walk(ast.parse(server)) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {a.name if isinstance(n, ast.Import) else str(n.module) for n in nodes for a in n.names}
    outside = {name.partition(".")[0] for name in names} - {"run", "pydantic"}  # FastAPI needs pydantic

    assert outside - set(sys.stdlib_module_names) == own
    assert ("--gpus all" in text) == (kind.device == "cuda")
    assert 'CMD ["python", "serve.py", "--host", "0.0.0.0"]' in text
