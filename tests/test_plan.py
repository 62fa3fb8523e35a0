"""`rankzero plan`: its arithmetic by hand, its model states against the tensors of real runs, and its output."""

from __future__ import annotations

import gzip
import io
import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from conftest import tiny_recipe
from plan_hooks import save_states
from processes import engine_environment, next_logs, run_ranks
from review_helpers import recipe as review_recipe
from review_helpers import written
from slow import slow_except
from typer.testing import CliRunner

from benchmarks import large_corpus
from benchmarks.counting_store import CountingStore, Repeated
from launch.configs import choose, describe
from launch.local import settings
from launch.tools.plan import corpus, planner, sample
from launch.tools.plan.command import plan_command
from launch.tools.plan.gpus import GPUS, find_gpu, is_gpu
from launch.tools.plan.planner import GIB, Plan, PlanOptions, cheapest, make_plan
from launch.tools.plan.show import summary
from launch.tools.plan.trace import Trace, peak_of
from trainer.data import fingerprints
from trainer.errors import DataError, UsageError
from trainer.recipe_loading import Recipe, load_recipe

ALL = PlanOptions(ranks=(1, 2))
KEYS = {"engine", "offload", "ranks", "precision", "activation_checkpointing", "parameters", "gradients", "optimizer"}
KEYS |= {"host", "activations", "logits", "step_parts", "step", "start", "evaluation", "peak", "sent", "config", "fits"}


@pytest.fixture(scope="module")
def plan(recipe: Path) -> Plan:
    """Return a plan of the tiny translation recipe for GPUs."""
    return make_plan(recipe, (), PlanOptions(gpu="A100", ranks=(1, 2), throughput=1000.0, price=2.0))


def of(plan: Plan, engine: str, precision: str = "fp32", checkpointing: Any = False, offload: bool = False) -> Any:
    """Return the configuration with most ranks."""
    wanted = (engine, precision, checkpointing, offload)
    planned = [
        c for c in plan.configurations if (c.engine, c.precision, c.activation_checkpointing, c.offload) == wanted
    ]
    return planned[-1]


def transformer_elements(vocabulary: int, d: int, ff: int, matrices: int) -> int:
    """Count the parameters of one pre-norm encoder and decoder layer with `matrices` embeddings."""
    norm = 2 * d
    feed_forward = d * ff + ff + ff * d + d
    encoder = 3 * d * d + d * d + feed_forward + 2 * norm
    decoder = 2 * (4 * d * d) + feed_forward + 3 * norm
    return matrices * vocabulary * d + encoder + decoder + 2 * norm


def test_the_plan_says_how_many_lanes_will_be_fused(recipe: Path) -> None:
    auto, one = "loop.fuse_lanes=auto", PlanOptions(gpu="L4", ranks=(1,))
    roomy, bare, cpu = (make_plan(recipe, (auto,), options) for options in (one, ALL, PlanOptions(cpu=True)))
    text = "loop.fuse_lanes=auto: planned with 1 lane in a forward. A GPU measures at the first start what fits"
    assert roomy.notes == [f"{text}: by this plan 4 of 4 lanes of a rank for the cheapest configuration"]
    assert bare.notes == [text]
    assert cpu.notes[-1] == "loop.fuse_lanes=auto is 1 on a CPU"
    best = roomy.answer
    assert best is not None
    room = best.step + 1.5 * (best.activations + best.logits)  # for two lanes, and not for four
    found = planner._fused(load_recipe(recipe, [auto]), best, int(room), on_cpu=False)
    assert found == [f"{text}: by this plan 2 of 4 lanes of a rank for the cheapest configuration"]


# -- the model and its states ------------------------------------------------------------------------------------------


def test_parameters_are_those_counted_by_hand_and_tied_ones_count_once(plan: Plan, recipe: Path) -> None:
    vocabulary = plan.model["vocabulary"]
    tied = transformer_elements(vocabulary, 32, 64, 1)
    assert plan.model["parameters"] == plan.model["trained"] == tied
    untied = make_plan(recipe, ["model.tied_embeddings=false"], PlanOptions(ranks=(1,), precisions=("fp32",)))
    assert untied.model["parameters"] == transformer_elements(vocabulary, 32, 64, 3)


def test_states_of_engines_without_sharding(plan: Plan) -> None:
    elements = plan.model["parameters"]
    for engine in ("single", "ddp"):
        for precision in ("fp32", "bf16", "fp16"):  # autocast: the weights stay fp32
            c = of(plan, engine, precision)
            assert (c.parameters, c.gradients, c.optimizer, c.host) == (4 * elements, 4 * elements, 8 * elements, 0)


def test_states_of_sharded_engines_by_hand(plan: Plan) -> None:
    """Two ranks. ZeRO-3 shards no parameter of this model, but keeps a part of each besides."""
    n, buffers = plan.model["parameters"], of(plan, "single").step_parts["buffers"]

    def states(engine: str, precision: str, offload: bool = False) -> list[float]:
        c = of(plan, engine, precision, offload=offload)
        copy = buffers + (0 if engine in ("zero3", "fsdp2") else 4 * n)
        return [size / n for size in (c.parameters, c.gradients, c.optimizer, c.host - copy)]

    assert states("zero1", "fp32") == [4, 4, 6, 0]  # two moments and fp32 weights, of half of the elements
    assert states("zero1", "bf16") == [2, 2, 6, 0]
    assert states("zero2", "fp32") == [4, 2, 6, 0]
    assert states("zero2", "bf16") == [2, 2, 6, 0]
    assert states("zero3", "fp32") == [2 + 4, 2, 6, 0]
    assert states("zero3", "bf16") == [1 + 2, 2, 6, 0]
    assert states("fsdp2", "fp32") == states("fsdp2", "bf16") == [2, 2, 4, 0]
    assert states("zero3", "bf16", offload=True) == [2, 0, 0, 1 + 2 * 2 + 6]


def test_copies_are_sharded_over_their_own_ranks_by_hand(recipe: Path) -> None:
    """Four ranks, two copies: a rank has half of the states, as under FSDP2 on two ranks, not a quarter."""
    planned = make_plan(recipe, (), PlanOptions(ranks=(2, 4), precisions=("fp32",), copies=2))
    n = planned.model["parameters"]

    def state(ranks: int, copies: int) -> Any:
        (found,) = [
            c for c in planned.configurations
            if (c.engine, c.ranks, c.copies, c.activation_checkpointing) == ("fsdp2", ranks, copies, False)
        ]  # fmt: skip
        return found

    four, hybrid = state(4, 1), state(4, 2)
    assert [size / n for size in (hybrid.parameters, hybrid.gradients, hybrid.optimizer)] == [2, 2, 4]
    assert [size / n for size in (four.parameters, four.gradients, four.optimizer)] == [1, 1, 2]
    gathered, reduced = 4 * (2 * n - hybrid._layout.outside), 4 * n  # twice each layer, once the rest; its gradients
    assert hybrid.sent == (gathered + reduced) // 2 + 2 * (4 * n // 2) // 2  # within a copy, and between both
    assert (hybrid.title, four.title) == ("fsdp2 x 2", "fsdp2")
    assert not [c for c in planned.configurations if c.copies > 1 and (c.engine, c.ranks) != ("fsdp2", 4)]
    averaged = make_plan(recipe, ["optim.averaging.kind=ema"], PlanOptions(ranks=(4,), precisions=("fp32",), copies=2))
    assert {c.copies: c.step_parts["average"] for c in averaged.configurations if c.engine == "fsdp2"} == {
        1: n, 2: 2 * n,
    }  # fmt: skip


def test_frozen_parameters_have_neither_gradient_nor_moments(reviews: Path, bert: Path) -> None:
    made = review_recipe(reviews, {"kind": "pretrained", "name": str(bert)}, optim={"freeze_trunk": True})
    planned = make_plan(made, (), PlanOptions(ranks=(1,), precisions=("fp32",)))
    head = 32 * 2 + 2
    elements = planned.model["parameters"]
    assert planned.model["trained"] == head < elements
    alone = of(planned, "single")
    assert (alone.parameters, alone.gradients, alone.optimizer) == (4 * elements, 4 * head, 8 * head)
    assert planned.checkpoint["size"] == 4 * elements + 8 * head


def test_a_pretrained_model_is_built_without_its_weights(reviews: Path, bert: Path, tmp_path: Path) -> None:
    folder = tmp_path / "config-only"
    folder.mkdir()
    for path in bert.iterdir():
        if "safetensors" not in path.name:
            (folder / path.name).write_bytes(path.read_bytes())
    made = review_recipe(reviews, {"kind": "pretrained", "name": str(folder), "pooling": "mean"})
    planned = make_plan(made, (), PlanOptions(ranks=(1,), precisions=("fp32",)))
    whole = make_plan(made.model_copy(update={"model": made.model.model_copy(update={"name": str(bert)})}), (), ALL)
    assert planned.model["parameters"] == whole.model["parameters"]
    assert planned.notes == []


# -- activations, traffic, peaks ---------------------------------------------------------------------------------------


def test_checkpointing_and_half_precision_need_less_memory(plan: Plan) -> None:
    plain = of(plan, "single")
    assert of(plan, "single", checkpointing=True).activations < 0.85 * plain.activations  # of one layer on each side
    assert of(plan, "zero2", "bf16").activations < plain.activations
    labels = math.prod(plan.data["largest_micro_batch"]["labels"])
    least = 4 * labels * plan.model["vocabulary"]
    assert least <= plain.logits <= 6 * least


def test_the_choice_of_layers_in_a_recipe_is_planned(recipe: Path) -> None:
    """Every second layer needs more than full activation checkpointing, and less than none."""
    words = ["loop.activation_checkpointing={every: 2}", "model.encoder_layers=2", "model.decoder_layers=2"]
    found = make_plan(recipe, words, PlanOptions(gpu="A100", ranks=(1,), precisions=("fp32",)))
    choices: list[Any] = [False, {"every": 2}, True]
    none, some, full = (of(found, "single", checkpointing=choice) for choice in choices)
    assert full.activations < some.activations < none.activations
    assert (none.checkpointed, some.checkpointed, full.checkpointed) == (0, 0.5, 1)
    assert some.row()["activation_checkpointing"] == {"every": 2}


def test_peak_of_a_trace_by_hand() -> None:
    trace: Trace = [
        ("activations", 100), ("logits", 60), ("activations", 84), ("logits", -60), ("activations", -84),
        ("gradients", 21), ("activations", 60), ("gradients", 15), ("activations", -160), ("gradients", 5),
    ]  # fmt: skip
    assert peak_of(trace) == {"activations": 184, "logits": 60, "gradients": 0}
    assert peak_of(trace, 2) == {"activations": 184, "logits": 60, "gradients": 0}
    assert peak_of(trace, 4) == {"activations": 160, "logits": 0, "gradients": 4 * 36}


def test_several_micro_batches_a_step_keep_gradients_from_the_first(plan: Plan, recipe: Path) -> None:
    """Two ranks with two lanes each, against four ranks with one."""
    four = make_plan(recipe, (), PlanOptions(ranks=(4,), precisions=("fp32",)))
    n = plan.model["parameters"]
    assert of(plan, "ddp").step - of(four, "ddp").step == 4 * n  # outside of the buckets
    assert of(plan, "fsdp2").step_parts["gradients"] == 4 * n  # whole
    assert of(four, "fsdp2").step_parts["gradients"] < n


def test_bytes_sent_by_hand(plan: Plan, recipe: Path) -> None:
    elements = plan.model["parameters"]
    assert of(plan, "single").sent == 0
    assert of(plan, "ddp").sent == of(plan, "ddp", "bf16").sent == 4 * elements
    assert of(plan, "zero1", "bf16").sent == 4 * elements + elements  # and an all-gather of 2 bytes
    assert of(plan, "zero2", "bf16").sent == 2 * (4 * elements) + elements  # four lanes: two micro-batches a rank
    assert of(plan, "fsdp2").sent > of(plan, "ddp").sent
    averaged = make_plan(recipe, ["optim.averaging.kind=ema"], PlanOptions(ranks=(2,), precisions=("fp32",)))
    more = {engine: of(averaged, engine).sent - of(plan, engine).sent for engine in ("zero2", "zero3", "fsdp2")}
    assert more == {"zero2": 2 * elements, "zero3": 0, "fsdp2": 0}, "averages of parts send nothing"


# -- steps, time, disk -------------------------------------------------------------------------------------------------


def test_the_training_waits_for_saves_of_sharded_engines(plan: Plan) -> None:
    for engine, words in (("ddp", "in the background"), ("zero1", "while the training waits and all ranks gather")):
        lines = list(summary(replace(plan, answer=of(plan, engine))))
        assert words in lines[-1], engine


def test_steps_tokens_time_and_disk(plan: Plan, recipe: Path) -> None:
    assert (plan.training["steps"], plan.training["ends"]) == (12, "loop.max_steps")
    assert (plan.data["rows"], plan.data["sampled_rows"], plan.data["rows_from"]) == (200, 200, "counted")
    hours = {c.ranks: c.hours for c in plan.configurations}
    assert hours[1] == pytest.approx(plan.training["tokens"] / 1000 / 3600)
    assert hours[2] == pytest.approx(hours[1] / 2)
    assert plan.checkpoint["size"] == 12 * plan.model["parameters"]
    assert plan.checkpoint["background"]
    longer = make_plan(recipe, ["loop.max_steps=null", "loop.epochs=3"], PlanOptions(ranks=(4,), precisions=("fp32",)))
    assert longer.training["steps"] == 3 * longer.training["steps_per_epoch"]
    assert longer.training["rows"] == 600
    uneven = make_plan(recipe, (), PlanOptions(ranks=(3,), precisions=("fp32",), throughput=1000.0))
    assert uneven.configurations[0].hours == pytest.approx(hours[1] / 2)  # two of four lanes are one rank's
    assert "idle" in uneven.notes[0]


def test_steps_are_those_of_a_run(recipe: Path, tmp_path: Path) -> None:
    """A plan counts the steps of an epoch, and takes the throughput of an earlier run."""
    words = [
        "loop.max_steps=null",
        "loop.epochs=1",
        "evaluation.splits=[]",
        "data.validation=null",
        "loop.eval_every=99",
    ]
    before = make_plan(recipe, words, PlanOptions(ranks=(1,), precisions=("fp32",), run=tmp_path / "run"))
    run_ranks(["train", recipe, *words, "--run", tmp_path / "run"], next_logs(tmp_path / "run")).check()
    status = json.loads((tmp_path / "run/status.json").read_text())
    assert status["step"] == before.training["steps"]
    checkpoint = tmp_path / "run/checkpoints" / f"step-{status['step']:08d}"
    written = sum((checkpoint / f"{name}.safetensors").stat().st_size for name in ("model", "optimizer"))
    assert 0 < written - before.checkpoint["size"] < 20_000  # headers
    after = make_plan(recipe, words, PlanOptions(ranks=(1,), precisions=("fp32",), run=tmp_path / "run"))
    assert before.throughput is None
    assert after.throughput is not None
    assert after.throughput["tokens"] > 0


def test_a_large_corpus_is_sampled_over_its_full_length(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "SAMPLE", 8000)
    monkeypatch.setattr(corpus, "TOKENIZER_ROWS", 40)
    planned = make_plan(recipe, ("data.block_rows=16",), PlanOptions(ranks=(1,), precisions=("fp32",)))
    assert planned.data["sampled_rows"] < 100
    assert planned.data["rows"] == 200
    assert planned.model["vocabulary"] == 200  # the recipe's: forty rows give fewer
    whole = make_plan(recipe, (), PlanOptions(ranks=(1,), precisions=("fp32",)))
    tokens = [plan.training["tokens"] / plan.training["epochs"] for plan in (planned, whole)]
    assert tokens[0] == pytest.approx(tokens[1], rel=0.25)
    assert planned.training["steps_per_epoch"] == pytest.approx(whole.training["steps_per_epoch"], rel=0.5)


LARGE = 12 * 1000  # rows of a large corpus


def fill(kind: str) -> bytes:
    """Put the large corpus into the store. Return one of its twelve files."""
    rows, table = large_corpus.rows(1000), io.BytesIO()
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    pq.write_table(pa.Table.from_pylist(rows), table)
    content = {"jsonl": lines, "jsonl.gz": gzip.compress(lines), "parquet": table.getvalue()}[kind]
    CountingStore.fill({f"corpus/train-{i}.{kind}": Repeated(content, len(content)) for i in range(12)})
    return content


def read_large(recipe: Path, kind: str) -> Any:
    data = ["data.root=counted://corpus", f"data.train=*.{kind}", "data.validation=null", "data.test=null"]
    return corpus.read_corpus(load_recipe(recipe, [*data, "data.columns={src: src, trg: trg}"]))


@pytest.fixture(scope="module")
def counted(recipe: Path) -> Any:
    """Return the epoch of the large corpus, all of whose rows are read."""
    content = fill("jsonl")
    _, epoch, _, facts = read_large(recipe, "jsonl")
    assert CountingStore.counts.bytes >= 24 * len(content), "counted, and dealt to lanes"
    assert (facts["rows"], facts["rows_from"]) == (LARGE, "counted")
    return epoch


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "parquet"])
def test_of_a_large_corpus_the_first_rows_are_read(
    recipe: Path, counted: Any, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    fill(kind)
    monkeypatch.setattr(fingerprints, "FINGERPRINT_BYTES", 1)
    monkeypatch.setattr(sample, "ROWS", 1200)
    monkeypatch.setattr(corpus, "TOKENIZER_ROWS", 500)
    _, epoch, _, facts = read_large(recipe, kind)
    assert facts["rows_from"] == (sample.METADATA if kind == "parquet" else sample.ESTIMATED)
    assert facts["rows"] == pytest.approx(LARGE, rel={"parquet": 0, "jsonl": 0.02}.get(kind, 0.3))
    assert facts["sampled_rows"] <= 1500
    assert CountingStore.counts.requests["get"] <= 12 * 3
    for name in ("steps", "tokens", "padded"):
        each, expected = (getattr(of, name) / of.rows for of in (epoch, counted))
        assert each == pytest.approx(expected, rel=0.06), name


def test_a_large_mixture_is_planned_by_its_first_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = large_corpus.json_lines()
    CountingStore.fill({f"{name}/train.jsonl": Repeated(lines, 3 * len(lines)) for name in ("one", "two")})
    mix = [
        {"name": name, "root": f"counted://{name}", "train": "*.jsonl", "weight": weight, "on_end": end}
        for name, weight, end in (("one", 3, "stop"), ("two", 1, "repeat"))
    ]
    data = {"train": [], "validation": None, "test": None, "columns": {}, "mix": mix}
    made = Recipe.parse(tiny_recipe(Path("none"), data=data))
    monkeypatch.setattr(fingerprints, "FINGERPRINT_BYTES", 1)
    monkeypatch.setattr(sample, "ROWS", 2000)
    _, epoch, _, facts = corpus.read_corpus(made)
    assert facts["rows_from"] == sample.ESTIMATED
    assert epoch.rows == pytest.approx(12_000 * 4 / 3, rel=0.02)
    assert CountingStore.reset().bytes < 6 * len(lines) / 2


# -- what fits ---------------------------------------------------------------------------------------------------------


def test_the_cheapest_configuration_has_fewest_ranks_then_the_simplest_engine(plan: Plan, recipe: Path) -> None:
    assert plan.answer is not None
    assert plan.answer is of(plan, "single", "bf16")
    assert str(plan.command).endswith("--config ddp_bf16 --nproc 1")
    assert plan.cost == pytest.approx(2.0 * (plan.answer.hours or 0))
    best = cheapest([c for c in plan.configurations if c.ranks == 2], bf16=True)
    assert best is not None
    assert (best.title, best.precision) == ("ddp", "bf16")
    turing = cheapest(plan.configurations, bf16=False)
    assert turing is not None
    assert (turing.title, turing.precision) == ("single", "fp16")
    assert make_plan(recipe, (), PlanOptions(ranks=(1,), memory=1.0)).answer is None  # CUDA alone takes as much


@pytest.mark.parametrize("cpu", [False, True])
def test_proposed_configs_have_the_engine_and_precision(plan: Plan, recipe: Path, cpu: bool) -> None:
    planned = make_plan(recipe, (), PlanOptions(ranks=(1, 2), cpu=True)) if cpu else plan
    shipped = [c for c in planned.configurations if c.config]
    assert {c.engine for c in shipped} == {"single", "ddp", "zero1", "zero2", "zero3", "fsdp2"}
    for c in shipped:
        name, *alone = str(c.config).split()
        config = describe(name)
        actual = ("single" if alone else config.engine, config.precision.replace("no", "fp32"))
        assert actual == (c.engine, c.precision), c.config
        assert config.cpu == cpu or name == "debug"
        assert name.endswith("_offload") == c.offload
    offered = {c.config for c in shipped}
    assert offered >= ({"cpu", "cpu_bf16", "cpu_fsdp2"} if cpu else {"debug", "ddp", "ddp_fp16", "zero3_offload"})


def test_spelling_of_gpus_and_unknown_ones() -> None:
    assert GPUS[find_gpu("nvidia a100-40gb")] == 40
    assert find_gpu("rtx 4090") == "RTX4090"
    with pytest.raises(UsageError, match=r"allowed: T4, .*H100"):
        find_gpu("H10O")


# -- the command -------------------------------------------------------------------------------------------------------


def app() -> typer.Typer:
    made = typer.Typer()
    made.command("plan")(plan_command)
    made.command("other")(lambda: None)
    return made


def test_printed_lines_fit_the_page_and_no_column_is_cut(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")  # of the terminal; a pipe has 80
    result = CliRunner().invoke(app(), ["plan", str(recipe), "--gpu", "L4", "--ranks", "1,2"], catch_exceptions=False)
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines())) <= 120
    assert "…" not in result.stdout
    assert re.search(r"ranks +engine +precision +ckpt +params +grads .* sent +fits", result.stdout)
    first = result.stdout.splitlines()[:6]
    assert any(line.startswith("Cheapest  single on 1 rank") for line in first)
    for word in ("zero3 offload", "fsdp2", "12 steps (loop.max_steps)", "--throughput"):
        assert word in result.stdout


def test_json_is_one_object_with_every_configuration(recipe: Path) -> None:
    result = CliRunner().invoke(app(), ["plan", str(recipe), "--json", "--ranks", "2", "--memory", "24"])
    plan = json.loads(result.stdout)
    assert {"recipe", "model", "data", "training", "checkpoint", "memory", "answer", "configurations"} <= plan.keys()
    assert all(c.keys() >= KEYS for c in plan["configurations"])
    shown = {(c["engine"], c["offload"]) for c in plan["configurations"]}
    assert shown == {(e, False) for e in ("ddp", "zero1", "zero2", "zero3", "fsdp2")} | {("zero3", True)}
    assert len(plan["configurations"]) == 6 * 3 * 2
    assert all(c["peak"] == max(c["step"], c["start"], c["evaluation"]) for c in plan["configurations"])
    assert plan["answer"]["command"].startswith("rankzero train ")


def test_cpu_plans_name_cpu_configs_and_share_the_memory(recipe: Path) -> None:
    planned = make_plan(recipe, (), PlanOptions(cpu=True, ranks=(2,), memory=1.0))
    libraries = {(c.engine, c.precision): c.step_parts["libraries"] for c in planned.configurations}
    assert libraries["ddp", "fp32"] == libraries["zero2", "fp32"] < libraries["zero2", "bf16"]
    assert all(c.step == sum(c.step_parts.values()) for c in planned.configurations)
    assert {c.precision for c in planned.configurations} == {"fp32", "bf16"}
    assert not any(c.offload for c in planned.configurations)
    assert planned.answer is not None
    assert {c.config for c in planned.configurations} >= {"cpu", "cpu_bf16", "cpu_zero3", "cpu_fsdp2"}
    peak = of(planned, "ddp").peak
    for total, fits in ((2 * peak, True), (2 * peak - 1, False)):
        again = make_plan(recipe, (), PlanOptions(cpu=True, ranks=(2,), precisions=("fp32",), memory=total / GIB))
        assert of(again, "ddp").fits == fits


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (PlanOptions(gpu="A101"), "allowed: T4, .*A100"),
        (PlanOptions(ranks=(8,)), "data.lanes=4"),
        (PlanOptions(ranks=(0,)), "best are 1, 2, 4"),
        (PlanOptions(memory=0.0), "--memory 0"),
        (PlanOptions(precisions=("fp4",)), "allowed: fp32, tf32, bf16, fp16, fp8"),
        (PlanOptions(cpu=True, precisions=("fp8",)), "fp8: needs a GPU"),
        (PlanOptions(cpu=True, precisions=("fp16",)), "needs a GPU"),
        (PlanOptions(cpu=True, gpu="A100"), "give one of them"),
        (PlanOptions(throughput=-1.0), "--throughput -1"),
        (PlanOptions(ranks=(2, 4), copies=4), "--copies 4: must divide .* 2, 4"),
        (PlanOptions(copies=0), "--copies 0"),
    ],
)
def test_wrong_options_are_refused_with_the_fix(recipe: Path, options: PlanOptions, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        make_plan(recipe, (), options)


def test_wrong_recipes_and_rows_are_refused_as_a_training_would(recipe: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'tokens_per_batch'"):
        make_plan(recipe, ["data.tokens_per_bach=100"])
    with pytest.raises(DataError, match="no file"):
        make_plan(recipe, ["data.train=nothing.jsonl"])
    with pytest.raises(DataError, match="more than the 200 rows"):
        make_plan(recipe, ["data.lanes=256"], PlanOptions(ranks=(1,)))


def test_help_imports_no_torch() -> None:
    code = "import sys, launch.tools.plan.command; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# -- real runs ---------------------------------------------------------------------------------------------------------


@pytest.mark.ranks
@pytest.mark.parametrize("precision", slow_except(["fp32", "bf16"], "fp32"))
@pytest.mark.parametrize("engine", slow_except(["single", "ddp", "zero1", "zero2", "zero3", "fsdp2"], "zero2", "fsdp2"))
def test_model_states_are_those_of_a_real_run(recipe: Path, tmp_path: Path, engine: str, precision: str) -> None:
    check_states(recipe, tmp_path, engine, precision, 1 if engine == "single" else 2)


@pytest.mark.ranks
@pytest.mark.slow
def test_model_states_of_two_copies_are_those_of_a_real_run(recipe: Path, tmp_path: Path) -> None:
    check_states(recipe, tmp_path, "fsdp2", "fp32", 4, copies=2)


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_model_states_of_frozen_weights_are_those_of_a_real_run(reviews: Path, tmp_path: Path, precision: str) -> None:
    """ZeRO-3 keeps the fp32 weights of frozen parameters, too, where it computes in bf16."""
    check_states(written(tmp_path, review_recipe(reviews)), tmp_path, "zero3", precision, 2, "optim.freeze_layers=1")


def check_states(
    recipe: Path, folder: Path, engine: str, precision: str, world: int, *more: str, copies: int = 1
) -> None:
    words = ["loop.max_steps=1", "evaluation.splits=[]", "data.validation=null", "optim.weight_decay=0.01", *more]
    planned = make_plan(recipe, words, PlanOptions(cpu=True, ranks=(world,), precisions=(precision,), copies=copies))
    env = engine_environment(engine) | {"ACCELERATE_MIXED_PRECISION": "bf16" if precision == "bf16" else "no"}
    env |= settings(choose("cpu_fsdp2_hybrid", world)) if copies > 1 else {}
    run = folder / "run"
    hook = partial(save_states, folder / "states")
    run_ranks(["train", recipe, *words, "--run", run], next_logs(run), world, hook=hook, env=env).check()
    seen = json.loads((folder / "states-0").read_text())
    (kept,) = [
        c for c in planned.configurations
        if (c.engine, c.copies, c.offload, c.activation_checkpointing) == (engine, copies, False, False)
    ]  # fmt: skip
    planned_states = {name: getattr(kept, name) for name in ("parameters", "gradients", "optimizer", "host")}
    assert seen == pytest.approx(planned_states, rel=0.02, abs=256)  # padding and step counts of a tiny model


# -- what the devices are known for ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("emulated", "best"), [(True, ("fp32", "debug")), (False, ("bf16", "cpu_bf16 --nproc 1"))])
def test_bf16_is_proposed_for_processors_that_have_it(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, emulated: bool, best: tuple[str, str]
) -> None:
    monkeypatch.setattr(planner, "bf16_arithmetic", lambda: not emulated)
    planned = make_plan(recipe, (), PlanOptions(cpu=True, ranks=(1,), memory=4.0))
    assert planned.answer is not None
    assert (planned.answer.precision, planned.answer.config) == best
    assert any("emulates bf16" in note for note in planned.notes) == emulated
    fp32 = make_plan(recipe, (), PlanOptions(cpu=True, ranks=(1,), precisions=("fp32",)))
    assert not any("bf16" in note for note in fp32.notes)


A100 = {"gpus": ["NVIDIA A100-SXM4-80GB"], "cpu": "another CPU"}


@pytest.mark.parametrize(
    ("devices", "options", "known"),
    [
        ({"gpus": [], "cpu": "this CPU"}, {"cpu": True}, True),
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
    recipe: Path, tmp_path: Path, devices: dict[str, Any], options: Any, known: bool
) -> None:
    line = {"step": 1, "split": "train", "tokens_per_second": 500.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    manifest = {"ranks": 1, "engine": "single", "precision": "no", "devices": devices}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    planned = make_plan(recipe, (), PlanOptions(ranks=(1,), precisions=("fp32",), run=tmp_path, **options))
    assert planned.throughput is not None
    hours = planned.configurations[0].hours
    assert hours == (pytest.approx(planned.training["tokens"] / 500 / 3600) if known else None)
    time = next(line for line in summary(planned) if line.startswith("Time"))
    assert ("not known for" in time) != known
    assert "500 tokens/s" in time


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
        assert {gpu for gpu in GPUS if is_gpu(gpu, device)} - {"A100", "V100"} == {name}, device
