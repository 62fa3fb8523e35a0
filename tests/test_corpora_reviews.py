"""Test the generated reviews: their labels follow from the meaning, not from words or pairs of words."""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict

import numpy as np
import pytest

from trainer.corpora import SPLITS, embedded_rows
from trainer.corpora import reviews as grammar
from trainer.corpora.draw import split_of
from trainer.data.discovery import embedded_shards

TRAIN, TEST = 6000, 1000
ADJECTIVES = {word for table in grammar.DATA["adjectives"].values() for words in table.values() for word in words}
Corpus = dict[str, list[dict[str, str]]]


def rows_of(split: str, rows: int, seed: int = 0) -> list[dict[str, str]]:
    return list(embedded_rows("reviews", split, rows, seed, 0, 1))


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return {"train": rows_of("train", TRAIN), "validation": rows_of("validation", TEST), "test": rows_of("test", TEST)}


# ------------------------------------------------------------------------------------------------------------ contents
def test_texts_are_short_and_well_formed(corpus: Corpus) -> None:
    for row in itertools.chain.from_iterable(corpus.values()):
        assert set(row) == {"text", "label"}
        text = row["text"]
        assert 8 <= len(text.split()) <= 60, text
        assert 1 <= len(re.findall(r"[.?]( |$)", text)) <= 4, text
        assert re.fullmatch(r"[A-Z][^{}|+_]*[.?]", text), text
        assert not re.search(r"  | [,.?;:]|,[^ ]|,,|\b(\w+) \1\b(?<!had had)", text), text
        assert not re.search(r"[.?] [a-z]|\b[Aa] [aeio]|\ban [^aeiou]|\bi\b", text), text
    assert 20 <= np.mean([len(row["text"].split()) for row in corpus["train"]]) <= 30


def test_labels_are_balanced(corpus: Corpus) -> None:
    for split, rows in corpus.items():
        assert {row["label"] for row in rows} == {"negative", "positive"}
        assert sum(row["label"] == "positive" for row in rows) / len(rows) == pytest.approx(0.5, abs=0.02), split
    shard = embedded_rows("reviews", "train", TRAIN, 0, 1, 4)
    assert sum(row["label"] == "positive" for row in shard) * 4 / TRAIN == pytest.approx(0.5, abs=0.05)


def test_every_frame_and_every_word_is_drawn(corpus: Corpus) -> None:
    text = " ".join(row["text"] for row in corpus["train"])
    for word in ADJECTIVES:
        assert len(re.findall(rf"\b{word}\b", text)) >= 3, word
    for frame in itertools.chain.from_iterable(grammar.FRAMES.values()):
        fixed = max(grammar.SLOT.split(frame)[::4], key=len).strip(" .,:")
        assert fixed.lower() in text.lower(), frame


def test_a_draw_has_bits_to_spare() -> None:
    """Without bits, every further choice would be the first option."""
    for row in range(1000):
        review = grammar.Review("train", "positive", "reviews", 0, "train", row)
        review.text()
        assert review.bits.bit_length() > 200


# ----------------------------------------------------------------------------------------------------- rows and splits
def test_a_row_depends_on_its_key_only() -> None:
    rows = [grammar.row("train", row) for row in range(50)]
    assert [grammar.row("train", row) for row in reversed(range(50))] == rows[::-1]
    assert rows_of("train", 50) == rows
    assert [grammar.row("train", row, seed=1) for row in range(50)] != rows
    assert [grammar.row("test", row) for row in range(50)] != rows


def test_shards_split_the_rows() -> None:
    whole = rows_of("train", 103, 3)
    for shards in (1, 2, 4, 7):
        found = [list(embedded_rows("reviews", "train", 103, 3, shard, shards)) for shard in range(shards)]
        assert [row for group in itertools.zip_longest(*found) for row in group if row] == whole


def test_it_is_a_root() -> None:
    found = embedded_shards("embedded://reviews", ("train?rows=6000&shards=4",), "train")
    assert [shard.format for shard in found] == ["embedded"] * 4


@pytest.mark.parametrize("seed", [0, 1])
def test_few_texts_repeat(seed: int) -> None:
    train = {row["text"] for row in rows_of("train", TRAIN, seed)}
    assert len(train) >= 0.99 * TRAIN
    assert sum(row["text"] in train for row in rows_of("test", TEST, seed)) < 0.01 * TEST


def test_a_text_has_one_label() -> None:
    found: dict[str, set[str]] = defaultdict(set)
    for row in itertools.chain(*(rows_of(split, TRAIN) for split in SPLITS)):
        found[row["text"]].add(row["label"])
    assert not {text: labels for text, labels in found.items() if len(labels) > 1}


def test_combinations_of_a_split_never_occur_in_another() -> None:
    used: dict[str, set[tuple[str, str]]] = {split: set() for split in SPLITS}
    without = 0
    for split, seed, row in itertools.product(SPLITS, (0, 1), range(1000)):
        review = grammar.Review(split, grammar.LABELS[row % 2], "reviews", seed, split, row)
        review.text()
        used[split].update(review.combinations)
        without += not review.combinations
    assert not used["train"] & used["validation"]
    assert not used["train"] & used["test"]
    assert not used["validation"] & used["test"]
    assert len(used["test"]) > 150
    assert all(split_of("review", *combination) == split for split in SPLITS for combination in used[split])
    assert without <= 0.12 * 6000  # "I expected a mess and got exactly that."


def test_subject_and_adjective_of_a_test_text_never_occur_together_in_training(corpus: Corpus) -> None:
    """Compare the texts, not the generator's record: "the story is (not, truly, far from, …) gripping"."""
    nouns = {noun.name for noun in grammar.THINGS + grammar.PARTS}
    said = re.compile(
        rf"\b(?:the|this) ({'|'.join(sorted(nouns, key=len, reverse=True))}) (?:is|are|was|were) (?:[a-z]+ ){{0,3}}?"
        rf"({'|'.join(sorted(ADJECTIVES, key=len, reverse=True))})\b"
    )

    def pairs_of(split: str) -> set[tuple[str, str]]:
        texts = (row["text"].lower() for row in corpus[split])
        return {found.groups() for text in texts for found in said.finditer(text) if " than " not in found[0]}

    assert len(pairs_of("test")) > 100
    assert not pairs_of("train") & pairs_of("test")
    assert not pairs_of("train") & pairs_of("validation")


# ------------------------------------------------------------------------------------------------------------- meaning
@pytest.mark.parametrize("seed", [0, 1])
def test_words_and_word_pairs_do_not_predict_the_label(seed: int) -> None:
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    train, test = rows_of("train", TRAIN, seed), rows_of("test", TEST, seed)
    count = CountVectorizer(ngram_range=(1, 2))
    model = LogisticRegression(max_iter=1000)
    model.fit(count.fit_transform(row["text"] for row in train), [row["label"] for row in train])
    score = model.score(count.transform(row["text"] for row in test), [row["label"] for row in test])
    assert score < 0.65, f"a 1-2-gram logistic regression reaches {score:.1%}"


def test_polar_words_occur_with_both_labels(corpus: Corpus) -> None:
    verbs = [verb for table in grammar.DATA["verbs"].values() for verbs in table.values() for verb in verbs.items()]
    polar = ADJECTIVES | set(itertools.chain.from_iterable(verbs))
    polar |= {"not", "never", "but", "although", "better", "worse", "right", "wrong", "saved", "ruined", "hardly"}
    counts: dict[str, Counter[str]] = {label: Counter() for label in ("negative", "positive")}
    for row in corpus["train"]:
        counts[row["label"]].update(set(re.findall(r"\w+", row["text"].lower())) & polar)
    for word in polar:
        seen = sum(count[word] for count in counts.values())
        share = counts["positive"][word] / max(seen, 1)
        assert abs(share - 0.5) <= 0.06 + 1.6 / max(seen, 1) ** 0.5, f"{word}: {share:.0%} of {seen} are positive"


def test_a_negated_clause_negates_and_a_plain_one_does_not() -> None:
    twice = r"never less than|nothing (short of|less than)|not call \{s\} anything but|never failed"
    negation = r"\b(not|never|no|nobody|hardly|cannot|far from|anything but)\b"
    for kind, table in grammar.FORMS.items():
        for form, expected in (("plain", 0), ("negated", 1)):
            for text in table[form]:
                found = re.findall(negation, re.sub(twice, "", text))
                assert len(found) == expected, f"{kind}: {text}"


# Checked by a person, one for each frame: the label, the frame, its index, the number of the draw, the text.
VERIFIED = """
+ but 0 0: The dialogue is far from pleasant, but I would call it a wonderful play.
- but 1 0: The cable was durable this time, but you could not call the instructions anything but confusing.
+ but 2 0: The colors are anything but remarkable, and yet I would call the toaster good.
- but 3 0: The customer service delighted me, I confess. However, this laptop is anything but impressive.
+ but 4 0: The buttons were terrible, as far as I can judge. Still, the radio never failed to please me.
- but 5 0: It is true that the manual is not really horrible, but the instructions are never really helpful.
+ but 6 17: The villain is not likable at all, and the chapters bothered me. But all in all, I loved this novel.
- but 7 0: Granted, the customer service charmed me, to be honest; nevertheless, it is anything but a pleasant drill.
+ but 8 0: I really hated the manual, but in the end the superb colors saved the toaster.
- but 9 0: The colors were bad, and not even the pleasant manual saved the backpack.
+ although 0 0: Although I did not find the screen powerful this time, I liked this camera, to be honest.
- although 1 0: Although the script was anything but bad, it was nothing less than a dull thriller.
+ although 2 0: The villain is by no means annoying, although the lead actor is far from captivating.
- although 3 0: You could not call this backpack anything but bad, even though the handle is simply practical.
+ although 4 0: Even if you could not call the effects anything but embarrassing, this was a genuinely gripping musical.
- although 5 1: While the sets were really beautiful and the ending was never less than moving, I hated this opera.
+ first 0 0: At first I did not find the plot impressive, to be honest, but by the end the acting is not embarrassing.
- first 1 1: In the beginning the laptop did not annoy me. After a while, though, the laptop was not satisfying at all.
+ first 2 8: For quite some time the novel irritated me, I must admit; after that the novel really convinced me.
- first 3 81: My first impression was that the drill is superb, but I changed my mind: the drill really frustrated me.
+ expected 0 0: I expected a flop and got a satisfying vacuum cleaner.
- expected 1 0: After all the talk I expected an unforgettable novel this time, but it is a dreadful novel.
+ expected 2 0: I was prepared for a nuisance. What I got was a treat.
- expected 3 0: I expected an exhausting musical and got exactly that.
+ expected 4 0: My neighbor led me to expect a delight, and for once that was right.
- expected 5 0: My sister led me to expect a treat, and once more that was wrong.
+ expected 6 0: I was sure that this camera would be useless. I was wrong.
- expected 7 0: I was sure that this opera would not be delightful. I was right.
+ expected 8 0: It could have been a nuisance. Instead it turned out to be a satisfying movie.
- said 0 0: My brother says that the crime story was never less than clever. I see it differently.
+ said 1 0: Some reviewers claim that you could not call this office chair anything but sturdy. I can only agree.
- said 2 4: A man in the shop told me that it is a clever film, but I think that this is an incredibly bad film.
+ said 3 0: Do not believe anyone who says that the colors are really hideous.
- said 4 0: Believe everyone who says that the tent is not wonderful at all.
+ said 5 0: Anyone who says that the colors were simply dreadful is wrong.
- said 6 0: Anyone who says that it is a ridiculous crime story is right.
+ said 7 0: My mother despised the series. I for one did not.
- said 8 0: My brother hated this movie. I did too.
+ said 9 1: A colleague told me that this is an incredibly irritating play. As I see it, it is not an embarrassing play.
- compared 0 0: This lamp is far worse than the excellent older one.
+ compared 1 0: The excellent older one was far worse than this coffee machine.
- compared 2 0: The thriller is a lot more exhausting than the predecessor.
+ compared 3 0: The play is so much less unpleasant than the original.
- compared 4 0: The remake was far more pleasant than this series.
+ compared 5 0: The earlier version was noticeably less impressive than the film.
- compared 6 0: Unlike the remarkable earlier version, this radio is unpleasant.
+ asked 0 0: Is the novel horrible? Not for a moment.
- asked 1 0: Is the crime story awful? Very much so.
+ asked 2 0: The main character is simply horrible, if you ask me. Do I like the crime story? Of course.
- asked 3 0: I found the design delightful, to be honest. Do I love the backpack? Not for a moment.
+ asked 4 5: The lead actor really irritated me, and I never adored the opening. Do I enjoy the film? Very much so.
- asked 5 2: I never loathed the story, and the opening was not boring. Do I recommend the novel? No, I do not.
+ told 0 0: A happy story of a clever detective and a charming journey, elegantly told.
- told 1 0: The great story of a happy pianist, told awkwardly.
+ told 2 0: A great wedding and an unpleasant sailor: a delightful story, told quite elegantly.
- plain 0 0: You could not call the jokes anything but dreadful, and it is a pointless musical, in my eyes.
+ plain 1 0: I loved this drama, and the jokes were not embarrassing, if you ask me.
- plain 2 0: The design is awful, if you ask me. On balance, I would call it a terrible camera.
"""


def test_every_frame_has_a_verified_text() -> None:
    lines = [re.fullmatch(r"([+-]) (\w+) (\d+) (\d+): (.*)", line).groups() for line in VERIFIED.strip().splitlines()]
    frames = [(name, number) for name, table in grammar.FRAMES.items() for number in range(len(table))]
    assert [(name, int(number)) for _, name, number, _, _ in lines] == frames
    for label, name, number, draw, text in lines:
        sign = {"+": "positive", "-": "negative"}[label]
        review = grammar.Review("train", sign, "spot", name, number, draw)
        assert grammar.spelled(review.fill(grammar.FRAMES[name][int(number)], sign)) == text
