"""Clauses of the German-English corpus: their parts and the word order in both languages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from trainer.corpora import phrases
from trainer.corpora.draw import weighted
from trainer.corpora.phrases import DAT, GRAMMAR, NOUNS_OF, SEIN, Noun, Pair, Phrases, Subject, Verb, conjugate, decline

Names = Sequence[str]  # of modes, of frames
NOTHING = ("", "")
IT = Subject("es", "it", 2)
LIGHT = frozenset(s.de for s in (*phrases.PRONOUNS, IT))  # subjects that stay before an object pronoun
ACTS, FRAMES = weighted(GRAMMAR["acts"]), GRAMMAR["frames"]
PEOPLE = NOUNS_OF["person"]
PERSONAL = [adjective for adjective in phrases.ADJECTIVES if "person" in adjective.kinds]


class Clause(NamedTuple):
    """A clause before its word order is chosen.

    `pronoun`, `objects` and `tail` (a place, a direction, a predicate) are German, `complements` is their English.
    `front` precedes the German verb. `negation` is "", "nicht" or "kein", which negates the English verb only.
    `agent` is the English subject if it is not the German one.
    """

    subject: Subject
    verb: Verb
    mode: str = "present"
    pronoun: str = ""
    objects: str = ""
    tail: str = ""
    complements: str = ""
    time: Pair = NOTHING
    adverb: Pair = NOTHING
    front: Pair = NOTHING
    negation: str = ""
    agent: Subject | None = None

    def german(self, order: str) -> str:
        """Return the German words in the order of a statement (""), "question", "final" (verb last) or "infinitive"."""
        if order in ("infinitive", "gerund"):
            return joined(self.pronoun, self.objects, self.tail, self.verb.words["zu"])
        forms, person = conjugate(self.verb, self.mode), self.subject.person
        front, s, verb = self.front[0], self.subject.de, forms.finite[person]
        negation = "nicht" if self.negation == "nicht" else ""
        middle = (self.time[0], self.adverb[0], self.objects, negation, self.tail)
        if order == "final":
            return joined(front, s, self.pronoun, *middle, forms.final[person])
        if not order and not front:
            return joined(s, verb, self.pronoun, *middle, forms.right)
        if s in LIGHT or self.pronoun == "ihr":  # "zeigt ihr der Mann …" could first be read as "you show"
            return joined(front, verb, s, self.pronoun, *middle, forms.right)
        return joined(front, verb, self.pronoun, s, *middle, forms.right)

    def english(self, order: str) -> str:
        """Return the English words. A German clause with the verb last is a statement in English."""
        if order in ("infinitive", "gerund"):
            return joined(self.verb.words["base" if order == "infinitive" else "ing"], self.complements)
        forms, agent = conjugate(self.verb, self.mode), self.agent or self.subject
        verb, helper, end = forms.en[agent.person], forms.helper[agent.person], (self.complements, self.time[1])
        if order == "question":
            return joined(self.front[1], helper, agent.en, forms.after, *end)
        if self.negation:
            negated = "cannot" if helper == "can" else f"{helper} not"
            return joined(self.front[1], agent.en, negated, forms.after, *end)
        if forms.helper is forms.en:  # the adverb follows an auxiliary
            return joined(self.front[1], agent.en, verb, self.adverb[1], forms.rest, *end)
        return joined(self.front[1], agent.en, self.adverb[1], verb, forms.rest, *end)


def joined(*words: str) -> str:
    return " ".join([word for word in words if word])


class Clauses(Phrases):
    """Draws the clauses of a row."""

    def choose(self, frame: str) -> tuple[Any, Noun]:
        """Draw a verb of a frame (or a place), and one of the nouns that the split combines with it."""
        word, nouns = self.pick(self.pool.options[frame])
        noun = self.pick(nouns)
        self.combinations.append((word.lemma, noun.lemma))
        return word, noun

    def noun_object(self, s: Subject, noun: Noun, case: int, limit: str = "", preposition: str = "") -> Pair:
        """Draw an object for the subject `s`. One in eight definite things has an owner: das Buch des Mannes."""
        of, own = "mass" if noun.mass else "person" if noun.kind == "person" else "thing", s.own
        if preposition and noun.kind == "town":
            return f"{preposition} {noun.lemma}", noun.en[0]
        if limit and not preposition:
            of, own = GRAMMAR["limits"][limit][noun.mass], ""
        de, en, determiner, _ = self.phrase(noun, case, of, own)
        if preposition:
            return self.with_preposition(preposition, de), en
        if determiner is not phrases.DEF or noun.kind == "person" or not self.one_in(8):
            return de, en
        plural = self.pick((0, 0, 1))
        de_owner, en_owner = decline(phrases.DEF, self.pick(PEOPLE), phrases.GEN, plural)
        mark = "'" if plural and en_owner.endswith("s") else "'s"
        return f"{de} {de_owner}", f"{en_owner}{mark} {en.removeprefix('the ')}"

    def receiver(self, s: Subject) -> tuple[str, str, str]:
        """Draw a person in the dative: pronoun, noun phrase, English. One of the German ones is empty."""
        if self.one_in(2):
            de, en = self.pick(phrases.OBJECT_PRONOUNS["dative"][s.person])
            return de, "", en
        return "", *self.noun_object(s, self.pick(PEOPLE), DAT)

    def predicate(self, s: Subject, frame: str, limit: str = "") -> Clause:
        """Draw a verb with the complements that its frame has in the grammar, or a predicate without a combination."""
        if frame in ("weather", "rise"):
            return Clause(IT if frame == "weather" else s, self.pick(phrases.VERBS[frame]))
        if frame == "state":
            _, de, en = self.pick(PERSONAL).degrees[0]
            return Clause(s, SEIN, tail=de, complements=en)
        if frame == "pronoun":
            frame, kind = self.pick((("person", "accusative"), ("dative", "dative")))
            de, en = self.pick(phrases.OBJECT_PRONOUNS[kind][s.person])
            return Clause(s, self.pick(self.pool.options[frame])[0], pronoun=de, complements=en)
        row, (verb, noun) = FRAMES[frame], self.choose(frame)
        pronoun = dative = de = tail = en = place = ""
        if "receiver" in row:
            pronoun, dative, who = self.receiver(s)
        if "object" in row:
            de, en = self.noun_object(s, noun, phrases.CASES[row["object"]], limit, row.get("preposition", ""))
        if "where" in row:
            tail, place = self.place(noun, row["where"], verb)
            en = f"{en} {place}" if en else place
        if "preposition" in row:
            de, tail = "", de
        if "receiver" in row:
            de, en = joined(dative, de), row["en"].format(receiver=who, object=en)
        return Clause(s, verb, "present", pronoun, de, tail, en)

    def act(
        self, modes: Names, subject: Subject | None = None, frames: Names = ACTS, short: bool = False, limit: str = ""
    ) -> Clause:
        """Draw a clause of one of the frames. A short one has fewer time phrases and no extra place."""
        negation = "" if limit == "first" else limit
        s = subject or self.subject("definite" if negation else "subject")
        c = self.predicate(s, self.pick(frames), limit)
        mode, time, adverb, tail, complements = self.pick(modes), NOTHING, NOTHING, c.tail, c.complements
        if "state" in c.verb.flags and mode in GRAMMAR["modals"]:
            mode = "past" if phrases.TIME_OF[mode] == "past" else "present"
        if mode in ("progressive", "gern"):  # German expresses with an adverb what English expresses with the verb
            adverb = ("gerade" if mode == "progressive" else "gern", "")
        elif mode == "since" or self.one_in(6 if short else 3):
            time = self.time_phrase(mode)
        elif mode in ("present", "past") and not negation and c.verb is not SEIN and self.one_in(6):
            adverb = self.pick(phrases.PAIRS["frequency"])
        if not tail and not short and self.one_in(6):
            tail, where = self.place(self.pick(NOUNS_OF["place"]))
            complements = f"{complements} {where}"
        return Clause(c.subject, c.verb, mode, c.pronoun, c.objects, tail, complements, time, adverb, NOTHING, negation)

    def passive(self, modes: Names) -> Clause:
        """Das Buch wird von der Frau gelesen."""
        verb, noun = self.choose("passive")
        s = self.noun_subject(noun, "patient")
        by, mode = NOTHING, self.pick(modes)
        if self.one_in(4):
            name = self.pick(phrases.NAMES)
            by = f"von {name.de}", f"by {name.en}"
        elif self.one_in(2):
            de, en, _, _ = self.phrase(self.pick(PEOPLE), DAT, "head")
            by = self.with_preposition("von", de), f"by {en}"
        time = self.time_phrase(mode) if self.one_in(4) else NOTHING
        return Clause(s, verb.passive, mode, tail=by[0], complements=by[1], time=time)

    def quality(self, modes: Names, kind: str = "is", negation: str = "") -> Clause:
        """Draw a noun with an adjective: "is", "more" (älter als) or "equal" (so alt wie)."""
        noun = self.pick(self.pool.described[kind])
        adjective = self.pick([a for a in self.pool.adjectives[noun] if kind == "is" or len(a.degrees) > 1])
        self.combinations.append((adjective.lemma, noun.lemma))
        s = self.noun_subject(noun, odds=0)
        _, de, en = adjective.degrees[kind == "more"]
        if kind != "is":
            det, plural = self.pick(phrases.choices("definite"))
            other = self.pick([n for n in NOUNS_OF[noun.kind] if not n.mass and n is not noun])
            de_other, en_other = decline(det, other, phrases.NOM, plural)
            de = f"{de} als {de_other}" if kind == "more" else f"so {de} wie {de_other}"
            en = f"{en} than {en_other}" if kind == "more" else f"as {en} as {en_other}"
        return Clause(s, SEIN, self.pick(modes), tail=de, complements=en, negation=negation)

    def pleasing(self, modes: Names, negation: str = "") -> Clause:
        """Das Buch gefällt dem Mann: the German subject is the English object."""
        verb, noun = self.choose("gefallen")
        s = self.noun_subject(noun)
        agent = self.pick(phrases.PRONOUNS) if self.one_in(2) else self.noun_subject(self.pick(PEOPLE), case=DAT)
        objects = "" if agent.dative else agent.de
        return Clause(s, verb, self.pick(modes), agent.dative, objects, "", s.en, negation=negation, agent=agent)

    def belonging(self, modes: Names) -> Clause:
        """Das Auto gehört dem Mann."""
        verb, noun = self.choose("gehören")
        s = self.noun_subject(noun)
        pronoun, de, en = self.receiver(s)
        return Clause(s, verb, self.pick(modes), pronoun, de, "", en)
