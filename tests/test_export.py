"""Artifacts answer as the weights do, without rankzero, for any line; int8 is smaller and reports what it left out."""

from __future__ import annotations

import ast
import functools
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from export_helpers import LINES, Exported, load
from hypothesis import given, settings
from hypothesis import strategies as st
from review_helpers import task_of

from trainer import embed
from trainer.data.cleaning import CLEANERS
from trainer.engine.trained_run import TrainedRun
from trainer.export import packaging
from trainer.export.artifact import WINDOW, Artifact, read_rows
from trainer.export.program import source
from trainer.export.quantize import matrices, quantize, sensitivity, write_quantized
from trainer.export.rows import ODD
from trainer.export.subprocess_check import in_fresh_process
from trainer.recipe_loading import Recipe
from trainer.tasks.classification.program import Classifier
from trainer.tasks.language_modeling.program import Generator
from trainer.tasks.pairs_program import Translator

Record = dict[str, Any]


def agree(found: list[Record], wanted: list[Record], tolerance: float = 1e-4) -> None:
    assert len(found) == len(wanted)
    for made, ours in zip(found, wanted, strict=True):
        assert list(made) == list(ours)
        for key, value in ours.items():
            assert made[key] == (value if isinstance(value, str) else pytest.approx(value, abs=tolerance)), (made, ours)


# -- the same answers --------------------------------------------------------------------------------------------------


ROWS = {
    "encoder": ({"text": "a good film"}, "a good film"),
    "pairs": ({"text": "a\tman", "text_pair": "someone", "other": 3}, "a man\tsomeone"),
}


@pytest.mark.parametrize("kind", ["encoder", "pairs"])
def test_run_py_reads_rows_as_json_objects(kind: str, request: pytest.FixtureRequest) -> None:
    """One bad row has an error and all others an answer, as with `rankzero predict`."""
    made: Exported = request.getfixturevalue(kind)
    row, text = ROWS[kind]
    artifact = load(made.folder)
    assert artifact.settings["columns"] == [name for name in row if name != "other"]
    lines = [json.dumps(row), "", '{"text": 3}', "no JSON", json.dumps(row)]
    read = [*read_rows(lines, artifact.settings["columns"])]
    answers = [*artifact(read)]
    [wanted] = artifact([text])
    agree([answers[0], answers[3]], [wanted, wanted])
    assert wanted["text"] == text
    for answer, line in zip(answers[1:3], lines[2:4], strict=True):
        assert answer["text"] == line
        assert answer["error"].startswith("ValueError: a JSON object with texts in the columns ['text'")
    assert [*read_rows(["no JSON", json.dumps(row)], artifact.settings["columns"])] == ["no JSON", json.dumps(row)]


@pytest.mark.parametrize(
    ("columns", "row", "read"),
    [
        (["translation.de"], {"translation": {"de": "Haus", "en": "house"}}, "Haus"),
        (["a.b"], {"a.b": "exact name", "a": {"b": "path"}}, "exact name"),
        (["tokens"], {"tokens": ["Ada", "lives"]}, '["Ada", "lives"]'),
    ],
)
def test_rows_with_nested_columns_and_tokens(columns: list[str], row: dict[str, Any], read: str) -> None:
    assert [*read_rows([json.dumps(row)], columns)] == [read]


def test_ten_thousand_lines_come_in_order_and_in_constant_memory(encoder: Exported) -> None:
    """However many lines there are, no more than a window of them is read ahead."""
    read = 0

    def lines() -> Iterator[str]:
        nonlocal read
        for read in range(1, 10_001):
            yield f"film {read}"

    for answer in (encoder.finished.predict, encoder.artifact):
        read = 0
        for number, record in enumerate(answer(lines()), 1):
            assert record["text"] == f"film {number}"
            assert read - number < WINDOW
        assert number == read == 10_000


@pytest.mark.parametrize("kind", ["encoder", "pairs", "translator"])
def test_an_artifact_answers_as_the_weights_do(kind: str, request: pytest.FixtureRequest) -> None:
    made: Exported = request.getfixturevalue(kind)
    lines = [*LINES, *ODD, *(row.line for row in made.rows()[1][:20])]
    if kind == "pairs":
        lines = [f"{a}\t{b}" for a, b in zip(lines, reversed(lines), strict=True)] + ["\t", "a\tb\tc"]
    agree(list(made.artifact(lines)), list(made.finished.predict(lines)))


@pytest.mark.parametrize(("attention", "used"), [("auto", "sdpa"), ("eager", "eager")])
def test_a_pretrained_model_answers_with_the_fastest_attention(attention: str, used: str, pairs: Exported) -> None:
    """Ours, which auto takes on a CPU, is made for training; the answers stay the same."""
    finished = TrainedRun.open(pairs.run, Recipe, [f"model.attention={attention}"])
    lines = ["a good film\ta dull plot", "x\ty", "bad " * 40 + "\tgood"]
    found = list(finished.predict(lines))
    assert finished.model.config._attn_implementation == used
    agree(found, list(pairs.artifact(lines)))


@pytest.mark.parametrize(("beam", "penalty", "factor"), [(1, 1.0, 0.5), (2, 0.0, 1.0), (5, 2.0, 0.7), (70, 0.6, 0.1)])
def test_all_decoding_settings(translator: Exported, beam: int, penalty: float, factor: float) -> None:
    """A beam of 70 asks for more candidates of a hypothesis than the rest of the vocabulary can give at first."""
    overrides = [f"evaluation.beam_size={beam}", f"evaluation.length_penalty={penalty}"]
    finished = TrainedRun.open(translator.run, Recipe, [*overrides, f"evaluation.max_length_factor={factor}"])
    artifact = translator.artifact
    artifact.settings = packaging.settings(type(translator.export)(finished.task), finished.model)
    lines = [row.line for row in translator.rows()[1][: 6 if beam > 50 else 25]]
    wanted = list(finished.predict(lines))
    assert len({record["prediction"] for record in wanted}) > len(lines) // 2
    agree(list(artifact(lines)), wanted)


@pytest.mark.parametrize("kind", ["encoder", "pairs", "translator"])
def test_logits_of_batches_of_any_shape(kind: str, request: pytest.FixtureRequest) -> None:
    made: Exported = request.getfixturevalue(kind)
    examples = [row.example for row in made.rows()[1]]
    for start, end in ((0, 1), (1, 3), (3, 20), (0, 30)):
        ours = made.export.torch_logits(made.finished.model, examples[start:end])
        for a, b in zip(made.export.artifact_logits(made.artifact, examples[start:end]), ours, strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize("truncation", ["head", "tail", "head_tail"])
@pytest.mark.parametrize("pair", [False, True])
def test_texts_are_cut_alike(truncation: str, pair: bool, encoder: Exported, tmp_path: Path) -> None:
    data = encoder.finished.recipe.model_dump(mode="json")
    data["task"] |= {"truncation": truncation, "pair": pair, "head_share": 0.3}
    task: Any = task_of(Recipe.parse(data))
    export = task.exporter()(task)
    task.tokenizer.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    artifact = Classifier(tmp_path, packaging.settings(export, encoder.finished.model))
    words = ["the", "film", "was", "very", "good", "and", "some", "scenes", "bad", "it", "this", "dull", "plot"]
    for first in (0, 1, 13, 14, 29, 30, 31, 60):
        for second in (0, 1, 14, 15, 29, 60) if pair else (0,):
            sides = [" ".join((words * 6)[:first]), " ".join((words[::-1] * 6)[:second])][: 1 + pair]
            row = dict(zip(("text", "text_pair"), sides, strict=False))
            example, line = task.encode([row])[0], "\t".join(sides)
            assert artifact.encode(sides) == export.encoded(example), (first, second)
            cut = len(task.tokenizer(*sides, truncation=False)["input_ids"]) > task.recipe.data.max_length
            assert task.truncated(line, example) == artifact.truncated(line, artifact.encode(sides)) == cut


@pytest.mark.parametrize("kind", ["encoder", "pairs", "translator"])
def test_an_answer_to_a_part_of_a_text_is_marked_alike(kind: str, request: pytest.FixtureRequest) -> None:
    made: Exported = request.getfixturevalue(kind)
    word = made.rows()[1][0].line.split()[0]
    first = f"{word}\t" if kind == "pairs" else ""
    lines = [first + word, first + " ".join([word] * 300)]
    ours, theirs = list(made.finished.predict(lines)), list(made.artifact(lines))
    assert ["truncated" in record for record in ours] == ["truncated" in record for record in theirs] == [False, True]
    assert list(ours[1])[-1] == list(theirs[1])[-1] == "truncated"
    assert ours[1]["truncated"] is theirs[1]["truncated"] is True


@functools.cache
def shipped() -> dict[str, Any]:
    """The cleaning steps of a run.py that needs all of them."""
    program: dict[str, Any] = {"__name__": "shipped"}
    exec(source(Classifier, list(CLEANERS)), program)
    return program["CLEANERS"]


@given(
    st.text(
        st.one_of(st.characters(codec="utf-8"), st.sampled_from("<>&;/!-@.:w \u0085\u200b\ufeffhttps")), max_size=40
    )
)
@settings(max_examples=200, deadline=None)
def test_run_py_cleans_as_the_package_does(text: str) -> None:
    assert shipped().keys() == CLEANERS.keys()
    assert {name: step(text) for name, step in shipped().items()} == {n: step(text) for n, step in CLEANERS.items()}


# -- alone -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["encoder", "translator"])
def test_run_py_needs_nothing_of_this_package(kind: str, request: pytest.FixtureRequest) -> None:
    made: Exported = request.getfixturevalue(kind)
    found, seconds = in_fresh_process(made.folder, LINES)
    agree(found, list(made.artifact(LINES)), tolerance=1e-6)
    assert [record["text"] for record in found] == LINES
    assert seconds > 0


def test_a_text_without_a_token_is_answered(encoder: Exported) -> None:
    """A tokenizer may add no special tokens, as GPT-2's; torch pads such a row, too."""
    assert encoder.artifact.pad([[]], 7).tolist() == [[7]]
    alone, beside = next(encoder.artifact.predict([([], [])])), list(encoder.artifact.predict([([], []), ([5], [0])]))
    agree([alone], beside[:1], tolerance=1e-6)


def refuse_bad(text: str) -> str:
    """A cleaning step that fails on one of LINES."""
    if "bad" in text:
        raise ValueError("cannot take it")
    return text


def test_a_line_that_cannot_be_cleaned_leaves_the_others(encoder: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    """In `predict` with weights, with a graph, and in run.py, which then ends with 3."""
    monkeypatch.setitem(CLEANERS, "strip_tags", refuse_bad)
    bad = {"text": LINES[5], "error": "ValueError: cannot take it"}
    for answers in (list(encoder.artifact(LINES)), list(encoder.finished.predict(LINES))):
        assert [record["text"] for record in answers] == LINES
        assert answers[5] == bad
        assert all("label" in record for i, record in enumerate(answers) if i != 5)
    text = (encoder.folder / "run.py").read_text()
    changed = text.replace("def strip_tags(text: str) -> str:", f"{inspect.getsource(refuse_bad)}\n\ndef other(text):")
    (program := encoder.folder.parent / "changed.py").write_text(
        changed.replace('"strip_tags": strip_tags', '"strip_tags": refuse_bad').replace(
            "Path(__file__).parent", repr(str(encoder.folder))
        )
    )
    lines = "".join(f"{line}\n" for line in LINES).encode()
    ended = subprocess.run([sys.executable, str(program)], input=lines, capture_output=True)
    records = [json.loads(line) for line in ended.stdout.split(b"\n") if line]
    assert (ended.returncode, records[5], len(records)) == (3, bad, len(LINES))
    assert ended.stderr.strip() == b'1 lines have an "error" in place of an answer'


def test_a_line_with_one_text_of_a_pair_is_an_error(pairs: Exported) -> None:
    """In `predict` and in run.py. An answer about an empty second text would be a wrong one."""
    lines = ["a good film\tI liked it", "a good film"]
    for answers in (list(pairs.artifact(lines)), list(pairs.finished.predict(lines))):
        assert "label" in answers[0]
        assert answers[1].keys() == {"text", "error"}
        assert "the line has no tab" in answers[1]["error"]
    [alone] = embed(pairs.run.path, ["a good film"])
    assert alone.text == "a good film"
    assert not alone.truncated


def test_run_py_names_a_line_that_is_no_text(encoder: Exported) -> None:
    """Teams of threads may be nested: "2,1"."""
    ended = subprocess.run(
        [sys.executable, str(encoder.folder / "run.py")],
        input=b"a good film\n\xff\n",
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "2,1"},
    )
    assert (ended.returncode, ended.stderr.strip()) == (1, b"line 2 is not UTF-8, at byte 0")


def test_run_py_refuses_unknown_arguments(encoder: Exported) -> None:
    command = [sys.executable, str(encoder.folder / "run.py"), "texts.txt"]
    ended = subprocess.run(command, input=b"a good film\n", capture_output=True)
    assert (ended.returncode, ended.stdout) == (2, b"")
    assert b"python run.py" in ended.stderr
    assert b"Unknown arguments: texts.txt" in ended.stderr


@pytest.mark.parametrize("program", [Classifier, Generator, Translator])
def test_run_py_contains_only_the_code_of_its_kind(program: type[Artifact]) -> None:
    """One class beside the common one, the recipe's cleaning steps alone, nothing of this package, no dead name."""
    assert len(source(program, []).splitlines()) < 360
    for steps in ([], ["strip_tags"], list(CLEANERS)):
        text = source(program, steps)
        tree = ast.parse(text)
        assert "trainer" not in text
        assert [n.name for n in tree.body if isinstance(n, ast.ClassDef)] == [
            "NoRow",
            *(["Artifact", "PairsReader", "BeamSearch"] if program is Translator else ["Artifact"]),
            program.__name__,
        ]
        functions = [n.name for n in tree.body if isinstance(n, ast.FunctionDef)]
        helpers = {"_short_number", "_sorted_marks"} if steps == list(CLEANERS) else set()
        assert {n for n in functions if n.startswith("_")} == helpers
        others = [n for n in functions if not n.startswith("_")]
        assert others == [
            *steps,
            "open_graphs",
            "open_graph",
            "read_rows",
            "row_of",
            "cell",
            "main",
            *(["take"] if program is Translator else []),
        ]
        loaded = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
        imports = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)][1:]
        assert {a.asname or a.name for n in imports for a in n.names} <= loaded
        assert {t.id for n in tree.body if isinstance(n, ast.Assign) for t in n.targets} <= loaded


def test_run_py_imports_the_cleaning_steps_of_a_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It needs the user's module, and takes the step from there."""
    (tmp_path / "own_steps.py").write_text("def shout(text):\n    return text.upper()\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("RANKZERO_TRUSTED_MODULES", "own_steps")
    text = source(Classifier, ["fold_whitespace", "own_steps:shout"])
    assert "import own_steps\n" in text
    names: dict[str, object] = {"__name__": "run"}
    exec(compile(text, "run.py", "exec"), names)
    assert names["CLEANERS"]["own_steps:shout"]("a film") == "A FILM"  # type: ignore[index]


def test_the_fresh_process_has_three_packages(encoder: Exported, tmp_path: Path) -> None:
    for package in ("torch", "trainer", "transformers", "onnx", "yaml"):
        (tmp_path / "run.py").write_text(f"import numpy, onnxruntime, tokenizers, {package}", encoding="utf-8")
        with pytest.raises(RuntimeError, match=f"{package} is none of"):
            in_fresh_process(tmp_path, [])


@pytest.mark.skipif(
    "RANKZERO_BARE_PYTHON" not in os.environ, reason="RANKZERO_BARE_PYTHON: a Python with three packages"
)
@pytest.mark.parametrize("kind", ["encoder", "pairs", "translator"])
def test_run_py_in_a_bare_environment(kind: str, request: pytest.FixtureRequest) -> None:
    made: Exported = request.getfixturevalue(kind)
    command = [os.environ["RANKZERO_BARE_PYTHON"], "-I", str(made.folder / "run.py")]
    done = subprocess.run(command, input="".join(f"{line}\n" for line in LINES).encode(), capture_output=True)
    assert done.returncode == (3 if kind == "pairs" else 0), "a line with one text is no pair"
    agree([json.loads(line) for line in done.stdout.splitlines()], list(made.artifact(LINES)))


def test_nothing_of_the_machine_is_in_a_graph(translator: Exported) -> None:
    for path in translator.folder.glob("*.onnx"):
        content = path.read_bytes()
        assert b"site-packages" not in content
        assert b".py" not in content


# -- int8 --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["encoder", "pairs", "translator"])
def test_int8_multiplies_in_integers(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """All matrices, the output projection too, although it is the embedding in the weights; and rows go one by one."""
    made: Exported = request.getfixturevalue(kind)
    before = {path: path.stat().st_mtime_ns for path in (made.folder, *made.folder.iterdir())}
    write_quantized(made.export, made.folder, tmp_path)
    assert before == {path: path.stat().st_mtime_ns for path in (made.folder, *made.folder.iterdir())}
    assert not matrices(tmp_path)
    assert len(matrices(made.folder)) >= 6
    for path in tmp_path.glob("*.onnx"):
        assert path.stat().st_size < (made.folder / path.name).stat().st_size * 0.7  # a tiny graph is mostly its nodes
    artifact = load(tmp_path)
    rows = made.rows()[1][:20]
    lines = [row.line for row in rows]
    alone = [next(artifact([line])) for line in lines]
    agree(list(artifact(lines)), alone, tolerance=1e-6)
    examples = [row.example for row in rows]
    both = (made.export.artifact_logits(one, examples) for one in (artifact, made.artifact))
    gap = [np.abs(a - b).max() for a, b in zip(*both, strict=True)]
    assert 0 < max(gap) < 0.5, "on any processor: with 8-bit weights those without VNNI are off by 3"


def test_the_most_sensitive_matrices_stay_fp32(encoder: Exported, tmp_path: Path) -> None:
    """One row of a matrix is made so large that int8 has no steps left for the others: that matrix is found first."""
    source, folder = tmp_path / "fp32", tmp_path / "int8"
    source.mkdir()
    folder.mkdir()
    for path in encoder.folder.iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    model = onnx.load(source / "model.onnx")
    broken = matrices(source)[3]
    node = next(node for node in model.graph.node if f"model:{node.name}" == broken)
    weight = next(w for w in model.graph.initializer if w.name == node.input[1])
    values = onnx.numpy_helper.to_array(weight).copy()
    values[0] *= 300
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, source / "model.onnx")
    examples = [row.example for row in encoder.rows()[1][:8]]
    order = sensitivity(encoder.export, source, examples, lambda text: None)
    assert order[0] == broken
    assert sorted(order) == sorted(matrices(source))

    def gate() -> Record:
        left = matrices(folder)
        passed = len(left) >= 2
        checks = {"accuracy": {"passed": passed, "difference": -0.1 + 0.05 * len(left)}}
        return {"passed": passed, "failed": [] if passed else ["accuracy"], "checks": checks}

    verdict = quantize(encoder.export, source, folder, lambda: examples, gate, lambda text: None)
    assert verdict["kept_fp32"] == order[:2]
    assert {name.removesuffix("_MatMul") for name in matrices(folder)} == set(order[:2])
    assert [attempt["kept_fp32"] for attempt in verdict["attempts"]] == [0, 1, 2]


def test_other_failures_do_not_fall_back_to_fp32(encoder: Exported, tmp_path: Path) -> None:
    refused = {"passed": False, "failed": ["inputs"], "checks": {}}
    verdict = quantize(encoder.export, encoder.folder, tmp_path, list, lambda: dict(refused), lambda text: None)
    assert verdict["kept_fp32"] == []
    assert len(verdict["attempts"]) == 1
