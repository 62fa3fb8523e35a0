"""Clauses of the German-English corpus: their parts, and their word order in both languages."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from trainer.data.embedded_lexicon import ACC, DAT, DEF, FREQUENCY, GEN, NOM, Noun, Pair, decline, pairs
from trainer.data.embedded_phrases import (
    AS_HEAD,
    AS_PATIENT,
    AS_PLACE,
    AS_SUBJECT,
    DEFINITE,
    FURNITURE,
    IT,
    LEXICON_ADJECTIVES,
    LEXICON_VERBS,
    LIMITS,
    MASS_HEAD,
    MASSES,
    NAMED,
    NEVER,
    OBJECT_PRONOUNS,
    ON_FURNITURE,
    ONE_IN_EIGHT,
    ONE_IN_FOUR,
    ONE_IN_SIX,
    ONE_IN_THREE,
    ONE_IN_TWO,
    PEOPLE,
    PERSONS,
    PLACES,
    PRONOUNS,
    THINGS,
    Options,
    Pool,
    Subject,
    direction,
    location,
    noun_subject,
    of_kind,
    phrase,
    subject,
    time_phrase,
    with_preposition,
)
from trainer.data.embedded_verbs import MODALS, PAST_MODES, SEIN, Verb

if TYPE_CHECKING:
    from trainer.data.embedded import Draw


class Clause(NamedTuple):
    """One clause before its word order is chosen; German goes on with pronoun, time, adverb, objects, nicht, tail.

    `agent` is the English subject, another one than the German with gefallen. `tail` is a place, direction, predicate.
    `neg` is "", "nicht" or "kein" (which negates the English verb only).
    """

    subject: Subject
    agent: Subject
    verb: Verb
    mode: str
    pronoun: str = ""
    objects: str = ""
    tail: str = ""
    en: str = ""
    time: str = ""
    time_en: str = ""
    adverb: str = ""
    adverb_en: str = ""
    neg: str = ""


LIGHT = frozenset(s.de for s in (*PRONOUNS, IT))  # subjects that stay before an object pronoun


def german(c: Clause, order: str = "statement", front: str = "") -> str:
    """order: statement (verb after the subject or `front`), question (verb first), final (verb last, `front` first)."""
    finite, right, final = c.verb.de[c.mode]
    s, verb, pronoun = c.subject.de, finite[c.subject.person], c.pronoun
    middle = (c.time, c.adverb, c.objects, c.neg if c.neg == "nicht" else "", c.tail)
    if order == "final":
        words: tuple[str, ...] = (front, s, pronoun, *middle, final[c.subject.person])
    elif order == "statement" and not front:
        words = (s, verb, pronoun, *middle, right)
    elif s in LIGHT or pronoun == "ihr":  # "zeigt ihr der Mann …" could first be read as "you show"
        words = (front, verb, s, pronoun, *middle, right)
    else:
        words = (front, verb, pronoun, s, *middle, right)
    return " ".join([word for word in words if word])


def english(c: Clause, order: str = "statement") -> str:
    finite, rest, takes_do, auxiliary, after, negated = c.verb.en[c.mode][c.agent.person]
    if order == "question":
        words: tuple[str, ...] = (auxiliary, c.agent.en, after, c.en, c.time_en)
    elif c.neg:
        words = (c.agent.en, negated, after, c.en, c.time_en)
    elif takes_do:
        words = (c.agent.en, c.adverb_en, finite, rest, c.en, c.time_en)
    else:
        words = (c.agent.en, finite, c.adverb_en, rest, c.en, c.time_en)
    return " ".join([word for word in words if word])


Modes = tuple[str, ...]
Parts = tuple[Subject, Verb, str, str, str, str]  # subject, verb, pronoun, objects, tail, English
Frame = Callable[["Draw", Pool, Subject, str], Parts]  # the last: a key of LIMITS or ""


def choose(d: Draw, options: Options) -> tuple[Verb, Noun]:
    """A verb and one of the nouns that the split puts to it."""
    verb, nouns = d.pick(options)
    noun = d.pick(nouns)
    d.combine(verb.lemma, noun.lemma)
    return verb, noun


def noun_object(d: Draw, p: Pool, s: Subject, noun: Noun, case: int, limit: str = "") -> Pair:
    """An object beside the subject `s`; one in eight definite things has an owner: das Buch des Mannes."""
    if limit:
        of = LIMITS[limit][noun.mass]
    else:
        of = (MASSES if noun.mass else PERSONS if noun.letters == "p" else THINGS)[s.own]
    de, en, choice = phrase(d, p, noun, case, of)
    if choice[0] is not DEF or noun.letters == "p" or not d.pick(ONE_IN_EIGHT):
        return de, en
    plural = d.pick((0, 0, 1))
    de_owner, en_owner = decline(DEF, d.pick(PEOPLE), GEN, plural)
    mark = "'" if plural and en_owner.endswith("s") else "'s"
    return f"{de} {de_owner}", f"{en_owner}{mark} {en.removeprefix('the ')}"


def with_object(frame: str, case: int) -> Frame:
    def build(d: Draw, p: Pool, s: Subject, limit: str) -> Parts:
        verb, noun = choose(d, p.verbs[frame])
        de, en = noun_object(d, p, s, noun, case, limit)
        return s, verb, "", de, "", en

    return build


def with_prepositional_object(preposition: str, case: int) -> Frame:
    def build(d: Draw, p: Pool, s: Subject, limit: str) -> Parts:
        verb, noun = choose(d, p.verbs[preposition])
        if noun.letters == "y":
            return s, verb, "", "", f"{preposition} {noun.lemma}", noun.en[0]
        de, en, choice = phrase(d, p, noun, case, (PERSONS if noun.letters == "p" else THINGS)[s.own])
        return s, verb, "", "", with_preposition(preposition, de, choice), en

    return build


def receiver(d: Draw, p: Pool, s: Subject) -> tuple[str, str, str]:
    """A person in the dative: (pronoun, noun phrase, English), one of the German ones empty."""
    if d.pick(ONE_IN_TWO):
        de, en = d.pick(OBJECT_PRONOUNS[DAT][s.person])
        return de, "", en
    return "", *noun_object(d, p, s, d.pick(PEOPLE), DAT)


def giving(frame: str, template: str) -> Frame:
    """Dative and accusative; English either "gives her the book" or "explains the book to her"."""

    def build(d: Draw, p: Pool, s: Subject, limit: str) -> Parts:
        verb, noun = choose(d, p.verbs[frame])
        pronoun, dative, who = receiver(d, p, s)
        de, what = noun_object(d, p, s, noun, ACC, limit)
        return s, verb, pronoun, f"{dative} {de}" if dative else de, "", template.format(who=who, what=what)

    return build


def stay(d: Draw, p: Pool, s: Subject, limit: str) -> Parts:
    verb, noun = choose(d, p.verbs["place"])
    return s, verb, "", "", *location(d, p, noun)


def go(d: Draw, p: Pool, s: Subject, limit: str) -> Parts:
    verb, noun = choose(d, p.verbs["go"])
    return s, verb, "", "", *direction(d, p, verb, noun)


def put(d: Draw, p: Pool, s: Subject, limit: str) -> Parts:
    verb, noun = choose(d, p.verbs["put"])
    de, en = noun_object(d, p, s, noun, ACC, limit)
    preposition, where = d.pick(ON_FURNITURE)
    goal, goal_en, _ = phrase(d, p, d.pick(FURNITURE), ACC, AS_PLACE, ONE_IN_SIX)
    return s, verb, "", de, f"{preposition} {goal}", f"{en} {where} {goal_en}"


def weather(d: Draw, p: Pool, s: Subject, limit: str) -> Parts:
    return IT, d.pick(LEXICON_VERBS["weather"]), "", "", "", ""


def state(d: Draw, p: Pool, s: Subject, limit: str) -> Parts:
    degree = d.pick(PERSONAL).degrees[0]
    return s, SEIN, "", "", degree.predicate, degree.en


def toward_pronoun(d: Draw, p: Pool, s: Subject, limit: str) -> Parts:
    frame, case = d.pick((("person", ACC), ("dative", DAT)))
    de, en = d.pick(OBJECT_PRONOUNS[case][s.person])
    return s, d.pick(p.verbs[frame])[0], de, "", "", en


def rise(d: Draw, p: Pool, s: Subject, limit: str) -> Parts:
    return s, d.pick(LEXICON_VERBS["rise"]), "", "", "", ""


PERSONAL, ADVERBS = [a for a in LEXICON_ADJECTIVES if "p" in a.letters], pairs(FREQUENCY)
FRAMES: dict[str, Frame] = {
    **{name: with_object(name, ACC) for name in ("object", "person", "active", "masculine", "known")},
    "dative": with_object("dative", DAT),
    "auf": with_prepositional_object("auf", ACC),
    "an": with_prepositional_object("an", ACC),
    "mit": with_prepositional_object("mit", DAT),
    "von": with_prepositional_object("von", DAT),
    "give": giving("give", "{who} {what}"),
    "explain": giving("explain", "{what} to {who}"),
    "place": stay,
    "go": go,
    "put": put,
    "weather": weather,
    "state": state,
    "pronoun": toward_pronoun,
    "rise": rise,
}
SPARE = (
    "weather",
    "state",
    "state",
    "pronoun",
    "pronoun",
    "rise",
    "rise",
)  # no combination: beside another clause only
ACTS: tuple[str, ...] = (
    ("object",) * 8 + ("person",) * 3 + ("dative", "dative", "auf", "an", "mit", "von", "give", "give", "give")
)
ACTS += ("explain", "place", "place", "place", "go", "go", "put")


def clause(
    d: Draw,
    p: Pool,
    frames: tuple[str, ...],
    modes: Modes,
    s: Subject | None = None,
    short: bool = False,
    neg: str = "",
    limit: str = "",
) -> Clause:
    """A clause of one of the frames; a short one has fewer time phrases and no extra place."""
    s = s or subject(d, p, DEFINITE if neg else AS_SUBJECT)
    s, verb, pronoun, objects, tail, en = FRAMES[d.pick(frames)](d, p, s, limit or neg)
    mode = d.pick(modes)
    if "+" in verb.letters and mode in MODALS:
        mode = "past" if mode in PAST_MODES else "present"
    time = adverb = ("", "")
    if mode in ("progressive", "gern"):  # German says with an adverb what English says with the verb
        adverb = ("gerade" if mode == "progressive" else "gern", "")
    elif mode == "since" or d.pick(ONE_IN_SIX if short else ONE_IN_THREE):
        time = time_phrase(d, mode)
    elif mode in ("present", "past") and not neg and verb is not SEIN and d.pick(ONE_IN_SIX):
        adverb = d.pick(ADVERBS)
    if not tail and not short and d.pick(ONE_IN_SIX):
        tail, where = location(d, p, d.pick(PLACES))
        en = f"{en} {where}"
    return Clause(s, s, verb, mode, pronoun, objects, tail, en, *time, *adverb, neg)


def passive(d: Draw, p: Pool, modes: Modes) -> Clause:
    """Das Buch wird von der Frau gelesen."""
    verb, noun = choose(d, p.verbs["passive"])
    s = noun_subject(d, p, noun, MASS_HEAD if noun.mass else AS_PATIENT)
    by, time, mode = ("", ""), ("", ""), d.pick(modes)
    if d.pick(ONE_IN_FOUR):
        name = d.pick(NAMED)
        by = f"von {name.de}", f"by {name.en}"
    elif d.pick(ONE_IN_TWO):
        de, en, choice = phrase(d, p, d.pick(PEOPLE), DAT, AS_HEAD)
        by = with_preposition("von", de, choice), f"by {en}"
    if d.pick(ONE_IN_FOUR):
        time = time_phrase(d, mode)
    assert verb.passive is not None, f"{verb.lemma} is among the verbs with a passive"
    return Clause(s, s, verb.passive, mode, "", "", *by, *time)


def quality(d: Draw, p: Pool, modes: Modes, kind: str = "is", neg: str = "") -> Clause:
    """A noun and an adjective of it: is, more (älter als) or equal (so alt wie)."""
    noun = d.pick(p.described[kind])
    adjective = d.pick([a for a in p.adjectives[noun] if kind == "is" or len(a.degrees) > 1])
    d.combine(adjective.lemma, noun.lemma)
    s = noun_subject(d, p, noun, MASS_HEAD if noun.mass else AS_HEAD, NEVER)
    degree = adjective.degrees[kind == "more"]
    tail, en = degree.predicate, degree.en
    if kind != "is":
        det, plural = d.pick(DEFINITE)
        de_other, en_other = decline(det, d.pick([n for n in LIKE[noun.letters[0]] if n is not noun]), NOM, plural)
        tail = f"{tail} als {de_other}" if kind == "more" else f"so {tail} wie {de_other}"
        en = f"{en} than {en_other}" if kind == "more" else f"as {en} as {en_other}"
    return Clause(s, s, SEIN, d.pick(modes), tail=tail, en=en, neg=neg)


LIKE = {letter: [noun for noun in of_kind(letter) if not noun.mass] for letter in "patnfdcomvsgbe"}
DATIVE_OF = list(zip(("mir", "dir", "ihm", "ihr", "uns", "euch", "ihnen"), PRONOUNS, strict=True))


def pleasing(d: Draw, p: Pool, modes: Modes, neg: str = "") -> Clause:
    """The German subject is the English object: das Buch gefällt dem Mann, the man likes the book."""
    verb, noun = choose(d, p.verbs["gefallen"])
    s = noun_subject(d, p, noun, AS_HEAD)
    if d.pick(ONE_IN_TWO):
        de, agent = d.pick(DATIVE_OF)
        return Clause(s, agent, verb, d.pick(modes), pronoun=de, en=s.en, neg=neg)
    de, en, (_, plural) = phrase(d, p, d.pick(PEOPLE), DAT, AS_HEAD)
    return Clause(s, Subject(de, en, 5 if plural else 2), verb, d.pick(modes), objects=de, en=s.en, neg=neg)


def belonging(d: Draw, p: Pool, modes: Modes, neg: str = "") -> Clause:
    """Das Auto gehört dem Mann."""
    verb, noun = choose(d, p.verbs["gehören"])
    s = noun_subject(d, p, noun, AS_HEAD)
    pronoun, de, en = receiver(d, p, s)
    return Clause(s, s, verb, d.pick(modes), pronoun=pronoun, objects=de, en=en, neg=neg)
