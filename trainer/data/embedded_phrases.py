"""Noun, place and time phrases of the German-English corpus, from what a split may combine."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from trainer.data.counter_rng import key
from trainer.data.embedded_lexicon import (
    ACC,
    ADJECTIVES,
    COUNTS,
    DAT,
    DAYS,
    DEF,
    DETERMINERS,
    GEN,
    INDEF,
    NAMES,
    NOM,
    NOUNS,
    NUMBERS,
    PLURAL,
    POSSESSIVES,
    VERBS,
    Adjective,
    Determiner,
    Noun,
    Pair,
    decline,
    entries,
    pairs,
    parse_adjective,
    parse_noun,
)
from trainer.data.embedded_verbs import GEFALLEN, GEHÖREN, MODALS, PAST_MODES, Verb, parse_verb

if TYPE_CHECKING:
    from trainer.data.embedded import Draw

HELD_OUT = {0: "test", 1: "test", 2: "validation", 3: "validation"}  # twentieths of the combinations; the others train
LEXICON_NOUNS = [parse_noun(entry) for entry in entries(NOUNS)]
LEXICON_ADJECTIVES = [parse_adjective(entry) for entry in entries(ADJECTIVES)]
LEXICON_VERBS = {frame: [parse_verb(entry) for entry in entries(table)] for frame, table in VERBS.items()}
Options = list[tuple[Verb, list[Noun]]]
Odds = tuple[bool, ...]


def of_kind(letters: str) -> list[Noun]:
    return [noun for noun in LEXICON_NOUNS if noun.letters[0] in letters]


PEOPLE, PLACES, FURNITURE = of_kind("p"), of_kind("b"), of_kind("g")


def split_of(first: str, second: str) -> str:
    """The split that alone may use this combination of content lemmas."""
    return HELD_OUT.get(key("translation", first, second) % 20, "train")


@dataclass(frozen=True, slots=True)
class Pool:
    """What a split may combine: verbs with nouns (by frame), nouns with adjectives, places with what is there."""

    verbs: dict[str, Options]
    adjectives: dict[Noun, list[Adjective]]
    described: dict[str, list[Noun]]
    found: list[tuple[Noun, list[Noun]]]


def verb_options(split: str, verbs: list[Verb], letters: str, flags: str = "", genders: str = "012") -> Options:
    """The verbs without these flags, each with the nouns of these letters and genders that the split puts to it."""
    chosen = []
    for verb in verbs:
        kinds = set(verb.letters) & set(letters)
        nouns = [noun for noun in LEXICON_NOUNS if kinds & set(noun.letters) and str(noun.gender) in genders]
        nouns = [noun for noun in nouns if split_of(verb.lemma, noun.lemma) == split]
        if nouns and not set(flags) & set(verb.letters):
            chosen.append((verb, nouns))
    return chosen


@functools.cache
def pool(split: str) -> Pool:
    """Built once for each split from the lexicon."""
    things, every = "atnfkdcomvsgbre", "patnfkdcomvsgbrewy"
    verbs = {frame: verb_options(split, table, every) for frame, table in LEXICON_VERBS.items()}
    acting = LEXICON_VERBS["object"]
    verbs |= {"object": verb_options(split, acting, things), "active": verb_options(split, acting, things, "+")}
    verbs |= {"person": verb_options(split, acting, "p"), "passive": verb_options(split, acting, every, "+-")}
    verbs["masculine"] = verb_options(split, acting, things.replace("d", ""), "", "0")
    verbs["known"] = [(verb, nouns) for verb, nouns in verbs["person"] if not verb.prefix]
    verbs |= {verb.lemma: verb_options(split, [verb], things) for verb in (GEFALLEN, GEHÖREN)}
    adjectives = {
        noun: [a for a in LEXICON_ADJECTIVES if noun.letters[0] in a.letters and split_of(a.lemma, noun.lemma) == split]
        for noun in LEXICON_NOUNS
    }
    compared = [n for n in LEXICON_NOUNS if not n.mass and any(len(a.degrees) > 1 for a in adjectives[n])]
    described = {"is": [noun for noun in LEXICON_NOUNS if adjectives[noun]], "more": compared, "equal": compared}
    there = [(place, [n for n in of_kind("avgps") if split_of(place.lemma, n.lemma) == split]) for place in PLACES]
    return Pool(verbs, adjectives, described, [(place, nouns) for place, nouns in there if nouns])


class Subject(NamedTuple):
    """`own` indexes POSSESSIVES (-1: none fits), `gender` the pronoun that takes the subject up (-1: none does)."""

    de: str
    en: str
    person: int
    own: int = -1
    gender: int = -1


IT, ICH, DU = Subject("es", "it", 2), Subject("ich", "I", 0, 0), Subject("du", "you", 1, 1)
ER, SIE, SIE_PLURAL = Subject("er", "he", 2, 2, 0), Subject("sie", "she", 2, 3, 1), Subject("sie", "they", 5, 6, 3)
WIR, IHR = Subject("wir", "we", 3, 4), Subject("ihr", "you", 4, 5)
PRONOUNS = [ICH, DU, ER, SIE, WIR, IHR, SIE_PLURAL]
TAKEN_UP = {0: ER, 1: SIE, 3: SIE_PLURAL}
NAMED = [Subject(name, name, 2, 2 + "mf".index(sex), "mf".index(sex)) for name, sex in pairs(NAMES)]
SIMPLE = [*PRONOUNS, *NAMED]
# By the subject's person: the object pronouns that are not the subject itself.
FIRST, SECOND = {DAT: "mir me; uns us", ACC: "mich me; uns us"}, {DAT: "dir you; euch you", ACC: "dich you; euch you"}
THIRD = {DAT: "ihm him; ihr her; ihnen them", ACC: "ihn him"}
OBJECT_PRONOUNS = {
    case: [
        pairs(f"{THIRD[case]}; {SECOND[case] if i % 3 != 1 else ''}; {FIRST[case] if i % 3 else ''}") for i in range(6)
    ]
    for case in (ACC, DAT)
}
Choice = tuple[Determiner, int]  # and whether plural


def choices(text: str, own: int = -1) -> list[Choice]:
    """Determiners with their weights: "4 the, 2 the+, number"; + is the plural, "own" the subject's possessive."""
    chosen: list[Choice] = []
    for item in text.split(", "):
        weight, _, name = item.partition(" ") if item[0].isdigit() else ("1", "", item)
        plural = int(name.endswith("+"))
        if name == "number":
            chosen += [(det, 1) for det in COUNTS] * int(weight)
        elif not name.startswith("own"):
            chosen += [(DETERMINERS[name.rstrip("+")], plural)] * int(weight)
        elif own >= 0:
            chosen += [(POSSESSIVES[own], plural)] * int(weight)
    return chosen


AS_SUBJECT = choices("40 the, 20 the+, 10 a, 5 this, 5 this+, 5 every, 5 my, 5 your, 5 our, 5 my+, 5 many+, number")
AS_HEAD = choices("6 the, 3 the+, this")
AS_PATIENT = choices("40 the, 30 the+, 10 this, 10 my, 10 our+, number")
AS_PLACE = choices("14 the, 2 this, 2 a, my, our")
MASS_HEAD = choices("2 the, this")
DEFINITE = choices("8 the, 4 the+, 2 this, this+, 2 my, our")
AS_FOUND = choices("20 a, number, 5 many+")
BY_OWNER = (*range(7), -1)  # so that -1 finds the last
THING = "60 the, 30 the+, 40 a, 15 bare+, 10 this, 5 this+, 10 my, 5 some+, 5 many+, 2 number, 20 own, 10 own+"
PERSON = "60 the, 30 the+, 30 a, 10 this, 5 this+, 10 my, 5 many+, number, 20 own, 5 own+"
THINGS, PERSONS = [choices(THING, i) for i in BY_OWNER], [choices(PERSON, i) for i in BY_OWNER]
MASSES = [choices("3 the, 3 bare, this, own", i) for i in BY_OWNER]
# Under a condition: kein is itself the determiner, beside nicht only a definite object is German, and one in first
# place must show its case.
LIMITS = {
    "kein": (choices("not a, not a+"), choices("not any")),
    "nicht": (DEFINITE, MASS_HEAD),
    "first": (choices("4 the, 2 a, this, my, our"), MASS_HEAD),
}
ONE_IN_TWO, ONE_IN_THREE, ONE_IN_FOUR, ONE_IN_SIX, ONE_IN_EIGHT = ((True,) + (False,) * n for n in (1, 2, 3, 5, 7))
NEVER: Odds = (False,)
RARELY: Odds = (True,) + (False,) * 11


def phrase(
    d: Draw, p: Pool, noun: Noun, case: int, of: list[Choice], odds: Odds = ONE_IN_FOUR
) -> tuple[str, str, Choice]:
    """A noun phrase; now and then with an adjective that the split puts to the noun, rarely in another degree."""
    det, plural = choice = d.pick(of)
    degree = None
    if d.pick(odds) and (adjectives := p.adjectives[noun]):
        adjective = d.pick(adjectives)
        d.combine(adjective.lemma, noun.lemma)
        degree = adjective.degrees[0]
        if len(adjective.degrees) > 1 and (det is DEF or det is INDEF) and d.pick(RARELY):
            degree = adjective.degrees[1 if det is INDEF else 2]
    return *decline(det, noun, case, plural, degree), choice


CONTRACTED = {
    ("in", "dem"): "im",
    ("in", "das"): "ins",
    ("zu", "dem"): "zum",
    ("zu", "der"): "zur",
    ("von", "dem"): "vom",
}


def with_preposition(preposition: str, de: str, choice: Choice) -> str:
    """Contracts a preposition and a definite article in the singular: in dem → im."""
    if choice[0] is DEF and not choice[1]:
        article, _, rest = de.partition(" ")
        if contracted := CONTRACTED.get((preposition, article)):
            return f"{contracted} {rest}"
    return f"{preposition} {de}"


IN_PLACE = [("in", "in")] * 5 + [("vor", "in front of"), ("hinter", "behind"), ("neben", "next to")]
ON_FURNITURE = [("auf", "on")] * 3 + [("unter", "under"), ("neben", "next to"), ("hinter", "behind")]
INTO_PLACE = [("in", ACC, "into")] * 2 + [("zu", DAT, "to")] * 2 + [("aus", DAT, "out of")]


def location(d: Draw, p: Pool, noun: Noun) -> Pair:
    if noun.letters == "y":
        return f"in {noun.lemma}", f"in {noun.en[0]}"
    preposition, english = d.pick(ON_FURNITURE if noun.letters == "g" else IN_PLACE)
    de, en, choice = phrase(d, p, noun, DAT, AS_PLACE, ONE_IN_SIX)
    return with_preposition(preposition, de, choice), f"{english} {en}"


def direction(d: Draw, p: Pool, verb: Verb, noun: Noun) -> Pair:
    """Where to; with verbs of coming also where from."""
    if noun.letters == "y":
        if verb.zu.endswith("kommen") and d.pick(ONE_IN_TWO):
            return f"aus {noun.lemma}", f"from {noun.en[0]}"
        return f"nach {noun.lemma}", f"to {noun.en[0]}"
    preposition, case, english = d.pick(INTO_PLACE)
    de, en, choice = phrase(d, p, noun, case, AS_PLACE, ONE_IN_SIX)
    return with_preposition(preposition, de, choice), f"{english} {en}"


def noun_subject(d: Draw, p: Pool, noun: Noun, of: list[Choice], odds: Odds = ONE_IN_FOUR) -> Subject:
    de, en, (_, plural) = phrase(d, p, noun, NOM, of, odds)
    if noun.letters != "p":
        return Subject(de, en, 5 if plural else 2)
    if plural:
        return Subject(de, en, 5, 6, PLURAL)
    # "das Kind … sein Buch" would be his, her or its: a neuter person owns nothing here.
    return Subject(de, en, 2, (2, 3, -1)[noun.gender], (0, 1, -1)[noun.gender])


WHO_SPEAKS = ("pronoun",) * 4 + ("name",) * 2 + ("noun",) * 6


def subject(d: Draw, p: Pool, of: list[Choice] = AS_SUBJECT) -> Subject:
    kind = d.pick(WHO_SPEAKS)
    if kind == "pronoun":
        return d.pick(PRONOUNS)
    return d.pick(NAMED) if kind == "name" else noun_subject(d, p, d.pick(PEOPLE), of)


def times() -> dict[str, list[tuple[Pair, ...]]]:
    """Groups of time and cause phrases by tense; a group is drawn first, so that long groups do not dominate."""

    def around(preposition: str, case: int, before: str, letter: str) -> tuple[Pair, ...]:
        phrases = (decline(DEF, noun, case, 0) for noun in of_kind(letter))
        return tuple((f"{preposition} {de}", f"{before} {en}") for de, en in phrases)

    def counted(de: str, en: str) -> tuple[Pair, ...]:
        spans = pairs("Tagen days; Wochen weeks; Jahren years")
        return tuple(
            (f"{de} {n} {span}", en.format(f"{m} {spans_en}")) for n, m in pairs(NUMBERS) for span, spans_en in spans
        )

    always = [
        tuple((f"am {de}", f"on {en}") for de, en in pairs(DAYS)),
        tuple((f"um {de} Uhr", f"at {en} o'clock") for de, en in pairs(NUMBERS)),
        pairs("am_Morgen in_the_morning; am_Nachmittag in_the_afternoon; am_Abend in_the_evening; heute today"),
        around("nach", DAT, "after", "e") + around("vor", DAT, "before", "e") + around("während", GEN, "during", "e"),
        around("wegen", GEN, "because of", "w") + around("trotz", GEN, "despite", "w"),
    ]
    return {
        "always": always,
        "present": [*always, pairs("jeden_Tag every_day; jede_Woche every_week")],
        "past": [
            *always,
            pairs("gestern yesterday; letzte_Woche last_week; letztes_Jahr last_year"),
            counted("vor", "{} ago"),
        ],
        "future": [*always, pairs("morgen tomorrow; bald soon; nächste_Woche next_week"), counted("in", "in {}")],
        "since": [counted("seit", "for {}")],
    }


TIMES = times()
TENSES = {"present": "present", "gern": "present", "pluperfect": "always", "progressive": "always", "since": "since"}
TENSES |= dict.fromkeys(MODALS, "future") | dict.fromkeys(PAST_MODES, "past")


def time_phrase(d: Draw, mode: str) -> Pair:
    return d.pick(d.pick(TIMES[TENSES[mode]]))
