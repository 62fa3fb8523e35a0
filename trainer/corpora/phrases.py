"""Words, inflection and phrases of the German-English corpus."""

from __future__ import annotations

import copy
import functools
import itertools
from typing import Any, NamedTuple

from trainer.corpora.draw import Draw, load, split_of, weighted

GRAMMAR, WORDS = load("translation_grammar.yaml"), load("translation_words.yaml")
NOM, ACC, DAT, GEN = range(4)
CASES = {"nominative": NOM, "accusative": ACC, "dative": DAT, "genitive": GEN}
GENDERS = {"m": 0, "f": 1, "n": 2}
PLURAL = 3  # as a gender
ENDINGS: dict[str, list[list[str]]] = GRAMMAR["endings"]  # [case][gender]
FORMS: dict[str, list[str]] = GRAMMAR["forms"]
Pair = tuple[str, str]  # German, English
Degree = tuple[str, str, str]  # the stem that takes endings, the form without ending, English
Phrase = tuple[str, str, "Determiner", bool]  # German, English, determiner, plural


class Determiner:
    """A determiner. `forms` and the adjective endings after them: [case][gender]. `en`: singular, plural."""

    def __init__(self, stem: str, endings: str, adjective: str, en: str | list[str]):
        short = "eur" if stem == "euer" else stem  # before an ending
        self.forms = [[(short if ending else stem) + ending for ending in row] for row in ENDINGS[endings]]
        self.endings = ENDINGS[adjective]
        self.en = en if isinstance(en, list) else [en, en]


class Noun:
    """A noun. `de[plural][case]`, `en[plural]`. A mass noun has no plural and no indefinite article, like a town."""

    def __init__(self, lemma: str, kind: str, gender: str, en: str | list[str], **forms: Any):
        self.lemma, self.kind, self.gender = lemma, kind, GENDERS[gender]
        groups = (name for name, members in WORDS["groups"].items() if kind in members or lemma in members)
        self.kinds = {kind, gender, *groups}
        self.mass = "plural" not in forms
        many, genitive = forms.get("plural", lemma), forms.get("genitive", lemma)
        singular = [lemma, many, many, many] if "weak" in forms else [lemma, lemma, lemma, genitive]
        self.de = singular, [many, many, many if many.endswith(("n", "s")) else many + "n", many]
        self.en = en if isinstance(en, list) else [en]


class Adjective:
    """An adjective of some kinds of nouns. It has one degree if it has no comparative."""

    def __init__(self, de: list[str], en: list[str], of: list[str], stem: str = ""):
        self.lemma, self.kinds = de[0], set(of)
        self.degrees = list(zip([stem or de[0], *de[1:]], de, en, strict=True))


def decline(det: Determiner, noun: Noun, case: int, plural: int, degree: Degree | None = None) -> Pair:
    """Return a noun phrase in German and English."""
    gender = PLURAL if plural else noun.gender
    de, en = noun.de[plural][case], noun.en[plural]
    if degree:
        de, en = f"{degree[0]}{det.endings[case][gender]} {de}", f"{degree[2]} {en}"
    article, english = det.forms[case][gender], det.en[plural]
    if english == "a" and en[0] in "aeiou":
        english = "an"
    return f"{article} {de}" if article else de, f"{english} {en}" if english else en


class Verb:
    """A verb. `words` fill the templates of its modes, `forms` are its own finite forms."""

    def __init__(self, key: str, present: list[str], perfect: str, en: list[str], **more: Any):
        prefix, _, stem = key.rpartition("|")
        self.lemma, self.modes = prefix + stem, MODES[more.get("modes", "verb")]
        self.flags = {*more.get("is", []), *(["separable"] if prefix else [])}
        self.takes = set(more.get("with", []))
        participle, (base, third, past, done, ing) = perfect.removeprefix("ist "), en
        self.words = {"prefix": prefix, "infinitive": self.lemma, "participle": participle}
        self.words |= {"zu": f"{prefix}zu{stem}" if prefix else f"zu {stem}"}
        self.words |= {"auxiliary": "haben" if participle == perfect else "sein"}
        self.words |= {"base": base, "past": past, "done": done, "ing": ing}
        self.forms = {"present": [*present[:3], stem, present[3], stem], "present en": [base, base, third, *[base] * 3]}

    @functools.cached_property
    def passive(self) -> Verb:
        passive = copy.copy(self)
        passive.modes = MODES["passive"]
        infinitive, base = f"{self.words['participle']} werden", f"be {self.words['done']}"
        passive.words = self.words | {"infinitive": infinitive, "base": base}
        return passive


class Conjugated(NamedTuple):
    """A verb in a mode, with a form for each person. English questions and negations have `helper` and `after`."""

    finite: list[str]
    right: str  # the end of a main clause
    final: list[str]  # the whole verb at the end of a subordinate clause
    en: list[str]
    rest: str
    helper: list[str]
    after: str


@functools.cache
def conjugate(verb: Verb, mode: str) -> Conjugated:
    def finite(value: str | list[str]) -> list[str]:
        """Return the forms of a list, the forms with a name, or one form for all persons."""
        if isinstance(value, list):
            return value
        value = value.format(**verb.words)
        return verb.forms.get(value) or FORMS.get(value) or [value] * 6

    row = verb.modes[mode]
    de, en = finite(row["de"]), finite(row["en"])
    right, rest, base = (row.get(key, "").format(**verb.words) for key in ("right", "rest", "base"))
    joint = "" if right == verb.words["prefix"] else " "  # "aufmacht", but "gemacht hat"
    final = [f"{right}{joint}{form}".strip() for form in de]
    return Conjugated(de, right, final, en, rest, finite(row.get("helper", en)), f"{base} {rest}".strip())


MODES: dict[str, dict[str, Any]] = {kind: GRAMMAR["modals"] | modes for kind, modes in GRAMMAR["modes"].items()}
TIME_OF = {mode: row["time"] for mode, row in MODES["verb"].items()}
NUMBERS: dict[str, str] = WORDS["pairs"]["numbers"]
DETERMINERS = {name: Determiner(**row) for name, row in GRAMMAR["determiners"].items()}
DETERMINERS |= {de: Determiner(de, "none", "strong", en) for de, en in NUMBERS.items()}
DEF, INDEF = DETERMINERS["the"], DETERMINERS["a"]
NOUNS = [Noun(lemma, kind, **row) for kind, table in WORDS["nouns"].items() for lemma, row in table.items()]
NOUNS_OF = {kind: [noun for noun in NOUNS if noun.kind == kind] for kind in WORDS["nouns"]}
ADJECTIVES = [Adjective(**row) for row in WORDS["adjectives"]]
VERBS = {frame: [Verb(key, **row) for key, row in table.items()] for frame, table in WORDS["verbs"].items()}
SEIN = VERBS["copula"][0]
PAIRS: dict[str, list[Pair]] = {name: list(table.items()) for name, table in WORDS["pairs"].items()}


@functools.cache
class Pool:
    """What a split combines: the options of a frame (verbs or places, each with nouns), and nouns with adjectives."""

    def __init__(self, split: str):
        self.split = split
        self.options = {frame: self.options_of(frame) for frame in VERBS | GRAMMAR["selections"]}
        things = [noun for noun in NOUNS if noun.kind in GRAMMAR["things_found"]]
        self.options["found"] = self.combined([(place, things) for place in NOUNS_OF["place"]])
        self.adjectives = {
            noun: [a for a in ADJECTIVES if noun.kinds & a.kinds and self.combined([(a, [noun])])] for noun in NOUNS
        }
        compared = [noun for noun in NOUNS if not noun.mass and any(len(a.degrees) > 1 for a in self.adjectives[noun])]
        self.described = {"is": [noun for noun in NOUNS if self.adjectives[noun]], "more": compared, "equal": compared}

    def combined(self, options: list[tuple[Any, list[Noun]]]) -> list[tuple[Any, list[Noun]]]:
        """Return the words of a list, each with those of its nouns that the split combines with it, if any."""
        lists = (
            (word, [noun for noun in nouns if split_of("translation", word.lemma, noun.lemma) == self.split])
            for word, nouns in options
        )
        return [(word, nouns) for word, nouns in lists if nouns]

    def options_of(self, frame: str) -> list[tuple[Any, list[Noun]]]:
        rule = {"verbs": frame, "nouns": [], "not_nouns": [], "not_verbs": [], **GRAMMAR["selections"].get(frame, {})}
        nouns = [n for n in NOUNS if n.kinds.isdisjoint(rule["not_nouns"]) and n.kinds.issuperset(rule["nouns"])]
        verbs = [verb for verb in VERBS[rule["verbs"]] if verb.flags.isdisjoint(rule["not_verbs"])]
        return self.combined([(verb, [noun for noun in nouns if noun.kinds & verb.takes]) for verb in verbs])


class Subject(NamedTuple):
    """`own`: the possessive that refers to the subject, "" if none does. `dative`: of a pronoun."""

    de: str
    en: str
    person: int
    own: str = ""
    dative: str = ""


PRONOUNS = [Subject(**row) for row in GRAMMAR["pronouns"]]
PRONOUN_FOR = {subject.own: subject for subject in PRONOUNS if subject.own in ("his", "her", "their")}
OWN = ("his", "her", "", "their")  # by gender; "sein Buch" of a neuter person would be his, her or its book
NAMES = [Subject(name, name, 2, OWN["mf".index(gender)]) for name, gender in WORDS["names"].items()]
SUBJECTS = weighted({"pronoun": 4, "name": 2, "noun": 6})
# [case][person]: third person, second and first, without the person of the subject
OBJECT_PRONOUNS = {
    case: [[pair for i in (2, 1, 0) if i == 2 or i != person % 3 for pair in table[i].items()] for person in range(6)]
    for case, table in GRAMMAR["object_pronouns"].items()
}
PREPOSITIONS = {
    name: [(row["de"], row["en"], CASES[row["case"]]) for row in rows for _ in range(row["weight"])]
    for name, rows in GRAMMAR["prepositions"].items()
}


@functools.cache
def choices(name: str, own: str = "") -> list[tuple[Determiner, bool]]:
    """Return determiners, and whether they are plural, each as often as its weight in the grammar says."""
    chosen = []
    for label, weight in GRAMMAR["choices"][name].items():
        determiner = label.removesuffix("+").replace("own", own)
        determiners = NUMBERS if label == "number" else [determiner] if determiner else []
        plural = label == "number" or label.endswith("+")
        chosen += [(DETERMINERS[word], plural) for word in determiners] * weight
    return chosen


TIME_WORDS: dict[str, list[tuple[Any, str]]] = {**PAIRS}
for kind in ("event", "weather"):
    TIME_WORDS[kind] = [
        ({name: decline(DEF, noun, case, 0)[0] for name, case in CASES.items()}, f"the {noun.en[0]}")
        for noun in NOUNS_OF[kind]
    ]


@functools.cache
def time_phrases(name: str) -> list[Pair]:
    """Return the phrases of a group with every combination of words in their slots."""
    group = GRAMMAR["times"][name]
    slots = list(itertools.product(*(TIME_WORDS[slot] for slot in group.get("slots", []))))
    return [
        (de.format(*(word[0] for word in words)), en.format(*(word[1] for word in words)))
        for de, en in group["phrases"]
        for words in slots
    ]


class Phrases(Draw):
    """Draws the phrases of a row from what its split combines."""

    def __init__(self, split: str, *key: object):
        super().__init__(*key)
        self.pool = Pool(split)

    def phrase(self, noun: Noun, case: int, of: str, own: str = "", odds: int = 4) -> Phrase:
        """Draw a noun phrase, one in `odds` with an adjective of the split, and rarely in another degree."""
        det, plural = self.pick(choices(of, own))
        degree = None
        if odds and self.one_in(odds) and (adjectives := self.pool.adjectives[noun]):
            adjective = self.pick(adjectives)
            self.combinations.append((adjective.lemma, noun.lemma))
            degree = adjective.degrees[0]
            if len(adjective.degrees) > 1 and (det is DEF or det is INDEF) and self.one_in(12):
                degree = adjective.degrees[1 if det is INDEF else 2]
        return *decline(det, noun, case, plural, degree), det, plural

    def with_preposition(self, preposition: str, de: str) -> str:
        """Contract a preposition and a definite article in the singular: in dem → im."""
        article, _, rest = de.partition(" ")
        words = f"{preposition} {article}"
        return f"{GRAMMAR['contractions'].get(words, words)} {rest}".rstrip()

    def place(self, noun: Noun, prepositions: str = "", verb: Verb | None = None) -> Pair:
        """Draw a place, or where a movement leads or starts: "direction" or "goal" of the verb."""
        if noun.kind == "town":
            de = en = "in"
            if verb and prepositions == "direction":
                coming = verb.lemma.endswith("kommen") and self.one_in(2)
                de, en = ("aus", "from") if coming else ("nach", "to")
            return f"{de} {noun.lemma}", f"{en} {noun.en[0]}"
        preposition, english, case = self.pick(PREPOSITIONS[prepositions or noun.kind])
        noun = self.pick(NOUNS_OF["furniture"]) if prepositions == "goal" else noun
        de, en, _, _ = self.phrase(noun, case, "place", odds=6)
        return self.with_preposition(preposition, de), f"{english} {en}"

    def noun_subject(self, noun: Noun, of: str = "head", odds: int = 4, case: int = NOM) -> Subject:
        de, en, _, plural = self.phrase(noun, case, "mass head" if noun.mass else of, odds=odds)
        own = OWN[3 if plural else noun.gender] if noun.kind == "person" else ""
        return Subject(de, en, 5 if plural else 2, own)

    def subject(self, of: str = "subject", first: Subject | None = None) -> Subject:
        """Draw a subject. Half of the time it is the pronoun for the first one, if there is one."""
        if first and first.own in PRONOUN_FOR and self.one_in(2):
            return PRONOUN_FOR[first.own]
        kind = self.pick(SUBJECTS)
        if kind == "noun":
            return self.noun_subject(self.pick(NOUNS_OF["person"]), of)
        return self.pick(PRONOUNS if kind == "pronoun" else NAMES)

    def time_phrase(self, mode: str) -> Pair:
        return self.pick(time_phrases(self.pick(GRAMMAR["time_groups"][TIME_OF[mode]])))
