"""How BLEU and TER split a target language into words: languages without spaces need their own tokenizer.

sacreBLEU's default, 13a, splits at spaces and punctuation. A Chinese sentence is one word to it, and a translation that
differs in one character scores 0.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Iterable

from sacrebleu.metrics import BLEU, TER

from trainer.errors import UsageError
from trainer.recipe.bleu_tokenizers import problem_of

log = logging.getLogger("rankzero")

DEFAULT = "13a"
# sacreBLEU's tokenizer by ISO 639-1 code. For the last ones, none works without a download.
TOKENIZERS = {"zh": "zh", "ja": "ja-mecab", "ko": "ko-mecab", **dict.fromkeys(("th", "lo", "my", "km", "bo"), "char")}
# First part of a language tag, or a word of a name, in lower case -> code.
CODES = {
    "zh": "zh zho chi cmn yue wuu lzh chinese mandarin cantonese putonghua 中文 汉语 漢語 普通话 国语 國語 粤语",
    "ja": "ja jpn jp japanese 日本語",
    "ko": "ko kor kr korean 한국어 조선말",
    "th": "th tha thai ไทย ภาษาไทย",
    "lo": "lo lao ລາວ",
    "my": "my mya bur burmese myanmar",
    "km": "km khm khmer",
    "bo": "bo bod tib tibetan dzo dzongkha",
}
SCRIPTS = {
    "ja": r"[\u3040-\u30ff\u31f0-\u31ff]",
    "zh": r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]",
    "ko": r"[\u1100-\u11ff\u3130-\u318f\uac00-\ud7af]",
    "th": r"[\u0e00-\u0e7f]",
    "lo": r"[\u0e80-\u0eff]",
    "my": r"[\u1000-\u109f]",
    "km": r"[\u1780-\u17ff]",
    "bo": r"[\u0f00-\u0fff]",
}
LARGELY = 0.3  # share of the letters
LOOKED_AT = 1000  # references
KANA = 0.05  # share of kana above which a text is Japanese and not Chinese


def code_of(language: str | None) -> str | None:
    """The code in TOKENIZERS of a language given by name or tag ("Chinese", "zh-CN", "jpn_Jpan"); None for others."""
    name = (language or "").strip().casefold()
    tag = re.fullmatch(r"([a-z]{2,3})([-_].*)?", name)
    words = {tag[1]} if tag else {word for word in re.split(r"[\W_]+", name) if len(word) > 3 or not word.isascii()}
    return next((code for code, known in CODES.items() if words & set(known.split())), None)


def bleu_of(language: str | None, tokenizer: str = "auto") -> BLEU:
    """Return sacreBLEU's BLEU with the tokenizer of a target language; 13a where it needs none.

    Args:
        language: name or tag of the target language.
        tokenizer: `evaluation.bleu_tokenizer`; any but auto is used whatever the language is.

    Raises:
        UsageError: the tokenizer is not auto, and this machine does not have it.
    """
    if tokenizer != "auto":
        if (problem := problem_of(tokenizer)) is not None:
            raise UsageError(problem)
        return BLEU(tokenize=tokenizer)
    code = code_of(language)
    if code is None:
        return BLEU(tokenize=DEFAULT)
    try:
        return BLEU(tokenize=TOKENIZERS[code])
    except Exception as error:  # RuntimeError without MeCab, and what a broken dictionary raises
        _warn(
            f"BLEU of {language!r} is computed on characters: sacreBLEU's tokenizer {TOKENIZERS[code]} cannot be used "
            f"({str(error).split(chr(10) * 2)[0].strip()}). Install it with `pip install sacrebleu[{code}]`. Scores of "
            "the two cannot be compared"
        )
        return BLEU(tokenize="char")


def ter_of(language: str | None) -> TER:
    """sacreBLEU's TER: of Chinese and Japanese with Asian support, which splits ideographs."""
    asian = code_of(language) in ("zh", "ja")
    return TER(normalized=asian, asian_support=asian)


def warn_of_script(language: str | None, references: Iterable[str], tokenizer: str = "auto") -> None:
    """Warn where references are largely of a script without spaces while BLEU splits at spaces."""
    if code_of(language) is not None or tokenizer != "auto":
        return
    text = "".join(text for text, _ in zip(references, range(LOOKED_AT), strict=False))
    letters = sum(map(str.isalpha, text)) or 1
    shares = {code: len(re.findall(script, text)) / letters for code, script in SCRIPTS.items()}
    if (total := sum(shares.values())) <= LARGELY:
        return
    code = "ja" if shares["ja"] > KANA else max(shares, key=lambda code: shares[code])
    unknown = "is not set" if not language else f"is {language!r}"
    _warn(
        f"{min(total, 1):.0%} of the letters of the references are of a script like Chinese, Japanese or Korean, but "
        f"task.trg_language {unknown}, so that BLEU splits them at spaces (13a): set task.trg_language={code}"
    )


@functools.cache
def _warn(message: str) -> None:
    log.warning("%s", message)
