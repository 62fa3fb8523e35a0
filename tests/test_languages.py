"""The tokenizer of BLEU for the target language, and warnings where it may be wrong."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import sacrebleu
from sacrebleu.metrics import BLEU

from trainer.evaluation import languages
from trainer.evaluation.languages import code_of
from trainer.evaluation.metrics import score_translation
from trainer.export.parity_checks import Comparison
from trainer.export.rows import Row
from trainer.recipe.output_sections import GatesConfig
from trainer.tasks.pairs_export import compare_translations
from trainer.tasks.text_to_text.metrics import score_rouge

CHINESE = [
    ("他昨天在公园里看见了一只黑色的狗。", "他昨天在公园里看见了一只黑色的猫。"),
    ("我们明天早上去学校学习中文。", "我们明天早上去学校学习英文。"),
    ("这家饭店的菜非常好吃。", "这家饭馆的菜非常好吃。"),
]
JAPANESE = [("昨日公園で黒い犬を見ました。", "昨日公園で黒い猫を見ました。"), ("これはとても美味しいです。",) * 2]
THAI = [("ฉันเห็นสุนัขสีดำในสวน", "ฉันเห็นแมวสีดำในสวน")]


@pytest.fixture(autouse=True)
def clear_warning_cache() -> None:
    languages._warn.cache_clear()


def records(pairs: list[tuple[str, str]]) -> list[dict[str, Any]]:
    return [
        {"id": f"t:{i}", "input": "x", "prediction": made, "target": target, "loss": 1.0, "tokens": 5}
        for i, (made, target) in enumerate(pairs)
    ]


@pytest.mark.parametrize(
    ("language", "code"),
    [
        ("Chinese", "zh"), ("zh", "zh"), ("zh-CN", "zh"), ("zho_Hant", "zh"), ("Simplified Chinese", "zh"),
        ("Chinese (Traditional)", "zh"), ("中文", "zh"), ("Cantonese", "zh"), ("Japanese", "ja"), ("jpn_Jpan", "ja"),
        ("ja", "ja"), ("日本語", "ja"), ("Korean", "ko"), ("ko_KR", "ko"), ("Thai", "th"), ("my", "my"), ("km", "km"),
        ("en", None), ("English", None), ("German", None), ("de", None), ("", None), (None, None), ("Malay", None),
        ("my favourite", None), ("Kazakh", None),
    ],
)  # fmt: skip
def test_languages_by_name_and_tag(language, code):
    assert code_of(language) == code


@pytest.mark.parametrize("language", ["Chinese", "zh", "zh_Hans"])
def test_chinese_is_scored_as_by_sacrebleu_with_its_tokenizer(language):
    scores = score_translation(records(CHINESE), resamples=50, language=language)
    made, targets = zip(*CHINESE, strict=True)
    assert scores["bleu"] == sacrebleu.corpus_bleu(list(made), [list(targets)], tokenize="zh").score > 50
    assert "tok:zh" in scores["signature"]
    low, high = scores["bleu_ci95"]
    assert 0 < low <= scores["bleu"] <= high, "resamples are split as the score is"
    assert scores["ter"] < 20, "of characters, not of whole sentences"


def test_other_languages_are_scored_as_before():
    pairs = [("the dog runs fast", "the dog runs very fast"), ("a man", "a man")]
    plain = score_translation(records(pairs), resamples=20)
    assert "tok:13a" in plain["signature"]
    assert score_translation(records(pairs), resamples=20, language="en") == plain


@pytest.mark.parametrize(("language", "pairs", "package"), [("ja", JAPANESE, "ja"), ("Thai", THAI, None)])
def test_characters_replace_a_tokenizer_that_is_not_installed(language, pairs, package, caplog, monkeypatch):
    def without_mecab(*arguments: Any, tokenize: str, **more: Any) -> BLEU:
        if tokenize == "ja-mecab":
            raise RuntimeError("\nJapanese tokenization requires extra dependencies\n\n pip install")
        return BLEU(*arguments, tokenize=tokenize, **more)

    monkeypatch.setattr(languages, "BLEU", without_mecab)
    with caplog.at_level(logging.WARNING, logger="rankzero"):
        scores = score_translation(records(pairs), resamples=0, language=language)
    made, targets = zip(*pairs, strict=True)
    assert scores["bleu"] == sacrebleu.corpus_bleu(list(made), [list(targets)], tokenize="char").score > 50
    assert "tok:char" in scores["signature"]
    assert ("pip install sacrebleu[ja]" in caplog.text) == (package is not None)


@pytest.mark.parametrize(("pairs", "code"), [(CHINESE, "zh"), (JAPANESE, "ja"), (THAI, "th")])
@pytest.mark.parametrize("language", [None, "en"])
def test_a_language_that_does_not_fit_the_references_is_a_warning(pairs, code, language, caplog):
    with caplog.at_level(logging.WARNING, logger="rankzero"):
        for _ in range(2):
            scores = score_translation(records(pairs), resamples=0, language=language)
    assert "tok:13a" in scores["signature"]
    assert [r.getMessage().endswith(f"set task.trg_language={code}") for r in caplog.records] == [True], "once"


def test_names_in_another_script_are_no_warning(caplog):
    with caplog.at_level(logging.WARNING, logger="rankzero"):
        score_translation(records([("The city of Beijing (北京)", "Beijing (北京) is a city")]), resamples=0)
    assert not caplog.records


def test_the_gate_of_an_artifact_splits_as_the_evaluation_does():
    rows = [
        Row(f"t:{i}", ["x"], "x", target, {}, {"prediction": target, "score": 0.0})
        for i, (_, target) in enumerate(CHINESE)
    ]
    found = [{"prediction": made, "score": 0.0} for made, _ in CHINESE]
    checks, _ = compare_translations(Comparison(rows, found, False, GatesConfig(), 20), "Chinese")
    check = checks["bleu"]
    assert check["reference"] == pytest.approx(100.0)
    assert check["artifact"] == score_translation(records(CHINESE), resamples=0, language="zh")["bleu"]


def test_rouge_counts_ideographs_as_words():
    assert 0.8 < score_rouge(records(CHINESE), 0)["rouge1"] < 1
    assert score_rouge(records([("the dog", "the cat")]), 0)["rouge1"] == 0.5
