"""`rankzero bench`: measurements, the time limit, the recommendation, and when it is repeated."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sklearn  # noqa: F401 - at its first import it writes into os.environ
from export_helpers import Exported, load, write_answers
from rich.console import Console

from trainer import api
from trainer.cli import app, run_app
from trainer.errors import DataError, UsageError
from trainer.export import bench_runner, benchmark, conversions, gates
from trainer.export.benchmark import LEAST_ROUNDS, bench_run, bench_seconds, bench_stage
from trainer.export.benchmark_table import show
from trainer.export.stage import export_run
from trainer.files import read_json, write_json
from trainer.report.card import write_card
from trainer.report.report import write_report
from trainer.rundir import RunDir
from trainer.tasks.classification.export import ClassificationExport
from trainer.tasks.translation.export import TranslationExport

SECONDS = 180.0  # the processes of a busy machine may take a minute to start; a tiny run is measured in one
Report = dict[str, Any]


@pytest.fixture(scope="module", autouse=True)
def few_rounds() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench_runner, "ROUNDS", 2)
        patch.setattr(bench_runner, "REQUESTS", 2)
        patch.setattr(benchmark, "LEAST_ROUNDS", 1)
        yield


def evaluated(made: Exported, to: Path) -> RunDir:
    """A copy of the run, as it is after its evaluation."""
    shutil.copytree(made.run.path, to, ignore=shutil.ignore_patterns("artifact"))
    run = RunDir(to)
    write_answers(run, made)
    return run


@pytest.fixture(scope="module")
def run(encoder: Exported, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """An evaluated classifier with both artifacts. Read only, but for its benchmark."""
    made = evaluated(encoder, tmp_path_factory.mktemp("bench") / "run")

    def copied(task: Any, model: Any, folder: Path) -> None:
        for path in encoder.folder.iterdir():
            shutil.copyfile(path, folder / path.name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gates, "in_fresh_process", lambda folder, lines, **_: (list(load(folder)(lines)), 0.0))
        patch.setattr(conversions, "write_artifact", copied)
        export_run(made, progress=lambda text: None)
    return made


@pytest.fixture(scope="module")
def report(run: RunDir) -> Report:
    return bench_run(run, seconds=SECONDS, threads=1)


# -- what is measured --------------------------------------------------------------------------------------------------


def check_figures(report: Report) -> None:
    assert report["seconds"] <= report["budget_seconds"]
    for course in report["courses"]:
        cells = course["contestants"]
        assert {"baseline", "torch"} <= cells.keys()
        for name, cell in cells.items():
            known = [cell[f"p{p}_ms"] for p in (50, 95, 99) if cell["requests"] >= 100 / (100 - p)]
            assert [cell[f"p{p}_ms"] for p in (50, 95, 99)] == [*known, *[None] * (3 - len(known))]
            assert known == sorted(known)
            assert cell["requests"] >= course["rounds"] >= 1
            assert cell["tokens_per_second"] >= cell["rows_per_second"] > 0
            assert cell["peak_bytes"] > 1e7
            for key, itself in (("times_baseline", "baseline"), ("times_torch", "torch")):
                ratio = cell[key]
                assert 0 < ratio["low"] <= ratio["median"] <= ratio["high"]
                overall = cell["rows_per_second"] / cells[itself]["rows_per_second"]
                assert ratio["low"] * 0.999 <= overall * 1.001
                if name == itself:
                    assert ratio == {"median": 1.0, "low": 1.0, "high": 1.0}
    assert all(about["cold_start_seconds"] > 0 for about in report["contestants"].values())


def test_a_classifier_with_its_artifacts(report: Report, run: RunDir) -> None:
    check_figures(report)
    assert read_json(run.export / "benchmark.json") == report
    assert [course["batch"] for course in report["courses"]] == [1, 8, 32]
    assert {course["beam"] for course in report["courses"]} == {1}
    first, *others = ({*course["contestants"]} for course in report["courses"])
    assert first >= {"baseline", "torch", "bf16", "onnx", "int8"}
    assert "int8-batch" not in first
    assert all("int8-batch" in names for names in others)
    costs = report["contestants"]
    assert costs["int8"]["bytes"] < costs["onnx"]["bytes"]
    assert costs["onnx"]["cold_start_seconds"] < costs["torch"]["cold_start_seconds"]
    assert costs["onnx"]["peak_bytes"] < costs["torch"]["peak_bytes"]  # there is no torch in its process
    assert costs["int8-batch"]["neighbours"] > 0
    assert set(report["recommended"]) == {"1", "8", "32"}
    assert set(report["recommended"].values()) <= {"torch", "bf16", "onnx", "int8"}
    assert costs["bf16"]["bytes"] < 0.6 * costs["torch"]["bytes"]
    assert report["threads"] == 1
    assert report["machine"]["versions"]["onnxruntime"]
    assert not [what for what in report["left_out"] if "cuda" in what]


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.slow
def test_a_compiled_classifier_takes_part(run: RunDir, tmp_path: Path) -> None:
    copy = RunDir(shutil.copytree(run.path, tmp_path / "run"))
    found = bench_run(copy, seconds=SECONDS, threads=1, compiled=True)
    check_figures(found)
    assert "compiled" in found["courses"][0]["contestants"]  # so small a model may be slower of it, and ends there
    assert "compiled" not in found["left_out"]
    assert "compiled" not in found["recommended"].values()  # it is no artifact


def test_a_table_and_the_report_show_it(report: Report, run: RunDir) -> None:
    console = Console(width=80, record=True, force_terminal=False)
    show(report, console)
    text = console.export_text()
    assert "…" not in text  # nothing is cut in 80 columns
    assert "× baseline: times as fast as PyTorch, eager, fp32, every text padded to data.max_length" in text
    assert f"batch 8: deploy {report['recommended']['8']} (" in text
    page = write_report(run, "test").read_text(encoding="utf-8")
    assert 'href="#speed"' in page
    section = page[page.index('<section id="speed"') :].partition("</section>")[0]
    assert section.count("<svg") == 1
    for name, about in report["contestants"].items():
        assert f'<th scope="row">{name}</th><td>{about["cold_start_seconds"]:.1f} s</td>' in section
    median = report["courses"][0]["contestants"]["onnx"]["times_baseline"]["median"]
    assert f"<td>{median:.2f}</td>" in section
    assert f"onnx {median:.2f}" in section  # for those who do not see the figure
    (run.export / "benchmark.json").rename(run.export / "aside.json")
    try:
        assert 'id="speed"' not in write_report(run, "test").read_text(encoding="utf-8")
    finally:
        (run.export / "aside.json").rename(run.export / "benchmark.json")


@pytest.mark.slow
def test_a_translator_without_artifacts_from_the_command_line(
    translator: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = evaluated(translator, tmp_path / "run")
    write_report(run, "test")
    monkeypatch.setattr("sys.argv", ["trainer", "bench", str(run.path), "--seconds", str(SECONDS), "--threads", "1"])
    assert run_app(app) == 0
    said = capsys.readouterr().out
    assert f"left out: onnx: not published: rankzero export {run.path}" in said
    found = read_json(run.export / "benchmark.json")
    check_figures(found)
    assert [(course["batch"], course["beam"]) for course in found["courses"]] == [
        (batch, beam) for batch in (1, 8, 32) for beam in (1, 5)
    ]
    assert found["recommended"] == {"1": "torch", "8": "torch", "32": "torch"}
    assert "Speed of the artifacts" in (run.evaluation("test") / "report.html").read_text(encoding="utf-8")


# -- when it is done again ---------------------------------------------------------------------------------------------


def test_the_stage_is_skipped_until_an_input_changes(
    report: Report, run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, measured = RunDir(tmp_path / "run"), []
    shutil.copytree(run.path, copy.path)
    monkeypatch.setattr(benchmark, "bench_run", lambda *args, **options: measured.append(options))
    same = {"seconds": SECONDS, "threads": 1}
    assert bench_stage(copy, **same) == report
    assert measured == []
    assert bench_stage(copy, seconds=SECONDS + 1) == report, "however long somebody has measured"
    assert bench_stage(copy, seconds=0) is None
    assert measured == []
    for path in (copy.export / "int8" / "model.onnx", copy.evaluation("test") / "predictions.jsonl"):
        before = path.read_bytes()
        path.write_bytes(before + b"\n")
        measured.clear()
        bench_stage(copy, **same)
        assert len(measured) == 1
        path.write_bytes(before)
        assert bench_stage(copy, **same) == report
    shutil.rmtree(copy.evaluation("test"))
    assert bench_stage(copy, **same) is None


def test_seconds_after_a_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short run has no benchmark, a long one the usual seconds, and a value in the recipe wins."""
    run = RunDir(tmp_path)
    assert bench_seconds(run, None) == benchmark.SECONDS, "no manifest"
    now = 1_800_000_000.0
    monkeypatch.setattr(benchmark.time, "time", lambda: now)
    for elapsed, seconds in ((20, 0.0), (119, 0.0), (120, 12.0), (200, 20.0), (300, 30.0), (86_400, 30.0)):
        started = datetime.fromtimestamp(now - elapsed, UTC).strftime("%Y-%m-%dT%H:%M:%S%z")
        run.manifest.write_text(json.dumps({"started": started, "starts": []}), encoding="utf-8")
        assert bench_seconds(run, None) == seconds
        assert bench_seconds(run, 5.0) == 5.0
        assert bench_seconds(run, 0.0) == 0.0
    earlier = datetime.fromtimestamp(now - 600, UTC).strftime("%Y-%m-%dT%H:%M:%S%z")
    run.manifest.write_text(json.dumps({"started": started, "starts": [{"started": earlier}]}), encoding="utf-8")
    assert bench_seconds(run, None) == benchmark.SECONDS, "resumed"


def test_the_card_shows_a_separate_benchmark(
    run: RunDir, report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = RunDir(shutil.copytree(run.path, tmp_path / "run"))
    (copy.export / "benchmark.json").unlink()
    assert "The fastest on the machine" not in write_card(copy).read_text(encoding="utf-8")
    monkeypatch.setattr(api, "bench_run", lambda run, *_, **__: write_json(run.export / "benchmark.json", report))
    api.bench(copy.path)
    assert "The fastest on the machine" in (copy.path / "README.md").read_text(encoding="utf-8")


def test_too_little_time_ends_no_training(run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDir(shutil.copytree(run.path, tmp_path / "run"))
    monkeypatch.setattr(benchmark, "LEAST_SECONDS", 0.0)
    with pytest.raises(UsageError, match="0 seconds are too few to measure anything on this machine"):
        bench_run(run, seconds=0.1, threads=1)
    (run.export / "benchmark.json").unlink(missing_ok=True)
    assert bench_stage(run, seconds=0.1, threads=1) is None


# -- what is recommended -----------------------------------------------------------------------------------------------


def test_only_artifacts_that_passed_are_recommended(report: Report, run: RunDir, tmp_path: Path) -> None:
    """The fastest is int8 in batches, then int8, then bf16: none of which may be deployed once they are damaged."""
    copy = RunDir(tmp_path / "run")
    shutil.copytree(run.path, copy.path)
    order = ("int8-batch", "int8", "bf16", "compiled", "onnx", "torch", "baseline")
    cells = {name: {"rows_per_second": 100.0 - i} for i, name in enumerate(order)}
    courses = [{"batch": 8, "beam": 1, "rounds": LEAST_ROUNDS, "contestants": cells}]
    assert recommended(copy, courses, 1) == {"8": "int8"}
    verdict = read_json(copy.export / "int8" / "gate.json")
    write_json(copy.export / "int8" / "gate.json", {**verdict, "passed": False, "failed": ["accuracy"]})
    assert recommended(copy, courses, 1) == {"8": "bf16"}
    candidates, left_out = benchmark._candidates(copy, ClassificationExport, False)
    assert not {"int8", "int8-batch"} & {*candidates}
    assert "failed its gate: accuracy" in left_out["int8"]
    assert "not for this task" in benchmark._candidates(copy, TranslationExport, True)[1]["compiled"]
    (copy.export / "bf16" / "model.safetensors").write_bytes(b"other")
    assert recommended(copy, courses, 1) == {"8": "onnx"}
    assert recommended(copy, courses, 5) == {}


@pytest.mark.parametrize("rounds", [1, 2, LEAST_ROUNDS])
def test_nothing_is_recommended_from_a_few_rounds(report: Report, run: RunDir, tmp_path: Path, rounds: int) -> None:
    """Text, JSON, report and card say why."""
    copy = RunDir(shutil.copytree(run.path, tmp_path / "run"))
    courses = [{**course, "rounds": rounds, "warm_up": rounds > 1} for course in report["courses"]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "LEAST_ROUNDS", LEAST_ROUNDS)
        found = {**report, "courses": courses, **benchmark._recommendations(copy, courses, 1, 30.0)}
    write_json(copy.export / "benchmark.json", found)
    enough = rounds >= LEAST_ROUNDS
    assert [name is not None for name in found["recommended"].values()] == [enough] * 3
    assert found["not_recommended"].keys() == (set() if enough else {"1", "8", "32"})
    console = Console(width=80, record=True, force_terminal=False)
    show(found, console)
    text, card = console.export_text(), write_card(copy).read_text(encoding="utf-8")
    page = write_report(copy, "test").read_text(encoding="utf-8")
    assert (
        ("batch 8: deploy" in text)
        == ("The fastest on the machine" in card)
        == ("marks what to deploy" in page)
        == enough
    )
    for said in (text, card, page):
        assert (f"{rounds} of 5 rounds: give it more time" in said) != enough


@pytest.mark.parametrize(("requests", "known"), [(1, 0), (2, 1), (19, 1), (20, 2), (99, 2), (100, 3)])
def test_a_percentile_needs_a_request_beyond_it(requests: int, known: int) -> None:
    found = list(bench_runner.latencies([n / 1000 for n in range(requests)]).values())
    assert [value is not None for value in found] == [True] * known + [False] * (3 - known)


# -- rounds of candidates whose speeds are known -----------------------------------------------------------------------

FAKE = """
import json, os, sys, time
from multiprocessing.connection import Connection
speeds = {"baseline": 4.0, "torch": 2.0, "bf16": 16.0, "onnx": 1.0}
run, _, sockets = sys.argv[1:]
sockets = json.loads(sockets)
for name in sockets:
    if os.fork():
        continue
    for other in sockets:
        if other != name:
            os.close(sockets[other])
    connection = Connection(sockets[name])
    while True:
        try:
            job = json.loads(connection.recv_bytes())
        except EOFError:
            break
        with open(os.path.join(run, name + ".jsonl"), "a") as log:
            log.write(json.dumps([job["batch"], job["texts"]]) + "\\n")
        if name == "hangs":
            time.sleep(600)
        if name == "dies":
            sys.exit(3)
        n = len(job["texts"])
        reply = {"seconds": [speeds[name] / 1000 * job["batch"]] * (n // job["batch"]), "tokens": 7 * n}
        connection.send_bytes(json.dumps(reply | {"cpu_seconds": 1.0, "peak_bytes": 1000 * n}).encode())
    os._exit(0)
os._exit(0)
"""


def recommended(run: RunDir, courses: list[Report], beam: int) -> dict[str, str]:
    return benchmark._recommendations(run, courses, beam, 30.0)["recommended"]


Measure = Callable[..., tuple[list[Report], dict[str, str]]]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Measure:
    """Returns courses, and the errors of candidates."""
    (tmp_path / "fake.py").write_text(FAKE, encoding="utf-8")
    monkeypatch.setattr(bench_runner, "WORKER", str(tmp_path / "fake.py"))

    def measured(*more: str, seconds: float = 60.0, start: float = 60.0) -> tuple[list[Report], dict[str, str]]:
        scenarios, texts = [(batch, {"beam_size": 1}) for batch in (1, 8)], [f"text {i}" for i in range(11)]
        with bench_runner.started(["baseline", "torch", *more], tmp_path, {}, 1) as candidates:
            now = time.monotonic()
            courses = bench_runner.measure(candidates, scenarios, texts, now + min(start, seconds), now + seconds)
        return courses, {candidate.name: candidate.error for candidate in candidates if candidate.error}

    return measured


def test_processes_that_start_too_slowly_are_not_waited_for(fake: Measure) -> None:
    """After a training, the start may take a part of the time. What is left then would measure nothing."""
    began = time.monotonic()
    assert fake(seconds=60.0, start=0.001) == ([], {})
    assert time.monotonic() - began < 30


def test_ratios_of_known_speeds(fake: Measure, tmp_path: Path) -> None:
    courses, errors = fake("onnx", "bf16", seconds=20.0)
    assert not errors
    ratios = {name: cell["times_baseline"]["median"] for name, cell in courses[0]["contestants"].items()}
    assert ratios == pytest.approx({"baseline": 1.0, "torch": 2.0, "onnx": 4.0, "bf16": 0.25})
    assert courses[0]["contestants"]["onnx"]["times_torch"]["high"] == pytest.approx(2.0)
    assert courses[0]["contestants"]["torch"]["tokens_per_second"] == pytest.approx(7 / 0.002)
    assert courses[1]["contestants"]["torch"]["p50_ms"] == pytest.approx(16.0)
    assert courses[0]["warm_up"]
    assert courses[0]["rounds"] == 2
    logs = {name: [json.loads(line) for line in (tmp_path / f"{name}.jsonl").open()] for name in ("torch", "onnx")}
    assert logs["torch"][1:] == logs["onnx"][1:]  # the same texts, in the same order
    assert [len(texts) for _, texts in logs["torch"]] == [
        1,
        1,
        8,
        2,
        16,
        2,
        16,
    ]  # after the warm-up, as many texts as there is time for


def test_a_candidate_that_dies_is_left_out(fake: Measure) -> None:
    courses, errors = fake("dies", "onnx", seconds=20.0)
    assert all(set(course["contestants"]) == {"baseline", "torch", "onnx"} for course in courses)
    assert errors == {"dies": "its process ended"}


def test_the_budget_ends_a_candidate_that_hangs(fake: Measure) -> None:
    begun = time.monotonic()
    assert fake("hangs", seconds=3.0) == ([], {})
    assert time.monotonic() - begun < 60


# -- mistakes ----------------------------------------------------------------------------------------------------------


def test_mistakes_are_reported_before_anything_starts(
    run: RunDir, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def code(*words: object) -> int:
        monkeypatch.setattr("sys.argv", ["trainer", "bench", *map(str, words)])
        return run_app(app)

    monkeypatch.setattr(benchmark, "started", None)
    assert code(run.path, "--seconds", 1) == 2
    assert "--seconds 1: allowed are 5 or more" in capsys.readouterr().err
    assert code(run.path, "--threads", 0) == 2
    assert "--threads 0: allowed are 1 or more" in capsys.readouterr().err
    assert code(tmp_path / "none") == 2
    assert "not a run directory" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    bare = RunDir(tmp_path / "bare")
    shutil.copytree(run.path, bare.path)
    shutil.rmtree(bare.evaluation("test"))
    with pytest.raises(DataError, match="no evaluated split"):
        api.bench(bare.path)
    text = bare.recipe.read_text(encoding="utf-8")
    bare.recipe.write_text(text.replace("kind: classification", "kind: poetry"), encoding="utf-8")
    assert code(bare.path) == 2
