"""Checkpoints that all ranks write: whole tensors by name in parts, committed once every part is flushed."""

from __future__ import annotations

import json
import os
import signal
import traceback
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Self

import hooks
import pytest
import torch
import torch.distributed as dist
from processes import train
from safetensors.torch import load_file, save_file
from slow import slow_except
from torch import Tensor

from trainer import tensors
from trainer.data_parallel import run_on_main
from trainer.engine import checkpoint, parts, saving
from trainer.engine.parts import Exchange, deal
from trainer.errors import CheckpointError
from trainer.tensors import ShardedTensor

MODEL, MOMENTS = "model.safetensors", "optimizer.safetensors"
SHAPES = {"embedding": (7, 3), "bias": (5,), "scalar": (), "weight": (3, 4), "one": (1, 1), "empty": (0, 3)}


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_BYTES", 40)


# -- who writes what ---------------------------------------------------------------------------------------------------


def content_of(sizes: dict[str, int]) -> dict[str, Tensor]:
    return {name: torch.zeros(size) for name, size in sizes.items()}


def test_each_tensor_has_one_rank_and_ranks_have_about_as_many_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_BYTES", 4000)
    layers = {f"layer.{i}.{kind}": size for i in range(24) for kind, size in (("up", 400), ("out", 100), ("b", 1))}
    model = content_of({"embedding": 3000, **layers})
    moments = {f"{name}.{m}": tensor for name, tensor in model.items() for m in ("exp_avg", "exp_avg_sq")}
    content = {MODEL: model, MOMENTS: moments}
    layout = deal(content, 4)
    for file, found in content.items():
        names = [name for part in layout.names[file].values() for name in part]
        assert sorted(names) == sorted(found)
        assert list(layout.names[file]) == [f"{file[:-12]}-{i:05d}-of-00004.safetensors" for i in (1, 2, 3, 4)]
    loads = [sum(t.nbytes for part in layout.own(rank, content).values() for t in part.values()) for rank in range(4)]
    assert sum(loads) == 3 * sum(t.nbytes for t in model.values())
    assert max(loads) - min(loads) <= 1600, loads
    assert not layout.alone
    assert layout.indexes(content)[MODEL][1] == sum(t.nbytes for t in model.values())


def test_a_small_file_is_one_file_of_rank_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_BYTES", 100)
    small, large = content_of({"a": 20, "b": 29}), content_of({"a": 30, "b": 30})
    assert deal({MODEL: small, "ema.safetensors": {}}, 4).of_rank == [
        [(MODEL, MODEL), ("ema.safetensors", "ema.safetensors")], [], [], [],
    ]  # fmt: skip
    layout = deal({MODEL: small, MOMENTS: large}, 4)
    assert layout.of_rank[0] == [(MODEL, MODEL)]
    assert [len(own) for own in layout.of_rank] == [1, 1, 1, 0], "a part for every 100 bytes, to the idle ranks"
    assert deal({MODEL: large}, 1).alone


def test_a_part_is_no_larger_than_a_file_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "SHARD_BYTES", 100)
    layout = deal({MODEL: content_of({f"w{i:02d}": 10 for i in range(15)})}, 2)
    assert list(layout.names[MODEL]) == [f"model-{i:05d}-of-00008.safetensors" for i in range(1, 9)]
    assert [len(own) for own in layout.of_rank] == [4, 4]


def test_the_newest_tensors_of_two_largest_stay() -> None:
    torch.manual_seed(0)
    largest = 50
    ring, kept = parts.Ring(largest), list[tuple[Tensor, int]]()
    for number, size in enumerate(torch.randint(1, largest + 1, (2000,)).tolist()):
        while sum(t.numel() for t, _ in kept) + size > 2 * largest:
            kept.pop(0)
        kept.append((ring.take(torch.Size([size])).fill_(number), number))
        assert all(bool((tensor == value).all()) for tensor, value in kept), number


# -- ranks -------------------------------------------------------------------------------------------------------------


class Rank:
    """A rank with the methods of `Runtime` that a save needs."""

    device = torch.device("cpu")

    def __init__(self, rank: int, world: int, file: Path) -> None:
        self.rank, self.world, self.main = rank, world, rank == 0
        dist.init_process_group(
            "gloo", init_method=f"file://{file}", rank=rank, world_size=world, timeout=timedelta(seconds=20)
        )

    def sum(self, values: list[int]) -> list[int]:
        tensor = torch.tensor(values)
        dist.all_reduce(tensor)
        return list(tensor.tolist())

    def gather(self, value: Any) -> list[Any] | None:
        values: list[Any] | None = [None] * self.world if self.main else None
        dist.gather_object(value, values)
        return values

    def broadcast(self, value: Any) -> Any:
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]

    def on_main(self, work: Callable[[], Any]) -> Any:
        return run_on_main(self.main, work, self.broadcast)

    def heartbeat(self, where: str) -> None:
        pass


class Ranks:
    """Forked processes, each of which runs a function as a rank. `codes` are their exit codes."""

    def __init__(self, world: int, folder: Path, work: Callable[[Rank], None]) -> None:
        file = folder / f".store-{os.urandom(4).hex()}"
        children = []
        for rank in range(world):
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    work(Rank(rank, world, file))
                    code = 0
                except CheckpointError as error:
                    (folder / f"error-{rank}").write_text(str(error))
                    code = error.exit_code
                except BaseException:
                    (folder / f"error-{rank}").write_text(traceback.format_exc())
                os._exit(code)
            children.append(child)
        self.codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        self.errors = [path.read_text() for r in range(world) if (path := folder / f"error-{r}").exists()]

    def check(self) -> Self:
        assert set(self.codes) == {0}, (self.codes, self.errors)
        return self


def values(step: int) -> dict[str, dict[str, Tensor]]:
    """The whole tensors of a checkpoint."""
    torch.manual_seed(step)
    model = {name: torch.rand(shape) for name, shape in SHAPES.items()}
    return {MODEL: model, MOMENTS: {f"{name}.m": torch.rand(shape) for name, shape in SHAPES.items()}}


def content_on(rank: Rank, step: int, *, rows: bool) -> dict[str, dict[str, Any]]:
    """What a rank has of them: rows of the first dimension as FSDP2, or any range as ZeRO. The scalar is everywhere."""

    def range_of(tensor: Tensor) -> Any:
        if tensor.ndim == 0:
            return tensor
        flat, width = tensor.flatten(), tensor[:1].numel() if rows else 1
        each = -(-(len(flat) // max(width, 1)) // rank.world) * width
        own = flat[rank.rank * each : (rank.rank + 1) * each]
        return ShardedTensor(tensor.shape, min(rank.rank * each, len(flat)), len(own), lambda: own)

    return {file: {name: range_of(t) for name, t in found.items()} for file, found in values(step).items()}


def save(rank: Rank, folder: Path, step: int, *, rows: bool = True) -> None:
    content = content_on(rank, step, rows=rows)
    layout = deal(content, rank.world)
    exchange = Exchange(rank, content, layout)  # type: ignore[arg-type]
    share = saving.Share(exchange.own, layout.indexes(content), exchange.finish)
    saving.save_share(folder, step, share, {"step": step}, rank)


def check_saved(folder: Path, step: int) -> None:
    assert checkpoint.fault(checkpoint.path_of(folder, step)) is None
    for file, expected in values(step).items():
        found = checkpoint.read(folder, step, file)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("world", [2, 3, 4])
@pytest.mark.parametrize("rows", [True, False])
def test_tensors_are_whole_and_the_files_are_those_of_the_library(tmp_path: Path, world: int, rows: bool) -> None:
    Ranks(world, tmp_path, lambda rank: save(rank, tmp_path / "c", 5, rows=rows)).check()
    assert checkpoint.newest(tmp_path / "c") == 5
    check_saved(tmp_path / "c", 5)
    path = checkpoint.path_of(tmp_path / "c", 5)
    written = sorted(path.glob("*.safetensors"))
    assert len(written) == 2 * world
    for file in written:
        save_file(load_file(file), tmp_path / "again", {"format": "pt"})
        assert file.read_bytes() == (tmp_path / "again").read_bytes()
    manifest = json.loads((path / "manifest.json").read_text())["files"]
    assert sorted(manifest) == sorted({p.name for p in path.iterdir()} - {"manifest.json"})
    index = json.loads((path / f"{MODEL}.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in values(5)[MODEL].values())
    assert index["weight_map"].keys() == SHAPES.keys()


def test_ranges_that_do_not_make_a_tensor_are_an_error(tmp_path: Path) -> None:
    def wrong(rank: Rank) -> None:
        own = torch.ones(3)
        content = {MODEL: {"w": ShardedTensor(torch.Size([6]), 0, 3, lambda: own)}}  # both ranks have the first half
        Exchange(rank, content, deal(content, 2))  # type: ignore[arg-type]

    ended = Ranks(2, tmp_path, wrong)
    assert 1 in ended.codes
    assert any("the ranks have the ranges [3, 3] of w, with 0 on 1" in error for error in ended.errors)


POINTS = ("tensors._write_file", "tensors._bytes_of", "tensors._flush", "saving._describe", "saving.flush")


KILLS = [(point, rank, 2) for point in POINTS[:-1] for rank in (0, 1)] + [("saving.flush", 0, 1)]


@pytest.mark.parametrize(("point", "dies", "nth"), KILLS)
def test_a_rank_that_dies_in_a_save_leaves_the_checkpoint_before(
    tmp_path: Path, point: str, dies: int, nth: int
) -> None:
    """Between two parts, in the middle of one, and before rank zero commits."""
    folder = tmp_path / "c"

    def work(rank: Rank) -> None:
        save(rank, folder, 10)
        if rank.rank == dies:
            hooks.arm(point, nth, lambda: os._exit(77))
        save(rank, folder, 20)

    ended = Ranks(2, tmp_path, work)
    assert ended.codes[dies] == 77
    assert ended.codes[1 - dies] == 1, "it has lost the connection"
    assert checkpoint.newest(folder) == 10
    check_saved(folder, 10)
    Ranks(3, tmp_path, lambda rank: save(rank, folder, 20, rows=False)).check()
    checkpoint.clean(folder, 1, [])
    check_saved(folder, 20)
    assert [path.name for path in folder.iterdir()] == ["step-00000020"]


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("fails", [0, 2])
def test_a_full_disk_on_any_rank_is_an_error_of_all(tmp_path: Path, point: str, fails: int) -> None:
    def full() -> None:
        raise OSError(28, "No space left on device")

    folder = tmp_path / "c"

    def work(rank: Rank) -> None:
        save(rank, folder, 10)
        if rank.rank == (0 if point == "saving.flush" else fails):
            hooks.arm(point, 1, full)
        save(rank, folder, 20)

    ended = Ranks(3, tmp_path, work)
    assert ended.codes == [4, 4, 4], ended.errors
    for error in ended.errors:
        assert "checkpoint of step 20 cannot be written" in error
        assert "No space left" in error
        assert "the checkpoint of step 10 is intact" in error
        assert ("rank 2: " in error) == (fails == 2 and point != "saving.flush")
    assert [path.name for path in folder.iterdir()] == ["step-00000010"], "nothing is left of it"


@pytest.mark.parametrize("damage", ["missing", "cut", "altered", "index"])
def test_a_damaged_part_is_named_and_the_checkpoint_before_is_used(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "c"

    def work(rank: Rank) -> None:
        save(rank, folder, 10)
        save(rank, folder, 20)

    Ranks(2, tmp_path, work).check()
    path = checkpoint.path_of(folder, 20)
    part = path / (f"{MODEL}.index.json" if damage == "index" else "optimizer-00002-of-00002.safetensors")
    content = part.read_bytes()
    if damage in ("missing", "index"):
        part.unlink()
    else:
        part.write_bytes(content[:-1] + (bytes([content[-1] ^ 1]) if damage == "altered" else b""))
    with pytest.raises(CheckpointError, match=part.name):
        checkpoint.checked(folder, 20)
    with caplog.at_level("WARNING", "rankzero"):
        assert checkpoint.newest(folder) == 10
    assert (folder / "damaged-step-00000020").is_dir()


def test_a_checkpoint_of_one_file_is_replaced_by_one_in_parts_and_back(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    saving.save(folder, 5, values(5), {"step": 5})
    assert (checkpoint.path_of(folder, 5) / MODEL).is_file()
    check_saved(folder, 5)
    Ranks(2, tmp_path, lambda rank: save(rank, folder, 5)).check()
    assert not (checkpoint.path_of(folder, 5) / MODEL).exists()
    check_saved(folder, 5)
    saving.save(folder, 5, values(5), {"step": 5})
    check_saved(folder, 5)


# -- runs --------------------------------------------------------------------------------------------------------------

WORDS = ("loop.save_every=2", "loop.eval_every=100", "evaluation.splits=[]", "data.validation=null")


def assert_equal(run: Path, whole: Path, step: int, world: int) -> None:
    """The checkpoint in parts holds the tensors of the one in whole files, and model/ is the same."""
    found, expected = (checkpoint.path_of(folder / "checkpoints", step) for folder in (run, whole))
    for file in (MODEL, MOMENTS):
        assert not (found / file).exists()
        assert len(list(found.glob(f"{Path(file).stem}-*.safetensors"))) == world
        ours, theirs = tensors.read(found / file), load_file(expected / file)
        assert ours.keys() == theirs.keys()
        assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []


@pytest.mark.ranks
@pytest.mark.parametrize(("engine", "world"), slow_except((("ddp", 2), ("zero2", 3), ("zero3", 3)), ("ddp", 2)))
def test_a_run_writes_the_tensors_that_rank_zero_alone_writes(
    recipe: Path, tmp_path: Path, engine: str, world: int
) -> None:
    for name, hook in (("whole", None), ("parts", hooks.saved_in_parts)):
        train(recipe, tmp_path / name, *WORDS, "loop.max_steps=2", world=world, engine=engine, hook=hook).check()
    assert_equal(tmp_path / "parts", tmp_path / "whole", 2, world)
    models = [load_file(tmp_path / name / "model" / MODEL) for name in ("whole", "parts")]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.parametrize("dies", [0, 1])
def test_a_rank_that_dies_while_it_writes_in_the_background(recipe: Path, tmp_path: Path, dies: int) -> None:
    whole, run, words = tmp_path / "whole", tmp_path / "run", (*WORDS, "loop.max_steps=6")
    if dies:
        train(recipe, whole, *words, world=2, engine="ddp").check()
    killed = partial(hooks.killed_in_part, "optimizer", dies, 2)
    ended = train(recipe, run, *words, world=2, engine="ddp", hook=killed)
    assert -signal.SIGKILL in ended.codes, ended.text
    assert 0 not in ended.codes, ended.text
    assert "Traceback" not in ended.text, ended.text
    assert checkpoint.newest(run / "checkpoints") == 2
    train(recipe, run, *words, world=2, engine="ddp", hook=hooks.saved_in_parts).check()
    if dies:
        assert_equal(run, whole, 6, 2)
    assert not [path for path in (run / "checkpoints").iterdir() if path.name.startswith(".")]
