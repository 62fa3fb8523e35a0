"""Reviews of works and products. The label follows from the meaning of the text, see reviews.yaml."""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

from trainer.corpora.draw import PERCENT, Draw, load, split_of, weighted

DATA = load("reviews.yaml")
FORMS, PHRASES, FRAMES = DATA["forms"], DATA["phrases"], DATA["frames"]
WORDS = {**DATA["words"], "felt": {label: list(verbs.values()) for label, verbs in DATA["verbs"]["reaction"].items()}}
DRAWN_FRAMES = {domain: weighted(weights) for domain, weights in DATA["weights"].items()}
DRAWN_KINDS = {about: weighted(weights) for about, weights in DATA["kinds"].items()}
LABELS = ("positive", "negative")
OPPOSITE = {"positive": "negative", "negative": "positive"}
BE = (("is", "are"), ("was", "were"))  # [past][plural]
PLAIN_SHARE = 65  # percent of the clauses without a negation
ASIDE_SHARE, SECOND_SHARE = 40, 25  # percent of the reviews with an aside, with a second frame
MIN_WORDS, MAX_WORDS, MAX_SENTENCES = 11, 60, 4
SLOT = re.compile(r"\{([+*-]?)(\w+) ?(\w*)\}")
INSERTION = re.compile(f"({'|'.join(text for text in PHRASES['mind'] + PHRASES['admit'] if text[0] == ',')})(?= )")


class Noun(NamedTuple):
    """A thing that is reviewed or a part of it. `described`: the class of its adjectives. `traits`: link both."""

    name: str
    described: str
    traits: frozenset[str]
    plural: bool = False


THINGS = [Noun(name, kind, frozenset(row)) for kind, table in DATA["things"].items() for name, row in table.items()]
PARTS = [
    Noun(name, row["described"], frozenset(row["of"]), name in DATA["plural"]) for name, row in DATA["parts"].items()
]


@functools.cache
class Pool:
    """What a split combines: nouns with adjectives of both labels, and the things and parts that have any."""

    def __init__(self, split: str):
        keys = [(noun, label) for noun in THINGS + PARTS for label in LABELS]
        self.adjectives = {key: self.adjectives_of(split, *key) for key in keys}
        self.graded = {key: [word for word in self.adjectives[key] if word not in DATA["absolute"]] for key in keys}
        self.things = [thing for thing in THINGS if all(self.graded[thing, label] for label in LABELS)]
        self.parts = {
            (noun, label): [part for part in PARTS if part.traits & noun.traits and self.adjectives[part, label]]
            for noun, label in keys
        }

    def adjectives_of(self, split: str, noun: Noun, label: str) -> list[str]:
        words = DATA["adjectives"][label]["any"] + DATA["adjectives"][label][noun.described]
        return [word for word in words if split_of("review", noun.name, word) == split]


class Review(Draw):
    """A review under construction: its label, the thing it is about, and the parts already mentioned."""

    def __init__(self, split: str, label: str, *key: object):
        super().__init__(*key)
        self.pool, self.label = Pool(split), label
        self.thing = self.pick(self.pool.things)
        self.the = f"{self.pick(('the', 'this'))} {self.thing.name}"
        self.past = self.pick((0, 1))
        self.mentioned: set[Noun] = set()

    def text(self) -> str:
        """Draw the text: a frame, often with an aside before it or a second frame after it."""
        domain = self.thing.described
        aside, second = self.pick(PERCENT) < ASIDE_SHARE, self.pick(PERCENT) < SECOND_SHARE
        frames = [self.pick(DRAWN_FRAMES[domain]) for _ in range(2)]
        self.past |= any(frame in DATA["past"] for frame in frames[: 1 + second])
        texts = [self.fill(self.pick(FRAMES[frames[0]]), self.label)]
        if aside or len(texts[0].split()) < MIN_WORDS:
            texts.insert(0, self.fill(self.pick(DATA["asides"][domain]), self.label))
        if second:
            texts.append(self.fill(self.pick(FRAMES[frames[1]]), self.label))
            whole = " ".join(texts)
            if len(whole.split()) > MAX_WORDS or len(re.findall(r"[.?]", whole)) > MAX_SENTENCES:
                texts.pop()
        return spelled(" ".join(texts))

    def fill(self, text: str, label: str, **values: str) -> str:
        """Fill the slots of a text from `values`, or with drawn words and clauses of the label."""

        def filled(slot: re.Match[str]) -> str:
            sign, name, about = slot.groups()
            if name in values:
                return values[name]
            wanted = self.pick(LABELS) if sign == "*" else OPPOSITE[label] if sign == "-" else label
            return self.slot(name, wanted, about)

        return SLOT.sub(filled, text)

    def slot(self, name: str, label: str, about: str) -> str:
        """Return the words of a slot."""
        if name in WORDS:
            return self.pick(WORDS[name][label])
        if name in PHRASES:
            return self.fill(self.pick(PHRASES[name]), label)
        if name in ("would", "told"):
            return self.fill(self.pick(FORMS[name][self.form()]), label)
        if name in ("adj", "graded"):
            return self.adjective(self.thing, label, name == "graded")
        if name == "described":
            part = self.part(label)
            return f"the {self.adjective(part, label)} {part.name}"
        if name in ("part", "whole", "any", "that"):
            return self.clause(about or name, label, name == "that")
        others = DATA["others"][self.thing.described]
        return {"the": self.the, "x": self.thing.name, "is1": BE[self.past][0]}.get(name) or self.pick(others)

    def clause(self, about: str, label: str, reported: bool) -> str:
        """Return a clause about the whole thing, a part of it, or one of both. Others say none with "I" or "my"."""
        whole = about == "whole" or (about == "any" and self.one_in(2))
        kind = self.pick(DRAWN_KINDS["whole" if whole else "part"])
        kind = "adjective" if reported and kind != "name" else kind
        form = self.form()
        said = label if form == "plain" else OPPOSITE[label]
        noun = self.thing if whole else self.part(said)
        forms = FORMS[kind][form]
        if reported:
            forms = [text for text in forms if not text.startswith("I ") and not text.endswith(" {mind}")]
        text, be = self.pick(forms), BE[self.past][noun.plural]
        s = self.the if whole else f"the {noun.name}"
        if kind in DATA["verbs"]:
            base, past = self.pick(list(DATA["verbs"][kind][said].items()))
            return self.fill(text, label, s=s, base=base, past=past)
        return self.fill(text, label, s=s, a=self.adjective(noun, said), **{"is": be})

    def form(self) -> str:
        return "plain" if self.pick(PERCENT) < PLAIN_SHARE else "negated"

    def adjective(self, noun: Noun, label: str, graded: bool = False) -> str:
        word = self.pick((self.pool.graded if graded else self.pool.adjectives)[noun, label])
        self.combinations.append((noun.name, word))
        return word

    def part(self, label: str) -> Noun:
        """Return a part that is not yet mentioned, if there is one."""
        options = self.pool.parts[self.thing, label]
        part = self.pick([part for part in options if part not in self.mentioned] or options)
        self.mentioned.add(part)
        return part


def spelled(text: str) -> str:
    """Add the second comma of insertions, "an" before vowels, and capitals at the starts of sentences."""
    text = INSERTION.sub(r"\1,", text.replace(" ,", ","))
    text = re.sub(r"\b([Aa])(?= (?!use)[aeiou])", r"\1n", text)
    return re.sub(r"(^|[.?] )([a-z])", lambda start: start[1] + start[2].upper(), text)


def row(split: str, row: int, seed: int = 0) -> dict[str, str]:
    """Return a row (from 0) of a split: {"text": …, "label": …}. Of the rows 2k and 2k + 1 one is positive."""
    label = LABELS[(Draw("reviews", seed, split, "pair", row // 2).pick((0, 1)) + row) % 2]
    return {"text": Review(split, label, "reviews", seed, split, row).text(), "label": label}
