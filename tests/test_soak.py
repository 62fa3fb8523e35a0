"""benchmarks/soak finds what grows in a long run, and benchmarks/exactness_cost measures what exactness costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import exactness_cost, soak
from benchmarks.trend import trend

STEPS = 20_000
ROOT = Path(__file__).resolve().parents[1]
TINY = [
    f"--set={word}"
    for word in (
        "model.d_model=16", "model.encoder_layers=1", "model.decoder_layers=1", "model.heads=2",
        "model.feed_forward=16", "tokenizer.train.vocab_size=300", "data.max_length=48", "data.tokens_per_batch=48",
        "data.train=train?rows=400&shards=2", "data.validation=validation?rows=8", "data.test=test?rows=8",
    )
]  # fmt: skip


def noise(count: int, rho: float, seed: int) -> np.ndarray:
    """An AR(1) process of variance 1."""
    rng, values = np.random.default_rng(seed), np.zeros(count)
    for i in range(1, count):
        values[i] = rho * values[i - 1] + np.sqrt(1 - rho**2) * rng.normal()
    return values


def test_the_slope_of_a_line_is_found() -> None:
    x = np.arange(0, 100, 2.0)
    found = trend(x, 3 * x + 5, [0] * 50)
    assert found.slope == pytest.approx(3)
    assert found.high - found.low == pytest.approx(0, abs=1e-9)


def test_a_resumed_start_has_a_level_of_its_own() -> None:
    x = np.arange(100.0)
    y = np.where(x < 50, 1000.0, 10.0)
    assert trend(x, y, [0] * 100).high < 0, "one level: memory seems to fall"
    assert trend(x, y, [0] * 50 + [1] * 50).slope == pytest.approx(0)


def test_the_interval_of_autocorrelated_samples_covers_the_slope() -> None:
    """95% are aimed at; an interval that takes samples as independent covers 0 in about half of the cases."""
    x = np.arange(400.0)
    found = [trend(x, noise(400, 0.8, seed), [0] * 400) for seed in range(200)]
    assert 0.87 < np.mean([one.low <= 0 <= one.high for one in found]) <= 0.99


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="too few"):
        trend([1, 2, 3], [1, 1, 1], [0, 0, 0])


def samples(**changes: Any) -> list[dict[str, Any]]:
    """Samples of a run that is flat after a warm-up, resumed at half of its steps. `changes`: functions of the step."""
    lines = []
    for step, wave in zip(range(20, STEPS + 1, 20), noise(1000, 0.5, 3), strict=True):
        line = {
            "start": 1.0 if step <= STEPS / 2 else 2.0, "step": step,
            "memory": 5e8 + min(step, 4000) * 1e4 + 1e6 * wave,
            "seconds": 0.03 + 0.0002 * wave, "cpu_seconds": 0.02 + 0.0002 * wave, "objects": 500_000,
            "descriptors": 50, "threads": 15,
            "processes": 4, "shared_memory": 0, "temporary": 0, "run_files": 9,
        }  # fmt: skip
        lines.append(line | {name: change(line[name], step) for name, change in changes.items()})
    return lines


def test_a_flat_run_is_flat() -> None:
    assert [name for name, found in soak.judge(samples(), STEPS).items() if not found["flat"]] == []


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("memory", lambda value, step: value + 2000 * step),  # 40 MB in all
        ("seconds", lambda value, step: value * (1 + 0.1 * step / STEPS)),
        ("cpu_seconds", lambda value, step: value * (1 + 0.1 * step / STEPS)),
        ("objects", lambda value, step: value + step // 2),  # one in two steps
        ("descriptors", lambda value, step: value + step // 1000),  # one in each epoch
        ("temporary", lambda value, step: value + step // 200),  # one with each save
    ],
)
def test_growth_is_found(name: str, change: Any) -> None:
    assert [key for key, found in soak.judge(samples(**{name: change}), STEPS).items() if not found["flat"]] == [name]


@pytest.mark.slow
def test_a_leak_is_found_in_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))
    words = ["--steps", "200", "--pauses", "4", "--workers", "1", "--folder", str(tmp_path), "--busy", *TINY]
    words += [
        "--json",
        str(tmp_path / "soak.json"),
        "--set=loop.callbacks=[benchmarks.soak_probe:Probe, soak_leak:Leak]",
    ]
    assert soak.main(words) == 1
    report = json.loads((tmp_path / "soak.json").read_text())
    measures = report["measures"]
    assert (report["evaluation"], report["save"], report["starts"]) == (4, 4, 1)
    assert measures["temporary"]["growth"] == pytest.approx(200)
    assert measures["descriptors"]["low"] > 150, "one with each step, and loader processes inherit them"
    assert not measures["temporary"]["flat"]
    assert not measures["descriptors"]["flat"]
    for name in ("threads", "processes", "shared_memory"):
        assert measures[name]["flat"], measures[name]
    left = report["left"]
    assert len(left["temporary"]) == 200, left  # nothing but the leak
    assert not left["shared_memory"]
    assert not left["processes"]
    assert "not flat: " in capsys.readouterr().out


@pytest.mark.slow
def test_the_cost_of_a_ledger_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--steps", "4", "--tokens", "200", "--warmup", "0", "--repeats", "2", "--only", "demo-translation", *TINY]
    words += ["--variants", "loop.ledger"]
    words += ["--precision", "no", "--set=export.onnx=false", "--set=export.bench=0", "--set=export.safetensors=true"]
    assert exactness_cost.main([*words, "--set=export.int8=false", "--json", str(tmp_path / "cost.json")]) == 0
    report = json.loads((tmp_path / "cost.json").read_text())["demo-translation"]
    assert report["once"]["total"]["steps"] == 4
    assert report["once"]["parts"].keys() >= {
        "corpus fingerprint",
        "hashes",
        "export gates",
        "stock-load gate",
        "tracker",
    }
    assert all(0 <= part["share"] < 1 for part in report["once"]["parts"].values())
    assert report["once"]["parts"]["hashes"]["bytes"] > 3 * 4 * 10_000  # of weights and moments
    plain, ledger = report["blocks"]["plain"], report["blocks"]["loop.ledger"]
    assert [block["rows"] for block in plain] == [block["rows"] for block in ledger]
    cost = report["steps"]["loop.ledger"]["cpu"]
    assert cost["low"] <= cost["mean"] <= cost["high"]
    assert "loop.ledger" in capsys.readouterr().out
