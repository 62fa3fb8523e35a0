"""Transformer-XL: relative positions, the memory, strips of the text of a lane, and complete runs."""

from __future__ import annotations

import json
import random
from collections import Counter
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import hooks
import numpy as np
import processes
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lane_helpers import PROPERTY
from language_helpers import causal_recipe, write_documents
from review_helpers import metrics, train, written
from safetensors.numpy import load_file
from slow import slow_except
from torch import Tensor

from trainer import evaluate, predict
from trainer.engine.trained_run import TrainedRun
from trainer.errors import UsageError
from trainer.models.configs import TransformerXLConfig
from trainer.models.transformer_xl import RelativeAttention, TransformerXL, relative_shift
from trainer.recipe_loading import Recipe, check_recipe
from trainer.rundir import RunDir
from trainer.task.registry import make_task

SEGMENT, MEMORY, LAYERS = 16, 48, 2
WORDS = [f"{a}{b}" for a in "bdgklmnprst" for b in "aeiou"]


def document(draw: random.Random) -> str:
    """A list of words, twice: the second time only the past tells what comes, further back than a segment."""
    words = draw.choices(WORDS, k=draw.randint(18, 22))
    return " ".join(words + words)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_documents(tmp_path_factory.mktemp("twice"), document, train=400, test=40)


def recipe(root: Path | str = "x", **sections: Any) -> Any:
    own = {
        "name": "twice",
        "data": {
            "order": "sequential", "block_rows": 32, "tokens_per_batch": 3 * SEGMENT, "max_length": SEGMENT,
        },
        "tokenizer": {"train": {"kind": "byte_bpe", "vocab_size": 330}},
        "model": {
            "kind": "transformer_xl", "layers": LAYERS, "d_model": 32, "heads": 2, "feed_forward": 64,
            "memory": MEMORY,
        },
        "optim": {"name": "adamw", "lr": 1e-3, "schedule": "constant"},
    }  # fmt: skip
    return causal_recipe(root, own, sections)


def noisy(**changes: Any) -> TransformerXL:
    """With biases that matter, and no dropout."""
    torch.manual_seed(0)
    config = TransformerXLConfig(d_model=16, heads=2, feed_forward=32, layers=3, dropout=0.0, **changes)
    model = TransformerXL(config, vocab_size=50).eval()
    for name, p in model.named_parameters():
        if "bias" in name:
            torch.nn.init.normal_(p)
    return model


def positions(*lengths: int) -> Tensor:
    return torch.tensor([[p for n in lengths for p in range(n)]])


NOTHING = torch.zeros(1, 3, 0, 16)


# -- the model ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "past"), [(1, 0), (5, 0), (4, 7), (1, 3)])
def test_the_relative_shift_is_a_lookup_by_distance(length: int, past: int) -> None:
    keys = length + past
    by_distance = torch.randn(2, 3, length, keys)
    shifted = relative_shift(by_distance)
    for i in range(length):
        for j in range(past + i + 1):
            distance = past + i - j
            assert torch.equal(shifted[..., i, j], by_distance[..., i, keys - 1 - distance])


def test_attention_is_the_papers_formula() -> None:
    """Every score computed on its own: q·k + q·Wr + u·k + v·Wr (section 3.3), for each query and key."""
    torch.manual_seed(0)
    config = TransformerXLConfig(d_model=8, heads=2, attention="eager")
    attention = RelativeAttention(config)
    torch.nn.init.normal_(attention.content_bias)
    torch.nn.init.normal_(attention.distance_bias)
    context, waves = torch.randn(1, 5, 8), torch.randn(5, 8)
    x = context[:, 2:]
    mask = torch.full((3, 5), -1e9).triu(3)[None, None]
    found = attention(x, context, waves, mask)
    q = attention.query(x)[0].view(3, 2, 4)
    k, v = attention.key_value(context)[0].view(5, 2, 2, 4).unbind(1)
    r = attention.distance(waves).view(5, 2, 4)
    expected = torch.zeros(3, 2, 4)
    for h in range(2):
        for i in range(3):
            scores = [
                (q[i, h] + attention.content_bias[h, 0]) @ k[j, h]
                + (q[i, h] + attention.distance_bias[h, 0]) @ r[4 - (2 + i - j), h]
                for j in range(2 + i + 1)
            ]
            weights = (torch.stack(scores) / 2).softmax(0)
            expected[i, h] = weights @ v[: 2 + i + 1, h]
    assert torch.allclose(found[0], attention.output(expected.flatten(1)), atol=1e-5)


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("size", [1, 6, 9])
def test_with_enough_memory_segments_give_the_logits_of_one_long_one(norm: str, size: int) -> None:
    model, ids = noisy(norm=norm), torch.randint(0, 50, (1, 24))
    uninterrupted, _ = model(ids, positions(24), NOTHING, 0)
    memory, parts = NOTHING, []
    for at in range(0, 24, size):
        logits, memory = model(ids[:, at : at + size], positions(24)[:, at : at + size], memory, 24)
        parts.append(logits)
    assert memory.shape == (1, 3, 24, 16)
    assert not memory.requires_grad
    assert torch.allclose(torch.cat(parts, 1), uninterrupted, atol=1e-5)
    short, _ = model(ids[:, 12:], positions(24)[:, 12:], NOTHING, 0)
    assert not torch.allclose(short, uninterrupted[:, 12:], atol=1e-2), "what came before matters"


def test_a_document_does_not_attend_to_earlier_ones() -> None:
    """In its segment or in the memory."""
    model, ids = noisy(), torch.randint(0, 50, (1, 20))
    alone, _ = model(ids[:, 9:], positions(11), NOTHING, 0)
    beside, _ = model(ids, positions(9, 11), NOTHING, 0)
    assert torch.allclose(beside[:, 9:], alone, atol=1e-5)
    _, memory = model(ids[:, :9], positions(9), NOTHING, 9)
    behind, _ = model(ids[:, 9:], positions(11), memory, 9)
    assert torch.allclose(behind, alone, atol=1e-5)


# -- strips ------------------------------------------------------------------------------------------------------------


@PROPERTY
@given(st.lists(st.integers(0, 70), max_size=12), st.integers(1, 5), st.booleans())
def test_micro_batches_are_segments_of_strips(lengths: list[int], rows: int, cross: bool) -> None:
    """Row b of micro-batch t goes on from row b of micro-batch t - 1; nothing is lost; positions say what is in reach:
    all of the document that stands in the same strip."""
    made = recipe(task={"cross_documents": cross}, data={"tokens_per_batch": rows * SEGMENT})
    task: Any = make_task(made, None)  # type: ignore[arg-type]
    numbers = iter(range(1, 10_000))
    examples = [{"input_ids": [0, *(ids := [next(numbers) for _ in range(n)])], "labels": [*ids, -1]} for n in lengths]
    packed = task.pack(examples)
    assert sorted(n for _, begun in packed for n in begun) == list(range(len(lengths)))
    batches = [packed[at : at + rows] for at in range(0, len(packed), rows)]
    assert all(len(e["input_ids"]) == SEGMENT for batch, _ in pairwise(batches) for e, _ in batch[:-1])
    strips = [[batch[b][0] for batch in batches if b < len(batch)] for b in range(rows)]
    stream = [token for strip in strips for e in strip for token in e["labels"]]
    assert stream == [token for e in examples for token in e["labels"]]
    for strip in strips:
        ids = [token for e in strip for token in e["input_ids"]]
        starts = [i for i, token in enumerate(ids) if token == 0]
        expected = [i - (0 if cross else max([s for s in starts if s <= i], default=0)) for i in range(len(ids))]
        assert [p for e in strip for p in e["position_ids"]] == expected


def test_contradicting_settings_are_refused() -> None:
    for sections, words in (
        ({"data": {"order": "shuffled"}}, r"model.memory=48 holds .* data.order=sequential, or model.memory=0"),
        ({"task": {"packing": False}}, r"task\.packing: model\.kind transformer_xl needs true"),
        ({"data": {"pad_multiple": 5}}, "16 is not a multiple of data.pad_multiple=5"),
        ({"task": {"objective": "mlm"}}, "transformer_xl cannot do task language_modeling; allowed: encoder"),
    ):
        with pytest.raises(UsageError, match=words):
            check_recipe(recipe(**sections))
    check_recipe(recipe(data={"order": "shuffled"}, model={"memory": 0}))


# -- whole runs --------------------------------------------------------------------------------------------------------

EPOCHS = {"max_steps": None, "epochs": 2, "eval_every": "epoch", "save_every": 7}


@pytest.fixture(scope="module")
def run(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs on two ranks, uninterrupted. Read only."""
    return train(tmp_path_factory.mktemp("xl"), recipe(corpus, loop=EPOCHS), "run", ranks=2)


@pytest.mark.ranks
def test_every_document_once_an_epoch(run: Path) -> None:
    ledger = processes.read_lines(run / "ledger.jsonl")
    rows = [json.dumps(row) for line in ledger for lane in line["rows"].values() for row in lane]
    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    assert len(set(rows)) == manifest["data"]["train"]["rows"]
    assert set(Counter(rows).values()) == {2}


@pytest.mark.ranks
def test_killed_and_resumed_bitwise(run: Path, corpus: Path, tmp_path: Path) -> None:
    """In the middle of a block: with the memory that it had there."""
    path, again = written(tmp_path, recipe(corpus, loop=EPOCHS)), tmp_path / "run"
    killed = processes.train(path, again, world=2, hook=partial(hooks.at_micro_batch, 24, 1))
    assert any(code for code in killed.codes)
    saved = sorted(again.glob("checkpoints/*/lanes.safetensors"))
    memories = load_file(saved[-1])
    assert {name: m.shape for name, m in memories.items()} == {str(n): (3, LAYERS, MEMORY, 32) for n in range(4)}
    assert all(m[:, -1].any() for m in memories.values())
    processes.train(path, again, world=2).check()
    for file in ("model/model.safetensors", "evaluation/test/predictions.jsonl", "ledger.jsonl"):
        assert (again / file).read_bytes() == (run / file).read_bytes(), file


SGD = {"name": "sgd", "lr": 0.1}  # Adam would make a step of rounding where a gradient is 0


def recorded_steps(
    root: Path, run: Path, *words: str, world: int = 1, engine: str | None = None, hook: processes.Hook | None = None
) -> list[dict[str, np.ndarray]]:
    """Weights and memories after 12 steps."""
    made = recipe(root, loop={"max_steps": 12}, optim=SGD, model={"dropout": 0.0})
    processes.train(written(run.parent, made), run, *words, world=world, engine=engine, hook=hook).check()
    folder = run / "checkpoints" / "step-00000012"
    return [load_file(folder / name) for name in ("model.safetensors", "lanes.safetensors")]


@pytest.fixture(scope="module")
def expected_steps(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, np.ndarray]]:
    return recorded_steps(corpus, tmp_path_factory.mktemp("one") / "run")


@pytest.mark.ranks
@pytest.mark.parametrize(
    "way",
    slow_except(
        ["ddp", "zero2", "zero3", "fsdp2", "three ranks", "fused", "measured", "prefetched", "in parts"],
        *("zero2", "prefetched", "in parts"),
    ),
)
def test_the_same_steps_and_memories_on_any_ranks(
    way: str, corpus: Path, tmp_path: Path, expected_steps: list[dict[str, np.ndarray]]
) -> None:
    run = tmp_path / "run"
    if way == "fused":
        found = recorded_steps(corpus, run, "loop.fuse_lanes=2", world=2)
    elif way == "measured":
        hook = partial(hooks.simulated_gpu, (10**9, 10**9))
        found = recorded_steps(corpus, run, "loop.fuse_lanes=auto", world=2, hook=hook)
        assert json.loads((run / "manifest.json").read_text(encoding="utf-8"))["fuse_lanes"]["lanes"] == 2
    elif way == "prefetched":
        found = recorded_steps(corpus, run, hook=hooks.prefetched)
    elif way == "in parts":
        run.mkdir()
        (run / "manifest.json").write_text(json.dumps({"micro_batch_splits": 2, "starts": []}), encoding="utf-8")
        found = recorded_steps(corpus, run)
        assert json.loads((run / "manifest.json").read_text(encoding="utf-8"))["micro_batch_splits"] == 2
    else:
        found = recorded_steps(
            corpus, run, world=3 if way == "three ranks" else 2, engine=None if way == "three ranks" else way
        )
    for ours, theirs in zip(found, expected_steps, strict=True):
        assert ours.keys() == theirs.keys()
        assert max(float(np.abs(ours[name] - theirs[name]).max()) for name in ours) <= 2e-5


@pytest.mark.ranks
@pytest.mark.slow
def test_a_memory_of_another_size_is_refused(corpus: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    processes.train(written(tmp_path, recipe(corpus, loop={"max_steps": 4})), run).check()
    made = recipe(corpus, loop={"max_steps": 6}, model={"memory": 8})
    words = ["--allow-change", "model.memory", "--allow-change", "loop.max_steps"]
    ended = processes.train(written(tmp_path, made), run, *words).check(4)
    assert (
        "a memory of (2, 48, 32), the recipe's model of (2, 8, 32): resume with the same model.memory" in ended.err[0]
    )


# -- what the memory is worth ------------------------------------------------------------------------------------------

WORTH = 0.35  # nats per token, at least: half of every text is a repetition from further back than a segment


@pytest.fixture(scope="module")
def learned(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = recipe(
        corpus, model={"d_model": 64, "dropout": 0.0}, optim={"lr": 3e-3}, data={"tokens_per_batch": 8 * SEGMENT},
        loop={"max_steps": 500, "eval_every": 250, "save_every": 250, "log_every": 50, "ledger": False},
    )  # fmt: skip
    return train(tmp_path_factory.mktemp("learned"), made, "run")


@pytest.mark.ranks
@pytest.mark.slow
def test_without_memory_long_texts_are_harder(learned: Path) -> None:
    """The same weights with less and less memory at evaluation."""
    losses = [metrics(learned)["loss"]]
    losses += [evaluate(learned, overrides=[f"evaluation.memory={length}"])["loss"] for length in (SEGMENT, 0)]
    assert losses == sorted(losses)
    assert losses[2] - losses[0] > WORTH


@pytest.mark.ranks
@pytest.mark.slow
def test_predict_continues_a_text_longer_than_a_segment(learned: Path, corpus: Path) -> None:
    """Greedily with the token that segment after segment, each with its memory, makes the likeliest; a text does not
    depend on its neighbours."""
    texts = [json.loads(line)["text"] for line in (corpus / "test.jsonl").read_text(encoding="utf-8").splitlines()[:4]]
    begun = [" ".join(text.split()[: 20 + 2 * n]) for n, text in enumerate(texts)]
    settings = ["evaluation.generation.new_tokens=1"]
    found = [r["prediction"] for r in predict(learned, begun, overrides=settings)]
    opened = TrainedRun.open(RunDir(learned), Recipe)
    for text, prediction in zip(begun, found, strict=True):
        assert next(iter(predict(learned, [text], overrides=settings)))["prediction"] == prediction
        (example,) = opened.task.encode_lines([text])
        assert len(example["input_ids"]) > SEGMENT
        pieces = list(opened.task._in_pieces(opened.model, opened.task.collate([example])))
        last = torch.cat([logits for logits, _ in pieces], 1)[0, len(example["input_ids"]) - 1]
        assert opened.task.tokenizer.decode([int(last.argmax())], skip_special_tokens=True) == prediction
    assert len(list(predict(learned, begun[:1], overrides=["evaluation.generation.beam_size=3"]))) == 1


@pytest.mark.ranks
@pytest.mark.slow
def test_the_report_and_the_pieces(learned: Path) -> None:
    page = (learned / "evaluation" / "test" / "report.html").read_text(encoding="utf-8")
    for words in ("Continuations", "Bits per byte"):
        assert words in page, words
    rows = json.loads((learned / "evaluation" / "test" / "attention.json").read_text(encoding="utf-8"))["rows"]
    assert np.triu(np.array(rows[0]["weights"]), 1).max() == 0


@pytest.mark.ranks
def test_weights_are_published_where_there_can_be_no_graphs(corpus: Path, tmp_path: Path) -> None:
    export = {"onnx": True, "int8": True, "bf16": True, "bench": 0}
    run = train(tmp_path, recipe(corpus, loop={"max_steps": 4}, export=export, evaluation={"max_rows": 8}), "run")
    assert {path.name for path in (run / "export").iterdir() if path.is_dir()} == {"bf16", "safetensors"}
    for name in ("bf16", "safetensors"):
        assert json.loads((run / "export" / name / "gate.json").read_text(encoding="utf-8"))["passed"]
        assert [r["text"] for r in predict(run, ["mi du", ""], backend=name)] == ["mi du", ""]
    with pytest.raises(UsageError, match=r"not possible .transformer_xl"):
        list(predict(run, ["mi du"], backend="onnx"))
    assert "transformer\\_xl: its memory of the segments" in (run / "README.md").read_text(encoding="utf-8")
