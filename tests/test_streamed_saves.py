"""Files are written tensor by tensor: the bytes of the library, with few tensors in memory, and read by parts."""

from __future__ import annotations

import functools
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import hooks
import pytest
import torch
from processes import train
from safetensors.torch import load_file, save_file
from slow import slow_except

from trainer import tensors
from trainer.tensors import LazyTensor

LOADED = 256 * 1024  # bytes of the micro-batches that the loader adds meanwhile, at most
SHARDED = ("zero1", "zero2", "zero3", "fsdp2")
QUIET = ("loop.eval_every=100", "evaluation.splits=[]", "data.validation=null", "optim.averaging.kind=ema")


def of_each_type() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    found = {}
    for kind, dtype in tensors.DTYPES.items():
        for name in ("z.", "a", 'é"\\\n', "B"):
            found[f"{name}{kind}"] = (torch.rand(3, 5) * 10).to(dtype)
        found |= {f"scalar{kind}": torch.tensor(1).to(dtype), f"none{kind}": torch.zeros(0, 3).to(dtype)}
    found["transposed"] = torch.rand(4, 6).t()
    return found


@pytest.mark.parametrize("content", [of_each_type(), {}, {"w": torch.ones(2, 3)}], ids=["all", "none", "one"])
@pytest.mark.parametrize("lazy", [False, True])
def test_files_are_those_of_the_library(tmp_path: Path, content: dict[str, torch.Tensor], lazy: bool) -> None:
    save_file(
        {name: t.contiguous() for name, t in content.items()}, tmp_path / "expected.safetensors", {"format": "pt"}
    )
    stored: Any = {n: LazyTensor(t.shape, t.dtype, lambda t=t: t) for n, t in content.items()} if lazy else content
    hashes = tensors.write(tmp_path / "found.safetensors", stored)
    found = (tmp_path / "found.safetensors").read_bytes()
    assert found == (tmp_path / "expected.safetensors").read_bytes()
    assert hashes == {"found.safetensors": hashlib.sha256(found).hexdigest()}


@pytest.mark.ranks
@pytest.mark.parametrize("engine", slow_except(SHARDED, "fsdp2"))
def test_a_sharded_save_needs_a_few_tensors_at_most(recipe: Path, tmp_path: Path, engine: str) -> None:
    """Both ranks write parts, with the bytes that the library writes. A control that gathers all of them is seen."""
    peaks, words = {}, ("loop.max_steps=2", "model.d_model=512")
    for name, at_once in (("streamed", False), ("control", True)):
        (tmp_path / name).mkdir()
        hook = functools.partial(hooks.memory_of_saves, tmp_path / name, at_once=at_once)
        run = tmp_path / f"{name}-run"
        train(recipe, run, *QUIET, *words, world=2, engine=engine, hook=hook).check()
        peaks[name] = [json.loads((tmp_path / f"{name}/{rank}.json").read_text()) for rank in (0, 1)]
    streamed, control = (tmp_path / f"{name}-run/checkpoints/step-00000002" for name in ("streamed", "control"))
    for kind in ("model", "optimizer", "ema"):
        parts = [streamed / f"{kind}-0000{i}-of-00002.safetensors" for i in (1, 2)]
        for path in (*parts, control / f"{kind}.safetensors"):
            save_file(load_file(path), tmp_path / "again", {"format": "pt"})
            assert path.read_bytes() == (tmp_path / "again").read_bytes(), path
        found, expected = load_file(parts[0]) | load_file(parts[1]), load_file(control / f"{kind}.safetensors")
        assert found.keys() == expected.keys()
        assert [name for name in expected if not torch.equal(found[name], expected[name])] == []
        assert 0.4 < parts[0].stat().st_size / sum(part.stat().st_size for part in parts) < 0.6
    largest = max(t.nbytes for t in load_file(control / "model.safetensors").values())
    tensors = 4.5 if engine == "zero3" else 3  # DeepSpeed's buffers
    assert max(peaks["streamed"]) <= tensors * largest + LOADED, (peaks, largest)
    assert peaks["control"][0] > 8 * largest, (peaks, largest)


@pytest.mark.ranks
def test_a_disk_that_is_full_in_a_sharded_save_ends_all_ranks(recipe: Path, tmp_path: Path) -> None:
    run, hook = tmp_path / "run", functools.partial(hooks.full_disk, "optimizer.safetensors", 3)
    words = (*QUIET, "loop.max_steps=2")
    ended = train(recipe, run, *words, world=2, engine="fsdp2", hook=hook)
    assert ended.codes == [4, 4], ended.text
    assert "checkpoint of step 2 cannot be written" in ended.err[0]
    assert "No space left" in ended.err[0]
    assert not list((run / "checkpoints").iterdir())
    train(recipe, run, *words, world=2, engine="fsdp2").check()


PARTS = """
import sys
from pathlib import Path
from types import SimpleNamespace
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from trainer.tensors import TensorFile

def mapped():
    "Bytes of the file in memory."
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0] and not line.split()[0].endswith(":"):
            inside = line.endswith(sys.argv[1])
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total

dist.init_process_group("fake", rank=2, world_size=4, store=FakeStore())
with TensorFile(Path(sys.argv[1])) as file:
    size = file["w"].nbytes
    if sys.argv[2] == "fsdp2":
        from trainer.engine.engines.fsdp import FSDPEngine as Engine
        p = distribute_tensor(torch.zeros(1026, 4096), init_device_mesh("cpu", (4,)), [Shard(0)], src_data_rank=None)
        p, engine = torch.nn.Parameter(p), Engine.__new__(Engine)
        parts = lambda tensor: [engine.fill(p, tensor), p.to_local(), engine._shard_like(p, tensor).to_local()][1:]
        expected = lambda tensor: tensor[514:771].flatten()
    else:
        from trainer.engine.engines.zero import ZeroEngine as Engine
        engine = Engine.__new__(Engine)
        engine._zero = SimpleNamespace(_get_param_partition_rank=lambda p: 2)
        p = SimpleNamespace(ds_tensor=torch.zeros(1026 * 1024))
        parts = lambda tensor: [engine._padded_part(p, tensor)]
        expected = lambda tensor: tensor.flatten()[2 * 1026 * 1024 : 3 * 1026 * 1024]
    tensor = file["w"]
    before = mapped()
    found = parts(tensor)
    read = mapped() - before
    assert 0.2 * size < read < 0.4 * size, (read, size)
    assert all(torch.equal(part.detach().flatten(), expected(tensor)) for part in found)
    assert mapped() > 0.2 * size
    del tensor
    assert mapped() < 0.1 * size, "what was read leaves memory with the tensor"
"""


@pytest.mark.parametrize("engine", ["fsdp2", pytest.param("zero3", marks=pytest.mark.slow)])
def test_a_rank_reads_only_its_part_of_a_tensor(tmp_path: Path, engine: str) -> None:
    torch.manual_seed(0)
    tensors.write(tmp_path / "w.safetensors", {"w": torch.rand(1026, 4096), "other": torch.ones(3)})
    command = [sys.executable, "-c", PARTS, str(tmp_path / "w.safetensors"), engine]
    subprocess.run(command, check=True)
