"""`rankzero plan`: its arithmetic by hand, its model states against the tensors of real runs, and what it says."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import typer
from plan_hooks import save_states
from processes import engine_environment, next_logs, run_ranks
from review_world import recipe as review_recipe
from slow import slow_except
from typer.testing import CliRunner

from launch.configs import describe
from launch.plan import Plan, Wishes, make_plan, plan_command
from launch.planning import advice, training
from launch.planning.advice import CONFIGS, CPU_CONFIGS, GIB, Limit, cheapest
from launch.planning.document import as_dict
from launch.planning.gathering import REPLAYS
from launch.planning.gpus import GPUS, find_gpu
from launch.planning.model import Parameter, Sketch
from launch.planning.rehearsal import Timeline
from launch.planning.show import timing
from launch.planning.states import Setup, ZeroSettings, states
from trainer import cpu_info
from trainer.errors import DataError, UsageError

ALL = Wishes(ranks=(1, 2))
KEYS = {"engine", "offload", "ranks", "precision", "activation_checkpointing", "parameters", "gradients", "optimizer"}
KEYS |= {"host", "activations", "logits", "step_parts", "step", "start", "evaluation", "peak", "sent", "config", "fits"}


@pytest.fixture(scope="module")
def plan(recipe: Path) -> Plan:
    """Of the tiny translation recipe, for GPUs."""
    return make_plan(recipe, (), Wishes(gpu="A100", ranks=(1, 2), throughput=1000.0, price=2.0))


def of(plan: Plan, engine: str, precision: str = "fp32", checkpointing: bool = False, offload: bool = False) -> Any:
    """The one configuration with most ranks."""
    wanted = (engine, precision, checkpointing, offload)
    found = [
        c
        for c in plan.configurations
        if (c.setup.engine, c.setup.precision, c.setup.checkpointing, c.setup.offload) == wanted
    ]
    return found[-1]


def transformer_elements(vocabulary: int, d: int, ff: int, matrices: int) -> int:
    """Parameters of one encoder and one decoder layer, pre-norm, with `matrices` embeddings, counted by hand."""
    norm = 2 * d
    feed_forward = d * ff + ff + ff * d + d
    encoder = 3 * d * d + d * d + feed_forward + 2 * norm
    decoder = 2 * (4 * d * d) + feed_forward + 3 * norm
    return matrices * vocabulary * d + encoder + decoder + 2 * norm


# -- the model and its states ------------------------------------------------------------------------------------------


def test_parameters_are_those_counted_by_hand_and_tied_ones_count_once(plan: Plan, recipe: Path) -> None:
    vocabulary = plan.data.vocabulary
    tied = transformer_elements(vocabulary, 32, 64, 1)
    assert plan.sketch.all_elements == plan.sketch.trained_elements == tied
    untied = make_plan(recipe, ["model.tied_embeddings=false"], Wishes(ranks=(1,), precisions=("fp32",)))
    assert untied.sketch.all_elements == transformer_elements(vocabulary, 32, 64, 3)


def test_states_of_engines_that_hold_everything(plan: Plan) -> None:
    elements, tensors = plan.sketch.all_elements, len(plan.sketch.parameters)
    for engine in ("single", "ddp"):
        for precision in ("fp32", "bf16", "fp16"):  # autocast: the weights stay fp32
            kept = of(plan, engine, precision).states
            assert (kept.parameters, kept.gradients, kept.host) == (4 * elements, 4 * elements, 0)
            assert kept.optimizer == 8 * elements + 4 * tensors  # two moments, and a count of steps for each tensor


SMALL = Sketch(
    parameters=(
        Parameter("embedding", (7, 3), 1, None),
        Parameter("layer.weight", (5, 3), 0, 0),
        Parameter("layer.bias", (5,), 1, 0),
        Parameter("frozen", (4, 2), None, None),
    ),
    moments=2, counts=True, buffers=12, modules=((0,), (1, 2), (3,)), blocks=1,
)  # fmt: skip


def test_states_of_sharded_engines_by_hand() -> None:
    """21 + 5 elements without decay, 15 with it, 8 frozen; two ranks; nothing small enough to stay whole."""
    zero = ZeroSettings(persistent=0)
    copy = 4 * 49 + 12
    one = states(SMALL, Setup("zero1", 2, "fp32", "gpu", zero=zero))  # groups of 15 and 26 are padded to 16 and 28
    assert (one.parameters, one.gradients, one.optimizer, one.host) == (4 * 52, 4 * 41, 4 * 22 * 3 + 8, copy)
    two = states(SMALL, Setup("zero2", 2, "bf16", "gpu", zero=zero))
    assert (two.parameters, two.gradients, two.optimizer) == (2 * 52, 4 * 22, 4 * 22 * 3 + 8)
    three = states(SMALL, Setup("zero3", 2, "bf16", "gpu", zero=zero))  # parts of 11, 8, 3 and, frozen, 4
    assert (three.parameters, three.gradients, three.optimizer) == (2 * 26, 4 * 22, 4 * 22 * 3 + 8)
    plain = states(SMALL, Setup("zero3", 2, "fp32", "gpu", zero=zero))  # the optimizer has fp32 weights of its own
    assert (plain.parameters, plain.optimizer) == (4 * 26, 4 * 22 * 3 + 8)
    whole = states(SMALL, Setup("zero3", 2, "fp32", "gpu", zero=ZeroSettings(persistent=10)))
    assert whole.parameters == 4 * 26 + 4 * (5 + 8)  # the bias and the frozen matrix are never cut up
    sharded = states(SMALL, Setup("fsdp2", 2, "bf16", "gpu"))  # rows: 4 x 3, 3 x 3, 3, and 2 x 2 frozen
    assert (sharded.parameters, sharded.gradients, sharded.optimizer) == (4 * 28, 4 * 24, 8 * 24 + 12)
    away = states(SMALL, Setup("zero3", 2, "bf16", "gpu", offload=True, zero=zero))
    assert (away.parameters, away.gradients, away.optimizer) == (0, 0, 0)
    assert away.host > three.total


def test_frozen_parameters_have_neither_gradient_nor_moments(reviews: Path, bert: Path) -> None:
    made = review_recipe(reviews, {"kind": "pretrained", "name": str(bert)}, optim={"freeze_trunk": True})
    found = make_plan(made, (), Wishes(ranks=(1,), precisions=("fp32",)))
    head = 32 * 2 + 2
    assert found.sketch.trained_elements == head < found.sketch.all_elements
    kept = of(found, "single").states
    assert (kept.gradients, kept.optimizer) == (4 * head, 8 * head + 8)
    assert kept.parameters == 4 * found.sketch.all_elements
    assert found.checkpoint.size == 4 * found.sketch.all_elements + 8 * head


def test_a_pretrained_model_is_made_without_its_weights(reviews: Path, bert: Path, tmp_path: Path) -> None:
    folder = tmp_path / "config-only"
    folder.mkdir()
    for path in bert.iterdir():
        if "safetensors" not in path.name:
            (folder / path.name).write_bytes(path.read_bytes())
    made = review_recipe(reviews, {"kind": "pretrained", "name": str(folder), "pooling": "mean"})
    found = make_plan(made, (), Wishes(ranks=(1,), precisions=("fp32",)))
    whole = make_plan(made.model_copy(update={"model": made.model.model_copy(update={"name": str(bert)})}), (), ALL)
    assert found.sketch.all_elements == whole.sketch.all_elements
    assert found.notes == []


# -- activations, traffic, peaks ---------------------------------------------------------------------------------------


def test_checkpointing_and_half_precision_need_less_and_logits_are_apart(plan: Plan) -> None:
    plain = of(plan, "single")
    assert of(plan, "single", checkpointing=True).activations < 0.85 * plain.activations  # of one layer on each side
    assert of(plan, "zero2", "bf16").activations < plain.activations
    labels = math.prod(plan.shapes["labels"])
    least = 4 * labels * plan.data.vocabulary
    assert least <= plain.logits <= 6 * least


def test_a_gradient_is_kept_once_it_is_ready_and_the_peak_is_where_the_sum_is_largest() -> None:
    events: list[tuple[Any, ...]] = [
        ("take", 0, 100, False), ("take", 1, 60, True), ("turn",), ("take", 2, 84, False), ("give", 1), ("grad", 0),
        ("give", 2), ("take", 3, 60, False), ("grad", 1), ("give", 3), ("give", 0), ("grad", 2), ("end",),
    ]  # fmt: skip
    kept = states(SMALL, Setup("single", 1, "fp32", "gpu"))
    base = kept.parameters + kept.optimizer + SMALL.buffers
    alone = REPLAYS["single"](SMALL, Setup("single", 1, "fp32", "gpu"), 1).play(Timeline(events))
    assert alone.total == base + 244  # before the first gradient, of 84 bytes, has taken the place of its raw one
    assert alone.parts["logits"] == 60
    again = REPLAYS["single"](SMALL, Setup("single", 1, "fp32", "gpu"), 3).play(Timeline(events))
    assert again.total == base + 244 + kept.gradients  # from the second micro-batch on all gradients stand
    ddp = REPLAYS["ddp"](SMALL, Setup("ddp", 2, "fp32", "gpu"), 2).play(Timeline(events))
    assert ddp.total == base + 244 + 2 * kept.gradients  # and the buckets beside them


def test_bytes_sent_by_hand(plan: Plan) -> None:
    elements = plan.sketch.all_elements
    assert of(plan, "single").sent == 0
    assert of(plan, "ddp").sent == of(plan, "ddp", "bf16").sent == 4 * elements + plan.sketch.buffers
    padded = of(plan, "zero2", "bf16").states.parameters
    assert of(plan, "zero1", "bf16").sent == 4 * elements + padded // 2
    assert of(plan, "zero2", "bf16").sent == 2 * (4 * elements) + padded // 2  # four lanes: two micro-batches a rank
    assert of(plan, "fsdp2").sent > of(plan, "ddp").sent


# -- steps, time, disk -------------------------------------------------------------------------------------------------


def test_steps_tokens_time_and_disk(plan: Plan, recipe: Path) -> None:
    assert (plan.training.steps, plan.training.ends) == (12, "loop.max_steps")
    assert (plan.data.rows, plan.data.whole, plan.data.rows_from) == (200, True, "counted")
    assert plan.hours[1] == pytest.approx(plan.training.tokens / 1000 / 3600)
    assert plan.hours[2] == pytest.approx(plan.hours[1] / 2)
    assert plan.checkpoint.size == 12 * plan.sketch.all_elements
    assert plan.checkpoint.background
    longer = make_plan(recipe, ["loop.max_steps=null", "loop.epochs=3"], Wishes(ranks=(4,), precisions=("fp32",)))
    assert longer.training.steps == 3 * longer.data.steps
    assert longer.training.rows == 600
    uneven = make_plan(recipe, (), Wishes(ranks=(3,), precisions=("fp32",), throughput=1000.0))
    assert uneven.hours[3] == pytest.approx(plan.hours[1] / 2)  # two of four lanes are one rank's
    assert "idle" in uneven.notes[0]


def test_steps_are_those_of_a_run(recipe: Path, tmp_path: Path) -> None:
    """One epoch, whose steps the plan has counted; and a run tells speed, rows and vocabulary to the next plan."""
    words = [
        "loop.max_steps=null",
        "loop.epochs=1",
        "evaluation.splits=[]",
        "data.validation=null",
        "loop.eval_every=99",
    ]
    before = make_plan(recipe, words, Wishes(ranks=(1,), precisions=("fp32",), run=tmp_path / "run"))
    run_ranks(["train", recipe, *words, "--run", tmp_path / "run"], next_logs(tmp_path / "run")).check()
    status = json.loads((tmp_path / "run/status.json").read_text())
    assert status["step"] == before.training.steps
    checkpoint = tmp_path / "run/checkpoints" / f"step-{status['step']:08d}"
    written = sum((checkpoint / f"{name}.safetensors").stat().st_size for name in ("model", "optimizer"))
    assert 0 < written - before.checkpoint.size < 20_000  # headers
    after = make_plan(recipe, words, Wishes(ranks=(1,), precisions=("fp32",), run=tmp_path / "run"))
    assert (after.data.vocabulary, after.data.rows) == (before.data.vocabulary, before.data.rows)
    assert "manifest.json" in after.data.rows_from
    assert before.speed is None
    assert after.speed is not None
    assert after.speed.tokens > 0


def test_a_large_corpus_is_sampled_over_its_whole_length(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from launch.planning import corpus, sample

    monkeypatch.setattr(sample, "SAMPLE", 4000)
    monkeypatch.setattr(corpus, "LEARNT", 40)
    found = make_plan(recipe, ("data.block_rows=16",), Wishes(ranks=(1,), precisions=("fp32",)))
    assert found.data.sampled < 100
    assert (found.data.rows, found.data.whole) == (200, False)
    assert found.data.vocabulary == 200  # the recipe's: forty rows give fewer
    whole = make_plan(recipe, (), Wishes(ranks=(1,), precisions=("fp32",)))
    assert found.data.tokens == pytest.approx(whole.data.tokens, rel=0.25)
    assert found.data.steps == pytest.approx(whole.data.steps, rel=0.5)


# -- what fits ---------------------------------------------------------------------------------------------------------


def test_the_cheapest_that_fits_has_fewest_ranks_then_the_simplest_engine(plan: Plan) -> None:
    assert plan.best is of(plan, "single", "bf16")
    assert plan.command is not None
    assert plan.command.endswith("--config ddp_bf16 --nproc 1")
    two = [c for c in plan.configurations if c.setup.ranks == 2]
    best = cheapest(two, Limit(80 * GIB, GPUS["A100"]))
    assert best is not None
    assert (best.setup.name, best.setup.precision) == ("ddp", "bf16")
    turing = cheapest(plan.configurations, Limit(16 * GIB, GPUS["T4"]))  # no bf16 there
    assert turing is not None
    assert (turing.setup.name, turing.setup.precision) == ("single", "fp16")
    assert cheapest(plan.configurations, Limit(GIB)) is None  # CUDA alone takes as much


def test_configs_that_are_proposed_are_what_they_are_said_to_be() -> None:
    for table, cpu in ((CONFIGS, False), (CPU_CONFIGS, True)):
        for (way, precision), words in table.items():
            name, *alone = words.split()
            found = describe(name)
            engine = "single" if alone else found.engine
            assert (engine, found.precision.replace("no", "fp32")) == (way.removesuffix(" offload"), precision), words
            assert found.cpu == cpu or name == "debug"
            assert name.endswith("_offload") == way.endswith(" offload")


def test_a_gpu_by_any_spelling_and_unknown_ones_refused() -> None:
    assert find_gpu("nvidia a100-40gb").memory == 40
    assert find_gpu("rtx 4090") is GPUS["RTX4090"]
    with pytest.raises(UsageError, match="did you mean H100"):
        find_gpu("H10O")


# -- the command -------------------------------------------------------------------------------------------------------


def app() -> typer.Typer:
    made = typer.Typer()
    made.command("plan")(plan_command)
    made.command("other")(lambda: None)
    return made


def test_what_it_prints_fits_the_page(recipe: Path) -> None:
    found = CliRunner().invoke(app(), ["plan", str(recipe), "--gpu", "L4", "--ranks", "1,2"], catch_exceptions=False)
    assert found.exit_code == 0
    assert max(map(len, found.stdout.splitlines())) <= 120
    first = found.stdout.splitlines()[:6]
    assert any(line.startswith("Cheapest  single on 1 rank") for line in first)
    for word in ("zero3 offload", "fsdp2", "12 steps (loop.max_steps)", "--throughput"):
        assert word in found.stdout


def test_json_is_one_object_with_every_configuration(recipe: Path) -> None:
    found = CliRunner().invoke(app(), ["plan", str(recipe), "--json", "--ranks", "2", "--memory", "24"])
    plan = json.loads(found.stdout)
    assert {"recipe", "model", "data", "training", "checkpoint", "memory", "answer", "configurations"} <= plan.keys()
    assert all(c.keys() >= KEYS for c in plan["configurations"])
    shown = {(c["engine"], c["offload"]) for c in plan["configurations"]}
    assert shown == {(e, False) for e in ("ddp", "zero1", "zero2", "zero3", "fsdp2")} | {("zero3", True)}
    assert len(plan["configurations"]) == 6 * 3 * 2
    assert all(c["peak"] == max(c["step"], c["start"], c["evaluation"]) for c in plan["configurations"])
    assert plan["answer"]["command"].startswith("rankzero train ")


def test_cpu_plans_name_cpu_configs_and_share_the_memory(recipe: Path) -> None:
    found = make_plan(recipe, (), Wishes(cpu=True, ranks=(2,), memory=1.0))
    libraries = {(c.setup.engine, c.setup.precision): c.step.parts["libraries"] for c in found.configurations}
    assert libraries["ddp", "fp32"] < libraries["zero2", "fp32"] < libraries["zero2", "bf16"]
    assert all(c.step.total == sum(c.step.parts.values()) for c in found.configurations)
    assert {c.setup.precision for c in found.configurations} == {"fp32", "bf16"}
    assert not any(c.setup.offload for c in found.configurations)
    assert found.best is not None
    assert {c["config"] for c in as_dict(found)["configurations"]} >= {"cpu", "cpu_bf16", "cpu_zero3", "cpu_fsdp2"}
    halves = of(found, "ddp").peak
    assert Limit(2 * halves, cpu=True).holds(of(found, "ddp"))
    assert not Limit(2 * halves - 1, cpu=True).holds(of(found, "ddp"))


@pytest.mark.parametrize(
    ("wishes", "says"),
    [
        (Wishes(gpu="A101"), "did you mean A10"),
        (Wishes(ranks=(8,)), "data.lanes=4"),
        (Wishes(ranks=(0,)), "at most 4"),
        (Wishes(memory=0.0), "--memory 0"),
        (Wishes(precisions=("fp8",)), "allowed: fp32, tf32, bf16, fp16"),
        (Wishes(cpu=True, precisions=("fp16",)), "needs a GPU"),
        (Wishes(cpu=True, gpu="A100"), "give one of them"),
        (Wishes(throughput=-1.0), "--throughput -1"),
    ],
)
def test_wrong_wishes_are_refused_with_the_way_out(recipe: Path, wishes: Wishes, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        make_plan(recipe, (), wishes)


def test_wrong_recipes_and_rows_are_refused_as_a_training_would(recipe: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'tokens_per_batch'"):
        make_plan(recipe, ["data.tokens_per_bach=100"])
    with pytest.raises(DataError, match="no file"):
        make_plan(recipe, ["data.train=nothing.jsonl"])
    with pytest.raises(DataError, match="more than the 200 rows"):
        make_plan(recipe, ["data.lanes=256"], Wishes(ranks=(1,)))


def test_help_imports_no_torch() -> None:
    code = "import sys, launch.plan; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# -- real runs ---------------------------------------------------------------------------------------------------------


@pytest.mark.ranks
@pytest.mark.parametrize("precision", slow_except(["fp32", "bf16"], "fp32"))
@pytest.mark.parametrize("engine", slow_except(["single", "ddp", "zero1", "zero2", "zero3", "fsdp2"], "zero2", "fsdp2"))
def test_model_states_are_those_of_a_real_run_to_the_byte(
    recipe: Path, tmp_path: Path, engine: str, precision: str
) -> None:
    words = ["loop.max_steps=1", "evaluation.splits=[]", "data.validation=null", "optim.weight_decay=0.01"]
    found = make_plan(recipe, words, Wishes(cpu=True, ranks=(1, 2), precisions=(precision,)))
    env = engine_environment(engine) | {"ACCELERATE_MIXED_PRECISION": "bf16" if precision == "bf16" else "no"}
    run, world = tmp_path / "run", 1 if engine == "single" else 2
    hook = partial(save_states, tmp_path / "states")
    run_ranks(["train", recipe, *words, "--run", run], next_logs(run), world, hook=hook, env=env).check()
    seen = json.loads((tmp_path / "states-0").read_text())
    kept = of(found, engine, precision).states
    assert seen == {name: getattr(kept, name) for name in ("parameters", "gradients", "optimizer", "host")}


# -- what the devices are known for ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("emulated", "best"), [(True, ("fp32", "debug")), (False, ("bf16", "cpu_bf16 --nproc 1"))])
def test_bf16_is_proposed_for_processors_that_have_it(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, emulated: bool, best: tuple[str, str]
) -> None:
    monkeypatch.setattr(cpu_info, "bf16_arithmetic", lambda: not emulated)
    monkeypatch.setattr(advice, "bf16_arithmetic", lambda: not emulated)
    found = make_plan(recipe, (), Wishes(cpu=True, ranks=(1,), memory=4.0))
    assert found.best is not None
    assert (found.best.setup.precision, advice.config_of(found.best)) == best
    assert any("emulates bf16" in note for note in found.notes) == emulated
    fp32 = make_plan(recipe, (), Wishes(cpu=True, ranks=(1,), precisions=("fp32",)))
    assert not any("bf16" in note for note in fp32.notes)


A100 = {"gpus": ["NVIDIA A100-SXM4-80GB"], "cpu": "another CPU"}


@pytest.mark.parametrize(
    ("devices", "wishes", "known"),
    [
        ({"gpus": [], "cpu": "this CPU"}, {"cpu": True}, True),
        ({"gpus": [], "cpu": "another CPU"}, {"cpu": True}, False),
        ({"gpus": [], "cpu": "this CPU"}, {"gpu": "A100"}, False),
        ({"gpus": [], "cpu": "this CPU"}, {}, False),
        (A100, {"gpu": "A100"}, True),
        (A100, {}, True),
        (A100, {"gpu": "H100"}, False),
        (A100, {"gpu": "A10"}, False),
        (A100, {"cpu": True}, False),
    ],
)
def test_hours_are_known_where_the_speed_was_measured_on_the_planned_device(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, devices: dict[str, Any], wishes: Any, known: bool
) -> None:
    monkeypatch.setattr(training, "cpuinfo", lambda *_: "this CPU")
    line = {"step": 1, "split": "train", "tokens_per_second": 500.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    manifest = {"ranks": 1, "engine": "single", "precision": "no", "devices": devices}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    words = Wishes(ranks=(1,), precisions=("fp32",), run=tmp_path, **wishes)
    found = make_plan(recipe, (), words)
    assert found.speed is not None
    assert (found.hours == {1: pytest.approx(found.training.tokens / 500 / 3600)}) == known
    assert (found.hours == {}) != known
    (time, *_) = timing(found)
    assert ("not known for" in time) != known
    assert "500 tokens/s" in time
    assert as_dict(found)["configurations"][0]["hours"] == found.hours.get(1)


def test_names_of_gpus_as_drivers_write_them() -> None:
    drivers = {
        "NVIDIA L40S": "L40S",
        "NVIDIA L4": "L4",
        "NVIDIA A10": "A10",
        "NVIDIA H200": "H200",
        "NVIDIA GeForce RTX 4090": "RTX4090",
        "NVIDIA RTX A6000": "RTXA6000",
        "NVIDIA RTX 6000 Ada Generation": "RTX6000Ada",
        "NVIDIA A100-PCIE-40GB": "A100-40",
        "Tesla V100-SXM2-16GB": "V100-16",
        "AMD Instinct MI300X": "MI300X",
    }
    for device, name in drivers.items():
        assert {gpu.name for gpu in GPUS.values() if gpu.matches(device)} - {"A100", "V100"} == {name}, device
