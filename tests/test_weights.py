"""Pretrained weights are loaded completely, or the start is refused with the differences."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from review_helpers import NAMES, recipe, task_of, write_bert
from safetensors.torch import load_file, save_file
from slow import slow_except
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    T5Config,
    T5EncoderModel,
    T5Model,
)

from trainer.data.tokenization import load_tokenizer, train_tokenizer
from trainer.errors import UsageError
from trainer.hub_paths import check_model_files
from trainer.models.pretrained import load_bare
from trainer.models.weights import load_weights
from trainer.recipe.sections import TokenizerTraining

LAYERS = "encoder.layer."


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny BERT of two layers and its tokenizer. Read only."""
    return write_bert(tmp_path_factory.mktemp("bert"))


def altered(bert: Path, to: Path, rename: Any = lambda name: name, **config: Any) -> Path:
    """The BERT with other names of its weights and another configuration."""
    to.mkdir()
    for file in bert.iterdir():
        if file.name not in ("model.safetensors", "config.json"):
            (to / file.name).write_bytes(file.read_bytes())
    facts = json.loads((bert / "config.json").read_text())
    (to / "config.json").write_text(json.dumps({**facts, **config}))
    weights = load_file(bert / "model.safetensors")
    save_file({rename(name): tensor for name, tensor in weights.items()}, to / "model.safetensors", {"format": "pt"})
    return to


def model_of(folder: Path, pooling: str = "mean", **sections: Any) -> Any:
    made = recipe(Path(), {"kind": "pretrained", "name": str(folder), "pooling": pooling}, **sections)
    return task_of(made).build_model()


def same(model: torch.nn.Module, folder: Path) -> bool:
    weights, own = load_file(folder / "model.safetensors"), model.state_dict()
    return all(torch.equal(own[name], weights[name]) for name in own)


# -- names -------------------------------------------------------------------------------------------------------------


def inside(name: str) -> str:
    return name.replace(LAYERS, f"_fsdp_wrapped_module.{LAYERS}").replace(".attention.", "._orig_mod.attention.")


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "model.", "backbone.", "module._orig_mod.", "module.bert.", "0.auto_model.", "net.bert."],
)
def test_a_prefix_of_the_names_is_left_out(bert: Path, tmp_path: Path, prefix: str, caplog: Any) -> None:
    """The weights are those of the original, to a bit, in `embed` and in a classifier; one line says so."""
    folder = altered(bert, tmp_path / "other", lambda name: prefix + name)
    with caplog.at_level(logging.INFO, "rankzero"):
        assert same(load_bare(str(folder)), bert)
    assert [f"the prefix {prefix!r} left out" in text for text in caplog.messages] == [True]
    torch.manual_seed(1)
    other = model_of(folder)
    torch.manual_seed(1)
    assert torch.equal(other.head.weight, model_of(bert).head.weight), "a new head is the same, too"
    trunk = other.trunk.state_dict()
    weights = load_file(bert / "model.safetensors")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in trunk.items())
    head = model_of(folder, "auto").base_model.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in head.items())


def test_names_of_wrappers_inside_are_left_out(bert: Path, tmp_path: Path) -> None:
    """As torch.compile and FSDP leave them where they wrap layers."""
    assert same(load_bare(str(altered(bert, tmp_path / "other", inside))), bert)


def test_a_prefix_in_a_pytorch_file_with_a_head_is_left_out(bert: Path, tmp_path: Path) -> None:
    folder = altered(bert, tmp_path / "other", id2label={0: NAMES[0], 1: NAMES[1]})
    (folder / "model.safetensors").unlink()
    theirs = BertForSequenceClassification(BertConfig.from_pretrained(folder))
    torch.save({f"module.{name}": tensor for name, tensor in theirs.state_dict().items()}, folder / "pytorch_model.bin")
    own = model_of(folder, "auto").state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in theirs.state_dict().items())


@pytest.mark.parametrize(
    ("rename", "message"),
    [
        (
            lambda name: f"x{len(name)}.{name}",
            r"37 of 39 weights of BertModel are not in its files, such as embeddings\.",
        ),
        (
            lambda name: name.replace("query", "q"),
            r"4 of 39 weights .* such as encoder\.layer\.0\.attention\.self\.query",
        ),
        (lambda name: f"roberta.{name}", r"37 of 39 weights .*Prefixes that would explain some: 'roberta\.'"),
    ],
)
def test_weights_of_other_names_are_refused(bert: Path, tmp_path: Path, rename: Any, message: str) -> None:
    folder = altered(bert, tmp_path / "other", rename)
    with pytest.raises(UsageError, match=message):
        load_bare(str(folder))
    for pooling in ("mean", "auto"):
        with pytest.raises(UsageError, match=r"^model\.name='.*' *: .* weights of BertModel are not in its files"):
            model_of(folder, pooling)


def test_two_models_in_one_file_are_refused(bert: Path, tmp_path: Path) -> None:
    """A teacher and a student: either would do, so neither is taken."""
    folder = altered(bert, tmp_path / "other")
    weights = load_file(bert / "model.safetensors")
    both = {f"{who}.{name}": tensor.clone() for who in ("student", "teacher") for name, tensor in weights.items()}
    save_file(both, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError, match=r"Prefixes that would explain some: 'student\.', 'teacher\.'"):
        load_bare(str(folder))


# -- layers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layers", "what"), [(3, "16 weights are missing"), (1, "16 weights are left over")])
@pytest.mark.parametrize("prefix", ["", "bert.", "module."])
def test_another_number_of_layers_is_refused(bert: Path, tmp_path: Path, layers: int, what: str, prefix: str) -> None:
    folder = altered(bert, tmp_path / "other", lambda name: prefix + name, num_hidden_layers=layers)
    message = rf"its files have 2 layers in encoder\.layer, and its configuration has {layers} .*{what}"
    with pytest.raises(UsageError, match=message):
        load_bare(str(folder))
    for pooling in ("mean", "auto"):
        with pytest.raises(UsageError, match=message + r".*model\.config=\{num_hidden_layers: 2\}"):
            model_of(folder, pooling)


def test_the_recipe_may_leave_out_upper_layers(bert: Path, caplog: Any) -> None:
    model = {"kind": "pretrained", "name": str(bert), "pooling": "mean", "config": {"num_hidden_layers": 1}}
    with caplog.at_level(logging.INFO, "rankzero"):
        trunk = task_of(recipe(Path(), model)).build_model().trunk
    assert len(trunk.encoder.layer) == 1
    assert sum("upper layers left out" in text for text in caplog.messages) == 1
    with pytest.raises(UsageError, match="its files have 2 layers"):
        task_of(recipe(Path(), {**model, "config": {"num_hidden_layers": 4}})).build_model()


# -- what may be missing -----------------------------------------------------------------------------------------------

FAMILIES: dict[str, tuple[Any, ...]] = {
    "bert": (AutoModelForSequenceClassification, AutoModelForMaskedLM),
    "roberta": (AutoModelForSequenceClassification, AutoModelForMaskedLM),
    "distilbert": (AutoModelForSequenceClassification, AutoModelForMaskedLM),
    "albert": (AutoModelForSequenceClassification, AutoModelForMaskedLM),
    "electra": (AutoModelForSequenceClassification, AutoModelForMaskedLM),
    "mpnet": (AutoModelForSequenceClassification, AutoModelForMaskedLM),
    "deberta-v2": (AutoModelForSequenceClassification, AutoModelForMaskedLM),
    "modernbert": (AutoModelForSequenceClassification, AutoModelForMaskedLM),
    "xlnet": (AutoModelForSequenceClassification,),
    "gpt2": (AutoModelForSequenceClassification, AutoModelForCausalLM),
    "gpt_neox": (AutoModelForSequenceClassification, AutoModelForCausalLM),
    "llama": (AutoModelForSequenceClassification, AutoModelForCausalLM),
    "bart": (AutoModelForSequenceClassification, AutoModelForSeq2SeqLM),
    "t5": (AutoModelForSequenceClassification, AutoModelForSeq2SeqLM),
    "marian": (AutoModelForSeq2SeqLM,),
    "pegasus": (AutoModelForSeq2SeqLM,),
}
SMALL = {
    "vocab_size": 40, "hidden_size": 16, "d_model": 16, "n_embd": 16, "dim": 16, "embedding_size": 16, "d_ff": 32,
    "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "encoder_layers": 2, "decoder_layers": 2, "num_layers": 2,
    "num_attention_heads": 2, "n_head": 2, "n_heads": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "num_heads": 2, "num_key_value_heads": 2, "intermediate_size": 32, "hidden_dim": 32, "d_inner": 32, "d_kv": 8,
    "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 20, "pad_token_id": 1, "bos_token_id": 2,
    "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3,
}  # fmt: skip


def small(family: str) -> Any:
    known = AutoConfig.for_model(family)
    keys = {*known.to_dict(), *known.attribute_map}
    values = {known.attribute_map.get(key, key): value for key, value in SMALL.items() if key in keys}
    if family == "marian":
        values["decoder_start_token_id"] = 1
    return AutoConfig.for_model(family, **values)


@pytest.mark.parametrize("family", slow_except(FAMILIES, "bert", "gpt2", "bart"))
def test_any_head_may_be_new_and_nothing_else(family: str, tmp_path: Path) -> None:
    """Weights of a trunk serve every head, and those of every head a trunk; without one weight they are refused."""
    config = small(family)
    for auto in (AutoModel, *FAMILIES[family]):
        folder = tmp_path / auto.__name__
        auto.from_config(config).save_pretrained(folder)
        for other in (AutoModel, *FAMILIES[family]):
            loaded = load_weights(other, str(folder))
            assert not loaded.mismatched
            assert all(
                not name.startswith(f"{loaded.model.base_model_prefix}.") or "pooler" in name for name in loaded.new
            )
        load_weights(AutoModel, str(folder), encoder=True)
    weights = load_file(folder / "model.safetensors")
    lost = next(name for name in sorted(weights) if ".0." in name)
    save_file({name: tensor for name, tensor in weights.items() if name != lost}, folder / "model.safetensors")
    for other in (AutoModel, *FAMILIES[family]):
        with pytest.raises(UsageError, match=r"1 of \d+ weights of \w+ are not in its files"):
            load_weights(other, str(folder))


def test_only_the_encoder_has_to_be_there_for_vectors(tmp_path: Path) -> None:
    config = small("t5")
    assert isinstance(config, T5Config)
    T5EncoderModel(config).save_pretrained(tmp_path)
    encoder = load_bare(str(tmp_path)).state_dict()
    weights = load_file(tmp_path / "model.safetensors")
    assert all(
        torch.equal(weights.get(f"encoder.{name}", weights["shared.weight"]), tensor)
        for name, tensor in encoder.items()
    )
    with pytest.raises(UsageError, match=r"are not in its files, such as decoder\."):
        load_weights(AutoModel, str(tmp_path))
    T5Model(config).save_pretrained(tmp_path)
    load_weights(AutoModel, str(tmp_path))


def test_old_names_and_shards_load(bert: Path, tmp_path: Path) -> None:
    def old(name: str) -> str:
        return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")

    assert same(load_bare(str(altered(bert, tmp_path / "old", old))), bert)
    sharded = altered(bert, tmp_path / "sharded")
    (sharded / "model.safetensors").unlink()
    BertModel.from_pretrained(bert).save_pretrained(sharded, max_shard_size="20KB")
    assert (sharded / "model.safetensors.index.json").exists()
    assert same(load_bare(str(sharded)), bert)


def test_new_heads_are_logged_once_and_unused_weights_warned_of(bert: Path, tmp_path: Path, caplog: Any) -> None:
    folder = altered(bert, tmp_path / "other")
    weights = load_file(bert / "model.safetensors")
    adapter = {"encoder.layer.0.adapter.down.weight": torch.zeros(2, 2)}
    save_file({**weights, **adapter}, folder / "model.safetensors", {"format": "pt"})
    with caplog.at_level(logging.INFO, "rankzero"):
        model_of(folder, "auto")
    assert [text.partition(": ")[2] for text in caplog.messages] == [
        "new weights, not in its files: classifier.bias, classifier.weight",
        f"1 weights of its files have no place in BertModel and are not used, such as {next(iter(adapter))}",
    ]


def test_weights_of_another_size_are_refused_for_vectors(bert: Path, tmp_path: Path) -> None:
    folder = altered(bert, tmp_path / "other", max_position_embeddings=48)
    with pytest.raises(UsageError, match=r"its embeddings\.position_embeddings\.weight is \[40, 32\], and \[48, 32\]"):
        load_bare(str(folder))


# -- files -------------------------------------------------------------------------------------------------------------

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:53aa\nsize 90868376\n"
DAMAGES: dict[str, Any] = {
    "is a Git LFS pointer": lambda content: POINTER.encode(),
    "is an HTML page": lambda content: b"\n<!DOCTYPE html><html><body>401</body></html>",
    "is empty": lambda content: b"",
    "is cut or corrupt|does not match its check sum": lambda content: content[: len(content) // 2],
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin", "config.json", "tokenizer.json", "part"])
def test_damaged_files_are_refused_by_name(bert: Path, tmp_path: Path, file: str, damage: str) -> None:
    folder = altered(bert, tmp_path / "other")
    if file == "pytorch_model.bin":
        (folder / "model.safetensors").unlink()
        torch.save(load_file(bert / "model.safetensors"), folder / file)
    if file == "part":
        (folder / "model.safetensors").unlink()
        BertModel.from_pretrained(bert).save_pretrained(folder, max_shard_size="20KB")
        file = "model-00002-of-00006.safetensors"
        assert (folder / file).exists()
    path = folder / file
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    check = load_tokenizer if file == "tokenizer.json" else check_model_files
    with pytest.raises(UsageError, match=rf"{file} ({damage})"):
        check(str(folder))


def test_a_damaged_byte_of_a_pytorch_file_is_found(bert: Path, tmp_path: Path) -> None:
    """Torch itself reads on: it ignores the check sums of its own format."""
    folder = altered(bert, tmp_path / "other")
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    torch.save(load_file(bert / "model.safetensors"), path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"pytorch_model\.bin is corrupt: .* does not match its check sum"):
        check_model_files(str(folder))


def test_folders_without_usable_weights_are_refused(bert: Path, tmp_path: Path) -> None:
    folder = altered(bert, tmp_path / "other")
    (folder / "model.safetensors").rename(folder / "adapter_config.json")
    with pytest.raises(UsageError, match=r"has no weights .*It holds a PEFT adapter; merge it"):
        check_model_files(str(folder))
    (folder / "adapter_config.json").rename(folder / "tf_model.h5")
    with pytest.raises(UsageError, match=r"has no weights .*It holds TensorFlow weights"):
        check_model_files(str(folder))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    with pytest.raises(UsageError, match=r"model-1\.safetensors does not exist, but model\.safetensors\.index\.json"):
        check_model_files(str(folder))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../model.safetensors"}}))
    with pytest.raises(UsageError, match="which is not in the same folder"):
        check_model_files(str(folder))
    (folder / "config.json").write_text("{}")
    with pytest.raises(UsageError, match=r"config\.json has no model_type"):
        check_model_files(str(folder))
    (folder / "config.json").unlink()
    with pytest.raises(UsageError, match=r"has no config\.json"):
        check_model_files(str(folder))


# -- tokenizers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [(), ("tokenizer_config.json",), ("special_tokens_map.json",), ("added_tokens.json",)])
def test_a_folder_without_tokenizer_files_is_refused(bert: Path, tmp_path: Path, kept: tuple[str, ...]) -> None:
    (tmp_path / "config.json").write_bytes((bert / "config.json").read_bytes())
    for file in kept:
        (tmp_path / file).write_text("{}")
    with pytest.raises(
        UsageError, match=rf"^no tokenizer files in {tmp_path}: tokenizer\.json, or vocab\.txt is needed"
    ):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize(
    "family", ["gpt2", "roberta", "t5", "xlm-roberta", "llama", "deberta-v2", "qwen2", "modernbert"]
)
def test_other_tokenizers_without_files_are_refused(tmp_path: Path, family: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    with pytest.raises(UsageError, match=rf"^no tokenizer files in {tmp_path}: tokenizer\.json"):
        load_tokenizer(str(tmp_path))


def test_a_vocabulary_file_is_enough_for_a_tokenizer(bert: Path, tmp_path: Path) -> None:
    vocab = sorted((tokenizer := load_tokenizer(str(bert))).get_vocab(), key=tokenizer.get_vocab().__getitem__)
    (tmp_path / "config.json").write_bytes((bert / "config.json").read_bytes())
    (tmp_path / "vocab.txt").write_text("\n".join(vocab) + "\n")
    assert load_tokenizer(str(tmp_path)).get_vocab() == tokenizer.get_vocab()
    (tmp_path / "vocab.txt").write_text(POINTER)
    with pytest.raises(UsageError, match=r"vocab\.txt is a Git LFS pointer"):
        load_tokenizer(str(tmp_path))


def add_tokens(folder: Path, *tokens: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(list(tokens))
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize("pooling", ["auto", "mean"])
def test_the_embedding_grows_for_added_tokens(bert: Path, tmp_path: Path, pooling: str, caplog: Any) -> None:
    folder = altered(bert, tmp_path / "other")
    add_tokens(folder, "<num>", "<url>")
    with caplog.at_level(logging.INFO, "rankzero"):
        model = model_of(folder, pooling)
    old = load_file(bert / "model.safetensors")["embeddings.word_embeddings.weight"]
    new = model.get_input_embeddings().weight
    assert len(new) == len(old) + 2
    assert torch.equal(new[:-2], old)
    torch.testing.assert_close(new[-2:], old.mean(0).expand(2, -1))
    assert getattr(model, "trunk", model).config.vocab_size == len(new)
    assert sum("for tokens that its tokenizer adds (<num>, <url>)" in text for text in caplog.messages) == 1
    bare = load_bare(str(folder), load_tokenizer(str(folder)))
    assert torch.equal(bare.get_input_embeddings().weight, new)


def test_output_embeddings_grow_too(bert: Path, tmp_path: Path) -> None:
    folder = altered(bert, tmp_path / "other")
    (folder / "model.safetensors").unlink()
    BertForMaskedLM(BertConfig.from_pretrained(bert)).save_pretrained(folder)
    add_tokens(folder, "<num>")
    task = {"kind": "language_modeling", "objective": "mlm"}
    made = recipe(Path(), {"kind": "pretrained", "name": str(folder)})
    values = made.model_dump(mode="json")
    values["task"] = task
    task_object = task_of(type(made).parse(values))
    model = task_object.build_model()
    rows = len(task_object.tokenizer)
    assert model(input_ids=torch.tensor([[rows - 1]])).logits.shape[-1] == rows


def test_the_tokenizer_of_another_model_is_refused(bert: Path, tmp_path: Path) -> None:
    folder = altered(bert, tmp_path / "other")
    weights = load_file(bert / "model.safetensors")
    name = "embeddings.word_embeddings.weight"
    save_file({**weights, name: weights[name][:50].clone()}, folder / "model.safetensors", {"format": "pt"})
    facts = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**facts, "vocab_size": 50}))
    with pytest.raises(UsageError, match=r"tokenizer has \d+ tokens but the embedding .* has 50 rows"):
        model_of(folder)
    with pytest.raises(UsageError, match=r"tokenizer of .* has \d+ tokens but its embedding has 50 rows"):
        load_bare(str(folder), load_tokenizer(str(folder)))


# -- classes -----------------------------------------------------------------------------------------------------------


def classifier(bert: Path, to: Path, labels: Any, **config: Any) -> Path:
    folder = altered(bert, to)
    facts = BertConfig.from_pretrained(bert, num_labels=len(labels))
    model = BertForSequenceClassification(facts)
    torch.nn.init.normal_(model.classifier.bias)
    model.save_pretrained(folder)
    saved = json.loads((folder / "config.json").read_text())
    saved |= {"id2label": {str(i): name for i, name in enumerate(labels)}, **config}
    saved["label2id"] = config.get("label2id", {str(name): i for i, name in enumerate(labels)})
    (folder / "config.json").write_text(json.dumps({k: v for k, v in saved.items() if v is not None}))
    return folder


def rows_of(folder: Path, labels: Any, **options: Any) -> list[int]:
    """Which row of the saved head each class of `task.labels` got."""
    model = model_of(folder, "auto", task={"labels": labels}, **options)
    saved = load_file(folder / "model.safetensors")
    rows = [
        next(i for i, row in enumerate(saved["classifier.weight"]) if torch.equal(row, own))
        for own in model.classifier.weight
    ]
    assert torch.equal(model.classifier.bias, saved["classifier.bias"][rows])
    assert model.config.id2label == dict(
        enumerate(dict.fromkeys(labels.values() if isinstance(labels, dict) else map(str, labels)))
    )
    return rows


@pytest.mark.parametrize(
    ("saved", "labels", "rows"),
    [
        (["a", "b"], ["b", "a"], [1, 0]),
        (["a", "b", "c"], ["c", "a", "b"], [2, 0, 1]),
        (["a", "b"], {"x": "a", "y": "b", "z": "a"}, [0, 1]),
        ([1, 0], [0, 1], [1, 0]),
        ([1.0, 0.0], [0, 1], [1, 0]),
        ([True, False], [False, True], [1, 0]),
        (["1", "0"], {"0": "negative", "1": "positive"}, [1, 0]),
        (["LABEL_0", "LABEL_1"], ["b", "a"], [0, 1]),
        (["LABEL_1", "LABEL_0"], ["LABEL_0", "LABEL_1"], [0, 1]),
    ],
)
def test_rows_of_a_head_follow_the_names_of_the_classes(
    bert: Path, tmp_path: Path, saved: Any, labels: Any, rows: list[int]
) -> None:
    assert rows_of(classifier(bert, tmp_path / "other", saved), labels) == rows


def test_names_in_one_direction_only_serve(bert: Path, tmp_path: Path) -> None:
    folder = classifier(bert, tmp_path / "other", ["b", "a"], id2label=None, label2id={"b": 0, "a": 1})
    assert rows_of(folder, ["a", "b"]) == [1, 0]


def test_other_classes_are_refused_unless_the_head_is_new(bert: Path, tmp_path: Path) -> None:
    folder = classifier(bert, tmp_path / "other", ["spam", "ham"])
    for labels in (["good", "bad"], ["spam", "ham", "eggs"], ["Spam", "ham"]):
        with pytest.raises(
            UsageError, match=r"was trained on the classes 'spam', 'ham', and task\.labels names .*pooling"
        ):
            model_of(folder, "auto", task={"labels": labels})
    assert model_of(folder, "mean", task={"labels": ["good", "bad"]}).names == ["good", "bad"]
    plain = classifier(bert, tmp_path / "plain", ["LABEL_0", "LABEL_1", "LABEL_2"])
    with pytest.raises(UsageError, match="has 3 classes"):
        model_of(plain, "auto")


def test_a_new_head_takes_any_names(bert: Path, tmp_path: Path) -> None:
    """MiniLM's configuration may name classes, but its files hold no head."""
    folder = altered(bert, tmp_path / "other", id2label={"0": "spam", "1": "ham"}, label2id={"spam": 0, "ham": 1})
    assert model_of(folder, "auto").config.id2label == dict(enumerate(NAMES))


# -- cut vocabularies --------------------------------------------------------------------------------------------------


def vocabulary(bert: Path, to: Path) -> list[str]:
    """BERT's configuration and its tokens in the order of their ids, written to `vocab.txt`."""
    ids = load_tokenizer(str(bert)).get_vocab()
    (to / "config.json").write_bytes((bert / "config.json").read_bytes())
    tokens = sorted(ids, key=ids.__getitem__)
    (to / "vocab.txt").write_text("\n".join(tokens) + "\n")
    return tokens


def test_a_cut_vocabulary_is_refused(bert: Path, tmp_path: Path) -> None:
    tokens = vocabulary(bert, tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(tokens[: len(tokens) // 2]))
    with pytest.raises(UsageError, match=rf"vocabulary in {tmp_path} is cut .* vocab_size={len(tokens)}"):
        load_tokenizer(str(tmp_path))


def test_cut_merges_are_refused(tmp_path: Path) -> None:
    """The vocabulary is complete, but words would fall into letters."""
    trained = train_tokenizer(["low lower lowest newer"] * 2, TokenizerTraining(kind="byte_bpe", vocab_size=300), 16)
    state = json.loads(trained.backend_tokenizer.to_str())["model"]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "vocab_size": len(trained)}))
    (tmp_path / "vocab.json").write_text(json.dumps(state["vocab"]))
    merges = [" ".join(pair) for pair in state["merges"]]
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    assert load_tokenizer(str(tmp_path)).tokenize("lower") == trained.tokenize("lower")
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges[: len(merges) // 2]) + "\n")
    with pytest.raises(UsageError, match=rf"merges\.txt is cut: it has {len(merges) // 2} merges"):
        load_tokenizer(str(tmp_path))
