"""Adapters: only they and the head are trained and stored, under every engine; merged and published through gates."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_causal
import test_text_to_text
import torch
from conftest import write_corpus
from language_helpers import write_documents
from processes import train as start
from review_helpers import NAMES, recipe, write_bert, write_reviews, written
from safetensors.numpy import load_file, save_file
from slow import slow_except
from transformers import AutoTokenizer, T5Config, T5Model

from launch.tools.plan.trace import fake_model
from trainer import predict
from trainer.api import train as train_here
from trainer.engine import merging
from trainer.engine.trained_run import TrainedRun
from trainer.errors import CheckpointError, GateError, UsageError
from trainer.models.adapters import base_facts, inject, is_adapted, merge
from trainer.models.configs import AdapterConfig
from trainer.recipe_loading import Recipe, check_recipe
from trainer.rundir import RunDir

WORLDS = {"single": 1, "ddp": 2, "zero1": 2, "zero2": 2, "zero3": 2, "fsdp2": 2}
KINDS: dict[str, dict[str, Any]] = {
    "lora": {"kind": "lora", "rank": 4, "dropout": 0.1},
    "dora": {"kind": "dora", "rank": 4, "dropout": 0.1},
    "ia3": {"kind": "ia3"},
}
SGD = ("optim.name=sgd", "optim.lr=3.0", "optim.momentum=0.9", "optim.clip_norm=0.5")
QUIET = ("loop.eval_every=100", "loop.save_every=100", "evaluation.splits=[]", "data.validation=null")
HALF, WHOLE = 4, 8
LAYER = "bert.encoder.layer."


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_reviews(tmp_path_factory.mktemp("reviews"))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bert(tmp_path_factory.mktemp("bert"))


def adapted(root: Path, base: Path, adapter: dict[str, Any] | None = None, **sections: Any) -> Any:
    model = {"kind": "pretrained", "name": str(base), "adapter": adapter or KINDS["lora"], **sections.pop("model", {})}
    return recipe(root, model, **{"optim": {"lr": 0.02}, **sections})


def weights(run: Path, step: int, file: str = "model") -> dict[str, np.ndarray]:
    return load_file(run / f"checkpoints/step-{step:08d}/{file}.safetensors")


def gate(run: Path) -> dict[str, Any]:
    return json.loads((run / "adapter/gate.json").read_text())


@pytest.fixture(scope="module")
def finished(data: Path, bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with LoRA. Read only."""
    run = tmp_path_factory.mktemp("finished") / "run"
    train_here(adapted(data, bert), run=run)
    return run


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the process with stock PEFT, which takes seconds."""
    monkeypatch.setattr("trainer.post_training.check_adapter", lambda *_: None)


# -- what is trained and stored ----------------------------------------------------------------------------------------


def test_checkpoints_contain_only_adapter_and_head(finished: Path) -> None:
    inner = [f"{LAYER}{i}.attention.self.{m}.lora_{x}.default.weight" for i in (0, 1) for m in ("query", "value")
             for x in "AB"]  # fmt: skip
    stored = {*inner, "classifier.weight", "classifier.bias"}
    assert weights(finished, WHOLE).keys() == stored
    assert weights(finished, WHOLE, "optimizer").keys() == {
        f"{n}.{m}" for n in stored for m in ("exp_avg", "exp_avg_sq")
    }
    folder = finished / f"checkpoints/step-{WHOLE:08d}"
    size = {name: (folder / f"{name}.safetensors").stat().st_size for name in ("model", "optimizer")}
    whole = (finished / "model/model.safetensors").stat().st_size
    assert size["model"] < 0.1 * whole
    assert size["optimizer"] < 0.2 * whole


def test_the_manifest_names_the_base_and_counts_what_is_trained(finished: Path, bert: Path) -> None:
    facts = json.loads((finished / "manifest.json").read_text())["adapter"]
    trained = sum(array.size for array in weights(finished, WHOLE).values())
    assert facts["trained"] == trained
    assert facts["parameters"] > 15 * trained
    assert facts["base"] == base_facts(str(bert))
    assert facts["base"]["name"] == bert.name, "a path of this machine is not published"
    state = json.loads((finished / f"checkpoints/step-{WHOLE:08d}/state.json").read_text())
    assert state["base"] == facts["base"]


def test_a_resume_on_other_base_weights_is_refused_with_both_hashes(
    data: Path, bert: Path, tmp_path: Path, unchecked: None
) -> None:
    base = shutil.copytree(bert, tmp_path / "bert")
    made = adapted(data, base, evaluation={"splits": []}, loop={"max_steps": HALF})
    train_here(made, run=tmp_path / "run")
    before = base_facts(str(base))["sha256"]
    arrays = load_file(base / "model.safetensors")
    arrays["embeddings.LayerNorm.bias"] = arrays["embeddings.LayerNorm.bias"] + 1e-3
    save_file(arrays, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError) as error:
        train_here(made, ["loop.max_steps=8"], run=tmp_path / "run", allow_change=["loop.max_steps"])
    assert error.value.exit_code == 4
    assert before in str(error.value)
    assert base_facts(str(base))["sha256"] in str(error.value)
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    assert manifest["adapter"]["base"]["sha256"] == before


# -- engines -----------------------------------------------------------------------------------------------------------


class Runs:
    """Runs of eight steps under an engine, made when they are first used, some with a resume in between. Read only."""

    def __init__(self, data: Path, bert: Path, folder: Path) -> None:
        self._data, self._bert, self._folder = data, bert, folder

    def of(self, kind: str, first: str, then: str | None = None) -> Path:
        run = self._folder / f"{kind}-{first}-{then}"
        if not run.exists():
            path = written(self._folder, adapted(self._data, self._bert, KINDS[kind]))
            for engine, steps in ((first, HALF), (then, WHOLE)) if then else ((first, WHOLE),):
                more = ("--allow-change", "loop.max_steps") if run.exists() else ()
                words = (*SGD, *QUIET, f"loop.max_steps={steps}", *more)
                start(path, run, *words, world=WORLDS[engine], engine=engine).check()
        return run


@pytest.fixture(scope="module")
def runs(data: Path, bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(data, bert, tmp_path_factory.mktemp("engines"))


CASES = [("lora", "ddp", None), ("lora", "zero1", None), ("dora", "zero3", None), ("ia3", "zero2", None)]
# ddp has the checkpoints of single, and zero1 those of zero2
CASES += [("lora", a, b) for a, b in (("single", "zero2"), ("zero2", "zero3"), ("zero3", "fsdp2"), ("fsdp2", "single"))]
FAST: list[tuple[str, str, str | None]] = [("lora", "fsdp2", "single")]


@pytest.mark.ranks
@pytest.mark.parametrize(("kind", "first", "then"), slow_except(CASES, *FAST))
def test_every_engine_makes_the_steps_of_a_single_process(runs: Runs, kind: str, first: str, then: str | None) -> None:
    """Also where a checkpoint of one engine is resumed under another, on another number of ranks."""
    reference, run = runs.of(kind, "single"), runs.of(kind, first, then)
    for file in ("model", "optimizer"):
        expected, found = weights(reference, WHOLE, file), weights(run, WHOLE, file)
        assert found.keys() == expected.keys()
        assert max(float(np.abs(found[name] - expected[name]).max()) for name in found) <= 1e-6
    moved = [np.abs(array).max() for name, array in expected.items() if "_B." in name or "ia3" in name]
    assert min(moved) > 0, "the adapter in every layer is trained"
    assert max(moved) > 2e-5


# -- merged and published ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dora", "ia3", "mean"])
def test_other_kinds_and_poolings_pass_both_gates(kind: str, data: Path, bert: Path, tmp_path: Path) -> None:
    model = {"pooling": "mean"} if kind == "mean" else {}
    train_here(adapted(data, bert, KINDS.get(kind), model=model), run=tmp_path / "run")
    found = gate(tmp_path / "run")
    assert found["passed"]
    assert found["checks"].keys() == {"merged", "stock_peft"}


def test_the_merged_model_is_the_base_plus_the_scaled_product(finished: Path, bert: Path) -> None:
    adapter = load_file(finished / "adapter/adapter_model.safetensors")
    merged, base = load_file(finished / "model/model.safetensors"), load_file(bert / "model.safetensors")
    assert {name.removeprefix("bert.") for name in merged} == {*base, "classifier.weight", "classifier.bias"}
    name = f"{LAYER}1.attention.self.query"
    a, b = (adapter[f"base_model.model.{name}.lora_{x}.weight"] for x in "AB")
    update = merged[f"{name}.weight"] - base[f"{name.removeprefix('bert.')}.weight"]
    assert np.abs(update).max() > 1e-4
    np.testing.assert_allclose(update, 16 / 4 * b @ a, atol=1e-6)
    key = f"{name.removesuffix('query')}key.weight"
    assert np.array_equal(merged[key], base[key.removeprefix("bert.")])


def test_stock_peft_predicts_as_the_run_does(finished: Path, bert: Path) -> None:
    """In a process that never imports rankzero; predictions are those of model/."""
    assert gate(finished)["checks"]["stock_peft"]["passed"]
    texts = ["the film was great", "a dull plot and awful acting"]
    script = f"""
import json, sys, torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from peft import PeftModel
base = AutoModelForSequenceClassification.from_pretrained({str(bert)!r}, num_labels=2)
model = PeftModel.from_pretrained(base, {str(finished / "adapter")!r}).eval()
tokenizer = AutoTokenizer.from_pretrained({str(finished / "model")!r})
logits = model(**tokenizer(json.loads(sys.argv[1]), return_tensors="pt", padding=True)).logits
print(json.dumps(logits.softmax(-1).tolist()))
assert not any(name.partition(".")[0] == "trainer" for name in sys.modules)
"""
    command = [sys.executable, "-c", script, json.dumps(texts)]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    theirs = json.loads(process.stdout.splitlines()[-1])
    ours = [[record["probabilities"][name] for name in NAMES] for record in predict(finished, texts)]
    np.testing.assert_allclose(theirs, ours, atol=1e-5)


def test_a_merge_that_changes_outputs_ends_with_6_and_without_a_model(
    data: Path, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unchecked: None
) -> None:
    made, run = adapted(data, bert, evaluation={"splits": []}), tmp_path / "run"

    def wrong(model: Any) -> None:
        merge(model)
        with torch.no_grad():
            model.classifier.bias += 1e-3

    with monkeypatch.context() as patched:
        patched.setattr(merging, "merge", wrong)
        with pytest.raises(GateError, match=r"differs from the adapter model by 0\.001 in 27 rows") as error:
            train_here(made, run=run)
    assert error.value.exit_code == 6
    assert not (run / "model").exists()
    assert [file.name for file in (run / "adapter").iterdir()] == ["gate.json"]
    assert gate(run)["failed"] == ["merged"]
    train_here(made, run=run)  # resumes, and merges again
    assert gate(run)["passed"]
    assert (run / "model/model.safetensors").exists()


@pytest.mark.slow
def test_an_adapter_that_stock_peft_reads_otherwise_is_refused(
    data: Path, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, run = adapted(data, bert, evaluation={"splits": []}), tmp_path / "run"

    def wrong(model: Any, folder: Path, base: Any) -> None:
        write(model, folder, base)
        path = folder / "adapter_model.safetensors"
        save_file({name: 2 * array for name, array in load_file(path).items()}, path)

    write = merging.write_adapter
    monkeypatch.setattr(merging, "write_adapter", wrong)
    with pytest.raises(GateError, match=r"failed its gate and holds only .*stock_peft"):
        train_here(made, run=run)
    assert [file.name for file in (run / "adapter").iterdir()] == ["gate.json"]
    assert (run / "model/model.safetensors").exists()
    with pytest.raises(GateError, match="stock_peft"):  # a second start does not forget it
        train_here(made, run=run)


def test_a_second_start_changes_nothing(finished: Path, data: Path, bert: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(run / "checkpoints")
    files = {path: path.read_bytes() for path in [*run.glob("model/*"), *run.glob("adapter/*")]}
    train_here(adapted(data, bert), run=run)
    assert {path: path.read_bytes() for path in [*run.glob("model/*"), *run.glob("adapter/*")]} == files


def test_report_and_card_name_base_and_adapter(finished: Path, bert: Path) -> None:
    page = (finished / "evaluation/test/report.html").read_text()
    card = (finished / "README.md").read_text()
    for text in (page, card):
        assert "LoRA of rank 4" in text
        assert base_facts(str(bert))["sha256"][:16] in text
        assert "1,090 of 22,306 parameters" in text


@pytest.mark.slow
def test_a_finished_run_opens_without_peft(finished: Path) -> None:
    script = f"""
import sys
class WithoutPeft:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "peft":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, WithoutPeft())
from launch.tools.plan.trace import fake_model
from trainer import predict
print(list(predict({str(finished)!r}, ["great film"]))[0]["label"])
"""
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert process.stdout.split()[-1] in NAMES


# -- other tasks -------------------------------------------------------------------------------------------------------


def saved_base(made: Any, task: Any, folder: Path) -> Path:
    """Write the recipe's random model and its tokenizer as a folder of pretrained weights."""
    task.build_model().save_pretrained(folder)
    task.tokenizer.save_pretrained(folder)
    return folder


def with_base(made: Any, base: Path, **adapter: Any) -> Any:
    values = made.model_dump(mode="json")
    values["tokenizer"] = {}
    values["model"] = {"kind": "pretrained", "name": str(base), "adapter": {"rank": 4, **adapter}}
    values["export"] |= {"onnx": False, "int8": False}
    return Recipe.parse(values)


@pytest.mark.parametrize("kind", slow_except(["lora", "ia3"], "lora"))
def test_gpt2_and_its_attention_projections(kind: str, tmp_path: Path) -> None:
    root = write_documents(tmp_path, test_causal.document, train=60, test=8)
    made = test_causal.recipe(root, optim={"lr": 1.0})
    torch.manual_seed(0)
    base = saved_base(made, test_causal.task_of(made), tmp_path / "base")
    adapter = {"kind": "ia3", "rank": 8} if kind == "ia3" else {}
    train_here(with_base(made, base, **adapter), run=tmp_path / "run")
    stored = weights(tmp_path / "run", WHOLE)
    assert all(".c_attn.lora_" in name or ".ia3_l." in name for name in stored), "a pretrained head is not trained"
    assert gate(tmp_path / "run")["passed"]
    config = json.loads((tmp_path / "run/adapter/adapter_config.json").read_text())
    assert config["task_type"] == "CAUSAL_LM"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_t5_and_its_attention_projections(kind: str, tmp_path: Path) -> None:
    root = write_corpus(tmp_path, train=60, test=8)
    made = test_text_to_text.recipe(root, optim={"lr": 1.0})
    torch.manual_seed(0)
    base = saved_base(made, test_text_to_text.task_of(made), tmp_path / "base")
    train_here(with_base(made, base, kind=kind), run=tmp_path / "run")
    stored = weights(tmp_path / "run", WHOLE)
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in stored} == {"q", "v"}
    assert gate(tmp_path / "run")["passed"]


# -- with the settings of the optimizer --------------------------------------------------------------------------------


def test_a_moving_average_covers_only_the_adapter_and_is_merged(
    data: Path, bert: Path, tmp_path: Path, unchecked: None
) -> None:
    optim = {"lr": 0.02, "averaging": {"kind": "ema", "decay": 0.5}, "layer_decay": 0.5, "unfreeze": 0.6}
    run = tmp_path / "run"
    train_here(adapted(data, bert, optim=optim, data={"validation": None}), run=run)
    average, raw = weights(run, WHOLE, "ema"), weights(run, WHOLE)
    assert average.keys() == raw.keys()
    published = load_file(run / "adapter/adapter_model.safetensors")["base_model.model.classifier.bias"]
    assert np.array_equal(published, average["classifier.bias"])
    assert not np.array_equal(published, raw["classifier.bias"])
    top, bottom = (np.abs(raw[f"{LAYER}{i}.attention.self.query.lora_B.default.weight"]).max() for i in (1, 0))
    assert top > 1e-4, "unfrozen after 60% of the steps"
    assert bottom == 0, "and the bottom layer never"


@pytest.mark.slow
def test_adversarial_training_moves_an_adapter_otherwise(data: Path, bert: Path, tmp_path: Path) -> None:
    found = []
    for kind in ("none", "fgm"):
        made = adapted(data, bert, optim={"lr": 0.02, "adversarial": {"kind": kind, "epsilon": 1.0}})
        train_here(made, [*QUIET, "loop.max_steps=4"], run=tmp_path / kind)
        found.append(weights(tmp_path / kind, HALF))
    assert all(np.isfinite(array).all() for array in found[1].values())
    assert any(not np.allclose(found[0][name], found[1][name], atol=1e-4) for name in found[0])


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["optim.freeze_trunk=true"], r"optim\.freeze_trunk: trains the head only, and the adapter is in the trunk"),
        (["optim.freeze_embeddings=true"], r"optim\.freeze_embeddings: has no effect"),
        (["optim.relative_rates=true"], r"optim\.relative_rates: scales rates by initial values"),
        (["model.size=tiny", "model.architecture=bert"], "adapter: needs pretrained weights"),
        (["model.init_from=runs/x"], r"needs a base that stock PEFT can load; give it as name"),
        (["model.adapter.kind=ia3"], "kind ia3 has no rank, dropout: leave them out"),
        (["model.adapter.targets=query"], r"model\.adapter\.targets"),
        (["model.adapter.r=4"], r"model\.adapter\.r: unknown key"),
        (["model.adapter.rank=0"], r"model\.adapter\.rank"),
    ],
)
def test_a_recipe_that_contradicts_itself_is_refused(words: list[str], message: str, data: Path, bert: Path) -> None:
    values = adapted(data, bert).model_dump(mode="json")
    with pytest.raises(UsageError, match=message):
        check_recipe(Recipe.parse(values, words))


def test_missing_peft_error_names_the_install_command(
    data: Path, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("trainer.engine.setup.survey", lambda *_: pytest.fail("a row was read"))
    with pytest.raises(UsageError, match=r"model\.adapter needs PEFT.*pip install 'rankzero\[adapters\]'"):
        train_here(adapted(data, bert), run=tmp_path / "run")


def test_targets_that_no_layer_has_are_refused_with_the_names_of_layers(data: Path, bert: Path, finished: Path) -> None:
    task = TrainedRun.task_of(RunDir(finished), Recipe)
    plain = task.build_model()
    with pytest.raises(UsageError, match=r"targets=\['q_proj'\] does not fit BertForSequenceClassification.*query"):
        inject(plain, AdapterConfig(targets=["q_proj"]))


def test_all_linear_leaves_the_head_to_be_trained_completely(finished: Path) -> None:
    task = TrainedRun.task_of(RunDir(finished), Recipe)
    model = inject(task.build_model(), AdapterConfig(targets="all-linear"))
    assert is_adapted(model)
    assert type(model.classifier) is torch.nn.Linear
    assert type(model.bert.encoder.layer[0].output.dense) is not torch.nn.Linear
    merge(model)
    assert not is_adapted(model)
    assert not [name for name, _ in model.named_parameters() if "lora" in name]


def test_tokens_without_a_row_in_the_embedding_are_refused(data: Path, bert: Path, tmp_path: Path) -> None:
    base = shutil.copytree(bert, tmp_path / "bert")

    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["filmfestival"])
    tokenizer.save_pretrained(base)
    with pytest.raises(UsageError, match="an adapter does not train embeddings"):
        train_here(adapted(data, base), run=tmp_path / "run")


def test_the_planner_counts_what_is_trained(finished: Path) -> None:
    _, layout = fake_model(TrainedRun.task_of(RunDir(finished), Recipe), on_cpu=False)
    facts = json.loads((finished / "manifest.json").read_text())["adapter"]
    assert (layout.trained, layout.elements) == (facts["trained"], facts["parameters"])


def test_only_the_encoder_of_an_encoder_decoder_is_refused() -> None:
    config = T5Config(vocab_size=32, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    with pytest.raises(UsageError, match="T5Stack, a part of the base that no Auto class loads"):
        inject(T5Model(config).get_encoder(), AdapterConfig())


def test_outputs_that_are_not_finite_differ() -> None:
    fine, broken = torch.ones(2, 3), torch.tensor([[1.0, float("nan"), 1.0], [1.0, float("inf"), 1.0]])
    assert merging.compare([fine], [fine + 9e-6])["passed"]
    assert not merging.compare([fine], [fine + 2e-5])["passed"]
    assert merging.compare([100 * fine], [100 * fine + 5e-4])["passed"], "relative to the largest"
    for pair in ((fine, broken), (broken, fine), (broken, broken)):
        check = merging.compare([pair[0]], [pair[1]])
        assert not check["passed"]
        assert check["difference"] == merging.HUGE
