"""Untrusted run directories: no command runs their code, and each exits with a documented code."""

from __future__ import annotations

import ast
import io
import json
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import review_helpers
from processes import next_logs, run_ranks
from slow import slow_except

import launch.cli
from trainer.cli import run_app
from trainer.data.cleaning import CLEANERS
from trainer.errors import CheckpointError, UsageError
from trainer.export.artifact_integrity import problems
from trainer.export.bench_runner import graphs
from trainer.export.program import source
from trainer.files import inside, read_json
from trainer.rundir import RunDir
from trainer.stages import file_facts
from trainer.tasks.classification.program import Classifier

pytestmark = pytest.mark.ranks

ROOT = Path(__file__).parent.parent
YES = b"yes\n" * 50
CODES = {0, 2, 3, 4, 5, 6}
LOADS = ("from_pretrained", "from_config", "pipeline")
REFUSED = {("torch", "load"), ("pickle", "load"), ("pickle", "loads"), ("joblib", "load"), ("dill", "load")}


# -- the source --------------------------------------------------------------------------------------------------------


def calls() -> list[tuple[str, ast.Call]]:
    """Every call in the package, with its place."""
    files = [path for folder in ("trainer", "launch") for path in sorted((ROOT / folder).rglob("*.py"))]
    return [
        (f"{path.relative_to(ROOT)}:{node.lineno}", node)
        for path in files
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
    ]


def name_of(call: ast.Call) -> tuple[str, str]:
    """The last two names of what is called: ("torch", "load"); "" before the name of a function, "?" before others."""
    at = call.func
    if not isinstance(at, ast.Attribute):
        return "", at.id if isinstance(at, ast.Name) else ""
    return (at.value.id if isinstance(at.value, ast.Name) else "?"), at.attr


def refused(call: ast.Call) -> bool:
    words = {word.arg: word.value for word in call.keywords}
    name = name_of(call)
    if name[1] in LOADS:
        trusted = words.get("trust_remote_code")
        return not (isinstance(trusted, ast.Constant) and trusted.value is False)
    safe = words.get("weights_only")
    if name == ("torch", "load") and isinstance(safe, ast.Constant) and safe.value is True:
        return False  # tensors alone, of a model's pytorch_model.bin
    shell = words.get("shell")
    plain = isinstance(shell, ast.Constant) and shell.value is False
    loader = words.get("Loader")
    unsafe_yaml = name == ("yaml", "load") and not (isinstance(loader, ast.Name) and loader.id == "_Loader")
    return name in REFUSED or name in (("", "exec"), ("", "eval")) or unsafe_yaml or (shell is not None and not plain)


def test_every_load_refuses_remote_code_and_pickles() -> None:
    found = calls()
    assert len([call for _, call in found if name_of(call)[1] in LOADS]) >= 5
    assert [place for place, call in found if refused(call)] == []
    plain = [place for place, call in found if name_of(call) == ("yaml", "safe_load") and place.startswith("trainer/")]
    assert plain == [], "a recipe is read by trainer.recipe.read_yaml, which limits aliases and names the file"


@pytest.mark.parametrize(
    ("code", "bad"),
    [
        ("AutoModel.from_pretrained(x, trust_remote_code=False)", False),
        ("AutoModel.from_pretrained(x)", True),
        ("library.from_config(x, trust_remote_code=trust)", True),
        ("pipeline('x', trust_remote_code=True)", True),
        ("torch.load(x)", True),
        ("torch.load(x, weights_only=False)", True),
        ("torch.load(x, weights_only=True)", False),
        ("pickle.loads(x)", True),
        ("yaml.load(x, Loader=yaml.Loader)", True),
        ("yaml.load(x, Loader=_Loader)", False),
        ("run(x, shell=True)", True),
        ("eval(x)", True),
        ("model.eval()", False),
    ],
)
def test_unsafe_loads_are_detected(code: str, bad: bool) -> None:
    (call,) = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)][:1]
    assert refused(call) is bad


# -- a run that wants to run code --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, reviews: Path) -> Path:
    """A finished run of a model of the transformers library, with all artifacts. To be copied."""
    folder = tmp_path_factory.mktemp("hostile")
    export = {"onnx": True, "int8": True, "bf16": True, "safetensors": True, "bench": 0}
    data = {"cleaning": ["unescape_html", "fold_whitespace"]}
    sections: dict[str, Any] = {"export": export, "data": data, "tokenizer": {"train": {"kind": "wordpiece"}}}
    model = {"kind": "pretrained", "architecture": "bert", "size": "tiny"}
    return review_helpers.train(folder, review_helpers.recipe(reviews, model, **sections), "run")


class Attack:
    """A copy of a run whose code writes `marker`."""

    def __init__(self, published: Path, folder: Path) -> None:
        self.path, self.marker = folder / "run", folder / "OWNED"
        shutil.copytree(published, self.path)
        shutil.copy(published.parent / "recipe.yaml", folder / "recipe.yaml")
        self.code = f"open({str(self.marker)!r}, 'w').write('code of the run directory ran')\n"

    def change(self, name: str, change: Callable[[Any], Any]) -> None:
        """Changes a JSON file."""
        path = self.path / name
        path.write_text(json.dumps(change(json.loads(path.read_text()))))

    def seal(self) -> None:
        """Makes the hashes of gate.json and of checkpoints those of the files that are there."""
        for gate in self.path.glob("export/*/gate.json"):
            names = [path.name for path in gate.parent.iterdir() if path.name != "gate.json"]
            self.change(
                str(gate.relative_to(self.path)),
                lambda g, at=gate.parent, names=names: g | {"files": {name: file_facts(at / name) for name in names}},
            )

    def run(self, *argv: object, codes: set[int] = CODES) -> str:
        """Runs a command with a stdin full of "yes"; its output."""
        words = [str(word) for word in argv]
        if words[0] in ("status", "logs"):
            ended_code, text = in_process(words)
        else:
            ended = run_ranks(words, next_logs(self.path), stdin=YES)
            ended_code, text = ended.code, ended.text
        assert not self.marker.exists(), (words, text)
        assert ended_code in codes, (words, text)
        assert "Traceback" not in text, (words, text)
        return text

    def every_command(self) -> None:
        run, folder = self.path, self.path.parent
        for backend in ("torch", "onnx", "int8", "bf16", "safetensors"):
            self.run("predict", run, "--backend", backend)
        for argv in (
            ("predict", run, "--stream"), ("embed", run), ("embed", run / "model"), ("evaluate", run),
            ("report", run), ("report", run, "--no-rows"), ("report", run, "--index", folder / "index.html"),
            ("ensemble", run, run), ("status", run), ("logs", run), ("export", run, "--check"), ("export", run),
            ("train", folder / "recipe.yaml", "--run", run),
            ("train", folder / "recipe.yaml", f"model.init_from={run}", "tokenizer={}", "--run", folder / "next"),
            ("bench", run, "--seconds", "30", "--threads", "1"),
        ):  # fmt: skip
            self.run(*argv)


def in_process(words: list[str]) -> tuple[int, str]:
    """A command of the launcher, which imports no torch."""
    out, before = io.StringIO(), (sys.argv, sys.stdin, sys.stdout, sys.stderr)
    sys.argv, sys.stdin, sys.stdout, sys.stderr = ["rankzero", *words], io.StringIO(YES.decode()), out, out
    try:
        return run_app(launch.cli.app), out.getvalue()
    finally:
        sys.argv, sys.stdin, sys.stdout, sys.stderr = before


@pytest.fixture
def attack(published: Path, tmp_path: Path) -> Attack:
    return Attack(published, tmp_path)


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, code: str) -> None:
        self.code = code

    def __reduce__(self) -> Any:
        return exec, (self.code,)


def test_code_and_pickles_in_a_run_are_not_executed(attack: Attack) -> None:
    """auto_map, run.py, pickles, kernels of the Hub, modules of well-known names beside the files."""
    code = {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil", "AutoModelForSequenceClassification": "evil.Evil"}
    tokenizer = {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
    added = {"auto_map": code, "attn_implementation": "evil/kernel", "_name_or_path": str(attack.path / "model")}
    for name in ("model", "export/bf16", "export/safetensors"):
        attack.change(
            f"{name}/config.json", lambda c: c | added | ({"trunk": c["trunk"] | added} if "trunk" in c else {})
        )
    attack.change("tokenizer/tokenizer_config.json", lambda c: c | {"auto_map": tokenizer, "tokenizer_class": "Evil"})
    for folder in (attack.path / name for name in (".", "model", "tokenizer", "export/onnx", "export/bf16")):
        for name in ("evil", "numpy", "tokenizers", "sitecustomize", "modeling_bert", "conftest"):
            (folder / f"{name}.py").write_text(attack.code + "class Evil: pass\n")
        for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "adapter_model.bin", "model.pkl"):
            (folder / name).write_bytes(pickle.dumps(Payload(attack.code)))
    for folder in (attack.path / "export" / name for name in ("onnx", "int8")):
        (folder / "run.py").write_text((folder / "run.py").read_text() + "\n" + attack.code)
    attack.seal()
    attack.every_command()


@pytest.mark.slow
def test_bench_runs_a_program_of_this_package(attack: Attack) -> None:
    """The artifact with another run.py is measured, by our program; other files of the folder are not imported."""
    folder = attack.path / "export/onnx"
    (folder / "run.py").write_text((folder / "run.py").read_text() + "\n" + attack.code)
    attack.seal()
    assert problems(folder) == []  # its hashes are right
    attack.run("bench", attack.path, "--seconds", "120", "--threads", "1", codes={0})
    assert "onnx" in read_json(attack.path / "export/benchmark.json")["contestants"]
    answer, *_ = graphs(attack.path, "onnx", "trainer.tasks.classification.program:Classifier")
    assert "label" in next(iter(answer(["a good film"], {"beam_size": 1})))
    assert not attack.marker.exists()


@pytest.mark.slow
def test_int8_is_not_made_with_the_program_of_the_run(attack: Attack) -> None:
    """An export makes int8 of onnx, and its gate runs the program."""
    folder = attack.path / "export/onnx"
    (folder / "run.py").write_text(attack.code)
    shutil.rmtree(attack.path / "export/int8")
    attack.seal()
    attack.run("export", attack.path, codes={0})
    assert attack.code not in (folder / "run.py").read_text()  # made again
    assert (attack.path / "export/int8/run.py").read_text() == (folder / "run.py").read_text()


@pytest.mark.slow
def test_settings_do_not_become_code(attack: Attack) -> None:
    step = f'x": {attack.code.strip()}, "y'
    for settings in (
        {"cleaning": [step]},
        {"cleaning": 5},
        {"program": "os"},
        {"program": None},
        {"cleaning": ["eval"]},
    ):
        attack.change("export/onnx/settings.json", lambda old, new=settings: old | new)
        attack.seal()
        text = attack.run("predict", attack.path, "a film", "--backend", "onnx", codes={2, 4})
        assert "onnx" in text
        attack.change("export/onnx/settings.json", lambda old: old | {"cleaning": [], "program": "classification"})
    with pytest.raises(UsageError, match="unknown step"):
        source(Classifier, [*CLEANERS, step])


PYTHON_TAG = "!!python/object/apply:os.system ['touch {marker}']"
LAUGHS = "\n".join(
    ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}, *a{n - 1}]" for n in range(1, 30))]
)
RECIPES = {
    "a tag of Python": f"name: {PYTHON_TAG}\n",
    "a tag in a value": f"config: {PYTHON_TAG}\n",
    "billions of values": LAUGHS,
    "endless": "a: &a [*a]",
    "deep": "[" * 100_000,
    "no mapping": "- 1\n- 2\n",
    "other types": "task: {kind: [1]}\ndata: 5\nmodel: null\n",
    "binary": "\0\1",
}


@pytest.mark.parametrize("kind", slow_except(list(RECIPES), "a tag in a value"))
def test_a_malicious_recipe_is_refused(attack: Attack, kind: str) -> None:
    recipe = attack.path / "recipe.yaml"
    text = RECIPES[kind].replace("{marker}", str(attack.marker))
    whole = recipe.read_text().replace("model:\n", "model:\n  " + text) if text.startswith("config") else text
    recipe.write_text(whole)
    others = [("export",), ("bench",), ("embed", "a")] if kind == "a tag in a value" else []
    for command, *more in [("predict", "a"), ("report",), *others]:
        attack.run(command, attack.path, *more, codes={2, 3})
    attack.run("export", attack.path, "--check", codes={4})
    attack.run("train", attack.path.parent / "recipe.yaml", "--run", attack.path, codes={2})


# -- a run that wants to reach out -------------------------------------------------------------------------------------

OUTSIDE = ("../../../outside.txt", "/etc/passwd", "..", "", "a\0b", "model/../../../outside.txt")


def test_names_do_not_lead_out_of_a_run(attack: Attack) -> None:
    outside = attack.path.parent / "outside.txt"
    outside.write_text("a secret")
    known = file_facts(outside)
    assert [inside(attack.path, name) for name in (*OUTSIDE, None, 5)] == [None] * 8
    assert inside(attack.path, "model/config.json") == attack.path / "model/config.json"
    told = dict.fromkeys(OUTSIDE, known["sha256"])
    attack.change("manifest.json", lambda m: m | {"stages": m["stages"] | {"card": {"of": told}}})
    for gate in ("onnx", "int8", "bf16"):
        attack.change(f"export/{gate}/gate.json", lambda g: g | {"files": g["files"] | dict.fromkeys(OUTSIDE, known)})
    (step, *_) = sorted((attack.path / "checkpoints").glob("step-*"), reverse=True)
    attack.change(
        f"checkpoints/{step.name}/manifest.json", lambda m: m | {"files": m["files"] | dict.fromkeys(OUTSIDE)}
    )
    (attack.path / "export/left_out.json").write_text(json.dumps({name: name for name in OUTSIDE}))
    (attack.path / "checkpoints/step-../../../outside").parent.mkdir(parents=True, exist_ok=True)
    text = attack.run("export", attack.path, "--check", codes={4})
    assert "names '/etc/passwd', which is not in the run" in text
    for argv in (("predict", "a", "--backend", "onnx"), ("report",), ("export",)):
        attack.run(argv[0], attack.path, *argv[1:])
    attack.run("train", attack.path.parent / "recipe.yaml", "--run", attack.path)
    assert outside.read_text() == "a secret"


def test_a_graph_does_not_read_files_elsewhere(attack: Attack) -> None:
    """External data of a graph: a location out of its folder is an error of that artifact."""
    onnx = pytest.importorskip("onnx")
    for name in ("onnx", "int8"):
        (graph,) = (attack.path / "export" / name).glob("*.onnx")
        model = onnx.load(str(graph))
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.ClearField("float_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", "../../../recipe.yaml"), ("offset", "0"), ("length", "16")):
            entry = tensor.external_data.add()
            entry.key, entry.value = key, value
        graph.write_bytes(model.SerializeToString())
    attack.seal()
    for name in ("onnx", "int8"):
        attack.run("predict", attack.path, "a film", "--backend", name, codes={4})
    attack.run("export", attack.path, "--check", codes={0, 4})


def test_links_are_not_written_through(attack: Attack) -> None:
    """metrics.jsonl, lock and others as links to files of the user."""
    folder = attack.path.parent
    victims = {name: folder / f"victim-{name}" for name in ("metrics.jsonl", "lock", "status.json", "manifest.json")}
    victims |= dict.fromkeys(("README.md", "evaluation/test/report.html", "failed-rank.json"), folder / "victim")
    for name, victim in victims.items():
        victim.write_text("precious")
        (attack.path / name).unlink(missing_ok=True)
        (attack.path / name).symlink_to(victim)
    recipe = folder / "recipe.yaml"
    for argv in (("export",), ("report",), ("evaluate",)):
        attack.run(*argv, attack.path)
    attack.run("train", recipe, "loop.max_steps=10", "--allow-change", "loop.max_steps", "--run", attack.path)
    assert {victim.read_text() for victim in victims.values()} == {"precious"}


GRAPH, TRAIN = ("predict", "a", "--backend", "onnx"), ("train",)
FILES = {
    "manifest.json": [("report",), TRAIN],
    "status.json": [("report",)],
    "failed-rank.json": [TRAIN],
    "export/onnx/gate.json": [GRAPH, ("export", "--check")],
    "export/onnx/settings.json": [GRAPH],
    "export/left_out.json": [GRAPH, ("report",)],
    "model/config.json": [("predict", "a")],
    "tokenizer/tokenizer_config.json": [("predict", "a")],
    "evaluation/test/metrics.json": [("report",)],
}
VALUES = {
    "deep": "[" * 200_000,
    "list": "[1, 2]",
    "number": "1" * 5000,
    "text": '"x"',
    "other": '{"files": 5, "stages": 7}',
}


@pytest.mark.parametrize("name", slow_except(list(FILES), next(iter(FILES))))
def test_json_of_another_form_is_named(attack: Attack, name: str) -> None:
    for value in VALUES.values():
        (attack.path / name).write_text(value)
        for command, *more in FILES[name]:
            words = [attack.path, *more]
            if command == "train":
                words = [attack.path.parent / "recipe.yaml", "--run", attack.path]
            attack.run(command, *words)


def test_json_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.files.MOST_JSON", 1000)
    (path := tmp_path / "manifest.json").write_text(json.dumps(["x"] * 1000))
    with pytest.raises(CheckpointError, match=r"manifest\.json has 5,000 bytes; 1,000 are the most"):
        read_json(path)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_json(tmp_path)
    assert RunDir(tmp_path / "no").reasons() == {}
