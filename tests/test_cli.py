"""The commands: their output, and the exit code of each mistake."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import hooks
import pytest
from processes import TIMEOUT, Ended, next_logs, read_lines, run_ranks, status, train
from slow import slow_except

from trainer.cli import app, run_app

pytestmark = pytest.mark.ranks

ROOT = Path(__file__).parent.parent
MAIN = "import sys; from launch.cli import main; main()"
NEL = "\u0085"  # a line end for str.splitlines, and a character of IMDB's reviews


def command(tmp_path: Path, *argv: object, stdin: bytes = b"", hook: Any = None) -> Ended:
    return run_ranks(argv, next_logs(tmp_path / "command"), stdin=stdin, hook=hook)


@pytest.fixture(scope="module")
def run(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run. Read only, but for evaluation/."""
    path = tmp_path_factory.mktemp("cli") / "run"
    train(recipe, path, "loop.max_steps=6").check()
    return path


# -- without torch -----------------------------------------------------------------------------------------------------


def test_help_answers_without_torch() -> None:
    """`rankzero --help` must answer in under half a second; importing torch alone takes longer."""
    code = (
        "import sys\nfrom launch.cli import app\nfrom trainer.cli import run_app\n"
        "sys.argv = ['rankzero', *sys.argv[1:]]\ncode = run_app(app)\n"
        "heavy = {'torch', 'transformers', 'datasets', 'accelerate', 'numpy'} & sys.modules.keys()\n"
        "assert not heavy, heavy\nsys.exit(code)"
    )
    for words in (["--help"], ["train", "--help"]):
        done = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "Usage" in done.stdout
    assert "--allow-change" in done.stdout
    assert "--nproc" in done.stdout


def test_recipes_are_listed_with_a_line_each(tmp_path: Path) -> None:
    lines = command(tmp_path, "recipes").check().out[0].splitlines()
    names = [line.split()[0] for line in lines]
    assert names == sorted(path.stem for path in (ROOT / "trainer" / "recipe" / "shipped").glob("*.yaml"))
    assert all(len(line.split(maxsplit=1)[1]) > 20 for line in lines)


def test_the_schema_is_json(tmp_path: Path) -> None:
    schema = json.loads(command(tmp_path, "recipes", "--schema").check().out[0])
    assert {"task", "data", "model", "optim", "loop", "evaluation", "export", "launch"} <= set(schema["properties"])


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["train", "multi3k"], 2, ["'multi3k'", "did you mean 'multi30k'"]),
        (["train", "missing.yaml"], 2, ["missing.yaml", "does not exist", "rankzero recipes"]),
        (["train"], 2, ["RECIPE"]),
        (["train", "multi30k", "--frsh"], 2, ["--frsh"]),
        (["trian", "multi30k"], 2, ["trian"]),
        (["train", "multi30k", "optim.lrr=1", "dta=2"], 2, ["2 problems", "did you mean 'lr'", "did you mean 'data'"]),
        (["predict", "run", "--Hallo"], 2, ["no such option: --Hallo", "--backend", "-- '--Hallo'"]),
        (["embed", "run", "--pooing", "mean"], 2, ["no such option: --pooing", "--pooling"]),
        (["train", "demo-translation", "--run", __file__], 2, ["--run", "is a file"]),
        (["train", "demo-translation", "--run", f"{__file__}/x"], 2, ["--run", "is a file"]),
        (["train", "multi30k", "optim.lr"], 2, ["optim.lr", "key=value"]),
        (["evaluate", "missing"], 2, ["missing", "not a run directory"]),
        (["predict", "missing", "text"], 2, ["missing", "not a run directory"]),
        (["evaluate", "missing", "--split", "train"], 2, ["--split train", "validation and test"]),
    ],
)
def test_usage_errors_exit_with_2(tmp_path: Path, argv: list[str], code: int, words: list[str]) -> None:
    ended = command(tmp_path, *argv, hook=partial(os.chdir, tmp_path)).check(code)
    assert "Traceback" not in ended.text
    assert all(word in ended.text for word in words), ended.text
    assert not (tmp_path / "runs").exists(), "nothing was begun"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["data.root=/nowhere/at/all"], ["/nowhere/at/all"]),
        (["data.train=trian.jsonl"], ["data.train='trian.jsonl'", "nearest", "train.jsonl"]),
        (["data.lanes=201"], ["data.lanes=201", "200 rows"]),
        (["data.columns={src: ger, trg: en}"], ["column 'ger'", "train.jsonl"]),
        (["data.test=empty.jsonl"], ["data.test", "no usable row"]),
    ],
)
def test_bad_data_exits_with_3_before_the_model_is_built(
    recipe: Path, corpus: Path, tmp_path: Path, words: list[str], told: list[str]
) -> None:
    moved = Path(shutil.copytree(corpus, tmp_path / "corpus"))
    (moved / "empty.jsonl").touch()
    build = partial(hooks.at_call, "trainer.engine.session.build_model")  # would kill it
    run = tmp_path / "run"
    ended = train(recipe, run, f"data.root={moved}", *words, world=2, hook=build).check(3)
    assert "Traceback" not in ended.text
    assert all(word in ended.text for word in told), ended.text
    assert not ended.err[1], "one of them speaks"
    assert (status(run)["state"], status(run)["exit_code"]) == ("failed", 3)
    assert status(run)["error"] in ended.err[0]


def test_a_bad_row_is_reported_by_the_rank_that_reads_it(recipe: Path, corpus: Path, tmp_path: Path) -> None:
    """A file that changes while it is read: only the rank that meets the row knows."""
    moved = Path(shutil.copytree(corpus, tmp_path / "corpus"))
    run = tmp_path / "run"
    ended = train(recipe, run, f"data.root={moved}", world=2, hook=partial(hooks.spoil_rows, of_rank=1))
    assert ended.codes == [3, 3], ended.text
    assert "spoiled" in ended.text
    assert "spoiled" in status(run)["error"]
    assert "Traceback" not in ended.text
    assert not (run / "failed-rank.json").exists()


# -- a run -------------------------------------------------------------------------------------------------------------


def test_a_run_writes_the_documented_files(run: Path, recipe: Path) -> None:
    names = {path.name for path in run.iterdir()}
    assert names >= {
        *("recipe.yaml", "status.json", "manifest.json", "metrics.jsonl", "checkpoints", "tokenizer", "model"),
        "evaluation",
    }
    assert "lock" not in names
    assert not [name for name in names if name.startswith(".")]
    manifest = json.loads((run / "manifest.json").read_text())
    assert (manifest["engine"], manifest["ranks"], manifest["format"]) == ("single", 1, 1)
    assert {"torch", "accelerate", "tokenizers", "python"} <= manifest["versions"].keys()
    assert manifest["data"]["train"]["rows"] == 200
    lines = read_lines(run / "metrics.jsonl")
    assert [line["step"] for line in lines if line["split"] == "train"] == list(range(1, 7))
    keys = {"step", "epoch", "split", "loss", "lr", "grad_norm", "tokens_per_second", "padding", "memory"}
    keys |= {"tokens_per_second_per_device", "data_wait", "rank_wait"}
    assert keys <= lines[0].keys()
    scores = json.loads((run / "evaluation/test/metrics.json").read_text())
    assert {"loss", "perplexity", "bleu", "bleu_ci95", "chrf", "ter", "signature", "rows"} <= scores.keys()
    assert scores["rows"] == 8


def test_evaluate_prints_the_metrics_that_it_writes(run: Path, tmp_path: Path) -> None:
    before = {split: (run / f"evaluation/{split}/metrics.json").read_bytes() for split in ("validation", "test")}
    ended = command(tmp_path, "evaluate", run, "--split", "validation").check()
    assert json.loads(ended.out[0]) == json.loads(before["validation"])
    for split, content in before.items():
        assert (run / f"evaluation/{split}/metrics.json").read_bytes() == content
    shorter = command(tmp_path, "evaluate", run, "evaluation.max_rows=3").check()
    assert json.loads(shorter.out[0])["rows"] == 3
    assert "On the 3 rows of the test split" in (run / "evaluation/test/report.html").read_text(encoding="utf-8")
    assert "## Results: test, 3 rows" in (run / "README.md").read_text(encoding="utf-8")


def test_a_run_without_a_model_exits_with_4(run: Path, tmp_path: Path) -> None:
    bare = Path(shutil.copytree(run, tmp_path / "bare"))
    shutil.rmtree(bare / "model")
    for argv in (["evaluate", bare], ["predict", bare, "x"]):
        ended = command(tmp_path, *argv).check(4)
        assert "has no model yet" in ended.text
        assert "Traceback" not in ended.text


def test_predict_reads_lines_and_keeps_their_order(run: Path, tmp_path: Path) -> None:
    texts = ["der Hund sieht ein Boot oft.", "", f"der{NEL}Mann\u2028malt", "ein " * 200, "x", "der rot Ball\rheute"]
    ended = command(tmp_path, "predict", run, stdin="\n".join(texts).encode()).check()
    records = [json.loads(line) for line in ended.out[0].split("\n")[:-1]]
    assert [record["text"] for record in records] == texts
    assert [list(record)[3:] for record in records] == [[], [], [], ["truncated"], [], []], "200 words are too many"
    assert all(list(record)[:3] == ["text", "prediction", "score"] for record in records)
    assert all(isinstance(record["prediction"], str) and record["score"] < 0 for record in records)
    again = command(tmp_path, "predict", run, texts[0], texts[4]).check()
    assert [json.loads(line)["text"] for line in again.out[0].splitlines()] == [texts[0], texts[4]]


def test_predict_ends_with_the_last_line(run: Path, tmp_path: Path) -> None:
    for stdin, count in ((b"", 0), (b"\n", 1), (b"a\nb\n", 2), (b"a\r\nb", 2)):
        ended = command(tmp_path, "predict", run, stdin=stdin).check()
        assert len(ended.out[0].splitlines()) == count
    assert json.loads(ended.out[0].splitlines()[0])["text"] == "a"


@pytest.mark.parametrize("text", ["- Hallo", "-1", "-- x", "", " ", "-x y"])
def test_predict_answers_texts_that_begin_like_options(run: Path, tmp_path: Path, text: str) -> None:
    ended = command(tmp_path, "predict", run, text, "--set", "beam_size=1").check()
    assert json.loads(ended.out[0])["text"] == text


@pytest.mark.slow
def test_output_of_another_encoding_is_the_same_json(run: Path) -> None:
    env = os.environ | {"PYTHONIOENCODING": "ascii", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", MAIN, "predict", str(run), "Größe 😀", "--set", "beam_size=1"]
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Gr\\u00f6\\u00dfe \\ud83d\\ude00" in done.stdout
    assert json.loads(done.stdout)["text"] == "Größe 😀"


@pytest.mark.parametrize(
    ("redirection", "code"),
    slow_except([("<&-", 0), (">&-", 0), ("2>&-", 0), ("> /dev/full", 4), ("< /dev/null", 0)], ("> /dev/full", 4)),
)
def test_closed_and_full_streams_give_no_traceback(run: Path, redirection: str, code: int) -> None:
    text = "" if "<" in redirection else "hi"
    words = [sys.executable, "-c", MAIN, "predict", str(run), text or None, "--set", "beam_size=1"]
    line = " ".join(shlex.quote(word) for word in words if word)
    done = subprocess.run(["bash", "-c", f"{line} {redirection}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr


def test_the_version_is_printed() -> None:
    done = subprocess.run([sys.executable, "-c", MAIN, "--version"], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == f"rankzero {importlib.metadata.version('rankzero')}\n"


def test_predict_reports_unreadable_input_and_missing_backends(run: Path, tmp_path: Path) -> None:
    ended = command(tmp_path, "predict", run, stdin=b"a\n\xff\n").check(3)
    assert "stdin line 2 is not UTF-8" in ended.err[0]
    ended = command(tmp_path, "predict", run, "a", "b\udcff").check(3)
    assert "argument 2 is not UTF-8 at character 1" in ended.err[0]
    ended = command(tmp_path, "predict", run, "x", "--backend", "onnx").check(2)
    assert "onnx" in ended.err[0]


def test_predict_answers_the_other_lines(run: Path, tmp_path: Path) -> None:
    """A cleaning step that fails on one line."""
    ended = command(tmp_path, "predict", run, stdin=b"der Hund\nein B\xc3\xa4r\nx\n", hook=hooks.fail_on_bears).check(3)
    records = [json.loads(line) for line in ended.out[0].splitlines()]
    assert [record["text"] for record in records] == ["der Hund", "ein Bär", "x"]
    assert records[1] == {"text": "ein Bär", "error": "ValueError: no bears"}
    assert "prediction" in records[0]
    assert "prediction" in records[2]
    assert 'predict: 1 lines have an "error" instead of a prediction: line 2. All other' in ended.err[0]
    long = b"&#" + b"1" * 5000 + b";\nein Hund\n"
    assert len(command(tmp_path, "predict", run, stdin=long).check().out[0].splitlines()) == 2


@pytest.mark.slow
@pytest.mark.parametrize("more", [["--debug"], []])
def test_an_error_of_the_user_prints_its_message_alone(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, more: list[str]
) -> None:
    words = ["trainer", "train", str(recipe), "loop.max_stepz=3", "--run", str(tmp_path / "run"), *more]
    monkeypatch.setattr(sys, "argv", words)
    assert run_app(app) == 2
    printed = capsys.readouterr().err
    assert "did you mean 'max_steps'" in printed
    assert "Traceback" not in printed and len(printed.splitlines()) == 2

    def broken() -> None:
        raise KeyError("a bug")

    assert run_app(broken) == 1
    assert "Traceback" in capsys.readouterr().err


def test_debug_trains_a_slice_in_a_separate_directory(recipe: Path, tmp_path: Path) -> None:
    here = partial(os.chdir, tmp_path)
    for seed in (3, 4):  # a debug run is scratch: the second replaces the first, whatever its recipe
        run_ranks(["train", recipe, "--debug", f"seed={seed}"], next_logs(tmp_path / "debug"), hook=here).check()
        assert status(tmp_path / "runs/tiny-debug")["step"] == 20
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["tiny-debug"]


def test_profile_writes_a_trace(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ("loop.max_steps=10", "loop.eval_every=100", "evaluation.splits=[]", "data.validation=null")
    train(recipe, run, *words, "track=[tensorboard]", "--profile").check()
    assert json.loads((run / "profile.json").read_text())["traceEvents"]
    assert list((run / "tensorboard").iterdir())


# -- the other ways in -------------------------------------------------------------------------------------------------

LAUNCHERS: dict[str, tuple[list[str], int]] = {
    "python -m trainer": ([sys.executable, "-m", "trainer"], 1),
    "rankzero": ([sys.executable, "-c", MAIN], 1),
    # "--", because torchrun takes "--run" for one of its own options, wherever it stands
    "torchrun": (
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
            *("-m", "--", "trainer"),
        ],
        2,
    ),
    "accelerate launch": (
        [
            *(sys.executable, "-m", "accelerate.commands.launch"),
            *("--config_file", str(ROOT / "accelerate_configs/cpu.yaml"), "-m", "trainer"),
        ],
        2,
    ),
}


@pytest.fixture(scope="module")
def expected(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], bytes]:
    """The weights after 6 steps on so many ranks."""
    folder = tmp_path_factory.mktemp("expected")

    @cache
    def weights(ranks: int) -> bytes:
        train(recipe, folder / str(ranks), "loop.max_steps=6", "evaluation.splits=[]", world=ranks).check()
        return (folder / str(ranks) / "model/model.safetensors").read_bytes()

    return weights


@pytest.mark.parametrize("launcher", slow_except(LAUNCHERS, "rankzero"))
def test_every_launcher_trains_the_same_weights(
    recipe: Path, expected: Callable[[int], bytes], tmp_path: Path, launcher: str
) -> None:
    start, ranks = LAUNCHERS[launcher]
    run = tmp_path / "run"
    words = ["train", str(recipe), "loop.max_steps=6", "evaluation.splits=[]", "--run", str(run)]
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*start, *words], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 0, done.stderr
    assert "done:" in done.stdout
    assert json.loads((run / "manifest.json").read_text())["ranks"] == ranks
    assert (run / "model/model.safetensors").read_bytes() == expected(ranks)


def test_the_python_api(recipe: Path, expected: Callable[[int], bytes], tmp_path: Path) -> None:
    program = f"""
from pathlib import Path
from trainer import Recipe, evaluate, predict, train
recipe = Recipe.load(Path({str(recipe)!r}), ["loop.max_steps=6"])
run = train(recipe, overrides=["evaluation.splits=[test]"], run={str(tmp_path / "run")!r})
assert (run.step, run.path) == (6, Path({str(tmp_path / "run")!r})), run
assert run.metrics.keys() == {{"test"}}
assert evaluate(run.path) == run.metrics["test"]
texts = ["der Hund sieht ein Boot oft.", ""]
assert [record["text"] for record in predict(run.path, texts)] == texts
"""
    env = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/model/model.safetensors").read_bytes() == expected(1)


def test_a_demo_corpus_needs_no_files(tmp_path: Path) -> None:
    """The shipped demo recipe, a slice of it."""
    run = tmp_path / "run"
    words = ["data.train=train?rows=300&shards=2", "data.validation=validation?rows=20", "data.test=test?rows=20"]
    sizes = ["model.d_model=32", "model.feed_forward=64", "tokenizer.train.vocab_size=300", "loop.max_steps=4"]
    sizes += ["export.model=false", "export.onnx=false", "export.int8=false"]
    ended = run_ranks(["train", "demo-translation", *words, *sizes, "--run", run], next_logs(run)).check()
    assert "->" in ended.out[0], "samples are shown"
    assert str(run) in ended.out[0], "and where the results are"
