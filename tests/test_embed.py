"""`rankzero embed`: vectors are the library's own hidden states, in order, whatever the lengths and batches."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import processes
import pytest
import torch
from processes import next_logs, run_ranks
from pyarrow import parquet
from review_helpers import BAD, GOOD, OTHER, recipe, written
from transformers import AutoModel, AutoTokenizer, BertModel

from trainer import embed, predict
from trainer.engine.embedder import WINDOW
from trainer.models.folder import read_folder
from trainer.recipe_loading import Recipe

draw = random.Random(5)
TEXTS = [" ".join(draw.choices(GOOD + BAD + OTHER, k=draw.randint(1, 30))) for _ in range(WINDOW["mean"] + 40)]


def states(folder: Path, text: str) -> np.ndarray:
    """What the tutorial writes: BertModel(**inputs).last_hidden_state, of one text by itself."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), BertModel.from_pretrained(folder).eval()
    inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=40)
    with torch.no_grad():
        return model(**inputs).last_hidden_state[0].numpy()


def command(tmp_path: Path, *argv: object, stdin: bytes = b"") -> Any:
    return run_ranks(["embed", *argv], next_logs(tmp_path / "command"), stdin=stdin)


@pytest.fixture(scope="module")
def run(reviews: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An own encoder with the mean of its tokens, and a cleaning that takes tags out."""
    made = recipe(reviews, data={"cleaning": ["strip_tags", "fold_whitespace"]}, evaluation={"splits": []})
    folder = tmp_path_factory.mktemp("embed")
    processes.train(written(folder, made), folder / "run").check()
    return folder / "run"


# -- vectors -----------------------------------------------------------------------------------------------------------


def test_they_are_berts_last_hidden_states(bert: Path) -> None:
    found = {pooling: list(embed(bert, TEXTS, pooling=pooling)) for pooling in ("tokens", "mean", "cls")}
    assert all([record.text for record in records] == TEXTS for records in found.values())
    for i in [*range(0, len(TEXTS), 60), len(TEXTS) - 1]:
        expected = states(bert, TEXTS[i])
        np.testing.assert_allclose(found["tokens"][i].vector, expected, atol=1e-5)
        np.testing.assert_allclose(found["mean"][i].vector, expected.mean(0), atol=1e-5)
        np.testing.assert_allclose(found["cls"][i].vector, expected[0], atol=1e-5)
        assert found["tokens"][i].tokens[0] == "[CLS]"
        assert len(found["tokens"][i].tokens) == len(expected)


def test_the_vectors_of_a_run_are_the_input_of_its_head(run: Path) -> None:
    """Its trunk, its cleaning, its length."""
    texts = ["a good film", "<b>bad</b>  story", " ".join(OTHER * 6)]
    vectors = np.stack([record.vector for record in embed(run, texts)])
    weights = {name: tensor.numpy() for name, tensor in read_folder(run / "model").items()}
    logits = vectors @ weights["head.weight"].T + weights["head.bias"]
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = [list(record["probabilities"].values()) for record in predict(run, texts)]
    np.testing.assert_allclose(p, expected, atol=1e-5)
    [plain] = embed(run, ["bad story"])
    np.testing.assert_allclose(vectors[1], plain.vector, atol=1e-6)
    [tokens], [short] = embed(run, texts[2:], pooling="tokens"), embed(run, texts[2:], pooling="tokens", max_length=8)
    assert tokens.vector.shape == (32, 32)
    assert short.vector.shape == (8, 32)
    assert short.tokens[-1] == "[SEP]"


@pytest.mark.parametrize("objective", ["mlm", "causal"])
def test_language_models_give_vectors_too(reviews: Path, tmp_path: Path, objective: str) -> None:
    model = {"kind": "pretrained", "architecture": {"mlm": "bert", "causal": "gpt2"}[objective], "size": "tiny"}
    made = recipe(
        reviews, model, tokenizer={"train": {"kind": "wordpiece", "vocab_size": 90}}, evaluation={"splits": []},
        data={"validation": None}, loop={"max_steps": 1},
    )  # fmt: skip
    task = {"kind": "language_modeling", "objective": objective}
    made = Recipe.parse(made.model_dump(mode="json") | {"task": task})
    folder = tmp_path / "run"
    processes.train(written(tmp_path, made), folder).check()
    theirs: Any = AutoModel.from_pretrained(folder / "model").eval()
    found = list(embed(folder, ["a good film", " ".join(OTHER * 6)], pooling="tokens"))
    assert len(found[1].vector) == 32, "cut to data.max_length"
    assert [record.truncated for record in found] == [False, True]
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    for record in found:
        ids = torch.tensor([tokenizer.convert_tokens_to_ids(record.tokens)])
        with torch.no_grad():
            expected = theirs(input_ids=ids).last_hidden_state[0].numpy()
        np.testing.assert_allclose(record.vector, expected, atol=1e-5)
    [record] = embed(folder, ["a good film"], pooling="cls")
    standing = found[0].vector[-1 if objective == "causal" else 0]  # the first token of a causal model sees no other
    np.testing.assert_allclose(record.vector, standing, atol=1e-5)


def test_an_endless_source_is_read_as_far_as_needed(bert: Path) -> None:
    """Constant memory: no more than a window of texts is held."""
    read = 0

    def endless() -> Iterator[str]:
        nonlocal read
        for text in itertools.cycle(TEXTS):
            read += 1
            yield text

    records = embed(bert, endless())
    first = [record.text for record in itertools.islice(records, WINDOW["mean"] + 1)]
    assert first == TEXTS[: WINDOW["mean"] + 1]
    assert read == 2 * WINDOW["mean"]


# -- the command -------------------------------------------------------------------------------------------------------


def test_files_are_read_without_pickle(bert: Path, tmp_path: Path) -> None:
    """A line ends at a line feed only; the lines of more than one window are written as they come."""
    texts = [*TEXTS, "good\x85film", ""]
    stdin = "".join(f"{text}\n" for text in texts).encode()
    expected = np.stack([record.vector for record in embed(bert, texts)])
    array, table, tokens = tmp_path / "x.npy", tmp_path / "x.parquet", tmp_path / "tokens.parquet"
    assert command(tmp_path, bert, "--out", array, stdin=stdin).check().out[0] == f"{array}: {len(texts)} texts\n"
    found = np.load(array, allow_pickle=False)
    assert (found.dtype, found.shape) == (np.float32, (len(texts), 32))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    command(tmp_path, bert, "--out", table, stdin=stdin).check()
    read = parquet.read_table(table)
    assert read.column("text").to_pylist() == texts
    np.testing.assert_array_equal(np.array(read.column("vector").to_pylist(), np.float32), found)
    command(tmp_path, bert, "--out", tokens, "--pooling", "tokens", stdin=stdin).check()
    rows = parquet.read_table(tokens).to_pylist()
    assert [row["text"] for row in rows] == texts
    for i in (0, 70, len(texts) - 1):
        assert len(rows[i]["tokens"]) == len(rows[i]["states"])
        np.testing.assert_allclose(np.mean(rows[i]["states"], 0), expected[i], atol=1e-5)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_without_a_file_there_are_json_lines(bert: Path, tmp_path: Path) -> None:
    ended = command(tmp_path, bert, "a good film", "bad", "--pooling", "tokens").check()
    records = [json.loads(line) for line in ended.out[0].splitlines()]
    assert [record["text"] for record in records] == ["a good film", "bad"]
    assert [list(record) for record in records] == [["text", "tokens", "vector"]] * 2
    np.testing.assert_allclose(records[0]["vector"], states(bert, "a good film"), atol=1e-5)


def test_unsupported_requests_exit_with_2(bert: Path, run: Path, recipe: Path, tmp_path: Path) -> None:
    translation = tmp_path / "translation"
    processes.train(recipe, translation, "loop.max_steps=1", "evaluation.splits=[]").check()
    before = set(tmp_path.iterdir())
    out = tmp_path / "x.npy"
    for words, told in (
        ([bert, "a", "--pooling", "max"], ["--pooling max", "cls, mean, tokens"]),
        ([bert, "a", "--out", tmp_path / "x.csv"], ["x.csv", ".npy or .parquet"]),
        ([bert, "a", "--out", out, "--pooling", "tokens"], ["not an array", ".parquet", "cls or mean"]),
        ([bert, "a", "--out", tmp_path / "no/x.npy"], ["no/x.npy cannot be written", "No such file"]),
        ([bert, "--out", out], ["there is no text"]),
        ([bert, "a", "--max-length", "41"], ["--max-length 41", "40 positions"]),
        ([run, "a", "--max-length", "33"], ["--max-length 33", "data.max_length=32"]),
        ([bert, "a", "--max-length", "2"], ["--max-length 2", "3 or more"]),
        ([tmp_path, "a"], ["neither a run directory", "nor a model"]),
        (["/no/such/model", "a"], ["'/no/such/model' cannot be loaded", "pkg://package/folder"]),
        ([translation, "a"], ["task translation", "runs of classifiers"]),
    ):
        ended = command(tmp_path, *words).check(2)
        assert "Traceback" not in ended.text
        assert all(word in ended.text for word in told), (told, ended.text)
    left = {path for path in tmp_path.iterdir() if not path.name.startswith("command")}
    assert left == before, "nothing half-written is left"
