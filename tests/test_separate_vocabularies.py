"""Separate vocabularies of source and target (tokenizer.train.shared: false): tokenizers, model, runs and artifacts."""

from __future__ import annotations

import json
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import hooks
import numpy as np
import processes
import pytest
import torch
import yaml
from conftest import tiny_recipe
from export_helpers import finished_run
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.numpy import load_file
from slow import slow_except

from trainer import predict
from trainer.data.target_tokenizer import save_tokenizer, target_of, with_target
from trainer.data.tokenization import TrainingTexts, load_tokenizer, train_tokenizer, train_tokenizers
from trainer.engine.corpus import Corpus
from trainer.engine.setup import check_beginning
from trainer.engine.token_counts import count_tokens
from trainer.engine.trained_run import TrainedRun, build_model
from trainer.errors import UsageError
from trainer.export import bench_runner, bench_weights, model_gate, stock_program
from trainer.export.stage import export_run
from trainer.models.folder import read_folder
from trainer.models.stock import weights_of
from trainer.recipe_loading import Recipe, load_recipe
from trainer.rundir import RunDir
from trainer.task.registry import make_task, roles_of

SEPARATE = {"kind": "bpe", "vocab_size": 120, "target_vocab_size": 80, "shared": False}
NO_EXPORT = tuple(f"export.{name}=false" for name in ("model", "onnx", "int8", "safetensors"))
UNBOUNDED = "evaluation.max_length_factor=9"
ARTIFACTS = {
    "model": True,
    "onnx": True,
    "int8": True,
    "safetensors": True,
    "bench": 0,
    "gates": {"rows": 8, "int8_bleu": 100},
}


def values_of(root: Path, tied: Any = "target", train: dict[str, Any] | None = None, **sections: Any) -> Any:
    sections["model"] = {"tied_embeddings": tied, **sections.get("model", {})}
    return tiny_recipe(root, tokenizer={"train": {**SEPARATE, **(train or {})}}, **sections)


def tokenizer_of(recipe: Any, **changes: Any) -> Any:
    source = Corpus(recipe, task_without_tokenizer(recipe)).train
    texts = TrainingTexts(source, recipe.data, roles_of(recipe), 10_000)
    return train_tokenizers(texts, recipe.tokenizer.train.model_copy(update=changes), 40)


def task_without_tokenizer(recipe: Any) -> Any:
    return make_task(recipe, None)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def small(corpus: Path) -> Any:
    return Recipe.parse(values_of(corpus))


@pytest.fixture(scope="module")
def tokenizer(small: Any) -> Any:
    """Trained on both sides of the corpus. Read only."""
    return tokenizer_of(small)


# -- tokenizers and encoding -------------------------------------------------------------------------------------------


def test_each_side_is_trained_on_its_own_texts(small: Any, tokenizer: Any, tmp_path: Path) -> None:
    target = target_of(tokenizer)
    assert (len(tokenizer), len(target)) == (120, 80)
    assert "▁der" in tokenizer.get_vocab() and "▁the" not in tokenizer.get_vocab()
    assert "▁the" in target.get_vocab() and "▁der" not in target.get_vocab()
    assert tokenizer.all_special_ids == target.all_special_ids
    save_tokenizer(tokenizer, tmp_path)
    again = load_tokenizer(str(tmp_path))
    assert again.get_vocab() == tokenizer.get_vocab() and target_of(again).get_vocab() == target.get_vocab()
    save_tokenizer(tokenizer_of(small), tmp_path / "second")
    for file in ("tokenizer.json", "target/tokenizer.json"):
        assert (tmp_path / "second" / file).read_bytes() == (tmp_path / file).read_bytes()


def test_a_hub_id_brings_the_tokenizer_of_target_texts(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library fetches the files of the main folder only. A folder stands in for the Hub."""
    cache, hub = tmp_path / "models--me--mt", tmp_path / "hub"
    snapshot = cache / "snapshots" / ("a" * 40)
    save_tokenizer(tokenizer, hub)
    shutil.copytree(hub, snapshot, ignore=shutil.ignore_patterns("target"))  # what the library has fetched
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("a" * 40)
    missing = cache / ".no_exist" / ("a" * 40)
    missing.mkdir(parents=True)
    (missing / "config.json").touch()
    fetched = []

    def download(place: str, file: str, revision: str) -> None:
        fetched.append((place, file, revision))
        if not (hub / file).exists():
            raise LocalEntryNotFoundError(file)
        (snapshot / file).parent.mkdir(exist_ok=True)
        shutil.copy(hub / file, snapshot / file)

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    found = load_tokenizer("me/mt")
    assert fetched[:2] == [("me/mt", f"target/{file}", "main") for file in ("tokenizer.json", "tokenizer_config.json")]
    assert (len(found), len(target_of(found))) == (120, 80)
    for folder in (hub, snapshot):
        shutil.rmtree(folder / "target")
    one = load_tokenizer("me/mt")
    assert target_of(one) is one


def test_a_shared_vocabulary_is_the_one_of_both_sides(small: Any, tmp_path: Path) -> None:
    shared = tokenizer_of(small, shared=True, target_vocab_size=None)
    assert target_of(shared) is shared
    rows = [json.loads(line) for line in (Path(small.data.root) / "train.jsonl").read_text("utf-8").splitlines()]
    texts = [row[side] for row in rows for side in ("de", "en")]
    by_hand = train_tokenizer(texts, small.tokenizer.train.model_copy(update={"shared": True}), 40)
    assert by_hand.backend_tokenizer.to_str() == shared.backend_tokenizer.to_str()
    save_tokenizer(shared, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]


def test_unknown_tokens_are_those_of_the_side(tmp_path: Path) -> None:
    """ß is known in sources alone, w in targets alone."""
    rows = [{"de": "das süße Maß", "en": "the sweet owl"}] * 8
    for name, more in (("train", []), ("validation", [{"de": "das Maß w", "en": "the owl ß"}])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows + more), "utf-8")
    recipe = Recipe.parse(values_of(tmp_path, data={"test": None}, train={"vocab_size": 40, "target_vocab_size": 40}))
    task = make_task(recipe, tokenizer_of(recipe))
    counts = count_tokens(Corpus(recipe, task), "validation", 9).report()
    assert counts["unknown_examples"] == {"src": ["w"], "trg": ["ß"]}
    example = task.encode([{"src": "das süße Maß", "trg": "the sweet owl"}])[0]
    assert task.tokenizer.decode(example["src"], skip_special_tokens=True) == "das süße Maß"
    assert target_of(task.tokenizer).decode(example["trg"]) == "the sweet owl"


# -- the model ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tied", "matrices"), [("target", (1, 1)), (False, (1, 2))])
def test_parameters_of_the_model_and_of_the_plan(tied: Any, matrices: tuple[int, int], corpus: Path) -> None:
    from launch.tools.plan.planner import PlanOptions, make_plan

    recipe = Recipe.parse(values_of(corpus, tied))
    model: Any = build_model(make_task(recipe, tokenizer_of(recipe)))
    shared = Recipe.parse(tiny_recipe(corpus))
    one: Any = build_model(make_task(shared, tokenizer_of(shared)))
    layers = sum(p.numel() for p in one.parameters()) - one.embedding.weight.numel()
    elements = layers + 32 * (120 * matrices[0] + 80 * matrices[1])
    assert sum(p.numel() for p in model.parameters()) == elements
    assert model(torch.ones(1, 3, dtype=torch.int64), torch.ones(1, 2, dtype=torch.int64)).shape == (1, 2, 80)
    plan = make_plan(recipe, [], PlanOptions(ranks=(1,), precisions=("fp32",)))
    assert plan.model["parameters"] == elements
    assert (plan.model["vocabulary"], plan.model["target_vocabulary"]) == (120, 80)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ["model.tied_embeddings=true"],
            r"model.tied_embeddings: true shares one matrix.*set model.tied_embeddings=ta",
        ),
        (["tokenizer.train.shared=true"], r"target_vocab_size=80 is for separate vocabularies; set shared: false"),
        (["tokenizer.train.kind=byte_bpe", "tokenizer.train.vocab_size=300"], r"target_vocab_size=80 has room only"),
        (["model.tied_embeddings=source"], r"model.tied_embeddings: .*'target'"),
        (
            ["task={kind: text_to_text}", "model={kind: pretrained, architecture: t5, size: tiny}"],
            r"tokenizer.train.shared: task text_to_text has one vocabulary",
        ),
    ],
)
def test_contradictions_are_refused(changes: list[str], message: str, corpus: Path, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values_of(corpus)), encoding="utf-8")
    with pytest.raises(UsageError, match=message):
        load_recipe(path, changes)


def test_a_folder_with_two_vocabularies_is_for_translation(
    small: Any, tokenizer: Any, corpus: Path, tmp_path: Path
) -> None:
    save_tokenizer(tokenizer, tmp_path)
    values = {**values_of(corpus), "tokenizer": {"pretrained": str(tmp_path)}}
    named = load_tokenizer(str(tmp_path))
    assert build_model(make_task(Recipe.parse(values), named)).target_table.num_embeddings == 80  # type: ignore[union-attr]
    with pytest.raises(UsageError, match="has separate vocabularies: true shares one matrix"):
        build_model(make_task(Recipe.parse(values, ["model.tied_embeddings=true"]), named))
    t5 = ["task={kind: text_to_text}", "model={kind: pretrained, architecture: t5, size: tiny}"]
    with pytest.raises(UsageError, match="and task text_to_text has one"):
        make_task(Recipe.parse(values, t5), named)
    unigram = small.tokenizer.train.model_copy(update={"kind": "unigram"})
    with pytest.raises(UsageError, match="bos_token has id 2 for source texts and 1 for target texts"):
        with_target(load_tokenizer(str(tmp_path)), train_tokenizer(["the dog sees a cat"] * 3, unigram, 40))


# -- model/ in stock libraries -----------------------------------------------------------------------------------------


def spread(task: Any, model: Any) -> None:
    """Make outputs depend on every part of the model."""
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)


@pytest.mark.parametrize(
    ("norm", "tied", "sizes"),
    slow_except(
        [
            (norm, tied, sizes)
            for norm in ("pre", "post")
            for tied in ("target", False)
            for sizes in ((120, 80), (80, 120))
        ],
        ("pre", "target", (120, 80)),
        ("pre", False, (80, 120)),
        ("post", "target", (80, 120)),
    ),
)
def test_stock_classes_give_the_same_outputs(
    norm: str, tied: Any, sizes: tuple[int, int], corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pegasus has one size, so the smaller vocabulary is padded. The weights are read back bit for bit."""
    monkeypatch.setattr(model_gate, "with_stock_libraries", lambda job: (stock_program.run(job), 0.0))
    train = dict(zip(("vocab_size", "target_vocab_size"), sizes, strict=True))
    sections = {"model": {"norm": norm}, "export": {"gates": {"rows": 16}}, "evaluation": {"beam_size": 1}}
    recipe = Recipe.parse(values_of(corpus, tied, train, **sections))
    run = finished_run(tmp_path / "run", recipe, tokenizer_of(recipe), spread)
    export_run(run, ["export.model=true"])
    gate = json.loads((run.model / "gate.json").read_text(encoding="utf-8"))
    assert gate["passed"] and gate["applicable"], gate
    assert gate["checks"]["outputs"]["rows"] == 16
    assert gate["checks"]["generated"]["share"] == 1
    assert gate["checks"]["loads"]["class"] == ("MarianMTModel", "PegasusForConditionalGeneration")[norm == "pre"]
    ours, again = weights_of(TrainedRun.open(run, Recipe).model), read_folder(run.model)
    assert ours.keys() == again.keys()
    assert all(torch.equal(ours[name], again[name]) for name in ours)


def test_one_target_matrix_with_a_shared_vocabulary(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`tied_embeddings: target` does not need separate vocabularies."""
    monkeypatch.setattr(model_gate, "with_stock_libraries", lambda job: (stock_program.run(job), 0.0))
    recipe = Recipe.parse(tiny_recipe(corpus, model={"tied_embeddings": "target"}, export={"gates": {"rows": 8}}))
    run = finished_run(tmp_path / "run", recipe, tokenizer_of(recipe), spread)
    export_run(run, ["export.model=true"])
    assert json.loads((run.model / "gate.json").read_text(encoding="utf-8"))["checks"]["outputs"]["passed"]
    assert not (run.model / "target").exists()


# -- runs --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def path(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    sections = {"evaluation": {"splits": ["test"], "max_rows": 12}, "export": ARTIFACTS}
    path.write_text(yaml.safe_dump(values_of(corpus, **sections)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def run(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on two ranks with all artifacts. Read only."""
    run = tmp_path_factory.mktemp("separate") / "run"
    processes.train(path, run, world=2).check()
    return run


@pytest.mark.ranks
def test_artifacts_answer_as_the_run(run: Path) -> None:
    for name in ("model", "export/onnx", "export/int8", "export/safetensors"):
        assert json.loads((run / name / "gate.json").read_text(encoding="utf-8"))["passed"], name
    texts = ["der alt Hund sieht ein Kind.", "die Frau liest ein Buch.", ""]
    ours = list(predict(run, texts))
    assert [record["prediction"] for record in predict(run, texts, backend="onnx")] == [r["prediction"] for r in ours]
    assert [set(record) for record in predict(run, texts, backend="int8")] == [{"text", "prediction", "score"}] * 3
    target = target_of(load_tokenizer(str(run / "tokenizer"))).backend_tokenizer
    written = sum(len(target.encode(r["prediction"], add_special_tokens=False).ids) + 1 for r in ours)
    program = "trainer.tasks.pairs_program:Translator"
    for opened in (bench_weights.weights(run, "torch"), bench_runner.graphs(run, "onnx", program)):
        settings = {"beam_size": 2, "length_penalty": 1.0, "max_length_factor": 0.5}
        assert bench_runner.timed(opened, texts, 3, settings)["tokens"] == written


@pytest.mark.ranks
def test_the_manifest_the_card_and_the_report(run: Path, tmp_path: Path) -> None:
    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["tokenizer"].keys() == {"sha256", "target_sha256"}
    card = (run / "model/README.md").read_text(encoding="utf-8")
    code = re.findall(r"```python\n(.*?)```", card, re.DOTALL)[0]
    moved = Path(shutil.copytree(run / "model", tmp_path / "moved"))
    answers: list[Any] = []
    exec(code.replace('"."', repr(str(moved))).replace("A text.", "der Hund."), {"print": answers.append})
    assert answers[0] == [record["prediction"] for record in predict(run, ["der Hund."], overrides=[UNBOUNDED])]
    seen = json.loads((run / "evaluation/test/attention.json").read_text(encoding="utf-8"))
    row = seen["rows"][0]
    known = set(target_of(load_tokenizer(str(run / "tokenizer"))).get_vocab())
    assert set(row["tokens"]) <= known


@pytest.mark.ranks
def test_killed_and_resumed_bitwise(run: Path, path: Path, tmp_path: Path) -> None:
    again = tmp_path / "run"
    killed = processes.train(path, again, world=2, hook=partial(hooks.at_micro_batch, 6, 1))
    assert any(killed.codes)
    processes.train(path, again, *NO_EXPORT, world=2).check()
    files = ("tokenizer/target/tokenizer.json", "model/model.safetensors", "model/rankzero.safetensors")
    for file in (*files, "evaluation/test/predictions.jsonl"):
        assert (again / file).read_bytes() == (run / file).read_bytes(), file


@pytest.mark.ranks
@pytest.mark.parametrize("engine", slow_except(["single", "zero2", "zero3", "fsdp2"], "single"))
def test_one_and_two_ranks_take_the_same_steps(engine: str, run: Path, path: Path, tmp_path: Path) -> None:
    """One rank, or two ranks of another engine, and the two of DDP."""
    started = {"world": 1} if engine == "single" else {"world": 2, "engine": engine}
    processes.train(path, tmp_path / "one", *NO_EXPORT, "evaluation.splits=[]", **started).check()
    one, two = (load_file(r / "checkpoints/step-00000012/model.safetensors") for r in (tmp_path / "one", run))
    assert {"embedding.weight", "target_embedding.weight"} <= one.keys() and "output.weight" not in one
    apart = max(float(np.abs(one[name] - two[name]).max()) for name in one)
    assert apart <= (1e-6 if engine == "single" else 5e-4)  # AdamW divides by gradients near zero


@pytest.mark.ranks
def test_a_prepared_corpus_has_both_tokenizers(path: Path, run: Path, tmp_path: Path) -> None:
    from trainer.api import prepare

    prepare(path, out=tmp_path / "prepared")
    words = (f"data.root={tmp_path / 'prepared'}", "loop.max_steps=1", "evaluation.splits=[]", *NO_EXPORT)
    processes.train(path, tmp_path / "run", *words).check()
    for file in ("tokenizer.json", "target/tokenizer.json"):
        assert (tmp_path / "run/tokenizer" / file).read_bytes() == (run / "tokenizer" / file).read_bytes()
    other = processes.train(path, tmp_path / "other", *words, "tokenizer.train.target_vocab_size=90").check(2)
    assert "was prepared with another recipe" in other.err[0]


@pytest.mark.ranks
def test_another_run_begins_with_its_weights(run: Path, path: Path, tokenizer: Any, tmp_path: Path) -> None:
    """`model.init_from` takes both vocabularies. Another target vocabulary is refused with both sizes."""
    begins = [f"model.init_from={run}", "tokenizer={}"]
    recipe = load_recipe(path, begins)
    task = make_task(recipe, load_tokenizer(str(recipe.tokenizer_name)))
    assert all(
        torch.equal(mine, theirs)
        for mine, theirs in zip(
            weights_of(build_model(task)).values(),
            weights_of(TrainedRun.open(RunDir(run), Recipe).model).values(),
            strict=True,
        )
    )
    theirs = load_tokenizer(str(run / "tokenizer"))
    shorter = tokenizer_of(Recipe.parse(yaml.safe_load(path.read_text("utf-8"))), target_vocab_size=60)
    save_tokenizer(with_target(theirs, target_of(shorter)), tmp_path / "other")
    other = RunDir(tmp_path / "run")
    other.create()
    with pytest.raises(UsageError, match="its target vocabulary has 80 tokens and that of this recipe 60"):
        check_beginning(other, load_recipe(path, [begins[0], f"tokenizer={{pretrained: {tmp_path / 'other'}}}"]))
    with pytest.raises(UsageError, match=r"model\.tied_embeddings is target there and False in this recipe"):
        build_model(make_task(load_recipe(path, [*begins, "model.tied_embeddings=false"]), theirs))
