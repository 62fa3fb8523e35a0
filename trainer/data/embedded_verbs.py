"""The verbs of the German-English corpus in all their modes, German and English."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.data.embedded_lexicon import VOWELS, plural_of

Six = tuple[str, ...]  # one form for each person
GermanMode = tuple[Six, str, Six]  # finite verb, what closes a main clause, what closes a subordinate clause
EnglishMode = list[tuple[str, str, bool, str, str, str]]  # for each person, see `english_mode`


def six(text: str) -> Six:
    forms = tuple(text.split())
    return forms if len(forms) == 6 else forms * 6


def past_of(stem: str) -> Six:
    return tuple(stem + ending for ending in ("te", "test", "te", "ten", "tet", "ten"))


HABEN, HATTE = six("habe hast hat haben habt haben"), past_of("hat")
BIN, WAR = six("bin bist ist sind seid sind"), six("war warst war waren wart waren")
WERDEN, WURDE = six("werde wirst wird werden werdet werden"), six("wurde wurdest wurde wurden wurdet wurden")
AM, WAS = six("am are is are are are"), six("was were was were were were")
DO, HAVE = six("do do does do do do"), six("have have has have have have")
# mode: German finite verb, English finite verb, its base form if it takes "do", what follows with the verb's base in {}
MODALS = {
    "future": (WERDEN, six("will"), "", "{}"),
    "can": (six("kann kannst kann können könnt können"), six("can"), "", "{}"),
    "could": (past_of("konn"), six("could"), "", "{}"),
    "must": (six("muss musst muss müssen müsst müssen"), HAVE, "have", "to {}"),
    "had to": (past_of("muss"), six("had"), "have", "to {}"),
    "want": (six("will willst will wollen wollt wollen"), six("want want wants want want want"), "want", "to {}"),
    "wanted": (past_of("woll"), six("wanted"), "want", "to {}"),
    "may": (six("darf darfst darf dürfen dürft dürfen"), AM, "", "allowed to {}"),
    "might": (past_of("durf"), WAS, "", "allowed to {}"),
    "should": (six("soll sollst soll sollen sollt sollen"), six("should"), "", "{}"),
    "would like": (six("möchte möchtest möchte möchten möchtet möchten"), six("would"), "", "like to {}"),
}
PAST_MODES = frozenset({"past", "could", "had to", "wanted", "might"})


@dataclass(frozen=True, slots=True, eq=False)
class Verb:
    """A verb in all its modes. `zu` is the German infinitive with zu; `base` and `ing` are English."""

    lemma: str
    prefix: str
    letters: str
    de: dict[str, GermanMode]
    en: dict[str, EnglishMode]
    zu: str
    base: str
    ing: str
    passive: Verb | None = None


def german_mode(finite: Six, right: str, join: str = " ") -> GermanMode:
    return finite, right, tuple(right + join + form if right else form for form in finite)


def english_mode(finite: Six, rest: str = "", do: str = "", past: bool = False) -> EnglishMode:
    """(finite, rest, takes do, auxiliary, rest after it, auxiliary negated); `do`: the base of a verb that takes do."""
    helpers = (six("did") if past else DO) if do else finite
    after = f"{do} {rest}".strip()
    return [
        (verb, rest, bool(do), helper, after, "cannot" if helper == "can" else f"{helper} not")
        for verb, helper in zip(finite, helpers, strict=True)
    ]


def modal_modes(infinitive: str, base: str) -> tuple[dict[str, GermanMode], dict[str, EnglishMode]]:
    english = {
        mode: english_mode(finite, rest.format(base), do, mode in PAST_MODES)
        for mode, (_, finite, do, rest) in MODALS.items()
    }
    return {mode: german_mode(row[0], infinitive) for mode, row in MODALS.items()}, english


def inflect(verb: str, ending: str) -> str:
    """Regular -s, -ed and -ing of an English verb; a particle ("turn on") stays behind."""
    word, _, particle = verb.partition(" ")
    if ending == "s":
        word = "has" if word == "have" else plural_of(word)
    else:
        if word in ("plan", "put", "sit", "run", "get", "forget", "begin", "shop"):
            word += word[-1]
        elif ending == "ed" and word.endswith("y") and word[-2] not in VOWELS:
            word = word[:-1] + "i"
        word = word.removesuffix("e") + ending
    return f"{word} {particle}".strip()


def stem_of(infinitive: str) -> tuple[str, str]:
    """The stem and the e that links it to -t and -st where it could not be spoken otherwise."""
    stem = infinitive[:-2] if infinitive.endswith("en") else infinitive[:-1]
    return stem, "e" if stem.endswith(("t", "d", "ffn", "chn", "gn")) else ""


def present_tense(infinitive: str, third: str) -> Six:
    """The present of a verb without prefix; `third` (the er-form) only if its stem changes."""
    if third == "weiß":
        return six("weiß weißt weiß wissen wisst wissen")
    stem, link = stem_of(infinitive)
    second = third[:-1] if third else stem + link
    second += "t" if second.endswith(("s", "ß", "z", "x")) else "st"
    return stem + "e", second, third or stem + link + "t", infinitive, stem + link + "t", infinitive


def participle_of(infinitive: str) -> str:
    """The regular participle, without ge- after an unstressed prefix and in -ieren."""
    stem, link = stem_of(infinitive)
    bare = infinitive.endswith("ieren") or infinitive.startswith(("be", "er", "ver", "zer", "ge", "über"))
    return ("" if bare else "ge") + stem + link + "t"


def parse_verb(entry: str) -> Verb:
    description, _, letters = entry.partition(" : ")
    german, english = (side.strip().rstrip("+") for side in description.split(" = "))
    lemma, third, participle = [*german.split("/"), "", ""][:3]
    prefix, _, stem = lemma.rpartition("|")
    perfect, pluperfect = (BIN, WAR) if participle.endswith("*") else (HABEN, HATTE)
    participle = prefix + (participle.rstrip("*") or participle_of(stem))
    base, past, done = [*english.replace("_", " ").split("/"), "", ""][:3]
    past, done, ing = past or inflect(base, "ed"), done or past or inflect(base, "ed"), inflect(base, "ing")
    de, en = modal_modes(prefix + stem, base)
    for mode in ("present", "progressive", "since", "gern"):
        de[mode] = german_mode(present_tense(stem, third), prefix, "")
    de["past"] = german_mode(HATTE, "") if stem == "haben" else german_mode(perfect, participle)
    de["pluperfect"] = german_mode(pluperfect, participle)
    en |= {
        "present": english_mode(tuple(inflect(base, "s") if i == 2 else base for i in range(6)), "", base),
        "past": english_mode((past,) * 6, "", base, past=True),
        "pluperfect": english_mode(six("had"), done),
        "progressive": english_mode(AM, ing),
        "since": english_mode(HAVE, f"been {ing}"),
        "gern": english_mode(six("like like likes like like like"), f"to {base}", "like"),
    }
    passive = None if set(letters) & set("+-") else passive_of(participle, done)
    zu = f"{prefix}zu{stem}" if prefix else f"zu {stem}"
    return Verb(prefix + stem, prefix, letters, de, en, zu, base, ing, passive)


def passive_of(participle: str, done: str) -> Verb:
    de, en = modal_modes(f"{participle} werden", f"be {done}")
    de |= {"present": german_mode(WERDEN, participle), "past": german_mode(WURDE, participle)}
    en |= {"present": english_mode(AM, done), "past": english_mode(WAS, done)}
    return Verb("werden", "", "", de, en, f"{participle} zu werden", f"be {done}", f"being {done}")


def copula() -> Verb:
    de, en = modal_modes("sein", "be")
    de |= {"present": german_mode(BIN, ""), "past": german_mode(WAR, ""), "pluperfect": german_mode(WAR, "gewesen")}
    en |= {"present": english_mode(AM), "past": english_mode(WAS), "pluperfect": english_mode(six("had"), "been")}
    return Verb("sein", "", "", de, en, "zu sein", "be", "being")


SEIN = copula()
GEFALLEN = parse_verb("gefallen/gefällt/gefallen = like : tcvsegb")
GEHÖREN = parse_verb("gehören = belong_to : acmvsg")
