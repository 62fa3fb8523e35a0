"""Support for editors and shells: JSON Schema, copies of recipes, questions, completion. See test_lint, too."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from launch.cli import app
from trainer.data.root import Root
from trainer.errors import UsageError
from trainer.recipe import read_yaml
from trainer.recipe.schema import schema_text
from trainer.recipe_editor import LINE, SHIPPED_LINE
from trainer.recipe_files import SCHEMA
from trainer.recipe_loading import SHIPPED, Recipe, load_recipe

UPDATE = "RANKZERO_UPDATE_GOLDEN"
ROOT = Path(__file__).parent.parent
RECIPES = sorted(SHIPPED.glob("*.yaml"))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words: str, typed: str | None = None) -> str:
    done = CliRunner().invoke(app, words, input=typed)
    if done.exception is not None:
        raise done.exception
    return done.stdout


# -- the schema --------------------------------------------------------------------------------------------------------


def test_the_published_schema_is_the_one_of_the_code() -> None:
    """Write it again after a change: RANKZERO_UPDATE_GOLDEN=1 pytest tests/test_editor.py"""
    if os.environ.get(UPDATE):
        SCHEMA.write_text(schema_text(Recipe), encoding="utf-8")
    assert SCHEMA.read_text(encoding="utf-8") == schema_text(Recipe), f"{UPDATE}=1 pytest tests/test_editor.py"
    assert run("recipes", "--schema") == SCHEMA.read_text(encoding="utf-8")


def validator() -> Any:
    jsonschema = pytest.importorskip("jsonschema", reason="the test extra is not installed")
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_are_valid_and_point_to_the_schema(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines.count(SHIPPED_LINE) == 1 and lines[0] != SHIPPED_LINE
    assert (path.parent / SHIPPED_LINE.partition("$schema=")[2]).resolve() == SCHEMA
    validator().validate(json.loads(json.dumps(read_yaml(path))))


@pytest.mark.parametrize(
    ("key", "value"), [("loop.epohcs", 3), ("optim.lr", "fast"), ("data.lanes", 0), ("task.kind", "translaton")]
)
def test_the_schema_refuses_what_a_run_refuses(key: str, value: Any) -> None:
    values = json.loads(json.dumps(read_yaml(SHIPPED / "multi30k.yaml")))
    section, name = key.split(".")
    values[section][name] = value
    assert [*validator().iter_errors(values)], "planted mistake"
    with pytest.raises(UsageError):
        Recipe.parse(values)


def test_the_schema_allows_a_task_of_another_package() -> None:
    values = json.loads(json.dumps(read_yaml(SHIPPED / "multi30k.yaml")))
    values["task"] = {"kind": "my_package.task:Summary", "own_key": 3}
    validator().validate(values)


class LanguageServer:
    """The YAML language server of editors, by its protocol on pipes."""

    def __init__(self, program: str) -> None:
        self._process = subprocess.Popen([program, "--stdio"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._number = 0

    def send(self, method: str, params: Any, *, wait: bool = False) -> Any:
        self._number += 1
        message = {"jsonrpc": "2.0", "method": method, "params": params} | ({"id": self._number} if wait else {})
        content = json.dumps(message).encode()
        assert self._process.stdin is not None
        self._process.stdin.write(b"Content-Length: %d\r\n\r\n%s" % (len(content), content))
        self._process.stdin.flush()
        return self.until(lambda found: found.get("id") == self._number and "method" not in found) if wait else None

    def until(self, wanted: Any) -> Any:
        """Return the first message that is wanted. Requests of the server get an empty answer."""
        assert self._process.stdout is not None
        ends = time.monotonic() + 30
        while time.monotonic() < ends:
            assert select.select([self._process.stdout], [], [], 30)[0], "no answer"
            size = 0
            while line := self._process.stdout.readline().strip():
                size = int(line.split(b":")[1]) if line.lower().startswith(b"content-length") else size
            found = json.loads(self._process.stdout.read(size))
            if wanted(found):
                return found
            if "id" in found and "method" in found:
                count = len(found["params"].get("items", [])) if found["method"] == "workspace/configuration" else 0
                answer = json.dumps({"jsonrpc": "2.0", "id": found["id"], "result": [None] * count}).encode()
                assert self._process.stdin is not None
                self._process.stdin.write(b"Content-Length: %d\r\n\r\n%s" % (len(answer), answer))
                self._process.stdin.flush()
        raise TimeoutError

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.mark.slow
def test_the_language_server_of_editors_reads_the_line(here: Path) -> None:
    """It marks a wrong key, completes a section, and has nothing to say about the recipe as it is."""
    program = os.environ.get("RANKZERO_YAML_SERVER") or shutil.which("yaml-language-server")
    if program is None:
        pytest.skip("needs yaml-language-server (npm) on PATH, or RANKZERO_YAML_SERVER")
    run("recipes", "copy", "multi30k")
    text = Path("multi30k.yaml").read_text(encoding="utf-8")
    server = LanguageServer(program)
    try:
        server.send("initialize", {"processId": None, "rootUri": here.as_uri(), "capabilities": {}}, wait=True)
        server.send("initialized", {})
        diagnostics = {}
        for name, content in {"good": text, "bad": text.replace("warmup_steps:", "warmup_stesp:")}.items():
            uri = (here / f"{name}.yaml").as_uri()
            Path(f"{name}.yaml").write_text(content, encoding="utf-8")
            document = {"uri": uri, "languageId": "yaml", "version": 1, "text": content}
            server.send("textDocument/didOpen", {"textDocument": document})
            found = server.until(
                lambda one, uri=uri: (
                    one.get("method") == "textDocument/publishDiagnostics" and one["params"]["uri"] == uri
                )
            )
            diagnostics[name] = [one["message"] for one in found["params"]["diagnostics"]]
        assert diagnostics["good"] == []
        assert any("warmup_stesp" in message for message in diagnostics["bad"]), diagnostics
        line = next(number for number, line in enumerate(text.splitlines()) if line.startswith("loop:")) + 1
        position = {"textDocument": {"uri": (here / "good.yaml").as_uri()}, "position": {"line": line, "character": 2}}
        completed = server.send("textDocument/completion", position, wait=True)["result"]["items"]
        assert "early_stopping" in {item["label"] for item in completed}
    finally:
        server.close()


# -- recipes copy ------------------------------------------------------------------------------------------------------


def test_recipes_copy(here: Path) -> None:
    assert "written: imdb.yaml, and rankzero.schema.json" in run("recipes", "copy", "imdb")
    text = Path("imdb.yaml").read_text(encoding="utf-8")
    assert text == (SHIPPED / "imdb.yaml").read_text(encoding="utf-8").replace(SHIPPED_LINE, LINE)
    assert Path("rankzero.schema.json").read_bytes() == SCHEMA.read_bytes()
    with pytest.raises(UsageError, match=r"imdb.yaml exists; --force"):
        run("recipes", "copy", "imdb")
    run("recipes", "copy", "imdb", "--force")
    run("recipes", "copy", "imdb", "my/own.yaml")
    assert load_recipe("my/own.yaml") == load_recipe("imdb")
    for words in (["copy"], ["copy", "imdb", "a.yaml", "b"], ["show", "imdb", "a.yaml"], ["copy", "imdb", "a.txt"]):
        with pytest.raises(UsageError):
            run("recipes", *words)


def test_the_schema_next_to_rows_is_no_data(here: Path) -> None:
    shutil.copy(SCHEMA, here)
    (here / "rows.json").write_text("[]")
    assert Root(str(here)).match("*.json", "train") == ["rows.json"]


# -- questions of init -------------------------------------------------------------------------------------------------


def write_rows() -> None:
    rows = [f"{n},words number {n},{'abc'[n % 3]},{'xy'[n % 2]}" for n in range(60)]
    Path("rows.csv").write_text("\n".join(["id,message,topic,other", *rows]), encoding="utf-8")


def test_enter_takes_every_guess(here: Path) -> None:
    write_rows()
    run("init", "rows.csv", "-o", "guessed.yaml")
    run("init", "rows.csv", "--ask", typed="\n" * 6)
    named = Path("rows.yaml").read_text(encoding="utf-8")
    assert named.replace("rows.yaml", "guessed.yaml") == Path("guessed.yaml").read_text(encoding="utf-8")


def test_answers_go_into_the_recipe(here: Path) -> None:
    write_rows()
    done = CliRunner().invoke(app, ["init", "rows.csv", "--ask"], input="message\nothr\nother\n\n48\n7\nmine.yaml\n")
    assert done.exception is None, done.exception
    assert "'othr' is none of them: id, message, topic, other" in done.stderr
    values = read_yaml(Path("mine.yaml"))
    assert values["task"]["labels"] == ["x", "y"]
    assert values["data"]["columns"] == {"text": "message", "label": "other"}
    assert (values["data"]["max_length"], values["loop"]["epochs"]) == (48, 7)
    assert "column 'other' has 2 classes" in done.stdout
    load_recipe("mine.yaml")


def test_nothing_is_asked_without_a_terminal(here: Path) -> None:
    write_rows()
    assert "written: rows.yaml" in run("init", "rows.csv", typed="")


# -- completion --------------------------------------------------------------------------------------------------------


def completed(*words: str) -> list[str]:
    """Return what bash gets for the last word, from a process as a shell starts it."""
    variables = {
        "_RANKZERO_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(words),
        "COMP_CWORD": str(len(words) - 1),
    }
    code = "import sys; sys.argv = ['rankzero']; from launch.cli import main; main()"
    environment = {**os.environ, **variables, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if line]


def test_words_are_completed(here: Path) -> None:
    for name in ("a", "b"):
        (here / "runs/group" / name).mkdir(parents=True)
        (here / "runs/group" / name / "manifest.json").write_text("{}")
    (here / "mine.yaml").write_text("")
    assert completed("rankzero", "train", "multi30k-") == ["multi30k-classic"]
    assert completed("rankzero", "lint", "mi") == ["mine.yaml"]
    assert completed("rankzero", "evaluate", "ru") == ["runs/group/a", "runs/group/b"]
    assert completed("rankzero", "train", "imdb", "--config", "ddp_b") == ["ddp_bf16"]
    assert completed("rankzero", "train", "imdb", "optim.label") == ["optim.label_smoothing="]
    assert "loop.early_stopping.patience=" in completed("rankzero", "train", "imdb", "loop.early")
    assert completed("rankzero", "train", "imdb", "model.adapter.ra") == ["model.adapter.rank="]
    assert completed("rankzero", "train", "no-such") == []


def test_the_script_for_a_shell_is_printed(here: Path) -> None:
    """Typer asks which program the parent is: a bash here, whatever runs the tests."""
    code = "import sys; sys.argv = ['rankzero', '--show-completion']; from launch.cli import main; main()"
    command = ["bash", "-c", '"$@"; exit $?', "_", sys.executable, "-c", code]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0 and re.search(r"complete .*rankzero", done.stdout), done.stdout + done.stderr
