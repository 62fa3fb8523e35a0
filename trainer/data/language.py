"""The language of texts: by script and, where several languages share one, by their most frequent words.

A column has many texts, so short lists are enough: of 27 languages, 20 to 40 words each. The result is a guess that
`rankzero init` writes with its share. A text without any of the words has no language.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

NAMES = {
    "ar": "Arabic", "bg": "Bulgarian", "bo": "Tibetan", "cs": "Czech", "da": "Danish", "de": "German", "el": "Greek",
    "en": "English", "es": "Spanish", "et": "Estonian", "fa": "Persian", "fi": "Finnish", "fr": "French",
    "he": "Hebrew", "hi": "Hindi", "hu": "Hungarian", "id": "Indonesian", "it": "Italian", "ja": "Japanese",
    "ka": "Georgian", "km": "Khmer", "ko": "Korean", "lo": "Lao", "lt": "Lithuanian", "lv": "Latvian",
    "my": "Burmese", "nl": "Dutch", "no": "Norwegian", "pl": "Polish", "pt": "Portuguese", "ro": "Romanian",
    "ru": "Russian", "sv": "Swedish", "th": "Thai", "tr": "Turkish", "uk": "Ukrainian", "vi": "Vietnamese",
    "zh": "Chinese",
}  # fmt: skip
UNSPACED = ("zh", "ja", "ko", "th", "lo", "my", "km", "bo")  # BLEU splits their words in another way
# First word of the Unicode name of a letter -> the language that is most probable for it.
SCRIPTS = {
    "CJK": "zh", "HIRAGANA": "ja", "KATAKANA": "ja", "HANGUL": "ko", "THAI": "th", "LAO": "lo", "KHMER": "km",
    "MYANMAR": "my", "TIBETAN": "bo", "DEVANAGARI": "hi", "GREEK": "el", "HEBREW": "he", "GEORGIAN": "ka",
}  # fmt: skip
# Frequent words. A word of several languages is in the list of each, and counts less for each.
WORDS = {
    "cs": "se na je že jsem jako ale byl když nebo jen není jsou aby které který před jeho podle při této pro by"
    " nelze pokud bude můžete ve s v o z do za pouze",
    "da": "og det er ikke af til den de på har med som jeg der hvad meget være blev hun kan vi efter nogle også et en"
    " for at i eller kunne hvis når skal vil mig dig kun ud denne dette fra du var om ved ingen blive over under",
    "de": "der die das und ist nicht ein eine mit auf für den von zu sie ich auch wird sich dem im wir bei nach wie aus"
    " in an am als oder sind war hat so werden kann vor dass einen einer wo mein bitte ihr es des zum zur keine",
    "en": "the of and to is that it was for with this you not are have be from they his her which at by or an in a on i"
    " as we but can if all my so no been has when there will would please am do does did had were who what how out up"
    " into than then them their our your one some more s t",
    "es": "el los las que una por con del para es como más pero sus su fue muy ha este esta son no se al lo y un la de"
    " en si o puede sin está a desea",
    "et": "ja on ei see ning oli kui mis et aga ta oma selle kes mida ka või tema pole seda olen veel ole saa kas",
    "fi": "ja on ei se että oli kun mutta hän joka ovat sen ole myös mitä niin minä kuin sitä tämä jos hänen voi tai"
    " voit",
    "fr": "le les des et est une que pour dans qui pas du au sur avec ce cette vous nous je il elle sont plus un la de"
    " en à l d ne se par ou si votre tout ont son sa mais en y",
    "hu": "az és hogy nem egy is van ez csak meg volt de már mint még ha el kell ami aki lehet azt ki vagy a",
    "id": "yang dan di itu dengan untuk tidak ini dari dalam akan pada saya ada anda bisa kami ke juga sudah oleh"
    " atau adalah sebuah telah",
    "it": "il che di è per una con non sono del della gli nel anche più ma questo come alla ha un lo dei al si le la"
    " i in a da l se dell o e nella",
    "lt": "ir yra kad į iš su tai bet buvo kaip ne apie už jis ji nuo kuris dėl jo savo mes labai arba ar šio jei",
    "lv": "un ir ka no ar tas par bet kā bija viņš es nav lai pie arī vai šo mēs ļoti tā uz kas pēc nevar šī",
    "nl": "de het een en van is niet dat op te zijn voor met die er aan ook maar wordt bij naar ik je wij uit om in of"
    " was als deze dit kan door u geen heeft zo we worden over tot",
    "no": "og det er ikke av til den de på har med som jeg hva være ble hun kan vi etter noen også et en for at i å"
    " eller kunne hvis når skal vil meg deg bare ut denne dette fra du var om ved ingen bli over under hvor",
    "pl": "się na nie jest to że do jak ale co od czy po przez tak jego są był oraz dla które tylko może za w i z o"
    " lub ma aby tego",
    "pt": "que não uma com os em um para do da é por mais dos como mas foi ao ele das são você seu muito está na no o a"
    " de e se ou pode as foram",
    "ro": "și este în cu nu pe la un o care din mai sunt de pentru că să ce fi a fost dar sau au ai lui era",
    "sv": "och det är inte att en som på för av med den de har jag till ett var om från hon han kan ska vad mycket i du"
    " vi eller kunde när vill efter också under över ingen bli denna detta finns inget",
    "tr": "bir ve bu için da de çok ne ile daha gibi ben var mi değil olarak sonra kadar ama her en olan ki yok",
    "vi": "và của là không có được cho một các với người này trong tôi những đã để khi như cũng bạn từ hay",
    "ar": "في من على إلى أن هذا التي ما عن لا الذي هذه مع كان قد كل أو بعد إن لم و",
    "fa": "در از به که این را است با برای آن می یک های بود هم خود کرد ها شد تا",
    "bg": "на е да се за не от си че с по като но са това ще ли към или беше един",
    "ru": "и не на что это как по но он из все было его так только для ещё при мы если в с у к или от нет",
    "uk": "та не на що це як але він із все було його для або при ми якщо від у з і",
}  # fmt: skip
# Letters that only some languages of a script have.
MARKS = {
    "cs": "ěřůčšžýáíé", "da": "æøå", "de": "äöüß", "es": "ñ¿¡áíóéú", "et": "õäöü", "fi": "äö", "fr": "éèêàçùîôû",
    "hu": "őűáéóöüí", "it": "àèìòù", "lt": "ėųūįščžąę", "lv": "āēīūļņķģščž", "no": "æøå", "pl": "łżąęśćńóź",
    "pt": "ãõçáéêóí", "ro": "ășțşţâî", "sv": "åäö", "tr": "ışğçöü", "vi": "ơưđạếềộệả", "fa": "پچگژ", "bg": "ъ",
    "ru": "ыэё", "uk": "іїєґ",
}  # fmt: skip
LETTERS = 400  # of a text that are looked at
OFTEN = 2  # letters of another script than Latin, from which a text is in it
SIGNS = 2  # different words or letters of its list that a language needs
CLEAR = 1.3  # the best language has so many times the points of the second
MANY = 300  # texts that are looked at
LEAST = 0.1  # share below which a language is left out
_WORD = re.compile(r"(?<!\w)[^\W\d_]+(?!\w)")  # no part of an id or a date
_NEVER = re.compile(r"https?://\S+|\S+@\S+|<[^<>]*>")

_LISTS = {code: frozenset((*words.split(), *(f"{c}-" for c in MARKS.get(code, "")))) for code, words in WORDS.items()}
_SHARED = Counter(word for words in _LISTS.values() for word in words)


def languages_of(texts: Iterable[str]) -> dict[str, float]:
    """Return code -> share of the texts whose language is clear, the most frequent first. Empty if none is clear.

    Texts that are too short to decide are decided together.
    """
    sample = [text for text, _ in zip(texts, range(MANY), strict=False)]
    counts = Counter(code for text in sample if (code := language_of(text)) is not None)
    if counts.total() < 0.2 * len(sample):
        together = language_of(" ".join(text[:LETTERS] for text in sample), LETTERS * MANY)
        return {together: 1.0} if together else {}
    shares = {code: count / counts.total() for code, count in counts.most_common()}
    return {code: share for code, share in shares.items() if share >= LEAST}


def language_of(text: str, letters: int = LETTERS) -> str | None:
    """Return the code of the language of a text, or None if it is not clear."""
    text = unicodedata.normalize("NFC", _NEVER.sub(" ", text)[:letters]).casefold()
    scripts = Counter(unicodedata.name(c, "").split(" ")[0] for c in text if c.isalpha())
    if not scripts:
        return None
    if scripts["HIRAGANA"] + scripts["KATAKANA"] > OFTEN:
        return "ja"
    script, count = scripts.most_common(1)[0]
    if script in SCRIPTS:
        return SCRIPTS[script] if count >= OFTEN else None
    return _by_words(text)


def _by_words(text: str) -> str | None:
    """Return the language whose frequent words occur most. A word of several languages counts less for each."""
    points: Counter[str] = Counter()
    signs = [sign for sign in (*_WORD.findall(text), *(f"{letter}-" for letter in set(text))) if sign in _SHARED]
    for sign in signs:
        points.update({code: 1 / _SHARED[sign] for code, words in _LISTS.items() if sign in words})
    best = points.most_common(2)
    if not best or (len(best) > 1 and best[0][1] < CLEAR * best[1][1]):
        return None
    return best[0][0] if len(_LISTS[best[0][0]] & set(signs)) >= SIGNS else None


def in_words(languages: dict[str, float]) -> str:
    """Return languages as a text: "German 62%, English 38%"."""
    return ", ".join(f"{NAMES[code]} {share:.0%}" for code, share in languages.items())
