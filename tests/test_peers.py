"""benchmarks/peers: the parts that need no peer."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from result_checks import RESULTS, sections

from benchmarks.corpus import prepare
from benchmarks.harness import machine
from benchmarks.peers.__main__ import candidates, decode, parse
from benchmarks.peers.cut import cut, spaced
from benchmarks.peers.environments import PEERS, REQUIREMENTS, python_of, set_up
from benchmarks.peers.jobs import JOBS, batches_of, step_tokens
from benchmarks.peers.table import interval, results, rows, show
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
    assert found["peer"]["by_processor_time"]["median"] == found["peer"]["in_total"] == 1
    assert found["peer"]["padding"] == 0.5
    assert "ours_is_times_faster" not in found["ours"] and "in_fp32" not in found["peer"]


def test_blocks_of_unequal_rows_are_compared_in_total() -> None:
    """The peer's sampler gives it the cheap rows first."""
    ours, peer = [block(100, 1, 2), block(100, 1, 2)], [block(100, 1, 1), block(100, 1, 4)]
    found = results({"ours": ours, "peer": peer}, "ours", "tokens")["peer"]
    assert found["in_total"] == 5 / 4


def test_a_peer_in_fp32_is_compared_with_ours_in_fp32_too() -> None:
    speeds = {"rankzero, bf16": 1, "rankzero, fp32": 3, "peer, fp32": 6, "peer, bf16": 4}
    found = results({name: [block(100, s, s)] for name, s in speeds.items()}, "rankzero, bf16", "tokens")
    assert found["peer, fp32"]["ours_is_times_faster"]["median"] == 6
    assert found["peer, fp32"]["in_fp32"]["by_processor_time"]["median"] == 2
    assert "in_fp32" not in found["rankzero, fp32"] and "in_fp32" not in found["peer, bf16"]


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
    assert [own["variant"] for *_, own in found] == [(), ("loop.fuse_lanes=1",)]


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
    rows = [{"input_ids": [1] * 10, "trg": [1] * 10}, {"input_ids": [1] * 30, "trg": [1] * 30}]
    assert batches_of(820, "tagger", rows) == (41, 1)  # labels are no tokens
    assert batches_of(4000, "translation", rows) == (50, 2)
    assert batches_of(7900, "classifier", rows) == (99, 4)
    for job in JOBS.values():
        for words in [(), *job.variants.values()]:
            load_recipe(job.recipe, ["data.root=x", *job.overrides, *words])


def test_tokens_of_a_step_are_those_of_the_lanes(tmp_path: Path) -> None:
    """Each lane has 32 rows of 9 tokens, [CLS] and [SEP] included, where 10 positions of padding are allowed."""
    lines = "".join(json.dumps({"text": "a b c d e f g", "label": "AB"[n % 2]}) + "\n" for n in range(384))
    (tmp_path / "train.jsonl").write_text(lines)
    words = [
        f"data.root={tmp_path}", "data.train=train.jsonl", "data.validation=null", "data.test=null",
        "loop.early_stopping.metric=loss", "data.tokens_per_batch=512", "data.lanes=2", "task.labels=[A, B]",
    ]  # fmt: skip
    prepared = prepare(tmp_path, words, tmp_path / "tokenizer", "imdb")
    assert step_tokens(prepared.recipe, prepared.task()) == 2 * 32 * 9


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


def test_the_page_of_results_has_the_rows_of_the_files() -> None:
    files = sorted(RESULTS.glob("peers_*.json"))
    page = [line.replace("**", "") for line in sections()["Peers"]]
    for file in files:
        expected = rows(
            json.loads(file.read_text(encoding="utf-8"))["jobs"], f"[JSON](../benchmarks/results/{file.name})"
        )
        assert expected and set(expected) - set(page) == set()


def test_translations_that_end_at_once_are_not_compared(tmp_path: Path) -> None:
    """Two tokens a sentence in the time in which others write thirty looked like a slow decoder."""

    class Candidate:
        def __init__(self, name: str, *texts: str) -> None:
            self.name, self.texts = name, texts

        def ask(self, command: str) -> dict[str, Any]:
            assert command == "translate"
            return {"rows": 2, "seconds": 1.0, "cpu_seconds": 1.0, "texts": [*self.texts]}

    def tokenizer(texts: list[str], add_special_tokens: bool) -> dict[str, list[list[str]]]:
        return {"input_ids": [text.split() for text in texts]}

    work: Any = SimpleNamespace(
        prepared=SimpleNamespace(task=lambda: SimpleNamespace(tokenizer=tokenizer)),
        references=["a dog sleeps on the grass", "a man"],
    )
    started: Any = [Candidate("rankzero, bf16", "a a a a", "a"), Candidate("eole, bf16", "a", "")]
    left_out: dict[str, str] = {}
    found = decode(started, work, parse(["--data", str(tmp_path), "--decodings", "2"]), left_out)
    assert [*found] == ["rankzero, bf16"]
    assert [block["tokens"] for block in found["rankzero, bf16"]["blocks"]] == [7, 7]
    assert left_out == {"eole, bf16, decoding": "its translations have 3 tokens and the references 10"}


def test_rows_have_the_scores_of_both() -> None:
    training = results({"rankzero, bf16": [block(10, 1, 1)], "peer": [block(10, 2, 3)]}, "rankzero, bf16", "tokens")
    scored = {"metric": "f1", "scores": {"rankzero, bf16": {"f1": 0.75}, "peer": {"f1": 0.5}}}
    expected = "| `ner`, training | peer | 3.00 | 3.00 (3.00 to 3.00) | 2.00 (2.00 to 2.00) | f1 0.75 | f1 0.5 | LINK |"
    assert rows({"ner": {"training": training, "scored": scored}}, "LINK") == [expected]
