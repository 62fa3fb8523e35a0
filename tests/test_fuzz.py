"""Hostile input (benchmarks/fuzz): a part of the campaign, its checks, and each fault that it has found."""

from __future__ import annotations

import csv
import functools
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc as pa_ipc
import pytest
import typer

from benchmarks.fuzz import ROOT, batches, coverage, files
from benchmarks.fuzz.guard import Broken
from benchmarks.fuzz.kinds import KINDS
from launch.slurm import follow
from launch.sweep_folder import sweep_lines, sweep_state
from trainer.cli import run_app
from trainer.data.sources import open_split
from trainer.data.target_tokenizer import save_tokenizer
from trainer.data.token_ids import decode_batch, encode_batch
from trainer.data.tokenization import load_tokenizer, train_tokenizer
from trainer.errors import CheckpointError, DataError, UsageError
from trainer.evaluation.predictions import in_corpus_order, read_predictions
from trainer.files import read_json
from trainer.hub_paths import check_model_files, check_weights
from trainer.init_recipe import lengths
from trainer.lock_file import parse
from trainer.recipe import parse_yaml, read_yaml
from trainer.recipe.sections import DataConfig, TokenizerTraining
from trainer.recipe.yaml_text import written_yaml
from trainer.recipe_loading import Recipe
from trainer.report.run_files import read_history
from trainer.rundir import RunDir

SEED = 20261130
UNTRAINED = [kind for kind, one in KINDS.items() if not one.trained]


def campaign(folder: Path, *words: object) -> tuple[int, str, dict[str, Any]]:
    command = [sys.executable, "-m", "benchmarks.fuzz", "--folder", folder, "--json", folder / "fuzz.json", *words]
    ended = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=ROOT)
    return ended.returncode, ended.stdout + ended.stderr, json.loads((folder / "fuzz.json").read_text())


def test_three_hundred_cases(tmp_path: Path) -> None:
    only = [word for kind in UNTRAINED for word in ("--only", kind)]
    code, text, result = campaign(tmp_path, "--cases", 300, "--seed", SEED, *only)
    assert code == 0, text[-6000:]
    assert re.match(r"all 300 cases held", text.splitlines()[-1])
    assert {kind for kind, one in result["table"].items() if one["cases"] >= 4} == set(UNTRAINED)
    assert sum(one["read"] for one in result["table"].values()) >= 60
    assert sum(one["refused"] for one in result["table"].values()) >= 60
    assert all(one["read"] + one["refused"] == one["cases"] for one in result["table"].values())
    code, again, same = campaign(tmp_path, "--cases", 300, "--seed", SEED, *only)
    assert (code, again, same["table"]) == (0, text, result["table"]), "the same command has nothing left to play"


@pytest.mark.slow
def test_run_directories_and_command_lines(tmp_path: Path) -> None:
    only = [word for kind in KINDS if kind not in UNTRAINED for word in ("--only", kind)]
    code, text, result = campaign(tmp_path, "--cases", 60, "--seed", SEED, *only)
    assert code == 0, text[-6000:]
    assert {kind for kind, one in result["table"].items() if one["cases"] >= 3} == {*KINDS} - {*UNTRAINED}


# -- the campaign finds planted faults ---------------------------------------------------------------------------------

PLANTED = {  # code of a case -> what the campaign says of it
    "int('x')": "ValueError at",
    "os.system('true')": "os.system",
    "open('/tmp/fuzz-outside', 'w')": "wrote '/tmp/fuzz-outside'",
    "while True: pass": "CPU time",
    "exec('fuzz_canary = 1')": "code of an input",
    "bytearray(1 << 27)": "the process grew",
    "bytearray(1 << 34)": "MemoryError at",
    "os.kill(os.getpid(), 9)": "its process died: signal 9",
    "os._exit(0)": "its process died: code 0",
    "sys.exit(0)": "SystemExit at",
    "time.sleep(9)": "its process died: more than 1 s",
}
PROGRAM = """
import json, os, sys, time
from pathlib import Path
from hypothesis import strategies as st
from benchmarks.fuzz import batches, child, guard, kinds

def slow(code):
    return "sleep" in code or "while" in code or "bytearray" in code

def planted(code):
    code = compile(code, __file__, "exec")

    def check(case, folder):
        if case >= 300:
            eval(code)
        return "read"

    return kinds.Kind(lambda: st.integers(0, 1000), check, 1)

guard.SECONDS, guard.MOST_MEMORY, child.WAIT_SECONDS = 0.2, 1 << 26, 1.0
batches.SHRINK_SECONDS = 0.5
codes = json.loads(sys.argv[2])
kinds.KINDS.update({code: planted(code) for code in codes})
os.chdir(sys.argv[1])
results = [batches.run_batch((code, 5, 4 if slow(code) else 30), Path(sys.argv[1])) for code in codes]
rows = [[one.kind, one.cases, one.read + one.failed, list(one.failures), [case for case, _ in one.failures.values()]]
        for one in results]
print(json.dumps(rows))
"""


def test_planted_faults_are_found(tmp_path: Path) -> None:
    (tmp_path / "planted.py").write_text(PROGRAM)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, tmp_path / "planted.py", tmp_path, json.dumps([*PLANTED])]
    ended = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert ended.returncode == 0, ended.stderr
    results = json.loads(ended.stdout)
    assert [code for code, *_ in results] == [*PLANTED]
    for code, cases, counted, found, smallest in results:
        assert cases == counted >= 4
        assert any(PLANTED[code] in what for what in found), (code, found)
        assert "int" not in code or 300 <= int(smallest[0]) <= 999, "three digits are the fewest"


FAULTY = {  # what a reader does wrong -> the kind of its files, the reader, and the rows that it makes of right ones
    "loses a row": ("csv", "csv_records", lambda rows: rows[1:]),
    "repeats a row": ("json-lines", "json_records", lambda rows: rows[:1] + rows),
    "swaps rows": ("text", "text_records", lambda rows: rows[::-1]),
    "strips a text": ("csv", "csv_records", lambda rows: [changed(row, str.strip) for row in rows]),
    "cuts a text": ("json", "array_records", lambda rows: [changed(row, lambda text: text[:1]) for row in rows]),
    "loses a batch": ("table", "table_batches", lambda rows: rows[1:]),
}


def changed(record: Any, change: Any) -> Any:
    parsed, at = record
    values = {key: change(value) if isinstance(value, str) else value for key, value in parsed.values.items()}
    return parsed._replace(values=values), at


def found_by(kind: str, folder: Path, most: int = 100) -> str:
    """Run drawn cases of a kind until one fails. Return why, or an empty text."""
    for number, case in enumerate(drawn_cases(kind, most)):
        (at := folder / str(number)).mkdir()
        try:
            files.check(case, at)
        except Broken as broken:
            return str(broken)
        except DataError:
            pass
    return ""


@functools.cache
def drawn_cases(kind: str, most: int) -> list[Any]:
    cases: list[Any] = []
    batches.drawn(KINDS[kind], SEED, most, cases.append)
    return cases


@pytest.mark.parametrize("what", FAULTY)
def test_a_reader_with_a_fault_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    kind, reader, fault = FAULTY[what]
    original = getattr(sys.modules["trainer.data.sources"], reader)
    monkeypatch.setattr(f"trainer.data.sources.{reader}", lambda *args: iter(fault(list(original(*args)))))
    assert found_by(kind, tmp_path)


@pytest.mark.parametrize("kind", ["csv", "json-lines"])
def test_pyarrow_alone_finds_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Where the standard library has the same fault. Its readers are used by rankzero, too."""
    if kind == "csv":
        reader = csv.reader
        monkeypatch.setattr("csv.reader", lambda *args, **more: Reversed(reader(*args, **more)))
    else:
        loads = json.loads
        monkeypatch.setattr("json.loads", lambda *args, **more: doubled(loads(*args, **more)))
    assert "pyarrow reads" in found_by(kind, tmp_path)


class Reversed:
    """A reader of the csv module that turns the letters of each field around."""

    def __init__(self, reader: Any) -> None:
        self.reader = reader

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> list[str]:
        return [field[::-1] if "\n" not in field else field for field in next(self.reader)]


def doubled(value: Any) -> Any:
    """Return the value of a JSON text, with the text of a row twice."""
    return (
        {**value, "text": value["text"] * 2}
        if isinstance(value, dict) and value.get("text") == str(value.get("text"))
        else value
    )


PARSER = """
from benchmarks.fuzz import coverage

def faulty(content):
    if len(content) > 60 and not content.endswith(b"}"):
        raise KeyError("planted")

coverage._parsers = lambda folder: {"status": faulty}
coverage.main()
"""


@pytest.mark.slow
@pytest.mark.skipif(not coverage.available(), reason="needs atheris")
def test_inputs_chosen_by_coverage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs, problem = coverage.play("status", SEED, tmp_path, 400)
    assert (runs >= 400, problem) == (True, "")
    (tmp_path / "planted.py").write_text(PARSER)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    runs, problem = coverage.play("status", SEED, tmp_path, 20_000, [str(tmp_path / "planted.py")])
    assert "KeyError: 'planted'" in problem


def test_without_atheris_a_message_says_so() -> None:
    assert coverage.available() or "rankzero[fuzz]" in coverage.MISSING


# -- faults that it has found ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["!!int x", "!!int ''", "!!float x", "!!bool x", "!!null x", "!!timestamp x", "!!map x", "!!seq {a: 1}",
    "!!set {a}", "9" * 5000,
     "!!int 0x" + "f" * 5000, "!!binary x", "!!omap [a: 1]", "!!bool [a]"],
)  # fmt: skip
def test_a_value_of_another_form_than_its_tag(text: str) -> None:
    with pytest.raises(UsageError, match="here: not valid YAML"):
        parse_yaml(f"a: {text}", "here")
    assert parse_yaml("a: !!int '5'\nb: !!str 5\nc: !!float 1\nd: !!bool true", "here") == {
        "a": 5,
        "b": "5",
        "c": 1.0,
        "d": True,
    }


@pytest.mark.parametrize("label", ["\x85", "a\u2028b", "\u2029", "a\x85 b\x85", "x\ny", "\ufeff", "\t", "é"])
def test_line_ends_of_unicode_stay_in_a_recipe(tmp_path: Path, label: str) -> None:
    (tmp_path / "r.yaml").write_text(written_yaml({"labels": {label: [label]}}), encoding="utf-8")
    assert read_yaml(tmp_path / "r.yaml") == {"labels": {label: [label]}}


def test_a_recipe_that_never_ends(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").symlink_to("/dev/zero")
    with pytest.raises(UsageError, match="larger than"):
        read_yaml(tmp_path / "r.yaml")


def rows_of(folder: Path, name: str, content: bytes) -> list[Any]:
    (folder / name).write_bytes(content)
    source = open_split(DataConfig.model_validate({"root": str(folder), "train": name, "lanes": 1}), "train")
    assert source is not None
    return [row.values if row.error is None else row.error for row in source]


def test_blank_lines_before_a_header(tmp_path: Path) -> None:
    assert rows_of(tmp_path, "a.csv", b"\n\r\ntext,label\nx,1\n") == [{"text": "x", "label": "1"}]


def test_a_byte_order_mark_alone_is_no_row(tmp_path: Path) -> None:
    assert rows_of(tmp_path, "a.txt", b"\xef\xbb\xbf") == []
    assert rows_of(tmp_path, "b.txt", b"\xef\xbb\xbf\n") == [{"text": ""}]


def test_deep_notes_in_a_table(tmp_path: Path) -> None:
    table = pa.table({"text": ["a"]}).replace_schema_metadata({"huggingface": "[" * 5000})
    sink = pa.BufferOutputStream()
    with pa_ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    assert rows_of(tmp_path, "a.arrow", sink.getvalue().to_pybytes()) == [{"text": "a"}]


@pytest.mark.parametrize(
    "query", ["rows=²", "rows=" + "9" * 5000, "shards=99999999999", "shards=0", "rows=4&shards=-1"]
)
def test_numbers_of_a_generated_corpus(query: str) -> None:
    data = DataConfig.model_validate({"root": "embedded://reviews", "train": f"train?{query}", "lanes": 1})
    with pytest.raises(UsageError, match=r"data\.train="):
        open_split(data, "train")


STATUS = {
    "state": "running",
    "step": 2,
    "exit_code": None,
    "attempt": 1,
    "loss": 0.5,
    "share": 0.5,
    "left": 9.0,
    "updated": 1.0,
}


@pytest.mark.parametrize(
    ("key", "value"),
    [("state", 5), ("step", "2"), ("step", True), ("loss", "x"), ("share", 2), ("share", 1e-300), ("left", "x"),

     ("updated", []), ("updated", "@NaN"), ("step", int("9" * 400)), ("error", {})],
)  # fmt: skip
def test_a_status_of_another_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, key: str, value: Any
) -> None:
    """The message names the key. Other runs are listed."""
    for name, content in (("a", {**STATUS, key: value}), ("b", STATUS)):
        (tmp_path / "runs" / name).mkdir(parents=True)
        text = re.sub(r'"@(\w+)"', r"\1", json.dumps(content))
        (tmp_path / "runs" / name / "status.json").write_text(text)
    with pytest.raises(CheckpointError, match=rf"status\.json: {key} is "):
        follow.status_command(tmp_path / "runs" / "a", False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(typer.Exit) as ended:
        follow.status_command(None, False)
    assert ended.value.exit_code == CheckpointError.exit_code
    printed = capsys.readouterr()
    assert "runs/b: running  step 2" in printed.out
    assert f"{key} is" in printed.err


@pytest.mark.parametrize(
    "values", [{"loss": math.nan, "left": math.inf}, {"share": math.nan}, {"step": None}, {"updated": None}]
)
def test_numbers_that_are_not_known(tmp_path: Path, values: dict[str, Any]) -> None:
    """A run whose loss became NaN has a status, too."""
    (tmp_path / "status.json").write_text(json.dumps({**STATUS, **values}))
    text = follow._text(follow.state_of(tmp_path, follow.Snapshot()))
    assert "running" in text
    assert "nan" not in text
    assert "inf" not in text


def test_jobs_of_another_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow.queue, "here", lambda: False)
    (tmp_path / "slurm").mkdir()
    names = ["²", "9" * 5000, "1*", "12"]
    (tmp_path / "slurm/jobs").write_bytes(b"".join(f"{name} train\n".encode() for name in names) + b"\xff\n")
    states = {"12": ["FAILED", "x"], "13": ["FAILED", "y"], "²": ["a", "b"], "14": [1], "15": "x"}
    (tmp_path / "slurm/states.json").write_text(json.dumps(states))
    (tmp_path / "slurm/a-12.out").mkdir()
    assert follow.recorded_jobs(tmp_path) == {"12": "train"}
    state = follow.state_of(tmp_path, follow.Snapshot())
    assert [job["job"] for job in state["jobs"]] == ["12"]
    assert "no log" in state["log"][0]
    with pytest.raises(UsageError, match="has no log"):
        follow.newest_log(tmp_path, wait=False)
    (tmp_path / "slurm/b-12.out").write_text("x\n" * 100_000 + "end\n")
    assert follow._end_of_log(tmp_path, "12") == ["x"] * 7 + ["end"]


def test_a_table_of_trials_of_another_form(tmp_path: Path) -> None:
    right = {"number": 1, "state": "complete", "value": None, "params": {}}
    (tmp_path / "trials.json").write_text(json.dumps({"best": 1, "trials": [right]}))
    assert "1 complete" in sweep_lines(sweep_state(tmp_path))[0]
    for trials in (
        {},
        5,
        [5],
        [{}],
        [{**right, "value": "x"}],
        [{**right, "number": "../x"}],
        [{**right, "params": 1}],
    ):
        (tmp_path / "trials.json").write_text(json.dumps({"best": 1, "trials": trials or [trials]}))
        assert sweep_lines(sweep_state(tmp_path)) == ["sweep: no trial yet of ? trials"]


def test_json_files_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "status.json")
    (tmp_path / "manifest.json").symlink_to("/dev/zero")
    for name in ("status.json", "manifest.json"):
        with pytest.raises(CheckpointError, match="cannot be read"):
            read_json(tmp_path / name)
    os.mkfifo(tmp_path / "recipe.yaml")
    with pytest.raises(UsageError, match="is not a run directory"):
        RunDir(tmp_path).check()
    run = RunDir(tmp_path / "run")
    for folder in (run.model, run.tokenizer):
        folder.mkdir(parents=True)
    run.recipe.touch()
    (run.model / "loop").symlink_to("loop")
    (run.model / "none").symlink_to("nowhere")
    run.check()
    (run.model / "model.safetensors").symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match="is a pipe, a device or a socket"):
        run.check()
    (run.model / "model.safetensors").unlink()
    os.mkfifo(run.tokenizer / "tokenizer.json")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is a pipe"):
        run.check()


def test_a_file_that_vanishes_while_a_run_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank one removes hang-rank-1.txt when it ends, and an export renames its folder."""
    run = RunDir(tmp_path)
    run.recipe.touch()
    stat = Path.stat

    def vanishing(path: Path, **options: bool) -> os.stat_result:
        found = stat(path, **options)
        if path.name in ("hang-rank-1.txt", "gate.json"):
            path.unlink()
        return found

    monkeypatch.setattr(Path, "stat", vanishing)
    run.export.mkdir()
    for name in ("hang-rank-1.txt", "export/gate.json"):
        (tmp_path / name).touch()
    run.check()
    assert not (tmp_path / "hang-rank-1.txt").exists()


def test_deep_lines(tmp_path: Path) -> None:
    """The decoder of JSON ends with another error for them than for other lines that are not JSON."""
    deep, run = "[" * 100_000, RunDir(tmp_path)
    run.metrics.write_text(f'{deep}\n{{"step": 1}}\n')
    assert read_history(run.metrics) == [{"step": 1}]
    run.cut_after(run.metrics, 1)
    assert run.metrics.read_text() == '{"step": 1}\n'
    run.restarts.write_text(f'{deep}\n{{"time": 1e999}}\n{{"time": true}}\n{{"time": 1.5}}\n')
    assert run.read_restarts() == [{"time": 1.5}]
    assert parse(deep.encode()) is None
    (tmp_path / "predictions.jsonl").write_text(deep)
    with pytest.raises(DataError, match="line 1: not a prediction"):
        list(read_predictions(tmp_path / "predictions.jsonl"))
    rows = [{"id": f"a:{'9' * 5000}"}, {"id": "a:10"}, {"id": "a:9"}]
    assert [row["id"][:4] for row in in_corpus_order(rows)] == ["a:9", "a:10", "a:99"]


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"data": {"columns": {"\ud800": "a"}}}, r"data.columns: '\ud800' is not Unicode text"),
        ({"data": {"train": ["a", "b\udc80"]}}, r"data.train.1: 'b\udc80' is not Unicode text"),
    ],
)
def test_text_that_a_recipe_file_cannot_hold(values: dict[str, Any], line: str) -> None:
    """Such as file names in another encoding: pydantic would replace the byte by another character."""
    with pytest.raises(UsageError, match=re.escape(line)):
        Recipe.parse(values)


# Parts of a tokenizer.json at which the library panics. Its error is no `Exception`.
NO_LOAD = {"normalizer": {"type": "Precompiled", "precompiled_charsmap": ""}}
NO_ENCODING = [
    {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAAAA=="}},
    {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
    {"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "[UNK]"}},  # this one raises `Exception`
]
NO_DECODING = {"decoder": {"type": "Strip", "content": "a", "start": 0, "stop": 2**40}}


def damaged_tokenizer(folder: Path, part: dict[str, Any]) -> Path:
    settings = TokenizerTraining(kind="wordpiece", vocab_size=60, min_frequency=1)
    save_tokenizer(train_tokenizer(["a good film", "a bad film"], settings, 16), folder)
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **part}))
    return folder


def test_a_tokenizer_at_which_the_library_panics(tmp_path: Path) -> None:
    folder = damaged_tokenizer(tmp_path / "load", NO_LOAD)
    with pytest.raises(UsageError, match=f"tokenizer='{folder}' cannot be loaded: Precompiled"):
        load_tokenizer(str(folder))
    for number, part in enumerate(NO_ENCODING):
        folder = damaged_tokenizer(tmp_path / str(number), part)
        tokenizer = load_tokenizer(str(folder))
        for call in (lambda one: encode_batch(one, ["ab"]), lambda one: encode_batch(one, ["ab"], ["b"])):
            with pytest.raises(DataError, match=f"the tokenizer '{folder}' cannot encode a text: .*is damaged"):
                call(tokenizer)
    tokenizer = load_tokenizer(str(damaged_tokenizer(tmp_path / "decode", NO_DECODING)))
    with pytest.raises(DataError, match="cannot decode token ids"):
        decode_batch(tokenizer, encode_batch(tokenizer, ["a film"]))
    right = load_tokenizer(str(damaged_tokenizer(tmp_path / "right", {})))
    assert decode_batch(right, encode_batch(right, ["a film"])) == ["a film"]


def test_a_table_of_characters_that_states_more_than_it_has(tmp_path: Path) -> None:
    """The library takes the stated memory and aborts the process where there is not as much."""
    part = {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "1vhaza9q"}}
    folder = str(damaged_tokenizer(tmp_path, part))
    for load in (load_tokenizer, lengths._tokenizer):
        with pytest.raises(
            UsageError, match=r"tokenizer.json is cut or corrupt: .* states 3,445,291,222 bytes and has 6\."
        ):
            load(folder)
    damaged_tokenizer(tmp_path, {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AgAAAGFh"}})
    assert load_tokenizer(folder).backend_tokenizer.normalizer is not None  # it has the two bytes that it states


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja", "model.safetensors"])
@pytest.mark.parametrize("check", [load_tokenizer, check_model_files, lambda name: check_weights(Path(name))])
def test_a_pipe_in_a_folder_of_a_model(tmp_path: Path, name: str, check: Any) -> None:
    folder = damaged_tokenizer(tmp_path / "own", {})
    (folder / "config.json").write_text('{"model_type": "bert"}')
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(UsageError, match=rf"{name} is a pipe, a device or a socket"):
        check(str(folder))
    (folder / name).unlink()
    (folder / name).symlink_to("/dev/zero")
    with pytest.raises(UsageError, match=rf"{name} is a pipe, a device or a socket"):
        check(str(folder))


def test_a_panic_elsewhere_prints_a_traceback_without_credentials(capsys: Any) -> None:
    panic = type("PanicException", (BaseException,), {})

    def command() -> None:
        raise panic("https://user:secret@host/x")

    assert run_app(command) == 1
    printed = capsys.readouterr().err
    assert "Traceback" in printed
    assert "secret" not in printed
    with pytest.raises(KeyboardInterrupt):
        run_app(lambda: (_ for _ in ()).throw(KeyboardInterrupt()))
