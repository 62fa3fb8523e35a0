"""What the tables of docs/results.md must say, made from the files of benchmarks/results.

A check names a section, the beginning of a row, and the texts that the row must have.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks/results"
PAGE = (ROOT / "docs/results.md").read_text(encoding="utf-8")
LINK = re.compile(r"\.\./benchmarks/results/([\w.-]+\.json)")
Check = tuple[str, str, list[str]]
MULTI30K = ("multi30k_r_drop_bf16", "multi30k_seed2_bf16", "multi30k_seed3_bf16")


@cache
def values(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def at(name: str, keys: str) -> Any:
    """Return the value of `a.b.c` in a file."""
    value = values(name)
    for key in filter(None, keys.split(".")):
        value = value[key]
    return value


@cache
def sections() -> dict[str, list[str]]:
    """Return the table rows below each heading."""
    found: dict[str, list[str]] = {}
    heading = ""
    for line in PAGE.splitlines():
        if re.match("#{1,4} ", line):
            heading = line.lstrip("# ")
            assert heading not in found, f"two sections {heading}"
            found[heading] = []
        elif line.startswith("| ") and heading:
            found[heading].append(line.replace("**", ""))
    return found


def interval(name: str, key: str, scale: float = 100, digits: int = 1) -> str:
    """Return a score with its 95% interval: 92.4 (91.9 to 92.9)."""
    folder, _, metric = key.rpartition(".")
    scores = at(name, folder)
    low, high = (scale * end for end in scores[f"{metric}_ci95"])
    return f"{scale * scores[metric]:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def ratio(found: dict[str, float]) -> str:
    low, high = (found.get(end) or found[f"{end}est"] for end in ("low", "high"))
    return f"{found['median']:.1f} ({low:.1f} to {high:.1f})"


def tiny(value: float) -> str:
    """Return a difference as the page writes it: 1.5e-8, 0."""
    return f"{value:.1e}".replace("e-0", "e-") if value else "0"


def cells(*texts: object) -> str:
    return "| " + " | ".join(map(str, texts)) + " |"


def quality() -> Iterator[Check]:
    """Give the scores; bits per byte, BLEU and perplexity are no shares."""
    accuracy = {
        "`imdb`,": "imdb_cpu_bf16",
        "`imdb-base`": "imdb_base_bf16",
        "`imdb-scratch`, 23.0": "imdb_scratch_cnn_bf16",
        "four layers in `imdb-scratch`": "imdb_scratch_bf16",
        "`imdb-scratch` from": "imdb_from_mlm_bf16",
        "`imdb-frozen`": "imdb_frozen_bf16",
        "`sst2`": "sst2_fgm_bf16",
        "MPNet-base in `sst2`": "sst2_base_bf16",
        "`sick-entailment`": "sick_entailment_bf16",
    }
    for label, name in accuracy.items():
        steps, ranks, rows = (at(name, key) for key in ("steps", "ranks", "test.rows"))
        yield "Quality", label, [interval(name, "test.accuracy"), f"| {ranks}, {steps:,} |", f"/{name}.json)"]
        yield "Quality", label, [f"{rows:,} |"] if label in ("`imdb`,", "`sst2`", "`sick-entailment`") else []
    yield "Quality", "`imdb-lora`", [interval("imdb_lora_bf16", "whole_recipe.test.accuracy"), "| 2, 2,497 |"]
    translations = {
        "English to German": "multi30k_en_de_bf16",
        "Debian's package descriptions": "debian_de_en_bf16",
        "`t5-multi30k`": "t5_multi30k_bf16",
    }
    for label, name in translations.items():
        yield "Quality", label, [interval(name, "test.bleu", 1), f"{at(name, 'steps'):,} |", f"/{name}.json)"]
    seeds = sorted(at(name, "test.bleu") for name in MULTI30K)
    yield "Quality", "`multi30k`", [f"{mean(seeds):.1f} ({seeds[0]:.1f} to {seeds[-1]:.1f}, mean", "| 3 | 1, 3,296 |"]
    for label, name in {"`xl-imdb`": "xl_imdb_bf16", "`gpt2-imdb`": "gpt2_imdb_bf16"}.items():
        yield "Quality", label, [interval(name, "validation.bits_per_byte", 1, 3), f"/{name}.json)"]
    yield "Quality", "`imdb-mlm`", [interval("imdb_mlm_bf16", "validation.perplexity", 1), "1, 5,005"]


def translation() -> Iterator[Check]:
    for section, label, name, keys in (
        ("Multi30k, German to English, test 2016", "the recipe: R-Drop", MULTI30K[0], ""),
        ("Multi30k, German to English, test 2016", "the recipe, seed 2", MULTI30K[1], ""),
        ("Multi30k, German to English, test 2016", "the recipe, seed 3", MULTI30K[2], ""),
        ("Multi30k, German to English, test 2016", "two ranks, without", "multi30k_cpu_bf16", ""),
        ("Multi30k, German to English, test 2016", "without R-Drop, two", "multi30k_cpu_bf16", "earlier_run."),
        ("Multi30k, German to English, test 2016", "without R-Drop, one", "multi30k_second_bf16", ""),
        ("English to German", "English to German", "multi30k_en_de_bf16", ""),
        ("Another corpus: Debian's package descriptions", "the recipe", "debian_de_en_bf16", ""),
        ("A T5 of the same size, from scratch", "`multi30k`", "multi30k_cpu_bf16", ""),
        ("A T5 of the same size, from scratch", "`t5-multi30k`", "t5_multi30k_bf16", ""),
        ("One vocabulary or two", "shared", "separate_vocabularies", "runs.shared."),
        ("One vocabulary or two", "separate", "separate_vocabularies", "runs.separate."),
    ):
        test = at(name, f"{keys}test")
        scores = [interval(name, f"{keys}test.bleu", 1), f"{test['chrf']:.1f}", f"{test['perplexity']:.2f}"]
        if section.startswith(("Multi30k", "English")):
            held = at(name, f"{keys}validation")
            scores.append(f"{held['bleu']:.1f}, {held['perplexity']:.2f}")
        yield section, label, [cells(*scores)[:-2]]
    name, same = "multi30k_r_drop_bf16", at("multi30k_r_drop_bf16", "penalty_1.test")
    scores = [interval(name, "penalty_1.test.bleu", 1), f"{same['chrf']:.1f}", f"{same['perplexity']:.2f}"]
    scores.append(f"{at(name, 'penalty_1.validation_bleu'):.1f}, {at(name, 'validation.perplexity'):.2f}")
    yield "Multi30k, German to English, test 2016", "the weights of seed 1", [cells(*scores)[:-2]]


def classification() -> Iterator[Check]:
    reviews, sentences = "IMDB reviews, positive or negative", "SST-2 sentences"
    for label, name, keys in (
        ("`imdb`, two", "imdb_cpu_bf16", ""),
        ("`imdb`, one", "imdb_second_bf16", ""),
        ("512 tokens", "imdb_512_bf16", ""),
        ("`imdb-base`", "imdb_base_bf16", ""),
        ("`imdb-lora`, rate 1e-3", "imdb_lora_bf16", "whole_recipe."),
        ("`imdb-scratch`:", "imdb_scratch_cnn_bf16", ""),
        ("four layers of width 256", "imdb_scratch_bf16", ""),
        ("`imdb-scratch` from", "imdb_from_mlm_bf16", ""),
        ("the same, rate 1.5e-4", "imdb_from_mlm_bf16", "lower_rate."),
        ("`imdb-frozen`", "imdb_frozen_bf16", ""),
    ):
        test = at(name, f"{keys}test")
        scores = interval(name, f"{keys}test.accuracy"), f"{test['roc_auc']:.3f}", f"{test['ece']:.3f}"
        yield reviews, label, [cells(*scores)[:-1]]
    for label, key in {"`model.dropout=0.5": "dropout", "`model.dropout=0.3": "word_dropout"}.items():
        run = at("word_dropout_bf16", f"runs.{key}")
        scores = interval("word_dropout_bf16", f"runs.{key}.test.accuracy"), f"{run['test']['roc_auc']:.3f}"
        curve = ", ".join(f"{100 * point['accuracy']:.1f}" for point in run["curve"])
        yield (
            "Word dropout of a small encoder from scratch",
            label,
            [cells(*scores, f"{run['test']['ece']:.3f}", curve)],
        )
    for label, key in {"`imdb`": "imdb", "`imdb-lora`": "imdb_lora"}.items():
        found = at("imdb_lora_bf16", key)
        scores = interval("imdb_lora_bf16", f"{key}.test.accuracy"), f"{found['test']['roc_auc']:.3f}"
        row = cells(f"{found['checkpoint_bytes']:,}", *scores, f"{found['test']['ece']:.3f}")
        yield "LoRA after the same few steps", label, [row]
    for label, name in {
        "`sst2`": "fgm",
        "without FGM, two": "cpu",
        "without FGM, three": "second",
        "MPNet-base": "base",
    }.items():
        name = f"sst2_{name}_bf16"
        selected = f": {100 * at(name, 'validation.accuracy'):.1f} |"
        yield sentences, label, [interval(name, "test.accuracy"), selected, f"/{name}.json)"]
    sick = at("sick_entailment_bf16", "")
    texts = [interval("sick_entailment_bf16", "test.accuracy"), f"F1 {sick['test']['f1']:.3f}"]
    texts.append(f"negation: {100 * sick['baseline']['test_accuracy']:.1f};")
    yield "Entities, labels, numbers and pairs", "`sick-entailment`", texts


def techniques() -> Iterator[Check]:
    names = {
        "plain": "plain",
        "rates by layer": "layer-wise rates, factor 0.85",
        "gradual": "gradual unfreezing, every 5%",
        "slanted": "slanted triangular",
        "FGM, norm 1 ": "FGM, norm 1",
        "FGM, norm 0.1": "FGM, norm 0.1",
        "EMA": "EMA, 0.98",
        "ensemble": "ensemble of 3 plain runs",
        "rows sorted by label |": "rows sorted by label",
        "rows sorted by label, blocks": "rows sorted by label in blocks of a quarter",
    }
    for label, key in names.items():
        found = values("ablation")["results"][key]
        mean, deviation, gain = (100 * found["accuracy"][part] for part in ("mean", "deviation", "against_plain"))
        change = "" if label == "plain" else f"{gain:+.1f}".replace("-", "−")
        row = cells(f"{mean:.1f}", f"{deviation:.1f}", change, f"{found['loss']:.3f}").replace("|  |", "| |")
        yield "What each technique is worth on little data", label, [row]


def language_models() -> Iterator[Check]:
    names = {
        "`gpt2-imdb`": "gpt2_imdb_bf16",
        "`xl-imdb` without": "xl_imdb_no_memory_bf16",
        "`xl-imdb` |": "xl_imdb_bf16",
    }
    for label, name in names.items():
        found = at(name, "validation")
        scores = f"{found['perplexity']:.1f}", f"{found['word_perplexity']:,.0f}"
        row = cells(f"{at(name, 'steps'):,}", *scores, interval(name, "validation.bits_per_byte", 1, 3))
        yield "Language models of IMDB reviews", label, [row]


def training_speed() -> Iterator[Check]:
    for label, name, key in (
        ("tutorial's loop, `nn.Transformer`, fp32", "training_step", "tutorial, nn.Transformer, fp32"),
        ("the same loop, batches in random order | the same | 4", "training_step", "the same, unsorted batches"),
        ("JoeyNMT", "training_step", "JoeyNMT 2.3.0, fp32"),
        ("transformers' Trainer, dynamic", "fine_tuning", "transformers' Trainer, grouped by length, bf16"),
        ("tutorial's loop, padded to 256, fp32", "fine_tuning", "tutorial, padded to 256, fp32"),
        ("transformers' Trainer, grouped", "fine_tuning_fp32_epyc", "transformers' Trainer, grouped by length, fp32"),
        ("tutorial's loop, padded to 256 |", "fine_tuning_fp32_epyc", "tutorial, padded to 256, fp32"),
        ("tutorial's loop, bucketed", "training_step_fp32_epyc", "tutorial, nn.Transformer, fp32"),
        ("tutorial's loop, bucketed", "training_step_bf16_epyc", "tutorial, nn.Transformer, bf16"),
        ("the same loop in fp32", "training_step_bf16_epyc", "tutorial, nn.Transformer, fp32"),
        (
            "the same loop, batches in random order | the same | 3",
            "training_step_fp32_epyc",
            "the same, unsorted batches",
        ),
        (
            "the same loop, batches in random order | the same | 3",
            "training_step_bf16_epyc",
            "the same, unsorted batches",
        ),
    ):
        yield "Training", label, [f"| {ratio(values(name)['results'][key]['ours_is_times_faster'])} |"]
    streams = {"`map` row": "datasets stream, map row by row", "`map(batched": "datasets stream, map(batched=True)"}
    for label, key in streams.items():
        both = (values("data_path")["results"][workers][key] for workers in ("workers_0", "workers_2"))
        yield "Data path", label, [cells(*(ratio(one["ours_is_times_faster"]) for one in both))]


def answering_speed() -> Iterator[Check]:
    kinds = {
        "PyTorch, own": "torch",
        "PyTorch bf16": "bf16",
        "ONNX fp32": "onnx",
        "ONNX int8, text": "int8",
        "ONNX int8 in batches": "int8-batch",
    }
    for corpus, name in (("IMDB", "bench_imdb"), ("Multi30k", "bench_multi30k")):
        for number, file in enumerate((f"{name}_xeon", name)):
            beam = 5 if corpus == "Multi30k" else 1
            courses = [course["contestants"] for course in values(file)["courses"] if course["beam"] == beam]
            for label, kind in kinds.items():
                row = cells(*(ratio(c[kind]["times_tutorial"]) if kind in c else "" for c in courses))
                if kind != "int8-batch" or file == "bench_multi30k_xeon":
                    yield f"Answering/{number}", f"{corpus}: {label}", [row.replace("|  ", "| ")]
    pairs = (("int8", "torch"), ("fp32", "torch"), ("int8", "generate"))
    for label, found in values("decoding_xeon")["results"].items():
        ratios = [ratio(found[f"rankzero, ONNX {kind}"][f"times_{other}"]) for kind, other in pairs]
        ratios.append(ratio(found["rankzero, PyTorch fp32"]["times_generate"]))
        yield "Decoding", label, [cells(*ratios)]


def long_documents() -> Iterator[Check]:
    for name, lengths in values("long_documents")["results"].items():
        found = [
            (f"{1000 * v['cpu_seconds']['median']:,.0f}", f"{v['megabytes']['median']:.0f}") for v in lengths.values()
        ]
        first, rest = found[0], found[1:]
        label = "BERT, as we" if name == "BERT" else name
        yield "Long documents", label, [cells(f"{first[0]} ms, {first[1]} MB", *(f"{a}, {b}" for a, b in rest))]


def memory() -> Iterator[Check]:
    for row in values("kernel_cache")["rows"]:
        yield "Kernels that oneDNN keeps", f"{row['capacity']:,}", [f"| {row['mb']:,.0f} |"]
    section = "A sharded model without a complete copy"
    rows = {row["way"]: row for row in values("sharded_memory")["rows"]}
    yield section, "peak with a complete", [f"{rows['complete']['peak_above_baseline_mb'] + 0.1:,.0f}"]
    yield section, "peak of `fsdp2`", [f"{rows['recorded']['peak_above_baseline_mb']:.0f}"]
    labels = {
        "start": "start",
        "two steps": "step",
        "evaluation": "evaluation",
        "save, rank": "save",
        "resume": "resume",
    }
    for label, phase in (labels | {"`model/`": "model"}).items():
        row = []
        for name in ("sharded_training", "sharded_training_zero3"):
            for when in ("before", "after"):
                found = at(name, f"{when}.phases").get(phase)
                row += [f"{found['peak']:,.0f}", f"{found['peak'] / at(name, 'bound'):.2f}"] if found else ["", ""]
        yield section, label, [cells(*row).replace("|  ", "| ")]
    worst = max(abs(row["difference"]) for row in values("plan_memory")["rows"])
    assert f"within **{100 * worst:.1f}%** of the measured peak" in PAGE


def checkpoints_and_data() -> Iterator[Check]:
    for label, engine in {"save by": "fsdp2", "the same, `zero2`": "zero2", "the same, `ddp`": "ddp"}.items():
        found = at("checkpoint_speed", f"engines.{engine}")
        yield "Checkpoints", label, [f"{ratio(found['seconds_ratio'])}, {found['seconds']['after']:.1f} s"]
    share = at("saving", "result")
    ends = f"({100 * share['lowest']:.1f}% to {100 * share['highest']:.1f}%)".replace("-", "−")
    yield "Checkpoints", "a checkpoint every", [f"{100 * share['share_of_time']:.1f}% {ends}"]
    lines, table = values("large_corpus")["cases"]
    for label, found in (("first start", lines["start"]), ("the same of Parquet", table["start"])):
        text = f"{found['seconds']:.1f} s, {sum(found['requests'].values()):,} requests"
        yield "Data", label, [f"{text}, {found['bytes'] / 1e6:.0f} MB, {100 * found['share']:.3f}%"]
    for label, part in (("resume", "resume"), ("`rankzero plan`", "plan")):
        texts = (f"{c[part]['seconds']:.1f} s, {c[part]['bytes'] / 1e6:.0f} MB" for c in (lines, table))
        yield "Data", label, ["; ".join(texts)]
    found = at("prepare", "result")
    yield "Data", "`prepare`", [f"{found['ratio']:.2f} ({found['lowest']:.2f} to {found['highest']:.2f})"]
    first = values("prepare_large")["rounds"][0]
    one, two = (first[processes]["seconds"] for processes in "12")
    yield "Data", "the same, 1,000,000", [f"{one / two:.2f} times as fast, {one:.1f} and {two:.1f} s"]
    lanes = next(row for row in values("scale")["proofs"] if row["ranks"] == 1024 and row["shards"] == 1)
    assert (lanes["lost"], lanes["repeated"]) == (0, 0)
    yield (
        "Data",
        "lanes of",
        [f"{100 * lanes['most_work_over_mean'] - 100:+.1f}%, {100 * lanes['idle']:.1f}%;"],
    )
    peaks = {(run["rows"], run["tree"]): f"{run['rank_zero']:.0f} MB" for run in values("evaluation_memory")["runs"]}
    for rows in (20000, 60000):
        yield "Evaluation", f"{rows:,}", [peaks[rows, "now"], peaks[rows, "earlier"]]


def engines() -> Iterator[Check]:
    names = ("one step", "20 steps of SGD", "20 steps of AdamW")
    found: dict[tuple[str, int], dict[str, float]] = {}
    for check in values("verify_demo_translation")["checks"]:
        found.setdefault((check["engine"], check["ranks"]), {})[check["name"]] = check["difference"]
    for (engine, ranks), checks in found.items():
        if engine != "single":
            resumed, difference = next((n[13:], d) for n, d in checks.items() if n.startswith("resumed from "))
            last = tiny(checks["killed and resumed"]), tiny(checks["rows"])
            label = f"`{engine}` on {ranks}"
            other = f"{tiny(difference)}, `{resumed}`" + " on 2" * (resumed == engine)
            yield "Engines", label, [cells(*(tiny(checks[name]) for name in names), other, *last)]
    demo, switched = "`verify demo-translation` ", "`verify demo-translation model"
    runs = [("`verify demo-sentiment`", values("verify_demo_sentiment"))]
    runs += zip((demo, switched), values("verify_switches")["runs"], strict=True)
    for label, run in runs:
        most = [
            max(c["difference"] for c in run["checks"] if c["name"] == name) for name in (*names, "killed and resumed")
        ]
        passed = sum(check["status"] == "passed" for check in run["checks"])
        yield "Engines", label, [cells(f"{passed} of {len(run['checks'])}", *map(tiny, most))]
    for row in zip(values("ddp_buckets")["rows"], values("ddp_buckets_4_ranks")["rows"], strict=True):
        if (size := row[0]["bucket_mb"]) != 25 or row[0]["static_graph"]:
            label = "25 MB, static" if size == 25 else "one" if size > 100 else f"{size:.0f} MB"
            texts = []
            for one in row:
                times = (one["time"], one["processor"])
                texts += [f"{t['ratio']:.2f} ({t['lowest']:.2f} to {t['highest']:.2f})" for t in times]
                texts.append(f"{one['different']} of {one['gradients']}")
            yield "Gradient buckets", label, [cells(*texts)]


GROUPS = (
    quality,
    translation,
    classification,
    techniques,
    language_models,
    training_speed,
    answering_speed,
    long_documents,
    memory,
    checkpoints_and_data,
    engines,
)


def problems(check: Check, found: dict[str, list[str]]) -> Iterator[str]:
    """Give what is wrong with the row of a check. `Section/1` is the second row with that beginning."""
    section, label, texts = check
    name, _, number = section.partition("/")
    rows = [row for row in found[name] if row.startswith(f"| {label}")]
    if not rows or (not number and len(rows) > 1):
        yield f"{name}: {len(rows)} rows begin with {label!r}"
        return
    row = rows[int(number or 0)]
    yield from (f"{name}: not {text!r} in {row}" for text in texts if text not in row)
