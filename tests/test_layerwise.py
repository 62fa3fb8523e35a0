"""Under ZeRO-3 and FSDP2 evaluation gathers layers: the scores are those of a single process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import engine_environment, next_logs, run_ranks
from safetensors.numpy import load_file
from torch import Tensor, nn

from trainer.engine.layerwise import LayerServer, fill_skeleton, finish_batch, is_skeleton, skeleton

SGD = ("optim.name=sgd", "optim.lr=0.3", "optim.momentum=0.9", "optim.clip_norm=0.5", "optim.averaging.kind=ema")


class Alone:
    """A runtime of one rank, which notes what is requested."""

    def __init__(self) -> None:
        self.requests: list[int] = []

    def heartbeat(self, where: str) -> None:
        pass

    def all_of(self, value: int) -> list[int]:
        self.requests.append(value)
        return [value]


class Tied(nn.Module):
    """Layers in a list, one of which has the embedding's matrix, and a search that calls parts of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.out = nn.Linear(4, 5)
        self.layers[1].weight = nn.Parameter(torch.randn(4, 4))
        self.twin = self.layers[1]
        self.out.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        for layer in self.layers:
            x = layer(x).tanh()
        return self.out(x @ self.layers[0].weight)


def test_layers_are_gathered_one_at_a_time_and_freed() -> None:
    torch.manual_seed(0)
    model, ids, runtime = Tied(), torch.tensor([[1, 4]]), Alone()
    weights = dict(model.named_parameters())
    bare = skeleton(model)
    assert is_skeleton(bare)
    most = 0

    def weight(name: str) -> Tensor:
        nonlocal most
        layers: Any = bare.layers
        most = max(most, sum(any(not p.is_meta for p in layer.parameters()) for layer in layers))
        return weights[name].detach()

    with LayerServer(runtime, bare, weight).attached():  # type: ignore[arg-type]
        assert torch.equal(bare(ids), model(ids))
        finish_batch(bare)
    assert runtime.requests == [1, 2, 3, 1, -1]
    assert most == 1, "a layer is freed before the next one is gathered"
    assert all(p.is_meta for p in bare.parameters())
    assert bare.out.weight is bare.embedding.weight  # type: ignore[union-attr]
    fill_skeleton(bare, lambda name: weights[name])
    assert torch.equal(bare(ids), model(ids))


def result(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "evaluation/test/metrics.json").read_text())
    return found


HYBRID = {
    "ACCELERATE_USE_PARALLELISM_CONFIG": "true",
    "PARALLELISM_CONFIG_DP_REPLICATE_SIZE": "2",
    "PARALLELISM_CONFIG_DP_SHARD_SIZE": "2",
}


@pytest.fixture(scope="module")
def single(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("layerwise") / "single"
    run_ranks([*words(recipe), "--run", run], next_logs(run)).check()
    return run


def words(recipe: Path) -> list[object]:
    more = ("loop.max_steps=6", "loop.early_stopping.metric=bleu", "evaluation.splits=[test]", "loop.eval_every=6")
    return ["train", recipe, *SGD, *more]


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("engine", "world", "env"),
    [("fsdp2", 2, {}), ("fsdp2", 4, HYBRID), pytest.param("zero3", 3, {}, marks=pytest.mark.slow)],
    ids=["fsdp2", "hybrid", "zero3"],
)
def test_scores_predictions_and_model_are_those_of_a_single_process(
    recipe: Path, single: Path, tmp_path: Path, engine: str, world: int, env: dict[str, str]
) -> None:
    """Beam search on validation and test, with a moving average, in another number of forwards on each rank."""
    sharded, logs = tmp_path / "sharded", next_logs(tmp_path / "sharded")
    run_ranks([*words(recipe), "--run", sharded], logs, world, env=engine_environment(engine) | env).check()
    assert "begins with a complete model" not in "".join(path.read_text() for path in logs.iterdir() if path.is_file())
    assert result(sharded).keys() == result(single).keys()
    for key, value in result(single).items():
        assert result(sharded)[key] == pytest.approx(value, abs=1e-4), key
    texts = [
        [json.loads(line)["prediction"] for line in (run / "evaluation/test/predictions.jsonl").open()]
        for run in (single, sharded)
    ]
    assert texts[0] == texts[1]
    for file in ("model/model.safetensors", "checkpoints/step-00000006/ema.safetensors"):
        a, b = (load_file(run / file) for run in (single, sharded))
        assert a.keys() == b.keys()
        assert max(float(np.abs(a[name] - b[name]).max()) for name in a) <= 1e-6
