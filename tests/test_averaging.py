"""Averages of weights against closed forms."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from trainer.errors import CheckpointError
from trainer.optim.averaging import ExponentialAverage, average_files


def drift(step: int) -> list[tuple[str, torch.nn.Parameter]]:
    return [("w", torch.nn.Parameter(torch.full((2, 3), float(step)))), ("b", torch.nn.Parameter(torch.tensor([-2.0])))]


def test_constant_decay_has_its_closed_form() -> None:
    """Parameters 1, 2, … n: d^(n-1) * 1 + sum over k = 2 … n of (1 - d) * d^(n-k) * k."""
    d, n = 0.9, 30
    average = ExponentialAverage(d, warmup=False)
    for step in range(1, n + 1):
        average.update(drift(step), step)
    expected = d ** (n - 1) + sum((1 - d) * d ** (n - k) * k for k in range(2, n + 1))
    torch.testing.assert_close(average.state()["w"], torch.full((2, 3), expected), rtol=1e-5, atol=0)
    assert torch.equal(average.state()["b"], torch.tensor([-2.0]))


def test_warmup_forgets_the_first_weights_sooner() -> None:
    average = ExponentialAverage(0.999)
    average.update(drift(1), 1)
    average.update(drift(2), 2)
    assert average.state()["w"][0, 0].item() == pytest.approx(1 * 3 / 12 + 2 * 9 / 12)
    late = ExponentialAverage(0.5)
    late.update(drift(1), 100)
    late.update(drift(2), 101)  # 102 / 111 is above the decay
    assert late.state()["w"][0, 0].item() == pytest.approx(1.5)


def test_average_is_fp32_apart_from_the_parameters() -> None:
    parameter = torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    average = ExponentialAverage(0.9)
    average.update([("w", parameter)], 1)
    with torch.no_grad():
        parameter.fill_(5.0)
    assert average.state()["w"].dtype == torch.float32
    assert not average.state()["w"].requires_grad
    assert torch.equal(average.state()["w"], torch.ones(2))


def test_a_loaded_average_continues_bitwise(tmp_path: Path) -> None:
    def run(average: ExponentialAverage, steps: range) -> ExponentialAverage:
        for step in steps:
            generator = torch.Generator().manual_seed(step)
            average.update([("w", torch.rand(5, generator=generator))], step)
        return average

    whole = run(ExponentialAverage(0.95), range(1, 21))
    save_file(run(ExponentialAverage(0.95), range(1, 11)).state(), tmp_path / "ema.safetensors")
    resumed = ExponentialAverage(0.95)
    resumed.load(load_file(tmp_path / "ema.safetensors"))
    assert torch.equal(run(resumed, range(11, 21)).state()["w"], whole.state()["w"])


@pytest.mark.parametrize("other", [[("v", torch.zeros(2))], [("w", torch.zeros(3))], []])
def test_average_of_another_model_is_refused(other: list[tuple[str, torch.Tensor]]) -> None:
    average = ExponentialAverage(0.9)
    average.load({"w": torch.zeros(2)})
    with pytest.raises(CheckpointError, match="moving average"):
        average.update(other, 1)


def write(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    save_file(tensors, path)
    return path


def test_mean_of_files(tmp_path: Path) -> None:
    tensors = [
        {
            "w": torch.tensor([[1.0, 2.0]]) * k,
            "b": torch.tensor([float(k)], dtype=torch.bfloat16),
            "n": torch.tensor([3]),
        }
        for k in (1, 2, 6)
    ]
    paths = [write(tmp_path / f"{i}.safetensors", t) for i, t in enumerate(tensors)]
    mean = average_files(paths)
    assert torch.equal(mean["w"], torch.tensor([[3.0, 6.0]]))
    assert torch.equal(mean["b"], torch.tensor([3.0]))
    assert mean["b"].dtype == torch.float32
    assert torch.equal(mean["n"], torch.tensor([3]))
    assert list(mean) == ["b", "n", "w"]
    assert torch.equal(load_file(paths[0])["w"], tensors[0]["w"])  # the files themselves are not touched


def test_sums_are_float64(tmp_path: Path) -> None:
    """In fp32 the ones would vanish beside 1e9."""
    values = [1e9, 1.0, -1e9, 1.0]
    paths = [write(tmp_path / f"{i}.safetensors", {"w": torch.tensor([v])}) for i, v in enumerate(values)]
    assert average_files(paths)["w"].item() == 0.5


def test_one_file_is_itself(tmp_path: Path) -> None:
    tensors = {"w": torch.rand(7)}
    assert torch.equal(average_files([write(tmp_path / "a.safetensors", tensors)])["w"], tensors["w"])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"w": torch.zeros(3), "n": torch.tensor([3])},
            r"w is \[2\] in .*a\.safetensors but \[3\] in .*b\.safetensors",
        ),
        ({"n": torch.tensor([3])}, "w is .* missing"),
        ({"w": torch.zeros(2), "n": torch.tensor([3]), "x": torch.zeros(1)}, "x is missing"),
        ({"w": torch.zeros(2), "n": torch.tensor([4])}, "n .* has no mean"),
    ],
)
def test_files_of_other_models_are_refused(tmp_path: Path, other: dict[str, torch.Tensor], message: str) -> None:
    first = write(tmp_path / "a.safetensors", {"w": torch.zeros(2), "n": torch.tensor([3])})
    with pytest.raises(CheckpointError, match=message):
        average_files([first, write(tmp_path / "b.safetensors", other)])


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no tensors in here")
    for path in (broken, tmp_path / "absent.safetensors"):
        with pytest.raises(CheckpointError, match=path.name):
            average_files([path])
    with pytest.raises(CheckpointError, match="no checkpoints"):
        average_files([])
