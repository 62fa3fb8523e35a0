"""The German-English corpus: a lexicon, its inflection, and sentence patterns, all written for this project.

Every row is German with one English reference that follows from the German alone. What could be read in two ways is
left out, or fixed once for the whole corpus: there is no polite "Sie" and no "sie" as an object; a possessive of the
third person belongs to the subject of its clause; the perfect is the simple past, the present the simple present.
Many to one is wanted ("du", "ihr" → "you"; "aufmachen", "öffnen" → "open").

A combination is a pair of content lemmas that stand in one construction: verb and complement, adjective and noun,
place and what is found there. `split_of` deals the combinations to the splits once for all seeds, and a row is made of
combinations of its own split only. So no combination of the test split ever occurs in training, however many rows are
drawn.

Conventions: case 0-3 = nominative, accusative, dative, genitive; gender 0-3 = masculine, feminine, neuter, plural;
person 0-5 = ich, du, er/sie/es, wir, ihr, sie. Nouns carry letters for what they are, verbs those of the nouns they go
with.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from trainer.data.embedded_clauses import (
    ACTS,
    FRAMES,
    SPARE,
    Clause,
    Modes,
    belonging,
    choose,
    clause,
    english,
    german,
    passive,
    pleasing,
    quality,
)
from trainer.data.embedded_lexicon import ACC, DAT, JUDGED, NOM, OPENING, PLURAL, RELATIVE, Noun, Pair, decline, pairs
from trainer.data.embedded_phrases import (
    AS_FOUND,
    AS_HEAD,
    IHR,
    IT,
    LEXICON_VERBS,
    NEVER,
    ONE_IN_FOUR,
    ONE_IN_TWO,
    PEOPLE,
    SIMPLE,
    TAKEN_UP,
    Choice,
    Odds,
    Pool,
    Subject,
    choices,
    location,
    noun_subject,
    phrase,
    pool,
    subject,
    time_phrase,
)
from trainer.data.embedded_verbs import MODALS, SEIN

if TYPE_CHECKING:
    from trainer.data.embedded import Draw

TWO_CLAUSE_SHARE = 30  # percent of rows with two clauses: the one constant that makes the corpus harder or easier
Sentence = tuple[str, str, str]  # German, English, closing mark
Build = Callable[["Draw", Pool], Sentence]
Make = Callable[["Draw", Pool], Clause]
NOW, PAST, PLUPERFECT, FUTURE = ("present",), ("past",), ("pluperfect",), ("future",)
MODAL, MODAL_PAST = ("can", "must", "want", "may", "should", "would like"), ("could", "had to", "wanted", "might")
BOTH, ANY = ("present", "past"), ("present", "past", "past", "must", "can", "want")
OPENERS = pairs(OPENING)
WHERE = pairs("wo where; wann when; warum why; wie_oft how_often")


def told(d: Draw, p: Pool, make: Make) -> Sentence:
    c = make(d, p)
    return german(c), english(c), "."


def time_first(d: Draw, p: Pool, make: Make) -> Sentence:
    """A time phrase in the first place, so that the German subject follows the verb."""
    c = make(d, p)
    time, time_en = (c.time, c.time_en) if c.time else time_phrase(d, c.mode)
    c = c._replace(time="", time_en="", adverb="", adverb_en="")
    return german(c, front=time), f"{time_en} {english(c)}", "."


def opener_first(d: Draw, p: Pool, make: Make) -> Sentence:
    c, (de, en) = make(d, p), d.pick(OPENERS)
    return german(c, front=de), f"{en} {english(c)}", "."


def object_first(d: Draw, p: Pool, make: Make) -> Sentence:
    """The German object in the first place: its case tells it, English keeps its order."""
    c = make(d, p)
    return german(c._replace(pronoun="", objects=""), front=c.pronoun or c.objects), english(c), "."


def place_first(d: Draw, p: Pool, make: Make) -> Sentence:
    c = make(d, p)
    return german(c._replace(tail=""), front=c.tail), english(c), "."


def asked(d: Draw, p: Pool, make: Make, asks: tuple[Pair, ...] = (("", ""),)) -> Sentence:
    c, (de, en) = make(d, p), d.pick(asks)
    return german(c, "question", de), f"{en} {english(c, 'question')}".strip(), "?"


def who(d: Draw, p: Pool, make: Callable[..., Clause]) -> Sentence:
    c = make(d, p, s=Subject("wer", "who", 2))
    return german(c), english(c), "?"


def which(d: Draw, p: Pool, of: list[Choice]) -> Sentence:
    """Welches Buch …, wie viele Bücher …"""
    verb, noun = choose(d, p.verbs["object"])
    while noun.mass:  # every split has nouns that are counted
        verb, noun = choose(d, p.verbs["object"])
    det, plural = d.pick(of)
    de, en = decline(det, noun, ACC, plural)
    s = subject(d, p)
    c = Clause(s, s, verb, d.pick(BOTH if "+" in verb.letters else ANY))
    return german(c, "question", de), f"{en} {english(c, 'question')}", "?"


def exists(d: Draw, p: Pool, of: list[Choice], ask: bool = False) -> Sentence:
    """Im Garten gibt es einen Hund: there is a dog in the garden."""
    place, things = d.pick(p.found)
    noun = d.pick(things)
    d.combine(place.lemma, noun.lemma)
    where, where_en = location(d, p, place)
    de, en, (_, plural) = phrase(d, p, noun, ACC, of)
    gives, be = d.pick((("gibt", ("is", "are")), ("gibt", ("is", "are")), ("gab", ("was", "were"))))
    if ask:
        return f"{gives} es {where} {de}", f"{be[plural]} there {en} {where_en}", "?"
    return f"{where} {gives} es {de}", f"there {be[plural]} {en} {where_en}", "."


def command(d: Draw, p: Pool, frames: tuple[str, ...], neg: str = "") -> Sentence:
    """Macht bitte die Tür zu!"""
    c = clause(d, p, frames, NOW, IHR, short=True, neg=neg)
    c = c._replace(subject=c.subject._replace(de=""), time="", adverb="" if neg else "bitte")
    return german(c, "question"), f"{'do not' if neg else 'please'} {c.verb.base} {c.en}", "!"


def second_subject(d: Draw, p: Pool, first: Subject) -> Subject:
    """Half the time the pronoun for the first subject."""
    if first.gender >= 0 and d.pick(ONE_IN_TWO):
        return TAKEN_UP[first.gender]
    return subject(d, p)


def companion(d: Draw, p: Pool, modes: Modes, first: Subject) -> Clause:
    """A short clause beside another; one without a combination has a pronoun or a name as its subject."""
    frame = d.pick(ACTS_AND_SPARE)
    s = second_subject(d, p, first)
    if frame in SPARE and s not in SIMPLE:
        s = d.pick(SIMPLE)
    if frame in ("state", "weather"):
        modes = tuple(mode for mode in modes if mode not in MODALS) or NOW
    return clause(d, p, (frame,), modes, s, short=True)._replace(time="", time_en="")


def content(d: Draw, p: Pool, main: Clause, kinds: tuple[str, ...]) -> Clause:
    """What is believed or asked: an action, a passive, a quality, a pleasure, a possession; past under a past verb."""
    kind, told_before = d.pick(kinds), main.mode == "past"
    if kind == "act":
        return clause(d, p, ACTS, PAST if told_before else ANY, second_subject(d, p, main.subject), short=True)
    modes = PAST if told_before else BOTH
    if kind in ("is", "more"):
        return quality(d, p, modes, kind)
    return {"passive": passive, "pleasing": pleasing, "belonging": belonging}[kind](d, p, modes)


ACTS_AND_SPARE = ACTS + SPARE + SPARE + SPARE
CONTENTS = ("act",) * 8 + ("passive", "is", "more", "pleasing", "belonging")
KNOW, ASK = next(verb for verb in LEXICON_VERBS["dass"] if verb.lemma == "wissen"), LEXICON_VERBS["ob"][0]
JUDGEMENTS = pairs(JUDGED)


def that(d: Draw, p: Pool, ask: bool = False) -> Sentence:
    """Ich glaube, dass …"""
    s = subject(d, p)
    main = Clause(s, s, d.pick(LEXICON_VERBS["dass"]), d.pick(("present", "present", "past")))
    c, order = content(d, p, main, CONTENTS), "question" if ask else "statement"
    return (
        f"{german(main, order)}, {german(c, 'final', 'dass')}",
        f"{english(main, order)} that {english(c)}",
        ".?"[ask],
    )


def impersonal(d: Draw, p: Pool) -> Sentence:
    """Es ist gut, dass …"""
    (de, en), c = d.pick(JUDGEMENTS), content(d, p, Clause(IT, IT, SEIN, "present"), CONTENTS)
    return f"es ist {de}, {german(c, 'final', 'dass')}", f"it is {en} that {english(c)}", "."


def whether(d: Draw, p: Pool, asks: tuple[Pair, ...]) -> Sentence:
    """Ich weiß nicht, ob (wo, wann) …"""
    s, (de, en), knows = subject(d, p), d.pick(asks), d.pick(ONE_IN_TWO)
    main = Clause(s, s, KNOW if knows else ASK, d.pick(BOTH), neg="nicht" if knows else "")
    c = content(d, p, main, CONTENTS if de == "ob" else ("act",))
    return f"{german(main)}, {german(c, 'final', de)}", f"{english(main)} {en} {english(c)}", "."


def last(d: Draw, p: Pool, link: Pair, main: Modes, sub: Modes) -> Sentence:
    """Er schläft, weil er müde ist."""
    a = clause(d, p, ACTS, main, short=True)
    b = companion(d, p, sub, a.subject)
    return f"{german(a)}, {german(b, 'final', link[0])}", f"{english(a)} {link[1]} {english(b)}", "."


def first(d: Draw, p: Pool, link: Pair, main: Modes, sub: Modes) -> Sentence:
    """Weil er müde ist, schläft er."""
    a = clause(d, p, ACTS, main, short=True)
    b = companion(d, p, sub, a.subject)
    return f"{german(b, 'final', link[0])}, {german(a, 'question')}", f"{link[1]} {english(b)}, {english(a)}", "."


def joined(d: Draw, p: Pool, link: Pair, modes: Modes) -> Sentence:
    """Two main clauses: er ist müde, aber er arbeitet."""
    a = clause(d, p, ACTS, modes, short=True)
    b = companion(d, p, modes, a.subject)
    return f"{german(a)}{link[0]} {german(b)}", f"{english(a)}{link[1]} {english(b)}", "."


def infinitive(d: Draw, p: Pool, kind: str) -> Sentence:
    """Er versucht, das Buch zu lesen; er geht nach Rom, um das Buch zu lesen; … ohne das Buch zu lesen."""
    s = subject(d, p)
    if kind == "":
        main = Clause(s, s, d.pick(LEXICON_VERBS["zu"]), d.pick(BOTH))
    else:
        main = clause(d, p, ("go", "place", "rise", "object"), ("present", "past", "must", "want"), s, short=True)
    _, verb, pronoun, objects, tail, en = FRAMES[d.pick(DOING)](d, p, s, "")
    words = [word for word in (kind, pronoun, objects, tail, verb.zu) if word]
    to = f"without {verb.ing}" if kind == "ohne" else f"to {verb.base}"
    return f"{german(main)}, {' '.join(words)}", f"{english(main)} {to} {en}", "."


DOING = tuple("active" if frame == "object" else frame for frame in ACTS)


def head_of(d: Draw, p: Pool, noun: Noun, odds: Odds = ONE_IN_FOUR) -> tuple[Subject, int]:
    """A subject for a relative clause to describe, and the gender of the relative pronoun."""
    head = noun_subject(d, p, noun, AS_HEAD, odds)
    return head, PLURAL if head.person == 5 else noun.gender


def described(head: Subject, de: str, en: str) -> Subject:
    return head._replace(de=f"{head.de}, {de},", en=f"{head.en} {en}")


def relative_subject(d: Draw, p: Pool) -> Sentence:
    """Der Mann, der das Buch gelesen hat, wohnt in Berlin."""
    head, gender = head_of(d, p, d.pick(PEOPLE))
    inner = clause(d, p, WHAT_PEOPLE_DO, ANY, head._replace(de=RELATIVE[NOM][gender], en="who"), short=True)
    head = described(head, german(inner, "final"), english(inner))
    return told(d, p, partial(clause, frames=(*WHAT_PEOPLE_DO, "rise", "pronoun"), modes=BOTH, s=head, short=True))


def relative_dative(d: Draw, p: Pool) -> Sentence:
    """Der Mann, dem ich geholfen habe, wohnt in Berlin."""
    verb, noun = choose(d, p.verbs["dative"])
    head, gender = head_of(d, p, noun)
    s = d.pick(SIMPLE)
    inner = Clause(s, s, verb, d.pick(BOTH))
    head = described(head, german(inner, "final", RELATIVE[DAT][gender]), f"whom {english(inner)}")
    return told(d, p, partial(clause, frames=WHAT_PEOPLE_DO, modes=BOTH, s=head, short=True))


def relative_object(d: Draw, p: Pool) -> Sentence:
    """Das Buch, das der Mann gelesen hat, ist interessant."""
    verb, noun = choose(d, p.verbs["object"])
    while noun.mass or not p.adjectives[noun]:
        verb, noun = choose(d, p.verbs["object"])
    adjective = d.pick(p.adjectives[noun])
    d.combine(adjective.lemma, noun.lemma)
    (head, gender), s = head_of(d, p, noun, NEVER), subject(d, p)
    inner = Clause(s, s, verb, d.pick(BOTH if "+" in verb.letters else ANY))
    head = described(head, german(inner, "final", RELATIVE[ACC][gender]), f"that {english(inner)}")
    main = Clause(head, head, SEIN, d.pick(BOTH), tail=adjective.lemma, en=adjective.degrees[0].en)
    return german(main), english(main), "."


def relative_last(d: Draw, p: Pool) -> Sentence:
    """Ich kenne den Mann, der das Buch gelesen hat."""
    s, (verb, noun) = subject(d, p), choose(d, p.verbs["known"])
    de, en, (_, plural) = phrase(d, p, noun, ACC, AS_HEAD)
    gender = PLURAL if plural else noun.gender
    pronoun = Subject(RELATIVE[NOM][gender], "who", 5 if plural else 2, (2, 3, -1, 6)[gender])
    inner = clause(d, p, WHAT_PEOPLE_DO, ANY, pronoun, short=True)
    main = Clause(s, s, verb, "present", objects=f"{de}, {german(inner, 'final')}", en=f"{en} {english(inner)}")
    return german(main), english(main), "."


WHAT_PEOPLE_DO = ("object", "object", "object", "place", "go", "explain", "dative")


class Pattern(NamedTuple):
    """A sentence pattern: its weight among those with as many clauses, and what builds a sentence of it."""

    name: str
    weight: int
    build: Build


def act(
    modes: Modes, frames: tuple[str, ...] = ACTS, short: bool = False, neg: str = "", limit: str = ""
) -> partial[Clause]:
    return partial(clause, frames=frames, modes=modes, short=short, neg=neg, limit=limit)


OBJECTS = ("object", "person", "dative")
ONE_CLAUSE = (
    Pattern("present", 3, partial(told, make=act(NOW))),
    Pattern("perfect", 4, partial(told, make=act(PAST))),
    Pattern("future", 3, partial(told, make=act(FUTURE))),
    Pattern("modal", 4, partial(told, make=act(MODAL))),
    Pattern("modal past", 3, partial(told, make=act(MODAL_PAST))),
    Pattern("happening now", 2, partial(told, make=act(("progressive",), ("active",)))),
    Pattern("since when", 2, partial(told, make=act(("since",), ("place",)))),
    Pattern("liking to", 2, partial(told, make=act(("gern",), ("active", "place")))),
    Pattern("not, present", 2, partial(told, make=act(NOW, neg="nicht"))),
    Pattern("not, perfect", 2, partial(told, make=act(PAST, neg="nicht"))),
    Pattern("not, modal", 2, partial(told, make=act(MODAL, neg="nicht"))),
    Pattern("no object", 3, partial(told, make=act(ANY, ("object", "give"), neg="kein"))),
    Pattern("time first, present", 2, partial(time_first, make=act(NOW))),
    Pattern("time first, perfect", 3, partial(time_first, make=act(PAST))),
    Pattern("time first, modal", 3, partial(time_first, make=act(MODAL + FUTURE + MODAL_PAST))),
    Pattern("opening adverb", 3, partial(opener_first, make=act(ANY))),
    Pattern("object first, present", 2, partial(object_first, make=act(NOW, ("masculine",), limit="first"))),
    Pattern("object first, perfect", 2, partial(object_first, make=act(PAST, ("masculine",), limit="first"))),
    Pattern("object first, modal", 1, partial(object_first, make=act(MODAL, ("masculine",), limit="first"))),
    Pattern("dative first", 2, partial(object_first, make=act(BOTH, ("dative",), limit="first"))),
    Pattern("place first", 2, partial(place_first, make=act(ANY, ("place",)))),
    Pattern("question, present", 3, partial(asked, make=act(NOW, short=True))),
    Pattern("question, perfect", 3, partial(asked, make=act(PAST, short=True))),
    Pattern("question, modal", 2, partial(asked, make=act(MODAL + FUTURE, short=True))),
    Pattern("question, where", 3, partial(asked, make=act(ANY, OBJECTS, short=True), asks=WHERE)),
    Pattern("question, who", 2, partial(who, make=act(ANY))),
    Pattern("question, which", 2, partial(which, of=choices("which"))),
    Pattern("question, how many", 2, partial(which, of=choices("how many+"))),
    Pattern("question, quality", 1, partial(asked, make=partial(quality, modes=BOTH))),
    Pattern("passive, present", 2, partial(told, make=partial(passive, modes=NOW))),
    Pattern("passive, past", 2, partial(told, make=partial(passive, modes=PAST))),
    Pattern(
        "passive, modal", 2, partial(told, make=partial(passive, modes=("must", "can", "should", "future", "had to")))
    ),
    Pattern("quality", 2, partial(told, make=partial(quality, modes=BOTH))),
    Pattern("not, quality", 1, partial(told, make=partial(quality, modes=BOTH, neg="nicht"))),
    Pattern("comparison, more", 3, partial(told, make=partial(quality, modes=BOTH, kind="more"))),
    Pattern("comparison, equal", 2, partial(told, make=partial(quality, modes=BOTH, kind="equal"))),
    Pattern("pleasing", 1, partial(told, make=partial(pleasing, modes=BOTH))),
    Pattern("not, pleasing", 1, partial(told, make=partial(pleasing, modes=BOTH, neg="nicht"))),
    Pattern("pleasing, dative first", 1, partial(object_first, make=partial(pleasing, modes=BOTH))),
    Pattern("belonging", 1, partial(told, make=partial(belonging, modes=BOTH))),
    Pattern("there is", 2, partial(exists, of=AS_FOUND)),
    Pattern("there is no", 1, partial(exists, of=choices("no, no+"))),
    Pattern("is there", 1, partial(exists, of=AS_FOUND, ask=True)),
    Pattern("command", 2, partial(command, frames=("active", "put", "give"))),
    Pattern("not, command", 1, partial(command, frames=("active",), neg="nicht")),
)
TWO_CLAUSES = (
    Pattern("that", 4, that),
    Pattern("that, asked", 1, partial(that, ask=True)),
    Pattern("that, impersonal", 2, impersonal),
    Pattern("whether", 3, partial(whether, asks=(("ob", "whether"),))),
    Pattern("indirect question", 3, partial(whether, asks=WHERE)),
    Pattern("because last", 3, partial(last, link=("weil", "because"), main=ANY, sub=ANY)),
    Pattern("because first", 2, partial(first, link=("weil", "because"), main=ANY, sub=ANY)),
    Pattern("although last", 1, partial(last, link=("obwohl", "although"), main=ANY, sub=ANY)),
    Pattern("although first", 2, partial(first, link=("obwohl", "although"), main=ANY, sub=ANY)),
    Pattern("if last", 1, partial(last, link=("wenn", "if"), main=("future", "can", "must", "should"), sub=NOW)),
    Pattern("if first", 3, partial(first, link=("wenn", "if"), main=("future", "can", "must", "present"), sub=NOW)),
    Pattern("before", 2, partial(last, link=("bevor", "before"), main=PAST, sub=PAST)),
    Pattern("after", 2, partial(first, link=("nachdem", "after"), main=PAST, sub=PLUPERFECT)),
    Pattern("while", 1, partial(last, link=("während", "while"), main=NOW, sub=NOW)),
    Pattern("so that", 1, partial(last, link=("damit", "so that"), main=("present", "must"), sub=("can",))),
    Pattern("but", 2, partial(joined, link=(", aber", ", but"), modes=ANY)),
    Pattern("and", 2, partial(joined, link=(" und", ", and"), modes=ANY)),
    Pattern("for", 2, partial(joined, link=(", denn", " because"), modes=ANY)),
    Pattern("infinitive", 3, partial(infinitive, kind="")),
    Pattern("infinitive of purpose", 2, partial(infinitive, kind="um")),
    Pattern("infinitive without", 1, partial(infinitive, kind="ohne")),
    Pattern("relative, subject", 3, relative_subject),
    Pattern("relative, dative", 1, relative_dative),
    Pattern("relative, object", 3, relative_object),
    Pattern("relative, last", 2, relative_last),
)
PATTERNS = ONE_CLAUSE + TWO_CLAUSES
DRAWN = tuple([row for row in rows for _ in range(row.weight)] for rows in (ONE_CLAUSE, TWO_CLAUSES))


def spell(d: Draw, p: Pool, chosen: Pattern) -> Pair:
    """A sentence of the pattern, with its capital and closing mark."""
    de, en, mark = chosen.build(d, p)
    return f"{de[0].upper()}{de[1:]}{mark}", f"{en[0].upper()}{en[1:]}{mark}"


def generate(d: Draw, split: str) -> Pair:
    """One row of a split in German and English; `d.combinations` then holds the row's combinations."""
    chosen = d.pick(DRAWN[d.below(100) < TWO_CLAUSE_SHARE])
    return spell(d, pool(split), chosen)
