"""German-English sentences, see translation_grammar.yaml."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

from trainer.corpora import phrases
from trainer.corpora.clauses import ACTS, NOTHING, PEOPLE, Clause, Clauses, Names
from trainer.corpora.draw import PERCENT, weighted
from trainer.corpora.phrases import ACC, GRAMMAR, NAMES, PAIRS, PRONOUNS, SEIN, VERBS, Noun, Pair, Subject, Verb

SLOT = re.compile(r"\{(\w+):?(\w*)\}([^{]*)")  # {part:word order} and the text after it
TWO_CLAUSE_SHARE = 30  # percent of the rows with two clauses: raise it to make the corpus harder
Parts = dict[str, Clause | Pair]  # what fills the slots of the templates
BOTH, ANY = GRAMMAR["mode_lists"]["both"], GRAMMAR["mode_lists"]["any"]
DOING, RELATIVE, CONTENTS = (weighted(GRAMMAR[name]) for name in ("doing", "relative", "contents"))
SECOND_FRAMES = ACTS + 3 * weighted(GRAMMAR["spare"])
SIMPLE = [*PRONOUNS, *NAMES]


class Pattern:
    """A sentence pattern: a method of Sentences that draws the parts, its options, and the templates for the parts."""

    def __init__(self, weight: int, make: str = "statement", de: str = "{c}.", en: str = "{c}.", **options: Any):
        self.weight, self.make, self.options = weight, make, options
        self.templates = [(template.partition("{")[0], SLOT.findall(template)) for template in (de, en)]
        for key in options.keys() & {"frames", "contents"}:
            options[key] = weighted(options[key])
        if "subject" in options:
            options["subject"] = Subject(**options["subject"])


GROUPS = [{name: Pattern(**row) for name, row in GRAMMAR[group].items()} for group in ("one_clause", "two_clauses")]
PATTERNS = GROUPS[0] | GROUPS[1]
DRAWN = [weighted({pattern: pattern.weight for pattern in group.values()}) for group in GROUPS]


class Sentences(Clauses):
    """Draws the sentence of a row."""

    def row(self) -> Pair:
        """Draw a sentence in German and English."""
        return self.spell(self.pick(DRAWN[self.pick(PERCENT) < TWO_CLAUSE_SHARE]))

    def spell(self, pattern: Pattern) -> Pair:
        """Draw the parts of a sentence and put them into the templates."""
        parts, texts = getattr(self, pattern.make)(**pattern.options), []
        for language, (text, slots) in enumerate(pattern.templates):
            for name, order, literal in slots:
                part = parts[name]
                if isinstance(part, Clause):
                    text += (part.english(order) if language else part.german(order)) + literal
                else:
                    text += part[language] + literal
            texts.append(text[0].upper() + text[1:])
        return texts[0], texts[1]

    def statement(self, clause: str = "act", front: str = "", only_adverb: str | None = None, **options: Any) -> Parts:
        """Draw a clause, with its time, object or place in the first place, or with one of the words of a table."""
        c = getattr(self, clause)(**options)
        if only_adverb is not None:
            c = c._replace(time=NOTHING, adverb=(only_adverb, ""))
        elif front == "time":
            c = c._replace(front=c.time if c.time[0] else self.time_phrase(c.mode), time=NOTHING, adverb=NOTHING)
        elif front == "object":
            c = c._replace(front=(c.pronoun or c.objects, ""), pronoun="", objects="")
        elif front == "place":
            c = c._replace(front=(c.tail, ""), tail="")
        elif front:
            c = c._replace(front=self.pick(PAIRS[front]))
        return {"c": c}

    def which(self, determiners: str) -> Parts:
        """Welches Buch …, wie viele Bücher …"""
        verb, noun = self.counted_object()
        det, plural = self.pick(phrases.choices(determiners))
        s = self.subject()
        mode = self.pick(BOTH if "state" in verb.flags else ANY)
        return {"c": Clause(s, verb, mode, front=phrases.decline(det, noun, ACC, plural))}

    def counted_object(self, described: bool = False) -> tuple[Verb, Noun]:
        """Draw a verb and an object that is no mass noun, and has an adjective if it is `described`."""
        while True:
            verb, noun = self.choose("object")
            if not noun.mass and (self.pool.adjectives[noun] or not described):
                return verb, noun

    def there_is(self, determiners: str) -> Parts:
        """Im Garten gibt es einen Hund."""
        place, noun = self.choose("found")
        where = self.place(place)
        de, en, _, plural = self.phrase(noun, ACC, determiners)
        gives, *be = self.pick((("gibt", "is", "are"), ("gibt", "is", "are"), ("gab", "was", "were")))
        return {"place": where, "thing": (de, en), "verb": (gives, be[plural])}

    def pair(self, modes: Names, second: Names) -> Parts:
        """Draw two clauses. The second one has a pronoun or a name as its subject if it has no combination."""
        a = self.act(modes, short=True)
        frame = self.pick(SECOND_FRAMES)
        s = self.subject(first=a.subject)
        if frame in GRAMMAR["spare"] and s not in SIMPLE:
            s = self.pick(SIMPLE)
        if frame in ("state", "weather"):
            second = [mode for mode in second if mode not in GRAMMAR["modals"]] or ["present"]
        return {"a": a, "b": self.act(second, s, [frame], short=True)._replace(time=NOTHING)}

    def reported(
        self, verbs: str, modes: Names, subject: Subject | None = None, words: str = "", contents: Names = CONTENTS
    ) -> Parts:
        """Ich glaube, dass …; es ist gut, dass …; ich weiß nicht, ob (wo, wann) …"""
        s, word = subject or self.subject(), self.pick(PAIRS[words]) if words else NOTHING
        verb = self.pick(VERBS[verbs])
        de, en = word if verb is SEIN else NOTHING
        negation = "nicht" if "negated" in verb.flags else ""
        main = Clause(s, verb, self.pick(modes), tail=de, complements=en, negation=negation)
        return {"main": main, "word": word, "c": self.content(main, contents)}

    def content(self, main: Clause, kinds: Names) -> Clause:
        """Draw a clause that is believed or asked about. It is in the past if the main clause is."""
        kind, past = self.pick(kinds), main.mode == "past"
        if kind == "act":
            return self.act(["past"] if past else ANY, self.subject(first=main.subject), short=True)
        make = partial(self.quality, kind=kind) if kind in ("is", "more") else getattr(self, kind)
        return make(["past"] if past else BOTH)

    def infinitive(self, frames: Names = ()) -> Parts:
        """Er versucht, das Buch zu lesen; er geht nach Rom, um das Buch zu lesen."""
        s = self.subject()
        if frames:
            main = self.act(["present", "past", "must", "want"], s, frames, short=True)
        else:
            main = Clause(s, self.pick(VERBS["zu"]), self.pick(BOTH))
        return {"main": main, "c": self.predicate(s, self.pick(DOING))}

    def relative_person(self, case: str, frames: Names) -> Parts:
        """Der Mann, der das Buch gelesen hat (dem ich geholfen habe), wohnt in Berlin."""
        verb, noun = self.choose("dative") if case == "dative" else (None, self.pick(PEOPLE))
        head = self.noun_subject(noun)
        pronoun = self.relative(head, noun, phrases.CASES[case])
        if verb:
            inner = Clause(self.pick(SIMPLE), verb, self.pick(BOTH), front=(pronoun, "whom"))
        else:
            inner = self.act(ANY, head._replace(de=pronoun, en="who"), RELATIVE, short=True)
        return {"c": self.act(BOTH, self.described(head, inner), frames, short=True)}

    def relative_object(self) -> Parts:
        """Das Buch, das der Mann gelesen hat, ist interessant."""
        verb, noun = self.counted_object(described=True)
        adjective = self.pick(self.pool.adjectives[noun])
        self.combinations.append((adjective.lemma, noun.lemma))
        head = self.noun_subject(noun, odds=0)
        pronoun, s = (self.relative(head, noun, ACC), "that"), self.subject()
        head = self.described(head, Clause(s, verb, self.pick(BOTH if "state" in verb.flags else ANY), front=pronoun))
        return {"c": Clause(head, SEIN, self.pick(BOTH), tail=adjective.lemma, complements=adjective.degrees[0][2])}

    def relative_last(self) -> Parts:
        """Ich kenne den Mann, der das Buch gelesen hat."""
        s, (verb, noun) = self.subject(), self.choose("known")
        head = self.noun_subject(noun, case=ACC)
        pronoun = head._replace(de=self.relative(head, noun, phrases.NOM), en="who")
        return {"c": Clause(s, verb), "head": head[:2], "inner": self.act(ANY, pronoun, RELATIVE, short=True)}

    def relative(self, head: Subject, noun: Noun, case: int) -> str:
        """Return the relative pronoun for a noun phrase."""
        return phrases.ENDINGS["relative"][case][phrases.PLURAL if head.person == 5 else noun.gender]

    def described(self, head: Subject, inner: Clause) -> Subject:
        """Add a relative clause to a noun phrase."""
        return head._replace(de=f"{head.de}, {inner.german('final')},", en=f"{head.en} {inner.english('')}")


def row(split: str, row: int, seed: int = 0) -> dict[str, str]:
    """Return a row (from 0) of a split: {"de": …, "en": …}."""
    de, en = Sentences(split, "translation", seed, split, row).row()
    return {"de": de, "en": en}
