"""Text to text with T5, BART and Marian: the library's loss, special tokens, beam search, ROUGE, and whole runs."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import hooks
import numpy as np
import processes
import pytest
import torch
from conftest import write_corpus
from review_helpers import metrics, train, written
from safetensors.numpy import load_file
from transformers import AutoModelForSeq2SeqLM

from trainer import predict, tensors
from trainer.data.tokenization import load_tokenizer, train_tokenizer
from trainer.engine.trained_run import TrainedRun, build_model
from trainer.errors import UsageError
from trainer.models.classifiers import reading_embedding
from trainer.optim.adversarial import Perturbation
from trainer.recipe.sections import AdversarialConfig
from trainer.recipe_loading import Recipe
from trainer.rundir import RunDir
from trainer.task.registry import make_task
from trainer.tasks.text_to_text.metrics import score_rouge

ARCHITECTURES = ("t5", "bart", "marian")
TEXTS = ["ein hund läuft", "zwei männer sitzen auf einer bank", "a dog runs", "two men are sitting on a bench", "ja"]


def recipe(root: Path | str = "x", architecture: str = "t5", **sections: Any) -> Any:
    values: dict[str, Any] = {
        "name": "pairs",
        "task": {"kind": "text_to_text"},
        "data": {"root": str(root), "train": "train.jsonl", "validation": "validation.jsonl",
                 "test": "test.jsonl", "columns": {"src": "de", "trg": "en"}, "lanes": 4,
                 "tokens_per_batch": 128, "max_length": 24, "pad_multiple": 4},
        "tokenizer": {"train": {"kind": "unigram", "vocab_size": 120}},
        "model": {"kind": "pretrained", "architecture": architecture, "size": "tiny"},
        "optim": {"name": "sgd", "lr": 0.1, "schedule": "constant"},
        "loop": {"max_steps": 8, "eval_every": 4, "save_every": 4, "log_every": 1},
        "evaluation": {"bootstrap": 20, "splits": ["test"], "max_rows": 12, "beam_size": 2},
        "export": {"bench": 0},
    }  # fmt: skip
    for name, changes in sections.items():
        values[name] = {**values.get(name, {}), **changes}
    return Recipe.parse(values)


def task_of(made: Any) -> Any:
    return make_task(made, train_tokenizer(TEXTS, made.tokenizer_training, 24))


def model_of(task: Any) -> Any:
    torch.manual_seed(0)
    return task.build_model().eval()


ROWS = [
    {"src": "ein hund läuft", "trg": "a dog runs"},
    {"src": "zwei männer sitzen auf einer bank", "trg": "two men are sitting on a bench"},
]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_loss_is_that_of_the_library(architecture: str) -> None:
    """labels=… of the library gives the mean over tokens; padding beside a longer row changes nothing."""
    task = task_of(recipe(architecture=architecture))
    model = model_of(task)
    examples = task.encode(ROWS)
    batch = task.collate(examples)
    with torch.no_grad():
        theirs = model(**batch)
        ours = task.loss(model, batch).item()
        alone = [task.loss(model, task.collate([e])).item() for e in examples]
    assert ours == pytest.approx(float(theirs.loss) * task.targets(batch), rel=1e-5)
    assert ours == pytest.approx(sum(alone), rel=1e-5)
    found = task.assess(model, batch, predict=True)
    assert found.losses.tolist() == pytest.approx(alone, rel=1e-5)
    assert [set(record) for record in found.records] == [{"prediction", "score"}] * 2


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_row_has_one_end_which_a_cut_target_loses(architecture: str) -> None:
    task = task_of(recipe(architecture=architecture, task={"prefix": "translate: "}))
    long = {"src": " ".join(["bank"] * 60), "trg": " ".join(["bench"] * 60)}
    *examples, cut = task.encode([*ROWS, long])
    for ids in [ids for example in examples for ids in example.values()] + [cut["input_ids"]]:
        assert len(ids) <= 24
        assert ids[-1] == task.eos_id
        assert ids[1:].count(task.eos_id) == 1
    assert len(cut["labels"]) == 24
    assert task.eos_id not in cut["labels"][1:], "the text does not end there"
    whole = task.tokenizer(long["trg"]).input_ids
    assert cut["labels"] == whole[:24]
    assert task.cut_roles({"src": 5, "trg": 60}) == ["trg"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_ids_are_those_of_the_tokenizers_own_call(architecture: str) -> None:
    """What transformers makes of a text with the tokenizer of model/ is what the model was trained on."""
    task = task_of(recipe(architecture=architecture, task={"prefix": "translate: "}))
    example = task.encode(ROWS[:1])[0]
    assert example["input_ids"] == task.tokenizer("translate: ein hund läuft").input_ids
    assert example["labels"] == task.tokenizer("a dog runs").input_ids
    begins = example["input_ids"][0] == task.tokenizer.cls_token_id
    assert begins == (architecture == "bart"), "T5 and Marian know only the end"


def test_a_tokenizer_that_ends_no_text_is_helped() -> None:
    from tokenizers.processors import TemplateProcessing

    task = task_of(recipe())
    task.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    task = make_task(task.recipe, task.tokenizer)
    long = {"src": "bank " * 60, "trg": "bench " * 60}
    for example in task.encode([*ROWS, long]):
        assert max(map(len, example.values())) <= 24
        assert example["input_ids"].count(task.eos_id) == 1
        assert example["input_ids"][-1] == task.eos_id
    assert example["labels"].count(task.eos_id) == 0, "cut"
    assert task.encode(ROWS[:1])[0]["labels"][-1] == task.eos_id


def test_targets_have_a_length_of_their_own() -> None:
    long = {"src": "bank " * 60, "trg": "bench " * 60}
    example = task_of(recipe(task={"max_target_length": 9})).encode([long])[0]
    assert (len(example["input_ids"]), len(example["labels"])) == (24, 9)


def log_likelihood(task: Any, model: Any, batch: Any, ids: list[int]) -> float:
    """Of the ids after the decoder's start token."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    start = int(model.config.decoder_start_token_id)
    with torch.no_grad():
        log_p = model(**inputs, decoder_input_ids=torch.tensor([[start, *ids[:-1]]])).logits[0].log_softmax(-1)
    return float(log_p.gather(1, torch.tensor(ids)[:, None]).sum())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_search_repeats_the_most_probable_token(architecture: str) -> None:
    """Up to the row's limit, where the end is forced; padding is never written."""
    task = task_of(recipe(architecture=architecture, evaluation={"beam_size": 1, "length_penalty": 0.5}))
    model = model_of(task)
    batch = task.collate(task.encode(ROWS[1:]))
    limit = min(int(batch["attention_mask"].sum() * 1.5) + 10, 24)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    ids: list[int] = []
    while not ids or ids[-1] != task.eos_id:
        decoded = torch.tensor([[int(model.config.decoder_start_token_id), *ids]])
        with torch.no_grad():
            logits = model(**inputs, decoder_input_ids=decoded).logits[0, -1]
        logits[task.pad_id] = -torch.inf
        ids.append(task.eos_id if len(ids) == limit - 1 else int(logits.argmax()))
    [record] = task.predict(model, batch)
    assert record["prediction"] == task.tokenizer.decode(ids, skip_special_tokens=True)
    assert record["score"] == pytest.approx(log_likelihood(task, model, batch, ids) / len(ids) ** 0.5, rel=1e-4)


@pytest.mark.parametrize("beam_size", [1, 4])
def test_an_answer_does_not_depend_on_its_neighbours(beam_size: int) -> None:
    """Neither on their padding nor on their longer limits; its score is that of its own tokens."""
    task = task_of(recipe("x", "bart", evaluation={"beam_size": beam_size, "max_length_factor": 0.5}))
    model = model_of(task)
    with torch.no_grad():
        model.model.shared.weight.mul_(30)  # far from uniform, so that rounding decides nothing
    model.eval()
    examples = task.encode([{"src": "ja", "trg": "a"}, *ROWS])
    together = task.predict(model, task.collate(examples))
    for example, record in zip(examples, together, strict=True):
        [alone] = task.predict(model, task.collate([example]))
        assert alone["prediction"] == record["prediction"]
        assert alone["score"] == pytest.approx(record["score"], rel=1e-3)


def test_only_the_recipe_sets_the_search(tmp_path: Path) -> None:
    """A pretrained BART brings least lengths and forbidden repetitions, which its run's directory does not hold."""
    made = recipe(architecture="bart")
    task = task_of(made)
    model = model_of(task)
    model.generation_config.update(min_length=15, no_repeat_ngram_size=2)
    model.save_pretrained(tmp_path / "bart")
    task.tokenizer.save_pretrained(tmp_path / "bart")
    values = made.model_dump(mode="json") | {"model": {"kind": "pretrained", "name": str(tmp_path / "bart")}}
    found = make_task(Recipe.parse(values | {"tokenizer": {}}), task.tokenizer)
    loaded = found.build_model().eval()
    batch = task.collate(task.encode(ROWS))
    model.generation_config = type(model.generation_config)()
    assert found.predict(loaded, batch) == task.predict(model, batch)
    assert loaded.generation_config.min_length is None


def test_begun_from_a_run_with_all_of_its_weights(tmp_path: Path) -> None:
    """T5 has no head apart; and the rows keep their layout."""
    task = task_of(recipe())
    first = model_of(task)
    (tmp_path / "model").mkdir()
    tensors.write(tmp_path / "model/model.safetensors", dict(first.named_parameters()))
    (tmp_path / "model/config.json").write_text(json.dumps(task.model_config(first)))
    task.tokenizer.save_pretrained(tmp_path / "tokenizer")
    values = recipe().model_dump(mode="json") | {"tokenizer": {}}
    values["model"]["init_from"] = str(tmp_path)
    second = make_task(Recipe.parse(values), load_tokenizer(str(tmp_path / "tokenizer")))
    torch.manual_seed(1)
    for name, p in build_model(second).named_parameters():
        assert torch.equal(p, first.get_parameter(name)), name
    assert second.encode(ROWS) == task.encode(ROWS)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_attention_from_answers_to_sources(architecture: str) -> None:
    task = task_of(recipe(architecture=architecture))
    record = {"id": "a:0", "input": "ein hund läuft", "prediction": "a dog runs", "target": "a dog runs"}
    [row] = task.explain(model_of(task), [record])
    shape = (row["layers"], row["heads"], len(row["tokens"]), len(row["keys"]))
    assert np.array(row["weights"]).shape == shape
    assert shape[:2] == (2, 2)
    assert len(row["relevance"]) == len(row["keys"])
    assert not {"</s>", "<s>", "<pad>"} & {*row["tokens"], *row["keys"]}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_adversarial_noise_raises_the_loss(architecture: str) -> None:
    """Adversarial training adds its δ where the source is embedded: T5's and BART's encoder has a module for it."""
    task = task_of(recipe(architecture=architecture))
    model, batch = model_of(task), task.collate(task.encode(ROWS))
    twin = Perturbation(reading_embedding(model), AdversarialConfig(kind="fgm"))
    with twin.clean():
        clean = task.loss(model, batch)
        clean.backward()
    delta = twin.direction()
    assert delta.shape[:2] == batch["input_ids"].shape
    with twin.moved_by(delta):
        assert task.loss(model, batch) > clean


def test_rouge_knows_letters_of_any_script() -> None:
    def one(target: str, prediction: str) -> float:
        return float(score_rouge([{"id": "a:0", "target": target, "prediction": prediction}], 0)["rouge1"])

    assert one("Männer und Frauen", "Mönner und Frauen") == pytest.approx(2 / 3)
    assert one("日本 語", "日本 語") == 1.0
    assert one("It's 3 o'clock, snake_case!", "it s 3 O clock snake case") == 1.0


def test_rouge_by_hand() -> None:
    """ "the cat sat on the mat" for "the cat lay on a mat": 4 of 6 words, 1 of 5 pairs, 4 words in common order."""
    record = {"id": "a:0", "target": "the cat lay on a mat", "prediction": "the cat sat on the mat"}
    scores = score_rouge([record, {**record, "id": "a:1", "prediction": ""}], 10)
    assert scores["rouge1"] == pytest.approx((4 / 6) / 2)
    assert scores["rouge2"] == pytest.approx((1 / 5) / 2)
    assert scores["rougeL"] == pytest.approx((4 / 6) / 2)
    low, high = scores["rouge1_ci95"]
    assert 0 <= low <= scores["rouge1"] <= high <= 4 / 6 + 1e-9


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def run(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("t5"), recipe(pairs), "run", ranks=2)


@pytest.mark.ranks
def test_two_ranks_end_with_published_artifacts(run: Path) -> None:
    assert json.loads((run / "status.json").read_text(encoding="utf-8"))["exit_code"] == 0
    for name in ("onnx", "int8"):
        folder = run / "export" / name
        assert json.loads((folder / "gate.json").read_text(encoding="utf-8"))["passed"]
        assert {"encoder.onnx", "decoder.onnx", "run.py"} <= {path.name for path in folder.iterdir()}


@pytest.mark.ranks
def test_killed_and_resumed_bitwise(run: Path, pairs: Path, tmp_path: Path) -> None:
    path, again = written(tmp_path, recipe(pairs)), tmp_path / "run"
    killed = processes.train(path, again, world=2, hook=partial(hooks.at_micro_batch, 6, 1))
    assert any(killed.codes)
    processes.train(path, again, world=2).check()
    for file in ("model/model.safetensors", "evaluation/test/predictions.jsonl"):
        assert (again / file).read_bytes() == (run / file).read_bytes(), file


@pytest.mark.ranks
@pytest.mark.parametrize("architecture", ["t5", "bart"])
@pytest.mark.slow
def test_one_and_two_ranks_take_the_same_steps(pairs: Path, tmp_path: Path, architecture: str) -> None:
    made = recipe(pairs, architecture, export={"onnx": False, "int8": False})
    one, two = train(tmp_path, made, "one"), train(tmp_path, made, "two", ranks=2)
    a, b = (load_file(r / "checkpoints/step-00000008/model.safetensors") for r in (one, two))
    assert max(float(np.abs(a[name] - b[name]).max()) for name in a) <= 1e-6
    scores = metrics(one)
    for name, value in metrics(two).items():
        assert scores[name] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-5)), name
    assert {"bleu", "chrf", "perplexity", "rouge1", "rouge2", "rougeL", "rougeL_ci95", "signature"} <= scores.keys()
    assert scores["rows"] == 12


@pytest.mark.ranks
@pytest.mark.slow
def test_buffers_of_a_pretrained_model_are_kept(pairs: Path, tmp_path: Path) -> None:
    """A bias of Marian's logits is never trained, and no parameter: a run's model was without it, silently."""
    task = task_of(recipe(architecture="marian"))
    model, theirs = model_of(task), tmp_path / "marian"
    bias = model.final_logits_bias.normal_(0, 3)
    model.save_pretrained(theirs)
    task.tokenizer.save_pretrained(theirs)
    sections = {"tokenizer": {"train": None}, "optim": {"lr": 1e-12}, "loop": {"max_steps": 1, "save_every": 1}}
    sections["export"] = {"onnx": False, "int8": False, "bf16": True, "safetensors": True}
    values = recipe(pairs, **sections).model_dump(mode="json")
    values["model"] = {"kind": "pretrained", "name": str(theirs)}
    first = train(tmp_path, Recipe.parse(values), "first")
    values["model"] = {"kind": "pretrained", "architecture": "marian", "size": "tiny", "init_from": str(first)}
    second = train(tmp_path, Recipe.parse(values), "second")
    for folder in (first / "model", first / "export/safetensors", first / "export/bf16", second / "model"):
        again = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32)
        assert torch.allclose(again.final_logits_bias, bias, rtol=0.01), folder
    assert torch.equal(TrainedRun.open(RunDir(first), Recipe).model.final_logits_bias, bias)


@pytest.mark.ranks
def test_the_run_answers_and_reports(run: Path) -> None:
    records = list(predict(run, ["ein hund", ""]))
    assert [set(record) for record in records] == [{"text", "prediction", "score"}] * 2
    page = (run / "evaluation/test/report.html").read_text(encoding="utf-8")
    assert "ROUGE-L" in page
    assert "Translations worth reading" in page
    assert json.loads((run / "status.json").read_text(encoding="utf-8"))["state"] == "finished"


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"architecture": "gpt2"}, r"model.architecture='gpt2' cannot be loaded"),
        ({"task": {"max_target_length": 25}}, r"task.max_target_length=25 is more than data.max_length=24"),
        (
            {"task": {"prefix": "zwei männer sitzen " * 9}},
            r"data.max_length=24 leaves no room for a text: task.prefix=",
        ),
        ({"task": {"max_target_length": 1}}, r"leaves no room for a text"),
        ({"model": {"config": {"d_modle": 8}}}, r"model.config.d_modle: t5 has no such key; did you mean 'd_model'"),
    ],
)
def test_impossible_settings_are_refused(sections: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        task_of(recipe(**sections)).build_model()


def test_tokenizers_without_an_end_or_with_languages_are_refused() -> None:
    task = task_of(recipe())
    task.tokenizer.src_lang = "de_DE"
    with pytest.raises(UsageError, match="codes of their languages"):
        make_task(task.recipe, task.tokenizer)
    task.tokenizer.eos_token = None
    with pytest.raises(UsageError, match=r"has no eos_token.*choose an encoder-decoder"):
        make_task(task.recipe, task.tokenizer)


@pytest.mark.ranks
def test_a_wrong_setting_ends_with_2(pairs: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    processes.train(written(tmp_path, recipe(pairs)), run, "task.max_target_length=99").check(2)
    assert "task.max_target_length=99 is more than data.max_length=24" in processes.status(run)["error"]
