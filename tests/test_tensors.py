"""Tensors in one file, or in several with an index; both are read in the same way."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path

import hooks
import pytest
import torch
from processes import run_ranks, train
from safetensors.torch import load_file
from slow import slow_except

from trainer import tensors
from trainer.errors import CheckpointError

GIVEN = {f"layer.{i}.weight": torch.arange(100.0).view(10, 10) + i for i in range(7)}


def test_small_tensors_are_in_one_file(tmp_path: Path) -> None:
    tensors.write(tmp_path / "model.safetensors", GIVEN)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    assert load_file(tmp_path / "model.safetensors").keys() == GIVEN.keys()


def test_many_tensors_are_sharded_as_on_the_hub(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    tensors.write(path, GIVEN, shard_bytes=900)
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names[0] == "model-00001-of-00004.safetensors"
    assert names[-1] == "model.safetensors.index.json"
    assert len(names) == 5
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == GIVEN.keys()
    assert index["metadata"]["total_size"] == 7 * 400
    assert not path.exists()
    assert tensors.exists(path)
    found = tensors.read(path)
    assert found.keys() == GIVEN.keys()
    assert all(torch.equal(found[name], GIVEN[name]) for name in GIVEN)
    with tensors.TensorFile(path) as file:
        assert file.shape("layer.3.weight") == [10, 10]
        assert (len(file), "layer.3.weight" in file, "other" in file) == (7, True, False)


def test_nothing_is_a_file_too(tmp_path: Path) -> None:
    tensors.write(tmp_path / "optimizer.safetensors", {})
    assert tensors.read(tmp_path / "optimizer.safetensors") == {}


def test_an_index_that_names_files_elsewhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    tensors.index_of(path).write_text(json.dumps({"weight_map": {"w": "../secret.safetensors"}}))
    with pytest.raises(CheckpointError, match="not in its folder"):
        tensors.read(path)


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    tensors.write(path, GIVEN, shard_bytes=900)
    (tmp_path / "model-00002-of-00004.safetensors").unlink()
    with pytest.raises(CheckpointError, match="model-00002-of-00004"):
        tensors.read(path)


@pytest.mark.ranks
@pytest.mark.parametrize("engine", slow_except(["ddp", "zero2", "fsdp2"], "zero2"))
def test_a_run_whose_files_are_in_parts(recipe: Path, tmp_path: Path, engine: str) -> None:
    """Saved, resumed, averaged, chosen, evaluated and used, with the same result as in one file."""
    words = ("optim.averaging={kind: last, last: 2}", "loop.eval_every=4", "evaluation.splits=[test]")
    for name, hook in (("whole", None), ("parts", functools.partial(hooks.small_parts, 20_000))):
        run = tmp_path / name
        train(recipe, run, *words, "loop.max_steps=4", world=2, engine=engine, hook=hook).check()
        more = ("loop.max_steps=8", "--allow-change", "loop.max_steps")
        ended = train(recipe, run, *words, *more, world=2, engine=engine, hook=hook).check()
        assert "resumed from step 4" in ended.err[0]
    parts = tmp_path / "parts"
    names = {path.name for path in (parts / "checkpoints/step-00000008").iterdir()}
    assert {"model.safetensors.index.json", "optimizer.safetensors.index.json"} <= names
    assert "model.safetensors" not in names
    assert (parts / "model/model.safetensors.index.json").exists()
    expected = tensors.read(tmp_path / "whole/model/model.safetensors")
    found = tensors.read(parts / "model/model.safetensors")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    said = run_ranks(["predict", parts, "ein Hund sieht ein Boot heute."], tmp_path / "said").check().out[0]
    assert json.loads(said)["prediction"]


@pytest.mark.ranks
def test_a_damaged_part_makes_the_checkpoint_none(recipe: Path, tmp_path: Path) -> None:
    hook = functools.partial(hooks.small_parts, 20_000)
    run, quiet = (
        tmp_path / "run",
        ("loop.save_every=3", "loop.eval_every=100", "loop.max_steps=6", "evaluation.splits=[]"),
    )
    train(recipe, run, *quiet, hook=hook).check()
    part = next((run / "checkpoints/step-00000006").glob("model-00002-of-*"))
    content = bytearray(part.read_bytes())
    content[-1] ^= 1
    part.write_bytes(content)
    more = ("loop.max_steps=7", "--allow-change", "loop.max_steps")
    ended = train(recipe, run, *quiet, *more, hook=hook).check()
    assert "resumed from step 3" in ended.err[0]
    assert f"{part.name} has another SHA-256" in ended.err[0]


def test_a_file_with_names_is_the_same_in_every_process(tmp_path: Path) -> None:
    """The library orders several entries of metadata at random. Names are those of the parts that were written."""
    program = (
        "import sys, torch; from pathlib import Path; from trainer import tensors\n"
        "parts = {'x.q': torch.ones(2, 3), 'x.k': torch.zeros(2, 3)}\n"
        "tensors.write(Path(sys.argv[1]), parts, names={'x': ['x.q', 'x.k']})"
    )
    files = [tmp_path / f"{number}.safetensors" for number in range(4)]
    for file in files:
        subprocess.run([sys.executable, "-c", program, str(file)], check=True)
    assert len({file.read_bytes() for file in files}) == 1
    found = tensors.read(files[0])
    assert list(found) == ["x"]
    assert "x" in found and "x.q" not in found
    assert torch.equal(found["x"], torch.tensor([[1.0] * 3] * 2 + [[0.0] * 3] * 2))
