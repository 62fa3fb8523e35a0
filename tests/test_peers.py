"""benchmarks/peers: the parts that need no peer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.harness import machine
from benchmarks.peers.__main__ import candidates, parse
from benchmarks.peers.cut import cut, spaced
from benchmarks.peers.environments import PEERS, REQUIREMENTS, python_of, set_up
from benchmarks.peers.jobs import JOBS, batches_of
from benchmarks.peers.table import interval, results, show
from trainer.recipe_loading import load_recipe

ROOT = Path(__file__).parent.parent


def test_the_interval_is_that_of_the_sign_test() -> None:
    assert interval([2.0, 1.0, 3.0]) == {"median": 2.0, "low": 1.0, "high": 3.0, "coverage": 0.75}
    six = interval([1, 2, 3, 4, 5, 6])
    assert (six["low"], six["high"], six["coverage"]) == (1, 6, pytest.approx(0.96875))
    nine = interval(range(1, 10))  # binomial(9, 1/2): 1 - 2 * (1 + 9) / 512
    assert (nine["low"], nine["high"], nine["coverage"]) == (2, 8, pytest.approx(1 - 20 / 512))
    assert interval([1.0])["coverage"] == 0


def block(tokens: int, seconds: float, cpu: float) -> dict[str, Any]:
    return {"tokens": tokens, "positions": 2 * tokens, "seconds": seconds, "cpu_seconds": cpu}


def test_ratios_are_formed_within_a_round() -> None:
    """The second round is slow for both. A ratio of medians would be another one."""
    blocks = {
        "ours": [block(100, 1, 1), block(100, 10, 2), block(100, 1, 1)],
        "peer": [block(100, 2, 1), block(100, 40, 2), block(100, 3, 1)],
    }
    found = results(blocks, "ours", "tokens")
    assert found["peer"]["ours_is_times_faster"]["median"] == 3
    assert found["peer"]["by_processor_time"]["median"] == 1
    assert found["peer"]["padding"] == 0.5
    assert "ours_is_times_faster" not in found["ours"]


def test_the_table_names_what_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    found = results({"ours": [block(10, 1, 1)], "peer": [block(10, 2, 1)]}, "ours", "tokens")
    scored = {"metric": "f1", "scores": {"peer": {"f1": 0.5, "loss": 9}}}
    show({"ner": {"training": found, "scored": scored, "left_out": {"eole": "a log\nno environment"}}})
    shown = capsys.readouterr().out
    assert "2.00 (2.00 - 2.00)" in shown
    assert "f1 0.5" in shown and "loss" not in shown
    assert "left out" in shown and "no environment" in shown


def test_candidates_of_a_job(tmp_path: Path) -> None:
    options = parse(["--data", str(tmp_path), "--peers", str(tmp_path), "--peer", "joeynmt", "tutorial"])
    assert options.job == list(JOBS)
    found, missing = candidates("translation", options)
    assert [title for title, *_ in found] == ["rankzero, bf16", "tutorial's loop, bf16"]
    assert "--setup" in missing["JoeyNMT"]
    python = python_of("joeynmt", tmp_path)
    python.parent.mkdir(parents=True)
    python.touch()
    found, missing = candidates("translation", options)
    assert not missing
    titles = {title: own["precision"] for title, name, own in found if "precision" in own}
    assert titles["JoeyNMT, fp32"] == titles["rankzero, fp32"] == "no"  # ours in fp32, too
    found, _ = candidates("sentences", options)
    assert [own["variant"] for *_, own in found] == [(), ("loop.fuse_lanes=4",)]


@pytest.mark.parametrize("words", [["--job", "chess"], ["--peer", "chess"], []])
def test_what_is_unknown_or_missing_is_refused(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANKZERO_DATA", raising=False)
    with pytest.raises(SystemExit) as error:
        parse(words)
    assert error.value.code == 2


def test_peers_modules_and_requirements_exist(tmp_path: Path) -> None:
    for name, peer in PEERS.items():
        assert set(peer.jobs) <= set(JOBS), name
        for module in peer.jobs.values():
            assert (ROOT / "benchmarks" / f"{module.replace('.', '/')}.py").exists(), module
    assert {path.stem for path in REQUIREMENTS.glob("*.txt")} == set(PEERS) - {"tutorial"}
    for path in REQUIREMENTS.glob("*.txt"):
        pins = dict(line.split("==") for line in path.read_text().splitlines())
        assert pins and "torch" not in pins, path.name  # all have that of rankzero
    assert set_up(tmp_path, ["tutorial"]) == []  # it has no environment of its own
    assert "torch" in machine()["packages"]


def test_batches_of_a_step() -> None:
    recipe = load_recipe("sick-entailment", ["data.root=x"])  # 4 lanes of 512 tokens and at most 8 rows
    assert batches_of(recipe, [{"input_ids": [1] * 20}]) == (32, 1)
    assert batches_of(recipe, [{"input_ids": [1] * 90}, {"input_ids": [1] * 110, "trg": [1] * 166}]) == (16, 1)
    recipe = load_recipe("imdb", ["data.root=x"])  # 4 lanes of 2,048 tokens
    assert batches_of(recipe, [{"input_ids": [1] * 250}, {"input_ids": [1] * 150}]) == (10, 4)
    for job in JOBS.values():
        for words in [(), *job.variants.values()]:
            load_recipe(job.recipe, ["data.root=x", *job.overrides, *words])


def test_a_cut_corpus_has_evenly_spaced_rows(tmp_path: Path) -> None:
    assert spaced(10, 0) == spaced(10, 10) == spaced(10, 11) == list(range(10))
    assert spaced(10, 4) == [0, 2, 5, 7]
    root, out = tmp_path / "corpus", tmp_path / "out"
    (root / "parts").mkdir(parents=True)
    (root / "a.tsv").write_text("head\n0\n1\n2\n3\n")
    (root / "b.jsonl").write_text("0\n1\n2\n3\n")
    pq.write_table(pa.table({"row": range(6)}), root / "parts/c.parquet")
    cut(root, out, [("*.tsv", 2), ("b.jsonl", 0), ("parts/*.parquet", 3)])
    assert (out / "a.tsv").read_text() == "head\n0\n2\n"
    assert (out / "b.jsonl").read_text() == "0\n1\n2\n3\n"
    assert pq.read_table(out / "parts/c.parquet")["row"].to_pylist() == [0, 2, 4]
    with pytest.raises(SystemExit, match="--data"):
        cut(root, out, [("missing.jsonl", 1)])
