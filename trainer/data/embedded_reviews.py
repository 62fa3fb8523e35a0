"""Reviews of works and goods with the label that their meaning gives them, from a grammar written for this project.

A review is a frame ("Although A, B.", "I expected A and got B.", "My brother says that A. I disagree.") whose slots are
filled by clauses. A frame knows which of its clauses decide and which are conceded, expected, denied or said by others.
Every clause says what it says either plainly or by negating the opposite ("is gripping", "is anything but dull"), and a
clause that decides is drawn like one that does not. So a word, or two, tell next to nothing about the label: it follows
from which clause decides and from what that clause says. Some reviews ("plain") have no counterweight.

A combination is a noun with an adjective or verb that is said of it. `split_of` deals the combinations to the splits
once for all seeds, and a review combines only what belongs to its own split.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, NamedTuple

from trainer.data import embedded_reviews_words as words
from trainer.data.counter_rng import key

if TYPE_CHECKING:
    from trainer.data.embedded import Draw

PLAINLY = 65  # percent of clauses without a negation
HELD_OUT = {0: "test", 1: "test", 2: "validation", 3: "validation"}  # twentieths of the combinations; the others train
LABELS = {"+": "positive", "-": "negative"}
OPPOSITE = {"+": "-", "-": "+"}
ASIDE_SHARE, SECOND_SHARE = 40, 25  # percent of reviews with an aside, with a second frame
SHORTEST, LONGEST = 11, 60  # words
MOST_SENTENCES = 4
SLOT = re.compile(r"\{([+*-]?)(\w+) ?(\w*)\}")


class Noun(NamedTuple):
    """`letters`: a part's class for adjectives; of a thing, "w" (work) or "g" (goods)."""

    name: str
    letters: str
    plural: bool = False


class Word(NamedTuple):
    """An adjective or a verb (base form, past tense); `graded`: an adjective with "more" and "less"."""

    base: str
    past: str = ""
    graded: bool = False


def split_list(text: str, mark: str = ",") -> tuple[str, ...]:
    """The entries, parted by marks or line ends."""
    return tuple(entry.strip() for entry in text.replace("\n", mark).split(mark) if entry.strip())


def lines(text: str) -> tuple[str, ...]:
    return tuple(text.strip().splitlines())


def adjectives(table: str) -> dict[str, list[Word]]:
    """By class."""
    found: dict[str, list[Word]] = {}
    for line in lines(table):
        letter, _, entries = line.partition(" ")
        graded, _, plain = entries.partition("|")
        found[letter] = [Word(base, "", True) for base in split_list(graded)] + [Word(b) for b in split_list(plain)]
    return found


def verb(entry: str) -> Word:
    base, past = entry.split("/")
    return Word(base, past)


def things() -> dict[str, tuple[Noun, list[Noun]]]:
    """What is reviewed, with its parts."""
    parts = []
    for entry in words.PARTS.replace("\n", ";").split(";"):
        if entry.strip():
            name, _, letters = entry.strip().partition(": ")
            kind, owners = letters.split()
            parts.append((Noun(name.removesuffix(" +"), kind, name.endswith("+")), set(owners)))
    found = {}
    for domain, table in (("w", words.WORKS), ("g", words.GOODS)):
        for entry in table.replace("\n", ";").split(";"):
            name, _, owned = entry.strip().rpartition(" ")
            if name:
                found[name] = (Noun(name, domain), [part for part, owners in parts if owners & set(owned)])
    return found


ADJECTIVES = {"+": adjectives(words.PRAISE), "-": adjectives(words.BLAME)}
VERBS = {
    (kind, sign): [verb(entry) for entry in split_list(table)]
    for kind, tables in (("reaction", words.REACTIONS), ("effect", words.EFFECTS))
    for sign, table in tables.items()
}
THINGS = things()
FORMS = {kind: lines(table) for kind, table in words.FORMS.items()}
REPORTED = {  # what others can say too: neither "I …" nor "…, if you ask me"
    kind: tuple(form for form in forms if not form.startswith("I ") and not form.endswith(" {mind}"))
    for kind, forms in FORMS.items()
}
LISTS = {name: split_list(table, "|") for name, table in words.LISTS.items()}
TAIL = re.compile(rf"({'|'.join(tail for name in ('mind', 'admit') for tail in LISTS[name] if tail[0] == ',')})(?= )")
FRAMES = {name: lines(table) for name, table in words.FRAMES.items()}
DRAWN_FRAMES = {
    domain[0]: [entry.split()[0] for entry in split_list(table) for _ in range(int(entry.split()[1]))]
    for domain, table in words.WEIGHTS.items()
}
ASIDES = {domain[0]: lines(table) for domain, table in words.ASIDES.items()}
OTHERS = {domain[0]: split_list(table) for domain, table in words.OTHERS.items()}
NAMES = {sign: split_list(table) for sign, table in words.NAMES.items()}
ASKED = {sign: split_list(table) for sign, table in words.ASKED.items()}
MANNERS = {sign: split_list(table) for sign, table in words.MANNERS.items()}
PART_KINDS = ("adjective",) * 6 + ("reaction", "effect")
WHOLE_KINDS = ("adjective",) * 4 + ("name", "name", "reaction", "effect")


def split_of(noun: str, adjective: str) -> str:
    """The one split where the adjective is said of the noun."""
    return HELD_OUT.get(key("review", noun, adjective) % 20, "train")


@functools.cache
def said_of(noun: Noun, sign: str, split: str, graded: bool = False) -> tuple[Word, ...]:
    """The adjectives that a split says of a noun."""
    table = ADJECTIVES[sign]
    return tuple(
        word
        for word in (*table["*"], *table[noun.letters])
        if word.graded >= graded and split_of(noun.name, word.base) == split
    )


@functools.cache
def things_of(split: str) -> tuple[str, ...]:
    """The things of which a split can say all that a frame may ask for."""
    return tuple(name for name, (thing, _) in THINGS.items() if all(said_of(thing, sign, split, True) for sign in "+-"))


@functools.cache
def parts_of(thing: str, sign: str, split: str) -> tuple[Noun, ...]:
    """The parts of which a split has an adjective with this sign to say."""
    return tuple(part for part in THINGS[thing][1] if said_of(part, sign, split))


class Review:
    """A review being written: the label and the thing it is about, and the parts that it has spoken of."""

    def __init__(self, draw: Draw, split: str, label: str):
        self.draw, self.split, self.label = draw, split, label
        self.thing = THINGS[draw.pick(things_of(split))][0]
        self.the = f"{draw.pick(('the', 'this'))} {self.thing.name}"
        self.past = draw.below(2)
        self.used: set[Noun] = set()

    def fill(self, text: str, **given: str) -> str:
        """The text with its slots filled: from `given`, else by a word or a clause."""

        def filled(slot: re.Match[str]) -> str:
            mark, name, about = slot.groups()
            if not mark:
                return given.get(name) or self.word(name)
            sign = {"+": self.label, "-": OPPOSITE[self.label], "*": ""}[mark] or self.draw.pick("+-")
            return self.signed(name, sign, about)

        return SLOT.sub(filled, text)

    def word(self, name: str) -> str:
        if name in LISTS:
            return self.fill(self.draw.pick(LISTS[name]))
        if name == "other":
            return self.draw.pick(OTHERS[self.thing.letters])
        return {"the": self.the, "x": self.thing.name, "is1": ("is", "was")[self.past]}[name]

    def signed(self, name: str, sign: str, about: str) -> str:
        """What fills a slot with a sign."""
        if name == "better":
            return words.BETTER[sign]
        if name == "felt":
            return self.draw.pick(VERBS["reaction", sign]).past
        if name == "ask":
            return self.draw.pick(ASKED[sign])
        if name in ("adj", "graded"):
            return self.adjective(self.thing, sign, name == "graded")
        if name == "np":
            if self.draw.below(2):
                return f"a {self.draw.pick(NAMES[sign])}"
            return f"a {self.adjective(self.thing, sign)} {self.thing.name}"
        if name == "decides":
            part = self.part(sign)
            return f"the {self.adjective(part, sign)} {part.name} {words.DECIDES[sign]} {self.the}"
        if name in ("would", "told"):
            plainly = self.plainly()
            said = sign if plainly else OPPOSITE[sign]
            if name == "told":
                return self.fill(self.draw.pick(FORMS[name, plainly]), a=self.draw.pick(MANNERS[said]))
            return f"{self.the} would {'' if plainly else 'not '}be {self.adjective(self.thing, said)}"
        return self.clause(sign, about or name, REPORTED if name == "that" else FORMS)

    def plainly(self) -> bool:
        return self.draw.below(100) < PLAINLY

    def adjective(self, noun: Noun, sign: str, graded: bool = False) -> str:
        found = self.draw.pick(said_of(noun, sign, self.split, graded)).base
        self.draw.combine(noun.name, found)
        return found

    def clause(self, sign: str, about: str, forms: dict[tuple[str, bool], tuple[str, ...]]) -> str:
        """A clause about the whole thing, a part, or any of them; half of the clauses negate the opposite."""
        whole = about == "whole" or (about == "any" and self.draw.below(2) == 0)
        kind = self.draw.pick(WHOLE_KINDS if whole else PART_KINDS)
        if forms is REPORTED and kind != "name":
            kind = "adjective"
        plainly = self.plainly()
        said = sign if plainly else OPPOSITE[sign]
        noun = self.thing if whole else self.part(said)
        subject = self.the if whole else f"the {noun.name}"
        form = self.draw.pick(forms[kind, plainly])
        be = (("is", "are"), ("was", "were"))[self.past][noun.plural]
        if kind in ("reaction", "effect"):
            verb = self.draw.pick(VERBS[kind, said])
            return self.fill(form, s=subject, base=verb.base, past=verb.past)
        return self.fill(form, s=subject, a=self.adjective(noun, said), **{"is": be})

    def part(self, said: str) -> Noun:
        """A part not yet spoken of, if there is one."""
        options = parts_of(self.thing.name, said, self.split)
        part = self.draw.pick([part for part in options if part not in self.used] or options)
        self.used.add(part)
        return part


def spelled(text: str) -> str:
    """With capitals at the starts of sentences, commas at both ends of a tail, and "an" before a vowel."""
    text = TAIL.sub(r"\1,", text.replace(" ,", ","))
    text = re.sub(r"\b([Aa])(?= (?!use)[aeiou])", r"\1n", text)
    return re.sub(r"(^|[.?] )([a-z])", lambda start: start[1] + start[2].upper(), text)


def generate(draw: Draw, split: str, label: str) -> str:
    """The text of a review with a label, "+" or "-"; `draw.combinations` then holds its combinations."""
    review = Review(draw, split, label)
    domain = review.thing.letters
    aside, second = draw.below(100) < ASIDE_SHARE, draw.below(100) < SECOND_SHARE
    frames = [draw.pick(DRAWN_FRAMES[domain]) for _ in range(2)]
    review.past |= any(frame in words.IN_THE_PAST for frame in frames[: 1 + second])
    texts = [review.fill(draw.pick(FRAMES[frames[0]]))]
    if aside or len(texts[0].split()) < SHORTEST:
        texts.insert(0, review.fill(draw.pick(ASIDES[domain])))
    if second:
        texts.append(review.fill(draw.pick(FRAMES[frames[1]])))
        whole = " ".join(texts)
        if len(whole.split()) > LONGEST or len(re.findall(r"[.?]", whole)) > MOST_SENTENCES:
            texts.pop()
    return spelled(" ".join(texts))
